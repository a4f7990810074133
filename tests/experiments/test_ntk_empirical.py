"""Kernels of trained members in an experiment: snapshots, curves, mistakes, its run."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import ntk
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
experiment = load_module(ROOT / "experiments" / "ntk_empirical.py", "experiment")
training, permutations = experiment.training, experiment.permutations
verdicts = experiment.verdicts


def config_of(*overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/ntk_empirical.py:{preset}", overrides)[1]


def test_snapshots_keep_the_weights_after_their_steps():
    snapshots = training.Snapshots((1, 3))
    state = snapshots.init({"w": jnp.zeros(2)})
    for step in range(1, 5):
        state = snapshots.update(state, {"w": jnp.full(2, float(step))})
    np.testing.assert_array_equal(state["kept"]["w"], [[1, 1], [3, 3]])
    np.testing.assert_array_equal(snapshots.mean(state)["w"], [3, 3])


def test_the_late_accuracy_is_the_least_of_the_second_half():
    curves = np.array([[0.1, 0.2, 1.0, 0.9], [0.0, 1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(verdicts.late_accuracy(curves), [0.9, 1.0])
    first, stays = verdicts.first_and_stays(curves, 0.95).T
    assert first.tolist() == [3, 2] and stays.tolist() == [np.inf, 2]
    assert verdicts.median_of([np.inf, 3, 2]) == 3
    pairs = np.array([[1.0, 0.2], [0.4, 1.0]])
    assert verdicts.off_diagonal(pairs) == pytest.approx(0.3)


def test_unseen_inputs_hold_no_training_row():
    config = config_of()
    rows = permutations.unseen_inputs(config, 4)
    assert rows.shape == (11, 4) and rows.sum(axis=1).min() == 2
    drawn = permutations.unseen_inputs(config, 12)
    assert len(drawn) == config.permutations.max_rows
    assert drawn.sum(axis=1).min() == 2 and (drawn.sum(axis=1) == 2).mean() >= 0.5


def test_what_zeros_and_ones_get_is_told_apart():
    targets = np.array([[True, False], [False, True]])
    outputs = np.stack([np.where(targets, 0.8, -0.1), np.where(targets, 1.0, -0.3)])
    found = permutations._moments(outputs, targets)
    np.testing.assert_allclose(found["f"], [-0.2, 0.9])
    assert found["variance"] == pytest.approx(0.02)


@pytest.mark.slow
def test_trained_networks_have_the_law_of_the_oracle():
    overrides = [
        ("permutations.cases", "(('readout', 3, 96),)"),
        ("permutations.num_seeds", "2"),
        ("permutations.oracle_draws", "4"),
    ]
    config = config_of(*overrides)
    (case,) = permutations.cases(config)
    found = permutations.measure(config, case)
    assert found["rows"].shape == (2, 96) and found["oracle_hard"].shape == (4, 96)
    law = ntk.readout_law(3, 2)
    np.testing.assert_allclose(found["law"], [law.on_zero, law.on_one, law.variance])
    # 4 standard errors of 96 members, 3 inputs and 1 or 2 bits a row (not independent).
    error = 4 * np.sqrt(law.variance / 96)
    assert (np.abs(found["f"] - found["law"][:2]) < error).all()
    assert (found["variance"] / law.variance > 0.6).all()
    assert (found["variance"] / law.variance < 1.5).all()
    again = permutations.measure(config, case)
    np.testing.assert_array_equal(found["rows"], again["rows"])


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("cnn.data", "'cats'", "config.cnn.data is one of"),
        ("cnn.widths", "(4, 2)", "config.cnn.widths must rise"),
        ("cnn.snapshots", "(20, 5)", "config.cnn.snapshots must rise"),
        ("cnn.snapshots", "(5, 21)", "must be a multiple"),
        ("cnn.num_members", "1", "config.cnn.num_members"),
        ("cnn.num_rows", "2000", "at most the 1397 training rows"),
        ("cnn.learning_rate", "0.0", "config.cnn.learning_rate"),
        ("permutations.cases", "(('mup', 4, 64),)", "readout, ntk"),
        ("permutations.cases", "(('ntk', 2, 64),)", "k at least 3"),
        ("permutations.cases", "(('ntk', 4, 64), ('ntk', 4, 128))", "must differ"),
        ("permutations.fraction", "1.5", "config.permutations.fraction"),
        ("permutations.residual", "0.0", "config.permutations.residual"),
    ],
)
def test_mistakes_are_found_before_the_run(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of((field, value)))


def test_the_published_size_is_planned():
    config = config_of(preset="paper")
    permutations.check_config(config)
    job = experiment.training_job(config)
    assert job.data[0].shape == (30, 30) and len(job.member_ids) == 5_000
    assert config.permutations.width == 50_000


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    path = f"{ROOT}/configs/ntk_empirical.py:smoke"
    options = RunOptions(path, workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    (claim,) = results["claims"]
    assert claim["name"].startswith("permutation-ntk.c:")
    for entry in results["checks"]:
        if "streamed" in entry["name"] or "not finite" in entry["name"]:
            assert entry["pass"], entry
    scalars = results["scalars"]
    assert scalars["cnn4_change_start"] == 0 < scalars["cnn4_change_end"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == scalars
