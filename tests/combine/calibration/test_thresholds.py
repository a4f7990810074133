"""Thresholds against a loop over all of them; what they refuse to be fitted on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions


def logits_of(odds):
    odds = np.asarray(odds, np.float32)
    return np.stack([np.zeros_like(odds), odds], axis=-1)


def best_accuracy(odds, labels, weight):
    """Of every threshold that tells rows apart."""
    ends = np.sort(odds)
    cuts = [ends[0] - 1, *(ends[1:] + ends[:-1]) / 2, ends[-1] + 1]
    return max(np.average((odds > cut) == labels, weights=weight) for cut in cuts)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    odds = rng.normal(size=(3, 60)) + labels + np.array([[-2.0], [0.0], [3.0]])
    odds[1] = np.round(odds[1])  # ties
    return odds, labels, rng.uniform(size=60) * (rng.uniform(size=60) < 0.8)


def test_each_member_gets_as_many_rows_right_as_any_threshold_can(rows):
    odds, labels, weight = rows
    fit = jax.jit(combine.fit_vote_thresholds)
    thresholds = fit(logits_of(odds), labels, sample_weight=weight)
    votes = np.asarray(thresholds(logits_of(odds)).votes)
    for member in range(3):
        counts = weight > 0
        got = np.average(votes[member] == labels, weights=weight)
        want = best_accuracy(odds[member][counts], labels[counts], weight[counts])
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.slow
def test_rows_without_weight_leave_no_trace(rows):
    odds, labels, weight = rows
    counts = weight > 0
    want = combine.fit_vote_thresholds(
        logits_of(odds[:, counts]), labels[counts], sample_weight=weight[counts]
    )
    broken = np.where(counts, odds, np.nan)
    got = combine.fit_vote_thresholds(
        logits_of(broken), np.where(counts, labels, 9), sample_weight=weight
    )
    np.testing.assert_allclose(got.log_odds, want.log_odds, atol=1e-5)
    assert np.isnan(combine.fit_vote_thresholds(logits_of(broken), labels).log_odds[0])


def test_rows_that_a_member_is_masked_on_do_not_count_for_it(rows):
    odds, labels, _ = rows
    mask = np.random.default_rng(1).uniform(size=(3, 60)) < 0.7
    fit = jax.jit(combine.fit_vote_thresholds)
    values = logits_of(np.where(mask, odds, np.nan))
    got = fit(Predictions.from_logits(values, mask=mask), labels)
    for member in range(3):  # as if it were alone, with the weight 0 on these rows
        alone = fit(logits_of(odds[[member]]), labels, sample_weight=mask[member] * 1.0)
        np.testing.assert_allclose(got.log_odds[member], alone.log_odds[0], atol=1e-6)


def test_rows_that_say_nothing_leave_even_odds_the_threshold():
    odds = np.array([[-3.0, -1.0, 2.0, 4.0]])
    fitted = combine.fit_vote_thresholds(logits_of(odds), np.array([0, 0, 1, 1]))
    assert fitted.probability[0] == jax.nn.sigmoid(0.5)  # between -1 and 2
    wrong = combine.fit_vote_thresholds(logits_of(odds), np.array([1, 1, 1, 1]))
    assert wrong.log_odds[0] == -4.0


def test_thresholds_are_for_two_classes():
    with pytest.raises(ValueError, match="two classes"):
        combine.fit_vote_thresholds(jnp.zeros((1, 4, 3)), jnp.zeros(4, int))
