"""Intervals and quantiles of several members; ranks of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, rankdata

from ensjax import combine
from ensjax.predictions import Predictions

LEVELS = tuple(np.round(np.arange(0.05, 0.96, 0.05), 2).tolist())


def normals(means, sds):
    z = norm.ppf(LEVELS)
    return (np.asarray(means)[:, None] + np.asarray(sds)[:, None] * z)[:, None]


def test_vincents_average_keeps_the_width_and_the_linear_pool_widens():
    quantiles = normals([-2.0, 2.0], [1.0, 1.0])
    vincent = np.asarray(jax.jit(combine.average_quantiles)(quantiles))[0]
    np.testing.assert_allclose(vincent, norm.ppf(LEVELS), atol=1e-5)
    pool = jax.jit(lambda x: combine.average_cdfs(x, LEVELS))
    pooled = np.asarray(pool(quantiles))[0]
    mixture = (norm.cdf(pooled + 2) + norm.cdf(pooled - 2)) / 2
    # Linear between levels of 0.05, where a normal distribution is not.
    np.testing.assert_allclose(mixture, LEVELS, atol=0.015)
    assert pooled[-1] - pooled[0] > 1.5 * (vincent[-1] - vincent[0])


def test_a_linear_pool_of_jumps_takes_the_smallest_value_that_reaches_the_level():
    # Each member says one number for sure.
    quantiles = np.asarray([[[1.0, 1.0, 1.0]], [[3.0, 3.0, 3.0]]])
    pool = jax.jit(lambda x: combine.average_cdfs(x, (0.25, 0.5, 0.75)))
    got = pool(quantiles)
    np.testing.assert_allclose(got, [[1.0, 1.0, 3.0]], atol=1e-5)


def test_ends_of_a_pooled_interval_never_cross_the_point():
    # Lower ends of members of other scales: their median is above the median point.
    point = np.asarray([[0.0], [1.0], [10.0]])
    said = Predictions.from_points(
        point, lower=point - [[0.5], [-1.0], [1.0]], upper=point + 0.1
    )
    pooled = jax.jit(combine.pool_intervals)(said)
    # The medians of lower ends, points and upper ends are 2, 1 and 1.1.
    np.testing.assert_allclose(np.concatenate(pooled), [1.0, 1.1, 2.0], rtol=1e-6)


def test_what_a_pool_of_quantiles_needs_is_said():
    points = Predictions.from_points(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no intervals"):
        combine.pool_intervals(points)
    with pytest.raises(TypeError, match="carry no quantiles"):
        combine.average_quantiles(points)
    with pytest.raises(ValueError, match="needs levels"):
        combine.average_cdfs(np.zeros((2, 3, 2)))
    with pytest.raises(ValueError, match="two levels"):
        combine.average_cdfs(np.zeros((2, 3, 1)), (0.5,))
    with pytest.raises(ValueError, match="no standard deviation"):
        combine.gaussian_mixture(points)
    with pytest.raises(ValueError, match="share must be"):
        combine.trimmed_points(points, share=0.5)
    with pytest.raises(ValueError, match="threshold must be"):
        combine.huber_points(points, threshold=0.0)


def test_a_mixture_of_one_normal_distribution_is_that_one():
    """lightning-uq-box #143: one member's variance was not the ensemble's."""
    point, scale = np.asarray([[1.0, -2.0]]), np.asarray([[0.3, 4.0]])
    said = Predictions.from_points(point, scale=scale)
    got = jax.jit(combine.gaussian_mixture)(said)
    np.testing.assert_allclose(got.mean, point[0])
    np.testing.assert_allclose(got.std, scale[0], rtol=1e-6)


def test_mean_ranks_are_mid_ranks_among_the_rows_that_a_member_has():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, size=(3, 12)).astype(np.float32)  # with ties
    mask = rng.uniform(size=(3, 12)) < 0.7
    mask[0] = True
    broken = np.where(mask, values, np.nan)
    ranked = jax.jit(combine.mean_ranks)
    got = ranked(broken, mask=mask)
    ranks = np.full((3, 12), np.nan)
    for m in range(3):
        own = values[m, mask[m]]
        ranks[m, mask[m]] = (rankdata(own) - 0.5) / len(own)
    np.testing.assert_allclose(got, np.nanmean(ranks, axis=0), rtol=1e-5)
    # Monotone changes of a member's scores change nothing.
    again = ranked(np.exp(broken), mask=mask)
    np.testing.assert_allclose(again, got)
    # A score of infinity is no equal of the rows that are masked.
    top = ranked(np.array([[1, np.inf, 5]]), mask=np.array([[True, True, False]]))
    np.testing.assert_allclose(top, [0.25, 0.75, np.nan])


def test_a_nan_at_one_level_moves_no_other_level():
    quantiles = np.array([[[np.nan, 1.0, 2.0], [0.0, 1.0, 2.0]]], np.float32)
    expected = [[np.nan] * 3, [0, 1, 2]]
    np.testing.assert_array_equal(combine.average_quantiles(quantiles), expected)
    for order in ("sort", "isotonic", "cummax"):
        found = combine.order_quantiles(quantiles[0], order)
        np.testing.assert_array_equal(found, expected)
    shifted = combine.ConformalQuantiles(jnp.zeros(3))(quantiles[0])
    np.testing.assert_array_equal(shifted, expected)


def test_a_nan_in_an_end_moves_no_other_end_and_masks_its_member():
    points = np.array([[1.0, 1.0], [3.0, 3.0]], np.float32)
    lower, upper = points - 1, points + 1
    lower[0, 0] = np.nan
    said = Predictions.from_points(points, lower=lower, upper=upper)
    found = combine.pool_intervals(said, combine.mean_points)
    np.testing.assert_array_equal(found, [[np.nan, 1], [np.nan, 2], [np.nan, 3]])
    sound = combine.mask_nan(said)
    np.testing.assert_array_equal(sound.mask, [[False, True], [True, True]])
    found = combine.pool_intervals(sound, combine.mean_points)
    np.testing.assert_array_equal(found, [[2, 1], [3, 2], [4, 3]])
    # Its points are as far from the consensus as they are.
    far = combine.consensus_distance(said, jnp.array([2.0, 2.0]))
    np.testing.assert_array_equal(far, [1, 1])
