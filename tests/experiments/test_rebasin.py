"""Alignment in an experiment: barriers by hand, recipes, mistakes, its runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.weight_space import barrier

ROOT = Path(__file__).parents[2]
rebasin = load_module(ROOT / "experiments" / "rebasin.py", "experiment")
training, measures, verdicts = rebasin.training, rebasin.measures, rebasin.verdicts


def config_of(*overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/rebasin.py:{preset}", overrides)[1]


def paths(loss, accuracy):
    """Of one pair, the same on both sets, for all ways: `[way, set, score, 1, a]`."""
    own = np.array([loss, accuracy], float)[:, None]
    return np.broadcast_to(own, (len(measures.WAYS), 2, *own.shape)).copy()


def test_a_barrier_is_above_the_line_between_the_ends():
    stored = paths([1.0, 4.0, 2.0], [0.9, 0.5, 0.7])
    stored[measures.WAYS.index("weights"), :, 0, 0, 1] = 2.0
    done = {"width-8": {"paths": stored}}
    assert verdicts.barriers(done, 8, "naive") == pytest.approx([2.5])
    assert verdicts.barriers(done, 8, "weights") == pytest.approx([0.5])
    error = verdicts.barriers(done, 8, "naive", score="accuracy")
    assert error == pytest.approx([0.3])
    assert verdicts.ratio(done, 8) == pytest.approx([0.2])
    assert verdicts.middle(done, 8, "naive") == pytest.approx([0.5])
    assert verdicts.removed(done, 8) == pytest.approx([1 - 2.5 / 0.5])


def test_a_sets_barrier_is_the_mean_of_all_pairs():
    matrix = np.zeros((1, 2, 3, 3))
    matrix[0, 0, 0, 1], matrix[0, 0, 0, 2], matrix[0, 0, 1, 2] = 1, 2, 6
    matrix = matrix + np.swapaxes(matrix, 2, 3)
    found = verdicts.set_barriers({"joint_matrix": matrix})
    np.testing.assert_allclose(found, [[3, 0]])


def test_a_rise_at_the_midpoint_is_not_called_a_barrier():
    config = config_of(preset="small")
    assert config.num_matrix_alphas == 3
    assert verdicts.rise(config) == "rise at the midpoint"
    # A loss that is largest elsewhere: the barrier is above the rise.
    losses = np.array([0.0, 3.0, 1.0, 0.0, 0.0])
    assert float(barrier(losses[::2])) == 1.0 < float(barrier(losses)) == 3.0
    assert verdicts.rise(config_of(preset="paper")) == "barrier on 25 points"


def test_scores_of_rows_equal_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 5, 3)), rng.integers(0, 3, 5)
    found = measures.row_scores(logits, labels)
    for member in range(2):
        for row in range(5):
            p = np.exp(logits[member, row]) / np.exp(logits[member, row]).sum()
            assert found[0, member, row] == pytest.approx(-np.log(p[labels[row]]))
            assert found[1, member, row] == (p.argmax() == labels[row])


def test_weight_decay_goes_through_the_momentum():
    hyper = {"learning_rate": 0.1, "weight_decay": 0.5, "momentum": 0.9}
    tx = training.sgd(hyper)
    w, velocity = np.array([2.0], np.float32), 0.0
    ours, state = w.copy(), tx.init(w)
    for gradient in (1.0, -3.0):
        velocity = 0.9 * velocity + gradient + 0.5 * w
        w = w - 0.1 * velocity
        updates, state = tx.update(np.array([gradient], np.float32), state, ours)
        ours = ours + updates
    np.testing.assert_allclose(ours, w, rtol=1e-6)


def test_members_without_momentum_come_last():
    config = config_of(("mlp.num_pairs", "3"), ("mlp.widths", "(8, 16)"))
    shapes = training.shapes_of("digits")
    last = training.mlp_job(config, 16, shapes)
    assert list(last.hyper["momentum"] > 0) == [True] * 6 + [False] * 6
    other = training.mlp_job(config, 8, shapes)
    assert len(other.member_ids) == 6 and (other.hyper["momentum"] > 0).all()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_alphas", "4", "config.num_alphas must be odd"),
        ("mlp.widths", "(16, 8)", "config.mlp.widths must rise"),
        ("mlp.total_steps", "35", "must be a multiple"),
        ("mlp.momentum", "1.0", "config.mlp.momentum"),
        ("mlp.data", "'cats'", "config.mlp.data is one of"),
        ("resnet.depth", "9", "must be 6n"),
        ("resnet.num_members", "1", "config.resnet.num_members"),
        ("resnet.batch_size", "2000", "at most the 1397 training rows"),
        ("save_every_steps", "15", "config.save_every_steps=15 must be a multiple"),
    ],
)
def test_mistakes_are_found_before_the_run(field, value, message):
    with pytest.raises(ConfigError, match=message):
        rebasin.validate(config_of((field, value)))


def test_large_presets_are_valid_and_say_what_files_they_need():
    gpu, paper = (config_of(preset=preset) for preset in ("gpu", "paper"))
    for config in (gpu, paper):
        rebasin.validate(config)
    assert (gpu.resnet.num_members, gpu.resnet.depth) == (32, 20)
    with pytest.raises(ConfigError, match="config.folder must name"):
        rebasin.run(paper, None)
    job = rebasin.training_job(paper)
    assert job.data[0].shape == (50_000, 32, 32, 3) and job.stage == "resnets"


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    options = RunOptions(f"{ROOT}/configs/rebasin.py:smoke", workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    named = {claim["name"].split(".")[0] for claim in results["claims"]}
    assert named == {"git-re-basin", "repair"}
    for entry in results["checks"]:
        if "outputs changed" in entry["name"] or "not finite" in entry["name"]:
            assert entry["pass"], entry
    scalars = results["scalars"]
    for name in ("mlp", "resnet"):
        assert scalars[f"{name}_agreement_after"] > scalars[f"{name}_agreement"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 4
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == scalars
