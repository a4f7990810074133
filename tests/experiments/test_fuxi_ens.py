"""fuxi_ens: what is measured, what is concluded, real rain, and a short run."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from ensjax.emulate.variational_training import VariationalLoss
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "fuxi_ens.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "fuxi_ens")
scores, training = experiment.scores, experiment.training


def config_of(preset="smoke", *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


# Measures.


def test_an_ensemble_of_the_truths_own_distribution_is_reliable():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(9, 400, 2, 12)).astype(np.float32)
    found = scores.measure(draws[1:], draws[0], block_sites=6, short_leads=(1, 2))
    assert found["cells"].shape == (400, 2, 2)
    np.testing.assert_allclose(
        found["cells"].mean(axis=(0, 2)), found["fair"], rtol=1e-5
    )
    np.testing.assert_allclose(found["fair"], 1 / np.sqrt(np.pi), atol=0.02)
    np.testing.assert_allclose(found["ssr"], 1, atol=0.02)
    np.testing.assert_allclose(found["rmse"], np.sqrt(9 / 8), atol=0.03)
    np.testing.assert_allclose(found["ranks"], np.ones((2, 9)), atol=0.15)
    error = np.abs(draws[1:].mean(axis=0) - draws[0])[:, 0]
    np.testing.assert_allclose(found["error"], error, atol=1e-6)


@pytest.mark.parametrize("change, first", [(0, 1), (2, 3), (5, 0)])
def test_from_which_lead_on_an_ensemble_is_better(change, first):
    """Of five leads, better from one on by as much as it was worse before."""
    rng = np.random.default_rng(0)
    others = rng.normal(size=(40, 5, 3)) + 3
    gain = np.where(np.arange(5) < change, 1.0, -1.0)[None, :, None]
    found = scores.better_cells(
        others + gain, others, seed=0, num_resamples=100, block_length=1
    )
    share = 1 - change / 5
    np.testing.assert_allclose(found["share"], share, atol=1e-6)
    np.testing.assert_allclose(found["sure"], [share, 1 - share], atol=1e-6)
    assert found["first_lead"] == first
    np.testing.assert_allclose(found["difference"], [gain[0, :, 0]] * 3, atol=1e-6)


def test_equal_ensembles_have_about_half_of_the_cells_each():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 60, 20, 6))
    found = scores.better_cells(one, other, seed=0, num_resamples=200, block_length=1)
    assert found["share"][1] < 0.5 < found["share"][2]
    assert found["sure"].max() < 0.1


def test_whether_deviation_follows_error():
    sigma = np.random.default_rng(0).uniform(size=(20, 8))
    correlation, bins = scores.flow_dependence(sigma, 2 * sigma**3)
    assert correlation == pytest.approx(1, abs=1e-6)
    assert (np.diff(bins, axis=1) > 0).all()
    assert scores.flow_dependence(sigma, -sigma)[0] == pytest.approx(-1, abs=1e-6)


# Conclusions.


def done_of(config, gain):
    """Scores as if the model of the paper had gained so much over all others."""
    rng = np.random.default_rng(0)
    seeds, leads = 5, config.archive.num_leads
    found = {"frozen_steps": np.full(10, -1)}
    own, l1 = training.learned_name(config), training.l1_name(config)
    for name in experiment.verdicts.systems(config):
        fair = 0.4 if name == own or name.startswith("crps") else 0.4 + gain
        noise = 0.001 * rng.normal(size=(seeds, leads))
        found[f"{name}/fair"] = fair + noise
        found[f"{name}/ssr"] = np.full((seeds, leads), 0.1 if name == l1 else 0.95)
        found[f"{name}/rmse"] = np.full((seeds, leads), 0.7)
    for name in training.variants(config):
        for key in ("kl", "sigma", "ssr_trained"):
            found[f"{name}/{key}"] = np.full(seeds, 0.1)
        found[f"{name}/spearman"] = 0.1 + 2 * gain + 0.01 * rng.normal(size=seeds)
    found["cells/share"] = np.tile([0.5 + gain, 0.4, 0.99], (seeds, 1))
    found["cells/first_lead"] = np.full(seeds, 3)
    rain = {"crps": np.full(seeds, 5.1 - gain), "ssr": np.ones(seeds), "not_finite": 0}
    rain |= {"raw": np.array(7.1), "climatology": np.array(5.3), "emos": np.array(4.7)}
    names = ("parameters", "emulator_parameters", "bytes", "step_flops")
    full = dict.fromkeys((*names, "forecast_flops", "rows", "columns"), 1e9)
    full = {name: np.float64(x) for name, x in full.items()}
    full["channels"] = np.float64(78)
    return {"emulate": found, "rain": rain, "full_size": full}


@pytest.mark.parametrize("gain, verdict", [(0.45, "holds"), (-0.2, "fails")])
def test_claims_follow_the_scores(gain, verdict):
    config = config_of("claims", ("num_seeds", "5"))
    done = done_of(config, gain)
    first, *others = experiment.verdicts.make_claims(config, done)
    assert first["verdict"] == "not run"
    assert [claim["verdict"] for claim in others] == [verdict] * 3
    checks = experiment.verdicts.make_checks(config, done)
    failed = [check["name"][:3] for check in checks if not check["pass"]]
    low = ["(b)", "(c)", "(e)", "(e)", "(e)", "CRP"]
    assert failed == ([] if gain > 0 else low)
    assert "1.00 billion parameters" in first["name"]
    # A twin whose mean is learned, too, decides alone.
    twin = {**done["emulate"]}
    twin["one_spread/fair"] = twin[f"{training.learned_name(config)}/fair"] - 0.01
    claims = experiment.verdicts.make_claims(config, done | {"emulate": twin})
    assert claims[2]["verdict"] == "fails" and "learned mean" in claims[2]["name"]
    text = experiment.verdicts.describe(config, done)
    assert "from lead 3, 3, 3, 3, 3 on" in text
    assert np.isfinite(list(experiment.verdicts.summarise(config, done).values())).all()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("archive.source", "era5", "config.model.name is one of windows"),
        ("archive.num_before", "0", "config.archive.num_before must be"),
        ("archive.num_train_outputs", "2", "config.archive.num_train_outputs must be"),
        ("scale", "small", "config.scale is one of full, reduced, toy"),
        ("variants.kl_weights", "(1e-4,)", "are as many"),
        ("variants.kl_weights", "(1e-4, 1e-2)", "must hold l1 with the KL weight"),
        ("variants.kl_weights", "(1e-4, -1)", "config.variants.kl_weights must be"),
        ("variants.reconstructions", "('l1', 'l1')", "the first is crps"),
        ("variants.reconstructions", "('crps', 'crps')", "config.variants must differ"),
        ("model.name", "windows", "config.model.name is one of residual"),
        ("model.width", "0", "config.model.width must be"),
        ("model.depth", "-1", "config.model.depth must be a whole number at least 0"),
        ("model.kernel_size", "2", "config.model.kernel_size must be odd"),
        ("model.log_variance_offset", "3", "log_variance_offset .* below 2; got 3"),
        (
            "model.log_variance_range",
            "(2, -12)",
            "log_variance_range must be 2 or more",
        ),
        ("model.log_variance_range", "(-12, 1, 2)", "log_variance_range are two; got"),
        ("training.estimator", "fairr", "config.training.estimator is one of"),
        ("training.kl_direction", "both", "config.training.kl_direction is one of"),
        ("training.num_members", "1", "config.training.num_members must be"),
        ("training.rollout_steps", "(1, 2)", "one of each stage"),
        ("training.batch_size", "500", "config.training.batch_size .* at most 144"),
        ("training.steps_per_call", "0", "config.training.steps_per_call must be"),
        ("training.steps_per_call", "3", "steps_per_call must divide the 20 steps"),
        ("training.learning_rate", "0", "config.training.learning_rate must be"),
        ("training.weight_decay", "-0.1", "config.training.weight_decay must be"),
        ("training.betas", "(0.9, 1.0)", "config.training.betas must be .* below 1"),
        ("training.betas", "(0.9,)", "config.training.betas are two"),
        ("training.block", "0", 'config.training.block must be "auto", None'),
        ("num_members", "1", "config.num_members must be"),
        ("short_leads", "(1, 20)", "config.short_leads must be"),
        ("short_leads", "(10, 4, 1)", "config.short_leads must be .* that rise"),
        ("block_sites", "5", "must divide the 36 sites"),
        ("block_sites", "0", "config.block_sites must be a whole number at least 1"),
        ("bootstrap.num_resamples", "0", "config.bootstrap.num_resamples must be"),
        ("bootstrap.block_length", "9", "block_length must be .* at most 8; got 9"),
        ("rain.num_members", "1", "config.rain.num_members must be"),
        ("rain.width", "0", "config.rain.width must be"),
        ("rain.learning_rate", "-1", "config.rain.learning_rate must be"),
        ("rain.dry_depth", "0", "config.rain.dry_depth must be"),
        ("rain.kl_weight", "-1", "config.rain.kl_weight must be"),
        ("rain.gap_days", "0", "config.rain.gap_days must be"),
        ("rain.split_date", "1990-01-01", "config.rain.split_date must be a day with"),
    ],
)
def test_configs_that_do_not_fit_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        experiment.validate(config_of("smoke", (field, value)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


# Networks.


def test_variants_of_a_seed_start_alike_and_the_constant_has_the_same_forecaster():
    config = config_of("smoke", ("num_seeds", "2"))
    job = training.training_job(config, shapes_only=True)
    assert job.data.shape == (8 * 18, 2, 3, 36, 1)
    assert job.hyper["task"].tolist() == [0, 0, 1, 1]
    ensemble = job.ensemble()
    for leaf in jax.tree.leaves(ensemble.params):
        np.testing.assert_array_equal(leaf[0], leaf[1])
        np.testing.assert_array_equal(leaf[2], leaf[3])
    stems = ensemble.params["emulator"]["forecaster"]["stem"]
    kernel = np.asarray(jax.tree.leaves(stems)[-1])
    assert np.abs(kernel[0] - kernel[2]).max() > 0.1
    make = functools.partial(training.make_constant, config, 1.0)
    constant = training._job(config, make, job.data, twin="constant").ensemble()
    assert constant.member_ids.tolist() == [0, 2]
    stems = constant.params["emulator"]["forecaster"]["stem"]
    np.testing.assert_array_equal(jax.tree.leaves(stems)[-1], kernel[[0, 2]])
    # Each network's own Gaussian, by name.
    moments = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    prior = training.emulators.with_moments(moments, constant)[1].emulator.prior
    np.testing.assert_array_equal(prior.mean[...], [3, 4])
    np.testing.assert_array_equal(prior.log_variance[...], [7, 8])
    # The other twin has all of the learned networks that a forecast needs.
    make = functools.partial(training.make_one_spread, config, 1.0)
    twin = training._job(config, make, job.data, twin="one_spread").ensemble()
    twin = training.emulators.with_moments(moments, twin)
    assert twin.member_ids.tolist() == [0, 2]
    for part in ("forecaster", "prior"):
        pairs = (jax.tree.leaves(x.params["emulator"][part]) for x in (twin, ensemble))
        for own, learned in zip(*pairs, strict=True):
            np.testing.assert_array_equal(own, np.asarray(learned)[[0, 2]])
    field = twin[1].emulator.prior(np.ones((36, 2), np.float32))
    np.testing.assert_array_equal(field.log_variance, np.tile([7, 8], (36, 1)))
    assert set(training.TWINS) == set(experiment.verdicts.CONSTANTS) - {"replaced"}


def test_full_size_has_the_published_shapes():
    config = config_of("paper")
    experiment.validate(config)
    job = training.training_job(config, shapes_only=True)
    assert job.data.shape == (1, 1, 3, 720, 1440, 78)
    assert isinstance(job.options["loss"].loss, VariationalLoss)
    assert job.options["loss"].axis == "model"
    weights = np.array(job.options["loss"].loss.element_weights)
    assert weights.shape == (720, 1, 1) and weights.mean() == pytest.approx(1)
    job.options["loss"].loss.check(jax.ShapeDtypeStruct((1, *job.data.shape[2:]), "f4"))
    pair = nnx.eval_shape(lambda: job.make_model(nnx.Rngs(params=0)))

    def count(module):
        return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))

    width, patch = 1536, 64
    block = 12 * width**2 + 13 * width  # four and eight matrices, biases and norms
    outside = 156 * patch * width + width + 90 * 180 * width + 2 * width
    for module, depth, num_out in (
        (pair.emulator.forecaster, 40, 78),
        (pair.emulator.prior, 14, 312),
        (pair.posterior, 14, 312),
    ):
        head = (width + 1) * patch * num_out
        assert count(module) == depth * block + outside + head
    # What it costs, with products of every block: 16,200 patches in windows of 324.
    costs = experiment.full_size_costs()
    assert (costs["rows"], costs["columns"], costs["channels"]) == (720, 1440, 78)
    assert costs["parameters"] == count(pair)
    tokens, seen = 90 * 180, 18 * 18

    def products(depth, num_out):
        block = 12 * width**2 + 2 * seen * width
        return 2 * tokens * (depth * block + patch * width * (156 + num_out))

    step, once = products(40, 78), products(14, 312)
    assert costs["forecast_flops"] == step + once
    # The perturbations of a first step are computed once for all eight members. A
    # gradient has two products for one; a block is computed again but for the last
    # third of its products, whose result is not asked for.
    forward = 8 * step + 2 * once
    assert 3.6 * forward < costs["step_flops"] < (3 + 2 / 3) * forward
    with pytest.raises(ConfigError, match="ERA5 is not at hand"):
        training.simulate(config)


# Rain.


def test_rain_has_one_channel_with_a_truth():
    rainfall = experiment.rainfall
    config = config_of()
    train, test, scale = rainfall.load(config)
    windows = rainfall.windows(config, train, scale)
    assert windows.shape == (len(train.observed), 2, 1, rainfall.NUM_FEATURES)
    assert np.isfinite(windows).all()
    assert not windows[:, 1, :, 1:].any()
    root = windows[:, 1, 0, 0] * scale.sd + scale.mean
    wet = train.observed > 0
    np.testing.assert_allclose(root[wet] ** 2, train.observed[wet], rtol=1e-3)
    assert (root[~wet] <= 0).all() and (root[~wet] >= -config.rain.dry_depth).all()
    mean = scale.standardise(np.sqrt(test.members)).mean(axis=1)
    np.testing.assert_array_equal(rainfall.features(test, scale)[:, 0], mean)


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", workdir=str(tmp_path / "run"))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scalars"]["num_networks_not_finite"] == 0
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 5
    assert run_and_report(options) == 0
    # Another file under the name that older versions stored their scores in.
    stages = tmp_path / "run" / "stages"
    (stages / f"{experiment.EMULATED}.npz").rename(stages / "emulate.npz")
    (tmp_path / "run" / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["scalars"] == results["scalars"]
    assert (stages / f"{experiment.EMULATED}.npz").exists()


@pytest.mark.slow
def test_a_curriculum_hands_weights_over(tmp_path):
    changes = (
        ("training.rollout_steps", "(1, 2)"),
        ("training.total_steps", "(10, 5)"),
    )
    options = RunOptions(
        f"{CONFIG}:smoke", workdir=str(tmp_path / "run"), overrides=changes
    )
    assert run_and_report(options) == 0
    found = (tmp_path / "run" / "checkpoints").iterdir()
    kinds = ("train", "constant", "one_spread")
    names = {f"{kind}{end}" for kind in kinds for end in ("", "_1")}
    assert names <= {path.name for path in found}
