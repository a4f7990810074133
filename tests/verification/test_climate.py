"""Scores that need a climate: the extreme forecast index and SEEPS."""

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from ensjax import reduce
from ensjax import verification as v

LEVELS = np.linspace(0, 1, 201)


def normal_quantiles(levels):
    return stats.norm.ppf(np.clip(levels, 1e-7, 1 - 1e-7)).astype(np.float32)


def test_the_index_of_a_shifted_normal_is_exact():
    """N(1, 1) in a climate of N(0, 1): 0.4126; members are 4,000 quantiles of it."""
    levels = np.concatenate([[0], stats.norm.cdf(np.linspace(-5, 5, 1001)), [1]])
    members = stats.norm.ppf((np.arange(4000) + 0.5) / 4000) + 1
    got = v.extreme_forecast_index(
        members[:, None].astype(np.float32), normal_quantiles(levels)[:, None], levels
    )
    theta = integrate.quad(
        lambda t: np.sin(t) ** 2 - stats.norm.cdf(stats.norm.ppf(np.sin(t) ** 2) - 1),
        0,
        np.pi / 2,
    )[0]
    np.testing.assert_allclose(4 / np.pi * theta, 0.4126, atol=5e-5)
    np.testing.assert_allclose(got, 4 / np.pi * theta, atol=2e-4)


def test_the_closed_form_is_the_integral():
    """Members at a few values: F is a step function, integrated piece by piece."""
    x = np.array([0.2, 0.2, 0.6, 0.9], np.float32)[:, None]
    quantiles = LEVELS.astype(np.float32)[:, None]  # a uniform climate

    def integrand(theta):
        p = np.sin(theta) ** 2
        return p - (x[:, 0] <= p).mean()

    steps = np.arcsin(np.sqrt([0.2, 0.6, 0.9]))
    total = integrate.quad(integrand, 0, np.pi / 2, points=steps, limit=200)[0]
    got = v.extreme_forecast_index(x, quantiles, LEVELS)
    np.testing.assert_allclose(got, 4 / np.pi * total, atol=1e-5)


def test_the_ends_and_missing_members():
    quantiles = normal_quantiles(LEVELS)[:, None].repeat(4, axis=1)
    x = np.stack([np.full(3, 9.0), np.full(3, -9.0), [9, -9, np.nan], [np.nan] * 3], 1)
    got = np.asarray(v.extreme_forecast_index(x.astype(np.float32), quantiles, LEVELS))
    np.testing.assert_allclose(got[:3], [1, -1, 0], atol=1e-6)
    assert np.isnan(got[3])
    masked = v.extreme_forecast_index(
        x.astype(np.float32),
        quantiles,
        LEVELS,
        member_mask=np.array([True, False, True]),
    )
    np.testing.assert_allclose(masked[:3], [1, -1, 1], atol=1e-6)


def test_no_rain_in_a_dry_climate_has_the_lowest_level():
    quantiles = np.maximum(LEVELS - 0.6, 0).astype(np.float32)[:, None]
    p = v.climate_probability(np.array([[0.0], [0.2]], np.float32), quantiles, LEVELS)
    np.testing.assert_allclose(np.asarray(p)[:, 0], [0.0, 0.8], atol=1e-5)


def test_the_program_does_not_grow_with_levels():
    """And says the same as the definition, level by level."""
    rng = np.random.default_rng(2)
    x = np.round(rng.normal(size=(6, 2, 3)), 1).astype(np.float32)
    sizes = []
    for number in (5, 60):
        levels = np.linspace(0.02, 0.97, number)
        q = np.round(np.sort(rng.normal(size=(number, 2, 3)), axis=0), 1)
        q = q.astype(np.float32)
        program = jax.make_jaxpr(lambda x, q: v.climate_probability(x, q, levels))  # noqa: B023
        sizes.append(len(str(program(x, q)).splitlines()))
        expected = np.where(x > q[-1], 1.0, 0.0)
        for i in range(number - 1):
            width = np.where(q[i + 1] > q[i], q[i + 1] - q[i], 1)
            here = levels[i] + np.diff(levels)[i] * (x - q[i]) / width
            expected = np.where((x > q[i]) & (x <= q[i + 1]), here, expected)
        got = v.climate_probability(x, q, levels)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert sizes[0] == sizes[1]


def test_the_index_streams_over_members():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 5)).astype(np.float32)
    quantiles = normal_quantiles(LEVELS)[:, None].repeat(5, axis=1)
    parts = v.member_efi(x, quantiles, LEVELS)
    state = reduce.update_moments(reduce.init_moments(parts[0]), parts[:4])
    mean, _ = reduce.finish_moments(reduce.update_moments(state, parts[4:]))
    np.testing.assert_allclose(
        mean, v.extreme_forecast_index(x, quantiles, LEVELS), atol=1e-6
    )


def test_the_mean_index_leaves_out_members_that_are_missing():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 3, 4)).astype(np.float32)
    x[1, 0] = x[:, 2, 1] = np.nan
    quantiles = np.tile(normal_quantiles(LEVELS), (3, 4, 1)).astype(np.float32)
    metric = v.mean_efi(LEVELS)
    truth = np.zeros((3, 4), np.float32)
    found = metric.over()(x, truth, reference={"quantiles": quantiles})
    wanted = v.extreme_forecast_index(x, np.moveaxis(quantiles, -1, 0), LEVELS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.isnan(found[2, 1]) and np.isfinite(found[0]).all()
    with pytest.raises(ValueError, match="quantiles"):
        metric(x, truth)
    with pytest.raises(ValueError, match="rise"):
        v.mean_efi((0.5, 0.2))


def test_levels_must_be_probabilities_that_rise():
    x, q = np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32)
    for levels in ([0, 0.5, 0.5], [-0.1, 0.5, 1], [0, 1]):
        with pytest.raises(ValueError):
            v.extreme_forecast_index(x, q, np.array(levels))


@pytest.fixture(scope="module")
def rain():
    rng = np.random.default_rng(0)
    amounts = rng.choice([0.0, 0.1, 0.25, 1.0, 4.0, 12.0], size=(2, 500))
    share = rng.uniform(0.05, 0.95, 500)
    heavy = rng.uniform(0.5, 6.0, 500)
    return amounts.astype(np.float32), {
        "dry_share": share.astype(np.float32),
        "heavy": heavy.astype(np.float32),
    }


def test_seeps_equals_scores(rain, score):
    xr = pytest.importorskip("xarray")
    package = pytest.importorskip("scores.categorical")
    (forecast, truth), reference = rain
    got = score(v.seeps(), forecast[None], truth, reference=reference)
    other = package.seeps(
        *(
            xr.DataArray(a, dims=["time"])
            for a in (forecast, truth, reference["dry_share"], reference["heavy"])
        ),
        dry_light_threshold=0.25,
    )
    np.testing.assert_allclose(got, other, rtol=1e-5)


def test_seeps_of_members_is_the_mean_of_theirs(rain, score):
    (forecast, truth), reference = rain
    both = np.stack([forecast, truth])
    got = score(v.seeps(), both, truth, reference=reference)
    alone = score(v.seeps(), forecast[None], truth, reference=reference)
    np.testing.assert_allclose(got, alone / 2, rtol=1e-5)
    assert score(v.seeps(), truth[None], truth, reference=reference) == 0


def test_without_skill_seeps_is_one(score):
    """Forecasts drawn from the climate, or of one category always: 1 on average."""
    rng = np.random.default_rng(1)
    p, size = 0.4, 200_000
    chances = [p, (1 - p) * 2 / 3, (1 - p) / 3]
    truth, forecast = (
        np.array([0.0, 1.0, 9.0], np.float32)[rng.choice(3, size, p=chances)]
        for _ in range(2)
    )
    reference = {
        "dry_share": np.full(size, p, np.float32),
        "heavy": np.full(size, 5.0, np.float32),
    }
    for x in (forecast, np.zeros(size, np.float32), np.full(size, 9.0, np.float32)):
        got = score(v.seeps(), x[None], truth, reference=reference)
        assert abs(got - 1) < 0.02


def test_climates_that_are_too_dry_are_not_scored(rain, score):
    (forecast, truth), reference = rain
    sums = v.seeps().sums(forecast[None], truth, reference=reference)
    share = reference["dry_share"]
    kept = ((share >= 0.1) & (share <= 0.85)).mean()
    np.testing.assert_allclose(v.scored_share(sums), kept, rtol=1e-5)
