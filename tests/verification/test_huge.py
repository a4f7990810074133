"""Subsets of members, and statistics that depend on how many there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import verification as v

KEY = jax.random.key(0)
CLUSTERS = np.repeat([7, 3, 5, 9], 6)  # four checkpoints of six members


def test_draws_without_replacement_repeat_nobody():
    rows = np.asarray(v.draw_members(KEY, 50, 50, replace=False))
    np.testing.assert_array_equal(np.sort(rows), np.arange(50))
    rows = np.asarray(v.draw_members(KEY, 2_000, 2_000))
    distinct = len(set(rows.tolist())) / 2_000
    assert abs(distinct - (1 - np.exp(-1))) < 0.03, "63 % of them"


def test_clusters_are_drawn_whole():
    """Members of a subset are of the drawn clusters, evenly, in any of their rows."""
    drawn, seen = [], set()
    for number in range(40):
        key = jax.random.fold_in(KEY, number)
        rows = np.asarray(v.draw_members(key, 24, 12, replace=False, clusters=CLUSTERS))
        seen |= set(rows.tolist())
        turns = CLUSTERS[rows].reshape(3, 4)
        np.testing.assert_array_equal(turns[0], turns[1])
        np.testing.assert_array_equal(turns[0], turns[2])
        for column in rows.reshape(3, 4).T:
            assert len(set(column.tolist())) == 3, "without replacement in a cluster"
        drawn.append(turns[0])
    assert seen == set(range(24))
    share = np.mean(np.asarray(drawn) == 7)
    assert abs(share - 0.25) < 0.1
    unequal = np.array([0, 0, 0, 1])
    rows = np.asarray(v.draw_members(KEY, 4, 400, clusters=unequal))
    assert set(rows.tolist()) <= {0, 1, 2, 3}


def test_checkpoints_widen_the_interval_of_a_probability():
    """Members of a checkpoint agree; the interval over checkpoints is honest."""
    rng = np.random.default_rng(0)
    bias = np.repeat(rng.normal(size=8), 100)
    x = jnp.asarray(bias + 0.3 * rng.normal(size=800), jnp.float32)[:, None]
    options = dict(num_resamples=400)
    alone = v.exceedance_interval(KEY, x, 0.0, 800, **options)
    clusters = np.repeat(np.arange(8), 100)
    whole = v.exceedance_interval(KEY, x, 0.0, 800, clusters=clusters, **options)
    np.testing.assert_allclose(whole.estimate, alone.estimate)
    widths = [float((i.high - i.low)[0]) for i in (alone, whole)]
    p = float(alone.estimate[0])
    np.testing.assert_allclose(widths[0], 3.92 * np.sqrt(p * (1 - p) / 800), rtol=0.15)
    assert widths[1] > 5 * widths[0]


def test_means_of_resamples_are_those_of_the_copied_members():
    x = np.random.default_rng(1).normal(size=(24, 3, 2)).astype(np.float32)
    x[::5, 1, 1] = np.nan
    for options in ({}, {"replace": False}, {"clusters": CLUSTERS}):
        options = dict(num_resamples=7) | options
        mean = functools.partial(jnp.nanmean, axis=0)
        expected = v.of_size(KEY, x, 10, mean, **options)
        found = v.resampled_means(KEY, x, 10, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_widths_fall_with_the_root_of_the_size():
    x = np.random.default_rng(2).normal(size=(4_096, 200)).astype(np.float32)
    sizes, widths = (64, 256, 1_024), []
    for size in sizes:
        options = dict(num_resamples=200, replace=False)
        interval = v.exceedance_interval(KEY, x, 1.0, size, **options)
        widths.append(jnp.mean(interval.high - interval.low))
    # Without replacement less than that by sqrt(1 - n / M): 0.87 at the largest.
    slope = float(v.log_log_slope(sizes, jnp.stack(widths)))
    assert -0.6 < slope < -0.48
    powers = jnp.asarray(sizes, jnp.float32)[:, None] ** jnp.array([[-0.5, 2.0]])
    np.testing.assert_allclose(v.log_log_slope(sizes, powers), [-0.5, 2.0], rtol=1e-4)


def test_outliers_of_a_reliable_ensemble():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(51, 40_000)).astype(np.float32)
    got = float(v.outliers()(x[:50], x[50]))
    assert abs(got - v.expected_outliers(50)) < 0.004
    np.testing.assert_allclose(v.expected_outliers(7_424), 0.00027, rtol=0.01)
    # No rain is not outside of an ensemble whose smallest member has none.
    rain, none = jnp.array([[0.0], [2.0]]), jnp.array([0.0])
    assert float(v.outliers()(rain, none)) == 0
    assert float(v.bracketed()(rain, none)) == 0
    assert np.isnan(v.outliers()(rain, jnp.array([np.nan])))


def test_the_gain_of_subsets_without_replacement_is_that_of_smaller_ensembles():
    """Largest of n normal numbers (of both sides): 2.5 standard deviations of 50."""
    x = np.random.default_rng(4).normal(size=(1_000, 400)).astype(np.float32)
    options = dict(num_resamples=20)
    without = v.gain_of_size(KEY, x, 50, replace=False, **options)
    assert abs(float(without.mean()) - 2.51) < 0.03
    # Half of all members: with replacement only 39 % of them are there.
    some, fewer = (
        float(v.gain_of_size(KEY, x, 500, replace=replace, **options).mean())
        for replace in (False, True)
    )
    assert fewer < some - 0.02


def test_the_satisfactory_size_is_the_first_that_brackets():
    x = np.linspace(-2, 2, 41).astype(np.float32)[:, None].repeat(3, axis=1)
    y = np.array([0.0, 1.9, 3.0], np.float32)
    found = v.satisfactory_size(KEY, x, y, (2, 6, 12, 40), replace=False)
    np.testing.assert_array_equal(found, [6, 40, np.inf])


def enough(share):
    """Of two members around the truth, of which half of the resamples have both."""
    x = np.array([[-1.0], [1.0]], np.float32)
    return bool(v.satisfactory(KEY, x, np.zeros(1, np.float32), 2, share=share)[0])


def test_any_resample_is_more_than_a_share_of_0():
    assert [enough(share) for share in (0, 0.25, 0.75)] == [True, True, False]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: v.draw_members(KEY, 4, 5, replace=False), "without replacement"),
        (lambda: v.draw_members(KEY, 0, 1), "must be 1 or more"),
        (lambda: v.draw_members(KEY, 4, 2, clusters=np.zeros(3)), "clusters must be"),
        (
            lambda: v.draw_members(KEY, 24, 30, replace=False, clusters=CLUSTERS),
            "8 of each of 4 clusters",
        ),
        (lambda: v.resampled_means(KEY, jnp.ones((3, 2)), 2, num_resamples=0), "1 or"),
        (lambda: v.log_log_slope((3,), jnp.ones(1)), "two or more sizes"),
        (lambda: v.satisfactory_size(KEY, np.ones((3, 1)), [0.0], (2, 1)), "must rise"),
        (lambda: enough(1.5), "share must be from 0 to below 1, .*; got 1.5"),
        (lambda: enough(1.0), "below 1, as more than it of the resamples"),
        (lambda: enough(-0.1), "got -0.1"),
        (lambda: enough(np.nan), "got nan"),
    ],
)
def test_numbers_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
