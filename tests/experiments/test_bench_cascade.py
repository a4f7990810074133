"""The benchmark of cascades: its ways agree, and its mistakes are one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from ensjax import combine
from ensjax.cli import main
from ensjax.experiment.configs import load_module

ROOT = Path(__file__).parents[2]
ways = load_module(ROOT / "experiments" / "cascade_ways.py", "bench")


def test_a_difference_is_of_probabilities_and_counts_other_exits():
    log_probs = np.log([[0.5, 0.5], [0.9, 0.1]])
    one = combine.CascadeOutput(log_probs, np.zeros(2), np.array([0, 1]))
    other = combine.CascadeOutput(
        np.log([[0.5, 0.5], [0.7, 0.3]]), np.zeros(2), np.array([0, 0])
    )
    assert ways.difference(one, one) == (0.0, 0)
    found = ways.difference(one, other)
    assert found[0] == pytest.approx(0.2) and found[1] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--share", "1.5"], "--share takes shares between 0 and 1"),
        (["--batch", "none"], "--batch takes positive numbers"),
        (["--rows", "100", "--batch", "64"], "--rows must be a multiple"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "cascade", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_all_ways_give_the_dense_answers_and_run_the_rows_they_say(tmp_path):
    file = tmp_path / "cascade.json"
    options = ["--rows", "128", "--batch", "64", "--second", "2"]
    options += ["--share", "0.25", "--repetitions", "1"]
    assert main(["bench", "cascade", *options, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert max(row["largest_difference"].values()) <= 1e-5
    one = row["flops_per_row"]["dense"] / 3  # of a member
    assert row["flops_per_row"]["capacity"] == pytest.approx(one * (1 + 2 * 0.25))
    assert row["flops_per_row"]["loop"] == pytest.approx(3 * one)
    assert row["share_gone_on"]["compacted"] == 0.25
    assert row["share_gone_on"]["capacity"] == 0.25
    # 32 rows go on, from two batches of 64: gathered in one of 32.
    assert row["flops_per_row"]["compacted"] == pytest.approx(one * (1 + 2 * 0.25))
