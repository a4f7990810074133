"""The smooth and the debiased calibration error, against float64 references."""

import jax
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_softmax

from ensjax import scores

ROWS = 60
smooth_ece = jax.jit(scores.smooth_ece)
debiased = jax.jit(scores.debiased_calibration_error, static_argnames="num_bins")


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(2, ROWS, 3))).astype(np.float32)
    logits[1] /= 2
    labels = rng.integers(0, 3, ROWS)
    return logits, labels, rng.integers(0, 3, ROWS).astype(np.float32)


def _top(logits, labels):
    probs = np.exp(log_softmax(logits.astype(np.float64), axis=-1))
    return probs.max(-1), (probs.argmax(-1) == labels) * 1.0


def _reference(confidence, correct, weight):
    """The fixed point by a root finder, with the images of each point written out."""
    grid = (np.arange(8_000) + 0.5) / 8_000

    def error(sigma):
        kernel = 0
        for image in range(-4, 5):
            for place in (2 * image + confidence, 2 * image - confidence):
                kernel += np.exp(-(((grid[:, None] - place) / sigma) ** 2) / 2)
        kernel /= sigma * np.sqrt(2 * np.pi)
        return np.abs(kernel @ (weight * (correct - confidence)) / weight.sum()).mean()

    return brentq(lambda sigma: error(sigma) - sigma, 1e-3, 1)


def test_smooth_ece_equals_the_fixed_point(case):
    logits, labels, weight = case
    for w in (np.ones(ROWS, np.float32), weight):
        found = smooth_ece(logits, labels, sample_weight=w)
        for member in range(2):
            expected = _reference(*_top(logits[member], labels), w)
            np.testing.assert_allclose(found[member], expected, atol=2e-5)


def test_smooth_ece_at_its_ends(case):
    logits, labels, weight = case
    sure = np.full((2, ROWS, 3), -100.0, np.float32)
    np.put_along_axis(sure, np.stack([labels, (labels + 1) % 3])[..., None], 100, -1)
    right, wrong = smooth_ece(sure, labels, sample_weight=np.ones(ROWS, np.float32))
    np.testing.assert_allclose(right, 0, atol=1e-6)
    # Every row is wrong and sure: the kernel's mass, times 1, whatever sigma is.
    np.testing.assert_allclose(wrong, 1, atol=1e-5)
    unknown = labels.copy()
    unknown[3] = 7
    counted = np.ones(ROWS, np.float32)
    assert np.isnan(smooth_ece(logits, unknown, sample_weight=counted)).all()
    counted[3] = 0
    assert np.isfinite(smooth_ece(logits, unknown, sample_weight=counted)).all()


def _debiased(confidence, correct, num_bins):
    """Rows sorted and cut into equal parts, as the paper does."""
    order = np.argsort(confidence)
    total = 0
    for own in np.array_split(order, num_bins):
        accuracy = correct[own].mean()
        gap = confidence[own].mean() - accuracy
        chance = accuracy * (1 - accuracy) / (len(own) - 1)
        total += len(own) / len(order) * (gap**2 - chance)
    return np.sqrt(max(total, 0))


def test_the_debiased_error_equals_the_paper(case):
    logits, labels, weight = case
    found = debiased(logits, labels, num_bins=6)
    for member in range(2):
        expected = _debiased(*_top(logits[member], labels), 6)
        np.testing.assert_allclose(found[member], expected, rtol=2e-4)
    twice = np.repeat(np.arange(ROWS), weight.astype(int))
    found = debiased(logits, labels, num_bins=6, sample_weight=weight)
    expected = debiased(logits[:, twice], labels[twice], num_bins=6)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_debiasing_takes_the_bias_away_where_bins_see_calibrated_rows():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, (200, 150))
    labels = (rng.uniform(size=(200, 150)) > confidence).astype(int)
    log_probs = np.log(np.stack([confidence, 1 - confidence], axis=-1))
    biased = scores.adaptive_ece(log_probs, labels).mean()
    honest = (debiased(log_probs, labels, num_bins=15) ** 2).mean()
    # The mean of max(0, an estimate around 0): its spread over 200 draws, not bias.
    assert biased > 0.08 and honest < 0.005


@pytest.mark.slow
def test_one_row_or_ties_only():
    log_probs = np.log(np.full((1, 4, 2), 0.5, np.float32))
    labels = np.array([0, 1, 0, 1])
    assert debiased(log_probs, labels, num_bins=15) == 0
    assert debiased(log_probs[:, :1], labels[:1], num_bins=15) == 0
