"""Scores of quantiles, against loops written from the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import scores
from ensjax.scores.quantiles import pit_quantiles

LEVELS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    quantiles = rng.normal(size=(2, 30, 5)).astype(np.float32)  # many cross
    targets = rng.normal(size=30).astype(np.float32)
    return quantiles, targets, rng.uniform(size=30) * (rng.uniform(size=30) < 0.8)


def test_wis_is_the_sum_over_intervals_and_twice_the_pinball_loss(case):
    quantiles, targets, weight = case
    expected = abs(targets - quantiles[..., 2]) / 2
    for low, high in ((0, 4), (1, 3)):
        alpha = 1 - (LEVELS[high] - LEVELS[low])
        lower, upper = quantiles[..., low], quantiles[..., high]
        outside = np.maximum(lower - targets, 0) + np.maximum(targets - upper, 0)
        expected = expected + alpha / 2 * (upper - lower + 2 / alpha * outside)
    expected = np.average(expected / 2.5, axis=-1, weights=weight)

    def wis(quantiles, levels=LEVELS):
        return scores.weighted_interval_score(
            quantiles, targets, levels=levels, sample_weight=weight
        )

    found = jax.jit(wis)(quantiles)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    pinball = scores.pinball(quantiles, targets, levels=LEVELS, sample_weight=weight)
    np.testing.assert_allclose(found, 2 * pinball.mean(-1), rtol=1e-5)
    even = np.delete(np.arange(5), 2)  # no median
    np.testing.assert_allclose(
        wis(quantiles[..., even], LEVELS[even]),
        2 * pinball[:, even].mean(-1),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="symmetric"):
        wis(quantiles[..., :2], LEVELS[:2])


def test_crps_of_even_levels_is_that_of_samples():
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(8, 20)).astype(np.float32)
    targets = rng.normal(size=20).astype(np.float32)
    levels = (np.arange(8) + 0.5) / 8
    ascending = np.sort(samples.T, axis=-1)
    found = jax.jit(scores.crps_quantiles)(ascending, targets, levels=levels)
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / (2 * 8**2)
    expected = (np.abs(samples - targets[None]).mean(0) - pairs).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_crossing_rate_and_coverage_count(case):
    quantiles, targets, weight = case
    falls = (np.diff(quantiles, axis=-1) < 0).mean(-1)
    found = scores.crossing_rate(quantiles, sample_weight=weight)
    np.testing.assert_allclose(found, np.average(falls, 1, weight), rtol=1e-5)
    assert scores.crossing_rate(np.sort(quantiles)).tolist() == [0, 0]
    below = targets[None, :, None] <= quantiles
    found = scores.quantile_coverage(quantiles, targets, sample_weight=weight)
    np.testing.assert_allclose(found, np.average(below, 1, weight), rtol=1e-5)
    broken = quantiles.copy()
    broken[0, 3, 1] = np.nan
    assert np.isnan(scores.crossing_rate(broken)[0])
    kept = scores.crossing_rate(broken, sample_weight=np.arange(30) != 3)
    assert np.isfinite(kept).all()


def test_pit_interpolates_between_quantiles_and_halves_the_tails():
    quantiles = np.array([0.0, 1.0, 1.0, 1.0, 3.0], np.float32)
    targets = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 9.0, np.nan], np.float32)
    rows = np.tile(quantiles, (8, 1))
    found = jax.jit(pit_quantiles)(rows, targets, levels=LEVELS)
    expected = [0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, np.nan]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pit_is_uniform_for_right_quantiles():
    rng = np.random.default_rng(2)
    levels = np.arange(1, 100) / 100
    sample = rng.normal(size=200_000)
    rows = np.tile(np.quantile(sample, levels), (2000, 1))
    pit = jax.jit(pit_quantiles)(rows, rng.normal(size=2000), levels=levels)
    # Kolmogorov-Smirnov distance of 2,000 draws: 0.036 with probability 1 %.
    distance = np.abs(np.sort(pit) - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 0.036


def test_central_intervals_pair_symmetric_levels(case):
    quantiles, _, _ = case
    lower, upper, nominal = scores.central_intervals(quantiles, LEVELS)
    np.testing.assert_allclose(nominal, [0.8, 0.4])
    np.testing.assert_array_equal(lower, quantiles[..., [0, 1]])
    np.testing.assert_array_equal(upper, quantiles[..., [4, 3]])


def test_the_crps_of_falling_levels_is_refused():
    quantiles, targets = np.zeros((2, 3), np.float32), np.ones(2, np.float32)
    for levels in ([0.9, 0.5, 0.1], [0.1, 0.1, 0.9], [0.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="levels must rise"):
            scores.crps_quantiles(quantiles, targets, levels=np.array(levels))
    falling = jnp.array([0.9, 0.5, 0.1])
    compiled = jax.jit(lambda a: scores.crps_quantiles(quantiles, targets, levels=a))
    assert np.isnan(compiled(falling)) and np.isfinite(compiled(falling[::-1]))
