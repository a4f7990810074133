"""Operating points against loops over every threshold."""

import jax
import numpy as np
import pytest

from ensjax import scores

ROWS = 300
RISKS, COVERAGES = (0.0, 0.05), (0.003, 0.8)


@jax.jit  # once for all tests, which use one shape
def points(confidence, error, weight):
    options = dict(sample_weight=weight)
    at_risk = {
        r: scores.point_at_risk(confidence, error, risk=r, **options) for r in RISKS
    }
    at_coverage = {
        c: scores.point_at_coverage(confidence, error, coverage=c, **options)
        for c in COVERAGES
    }
    return at_risk, at_coverage


def case(seed=0, ties=False):
    rng = np.random.default_rng(seed)
    confidence = rng.normal(size=ROWS).astype(np.float32)
    if ties:
        confidence = np.round(confidence, 1)
    error = rng.uniform(size=ROWS) < 1 / (1 + np.exp(3 * confidence))
    return confidence, error.astype(np.float32), np.ones(ROWS, np.float32)


def every_point(confidence, error, weight):
    """`(threshold, coverage, risk, rows)` of each distinct threshold, falling."""
    found = []
    for threshold in np.unique(confidence[weight > 0])[::-1]:
        kept = (confidence >= threshold) & (weight > 0)
        risk = np.average(error[kept].astype(np.float64), weights=weight[kept])
        found.append((threshold, weight[kept].sum() / weight.sum(), risk, kept.sum()))
    return found


def last_at_risk(found, risk):
    num_rows = found[-1][3]
    skipped = min(max(20, int(np.ceil(0.01 * num_rows))), num_rows - 1)
    allowed = [p for p in found if p[3] > skipped]
    reached = [p for p in allowed if p[2] <= risk + 1e-9]
    return reached[-1] if reached else min(allowed, key=lambda p: p[2])


@pytest.mark.parametrize("kind", ["plain", "ties", "weights", "seven rows"])
def test_points_equal_a_loop_over_thresholds(kind):
    confidence, error, weight = case(ties=kind == "ties")
    rng = np.random.default_rng(3)
    if kind == "weights":
        weight = rng.integers(0, 3, ROWS).astype(np.float32)
    if kind == "seven rows":  # fewer than are skipped: all of them are the one point
        weight = (rng.permutation(ROWS) < 7).astype(np.float32)
    found = every_point(confidence, error, weight)
    spoiled = np.where(weight == 0, np.nan, confidence)  # what has no weight is removed
    at_risk, at_coverage = points(spoiled, error, weight)
    for risk, actual in at_risk.items():
        expected = last_at_risk(found, risk)[:3]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    for coverage, actual in at_coverage.items():
        expected = next(p for p in found if p[1] >= coverage - 1e-9)[:3]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_a_lucky_start_is_skipped():
    error = (np.arange(ROWS) >= 5).astype(np.float32)  # five sure rows are right
    confidence = -np.arange(ROWS, dtype=np.float32)
    point = points(confidence, error, np.ones(ROWS, np.float32))[0][0.05]
    expected = (-20.0, 21 / ROWS, 16 / 21)  # the lowest risk after 20 rows
    np.testing.assert_allclose(point, expected, rtol=1e-6)


def test_of_many_rows_one_percent_is_skipped():
    error = (np.arange(5_000) >= 40).astype(np.float32)
    confidence = -np.arange(5_000, dtype=np.float32)
    point = jax.jit(lambda c, e: scores.point_at_risk(c, e, risk=0.05))
    assert float(point(confidence, error).coverage) == pytest.approx(51 / 5_000)


def test_a_nan_that_counts_makes_every_point_nan():
    confidence, error, weight = case()
    confidence[7] = np.nan
    assert np.isnan(jax.tree.leaves(points(confidence, error, weight))).all()


def test_a_point_of_unlabelled_rows_has_a_threshold_and_no_risk():
    confidence, error, weight = case()
    labelled = points(confidence, error, weight)[1][0.8]
    point = jax.jit(lambda c: scores.point_at_coverage(c, coverage=0.8))(confidence)
    assert point[:2] == labelled[:2] and np.isnan(point.risk)


@pytest.mark.slow
def test_leading_axes_are_scored_one_by_one():
    cases = [case(seed=s) for s in range(3)]
    together = points(*(np.stack(x) for x in zip(*cases)))
    for i, one in enumerate(cases):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(points(*one))):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


@pytest.mark.parametrize("share, cost", [(0.5, 1.0), (0.2, 3.0)])
def test_accepted_outliers_count_as_errors_of_the_mixture(share, cost):
    confidence, error, _ = case()
    others = np.random.default_rng(5).normal(-1, 1, 90).astype(np.float32)
    errors, weight = scores.mix_with_ood(error, others, ood_share=share, ood_cost=cost)
    both = np.concatenate([confidence, others])
    for threshold in (-1.0, 0.3, 9.0):
        kept_id, kept_ood = confidence >= threshold, others >= threshold
        wrong = (1 - share) * (error * kept_id).mean() + cost * share * kept_ood.mean()
        accepted = (1 - share) * kept_id.mean() + share * kept_ood.mean()
        point = scores.point_at_threshold(both, errors, threshold, sample_weight=weight)
        np.testing.assert_allclose(point.coverage, accepted, rtol=1e-5)
        expected = wrong / accepted if accepted else np.nan
        np.testing.assert_allclose(point.risk, expected, rtol=1e-5)


ONES = np.ones(3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scores.point_at_risk(ONES, ONES, risk=-1), "risk must not"),
        (lambda: scores.point_at_coverage(ONES, coverage=0), "coverage must lie"),
        (lambda: scores.point_at_risk(ONES, np.ones(4), risk=0.1), "error must have"),
        (lambda: scores.mix_with_ood(ONES, ONES, ood_share=1.0), "ood_share"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
