"""The benchmark of weight space: ways do the same, and mistakes are one line."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import ensjax
from ensjax import weight_space
from ensjax.cli import main
from ensjax.experiment.configs import load_module

ROOT = Path(__file__).parents[2]
bench = load_module(ROOT / "experiments" / "bench_weights.py", "bench")
alignment = bench.PARTS["alignment"]


def untrained(num_members, seed=0):
    """The task of `alignment_ways` with random weights, which compile nothing."""

    def make_model(rngs):
        return ensjax.nn.MLP(in_features=4, hidden=(7, 5), num_outputs=3, rngs=rngs)

    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    shapes = jax.eval_shape(
        lambda: ensjax.Ensemble.init(make_model, num_members=num_members, mesh=mesh)
    )
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes.state
    )
    ids = jnp.arange(num_members, dtype=jnp.int32)
    ensemble = dataclasses.replace(shapes, state=state, member_ids=ids).on_mesh(mesh)
    spec = weight_space.infer_permutations(
        ensemble, jax.ShapeDtypeStruct((1, 4), jnp.float32)
    )
    return alignment.Task(ensemble, spec, None)


def products(task, permutations):
    """Of the weights of all pairs of members, `[member, member]`."""
    own = weight_space.apply_permutations(task.ensemble, task.spec, permutations)
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(own.params)]
    flat = np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
    return flat @ flat.T


def test_ways_of_alignment_reach_what_ours_does():
    totals = dict.fromkeys(alignment.DEFAULT_WAYS, 0.0)
    for seed in range(4):
        task = untrained(4, seed)
        start = products(task, weight_space.identity_permutations(task.spec, 4))
        for name in alignment.DEFAULT_WAYS:
            found = alignment.WAYS[name](task)()
            alignment.compare(name, found, found)
            after = products(task, found)
            assert after.sum() > start.sum()
            if "to one" in name:
                assert (after[0, 1:] > start[0, 1:]).all()
                for orders in found.values():
                    np.testing.assert_array_equal(orders[0], np.arange(orders.shape[1]))
            totals[name] += after.sum() - start.sum()
    # Local optima: neither is better in every task, but together they are as good.
    assert totals[alignment.OURS] > 0.9 * totals["MergeMany"]
    assert totals[alignment.OURS] > totals["pairs to one"]


def test_a_pair_is_matched_as_by_the_library():
    task = untrained(2)
    found = alignment.with_pairs(task)()
    ours = weight_space.match_weights(task.ensemble, task.spec, solver="host")
    mine, theirs = (products(task, p)[0, 1] for p in (ours.permutations, found))
    assert mine > 0 and theirs > 0.8 * mine
    with pytest.raises(RuntimeError, match="are no permutations"):
        alignment.compare("loop", {"h": np.zeros((2, 3))}, {"h": np.zeros((2, 3))})


def row(**others):
    return {
        "size": [32, 512],
        "part": "alignment",
        "seconds": {"joint, one call": 2.0, "MergeMany": 8.0},
        "all_seconds": {"joint, one call": [2.0, 2.0], "MergeMany": [8.0, 8.0]},
        "first_seconds": {"joint, one call": 2.0, "MergeMany": 8.0},
        "quality": {"joint, one call": {"barrier": 0.25}},
        "compilations": 0,
        "ratios": {"joint, one call": 1.0, "MergeMany": 4.0},
    } | others


def test_the_table_shows_quality_beside_time_and_older_rows_too():
    console = rich.console.Console(width=200, record=True)
    old = row(size=[1000, 2], ratios={"joint, one call": 1.0, "MergeMany": 4.0})
    del old["part"], old["quality"]
    console.print(bench.make_table([row(), old]))
    text = console.export_text()
    assert "alignment of 32, width 512" in text and "barrier 0.25" in text
    assert text.count("joint, one call: 0.25 x MergeMany: no slower") == 2
    assert "1,000 mixtures of 2" in text
    assert bench.measurements_of(row())[0] == "alignment 32x512"
    assert bench.measurements_of(old)[0] == "1000x2"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--part", "merges"], "--part takes mixtures, soup, alignment"),
        (["--ways", "R"], "--ways takes sweep"),
        (["--size", "3"], "--size is mixtures x members"),
        (["--members", "1"], "--members and --soup-members must be at least 2"),
        (["--alignment-repetitions", "0"], "--alignment-repetitions must be at least"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "weights", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_soups_and_alignment_run_and_say_how_good_they_are(tmp_path):
    file = tmp_path / "weights.json"
    options = ["--part", "soup,alignment", "--members", "3", "--width", "8"]
    options += ["--soup-members", "5", "--soup-rows", "40", "--repetitions", "1"]
    options += ["--alignment-repetitions", "1", "--json", str(file)]
    assert main(["bench", "weights", *options]) == 0
    soup, aligned = json.loads(file.read_text())["rows"]
    assert soup["largest_difference"]["sequential loop"] < 1e-6
    assert soup["compilations"] == 0
    assert len({own["kept"] for own in soup["quality"].values()}) == 1
    assert set(aligned["quality"]) == set(alignment.DEFAULT_WAYS)
