"""Gaussian scores against scipy, scoringrules and numerical integration."""

import jax
import numpy as np
import pytest
import scoringrules
from scipy.stats import norm
from sklearn import metrics

from ensjax import scores


def case(seed=0, shape=(3, 20)):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=shape), rng.uniform(0.2, 3, size=shape)
    return mean, std, rng.normal(size=shape[-1]), rng.uniform(size=shape[-1])


def test_gaussian_nll_equals_scipy():
    mean, std, targets, weight = case()
    each = -norm.logpdf(targets, mean, std)
    actual = scores.gaussian_nll(mean, std**2, targets, sample_weight=weight)
    expected = np.average(each, weights=weight, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_crps_equals_scoringrules():
    mean, std, targets, weight = case()
    each = scoringrules.crps_normal(np.broadcast_to(targets, mean.shape), mean, std)
    actual = scores.crps_gaussian(mean, std, targets, sample_weight=weight)
    expected = np.average(each, weights=weight, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_crps_equals_the_integral_of_the_squared_difference_of_distributions():
    grid = np.linspace(-30, 30, 200_001)
    squared = (norm.cdf(grid, 0.5, 2.0) - (grid >= 1.3)) ** 2
    expected = np.trapezoid(squared, grid)
    actual = scores.crps_gaussian(np.array([0.5]), np.array([2.0]), np.array([1.3]))
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_crps_of_a_narrow_forecast_is_the_absolute_error():
    mean, _, targets, _ = case()
    actual = scores.crps_gaussian(mean, np.full_like(mean, 1e-6), targets)
    np.testing.assert_allclose(actual, scores.mae(mean, targets), rtol=1e-4)


def test_rmse_and_mae_equal_numpy():
    mean, _, targets, weight = case()
    error = mean - targets
    np.testing.assert_allclose(
        scores.rmse(mean, targets, sample_weight=weight),
        np.sqrt(np.average(error**2, weights=weight, axis=-1)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        scores.mae(mean, targets), np.abs(error).mean(-1), rtol=1e-5
    )


def test_mixture_moments_equal_those_of_a_large_sample():
    mean, std, _, _ = case(shape=(3, 2))
    rng = np.random.default_rng(1)
    member = rng.integers(0, 3, 400_000)
    sample = mean[member] + std[member] * rng.normal(size=(400_000, 2))
    mu, variance = scores.mixture_moments(mean, std**2)
    # Standard errors: sd / 632 and about 2 variances / 632.
    np.testing.assert_allclose(mu, sample.mean(0), atol=4 * 3 / 632)
    np.testing.assert_allclose(variance, sample.var(0), rtol=4 * 2 / 632)


def test_mixture_of_one_member_is_that_member():
    mean, std, _, _ = case(shape=(1, 20))
    mu, variance = scores.mixture_moments(mean, std**2)
    np.testing.assert_allclose(mu, mean[0], rtol=1e-6)
    np.testing.assert_allclose(variance, std[0] ** 2, rtol=1e-6)


def test_mixture_weights_and_masks_act_on_members():
    mean, std, _, _ = case()
    mask = np.array([True, False, True])
    broken = np.where(mask[:, None], mean, np.nan)
    masked = scores.mixture_moments(broken, std**2, mask=mask)
    removed = scores.mixture_moments(mean[mask], std[mask] ** 2)
    twice = scores.mixture_moments(mean[[0, 2, 2]], std[[0, 2, 2]] ** 2)
    weighted = scores.mixture_moments(mean, std**2, weights=np.array([1.0, 0, 2]))
    for ours, theirs in ((masked, removed), (weighted, twice)):
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_mixture_variance_does_not_cancel_far_from_zero():
    mean = np.array([[10_000.0], [10_001.0]])
    _, variance = scores.mixture_moments(mean, np.full((2, 1), 0.01))
    np.testing.assert_allclose(variance, 0.26, rtol=1e-3)


def test_standard_deviation_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="std must have the shape of mean"):
        scores.crps_gaussian(np.zeros(3), np.ones(()), np.zeros(3))


def test_errors_equal_scikit_learn():
    mean, _, targets, weight = case(5)
    for i in range(3):
        found = scores.median_absolute_error(mean[i], targets)
        expected = metrics.median_absolute_error(targets, mean[i])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        found = scores.max_error(mean[i], targets)
        np.testing.assert_allclose(
            found, metrics.max_error(targets, mean[i]), rtol=1e-5
        )
        found = scores.r2(mean, targets, sample_weight=weight)[i]
        expected = metrics.r2_score(targets, mean[i], sample_weight=weight)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        found = scores.pearson_correlation(mean, targets)[i]
        np.testing.assert_allclose(
            found, np.corrcoef(mean[i], targets)[0, 1], rtol=1e-4
        )


@pytest.mark.parametrize("rows", [6, 7])
def test_weights_of_the_median_are_repetitions(rows):
    rng = np.random.default_rng(rows)
    mean, targets = rng.normal(size=(2, rows))
    counts = rng.integers(0, 4, rows)
    again = np.repeat(np.arange(rows), counts)
    found = scores.median_absolute_error(mean, targets, sample_weight=counts)
    expected = np.median(np.abs(mean - targets)[again])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    broken = np.where(counts == 0, np.nan, mean)
    found = scores.median_absolute_error(broken, targets, sample_weight=counts)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(scores.median_absolute_error(mean + np.nan, targets))
    assert np.isnan(scores.max_error(mean, targets, sample_weight=0 * counts))


@pytest.mark.parametrize("jitted, num_rows", [(False, 7), (True, 50)])
def test_constant_targets_and_predictions_have_no_correlation(jitted, num_rows):
    """Also where the float32 mean of equal numbers is not that number."""
    each = [scores.r2, scores.pearson_correlation, scores.slope]
    each += [scores.spearman_correlation] * jitted

    def found(mean, targets, weight):
        return [f(mean, targets, sample_weight=weight) for f in each]

    run = jax.jit(found) if jitted else found
    rng = np.random.default_rng(3)
    varied = rng.normal(size=num_rows).astype(np.float32)
    weight = rng.uniform(0.1, 2, num_rows).astype(np.float32)
    weight[0] = 0  # this row may differ, or be NaN
    value = np.array([0.1, 0.3, 1 / 3, 1.0, 1e10, 1e-20], np.float32)
    constant = np.repeat(value[:, None], num_rows, axis=1)
    constant[:, 0] = [9, np.nan, 0, 1, 1, 1]
    varied = np.broadcast_to(varied, constant.shape)
    for own in (weight, (weight > 0).astype(np.float32)):
        r2, pearson, slope, *spearman = run(varied, constant, own)
        assert np.isnan([r2, pearson, *spearman]).all()
        np.testing.assert_array_equal(slope, 0)
        assert np.isnan(run(constant, varied, own)[1:]).all()
    assert np.isnan(run(varied, varied, 0 * weight)).all()
    line = np.arange(4.0)
    assert scores.r2(np.full(4, line.mean()), line) == 0


@pytest.mark.parametrize("scale", [(1e10, 1e10), (1e20, 1e-20)])
def test_correlations_of_large_and_small_numbers_do_not_overflow(scale):
    mean, _, targets, weight = case(8)
    mean, targets = scale[0] * mean[0], scale[1] * targets
    pearson = scores.pearson_correlation(mean, targets, sample_weight=weight)
    covariance = np.cov(mean, targets, aweights=weight)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0]) / np.sqrt(covariance[1, 1])
    np.testing.assert_allclose(pearson, expected, rtol=1e-4)
    if scale[0] == scale[1]:
        slope = scores.slope(mean, targets, sample_weight=weight)
        np.testing.assert_allclose(slope, covariance[0, 1] / covariance[0, 0], 1e-4)
        r2 = scores.r2(mean, targets, sample_weight=weight)
        expected = metrics.r2_score(targets, mean, sample_weight=weight)
        np.testing.assert_allclose(r2, expected, rtol=1e-4)


def test_pinball_equals_scikit_learn_and_is_least_at_the_quantile():
    rng = np.random.default_rng(6)
    quantiles, targets = rng.normal(size=(2, 20, 3)), rng.normal(size=20)
    weight, levels = rng.uniform(size=20), np.array([0.1, 0.5, 0.9])
    found = scores.pinball(quantiles, targets, levels=levels, sample_weight=weight)
    assert found.shape == (2, 3)
    for i in range(2):
        for j, level in enumerate(levels):
            expected = metrics.mean_pinball_loss(
                targets, quantiles[i, :, j], alpha=level, sample_weight=weight
            )
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-5)
    # Half the absolute error at the median; twice the mean over levels is the CRPS.
    np.testing.assert_allclose(
        found[:, 1],
        scores.mae(quantiles[..., 1], targets, sample_weight=weight) / 2,
        rtol=1e-5,
    )
    levels = (np.arange(2000) + 0.5) / 2000
    normal = np.broadcast_to(norm.ppf(levels), (20, 2000))
    crps = scores.crps_gaussian(np.zeros(20), np.ones(20), targets)
    mean = 2 * scores.pinball(normal, targets, levels=levels).mean()
    np.testing.assert_allclose(mean, crps, rtol=1e-3)


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="levels"):
        scores.pinball(np.zeros((4, 3)), np.zeros(4), levels=np.array([0.5]))
