"""Scores of intervals, against loops and scoringrules."""

import jax
import numpy as np
import pytest
import scoringrules

from ensjax import scores

ROWS = 40


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    lower = rng.normal(size=(2, ROWS)) - 0.7
    upper = lower + rng.uniform(0.1, 2, size=(2, ROWS))
    targets = rng.normal(size=ROWS)
    targets[:3] = lower[0, :3] = np.float32([0.5, -0.25, 1.0])  # at an end
    upper[0, :3] = lower[0, :3] + 1
    arrays = [x.astype(np.float32) for x in (lower, upper, targets)]
    return *arrays, rng.uniform(size=ROWS) * (rng.uniform(size=ROWS) < 0.8)


def test_coverage_counts_the_ends_unless_strict(case):
    lower, upper, targets, weight = case
    inside = (lower <= targets) & (targets <= upper)
    strictly = (lower < targets) & (targets < upper)
    assert inside[0, :3].all() and not strictly[0, :3].any()
    found = jax.jit(scores.interval_coverage)(
        lower, upper, targets, sample_weight=weight
    )
    np.testing.assert_allclose(found, np.average(inside, 1, weight), atol=1e-6)
    found = scores.interval_coverage(lower, upper, targets, strict=True)
    np.testing.assert_allclose(found, strictly.mean(1), atol=1e-6)
    accuracy = scores.coverage_probability_accuracy(lower, upper, targets)
    np.testing.assert_allclose(accuracy, abs(strictly.mean(1) - 0.5), atol=1e-6)


def test_the_interval_score_is_that_of_scoringrules(case):
    lower, upper, targets, weight = case
    expected = scoringrules.interval_score(targets, lower, upper, 0.2)
    found = scores.interval_score(lower, upper, targets, alpha=0.2)
    np.testing.assert_allclose(found, expected.mean(1), rtol=1e-5)
    found = scores.interval_score(
        lower, upper, targets, alpha=0.2, sample_weight=weight
    )
    np.testing.assert_allclose(found, np.average(expected, 1, weight), rtol=1e-5)


def test_true_quantiles_have_the_least_interval_score():
    targets = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    z = 1.2816  # of 10 and 90 %
    found = [
        scores.interval_score(*np.full((2, 20_000), [[-w], [w]]), targets, alpha=0.2)
        for w in (0.8 * z, z, 1.2 * z)
    ]
    assert found[1] < found[0] and found[1] < found[2]


def test_the_weighted_error_is_the_mean_of_the_sure(case):
    lower, upper, targets, weight = case
    point = (lower + upper) / 2
    sure = 1 / (upper - lower).astype(float)
    error = abs(point - targets)
    found = scores.weighted_error_score(point, lower, upper, targets)
    np.testing.assert_allclose(found, (sure * error).sum(1) / sure.sum(1), rtol=1e-5)
    sure = weight / np.maximum(upper - lower, 0.5)
    found = scores.weighted_error_score(
        point, lower, upper, targets, min_width=0.5, sample_weight=weight
    )
    np.testing.assert_allclose(found, (sure * error).sum(1) / sure.sum(1), rtol=1e-5)


def test_a_width_of_nothing_is_nan_unless_it_has_a_floor_or_no_weight():
    zeros = np.zeros(3, np.float32)
    upper = np.array([1, 0, 1], np.float32)
    target = np.ones(3, np.float32)
    assert np.isnan(scores.weighted_error_score(zeros, zeros, upper, target))
    found = scores.weighted_error_score(zeros, zeros, upper, target, min_width=0.1)
    assert found == 1
    found = scores.weighted_error_score(
        zeros, zeros, upper, target, sample_weight=np.array([1, 0, 1])
    )
    assert found == 1


def test_widths_are_means_and_nan_is_nan(case):
    lower, upper, targets, weight = case
    found = scores.mean_width(lower, upper, sample_weight=weight)
    np.testing.assert_allclose(found, np.average(upper - lower, 1, weight), rtol=1e-5)
    broken = np.where(np.arange(ROWS) == 5, np.nan, upper)
    assert np.isnan(scores.interval_coverage(lower, broken, targets)).all()


def test_what_does_not_fit_is_refused(case):
    lower, upper, targets, _ = case
    with pytest.raises(ValueError, match="upper must have the shape of lower"):
        scores.interval_coverage(lower, upper[0], targets)
    with pytest.raises(ValueError, match="targets must have shape"):
        scores.interval_coverage(lower, upper, targets[1:])
    with pytest.raises(ValueError, match="alpha must lie"):
        scores.interval_score(lower, upper, targets, alpha=90)
    with pytest.raises(ValueError, match="min_width"):
        scores.weighted_error_score(lower, lower, upper, targets, min_width=-1)


def test_cwc_equals_the_paper(case):
    lower, upper, targets, weight = case
    criterion = jax.jit(
        scores.coverage_width_criterion, static_argnames=("nominal", "strength")
    )
    inside = (lower <= targets) & (targets <= upper)
    coverage = np.average(inside, weights=weight, axis=1)
    kept = targets[weight > 0]
    width = np.average(upper - lower, weights=weight, axis=1) / np.ptp(kept)
    for nominal in (0.05, 0.6):
        found = criterion(
            lower, upper, targets, nominal=nominal, strength=7.0, sample_weight=weight
        )
        penalty = np.where(coverage < nominal, np.exp(-7 * (coverage - nominal)), 0)
        np.testing.assert_allclose(found, width * (1 + penalty), rtol=1e-5)
    assert (coverage > 0.05).all() and (coverage < 0.6).any()


def test_binned_coverage_equals_sorting_and_cutting(case):
    lower, upper, targets, weight = case
    width = upper - lower
    found = scores.binned_coverage(lower, upper, targets, width, num_bins=4)
    for member in range(2):
        inside = (lower[member] <= targets) & (targets <= upper[member])
        parts = np.split(np.argsort(width[member]), 4)
        expected = [inside[own].mean() for own in parts]
        np.testing.assert_allclose(found[member], expected, rtol=1e-6)
    tied = scores.binned_coverage(
        lower, upper, targets, np.ones(ROWS), num_bins=4, sample_weight=weight
    )
    together = scores.interval_coverage(lower, upper, targets, sample_weight=weight)
    np.testing.assert_allclose(np.nanmax(tied, axis=1), together, rtol=1e-5)
    assert (np.isnan(tied).sum(axis=1) == 3).all()
