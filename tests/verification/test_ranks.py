"""Rank histograms, transforms, and what only huge ensembles can do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import reduce
from ensjax import verification as v


@pytest.fixture(scope="module")
def exchangeable():
    """Rain-like values with many zeros, observation drawn as the members are."""
    rng = np.random.default_rng(0)
    drawn = np.maximum(rng.normal(size=(6, 24_000)), 0).astype(np.float32)
    return drawn[:5], drawn[5]


def test_ranks_by_hand(score):
    x = np.array([[1.0, 1, 1, 2], [2, 2, 2, 2], [3, 3, 3, 2]], np.float32)
    y = np.array([0.0, 2.5, 9.0, 1.0], np.float32)
    got = score(v.rank_histogram(3), x, y)
    np.testing.assert_allclose(got.counts, [2, 0, 1, 1])
    np.testing.assert_allclose(got.outliers, 0.75)
    np.testing.assert_allclose(got.expected, 1.0)
    np.testing.assert_allclose(got.unreliability, 2 / 3, rtol=1e-6)


def test_ties_are_drawn_so_that_exchangeable_members_are_flat(exchangeable, score):
    x, y = exchangeable
    got = score(v.rank_histogram(5), x, y)
    assert got.counts.sum() == 24_000
    np.testing.assert_array_equal(got.counts, np.round(got.counts))
    # Chi-square with 5 degrees of freedom over 5: below 4 but for one in 1,000.
    assert got.unreliability < 4
    np.testing.assert_allclose(got.outliers, 2 / 6, atol=0.015)
    # The expected histogram, of shares instead of draws, is within their error.

    @jax.jit
    def histogram(x, y):
        ranks = reduce.update_ranks(reduce.init_ranks(y), x)
        return reduce.finish_ranks(ranks, num_members=5)

    shares = histogram(x, y)
    assert np.abs(shares - got.counts).max() < 5 * np.sqrt(4000)
    other = score(v.rank_histogram(5, seed=1), x, y)
    assert (other.counts != got.counts).any()
    strict = np.bincount((x < y).sum(0), minlength=6)
    assert strict[0] > 3 * 4000  # what counting ties as above would say


def test_without_ties_it_equals_other_packages(score):
    xr = pytest.importorskip("xarray")
    xskillscore = pytest.importorskip("xskillscore")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 200)).astype(np.float32)
    y = (2 * rng.normal(size=200)).astype(np.float32)
    got = score(v.rank_histogram(4), x, y).counts
    other = xskillscore.rank_histogram(
        xr.DataArray(y, dims=["time"]),
        xr.DataArray(x, dims=["member", "time"]),
        dim="time",
        member_dim="member",
    )
    np.testing.assert_array_equal(got, other)


def test_ties_are_drawn_apart_in_every_block_and_on_every_device():
    """Rain that is often 0, of a reliable ensemble: no ids are given."""
    z = np.random.default_rng(0).normal(size=(6, 400, 1)).astype(np.float32)
    x = np.where(z < 0.3, 0.0, z)
    metrics = {"ranks": v.rank_histogram(5), "pit": v.pit_histogram(10)}
    whole = v.sum_cases(metrics, x[1:], x[0])
    parts = v.sum_cases(metrics, x[1:], x[0], block=5)
    for name, metric in metrics.items():
        found, expected = (metric.finish(s[name]) for s in (parts, whole))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert float(metrics["ranks"].finish(parts["ranks"]).unreliability) < 3


def test_ranks_of_elements_that_lack_members_by_hand(score):
    nan = np.nan
    # Of one member above and none below: the lower half of four ranks. Of two below:
    # the last third. Of none: nothing. The whole one has its own rank.
    x = np.array([[2.0, 0, nan, 0], [nan, 1, nan, 1], [nan, nan, nan, 2]], np.float32)
    y = np.array([1.0, 1.5, 1.5, 1.5], np.float32)
    drawn = jax.jit(v.rank_histogram(3).over().sums)(np.tile(x, 20), np.tile(y, 20))
    found = np.asarray(drawn.total["rank"]).reshape(20, 4, 4)
    assert not found[:, 2].any()
    np.testing.assert_array_equal(np.asarray(v.scored_share(drawn)), [1, 1, 0, 1] * 20)
    np.testing.assert_array_equal(found[:, 3], np.tile([0, 0, 1, 0], (20, 1)))
    seen = found.sum(axis=0)
    assert (seen[0, :2] > 0).all() and not seen[0, 2:].any()
    assert (seen[1, 2:] > 0).all() and not seen[1, :2].any()
    assert seen[1, 3] > seen[1, 2]  # 2 + 2/3 to 4
    none = score(v.pit_histogram(4), np.full_like(x, nan), y)
    assert np.isnan(none.shares).all()


def test_members_that_are_missing_at_random_leave_the_histogram_flat(score):
    """Rain-like, 200 histograms of 120 cases: chi-square with 5 degrees of freedom."""
    rng = np.random.default_rng(4)
    drawn = np.maximum(rng.normal(size=(6, 200, 120)), -0.5).astype(np.float32)
    x, y = drawn[:5], drawn[5]
    mask = rng.random(x.shape) < np.array([0.9, 0.3, 0.7, 0.5, 0.6])[:, None, None]
    every = v.rank_histogram(5).over(1)
    masked = score(every, x, y, member_mask=mask)
    missing = score(every, np.where(mask, x, np.nan), y)
    for a, b in zip(masked, missing, strict=True):
        np.testing.assert_array_equal(a, b)
    number = mask.sum(axis=0)
    assert masked.counts.sum() == (number > 0).sum()
    np.testing.assert_array_equal(masked.counts, np.round(masked.counts))
    # Its mean is 1 and its variance 2 / 5: the mean of 200 has 0.045. Counts that were
    # spread over ranks instead of drawn would have a smaller one.
    assert abs(masked.unreliability.mean() - 1) < 0.15
    assert abs(masked.unreliability.var() - 0.4) < 0.2
    total = masked.counts.sum(axis=0)
    expected = total.sum() / 6
    assert ((total - expected) ** 2).sum() / expected < 20.5  # 1 in 1,000
    np.testing.assert_allclose(masked.outliers.mean(), 2 / 6, atol=0.02)
    # What counting the rank among fewer as one among all would say.
    naive = np.bincount(((x < y) & mask).sum(axis=0).ravel(), minlength=6)
    assert ((naive - naive.mean()) ** 2).sum() / naive.mean() > 1000


def test_what_an_ensemble_lacks_is_still_seen_where_members_are_missing(score):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(5, 6000)).astype(np.float32)
    y = (2 * rng.normal(size=6000)).astype(np.float32)
    mask = rng.random(x.shape) < 0.7
    assert score(v.rank_histogram(5), x, y, member_mask=mask).unreliability > 100
    shifted = score(v.rank_histogram(5), x, y + 1, member_mask=mask).counts
    assert shifted[-1] > 2 * shifted[0]


@pytest.mark.parametrize(
    "metric", [v.rank_histogram(3), v.event_table((0.0,), num_bins=2)]
)
def test_no_cases_have_no_counts(metric):
    x, y = np.zeros((3, 0, 2), np.float32), np.zeros((0, 2), np.float32)
    for axis, kept in ((0, 1), ()), ((0,), (2,)), ((1,), (0,)):
        sums = metric.over(*axis).sums(x, y)
        assert all(not total.any() for total in sums.total.values())
        found = metric.over(*axis).finish(sums)[0]
        assert found.shape[: len(kept)] == kept
    whole = v.rank_histogram(3)(x, y)
    assert not whole.counts.any() and np.isnan(whole.outliers)


@pytest.mark.parametrize("number", [2, 5])
def test_another_number_of_members_is_refused(number):
    with pytest.raises(ValueError, match=f"needs a forecast of {number} members"):
        v.rank_histogram(number)(np.zeros((3, 4)), np.ones(4))


def test_a_member_that_is_missing_everywhere_is_left_out(score):
    x = np.array([[0.0, 0], [1, 1], [np.nan, np.nan]], np.float32)
    y = np.array([1.5, -1.0], np.float32)
    got = score(v.rank_histogram(3), x, y)
    assert got.counts.sum() == 2  # two thirds of the ranks' range, and the first third
    assert got.counts[2:].sum() == 1 and got.counts[:2].sum() == 1
    np.testing.assert_allclose(score(v.rank_histogram(2), x[:2], y).counts, [1, 0, 1])
    none = v.rank_histogram(3).sums(np.full_like(x, np.nan), y)
    assert v.scored_share(none) == 0


def test_the_transform_is_uniform_for_any_number_of_members(exchangeable, score):
    x, y = exchangeable
    mask = np.random.default_rng(2).random(x.shape) < 0.6
    got = score(v.pit_histogram(10), x, y, member_mask=mask)
    # Standard error of a share: sqrt(0.09 / 24,000) = 0.002.
    np.testing.assert_allclose(got.shares, 0.1, atol=0.01)
    assert got.deviation < 0.005


def test_draws_belong_to_cases(exchangeable):
    x, y = exchangeable
    metric, ids = v.rank_histogram(5), np.arange(40)
    sums = jax.jit(metric.sums)
    at_once = sums(x[:, :40], y[:40], reference={"case_ids": ids})
    order = np.random.default_rng(0).permutation(40)
    other = sums(x[:, order], y[order], reference={"case_ids": ids[order]})
    np.testing.assert_array_equal(at_once.total["rank"], other.total["rank"])
    with pytest.raises(ValueError, match="case_ids"):
        metric(x, y, reference={"case_ids": ids})


def test_best_member_and_brackets_of_gaussians(score):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(51, 20_000)).astype(np.float32)
    y = drawn[50]
    for members, expected in ((1, 1.41), (2, 0.95), (10, 0.36)):
        got = score(v.best_member_error(), drawn[:members], y)
        assert abs(got - expected) < 0.02
    got = score(v.bracketed(), drawn[:50], y)
    assert abs(got - 49 / 51) < 0.005
    reached = np.asarray(v.gain(drawn[:50]))
    assert abs(reached.mean() - 2.51) < 0.02
    mapped = score(v.mean_gain().over(), drawn[:50], y)
    np.testing.assert_allclose(mapped, reached, rtol=1e-5)
    key = jax.random.key(0)
    # Resampling draws some members twice, so that the farthest is less far.
    smaller = np.asarray(v.gain_of_size(key, drawn[:50, :200], 20, num_resamples=20))
    assert 1.8 < smaller.mean() < 2.4


def test_how_large_an_ensemble_brackets_the_truth():
    key, x = jax.random.key(0), np.linspace(-2, 2, 41).astype(np.float32)[:, None]
    x, y = np.repeat(x, 2, axis=1), np.array([0.0, 3.0], np.float32)

    @jax.jit
    def found():
        enough = [v.satisfactory(key, x, y, size) for size in (2, 12)]
        shares = [
            v.exceedance_interval(key, x, 1.0, size, num_resamples=200)
            for size in (20, 5)
        ]
        return enough, shares

    enough, (narrow, wide) = found()
    np.testing.assert_array_equal(enough, [[False, False], [True, False]])
    np.testing.assert_allclose(narrow.estimate, 10 / 41, rtol=1e-6)
    assert (narrow.low < narrow.estimate).all() and (
        narrow.estimate < narrow.high
    ).all()
    assert (wide.high - wide.low > narrow.high - narrow.low).all()


def test_missing_members_are_not_below_a_threshold():
    key, nan = jax.random.key(0), np.nan
    x = np.array([[nan, nan, nan], [5, 0, nan], [5, 5, nan], [5, 5, nan]], np.float32)
    interval = jax.jit(lambda x, level: v.exceedance_interval(key, x, level, 2))
    got = interval(x, np.ones(3, np.float32))
    np.testing.assert_allclose(got.estimate, [1, 2 / 3, nan], rtol=1e-6)
    np.testing.assert_allclose(got.low, [1, 0, nan])
    np.testing.assert_allclose(got.high, [1, 1, nan])
    level = np.array([nan, 1.0, 1.0], np.float32)
    assert np.isnan(interval(x, level).estimate[0])
    # Two of twelve are missing, and none of the twenty draws is without some of them.
    x = np.concatenate([np.full((2, 3), nan), np.tile([[-1.0], [1]], (5, 3))])
    x[:, 2] = nan
    y = np.array([0.0, 3.0, 0.0], np.float32)
    enough = jax.jit(lambda x, y: v.satisfactory(key, x, y, 20))(x, y)
    np.testing.assert_array_equal(enough, [True, False, False])


def test_gain_of_equal_members_is_undefined():
    assert np.isnan(v.gain(jnp.ones((3, 2)))).all()
    # Of two members, half of the resamples of two draw one of them twice.
    pair = np.array([[0.0, 1], [1, 1]], np.float32)
    got = v.gain_of_size(jax.random.key(0), pair, 2)
    np.testing.assert_allclose(got, [1, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: v.rank_histogram(0),
        lambda: v.pit_histogram(0),
        lambda: v.gain_of_size(jax.random.key(0), np.ones((3, 2)), 0),
        lambda: v.exceedance_interval(
            jax.random.key(0), np.ones((3, 2)), 0.0, 2, confidence=1.0
        ),
        lambda: v.binned_spread_skill((1.0, 1.0)),
        lambda: v.spread_quantiles(np.ones((1, 4)), num_bins=2),
    ],
)
def test_bad_numbers(call):
    with pytest.raises(ValueError):
        call()
