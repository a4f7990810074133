"""Intervals against scipy, and the coverage of the bootstrap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ensjax import scores


@pytest.mark.parametrize("successes, trials", [(0, 10), (10, 10), (7, 20), (955, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval_equals_scipy(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    actual = scores.wilson_interval(successes, trials, confidence=confidence)
    np.testing.assert_allclose(actual.low, expected.low, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual.high, expected.high, rtol=1e-5)
    np.testing.assert_allclose(actual.estimate, successes / trials, rtol=1e-6)


def test_t_interval_equals_scipy():
    values = np.random.default_rng(0).normal(size=(6, 3))
    actual = scores.t_interval(values)
    low, high = stats.t.interval(
        0.95, 5, values.mean(0), values.std(0, ddof=1) / np.sqrt(6)
    )
    np.testing.assert_allclose(actual.low, low, rtol=1e-4)
    np.testing.assert_allclose(actual.high, high, rtol=1e-4)


def test_one_seed_says_nothing_about_the_spread():
    interval = scores.t_interval(jnp.array([0.3]))
    assert (interval.low, interval.high) == (-np.inf, np.inf)
    np.testing.assert_allclose(interval.estimate, 0.3)


def test_no_seed_and_a_confidence_of_one_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        scores.t_interval(jnp.zeros((0,)))
    with pytest.raises(ValueError, match="confidence must lie"):
        scores.t_interval(jnp.zeros(3), confidence=1.0)


def test_bootstrap_of_a_mean_equals_the_normal_interval():
    values = jnp.asarray(np.random.default_rng(0).normal(2.0, 1.0, 400))
    interval = scores.paired_bootstrap(
        jax.random.key(0),
        lambda w: jnp.sum(w * values) / jnp.sum(w),
        400,
        num_resamples=2000,
    )
    half = 1.96 * np.std(values) / np.sqrt(400)
    np.testing.assert_allclose(interval.estimate, np.mean(values), rtol=1e-6)
    # The ends of 2,000 resamples have a standard error of about 0.04 half widths.
    np.testing.assert_allclose(interval.low, np.mean(values) - half, atol=0.16 * half)
    np.testing.assert_allclose(interval.high, np.mean(values) + half, atol=0.16 * half)


def test_systems_share_their_resamples():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 100)
    first = rng.normal(size=(100, 3))
    second = first - 0.1 * np.eye(3)[labels]  # worse by nearly the same on each row

    def metric(w):
        a = scores.nll(first, labels, sample_weight=w)
        b = scores.nll(second, labels, sample_weight=w)
        return jnp.stack([a, b, b - a])

    interval = scores.paired_bootstrap(jax.random.key(0), metric, 100)
    width = np.asarray(interval.high - interval.low)
    assert width[2] < width[:2].min() / 10
    assert interval.low[2] > 0 and interval.low[0] < interval.estimate[1]


def test_groups_are_drawn_whole():
    # Ten groups of ten equal rows: the rows of a group move together, which widens
    # the interval by sqrt(10).
    values = jnp.asarray(np.repeat(np.random.default_rng(0).normal(size=10), 10))
    groups = np.repeat(np.arange(10), 10)

    def metric(w):
        return jnp.sum(w * values) / jnp.sum(w)

    rows = scores.paired_bootstrap(jax.random.key(0), metric, 100)
    whole = scores.paired_bootstrap(
        jax.random.key(0), metric, 100, groups=groups, num_groups=10
    )
    ratio = (whole.high - whole.low) / (rows.high - rows.low)
    assert 2.4 < ratio < 4.0


def test_groups_without_their_number_are_refused():
    with pytest.raises(ValueError, match="go together"):
        scores.paired_bootstrap(jax.random.key(0), jnp.sum, 4, groups=np.zeros(4, int))


def test_exact_interval_equals_scipy():
    successes, trials = np.array([0, 10, 7, 955, 1]), np.array([10, 10, 20, 1000, 1])
    for confidence in (0.9, 0.95):
        found = scores.exact_interval(successes, trials, confidence=confidence)
        for i in range(5):
            expected = stats.binomtest(int(successes[i]), int(trials[i])).proportion_ci(
                confidence, "exact"
            )
            np.testing.assert_allclose(found.low[i], expected.low, rtol=1e-9)
            np.testing.assert_allclose(found.high[i], expected.high, rtol=1e-9)
        assert (found.low <= found.estimate).all()
    with pytest.raises(ValueError, match="between 0 and the trials"):
        scores.exact_interval(3, 2)


def test_probability_of_improvement_equals_the_u_statistic():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (7, 2)), rng.integers(0, 6, (5, 2))
    expected = [
        stats.mannwhitneyu(x, y).statistic / 35 for x, y in zip(a.T, b.T, strict=True)
    ]
    found = scores.probability_of_improvement(a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.probability_of_improvement(a, a), 0.5)
    with pytest.raises(ValueError, match=r"both systems are \[seed"):
        scores.probability_of_improvement(a, b[:, :1])


def test_probability_better_equals_the_share_of_resamples():
    rng = np.random.default_rng(0)
    gain = jnp.asarray(rng.normal(0.15, 1, 40), jnp.float32)

    def difference(weight):
        mean = jnp.sum(weight * gain) / jnp.sum(weight)
        return jnp.stack([mean, 0 * mean, jnp.nan * mean])

    key = jax.random.key(0)
    found = scores.probability_better(key, difference, 40, num_resamples=400)
    # The normal approximation of the bootstrap's mean; 5 standard errors of 400 draws.
    z = float(gain.mean() / (gain.std() / 40**0.5))
    assert abs(found[0] - stats.norm.cdf(z)) < 5 * 0.5 / 400**0.5
    assert found[1] == 0.5 and np.isnan(found[2])
    with pytest.raises(ValueError, match="groups and num_groups go together"):
        scores.probability_better(key, difference, 40, num_groups=2)


def test_groups_out_of_range_are_refused():
    values = jnp.arange(6.0)

    def mean(weight):
        return jnp.sum(weight * values) / jnp.sum(weight)

    groups = np.arange(6) % 3
    run = functools.partial(
        scores.paired_bootstrap, jax.random.key(0), mean, 6, num_resamples=5
    )
    for wrong in (groups + 1, groups - 1):
        with pytest.raises(ValueError, match="from 0 to num_groups - 1 = 2; got"):
            run(groups=wrong, num_groups=3)
    with pytest.raises(ValueError, match="from 0 to num_groups - 1 = 2; got 1 to 3"):
        scores.probability_better(
            jax.random.key(0), mean, 6, groups=groups + 1, num_groups=3
        )
    traced = jax.jit(lambda g: run(groups=g, num_groups=3))
    assert np.isnan(traced(groups + 1).estimate)
    assert traced(groups).estimate == pytest.approx(2.5)
