"""Conformal intervals hold what they promise, and are what the definitions say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine


def reference_quantile(scores, alpha):
    """The ceil((n + 1)(1 - alpha))-th smallest, in float64, from the definition."""
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return np.sort(scores)[rank - 1] if rank <= n else np.inf


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25, 1 / 3])
def test_the_quantile_is_the_ranked_score_or_infinite(alpha):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (7, 19)).astype(float)  # ties
    masks = np.arange(19) < np.array([0, 1, 8, 9, 10, 18, 19])[:, None]
    spoiled = np.where(masks, scores, np.nan)
    got = combine.conformal_quantile(spoiled, alpha, row_mask=masks)
    want = [reference_quantile(s[m], alpha) for s, m in zip(scores, masks)]
    np.testing.assert_array_equal(got, np.asarray(want, np.float32))
    assert got[0] == np.inf  # no row at all
    whole = combine.conformal_quantile(scores[6], alpha)
    assert whole == got[6]


def test_the_rank_of_whole_numbers_does_not_slip_by_rounding():
    # (n + 1)(1 - alpha) = 9 exactly: in float32 10 * 0.9 is above it, with alpha 0.1.
    for n, alpha, rank in ((9, 0.1, 9), (99, 0.07, 93)):
        scores = jnp.arange(1.0, n + 1)
        ranked = jax.jit(combine.conformal_quantile, static_argnums=1)
        assert ranked(scores, alpha) == rank


def test_coverage_of_few_rows_is_exact_where_the_plain_quantile_falls_short():
    # Peer slip: the plain 1 - alpha quantile. With n = 9 and alpha = 0.2 the 8th of 9
    # covers 8 / 10; the plain one about 0.74.
    rng = np.random.default_rng(1)
    repeats = 20_000
    scores = rng.exponential(size=(repeats, 10)).astype(np.float32)
    threshold = combine.conformal_quantile(scores[:, :9], 0.2)
    covered = np.mean(scores[:, 9] <= np.asarray(threshold))
    assert abs(covered - 0.8) < 4 * math.sqrt(0.8 * 0.2 / repeats)
    plain = np.quantile(scores[:, :9], 0.8, axis=1)
    assert np.mean(scores[:, 9] <= plain) < 0.77


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say_plain_and_scaled():
    rng = np.random.default_rng(2)
    repeats, n, alpha = 4_000, 39, 0.1
    sd = rng.uniform(0.2, 3.0, (repeats, n + 1))
    target = rng.normal(0.5, sd)  # the point 0 is biased
    zeros = jnp.zeros(n)

    def plain(target, sd):
        fitted = combine.fit_conformal_interval(zeros, target[:n], alpha=alpha)
        return *fitted(jnp.zeros(1)), target[n]

    def scaled(target, sd):
        fitted = combine.fit_conformal_interval(
            zeros, target[:n], alpha=alpha, scale=sd[:n]
        )
        return *fitted(jnp.zeros(1), sd[n:]), target[n]

    for interval in (plain, scaled):
        low, high, y = jax.jit(jax.vmap(interval))(
            target.astype(np.float32), sd.astype(np.float32)
        )
        covered = np.mean((low[:, 0] <= y) & (y <= high[:, 0]))
        # 36 of 40 exactly: ranks of 40 exchangeable scores.
        assert abs(covered - 0.9) < 4 * math.sqrt(0.09 / repeats)


@pytest.mark.slow
def test_a_group_of_its_own_is_covered_where_one_radius_for_all_fails():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 2, 4_000)
    target = rng.normal(0, np.where(groups == 1, 3.0, 1.0)).astype(np.float32)
    fit, new = slice(0, 2_000), slice(2_000, 4_000)
    points = jnp.zeros(2_000)
    one = combine.fit_conformal_interval(points, target[fit], alpha=0.1)
    each = combine.fit_conformal_interval(
        points, target[fit], alpha=0.1, groups=groups[fit], num_groups=2
    )
    for group in (0, 1):
        rows = groups[new] == group
        low, high = each(points, groups=groups[new])
        covered = np.mean(((low <= target[new]) & (target[new] <= high))[rows])
        # Both samples vary: 4 standard errors of about 1,000 rows each.
        assert abs(covered - 0.9) < 4 * math.sqrt(2 * 0.09 / 1_000)
        low, high = one(points)
        covered = np.mean(((low <= target[new]) & (target[new] <= high))[rows])
        assert abs(covered - 0.9) > 0.05
        own = reference_quantile(
            np.abs(target[fit])[groups[fit] == group].astype(float), 0.1
        )
        np.testing.assert_allclose(each.radius[group], own, rtol=1e-6)
    unknown = each(points[:1], groups=np.array([5]))
    assert np.isnan(unknown[0]).all()


def test_bands_move_by_the_definition_and_cross_no_more():
    rng = np.random.default_rng(4)
    y = rng.normal(size=200)
    lower, upper = y * 0 - 2.5, y * 0 + 1.0
    band = combine.fit_conformal_band(lower, upper, y, alpha=0.2)
    d = reference_quantile(np.maximum(lower - y, y - upper), 0.2)
    np.testing.assert_allclose(band.below, d, rtol=1e-5)
    assert band.below == band.above
    both = combine.fit_asymmetric_band(lower, upper, y, alpha=0.2)
    np.testing.assert_allclose(
        both.below, reference_quantile(lower - y, 0.1), rtol=1e-5
    )
    np.testing.assert_allclose(
        both.above, reference_quantile(y - upper, 0.1), rtol=1e-5
    )
    assert both.below < 0 < both.above
    # A negative move makes a narrow interval cross: it is put in order.
    low, high = both(jnp.array([-3.0, -0.1]), jnp.array([3.0, 0.0]))
    assert (low <= high).all()
    negative = combine.fit_conformal_band(y - 2.0, y + 2.0, y, alpha=0.2)
    np.testing.assert_allclose(negative.below, -2.0, rtol=1e-6)
    low, high = negative(jnp.zeros(1), jnp.ones(1))
    np.testing.assert_allclose((low[0], high[0]), (-1.0, 2.0), rtol=1e-6)


def test_quantiles_are_moved_pair_by_pair_and_stay_in_order():
    rng = np.random.default_rng(5)
    y = rng.normal(size=300).astype(np.float32)
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    narrow = np.tile(np.array([-0.2, -0.1, 0.0, 0.1, 0.2], np.float32), (300, 1))
    moved = combine.fit_conformal_quantiles(narrow, levels, y)
    for i, alpha in ((0, 0.2), (1, 0.6)):
        d = reference_quantile(
            np.maximum(narrow[:, i] - y, y - narrow[:, -1 - i]), alpha
        )
        np.testing.assert_allclose(moved.shift[i], -d, rtol=1e-5)
        np.testing.assert_allclose(moved.shift[-1 - i], d, rtol=1e-5)
    assert moved.shift[2] == 0
    wild = rng.normal(size=(10, 5))
    assert (np.diff(moved(wild), axis=1) >= 0).all()
    with pytest.raises(ValueError, match="symmetric"):
        combine.fit_conformal_quantiles(narrow[:, :2], (0.1, 0.8), y)


def test_masked_rows_leave_no_trace():
    rng = np.random.default_rng(6)
    y, keep = rng.normal(size=30), rng.random(30) < 0.7
    spoiled = np.where(keep, y, np.nan)
    zeros = np.zeros(30)
    for fit in (
        lambda t, m: combine.fit_conformal_interval(zeros[: len(t)], t, alpha=0.2, **m),
        lambda t, m: combine.fit_conformal_band(
            zeros[: len(t)] - 1, zeros[: len(t)] + 1, t, alpha=0.2, **m
        ),
    ):
        masked = fit(spoiled, {"row_mask": keep})
        removed = fit(y[keep], {})
        jax.tree.map(np.testing.assert_array_equal, masked, removed)
    assert np.isnan(combine.conformal_quantile(spoiled, 0.2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="alpha must lie"):
        combine.conformal_quantile(np.ones(3), 1.0)
    interval = combine.fit_conformal_interval(np.zeros(3), np.ones(3), alpha=0.5)
    with pytest.raises(ValueError, match="takes no scale"):
        interval(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="takes no groups"):
        interval(np.zeros(2), groups=np.zeros(2, int))
    with pytest.raises(ValueError, match="come together"):
        combine.fit_conformal_interval(
            np.zeros(3), np.ones(3), alpha=0.5, groups=np.zeros(3, int)
        )


def test_a_scale_that_is_not_positive_has_no_interval():
    interval = combine.ConformalInterval(jnp.array(2.0), is_scaled=True)
    lower, upper = interval(jnp.zeros(3), jnp.array([1.0, -1.0, 0.0]))
    np.testing.assert_array_equal(lower, [-2, np.nan, np.nan])
    np.testing.assert_array_equal(upper, [2, np.nan, np.nan])
