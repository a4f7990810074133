"""`ensjax bench combine`: all ways compute the same, and the report says what."""

import json
from pathlib import Path

import numpy as np
import pytest
import rich.console

from ensjax.experiment.configs import load_module

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
bench = load_module(EXPERIMENTS / "bench_combine.py", "bench")
ways = bench.ways


def row(**others):
    times = {"ensjax": 1.0, "NumPy": 6.0, "torch": 4.0, "scikit-learn": 2.0}
    same = dict.fromkeys(times, 1.0)
    return {
        "size": [2, 3, 8],
        "seconds": times,
        "all_seconds": {k: [v, v] for k, v in times.items()},
        "scores": dict.fromkeys(times, 24),
        "first_seconds": same,
        "peak_mib": same,
        "largest_difference": same,
        "best": "torch",
        "ratio": 4.0,
    } | others


def test_the_table_says_whether_the_target_is_reached():
    console = rich.console.Console(width=200, record=True)
    usual = row(ratio=6.0, best="NumPy", usual_ratio=9.5)
    console.print(bench.make_table([row(), usual]))
    text = console.export_text()
    assert "4.00 x torch: below the target of 5" in text
    assert "6.00 x NumPy: reached of 5" in text
    assert text.count("as it is usually written") == 1 and "9.50 x" in text
    name, measured = bench.measurements_of(row())
    assert name == "2x3x8" and measured["torch"].values == (4.0, 4.0)


def test_a_way_that_computes_something_else_is_not_timed():
    with pytest.raises(RuntimeError, match="NumPy gives nll = 2.0"):
        bench._compare("NumPy", {"nll": 2.0}, {"nll": 1.0})
    assert bench._compare("NumPy", {"nll": 1.0}, {"nll": 1.0, "ece": 0.0}) == 0


@pytest.mark.parametrize(
    "options", [["--size", "3x4"], ["--size", "2x9x5"], ["--ways", "R"]]
)
def test_what_cannot_be_run_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        bench.main(options)
    assert "--size is members" in (err := capsys.readouterr().err) or "--ways" in err


@pytest.mark.slow
def test_every_way_gives_the_scores_of_ours(monkeypatch):
    pytest.importorskip("torch")
    logits, labels = ways.make_rows(5, 333, 12)
    ours = ways.with_ensjax(logits, labels)()
    for name in ways.WAYS:
        try:
            found = ways.WAYS[name](logits, labels)()
        except ImportError:
            assert name == "torchmetrics"  # which no extra of ours installs
            continue
        if name not in ways.PARTIAL:
            assert set(found) == set(ours)
        for score, value in found.items():
            np.testing.assert_allclose(
                value, ours[score], atol=2e-5, rtol=1e-5, err_msg=f"{name}: {score}"
            )


@pytest.mark.slow
def test_the_command_writes_a_report_that_compares_with_itself(tmp_path, capsys):
    path = str(tmp_path / "combine.json")
    options = ["--size", "3x200x8", "--ways", "NumPy", "--repetitions", "2"]
    assert bench.main([*options, "--json", path]) == 0
    report = json.loads(Path(path).read_text())
    assert report["suite"] == "combine" and report["rows"][0]["best"] == "NumPy"
    assert bench.main(["--results", path, "--compare", path]) == 0
    assert "0 of 2 measurements are slower" in capsys.readouterr().out
