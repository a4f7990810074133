"""Pseudo-labels against loops over rows, classes and members."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

MEMBERS, ROWS, CLASSES = 4, 40, 3
RNG = np.random.default_rng(0)
# The last class is rare, and members are less sure of it.
TRUE = RNG.choice(CLASSES, ROWS, p=(0.5, 0.35, 0.15))
SHARP = np.asarray([3.0, 2.0, 0.8])[TRUE]
LOGITS = RNG.normal(size=(MEMBERS, ROWS, CLASSES)) + SHARP[:, None] * np.eye(3)[TRUE]
LOGITS = LOGITS.astype(np.float32)
MASK = np.asarray([True, True, False, True])[:, None] & (
    RNG.uniform(size=(MEMBERS, ROWS)) < 0.8
)
MASK[0] = True
WEIGHTS = np.asarray([1.0, 2.0, 5.0, 0.5], np.float32)


@functools.cache
def compiled(choose, share):
    """`choose(logits, weights, mask)`, compiled once for all tests of one shape."""
    if choose is combine.agreed_labels:
        return jax.jit(lambda x, w, mask: choose(x, share=share, mask=mask))
    return jax.jit(lambda x, w, mask: choose(x, share=share, weights=w, mask=mask))


find_confident = jax.jit(
    lambda x, threshold, w, mask: combine.confident_labels(
        x, threshold=threshold, weights=w, mask=mask
    )
)
EVERYBODY = np.ones((MEMBERS, ROWS), bool)
EQUAL = np.ones(MEMBERS, np.float32)


def loop(fn):
    """`fn(probs [member, class], weights)` of the members that count, row by row."""
    probs = softmax(LOGITS.astype(np.float64), axis=-1)
    return np.stack(
        [fn(probs[MASK[:, n], n], WEIGHTS[MASK[:, n]]) for n in range(ROWS)]
    )


def mean(probs, weights):
    return (weights[:, None] * probs).sum(0) / weights.sum()


@pytest.fixture(scope="module")
def masked():
    """Masked predictions hold NaN, which must leave no trace."""
    return np.where(MASK[..., None], LOGITS, np.nan)


def test_confident_rows_equal_a_loop(masked):
    pooled = loop(mean)
    by_class = np.asarray([0.7, 0.6, 0.45], np.float32)
    for threshold in (np.full(3, 0.7, np.float32), by_class):
        found = find_confident(masked, threshold, WEIGHTS, MASK)
        np.testing.assert_array_equal(found.labels, pooled.argmax(-1))
        np.testing.assert_allclose(found.confidence, pooled.max(-1), rtol=1e-5)
        limit = threshold[pooled.argmax(-1)]
        np.testing.assert_array_equal(found.is_chosen, pooled.max(-1) >= limit)
    assert 0 < found.is_chosen.sum() < ROWS


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_agreement_equals_a_count_of_votes(masked, share):
    def count(probs, weights):
        votes = np.bincount(probs.argmax(-1), minlength=CLASSES)
        tied = (votes == votes.max()).sum() > 1
        share_of_best = votes.max() / votes.sum()
        return votes.argmax(), share_of_best, not tied and share_of_best >= share

    labels, agreement, chosen = loop(count).T
    found = compiled(combine.agreed_labels, share)(masked, WEIGHTS, MASK)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.confidence, agreement, rtol=1e-6)
    np.testing.assert_array_equal(found.is_chosen, chosen)
    assert 0 < chosen.sum() < ROWS


def test_abstaining_members_do_not_agree_and_ties_are_not_chosen():
    votes = np.asarray([[0, 1, -1, 0], [0, 1, -1, 1], [-1, 1, -1, -1]])
    said = Predictions.from_votes(votes, 2)
    found = jax.jit(lambda x: combine.agreed_labels(x, share=0.3))(said)
    assert found.labels.tolist() == [0, 1, -1, 0]
    assert found.is_chosen.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.confidence, [2 / 3, 1, np.nan, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_every_class_keeps_its_share(masked, share):
    pooled = loop(mean)
    labels, sure = pooled.argmax(-1), pooled.max(-1)
    found = compiled(combine.balanced_labels, share)(masked, WEIGHTS, MASK)
    chosen = np.zeros(ROWS, bool)
    for c in range(CLASSES):
        own = np.flatnonzero(labels == c)
        kept = int(np.ceil(round(share * len(own), 6)))
        chosen[own[np.argsort(-sure[own])[:kept]]] = True
    np.testing.assert_array_equal(found.is_chosen, chosen)
    np.testing.assert_array_equal(found.labels, labels)
    assert (np.bincount(labels[chosen], minlength=3) > 0).all()


def test_order_of_members_and_rows_and_ties_decide_nothing():
    find = compiled(combine.balanced_labels, 0.3)
    logits = np.tile(LOGITS[:, :20], (1, 2, 1))  # each row twice: they go together
    found = find(logits, EQUAL, EVERYBODY)
    np.testing.assert_array_equal(found.is_chosen[:20], found.is_chosen[20:])
    again = find(logits[::-1, ::-1], EQUAL, EVERYBODY)
    np.testing.assert_array_equal(again.is_chosen[::-1], found.is_chosen)
    # One member alone is that member four times.
    alone = find(LOGITS, EQUAL * (np.arange(MEMBERS) == 0), EVERYBODY)
    four = find(np.repeat(LOGITS[:1], 4, 0), EQUAL, EVERYBODY)
    np.testing.assert_array_equal(alone.is_chosen, four.is_chosen)


def test_rows_of_which_nothing_is_said_are_not_chosen():
    logits, mask = np.array(LOGITS), EVERYBODY.copy()
    logits[1, 0] = np.nan
    mask[:, 1] = False
    rest = np.arange(ROWS) > 1
    for found in (
        find_confident(logits, np.zeros(3, np.float32), EQUAL, mask),
        compiled(combine.balanced_labels, 1.0)(logits, EQUAL, mask),
    ):
        assert found.labels[:2].tolist() == [-1, -1] and np.isnan(found.confidence[0])
        np.testing.assert_array_equal(found.is_chosen, rest)
    found = compiled(combine.agreed_labels, 0.7)(logits, EQUAL, mask)
    assert found.labels[1] == -1 and not found.is_chosen[1]


def test_test_rows_are_never_chosen_and_seen_ones_when_asked():
    def said(**about):
        about = Provenance.of("pool", np.arange(ROWS), **about)
        return Predictions.from_logits(LOGITS, provenance=about)

    trained = said(trained_on=[3, 4])
    with pytest.raises(LeakageError, match="pseudo-labels cannot be fitted on rows 3"):
        combine.balanced_labels(trained, share=0.5)
    # Traced and not run: what is known of the rows is static.
    found = jax.eval_shape(
        lambda: combine.balanced_labels(trained, share=0.5, allow_seen=True)
    )
    with pytest.raises(LeakageError, match="row 7 of 'pool', which are test rows"):
        found.fitted_rows.check_test(Provenance("pool", np.asarray([7]), "test"))
    for test in (said(part="test"), said(test_rows=np.asarray([5]))):
        with pytest.raises(LeakageError, match="test"):
            combine.confident_labels(test, threshold=0.5, allow_seen=True)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]; got 0"):
        combine.balanced_labels(LOGITS, share=0)
    with pytest.raises(ValueError, match="share must lie"):
        combine.agreed_labels(LOGITS, share=1.2)
    with pytest.raises(ValueError, match=r"threshold must be a number or \[class\]"):
        combine.confident_labels(LOGITS, threshold=jnp.ones(2))


def test_rows_that_are_nearly_sure_keep_their_order():
    """Their probabilities are all 1 in float32."""
    logits = np.stack([np.arange(20.0, 40.0, 2), np.zeros(10)], axis=-1)[None]
    chosen = combine.balanced_labels(logits.astype(np.float32), share=0.3)
    assert np.flatnonzero(chosen.is_chosen).tolist() == [7, 8, 9]
