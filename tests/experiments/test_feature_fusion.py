"""The experiment of feature fusion: its tasks, its schedules, its scores, its run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.cli import main
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError, Provenance

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "feature_fusion.py")
experiment = load_module(ROOT / "experiments" / "feature_fusion.py", "experiment")
tasks, models, verdicts = experiment.tasks, experiment.models, experiment.verdicts


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def test_views_of_digits_are_noise_where_they_say_so():
    config = config_of("smoke")
    task = tasks.load_task(config, "digit_views")
    assert task.conditions == ("corrupted", "clean")
    assert [v.shape for v in task.views] == [(4, 180, 32)] * 3
    assert 0.2 < task.corrupted[:2].mean() < 0.4 and not task.corrupted[2:].any()
    # A seed has the same rows in both conditions.
    np.testing.assert_array_equal(task.labels[:2], task.labels[2:])
    for v, view in enumerate(task.views):
        same = (view[:2] == view[2:]).all(-1)
        np.testing.assert_array_equal(same, ~task.corrupted[:2, :, v])
    assert not np.array_equal(task.labels[0], task.labels[1])


def test_text_of_one_part_never_reaches_into_another():
    config = config_of("smoke", ("tasks", "('byte_text',)"), ("corruption", "0.0"))
    task = tasks.load_task(config, "byte_text")
    assert task.num_classes == 8
    assert [v.shape[-1] for v in task.views] == [128, 64, 64]
    for n, view in enumerate(task.views):  # windows of 100 bytes
        np.testing.assert_allclose((view**2).sum(-1), 100 - n, rtol=1e-5)


def test_molecules_are_quarters_of_energy_and_their_views_ignore_the_order_of_atoms():
    config = config_of("smoke", ("tasks", "('molecules',)"), ("corruption", "0.0"))
    task = tasks.load_task(config, "molecules")
    counts = np.bincount(task.labels[0, :60])
    assert task.num_classes == 4 and counts.min() >= 14
    atoms = task.views[0].sum(-1)
    assert atoms.min() >= 3 and atoms.max() <= 6


def test_fusions_and_meta_models_are_refused_rows_that_members_drew():
    features = np.random.default_rng(0).normal(size=(3, 2, 10, 4)).astype(np.float32)
    drawn = np.zeros((3, 2, 10), bool)
    drawn[..., :4] = True
    own = slice(4, 7)
    experiment.training.refuse_leaks(drawn, own)
    drawn[2, 1, 5] = True
    with pytest.raises(LeakageError, match="the fusions cannot .* row 5 .*member 5."):
        experiment.training.refuse_leaks(drawn, own)
    about = [
        Provenance("rows", np.arange(10)[own], seen=drawn.any(1)[:, own]),
        None,
    ]
    labels = np.zeros((2, 3), int)
    with pytest.raises(LeakageError, match="the meta-model cannot be fitted on row 5"):
        jax.eval_shape(
            lambda *rows: experiment.measures._combine(*rows, 2.0, *about),
            features[:, :, own],
            labels,
            features[:, :, 7:],
        )


@pytest.mark.slow
def test_alternating_rows_reach_one_side_each():
    config = config_of("smoke")
    net = models.FusedNet(config, "joint", (4, 4, 4), 3, rngs=nnx.Rngs(params=0))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(0)
    views = tuple(rng.normal(size=(6, 4)).astype(np.float32) for _ in range(3))
    labels = jnp.arange(6) % 3
    loss = models.ScheduleLoss("alternating", 1.0, 0.0)

    @jax.jit
    def gradient(is_fusion):
        batch = (views, labels, is_fusion)
        return jax.grad(lambda p: loss(nnx.merge(graph, p, rest), batch, None))(params)

    def sizes(grads):
        return {
            side: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(grads[side]))
            for side in ("members", "fusion")
        }

    only_members, only_fusion = (
        sizes(gradient(np.full(6, value, np.float32))) for value in (0.0, 1.0)
    )
    assert only_members["fusion"] == 0 and only_members["members"] > 0
    assert only_fusion["members"] == 0 and only_fusion["fusion"] > 0


@pytest.mark.slow
def test_the_optimizer_takes_turns():
    hyper = {"learning_rate": 0.1, "l2": 0.0}
    tx = models.make_optimizer("alternating")(hyper)
    params = {"members": jnp.ones(2), "fusion": jnp.ones(3)}
    state = tx.init(params)
    for step in range(4):
        updates, state = tx.update(params, state, params)
        moved = {name: bool(jnp.abs(u).max() > 0) for name, u in updates.items()}
        assert moved == {"members": step % 2 == 0, "fusion": step % 2 == 1}


def test_the_ridge_of_the_optimizer_is_that_of_a_loss():
    params = jnp.array([1.0, -2.0, 0.5])
    gradient = jnp.array([0.1, 0.2, -0.3])
    tx = models.make_optimizer("joint")({"learning_rate": 0.1, "l2": 0.03})
    plain = models.make_optimizer("joint")({"learning_rate": 0.1, "l2": 0.0})
    found, _ = tx.update(gradient, tx.init(params), params)
    of_loss = gradient + jax.grad(lambda p: 0.03 * jnp.sum(p**2))(params)
    wanted, _ = plain.update(of_loss, plain.init(params), params)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_choice_rows_choose_stack_and_setting_of_each_job():
    loss = np.array([[[3.0, 1.0], [2.0, np.nan]], [[0.5, 4.0], [9.0, 9.0]]])
    values = np.arange(8.0).reshape(2, 4, 1)  # [stack, job * setting, 1]
    found = experiment.training._choose(values, loss)
    np.testing.assert_array_equal(found, [[4.0], [2.0]])


def test_no_row_trains_a_part_and_chooses_or_tests_it():
    config = config_of("small")
    parts = experiment.training.parts_of(config)
    rows = np.arange(config.num_member + config.num_fusion + config.num_test)
    found = [rows[parts[name]] for name in ("member", "fusion", "choice", "test")]
    assert [len(part) for part in found] == [350, 280, 70, 1090]
    np.testing.assert_array_equal(np.concatenate(found), rows)


@pytest.mark.slow
def test_a_member_is_evaluated_on_its_own_jobs_choice_rows():
    config = config_of("smoke")
    rng = np.random.default_rng(0)
    model = models.RowFusion(config, "experts", "joint", 3, rngs=nnx.Rngs(params=0))
    features = tuple(rng.normal(size=(5, 2, 8)).astype(np.float32) for _ in range(3))
    logits = rng.normal(size=(5, 2, 3, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (5, 2))
    own = tuple(f[:, 1] for f in features), logits[:, 1]
    model.job[...] = jnp.asarray(1)
    found = models.choice_loss(model, ((features, logits), labels), None)
    # By the definition: gates of the features mix the members' probabilities.
    weights = np.asarray(model.fusion.weights(own[0]), np.float64)
    probs = np.exp(own[1].astype(np.float64))
    probs /= probs.sum(-1, keepdims=True)
    mixed = (weights[..., None] * probs).sum(1)
    wanted = -np.log(mixed[np.arange(5), labels[:, 1]]).mean()
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_the_hardest_rival_is_the_one_with_the_least_sure_gain():
    config = config_of("small")
    systems = {
        name: {"accuracy": np.array([0.5, 0.5])}
        for name in (*verdicts.RIVALS, "gated", "attention")
    }
    systems["gated"] = {"accuracy": np.array([0.7, 0.7])}
    systems["soft vote"] = {"accuracy": np.array([0.65, 0.65])}
    pair, difference = verdicts.hardest_pair(config, systems)
    assert pair == ("attention", "soft vote")
    np.testing.assert_allclose(difference, [-0.15, -0.15])
    # A larger gain on average is the harder one where seeds differ more.
    systems["attention"] = {"accuracy": np.array([0.9, 0.7])}
    pair, _ = verdicts.hardest_pair(config, systems)
    assert pair == ("attention", "soft vote")
    systems["attention"] = {"accuracy": np.array([0.8, 0.8])}
    assert verdicts.hardest_pair(config, systems)[0] == ("gated", "soft vote")


def test_features_of_a_file_are_read_and_checked(tmp_path):
    path, rng = tmp_path / "features.npz", np.random.default_rng(0)
    rows = {f"features_{v}": rng.normal(size=(40, 3 + v)) for v in range(3)}
    rows |= dict(labels=np.arange(40) % 5, part=np.arange(40) % 3)
    np.savez(path, **rows)
    small = [(f"num_{part}", "13") for part in ("member", "fusion", "test")]
    small += [("num_choice", "3")]
    config = config_of("paper", ("path", str(path)), *small)
    experiment.validate(config)
    task = tasks.load_task(config, "features")
    assert [v.shape for v in task.views] == [(5, 39, 3), (5, 39, 4), (5, 39, 5)]
    with pytest.raises(ConfigError, match="at least .14, 13, 13. rows|of the parts"):
        experiment.validate(config_of("paper", ("path", str(path))))
    with pytest.raises(ConfigError, match="config.path must name .* it is empty"):
        experiment.validate(config_of("paper"))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("tasks", "('digit_views', 'digit_views')", "each once"),
        ("tasks", "('images',)", "config.tasks is one of byte_text"),
        ("fusions", "('gated',)", "config.fusions holds concat, static, gated"),
        ("schedules", "('joint',)", "config.schedules holds alternating"),
        ("corruption", "1.0", "config.corruption must be a number at least 0"),
        ("num_test", "5000", "rows; digit_views has 1797"),
        ("num_choice", "60", "config.num_choice must be below config.num_fusion"),
        ("gate_forms", "('deep',)", "config.gate_forms is one of joint, shared"),
        ("search_l2", "(0.1, 0.1)", "config.search_l2 must be different numbers"),
        ("num_heads", "0", "config.num_heads must be a number at least 1"),
        ("steps_per_call", "7", "config: "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


def test_the_job_to_plan_is_that_of_the_members():
    config = config_of("smoke")
    job = experiment.training_job(config)
    # Two seeds, clean and corrupted, three views.
    assert len(set(job.member_ids)) == 12 and job.stage == "members_digit_views"
    x, labels = job.data
    assert x.shape == (12 * 60, 32) and labels.shape == (12 * 60,)
    assert job.options["weights"].sum(axis=1).tolist() == [60] * 12
    task = tasks.load_task(config, "digit_views")
    own = job.options["weights"][4] > 0  # job 1, view 1
    np.testing.assert_array_equal(x[own], task.views[1][1, :60])
    np.testing.assert_array_equal(labels[own], task.labels[1, :60])


@pytest.mark.slow
def test_the_members_can_be_planned(capfd):
    assert main(["plan", f"{CONFIG}:smoke"]) == 0
    assert "12" in capfd.readouterr().out


@pytest.mark.slow
def test_the_smoke_run_reports_claims_and_the_same_after_a_resume(tmp_path, capsys):
    workdir = tmp_path / "run"
    overrides = [("schedules", "('alternating',)")]
    options = RunOptions(f"{CONFIG}:smoke", str(workdir), overrides=overrides)
    assert run_and_report(options) == 0
    first = json.loads((workdir / "results.json").read_text())
    assert [c["name"].split(":")[0] for c in first["claims"]] == [
        f"adaptive-feature-fusion.{letter}" for letter in "abc"
    ]
    assert first["claims"][1]["verdict"] == "not run"
    assert first["scalars"]["num_members_not_finite"] == 0
    (workdir / "results.json").unlink()
    (workdir / "stages" / "alternating.npz").unlink()
    assert run_and_report(options) == 0
    assert json.loads((workdir / "results.json").read_text()) == first
    assert "read back" in capsys.readouterr().out
