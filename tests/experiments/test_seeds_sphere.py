"""seeds_sphere: symmetries, area weights, checks of known ensembles, a short run."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from ensjax import cli
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.verification import (
    SphericalGrid,
    from_harmonics,
    gauss_weights,
    to_harmonics,
)

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "seeds_sphere.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_sphere")
training, scores = experiment.training, experiment.scores
NUM_SEEDS, CASES, SAMPLES = 5, 10, 32
GRID = SphericalGrid(16, 32)  # to degree 15
SD = np.ones((2, 16, 1), np.float32)


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def smooth(rng, *shape):
    """Fields `[*shape, variable 2, lat 16, lon 32]` of variance 1, most of it large."""
    noise = rng.normal(size=(*shape, 2, 16, 32)).astype(np.float32)
    falling = 1 / (1.0 + np.arange(16))[:, None] ** 1.25
    modes = np.asarray(to_harmonics(noise, GRID)) * falling
    fields = np.asarray(from_harmonics(modes, GRID))
    return fields / fields.std()


def found_of(spread):
    """Scores of members whose deviations from the case are `spread` times the truth's.

    The deviations grow and shrink from case to case, which two seeds hardly tell.
    """
    rows = []
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        size = rng.uniform(0.5, 1.5, size=(CASES, 1, 1, 1)).astype(np.float32)
        middle = 0.5 * smooth(rng, CASES)

        def draw(count, spread=1.0, rng=rng, size=size, middle=middle):
            return middle + spread * size * smooth(rng, count, CASES)

        given = draw(2)
        ensembles = {
            "seeds": given,
            "gaussian": scores.gaussian(given, SAMPLES, seed),
            "generated": draw(SAMPLES, spread),
            "few": draw(SAMPLES, spread),
            "full": draw(29),
        }
        rows.append(scores.measure(ensembles, draw(1)[0], SD, event_sds=3.0))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def done_of(spread):
    times = dict(seconds_generated=1.0, seconds_few=1.0, seconds_simulated=20.0)
    frozen = {"frozen_steps": np.full(NUM_SEEDS, -1)}
    by_lead = np.ones((2, 2))
    growth = dict(spread_by_lead=by_lead, climate_sd=by_lead, error_by_lead=by_lead)
    return {
        "simulate": growth | {"lead_days": np.arange(2)},
        "scores": found_of(spread),
        "emulate": times | frozen,
    }


@pytest.fixture(scope="module")
def perfect():
    return done_of(1.0)


@pytest.fixture(scope="module")
def narrow():
    return done_of(0.5)


def test_members_of_the_same_distribution_have_the_full_ensembles_scores(perfect):
    found = {name: value.mean(axis=0) for name, value in perfect["scores"].items()}
    assert found["generated_fair"] == pytest.approx(found["full_fair"], rel=0.02)
    assert found["generated_crps"] < found["full_crps"] * 1.02
    assert found["full_crps"] < 0.9 * found["seeds_crps"]
    assert found["generated_spread"] == pytest.approx(1, abs=0.05)
    assert found["full_spread"] == pytest.approx(1, rel=1e-5)
    power = experiment.verdicts.compared_power(
        config_of("smoke", ("last_degree", "8")), perfect["scores"], "gaussian"
    )
    assert power.shape == (NUM_SEEDS, 2, 9)
    np.testing.assert_allclose(found["full_pattern"], 1, rtol=1e-5)
    # Independent places put power where the smooth fields have little.
    assert power[..., -1].min() > 2
    by_size = found["generated_by_size"]
    at = scores.SIZES.index(SAMPLES)
    assert by_size[at] == pytest.approx(found["generated_crps"], rel=1e-4)
    assert (np.diff(by_size[: at + 1]) < 0).all() and np.isnan(by_size[at + 1 :]).all()
    assert found["full_ranks"].shape == (30,) and found["seeds_ranks"].shape == (3,)
    assert found["generated_ranks"].mean() == pytest.approx(1, rel=1e-5)


def test_means_over_places_count_areas():
    members = np.zeros((2, 1, 1, 16, 32), np.float32)
    members[:, :, :, :2] = 5.0  # around one pole
    share = gauss_weights(16)[:2].sum() / 16
    assert scores.tail(members, 2.0) == pytest.approx(share, rel=1e-5)
    assert share < 0.6 * 2 / 16
    truth = np.zeros((1, 2, 16, 32), np.float32)
    ensembles = {"full": np.repeat(members, 2, axis=2)}
    # Two equal members: all spread is 0, and the CRPS is their error.
    ensembles["full"][1] += 1e-3 * np.arange(32)
    found = scores.measure(ensembles, truth, SD, event_sds=2.0)
    assert found["full_crps"] == pytest.approx(5 * share, rel=0.02)
    assert found["full_rmse"] == pytest.approx(5 * share**0.5, rel=0.02)


def test_power_is_that_of_the_degree_that_is_there():
    coefficients = np.zeros((16, 16), np.complex64)
    coefficients[3, 2] = 1 + 2j
    field = np.asarray(from_harmonics(coefficients, GRID))
    power = scores.power(np.broadcast_to(field, (2, 3, 2, 16, 32)))
    assert power.shape == (2, 15)
    np.testing.assert_allclose(power[:, 2], 2 * 5 / (4 * np.pi), rtol=1e-4)
    assert np.delete(power, 2, axis=1).max() < 1e-6  # float32


def test_a_turned_case_has_the_same_fields_elsewhere_or_mirrored():
    rng = np.random.default_rng(0)
    members = rng.normal(size=(1, 2, 4, 8, 2)).astype(np.float32)
    case = {"members": members, "base": np.ones((1, 4, 8, 1), np.float32)}
    keys = jax.random.split(jax.random.key(0), 64)
    found = jax.vmap(lambda key: training.turned(key, case))(keys)
    np.testing.assert_array_equal(found["base"][0], case["base"])
    seen = set()
    for field in np.asarray(found["members"]):
        matches = {
            (turn, mirror)
            for turn in range(8)
            for mirror in (1, -1)
            if np.array_equal(field, np.roll(members, turn, -2)[:, :, ::mirror])
        }
        assert len(matches) == 1
        seen |= matches
    assert len(seen) > 12  # of 16


def archives_of(rng):
    """Four cases whose variables have a mean and deviation of their own by latitude."""
    lat = np.linspace(-1, 1, 16)[:, None]
    fields = rng.normal(size=(4, 5, 2, 16, 32)) * (1 + lat**2) + 280 + 10 * lat**2
    return {"train": fields.astype(np.float32)}


def test_the_climate_is_that_of_the_latitude_in_both_hemispheres():
    archives = archives_of(np.random.default_rng(0))
    climate = training.climate(archives)
    assert climate.mean.shape == (1, 2, 16, 1)
    np.testing.assert_array_equal(climate.mean, climate.mean[:, :, ::-1])
    np.testing.assert_array_equal(climate.sd, climate.sd[:, :, ::-1])
    standard = training.standardised(archives, archives["train"])
    assert np.abs(standard.mean(axis=(0, 1, 4))).max() < 0.2
    assert standard.std() == pytest.approx(1, abs=0.01)
    cases = training.training_cases(archives)
    assert cases["members"].shape == (4, 1, 5, 16, 32, 2)
    assert cases["base"].shape == (4, 1, 16, 32, 2)
    np.testing.assert_array_equal(
        training.from_channels(cases["members"][:, 0]), standard
    )
    base = cases["base"][0, 0, :, 0, 0]
    assert base[0] > 1 > 0 > base[8]  # poles are where the mean is high
    area = gauss_weights(16)
    assert (area * base).mean() == pytest.approx(0, abs=1e-5)
    assert (area * base**2).mean() == pytest.approx(1, rel=1e-4)


def test_the_loss_counts_places_by_their_areas():
    job = training.training_job(config_of("smoke"), shapes_only=True)
    loss = job.options["loss"].loss
    np.testing.assert_array_equal(loss.place_weights, gauss_weights(32))
    assert (loss.noise.mean, loss.noise.sd) == (0.3, 1.4)
    again = training.training_job(config_of("small"), shapes_only=True).options["loss"]
    assert again == job.options["loss"] and hash(again) == hash(job.options["loss"])


def test_every_seed_is_given_other_members():
    pairs = training.given(config_of("claims"))
    assert pairs.shape == (5, 2) and len(set(pairs.ravel().tolist())) == 10
    assert pairs.max() < config_of("claims").archive.num_test_members


def passed(done):
    config = config_of("smoke", ("last_degree", "8"))
    checks = experiment.verdicts.make_checks(config, done)
    return {c["name"]: c["pass"] for c in checks}


def test_too_little_spread_fails_the_checks_of_spread_and_power(perfect, narrow):
    good, bad = passed(perfect), passed(narrow)
    assert len(good) == 8
    # Draws of one distribution have the same fair CRPS: either may be smaller.
    assert all(v for name, v in good.items() if not name.startswith("(e)"))
    assert not bad["(b) spread-skill ratio, low"]
    assert (
        bad["(b) spread-skill ratio, high"] and bad["(c) most power, of the full one's"]
    )


def test_claims_follow_their_numbers(perfect, narrow):
    config = config_of("smoke", ("last_degree", "8"))

    def verdicts_of(done):
        claims = experiment.verdicts.make_claims(config, done)
        return {c["name"][:4]: c["verdict"] for c in claims}

    good, bad = verdicts_of(perfect), verdicts_of(narrow)
    assert good["19.a"] == "holds"
    assert bad["19.b"] == "fails"
    # One timing never decides.
    assert good["19.d"] not in ("holds", "fails")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_samples", "2", "config.num_samples must be a number at least 3"),
        ("num_seeds", "4", "config.archive.num_test_members must be a number"),
        ("archive.num_train_members", "2", "config.archive.num_train_members"),
        ("archive.lead_days", "(1, 0)", "lead_days must rise"),
        ("archive.step_minutes", "7", "step_minutes must divide a day"),
        ("sampler.few_levels", "1", "config.sampler.few_levels"),
        ("noise.sd", "0.0", "config.noise.sd must be"),
        ("diffusion", "ve", "config.diffusion is one of edm"),
        ("model.name", "'axial'", "config.model.name is one of residual, unet"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


def test_a_missing_package_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ensjax\[weather\]'") as error:
        experiment.validate(config_of("smoke"))
    assert "\n" not in str(error.value)
    experiment.validate(config_of("paper"))  # which simulates nothing


def test_the_full_size_is_planned_and_not_run(tmp_path):
    config = config_of("paper")
    with pytest.raises(ConfigError, match="ensjax plan"):
        experiment.run(config, None)
    job = training.training_job(config, shapes_only=True)
    assert job.data["members"].shape == (7_305, 6, 5, 6, 48, 48, 8)


@pytest.mark.parametrize("preset", ["smoke", "small", "claims"])
def test_presets_are_valid_and_know_their_shapes(preset):
    config = config_of(preset)
    experiment.validate(config)
    job = training.training_job(config, shapes_only=True)
    assert job.data["members"].shape[1:] == (1, 5, 32, 64, 2)
    assert len(job.member_ids) == config.num_seeds


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("dinosaur")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    assert len(first["claims"]) == 4 and len(first["checks"]) == 8
    assert first["scalars"]["num_members_not_finite"] == 0
    # The archive is in the run as well: nothing is simulated again.
    path.unlink()
    (tmp_path / "run" / "stages" / "scores.npz").unlink()
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == first
    assert not list((tmp_path / "cache").rglob("*.npz"))
    xr = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    out = tmp_path / "members.zarr"
    sample = ["sample", str(tmp_path / "run"), "--init", "all", "--members", "9"]
    assert cli.main([*sample, "-o", str(out), "--truth", f"{tmp_path}/truth.zarr"]) == 0
    with xr.open_zarr(out, decode_timedelta=True) as found:
        assert found.temperature.dims == ("case", "member", "lead", "lat", "lon")
        assert found.temperature.attrs["units"] == "K"
        assert found.lat.attrs["units"] == "degrees_north" and found.sizes["lat"] == 32
        assert found.member.attrs["standard_name"] == "realization"
        assert found.member.values.tolist() == list(range(9))
        made = np.load(tmp_path / "run" / "stages" / "emulate.npz")["generated"][0]
        stage = dict(np.load(tmp_path / "run" / "stages" / "simulate.npz"))
        wanted = training.climate(stage).restore(made)[:, :, 0]  # temperature
        np.testing.assert_allclose(
            found.temperature[:, :3, 0].transpose("member", "case", ...),
            wanted,
            rtol=1e-4,
        )
    assert cli.main(["verify", str(out), f"{tmp_path}/truth.zarr"]) == 0
