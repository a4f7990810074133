"""Guaranteed risks and Chow's rule against loops and simulated rows."""

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from ensjax import scores
from ensjax.provenance import LeakageError, Provenance


def rows(rng, number, ties=False):
    """Confidences, and errors that are rarer where they are high."""
    confidence = rng.uniform(size=number)
    if ties:
        confidence = np.round(confidence, 2)
    return confidence, rng.uniform(size=number) < 0.4 * (1 - confidence)


def loop(confidence, error, risk, delta):
    """Every threshold, by the tail of the binomial: P(at most k errors) at `risk`."""
    thresholds = np.unique(confidence)[::-1]
    steps = int(np.ceil(np.log2(len(thresholds) + 1)))
    good = []
    for threshold in thresholds:
        kept = confidence >= threshold
        chance = binom.cdf(error[kept].sum(), kept.sum(), risk)
        good.append((threshold, kept.mean(), error[kept].mean(), chance))
    is_good = [chance <= delta / steps for *_, chance in good]
    low, high = -1, len(good)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_good[middle] else (low, middle)
    return good[low][:3] if low >= 0 else None


@pytest.mark.parametrize("ties", [False, True])
def test_the_point_equals_a_loop_over_thresholds(ties):
    found_some = 0
    for seed in range(5):
        confidence, error = rows(np.random.default_rng(seed), 400, ties)
        for risk, delta in ((0.1, 0.05), (0.15, 0.2), (0.02, 0.01)):
            options = dict(risk=risk, delta=delta)
            found = scores.point_with_guaranteed_risk(confidence, error, **options)
            expected = loop(confidence, error, **options)
            if expected is None:
                assert found[:2] == (np.inf, 0) and np.isnan(found.risk)
                continue
            found_some += 1
            np.testing.assert_allclose(found[:3], expected, rtol=1e-12)
            assert found.risk < found.bound <= risk
    assert found_some >= 5


def test_the_largest_coverage_is_found_where_errors_come_last():
    confidence = np.arange(200.0)[::-1]
    error = np.arange(200) >= 120
    found = scores.point_with_guaranteed_risk(confidence, error, risk=0.1, delta=0.05)
    steps = int(np.ceil(np.log2(201)))
    good = [
        n for n in range(1, 201) if binom.cdf(error[:n].sum(), n, 0.1) <= 0.05 / steps
    ]
    assert found.coverage == max(good) / 200 and 120 <= max(good) < 133


def test_the_promise_is_kept_on_new_rows():
    """P(true risk > r) <= delta: of 400 draws, a bound of 3 standard errors above."""
    rng, delta, target, broken = np.random.default_rng(0), 0.1, 0.12, 0
    for _ in range(400):
        point = scores.point_with_guaranteed_risk(
            *rows(rng, 200), risk=target, delta=delta
        )
        # The mean of 0.4 (1 - c) above the threshold.
        broken += point.coverage > 0 and 0.2 * (1 - point.threshold) > target
    assert broken / 400 <= delta + 3 * np.sqrt(delta * (1 - delta) / 400)


def test_rows_that_do_not_count_leave_no_trace():
    rng = np.random.default_rng(1)
    confidence, error = rows(rng, 300)
    weight = rng.uniform(size=300) < 0.7
    options = dict(risk=0.15, delta=0.1)
    alone = scores.point_with_guaranteed_risk(
        confidence[weight], error[weight], **options
    )
    stacked = np.stack([np.where(weight, confidence, np.nan)] * 2)
    both = scores.point_with_guaranteed_risk(
        stacked, error, sample_weight=weight, **options
    )
    np.testing.assert_array_equal(both, np.stack([alone, alone], axis=1))
    order = rng.permutation(300)
    again = scores.point_with_guaranteed_risk(
        confidence[order], error[order], sample_weight=weight[order], **options
    )
    np.testing.assert_array_equal(again, alone)


def test_rejection_by_cost_equals_a_loop():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(2, 30, 3)).astype(np.float32)
    costs = np.asarray([[0.0, 1, 2], [5, 0, 1], [1, 1, 0]])
    decide = jax.jit(lambda x, c: scores.reject_by_cost(x, reject_cost=0.3, costs=c))
    for cost in (costs, 1 - np.eye(3)):
        found = decide(logits, cost)
        probs = softmax(logits.astype(np.float64), axis=-1)
        for member, row in np.ndindex(2, 30):
            expected = [
                sum(probs[member, row, t] * cost[t, c] for t in range(3))
                for c in range(3)
            ]
            is_rejected = min(expected) > 0.3
            label = -1 if is_rejected else int(np.argmin(expected))
            assert found.labels[member, row] == label
            assert found.is_rejected[member, row] == is_rejected
            np.testing.assert_allclose(
                found.expected_cost[member, row], min(min(expected), 0.3), rtol=1e-5
            )
        assert 0 < found.is_rejected.sum() < 60
    # Without costs: by the largest probability alone, and no decision costs less.
    plain = scores.reject_by_cost(logits, reject_cost=0.3)
    np.testing.assert_array_equal(plain.is_rejected, 1 - probs.max(-1) > 0.3)
    logits[0, 0] = np.nan
    odd = decide(logits, costs)
    assert odd.is_rejected[0, 0] and odd.labels[0, 0] == -1
    assert np.isnan(odd.expected_cost[0, 0])


def test_mistakes_are_named():
    confidence, error = rows(np.random.default_rng(0), 20)
    point = scores.point_with_guaranteed_risk
    with pytest.raises(ValueError, match=r"risk must lie in \(0, 1\); got 0"):
        point(confidence, error, risk=0)
    with pytest.raises(ValueError, match="error must be 0 or 1"):
        point(confidence, confidence, risk=0.1)
    with pytest.raises(ValueError, match="that counts is NaN"):
        point(confidence * np.nan, error, risk=0.1)
    with pytest.raises(ValueError, match="error must have shape"):
        point(confidence, error[:5], risk=0.1)
    about = Provenance("toy", np.arange(20), "test")
    with pytest.raises(LeakageError, match="only test"):
        point(confidence, error, risk=0.1, provenance=about)
    with pytest.raises(ValueError, match=r"costs must be \[class, class\]"):
        scores.reject_by_cost(np.zeros((4, 3)), reject_cost=0.1, costs=np.eye(2))
    with pytest.raises(ValueError, match="reject_cost must not be negative"):
        scores.reject_by_cost(np.zeros((4, 3)), reject_cost=-1)
