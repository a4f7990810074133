"""forecast_assessment: measures of forecasts with known defects, and a short run."""

import json
import pathlib

import numpy as np
import pytest

from ensjax import verification as v
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "forecast_assessment.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "forecast_assessment")
NUM_SEEDS, STARTS, MEMBERS = 5, 60, 4


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def ring(rng, *shape):
    """Fields of unit variance on a ring of 36 sites, with power at all wavenumbers."""
    x = rng.normal(size=(*shape, 36))
    return ((np.roll(x, 1, axis=-1) + x) / np.sqrt(2)).astype(np.float32)


@pytest.fixture(scope="module")
def config():
    sizes = ("num_seeds", str(NUM_SEEDS)), ("archive.num_starts", str(STARTS))
    config = config_of("smoke", *sizes)
    assert config.num_members == MEMBERS
    return config


@pytest.fixture(scope="module")
def made(config):
    """Archives and forecasts of which each system's defect is known.

    Half of the truth's variance at every lead can be known. The emulator and the
    simulator are equally good draws of it, several steps and the mean say what is known
    alone, and members are draws.
    """
    outputs = config.archive.num_leads + 2
    archives = {k: [] for k in ("train", "truth", "mean", "sd")}
    forecasts = {k: [] for k in ("emulator", "multistep", "simulator", "crps")}
    forecasts |= {k: [] for k in ("physical", "crps_window", "physical_window")}
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        known = ring(rng, STARTS, outputs) * np.sqrt(0.5)

        def draw(*members, rng=rng, known=known):
            return known + ring(rng, *members, STARTS, outputs) * np.sqrt(0.5)

        own = {
            "emulator": draw(),
            "multistep": known,
            "simulator": draw(),
            "crps": draw(MEMBERS),
            "physical": draw(MEMBERS),
        }
        first = config.archive.num_before
        window = slice(first + config.efi.first_lead, first + config.efi.last_lead + 1)
        for name, field in own.items():
            at = first + np.asarray(config.leads)
            forecasts[name].append(field[..., at, :])
            if f"{name}_window" in forecasts:
                mean = field[..., window, :].mean(axis=-2)
                forecasts[f"{name}_window"].append(mean)
        archives["truth"].append(draw())
        archives["train"].append(ring(rng, 8, 200))
        archives["mean"].append(np.float32(0))
        archives["sd"].append(np.float32(1))
    stacked = [
        {k: np.stack(rows).astype(np.float32) for k, rows in part.items()}
        for part in (archives, forecasts)
    ]
    return (*stacked, config)


@pytest.fixture(scope="module")
def found(made):
    archives, forecasts, config = made
    return experiment.scores.measure(config, archives, forecasts)


@pytest.fixture(scope="module")
def done(made, found):
    archives, forecasts, config = made
    seconds = {f"seconds_{name}": np.linspace(0.9, 1.1, NUM_SEEDS) * x for name, x in
               (("emulator", 1.0), ("simulator", 3.0), ("system", 9.0))}  # fmt: skip
    flops = {"flops_emulator": 10.0, "flops_simulator": 30.0, "flops_system": 90.0}
    scores = experiment.rain.SCORES
    rain = {f"{k}_{name}": 1.0 for k in ("all", "raw", "emos") for name in scores}
    rain |= {f"all_{name}": value for name, value in experiment.rain.KNOWN.items()}
    rain |= experiment.rain.KNOWN_TEST | {"dry_share": 0.4, "heavy": 9.0}
    rain |= {f"card_{k}": np.full(len(scores), 0.1) for k in ("normalised", "low")}
    return {
        "forecast": forecasts | {"not_finite": np.array(0)},
        "scores": found,
        "cards": experiment.cards.measure(config, archives, forecasts),
        "cost": {k: np.asarray(x) for k, x in (seconds | flops).items()},
        "rain": rain | {"card_high": np.full(len(scores), 0.2)},
    }


def test_errors_activity_and_power_are_those_that_were_made(found):
    """Variances: truth 1 (and 0.0025 of the analyses), known 1/2, draws 1."""
    np.testing.assert_allclose(found["emulator_rmse"].mean(), 1.0, rtol=0.03)
    np.testing.assert_allclose(found["multistep_rmse"].mean(), 0.5**0.5, rtol=0.03)
    np.testing.assert_allclose(found["multistep_activity_ratio"].mean(), 0.5**0.5, 0.03)
    np.testing.assert_allclose(found["crps_members_activity_ratio"].mean(), 1.0, 0.02)
    np.testing.assert_allclose(found["multistep_small"].mean(), 0.5, rtol=0.1)
    np.testing.assert_allclose(found["crps_ssr"].mean(), 1.0, rtol=0.03)
    # Correlation 0.7 of what is known, 0.5 of a draw: at equal activity too.
    known = np.sqrt(2) * np.sqrt(1 - 0.5**0.5)
    np.testing.assert_allclose(
        found["multistep_equal_activity_rmse"].mean(), known, rtol=0.03
    )
    assert np.abs(found["emulator_identity_gap"]).max() < 1e-5


def test_alarms_ring_where_they_should(found):
    assert found["crps_mean_smoothing"].all() and found["multistep_smoothing"].all()
    assert not found["crps_members_smoothing"].any()
    assert found["alarms"].max() == 0
    # The last lead of this preset is 1, where 0.2 of the error's 1 are planted.
    np.testing.assert_allclose(found["planted_share"].mean(), 0.19, atol=0.05)
    drift = 0.5 * (1 - np.exp(-1.0 / 2))
    bias = found["planted_bias"][:, -1] - found["emulator_bias"][:, -1]
    np.testing.assert_allclose(bias, drift, rtol=1e-4)
    assert (found["planted_drift_slope"] > 0.05).all()


def test_a_large_drift_rings_in_every_resample(made):
    archives, forecasts, config = made
    config = config.copy_and_resolve_references()
    config.drift.size = 5.0
    case, own = experiment.scores.case_and_forecasts(config, archives, forecasts, 0)
    got = experiment.scores.planted_drift(config, own, case, 0)
    assert (
        got["planted_alarms"] == 1 and got["alarms"] == 0 and got["planted_share"] > 0
    )


def test_stations_are_where_they_are_drawn_and_deflation_finds_the_error(made, found):
    archives, forecasts, config = made
    case, _ = experiment.scores.case_and_forecasts(config, archives, forecasts, 0)
    at = np.asarray(config.leads)
    exact = np.asarray(v.at_stations(case.exact[:, at], case.stations))
    noise = (case.truths["stations"].values - exact).std()
    np.testing.assert_allclose(noise, config.extremes.station_noise, rtol=0.03)
    raw, less = found["emulator_station_rmse"], found["emulator_deflated"]
    np.testing.assert_allclose(raw**2 - less**2, 0.01, atol=1e-3)


def test_equal_systems_are_comparable_and_a_verdict_follows_its_number(config, done):
    claims = experiment.verdicts.make_claims(config, done)
    verdicts = {c["name"][:4]: c["verdict"] for c in claims}
    assert verdicts["3.a:"] == "holds"
    assert verdicts["3.e:"] == "holds"
    dear = done["cost"] | {"flops_emulator": np.array(1000.0)}
    told = experiment.verdicts.make_claims(config, done | {"cost": dear})
    assert {c["name"][:4]: c["verdict"] for c in told}["3.e:"] == "fails"
    # A worse emulator: its whole interval is below 0.
    cards = dict(done["cards"])
    cards["card_single_high"] = cards["card_single_high"] - 1
    told = experiment.verdicts.make_claims(config, done | {"cards": cards})
    assert {c["name"][:4]: c["verdict"] for c in told}["3.a:"] == "fails"


def test_checks_have_the_cards_names_and_pass_where_numbers_do(config, done):
    checks = {c["name"]: c for c in experiment.verdicts.make_checks(config, done)}
    assert len(checks) == 31
    assert all(c["pass"] for name, c in checks.items() if name.startswith("D"))
    assert checks["A: activity ratio of the mean of CRPS members at lead 3"]["pass"]
    scalars = experiment.verdicts.summarise(config, done)
    assert all(np.isfinite(x) for x in scalars.values())


def test_the_card_of_a_seed_says_who_is_better(config, done):
    card = experiment.verdicts.tables.make_card(config, done, "single")
    assert card.normalised.shape == (9, 2, 3, 3)
    value = done["scores"]["emulator_rmse"][0]
    np.testing.assert_allclose(card.value[0, 0, :, 0], value, rtol=1e-5)
    assert "Smoothing alarm" in card.notes[0] and len(card.costs) == 6
    text = v.scorecard_markdown(card)
    assert "x, stations, ring" in text and "FLOP a forecast day" in text


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("archive.num_leads", "9", "config.leads rise up to"),
        ("num_sectors", "5", "config.num_sectors divides the 36 sites"),
        ("num_members", "1", "config.num_members must be"),
        ("efi.last_lead", "11", "config.efi goes from"),
        ("extremes.leads", "(5, 7)", "config.extremes.leads are some"),
        ("source", "mars", "config.source is one of"),
        ("source", "era5", "config.archive must have the fields of preset paper"),
        ("scale", "big", "config.scale is one of full, reduced, toy"),
        ("cost_repeats", "0", "config.cost_repeats must be"),
        ("analysis_noise", "-1", "config.analysis_noise must be a number at least 0"),
        ("leads", "()", "config.leads must be whole numbers at least 1"),
        ("leads", "(1,)", "config.leads must be 2 or more numbers that rise"),
        ("leads", "(10,5,1)", "config.leads must be 2 or more numbers that rise"),
        (
            "archive.num_starts",
            "3",
            "config.bootstrap.block_length must be .* at most 3",
        ),
        ("archive.steps_per_output", "3", "steps_per_output=3 must be a multiple of 2"),
        ("model.kernel_size", "4", "config.model.kernel_size must be odd"),
        ("training.block", "autoo", "config.training.block must be"),
        ("training.steps_per_call", "0", "config.training.steps_per_call must be"),
        ("training.steps_per_call", "15", "training.one_step=20 must be a multiple of"),
        (
            "training.warmup_steps",
            "20",
            "warmup_steps must be fewer than training.one_step",
        ),
        ("training.alpha", "-0.5", "config.training.alpha must be"),
        ("training.learning_rate", "0", "config.training.learning_rate must be"),
        (
            "training.several_learning_rate",
            "nan",
            "training.several_learning_rate must be",
        ),
        ("training.crps_members", "1", "config.training.crps_members must be"),
        (
            "training.num_noise_channels",
            "0",
            "config.training.num_noise_channels must be",
        ),
        (
            "training.num_rollout_steps",
            "30",
            "config.archive.num_train_outputs must be",
        ),
        ("training.batch_size", "217", "config.training.batch_size .* at most 216"),
        ("extremes.num_stations", "0", "config.extremes.num_stations must be"),
        ("extremes.station_noise", "-1", "config.extremes.station_noise must be"),
        ("extremes.leads", "(5,)", "config.extremes.leads must be 2 or more numbers"),
        ("extremes.leads", "(10,5)", "config.extremes.leads must be .* that rise"),
        (
            "extremes.percents",
            "(5.0,2.0,95.0)",
            "config.extremes.percents must be .* that rise",
        ),
        ("extremes.percents", "(2.0,5.0)", "config.extremes.percents are two below 50"),
        (
            "extremes.percents",
            "(2.0,95.0,98.0)",
            "config.extremes.percents are two below 50",
        ),
        (
            "extremes.member_counts",
            "(2,5)",
            "config.extremes.member_counts .* at most 4",
        ),
        (
            "extremes.member_counts",
            "(4,2)",
            "extremes.member_counts must be .* that rise",
        ),
        ("drift.time", "0", "config.drift.time must be a number above 0"),
        ("drift.size", "nan", "config.drift.size must be a number finite"),
        ("drift.num_resamples", "0", "config.drift.num_resamples must be"),
        ("num_sectors", "0", "config.num_sectors must be a whole number at least 1"),
        ("efi.first_lead", "0", "config.efi.first_lead must be"),
        ("bootstrap.num_resamples", "0", "config.bootstrap.num_resamples must be"),
        ("bootstrap.block_length", "0", "config.bootstrap.block_length must be"),
        ("rain.split_date", "2030-01-01", "config.rain.split_date must be a day with"),
        (
            "rain.gap_days",
            "2",
            "config.rain.gap_days must be a whole number at least 3",
        ),
        (
            "rain.num_test",
            "20",
            "must leave 1 or more cases to train on and 30 to test on",
        ),
        ("rain.num_test", "-1", "config.rain.num_test must be"),
        ("rain.num_quantiles", "1", "config.rain.num_quantiles must be"),
        ("rain.threshold", "-1", "config.rain.threshold must be"),
        ("rain.block_days", "0", "config.rain.block_days must be"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        experiment.validate(config_of("smoke", (field, value)))
    assert "\n" not in str(error.value)


def test_the_climate_of_the_window_has_to_be_there():
    few = ("archive.num_train_outputs", "5"), ("training.batch_size", "8")
    with pytest.raises(ConfigError, match="must be more than the 5 leads from efi"):
        experiment.validate(config_of("smoke", *few))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


def test_what_is_not_at_hand_is_said_at_once_and_planned(tmp_path):
    config = config_of("paper")
    for call in (experiment.training_job, lambda c: experiment.run(c, tmp_path)):
        with pytest.raises(ConfigError, match="ensjax plan"):
            call(config)
    job = experiment.training_job(config, shapes_only=True)
    assert job.is_stream and job.data.shape == (32, 1, 9, 721, 1440, 74)
    loss = job.options["loss"].loss
    assert loss.num_steps == 8 and np.shape(loss.element_weights) == (721, 1, 74)


def test_plans_have_the_shapes_of_what_is_simulated():
    config = config_of("smoke")
    job = experiment.training_job(config, shapes_only=True)
    train = np.random.default_rng(0).normal(size=(1, 8, 30, 36)).astype(np.float32)
    one = np.ones(1, np.float32)
    archives = {"train": train, "mean": 0 * one, "sd": one, "step_sd": one}
    assert experiment.training_job(config, archives).data.shape == job.data.shape


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    assert len(first["claims"]) == 6 and len(first["checks"]) == 31
    path.unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == first
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 9
