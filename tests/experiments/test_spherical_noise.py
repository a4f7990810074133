"""spherical_noise: noise of forecasts, scores of known ensembles, claims, a run."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensjax
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.members import member_key

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "spherical_noise.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "spherical_noise")
training, scores, verdicts = experiment.training, experiment.scores, experiment.verdicts


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


CASES, MEMBERS, SEEDS = 6, 8, 5


def fields(config, *shape, power=1.0, seed=0):
    """Smooth fields of variance 1 or less, `[*shape, lat, lon, variable 2]`."""
    noise = dataclasses.replace(training.noise_of(config), kt=(0.02, 0.02), lambd=1.0)
    keys = jax.random.split(jax.random.key(seed), int(np.prod(shape)))
    draw = jax.jit(jax.vmap(lambda key: noise(key, (32, 64, 2))))
    return power * np.asarray(draw(keys)).reshape(*shape, 32, 64, 2)


@pytest.fixture(scope="module")
def found():
    """Scores of members of the truth's law, and of members with half the spread."""
    config = config_of("small")
    leads, steps, days = len(config.test.lead_days), len(config.test.long_days), 121
    archive = {"test": fields(config, 2, days, seed=1)}
    starts, truth = training.data.test_starts(config, archive)
    long = training.data.long_truth(config, archive)
    # Run by run; the second start of the first run is that of day 20.
    np.testing.assert_array_equal(truth[1, 0], archive["test"][0, 20 + 1])
    np.testing.assert_array_equal(long[-1, -1], archive["test"][1, 20 + 100])
    draw = fields(config, len(starts), MEMBERS, leads, seed=2)
    far = fields(config, len(starts), 4, steps, seed=3)
    good = scores.measure(config, archive, draw, far)
    narrow = scores.measure(config, archive, 0.5 * draw, far)
    return good, narrow, starts.shape


def test_members_of_the_truths_law_are_reliable(found):
    good, narrow, shape = found
    assert shape == (2 * 2, 32, 64, 2)
    assert good["crps"].shape == (6, 2) and good["power"].shape == (6, 2, 22)
    # Fields of variance 1: a fair CRPS of 1 / sqrt(pi), four cases of 100 places.
    assert good["crps"].mean() == pytest.approx(np.pi**-0.5, rel=0.05)
    assert good["ssr"].mean() == pytest.approx(1, abs=0.05)
    assert good["large_ssr"].mean() == pytest.approx(1, abs=0.12)
    assert good["long_ssr"].shape == (2, 2)
    assert good["long_ssr"].mean() == pytest.approx(1, abs=0.06)
    assert good["long_ratio"].shape == (2, 2, 22)
    assert good["long_ratio"][..., 3:12].mean() == pytest.approx(1, abs=0.1)
    assert good["long_ranks"].shape == (2, 5)
    assert good["distance"] < 0.6 and good["is_finite"]
    assert narrow["ssr"].mean() < 0.7
    assert narrow["distance"] == pytest.approx(10 * np.log10(4), abs=0.6)
    assert good["ranks"].shape == (6, MEMBERS + 1)
    np.testing.assert_allclose(good["ranks"].mean(), 1)
    assert narrow["ranks"][:, [0, -1]].mean() > 1.5 > good["ranks"].max()
    # What is resampled by runs is the same where every run counts once.
    by_run = {name: good[name][None] for name in scores.RUN_SCORES}
    weights = np.array([[0.5, 0.5], [1.0, 0.0]])
    again = scores.of_runs(config_of("small"), by_run, weights)
    for name in ("ssr", "long_ssr", "distance", "power", "long_ratio"):
        np.testing.assert_allclose(again[name][0, 0], good[name], rtol=1e-5)
        assert not np.allclose(again[name][1, 0], good[name], rtol=1e-3)
    error = good["error_by_run"][:, 0].mean(axis=0)
    np.testing.assert_allclose(np.sqrt(error), good["rmse"][0], rtol=1e-5)


def test_a_forecast_has_the_noise_that_it_was_trained_with():
    """The i-th step of a forecast and of `of_steps`, of either noise."""
    config = config_of("smoke")
    noise, grid = training.noise_of(config), training.grid_of(config)

    @dataclasses.dataclass(frozen=True)
    class Graph:
        def merge(self, state, *, train):
            return lambda noise, x: noise[..., :2] + state

    forecast = training.Forecast(Graph(), noise, (1, 3), 2, 1, (4,), 0)
    starts = jnp.zeros((2, *grid.shape, 2))
    run = jax.jit(forecast)
    for is_white in (0.0, 1.0):
        seen, late = run(jnp.zeros(()), is_white, starts)
        assert seen.shape == (2, 2, 2, 32, 64, 2)
        assert late.shape == (2, 1, 1, 32, 64, 2)
        key = jax.random.fold_in(member_key(0, "sample", 1), 0)
        either = training.EitherNoise(noise, jnp.asarray(is_white))
        expected = either.of_steps(key, (32, 64, 2), 4)[..., :2]
        np.testing.assert_allclose(seen[1, 0], expected[jnp.array([0, 2])], atol=1e-5)
        np.testing.assert_allclose(late[1, 0, 0], expected[3], atol=1e-5)
        assert np.abs(seen[1, 1] - seen[1, 0]).max() > 0.1
        # The same of both cases in one batch, and of a batch and a rest.
        for size in (2, 3):
            at_once = jax.jit(dataclasses.replace(forecast, cases_at_once=size))
            again = at_once(jnp.zeros(()), is_white, starts)
            for x, y in zip(again, (seen, late), strict=True):
                np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_place_of_another_variance_is_seen():
    """Standard errors are those of draws, and small enough to see 10 %."""
    config = config_of("small")
    noise, grid = training.noise_of(config), training.grid_of(config)
    fields = scores._draws(noise, 3)[1]
    squares = (fields**2).mean(axis=2)  # [draw, lat, channel]
    power = scores.published_power(config.noise.lengths_km, grid.degree)
    theory = scores.row_errors(power, grid)
    np.testing.assert_allclose(squares.std(axis=0).T, theory, rtol=0.35)
    area_mean = np.einsum("dic,i->dc", squares, grid.quadrature() / 2)
    half = scores.deviation_error(power)
    np.testing.assert_allclose(area_mean.std(axis=0) / 2, half, rtol=0.1)
    # Of one degree of three waves: a chi-square of three.
    alone = scores.deviation_error(np.array([0.0, 1.0]))
    assert alone == pytest.approx(np.sqrt(1 / 6))
    # At the poles a row is one place, of variance 2; a short field has many elsewhere.
    assert theory[-1, 0] == pytest.approx(np.sqrt(2), rel=0.02)
    assert theory[0, 16] < 0.25
    # One degree alone, by hand: r = cos g, whose mean square on the equator is 1 / 2.
    one = scores.row_errors(np.array([[0.0, 1.0]]), grid)
    assert one[0, 16] == pytest.approx(1.0, rel=0.01)
    assert scores._contrast_errors(squares, grid).max() < 4.5
    sine = np.sin(np.radians(grid.latitudes()))[:, None]
    uneven = squares * (1 + 0.1 * (3 * sine**2 - 1))
    assert scores._contrast_errors(uneven, grid).max() > 4.5


def test_published_power_by_hand():
    # L = R sqrt(2 k) has kT = k.
    length = 6370 * np.sqrt(2 * 0.1)
    shares = np.array([0, 3 * np.exp(-0.2), 5 * np.exp(-0.6)])
    found = scores.published_power([length], 2)
    np.testing.assert_allclose(found, [shares / shares.sum()], rtol=1e-12)


def test_pairs_are_those_of_the_loss(monkeypatch):
    config = config_of("smoke")
    pair_sum, pair_sd = scores._pairs(config)
    assert pair_sum == 0 and 0.8 < pair_sd < 1.2
    loss_of = training.loss_of

    def without_pairs(config, stage):
        return loss_of(config, (*stage[:5], False))

    monkeypatch.setattr(scores.training, "loss_of", without_pairs)
    assert scores._pairs(config)[0] > 1


def test_variants_are_one_stack_and_differ_in_hyperparameters():
    config = config_of("claims")
    job = training.training_job(config, shapes_only=True)
    assert len(job.member_ids) == 15
    np.testing.assert_array_equal(job.hyper["is_white"], [0] * 10 + [1] * 5)
    weights = job.hyper["spectral_weight"]
    np.testing.assert_allclose(weights, [0.1] * 5 + [0] * 5 + [0.1] * 5)
    assert job.data.shape == (6 * 79, 2, 32, 64, 2)
    assert job.options["loss"] == training.loss_of(config, config.stages[0])


def test_the_loss_of_a_variant_asks_of_windows_what_its_rollout_asks():
    """Missing values are left out, and short windows are told before any work."""
    config = config_of("smoke", ("stages", "((2, 3e-3, 'fair', 2),)"))
    stage = training.stages_of(config)[0]
    assert stage.loss.takes_missing is True and stage.loss.axis is None
    ensemble = ensjax.Ensemble.init(
        functools.partial(training.make_model, config), num_members=1, seed=0
    )
    hyper = {name: x[:1] for name, x in training.hyper_of(config).items()}

    def train(num_days, value):
        days = np.random.default_rng(0).normal(size=(2, num_days, 32, 64, 2))
        days[0, 1, 3, 4, 0] = value
        return ensjax.train.train_curriculum(
            ensemble, days.astype(np.float32), [stage], hyper=hyper, seed=0,
            make_tx=ensjax.train.StageAdam(), batch_size=2, steps_per_call=2,
            log_every_steps=2,
        )[1][0]  # fmt: skip

    missing, whole = train(3, np.nan), train(3, 0.0)
    assert np.isfinite(missing.metrics["loss"]).all()
    assert missing.frozen_steps.max() < 0
    assert not np.array_equal(missing.metrics["loss"], whole.metrics["loss"])
    with pytest.raises(ValueError, match="stage 0: a rollout of 2 steps needs windows"):
        train(2, 0.0)


def done_of(good, narrow, better="diffusion"):
    """Results in which one variant has the better spectra, with a little noise."""
    rng = np.random.default_rng(0)
    emulate = {}
    for name in training.VARIANTS:
        for key, value in (good if name == better else narrow).items():
            values = np.stack([value] * SEEDS).astype(float)
            noise = 0.02 * rng.normal(size=SEEDS).reshape(-1, *(1,) * np.ndim(value))
            is_square = key in scores.RUN_SCORES
            emulate[f"{name}_{key}"] = (
                values * (1 + noise) if is_square else (values + noise)
            )
        emulate[f"{name}_frozen_steps"] = np.full(SEEDS, -1)
        # Level one of the card by hand: members of few cases are not calibrated.
        shape = emulate[f"{name}_crps"].shape
        emulate[f"{name}_crps"] = np.full(shape, 0.3)
        emulate[f"{name}_ssr"] = np.full(shape, 1.0)
        emulate[f"{name}_large_ssr"] = np.full(shape, 0.9 if name == "white" else 1.0)
        emulate[f"{name}_example"] = np.zeros((2, 6, 32, 64, 2))
    theory = dict(sd=np.ones(4), lag=np.ones(4), lag_expected=np.ones(4))
    errors = {
        f"{x}_errors": np.ones(4) for x in ("sd", "power", "latitude", "contrast")
    }
    scramble = dict(scramble_places=1.0, scramble_waves=1.8, pair_sum=0.0, pair_sd=1.0)
    return {
        "noise": theory | errors | scramble,
        "simulate": {"num_cases": 4},
        "emulate": emulate,
    }


def test_the_claim_and_checks_follow_their_numbers(found):
    config = config_of("claims", ("data.num_test_runs", "2"))
    good, narrow, _ = found
    done = done_of(good, narrow)
    claim = verdicts.make_claims(config, done)[0]
    assert claim["verdict"] == "holds" and len(claim["parts"]) == 2
    assert all(c["pass"] for c in verdicts.make_checks(config, done))
    other = done_of(good, narrow, better="white")
    assert verdicts.make_claims(config, other)[0]["verdict"] == "fails"
    other["noise"]["sd"] = np.array([1.0, 1.03])
    other["emulate"]["diffusion_long_ratio"][:, -1, 0, 3] = 3.0
    failed = {c["name"] for c in verdicts.make_checks(config, other) if not c["pass"]}
    assert len(failed) == 5 and "noise: sd less 1" in failed
    for name, letter in (("crps", "(a)"), ("ssr", "(c)"), ("large_ssr", "(d)")):
        other = done_of(good, narrow)
        other["emulate"][f"diffusion_{name}"] *= 0.7
        made = verdicts.make_checks(config, other)
        assert {c["name"][:3] for c in made if not c["pass"]} == {letter}
    early = done_of(good, narrow)
    early["emulate"]["diffusion_ssr"][:, 0] = 0.5  # the first step does not count
    assert all(c["pass"] for c in verdicts.make_checks(config, early))
    scalars = verdicts.summarise(config, done)
    assert scalars["diffusion_distance"] < scalars["white_distance"]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_members", "1", "at least two members"),
        ("test.lead_days", "(2, 1)", "config.test.lead_days must be .* that rise"),
        ("test.lead_days", "(1, 3)", "lead_days and then long_days must rise"),
        ("test.long_days", "(3, 5)", "config.test.long_days end at 5"),
        ("test.num_long_members", "3", "go on of config.test.num_members"),
        ("num_seeds", "5", "config.data.num_test_runs must be 4 or more"),
        ("steps_per_call", "3", "must divide the 2 steps"),
        ("stages", "((2, 1e-3),)", "config.stages hold"),
        ("stages", "()", "config.stages must hold one stage or more"),
        ("stages", "((1, 1e-3, 'fair', 1),)", r"config.stages\[0\].steps must be"),
        ("stages", "((2, 0.0, 'fair', 1),)", r"config.stages\[0\].rate must be"),
        (
            "stages",
            "((2, 1e-3, 'fairr', 1),)",
            r"config.stages\[0\].estimator is one of",
        ),
        ("stages", "((2, 1e-3, 'fair', 0),)", r"config.stages\[0\].rollout_steps must"),
        ("stages", "((2, 1e-3, 'fair', 1, 3, True),)", "centred noise comes in pairs"),
        ("stages", "((2, 1e-3, 'fair', 1, 2, 2),)", r"config.stages\[0\].centred must"),
        ("stages", "((2, 1e-3, 'fair', 1, 2, True, 9),)", "8 windows .* a batch of 9"),
        (
            "stages",
            "((2, 1e-3, 'fair', 5),)",
            "config.data.num_days must be .* 6; got 5",
        ),
        ("seed", "-1", "config.seed must be"),
        ("scale", "tiny", "config.scale is one of full, reduced, toy"),
        ("noise.lengths_km", "()", "config.noise.lengths_km must be numbers above 0"),
        ("noise.lengths_km", "(-1.0, 2.0)", "config.noise.lengths_km must be numbers"),
        ("noise.lambd", "nan", "config.noise.lambd must be"),
        ("alpha", "2", "config.alpha must be .* at most 1; got 2"),
        ("max_norm", "0", "config.max_norm must be a number above 0"),
        ("block", "0", 'config.block must be "auto", None'),
        ("batch_size", "0", "config.batch_size must be"),
        ("model.name", "'unet'", "config.model.name is one of"),
        ("model.name", "fourcastnet3", "config.model.name is one of small"),
        ("model.options.blocks", "('globl',)", "config.model.options.blocks is one of"),
        ("model.options.blocks", "()", "config.model.options.blocks must hold one"),
        ("model.options.width", "0", "config.model.options.width must be"),
        ("model.options.noise_width", "0", "config.model.options.noise_width must be"),
        ("model.options.kernel_shape", "(0, 1)", "model.options.kernel_shape must be"),
        ("model.options.kernel_shape", "(1,)", "model.options.kernel_shape are two"),
        ("model.options.mlp_ratio", "0", "config.model.options.mlp_ratio must be"),
        ("model.options.mlp_ratio", "0.01", "mlp_ratio must leave a channel of 4"),
        ("model.options.state_share", "1.5", "model.options.state_share must be"),
        ("data.source", "era5", "config.model.name is one of fourcastnet3"),
        ("data.truncation", "22", "config.data.truncation must be .* at most 21"),
        ("data.num_levels", "1", "config.data: num_levels is at least 2"),
        ("data.step_minutes", "7", "config.data: step_minutes must divide a day"),
        ("data.spin_up_days", "-1", "config.data.spin_up_days must be"),
        ("data.num_train_runs", "0", "config.data.num_train_runs must be"),
        ("test.lead_days", "()", "config.test.lead_days must be whole numbers"),
        ("test.lead_days", "(0, 1)", "config.test.lead_days must be whole numbers"),
        ("test.long_days", "()", "config.test.long_days must be whole numbers"),
        ("test.num_members", "1", "config.test.num_members must be"),
        ("test.cases_at_once", "0", "config.test.cases_at_once must be"),
        ("last_degree", "40", "config.last_degree"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        experiment.validate(config_of("smoke", (field, value)))
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ensjax\[weather\]'"):
        experiment.validate(config_of("smoke"))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


def test_the_full_size_is_planned_and_not_run():
    config = config_of("paper")
    with pytest.raises(ConfigError, match="ensjax plan"):
        experiment.run(config, None)
    job = training.training_job(config, shapes_only=True)
    assert job.is_stream and job.data.shape == (16, 2, 721, 1440, 72)
    assert job.options["augment"] is None and job.options["loss"].axis == "model"
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    params = job.abstract_ensemble(mesh).params
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert count == 709_930_667


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("dinosaur")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    assert len(first["claims"]) == 1 and len(first["checks"]) == 18
    level_0 = [c["pass"] for c in first["checks"][:9]]
    assert all(level_0)
    path.unlink()
    (tmp_path / "run" / "stages" / "emulate.npz").unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == first
