"""Intervals from blocks of dates: what is drawn, and how often they hold the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import verification as v
from ensjax.verification import bootstrap


@pytest.mark.parametrize("scheme", ["moving", "stationary"])
def test_every_resample_has_all_dates_in_number(scheme):
    counts = np.asarray(
        v.draw_blocks(
            jax.random.key(0), 30, block_length=7, num_resamples=400, scheme=scheme
        )
    )
    assert counts.shape == (400, 30)
    np.testing.assert_array_equal(counts.sum(1), 30)
    assert len(np.unique(counts, axis=0)) > 390
    middle = counts[:, 10:20].mean()
    assert abs(middle - 1) < 0.15 if scheme == "stationary" else middle > 0.9


def test_blocks_of_all_dates_change_nothing():
    counts = v.draw_blocks(jax.random.key(0), 9, block_length=9, num_resamples=3)
    np.testing.assert_array_equal(counts, 1)


@pytest.mark.parametrize("scheme", ["moving", "stationary"])
def test_fewer_than_four_blocks_have_no_interval(systems, scheme):
    """Of one block there is one resample, whose interval has no width."""
    good, bad, y = systems
    metric, key = v.crps("fair"), jax.random.key(0)
    first, second = (metric.over(1).sums(x[:, :15], y[:15]) for x in (good, bad))
    settings = dict(num_resamples=20, scheme=scheme)
    for length in (15, 4):  # one block, and nearly four
        got = v.bootstrap_comparison(
            key, metric, first, second, block_length=length, **settings
        )
        for part in got:
            assert np.isfinite(part.estimate)
            assert np.isnan(part.low) and np.isnan(part.high)
    got = v.bootstrap_score(key, metric, first, block_length=3, **settings)
    assert got.low < got.estimate < got.high


def test_dates_without_truth_are_no_dates_of_an_interval(systems):
    """Place 1 has truth on 8 of 60 dates: four blocks of 2, but not of 3."""
    good, bad, y = systems
    y = y.copy()
    y[8:, 1] = np.nan
    metric = v.crps().over(0)
    kept = v.crps().over()  # [date, place]
    first, second = (kept.sums(x, y) for x in (good, bad))
    settings = dict(num_resamples=20)
    for length, is_known in ((2, [1, 1, 1, 1]), (3, [1, 0, 1, 1])):
        got = v.bootstrap_comparison(
            jax.random.key(0), metric, first, second, block_length=length, **settings
        )
        np.testing.assert_array_equal(np.isfinite(got.skill.low), is_known)
        np.testing.assert_array_equal(np.isfinite(got.skill.high), is_known)
        assert np.isfinite(got.skill.estimate).all()
    # Also where the score has axes more: its first ones are those of the sums.
    table = v.event_table((0.0, 1.0), num_members=5).over()
    got = v.bootstrap_score(
        jax.random.key(0),
        table,
        table.sums(good, y),
        block_length=3,
        then=v.roc_area,
        **settings,
    )
    np.testing.assert_array_equal(
        np.isfinite(got.low), np.array([1, 0, 1, 1])[:, None] * np.ones(2)
    )


def test_the_mean_length_of_stationary_blocks():
    """Neighbours stay together with probability 1 - 1 / 5 (and 1 / 200 by chance)."""
    from ensjax.verification.bootstrap import _stationary

    def one(number):
        return _stationary(jax.random.fold_in(jax.random.key(1), number), 200, 5)

    dates = jax.vmap(one)(jnp.arange(200))
    together = np.mean((np.diff(dates, axis=1) % 200) == 1)
    assert abs(together - 0.801) < 0.01


def test_resampled_sums_are_not_rounded_by_devices_that_multiply_in_fewer_bits():
    """TF32 and bfloat16 keep 10 and 7 bits: less than a count of cases needs."""
    metric = v.bias().over(1)
    sums = metric.sums(np.ones((1, 4, 2), np.float32), np.zeros((4, 2), np.float32))
    program = jax.make_jaxpr(
        lambda s: v.bootstrap_score(
            jax.random.key(0), metric, s, block_length=2, num_resamples=3
        )
    )(sums)
    products = str(program).split("dot_general[")[1:]
    assert products
    assert all("HIGHEST" in product.split("] ")[0] for product in products)


def series(key, cases, dates, phi):
    """Errors of successive dates that are correlated, `[case, date]`, variance 1."""
    noise = jax.random.normal(key, (cases, dates))

    def step(x, e):
        x = phi * x + np.sqrt(1 - phi**2) * e
        return x, x

    return jax.lax.scan(step, noise[:, 0], noise.T)[1].T


def test_blocks_hold_the_truth_where_single_dates_do_not():
    """150 series of 400 dates with correlation 0.7: nominal 90 %, truth 0.

    Standard error of a coverage near 0.8 from 150 series is 0.033.
    """
    runs = series(jax.random.key(3), 150, 400, 0.7)
    metric = v.bias()
    by_date = metric.over(1)

    def covered(block_length):
        def one(pair):
            number, errors = pair
            sums = by_date.sums(errors[None, :, None], jnp.zeros((400, 1)))
            ends = v.bootstrap_score(
                jax.random.fold_in(jax.random.key(4), number),
                metric,
                sums,
                block_length=block_length,
                num_resamples=200,
                confidence=0.9,
            )
            return (ends.low < 0) & (ends.high > 0)

        return jnp.mean(jax.lax.map(one, (jnp.arange(150), runs)) * 1.0)

    assert jax.jit(covered, static_argnums=0)(1) < 0.7
    assert jax.jit(covered, static_argnums=0)(20) > 0.78


@pytest.fixture(scope="module")
def systems():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 4)).astype(np.float32)
    common = rng.normal(size=(60, 4))
    good = (y + 0.5 * common + 0.5 * rng.normal(size=(5, 60, 4))).astype(np.float32)
    bad = (y + 0.6 * common + 0.6 * rng.normal(size=(5, 60, 4))).astype(np.float32)
    return good, bad, y


def test_differences_are_paired_and_ratios_of_sums(systems):
    good, bad, y = systems
    metric = v.crps("fair")
    first, second = (metric.over(1).sums(x, y) for x in (good, bad))
    got = v.bootstrap_comparison(
        jax.random.key(0), metric, first, second, block_length=3, num_resamples=300
    )
    np.testing.assert_allclose(got.first.estimate, metric(good, y), rtol=1e-5)
    np.testing.assert_allclose(
        got.skill.estimate, 1 - metric(good, y) / metric(bad, y), rtol=1e-4
    )
    assert got.difference.low < got.difference.estimate < got.difference.high < 0
    # In pairs the difference is known better than from the two intervals.
    of_pairs, one, other = (
        x.high - x.low for x in (got.difference, got.first, got.second)
    )
    assert of_pairs < 0.8 * np.hypot(one, other)
    same = v.bootstrap_comparison(
        jax.random.key(0), metric, first, first, block_length=3, num_resamples=20
    )
    assert same.difference.low == same.difference.high == 0


def test_a_resample_is_the_score_of_its_dates(systems):
    good, _, y = systems
    metric = v.spread_skill()
    sums = metric.over(1).sums(good, y)
    key = jax.random.key(5)
    counts = v.draw_blocks(key, 60, block_length=4, num_resamples=1)
    got = v.bootstrap_score(key, metric, sums, block_length=4, num_resamples=1)
    expected = metric(good, y, weights=counts[0][:, None])
    np.testing.assert_allclose(got.ratio.low, expected.ratio, rtol=1e-5)


def test_intervals_of_what_is_read_off_a_table(systems):
    good, _, y = systems
    metric = v.event_table((0.0,), num_members=5)
    sums = metric.over(1).sums(good, y)
    area = v.bootstrap_score(
        jax.random.key(0),
        metric,
        sums,
        block_length=3,
        num_resamples=50,
        then=v.roc_area,
    )
    assert area.low[0] < area.estimate[0] < area.high[0] <= 1


def test_equal_metrics_are_one_program(systems):
    good, bad, y = systems
    metric = v.bias()
    sums = [metric.over(1).sums(x, y) for x in (good, bad)]
    options = dict(block_length=3, num_resamples=7)

    def compare(then, seed=0):
        key = jax.random.key(seed)
        return v.bootstrap_comparison(key, v.bias(), *sums, then=then, **options)

    compare(jnp.abs)
    known = bootstrap._intervals._cache_size(), bootstrap._counts._cache_size()
    first, other = compare(jnp.abs), compare(jnp.abs, seed=1)
    assert first.difference.low != other.difference.low
    assert known == (
        bootstrap._intervals._cache_size(),
        bootstrap._counts._cache_size(),
    )

    class Unhashable:
        __hash__ = None

        def __call__(self, score):
            return jnp.abs(score)

    again = compare(Unhashable())
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_bad_arguments(systems):
    good, _, y = systems
    metric, key = v.crps(), jax.random.key(0)
    with pytest.raises(ValueError, match="block_length"):
        v.draw_blocks(key, 5, block_length=6)
    with pytest.raises(ValueError, match="scheme"):
        v.draw_blocks(key, 5, block_length=2, scheme="fixed")
    with pytest.raises(ValueError, match="axis of dates"):
        v.bootstrap_score(key, metric, metric.sums(good, y), block_length=2)
    with pytest.raises(ValueError, match="same dates"):
        v.bootstrap_comparison(
            key,
            metric,
            metric.over(1).sums(good, y),
            metric.over(1).sums(good[:, 1:], y[1:]),
            block_length=2,
        )
