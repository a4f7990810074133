"""Votes weighted by validation accuracy: known weights, masks and leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions

LABELS = np.arange(8) % 2
accuracy_vote = jax.jit(combine.fit_accuracy_vote)


def said(*num_right):
    """Logits of members that are right on so many of 8 rows."""
    rows = np.arange(8)
    votes = [np.where(rows < n, LABELS, 1 - LABELS) for n in num_right]
    return 2.0 * np.eye(2, dtype=np.float32)[np.stack(votes)]


def test_weights_are_the_accuracy_above_chance_or_its_log_odds():
    logits = said(7, 6, 3)
    vote = accuracy_vote(logits, LABELS)
    np.testing.assert_allclose(vote.accuracy, [7 / 8, 6 / 8, 3 / 8])
    np.testing.assert_allclose(vote.weights, [0.6, 0.4, 0.0], atol=1e-6)
    assert vote.best == 0
    odds = np.log([7, 3, 1])
    by_odds = jax.jit(combine.fit_log_odds_vote)(logits, LABELS)
    np.testing.assert_allclose(by_odds.weights, [*odds[:2] / odds.sum(), 0], atol=1e-6)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(vote(logits)), 0.6 * probs[0] + 0.4 * probs[1], atol=1e-6
    )
    # No one better than chance: all alike.
    even = accuracy_vote(said(4, 2, 1), LABELS)
    np.testing.assert_allclose(even.weights, [1 / 3] * 3, rtol=1e-6)


@pytest.mark.slow
def test_a_masked_member_is_a_removed_one_whatever_it_says():
    logits = said(7, 8, 6)
    logits[1] = np.nan
    mask = np.array([True, False, True])
    for fit in (combine.fit_accuracy_vote, combine.fit_log_odds_vote):
        masked = fit(logits, LABELS, mask=mask)
        removed = fit(logits[mask], LABELS)
        np.testing.assert_allclose(masked.weights[mask], removed.weights, atol=1e-6)
        assert masked.weights[1] == 0 and masked.best == 0
        np.testing.assert_allclose(masked(logits), removed(logits[mask]), atol=1e-6)


def test_masks_by_row_are_refused():
    by_row = Predictions.from_logits(jnp.zeros((2, 8, 3)), mask=jnp.ones((2, 8), bool))
    with pytest.raises(ValueError, match="masks must be"):
        combine.fit_accuracy_vote(by_row, LABELS)


def test_rows_without_weight_do_not_move_the_clip_of_a_faultless_member():
    labels = np.zeros(100, int)
    logits = np.zeros((2, 100, 2), np.float32)
    logits[0, :, 0], logits[1, :, 0] = 1, np.where(np.arange(100) % 4, 1, -1)
    weight = (np.arange(100) < 8) * 1.0
    whole = combine.fit_log_odds_vote(logits, labels, sample_weight=weight)
    part = combine.fit_log_odds_vote(logits[:, :8], labels[:8])
    np.testing.assert_allclose(whole.weights, part.weights, rtol=1e-6)
    odds = np.log([(1 - 1 / 16) * 16, 3])  # held at 1 - 1 / 16; three of four
    np.testing.assert_allclose(part.weights, odds / odds.sum(), rtol=1e-5)
