"""The benchmark of tangent kernels: ways do the same, and mistakes are one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console

from ensjax.cli import main
from ensjax.experiment.configs import load_module
from ensjax.weight_space.leaves import leaf_names

ROOT = Path(__file__).parents[2]
bench = load_module(ROOT / "experiments" / "bench_ntk.py", "bench")
ways = bench.ways


def test_all_ways_give_our_kernels():
    task = ways.make_task("mlp", 2, 5, block_rows=3)
    ours = ways.WAYS[ways.OURS](task)()
    assert ours.shape == (2, 5, 5)
    for name in ("jitted loop", "jax.jacobian"):
        assert ways.compare(name, ways.WAYS[name](task)(), ours) < 1e-5
    with pytest.raises(RuntimeError, match="gives other kernels than ours"):
        ways.compare("wrong", 1.01 * np.asarray(ours), ours)


def by_hand(task):
    """The MLP's kernels in float64, `[member, row, row']`."""
    names = leaf_names(task.ensemble.params)
    leaves = dict(zip(names, jax.tree.leaves(task.ensemble.params)))
    b1, w1, b2, w2 = (np.asarray(leaves[name], float) for name in sorted(leaves))
    x = task.x.astype(float)
    found = []
    for bias, first, last in zip(b1, w1, w2):
        before = x @ first + bias
        hidden, is_on = np.maximum(before, 0), before > 0
        # Of the readout, then of the layer below: a hidden unit that is on in both.
        below = (is_on * (last**2).mean(axis=1)) @ is_on.T * (x @ x.T + 1)
        found.append(hidden @ hidden.T + 1 + below)
    return np.stack(found)


def test_kernels_are_those_by_hand_and_of_torch():
    task = ways.make_task("mlp", 2, 5, block_rows=3)
    expected = by_hand(task)
    ours = np.asarray(ways.WAYS[ways.OURS](task)())
    assert np.abs(ours / expected - 1).max() < 1e-5
    pytest.importorskip("torch")
    for name in ("torch.func", "torch.func, products"):
        found = ways.WAYS[name](task)()
        assert ways.compare(name, found, ours) < ways.TOLERANCE
    # Its rows are a whole number of times those at once, and not.
    task = ways.make_task("mlp", 1, ways.TORCH_ROWS + 1)
    found = ways.WAYS["torch.func, products"](task)()
    assert np.abs(found / by_hand(task) - 1).max() < 1e-5


def test_the_arithmetic_is_counted_by_hand():
    task = ways.make_task("mlp", 3, 4)
    weights = 785 * 256 + 257 * 10
    assert ways.num_weights(task) == weights
    products = 2 * 10 * 10 * weights  # 10 pairs of rows, 10 outputs
    jacobians = ways.flop(task) / 3 - products
    # For each row and output at least the products of the last layer with a cotangent
    # and of the first with the inputs.
    assert 4 * 10 * 2 * 784 * 256 * 0.4 < jacobians < 4 * 10 * 12 * weights


def test_a_report_is_written_compared_and_shown(tmp_path, capsys):
    path = tmp_path / "ntk.json"
    command = ["bench", "ntk", "--size", "mlp:2x5", "--repetitions", "2"]
    command += ["--matmul-size", "64", "--ways", "jitted loop", "--block-rows", "3"]
    assert main([*command, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert set(row["ratios"]) == {"ours", "jitted loop"} and row["ratios"]["ours"] == 1
    assert row["compilations"] == 0
    assert row["memory"]["ours"]["result_bytes"] == 4 * 2 * 5 * 5
    assert main(["bench", "ntk", "--results", str(path), "--compare", str(path)]) == 0
    shown = capsys.readouterr().out
    for text in ("size 1 of 1", "first call of ours", "0 s left of this size"):
        assert text in shown
    assert "mlp:2x5" in shown and "0 of 2 measurements" in shown
    console = rich.console.Console(width=160, record=True)
    console.print(bench.make_table([row]))
    assert "GF/s" in console.export_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "vit:2x5"], "--size is model:members x rows"),
        (["--size", "mlp:2"], "--size is model:members x rows"),
        (["--ways", "magic"], "--ways takes"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--block-rows", "0"], "--block-rows must be at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
