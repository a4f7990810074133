"""Confidence curves and rank correlations, against loops and scipy."""

import jax
import numpy as np
import pytest
from scipy import stats

from ensjax import scores

ROWS = 40
curve_of = jax.jit(scores.confidence_curve)
area_of = jax.jit(scores.confidence_curve_area)
spearman = jax.jit(scores.spearman_correlation)
slope = jax.jit(scores.slope)
UNWEIGHTED = np.ones(ROWS, np.float32)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 2, size=(2, ROWS))
    targets = rng.normal(size=ROWS)
    mean = targets + std * rng.normal(size=(2, ROWS))
    weight = rng.integers(0, 3, ROWS)
    return (*(x.astype(np.float32) for x in (mean, std, targets, weight)),)


@pytest.mark.slow
def test_the_curve_equals_dropping_rows_one_by_one(case):
    mean, std, targets, _ = case
    curve = curve_of(mean, std, targets, sample_weight=UNWEIGHTED)
    area = area_of(mean, std, targets, sample_weight=UNWEIGHTED)
    for member in range(2):
        error = np.abs(mean[member].astype(float) - targets)
        for name, order in (("error", std[member]), ("oracle", error)):
            kept = np.argsort(order)
            expected = [
                error[kept[:k]].mean() / error.mean() for k in range(1, ROWS + 1)
            ]
            found = np.asarray(getattr(curve, name))[member]
            np.testing.assert_allclose(found, expected, rtol=2e-5)
            if name == "error":
                np.testing.assert_allclose(area[member], np.mean(expected), rtol=1e-5)
    ause = scores.sparsification_error(mean, std, targets)
    np.testing.assert_allclose(
        area - np.asarray(curve.oracle).mean(axis=1), ause, rtol=1e-4
    )


def test_a_constant_uncertainty_is_a_random_order_whose_curve_is_one(case):
    mean, std, targets, weight = case
    flat = np.ones_like(std)
    for w in (UNWEIGHTED, weight):
        curve = curve_of(mean, flat, targets, sample_weight=w)
        counted = np.asarray(curve.weight) > 0
        np.testing.assert_allclose(np.asarray(curve.error)[counted], 1, rtol=1e-5)
    rng = np.random.default_rng(1)
    error = np.abs(mean[0] - targets)
    orders = np.argsort(rng.uniform(size=(1000, ROWS)), axis=1)
    ratios = np.cumsum(error[orders], axis=1) / np.arange(1, ROWS + 1) / error.mean()
    # 5 standard errors of the mean over 1,000 orders, at one row kept.
    assert np.abs(ratios.mean(axis=0) - 1).max() < 5 * ratios[:, 0].std() / 1000**0.5


def test_the_weighted_area_equals_a_loop_and_rows_without_weight_are_not_there(case):
    mean, std, targets, weight = case
    found = area_of(mean, std, targets, sample_weight=weight)
    for member in range(2):
        error, order = np.abs(mean[member] - targets), np.argsort(std[member])
        w, error = weight[order].astype(float), error[order].astype(float)
        kept = np.cumsum(w)
        risk = np.cumsum(w * error) / np.where(kept == 0, 1, kept)
        expected = (w * risk).sum() / w.sum() / np.average(error, weights=w)
        np.testing.assert_allclose(found[member], expected, rtol=1e-5)
    broken = np.where(weight == 0, np.nan, std)
    np.testing.assert_array_equal(
        area_of(mean, broken, targets, sample_weight=weight), found
    )
    assert np.isnan(area_of(mean, broken, targets, sample_weight=UNWEIGHTED)).all()
    exact = np.stack([targets, targets])
    assert np.isnan(area_of(exact, std, targets, sample_weight=UNWEIGHTED)).all()


def test_spearman_equals_scipy_with_ties_and_counts(case):
    mean, std, targets, weight = case
    tied = np.round(mean)
    for x in (mean, tied):
        found = spearman(x, targets, sample_weight=UNWEIGHTED)
        expected = [stats.spearmanr(row, targets).statistic for row in x]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    twice = np.repeat(np.arange(ROWS), weight.astype(int))
    found = spearman(tied, targets, sample_weight=weight)
    expected = [stats.spearmanr(row[twice], targets[twice]).statistic for row in tied]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = scores.error_rank_correlation(mean, std, targets)
    expected = [
        stats.spearmanr(s, np.abs(m - targets)).statistic for m, s in zip(mean, std)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_spearman_of_constants_or_nan_is_nan(case):
    mean, _, targets, weight = case
    flat = np.stack([np.ones(ROWS, np.float32), mean[0]])
    found = spearman(flat, targets, sample_weight=UNWEIGHTED)
    assert np.isnan(found[0]) and not np.isnan(found[1])
    broken = np.where(weight == 0, np.nan, mean)
    assert np.isnan(spearman(broken, targets, sample_weight=UNWEIGHTED)).all()
    np.testing.assert_array_equal(
        spearman(broken, targets, sample_weight=weight),
        spearman(mean, targets, sample_weight=weight),
    )


def test_slope_equals_linear_regression(case):
    mean, _, targets, weight = case
    expected = [stats.linregress(row, targets).slope for row in mean]
    np.testing.assert_allclose(
        slope(mean, targets, sample_weight=UNWEIGHTED), expected, rtol=1e-4
    )
    twice = np.repeat(np.arange(ROWS), weight.astype(int))
    expected = [stats.linregress(row[twice], targets[twice]).slope for row in mean]
    np.testing.assert_allclose(
        slope(mean, targets, sample_weight=weight), expected, rtol=1e-4
    )
    assert np.isnan(slope(0 * mean, targets, sample_weight=weight)).all()
