"""Confidences in float32 against float64, where probabilities round to 1 too."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import entropy

from ensjax import combine, scores

CONFIDENCES = [
    scores.max_log_odds,
    scores.negative_entropy,
    scores.max_logit,
    scores.negative_energy,
]


def reference(logits):
    """The four in float64, `[..., class]` to a dict of `[...]`."""
    z = np.asarray(logits, np.float64)
    log_probs = z - logsumexp(z, axis=-1, keepdims=True)
    others = np.sort(log_probs, axis=-1)[..., :-1]
    return {
        "max_log_odds": log_probs.max(-1) - logsumexp(others, axis=-1),
        "negative_entropy": -entropy(np.exp(log_probs), axis=-1),
        "max_logit": z.max(-1),
        "negative_energy": logsumexp(z, axis=-1),
    }


def random_logits(scale=3.0, shape=(2, 50, 5)):
    return (scale * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("score", CONFIDENCES)
def test_equals_float64_numpy(score):
    logits = random_logits()
    expected = reference(logits)[score.__name__]
    actual = jax.jit(score)(logits)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("score", CONFIDENCES[:2])
@pytest.mark.parametrize("is_normalised", [False, True])
def test_rows_whose_probability_rounds_to_one_keep_their_order(score, is_normalised):
    first = np.linspace(17.0, 80.0, 64, dtype=np.float32)
    logits = np.stack([first, np.zeros(64), np.full(64, -3.0)], axis=-1)
    logits = np.random.default_rng(1).permutation(logits.astype(np.float32))
    probs = np.asarray(jax.nn.softmax(logits)).max(-1)
    assert len(np.unique(probs)) < 5  # in float32 most of them are 1
    given = combine.mean_probs(logits[None]) if is_normalised else logits
    order = np.argsort(np.asarray(score(given)))
    np.testing.assert_array_equal(order, np.argsort(logits[:, 0]))


def test_log_odds_have_the_order_of_the_largest_probability():
    logits = random_logits(shape=(400, 6))
    probs = np.exp(logits - logsumexp(logits, axis=-1, keepdims=True)).max(-1)
    odds = np.asarray(scores.max_log_odds(logits))
    np.testing.assert_array_equal(np.argsort(odds), np.argsort(probs))
    np.testing.assert_allclose(jax.nn.sigmoid(odds), probs, rtol=1e-5)


@pytest.mark.parametrize("score", CONFIDENCES)
def test_a_nan_is_seen_and_an_impossible_class_is_not(score):
    logits = np.array([[1.0, np.nan, 0], [1.0, 0, -np.inf], [1.0, 0, -1e4]], np.float32)
    values = np.asarray(jax.jit(score)(logits))
    assert np.isnan(values[0])
    np.testing.assert_allclose(values[1], values[2], rtol=1e-6)


@pytest.mark.parametrize("score", CONFIDENCES)
def test_votes_are_refused(score):
    with pytest.raises(TypeError, match="floating point"):
        score(np.zeros((3, 2), int))
