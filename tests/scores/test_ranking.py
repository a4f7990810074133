"""Areas under ROC curves over classes, against scikit-learn and pairs by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn import metrics

from ensjax import scores

ROWS, CLASSES = 80, 4


@pytest.fixture(scope="module", params=["random", "tied"])
def case(request):
    return make_case(request.param)


def make_case(kind):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(ROWS, CLASSES))
    log_probs = log_softmax(logits, axis=-1).astype(np.float32)
    if kind == "tied":  # shares of ten votes: the same share beside others, and 0
        shares = rng.multinomial(10, [0.4, 0.3, 0.2, 0.1], size=ROWS) / 10
        with np.errstate(divide="ignore"):
            log_probs = np.log(shares).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS)
    return log_probs, labels, rng.uniform(size=ROWS) * (rng.uniform(size=ROWS) < 0.8)


def one_vs_rest(log_probs, labels, weight=None):
    return np.mean(
        [
            metrics.roc_auc_score(labels == k, log_probs[:, k], sample_weight=weight)
            for k in range(CLASSES)
        ]
    )


def pairs(log_probs, labels):
    """Hand and Till's sum, every pair of rows by itself."""
    found = []
    for i in range(CLASSES):
        for j in range(CLASSES):
            if i == j:
                continue
            own, other = log_probs[labels == i, i], log_probs[labels == j, i]
            wins = (own[:, None] > other) + 0.5 * (own[:, None] == other)
            found.append(wins.mean())
    return np.mean(found)


def probs_of(log_probs):
    """Float64, without what rounding did to equal shares."""
    return np.round(np.exp(log_probs.astype(np.float64)), 6)


def test_macro_auroc_equals_scikit_learn(case):
    log_probs, labels, weight = case
    values = probs_of(log_probs)
    np.testing.assert_allclose(
        scores.macro_auroc(log_probs, labels), one_vs_rest(values, labels), atol=1e-6
    )
    np.testing.assert_allclose(
        scores.macro_auroc(log_probs, labels, sample_weight=weight),
        one_vs_rest(values, labels, weight),
        atol=1e-6,
    )


def test_hand_till_equals_every_pair_of_rows(case):
    log_probs, labels, _ = case
    expected = pairs(probs_of(log_probs), labels)
    found = scores.hand_till_auroc(log_probs, labels)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_hand_till_equals_scikit_learn_one_against_one(case):
    log_probs, labels, _ = case
    expected = metrics.roc_auc_score(labels, probs_of(log_probs), multi_class="ovo")
    np.testing.assert_allclose(
        scores.hand_till_auroc(log_probs, labels), expected, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("score", [scores.macro_auroc, scores.hand_till_auroc])
def test_members_masks_and_what_is_undefined(score):
    log_probs, labels, _ = make_case("random")
    members = jnp.stack([log_probs, log_probs[:, ::-1]])
    found = jax.jit(score)(members, labels)
    np.testing.assert_allclose(found[0], score(log_probs, labels), atol=1e-6)
    np.testing.assert_allclose(found[1], score(log_probs[:, ::-1], labels), atol=1e-6)
    # Rows of weight 0 are gone, whatever they hold.
    keep = np.arange(ROWS) % 3 != 0
    broken = np.where(keep[:, None], log_probs, np.nan)
    wrong = np.where(keep, labels, 99)
    np.testing.assert_allclose(
        score(broken, wrong, sample_weight=keep),
        score(log_probs[keep], labels[keep]),
        atol=1e-6,
    )
    assert np.isnan(score(broken, labels))
    assert np.isnan(score(log_probs, wrong))
    # Classes without rows do not count; one class alone leaves nothing.
    two = np.where(labels < 2, labels, 0)
    assert 0 < score(log_probs, two) < 1
    assert np.isnan(score(log_probs, np.zeros(ROWS, int)))


def test_frequencies_of_classes_do_not_move_hand_and_till():
    rng = np.random.default_rng(1)
    log_probs = rng.normal(size=(30, 3)).astype(np.float32)
    labels = np.arange(30) % 3
    counts = np.array([1, 5, 2])[labels]
    np.testing.assert_allclose(
        scores.hand_till_auroc(log_probs, labels, sample_weight=counts),
        scores.hand_till_auroc(log_probs, labels),
        atol=1e-6,
    )


def test_rows_that_are_nearly_sure_keep_their_order():
    """Probabilities of float32 are all 1 here, and their log-softmax all 0."""
    logits = np.stack([np.arange(18.0, 42.0, 2), np.zeros(12)], axis=-1)
    logits[::2, 0] += 0.5
    labels = (np.arange(12) % 3 == 0).astype(int)
    expected = metrics.roc_auc_score(labels == 0, logits[:, 0])
    for score in (scores.macro_auroc, scores.hand_till_auroc):
        value = score(logits.astype(np.float32), labels)
        np.testing.assert_allclose(value, expected, atol=1e-6)
