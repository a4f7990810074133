"""Calibration errors against loops over bins in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from ensjax import scores


def make_case(num_rows=200, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(num_rows, num_classes))).astype(np.float32)
    labels = rng.integers(0, num_classes, num_rows)
    return log_softmax(logits.astype(np.float64), axis=-1), labels


def loop_over_bins(confidence, correct, weight, num_bins):
    """Yields weight, accuracy and confidence of the rows in each (lo, hi]."""
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = (confidence > low) & (confidence <= high) & (weight > 0)
        if b == 0:
            inside |= (confidence == 0) & (weight > 0)
        if inside.any():
            w = weight[inside]
            yield (
                w.sum(),
                np.average(correct[inside], weights=w),
                np.average(confidence[inside], weights=w),
            )


@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("weighted", [False, True])
def test_ece_and_mce_equal_a_loop_over_bins(num_bins, weighted):
    log_probs, labels = make_case()
    weight = np.random.default_rng(1).integers(0, 3, 200) if weighted else np.ones(200)
    probs = np.exp(log_probs)
    bins = list(
        loop_over_bins(probs.max(-1), probs.argmax(-1) == labels, weight, num_bins)
    )
    ece = sum(w * abs(a - c) for w, a, c in bins) / weight.sum()
    mce = max(abs(a - c) for _, a, c in bins)
    kwargs = dict(num_bins=num_bins, sample_weight=weight)
    np.testing.assert_allclose(scores.ece(log_probs, labels, **kwargs), ece, rtol=1e-5)
    np.testing.assert_allclose(scores.mce(log_probs, labels, **kwargs), mce, rtol=1e-5)


def test_ece_by_hand():
    # Two rows at 0.8 (one right), two at 0.6 (both right), 5 bins.
    probs = np.array([[0.75, 0.25], [0.75, 0.25], [0.55, 0.45], [0.55, 0.45]])
    labels = np.array([0, 1, 0, 0])
    expected = 0.5 * abs(0.5 - 0.75) + 0.5 * abs(1.0 - 0.55)
    actual = scores.ece(np.log(probs), labels, num_bins=5)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probs = np.array([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [1.0, 0.0]])
    bins = scores.reliability_bins(
        np.log(np.maximum(probs, 1e-30)), np.zeros(4, int), num_bins=5
    )
    # log and exp may move 0.8 and 0.6 by one float32 step; 0.5 and 1 are exact.
    assert bins.weight[4] >= 1 and bins.weight[2] >= 1
    exact = scores.reliability_bins(np.log(probs[2:3]), np.zeros(1, int), num_bins=2)
    assert exact.weight.tolist() == [1.0, 0.0]


def test_bin_edges_depend_on_bins_not_on_rows():
    log_probs, labels = make_case(num_rows=7)
    edges = scores.reliability_bins(log_probs, labels, num_bins=4).edges
    np.testing.assert_allclose(edges, [0, 0.25, 0.5, 0.75, 1])


def test_reliability_bins_are_nan_only_where_empty():
    log_probs, labels = make_case()
    bins = scores.reliability_bins(log_probs, labels, num_bins=15)
    assert bins.weight.sum() == 200
    assert (np.isnan(bins.accuracy) == (np.asarray(bins.weight) == 0)).all()
    # Four classes: no confidence is below 1/4.
    assert np.isnan(bins.accuracy[:3]).all()


def test_reliability_bins_reproduce_the_ece():
    log_probs, labels = make_case()
    bins = scores.reliability_bins(log_probs, labels)
    gaps = np.abs(np.asarray(bins.accuracy) - np.asarray(bins.confidence))
    expected = np.nansum(gaps * np.asarray(bins.weight)) / 200
    np.testing.assert_allclose(scores.ece(log_probs, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_adaptive_ece_equals_the_split_of_sorted_rows(num_bins):
    log_probs, labels = make_case()
    probs = np.exp(log_probs)
    confidence, correct = probs.max(-1), probs.argmax(-1) == labels
    parts = np.array_split(np.argsort(confidence), num_bins)
    expected = sum(
        abs(correct[p].mean() - confidence[p].mean()) * len(p) for p in parts
    )
    actual = scores.adaptive_ece(log_probs, labels, num_bins=num_bins)
    np.testing.assert_allclose(actual, expected / 200, rtol=1e-5)


def test_adaptive_ece_keeps_equal_confidences_together():
    log_probs = jnp.log(jnp.tile(jnp.array([[0.7, 0.3]]), (10, 1)))
    labels = jnp.array([0, 1] * 5)
    actual = scores.adaptive_ece(log_probs, labels, num_bins=5)
    np.testing.assert_allclose(actual, abs(0.5 - 0.7), rtol=1e-5)


def test_classwise_ece_equals_a_loop_over_classes_and_bins():
    log_probs, labels = make_case()
    probs = np.exp(log_probs)
    errors = [
        sum(
            w * abs(a - c)
            for w, a, c in loop_over_bins(probs[:, k], labels == k, np.ones(200), 15)
        )
        / 200
        for k in range(4)
    ]
    actual = scores.classwise_ece(log_probs, labels)
    np.testing.assert_allclose(actual, np.mean(errors), rtol=1e-5)


@pytest.mark.slow
def test_calibrated_predictions_have_an_ece_near_zero():
    # Labels drawn from the stated probabilities; bound: 15 bins of sd <= 0.5 /
    # sqrt(N_b) each, whose mean absolute value sums to under sqrt(15 / N) / 2.
    rng = np.random.default_rng(0)
    log_probs, _ = make_case(num_rows=20_000)
    cumulative = np.cumsum(np.exp(log_probs), axis=-1)
    labels = (rng.uniform(size=(20_000, 1)) > cumulative).sum(-1).clip(max=3)
    assert scores.ece(log_probs, labels) < np.sqrt(15 / 20_000) / 2
    assert scores.adaptive_ece(log_probs, labels) < np.sqrt(15 / 20_000) / 2


@pytest.mark.parametrize(
    "score",
    [scores.ece, scores.mce, scores.adaptive_ece, scores.classwise_ece],
    ids=lambda f: f.__name__,
)
def test_fewer_than_one_bin_is_refused(score):
    with pytest.raises(ValueError, match="num_bins must be at least 1; got 0"):
        score(jnp.zeros((2, 2)), jnp.zeros(2, int), num_bins=0)
