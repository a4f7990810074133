"""Pairwise statistics against loops over pairs, scikit-learn and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score

from ensjax import scores
from ensjax.predictions import Predictions, predictive_log_probs

MEMBERS, ROWS, CLASSES = 4, 60, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    logits = rng.normal(size=(MEMBERS, ROWS, CLASSES))
    logits += 1.2 * np.eye(CLASSES)[labels]
    return logits, labels, rng.integers(0, 3, ROWS)


def pairs(fn):
    return np.array([[fn(i, j) for j in range(MEMBERS)] for i in range(MEMBERS)])


@pytest.mark.parametrize("weighted", [False, True])
def test_disagreement_equals_a_loop_over_pairs(case, weighted):
    logits, _, weight = case
    weight = weight if weighted else np.ones(ROWS)
    votes = logits.argmax(-1)
    expected = pairs(lambda i, j: np.average(votes[i] != votes[j], weights=weight))
    actual = scores.disagreement_matrix(logits, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    mean = expected[np.triu_indices(MEMBERS, k=1)].mean()
    np.testing.assert_allclose(
        scores.disagreement(logits, sample_weight=weight), mean, rtol=1e-5
    )
    np.testing.assert_allclose(scores.pairwise_mean(actual), mean, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_kappa_equals_scikit_learn(case, weighted):
    logits, _, weight = case
    weight = weight if weighted else None
    votes = logits.argmax(-1)
    expected = pairs(
        lambda i, j: cohen_kappa_score(votes[i], votes[j], sample_weight=weight)
    )
    actual = scores.kappa(logits, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_error_correlation_equals_numpy(case):
    logits, labels, weight = case
    wrong = logits.argmax(-1) != labels
    np.testing.assert_allclose(
        scores.error_correlation(logits, labels), np.corrcoef(wrong), rtol=1e-4
    )
    repeated = np.repeat(wrong, weight, axis=1)
    np.testing.assert_allclose(
        scores.error_correlation(logits, labels, sample_weight=weight),
        np.corrcoef(repeated),
        rtol=1e-4,
        atol=1e-6,
    )


def test_q_statistic_and_double_fault_equal_a_loop_over_pairs(case):
    logits, labels, _ = case
    right = logits.argmax(-1) == labels

    def q(i, j):
        n11, n00 = (right[i] & right[j]).sum(), (~right[i] & ~right[j]).sum()
        n10, n01 = (right[i] & ~right[j]).sum(), (~right[i] & right[j]).sum()
        return (n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10)

    np.testing.assert_allclose(
        scores.q_statistic(logits, labels), pairs(q), rtol=1e-4, atol=1e-6
    )
    expected = pairs(lambda i, j: (~right[i] & ~right[j]).mean())
    actual = scores.double_fault(logits, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(
        jnp.diagonal(actual), 1 - scores.accuracy(logits, labels), rtol=1e-5
    )


LABELLED = (scores.error_correlation, scores.q_statistic, scores.double_fault)
MATRICES = (scores.disagreement_matrix, scores.kappa, *LABELLED)
every_matrix = pytest.mark.parametrize(
    "score",
    [*MATRICES[:2], *(pytest.param(f, marks=pytest.mark.slow) for f in MATRICES[2:])],
    ids=lambda f: f.__name__,
)


def call(score, logits, labels, **kwargs):
    args = (logits, labels) if score in LABELLED else (logits,)
    return score(*args, **kwargs)


@every_matrix
def test_votes_give_what_logits_give(score, case):
    logits, labels, _ = case
    said = Predictions.from_votes(logits.argmax(-1), CLASSES)
    np.testing.assert_allclose(
        call(score, said, labels), call(score, logits, labels), rtol=1e-6
    )


@every_matrix
def test_masked_member_is_nan_and_leaves_the_others_alone(score, case):
    logits, labels, _ = case
    mask = np.array([True, False, True, True])
    broken = np.where(mask[:, None, None], logits, np.nan)
    matrix = np.asarray(call(score, broken, labels, mask=mask))
    assert np.isnan(matrix[1]).all() and np.isnan(matrix[:, 1]).all()
    alone = call(score, logits[mask], labels)
    np.testing.assert_allclose(matrix[np.ix_(mask, mask)], alone, rtol=1e-5, atol=1e-6)
    mean = scores.pairwise_mean(matrix)
    np.testing.assert_allclose(mean, scores.pairwise_mean(alone), rtol=1e-5, atol=1e-6)


@every_matrix
def test_order_of_members_permutes_the_matrix(score, case):
    logits, labels, _ = case
    order = np.array([2, 0, 3, 1])
    matrix = np.asarray(call(score, logits, labels))
    np.testing.assert_allclose(
        jax.jit(lambda x: call(score, x, labels))(logits[order]),
        matrix[np.ix_(order, order)],
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_broken_member_that_is_not_masked_shows(case):
    logits, labels, _ = case
    broken = logits.copy()
    broken[1, 3] = np.nan
    matrix = np.asarray(scores.double_fault(broken, labels))
    assert np.isnan(matrix[1]).all() and np.isfinite(matrix[0, 2])


def test_rows_on_which_one_abstains_do_not_count_as_disagreement():
    votes = jnp.array([[0, 1, -1, 2], [0, 2, 1, -1]])
    said = Predictions.from_votes(votes, 3)
    assert scores.disagreement(said) == 0.5
    assert scores.disagreement_matrix(said)[0, 1] == 0.5


def test_members_that_are_always_right_have_no_correlation(case):
    _, labels, _ = case
    logits = np.stack([np.eye(CLASSES)[labels]] * 2)
    assert np.isnan(scores.error_correlation(logits, labels)).all()
    assert np.isnan(scores.q_statistic(logits, labels)).all()
    assert (scores.double_fault(logits, labels) == 0).all()


def test_pairwise_mean_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"\[member, member\]"):
        scores.pairwise_mean(jnp.zeros((2, 3)))


def test_mean_pairwise_kl_equals_scipy_over_pairs(case):
    logits, _, weight = case
    kl = jax.jit(scores.mean_pairwise_kl)
    mask = np.random.default_rng(3).uniform(size=(MEMBERS, ROWS)) > 0.2
    probs = softmax(logits, axis=-1)
    by_row = []
    for row in range(ROWS):
        own = probs[mask[:, row], row]
        divergences = [entropy(p, q) for p in own for q in own]
        by_row.append(np.sum(divergences) / (len(own) * (len(own) - 1)))
    broken = np.where(mask[..., None], logits, np.nan)
    found = kl(broken, mask=mask, sample_weight=weight)
    np.testing.assert_allclose(found, np.average(by_row, weights=weight), rtol=1e-5)
    # Members that agree have none, to the rounding of their log-probabilities.
    same = np.repeat(logits[:1], MEMBERS, axis=0)
    np.testing.assert_allclose(kl(same, mask=mask, sample_weight=weight), 0, atol=1e-6)
    assert scores.mean_pairwise_kl(logits[:1]) == 0
    vetoed = np.where(np.arange(CLASSES) == 0, -np.inf, logits[:2])
    vetoed[1] = logits[1]
    assert scores.mean_pairwise_kl(vetoed) == np.inf


def test_the_variance_of_the_labels_probability_equals_numpy(case):
    logits, labels, weight = case
    variance = jax.jit(scores.label_probability_variance)
    probs = softmax(logits, axis=-1)[:, np.arange(ROWS), labels]
    expected = np.average(probs.var(axis=0), weights=weight)
    found = variance(logits, labels, sample_weight=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mask = np.array([True, True, False, True])
    broken = logits.copy()
    broken[2] = np.nan
    found = scores.label_probability_variance(
        broken, labels, mask=mask, sample_weight=weight
    )
    expected = np.average(probs[mask].var(axis=0), weights=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(variance(logits, labels - 1, sample_weight=np.ones(ROWS)))


@pytest.mark.slow
def test_two_class_brier_gains_twice_that_variance():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, 20, 2)).astype(np.float32)
    labels = rng.integers(0, 2, 20)
    gain = scores.brier(logits, labels).mean() - scores.brier(
        predictive_log_probs(logits), labels
    )
    variance = scores.label_probability_variance(logits, labels)
    np.testing.assert_allclose(gain, 2 * variance, rtol=1e-4)


def test_normalized_disagreement_is_that_of_a_loop_and_0_of_copies():
    votes = np.array([[0, 1, 2, 0, -1], [0, 1, 1, 1, 2], [0, 0, 2, 1, 2]])
    labels, weight = np.array([0, 1, 2, 2, 2]), np.array([1.0, 2, 1, 0.5, 3])
    pairs = [
        (weight[n], votes[i, n] != votes[j, n])
        for n in range(5)
        for i in range(3)
        for j in range(i)
        if votes[i, n] >= 0 and votes[j, n] >= 0
    ]
    said = [(w, v != y) for row in votes for w, v, y in zip(weight, row, labels)]
    kept = [x for x, v in zip(said, votes.reshape(-1)) if v >= 0]
    expected = np.average([d for _, d in pairs], weights=[w for w, _ in pairs])
    expected /= np.average([e for _, e in kept], weights=[w for w, _ in kept])
    given = Predictions.from_votes(votes, 3)
    found = scores.normalized_disagreement(given, labels, sample_weight=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    copies = Predictions.from_votes(votes[[1, 1]], 3)
    assert scores.normalized_disagreement(copies, labels) == 0
    assert np.isnan(scores.normalized_disagreement(copies, votes[1]))  # none is wrong
    assert np.isnan(scores.normalized_disagreement(copies, labels - 1))
    with pytest.raises(TypeError, match="labels must be integers"):
        scores.normalized_disagreement(copies, labels * 1.0)
