"""seeds: what is measured, the checks of known ensembles, and a short run."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from ensjax import verification
from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "seeds.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "seeds")
NUM_SEEDS = 5
PAIRS_OF_5 = list(itertools.combinations(range(5), 2))


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def smooth(rng, *shape):
    """Fields of unit variance on a ring of 40 sites, with power at low wavenumbers."""
    x = rng.normal(size=(*shape, 40))
    x = sum(np.roll(x, shift, axis=-1) for shift in range(4)) / 2
    return x.astype(np.float32)


def found_of(spread):
    """Scores of members whose deviations from the case are `spread` times the truth's.

    The deviations grow and shrink from case to case, which two seeds hardly tell.
    """
    rows = []
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        size = rng.uniform(0.5, 1.5, size=(60, 1)).astype(np.float32)
        middle = 2 * smooth(rng, 60)

        def draw(count, spread=1.0, rng=rng, size=size, middle=middle):
            return middle + spread * size * smooth(rng, count, 60)

        given = draw(2)
        ensembles = {
            "seeds": given,
            "gaussian": experiment.scores.gaussian(given, 64, seed),
            "generated": draw(64, spread),
            "few": draw(64, spread),
            "full": draw(29),
        }
        sizes = experiment.scores.curve_sizes(29, 64)
        rows.append(experiment.scores.measure(ensembles, draw(1)[0], 3.0, sizes=sizes))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def done_of(spread, simulated=20.0):
    config = config_of("smoke")
    found = {"fair_others": np.full(1, 0.40)}
    names = (
        *experiment.speed.sampler_names(config),
        *experiment.speed.network_names(config),
    )
    for name, fair, rate in zip(names, (0.50, 0.49), (100.0, 2_000.0), strict=True):
        row = dict(fair=[fair], ssr=[1.0], power=np.ones((1, 20)), rate=rate)
        row |= dict(calls=1, training=3.0, frozen=0)
        found |= {f"{key}_{name}": np.asarray(value) for key, value in row.items()}
    return {
        "scores": found_of(spread),
        "emulate": {
            "seconds_generated": np.array(1.0),
            "seconds_few": np.array(0.1),
            "seconds_simulated": np.linspace(0.9, 1.1, NUM_SEEDS) * simulated,
            "frozen_steps": np.full(NUM_SEEDS, -1),
        },
        "speed": found,
    }


@pytest.fixture(scope="module")
def perfect():
    return done_of(1.0)


def test_members_of_the_same_distribution_have_the_full_ensembles_scores(perfect):
    found = {name: value.mean(axis=0) for name, value in perfect["scores"].items()}
    assert found["generated_fair"] == pytest.approx(found["full_fair"], rel=0.01)
    assert found["generated_crps"] < found["full_crps"] < found["seeds_crps"]
    assert found["generated_spread"] == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(found["full_power"], 1, rtol=1e-6)
    # Independent places put power where the smooth fields have none.
    assert found["gaussian_power"].max() > 2
    assert 1 < experiment.verdicts.gap_closed(perfect["scores"]).mean() < 1.2


def test_the_crps_of_few_is_the_mean_over_subsets_of_many():
    rng = np.random.default_rng(0)
    members, truth = rng.normal(size=(5, 7, 3)), rng.normal(size=(7, 3))
    parts = verification.crps_parts("fair")(members, truth)
    pairs = [verification.crps()(members[list(p)], truth) for p in PAIRS_OF_5]
    few = experiment.scores.expected_crps(parts, 2)
    assert few == pytest.approx(np.mean(pairs), rel=1e-5)
    whole = experiment.scores.expected_crps(parts, 5)
    assert whole == pytest.approx(float(verification.crps()(members, truth)), rel=1e-5)


def test_bins_of_several_seeds_are_pooled_by_weight():
    parts = np.array([[[1, np.nan], [2, np.nan], [3, 0]], [[5, 1], [6, 2], [1, 0]]])
    np.testing.assert_allclose(experiment.figures.pooled(parts), [[2], [3], [4]])


def test_speeds_are_told_in_deviations_of_the_climate():
    train = np.array([[[[-2.0, 2.0]]], [[[-4.0, 4.0]]]])
    found = {"fair_x": np.array([1.0]), "rate_x": np.array(3.0)}
    told = experiment.in_deviations(found, {"train": train})
    assert told["fair_x"] == [0.5] and told["rate_x"] == 3


def test_power_is_that_of_the_wave_that_is_there():
    wave = np.cos(2 * np.pi * 3 * np.arange(40) / 40)
    power = experiment.scores.power(np.tile(wave, (2, 5, 1)))
    assert power.shape == (20,) and power[2] == pytest.approx(20**2)
    assert np.delete(power, 2).max() < 1e-9


def test_too_little_spread_fails_the_check_of_spread(perfect):
    config = config_of("smoke")

    def passed(done):
        checks = experiment.verdicts.make_checks(config, done)
        return {c["name"]: c["pass"] for c in checks}

    good, narrow = passed(perfect), passed(done_of(0.5))
    assert len(good) == 9 + 8  # 8 of speed
    assert all(v for name, v in good.items() if not name.startswith("(e)"))
    assert not narrow["(b) spread-skill ratio, low"]
    assert narrow["(b) spread-skill ratio, high"]
    assert narrow["(c) most power, of the full one's"]  # most of it is the case's own


def test_claims_follow_their_numbers(perfect):
    config = config_of("smoke")

    def verdicts_of(done):
        claims = experiment.verdicts.make_claims(config, done)
        return {c["name"][:4]: c["verdict"] for c in claims}

    assert verdicts_of(perfect)["19.a"] == "holds"
    narrow = verdicts_of(done_of(0.5))
    assert narrow["19.a"] != "holds" and narrow["19.b"] == "fails"
    assert verdicts_of(perfect)["19.d"] == "holds"
    dear = perfect["emulate"] | {"seconds_simulated": np.full(NUM_SEEDS, 0.01)}
    assert verdicts_of(perfect | {"emulate": dear})["19.d"] == "fails"


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_samples", "7", "config.num_samples must be a number at least 8"),
        ("archive.num_train_members", "2", "config.archive.num_train_members"),
        ("few.num_levels", "0", "config.few.num_levels"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


def test_the_published_sizes_are_planned_and_not_run(tmp_path):
    config = config_of("paper")
    job = experiment.training_job(config, shapes_only=True)
    assert job.data["members"].shape == (7305, 6, 5, 6, 48, 48, 8)
    ensemble = job.abstract_ensemble(job.mesh(jax.devices()[:1]))
    sizes = [x.size for x in jax.tree.leaves(ensemble.params)]
    # 113,777,296 are published.
    assert ensemble.num_members == 6 and sum(sizes) == 6 * 113_765_520
    for call in (experiment.training_job, lambda c: experiment.run(c, tmp_path)):
        with pytest.raises(ConfigError, match="ensjax plan configs/seeds.py:paper"):
            call(config)


def test_plans_have_the_shapes_of_what_is_simulated():
    config = config_of("smoke")
    shape = experiment.training_job(config, shapes_only=True).data["members"].shape
    members = np.zeros((1, 88, 5, 40), np.float32)
    members[:, :44] = 1
    job = experiment.training_job(config, {"train": members})
    assert job.data["members"].shape == shape
    assert job.data["members"].std() == pytest.approx(1)
    assert job.options["steps"] == config.training.total_steps


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    assert len(first["claims"]) == 3 and len(first["checks"]) == 17
    assert first["scalars"]["num_members_not_finite"] == 0
    path.unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == first
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 7
