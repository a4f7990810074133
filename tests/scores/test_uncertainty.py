"""Entropies, mutual information and the Jensen gap; the identities between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from ensjax import combine, scores
from ensjax.predictions import Predictions


def case(num_members=5, num_rows=20, num_classes=4, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(num_members, num_rows, num_classes))
    return logits, rng.integers(0, num_classes, num_rows)


def test_entropies_equal_scipy():
    logits, _ = case()
    probs = np.exp(log_softmax(logits, axis=-1))
    total, aleatoric = entropy(probs.mean(0), axis=-1), entropy(probs, axis=-1).mean(0)
    pooled = combine.mean_probs(logits)
    np.testing.assert_allclose(scores.predictive_entropy(pooled), total, rtol=1e-5)
    np.testing.assert_allclose(scores.expected_entropy(logits), aleatoric, rtol=1e-5)
    actual = scores.mutual_information(logits)
    np.testing.assert_allclose(actual, total - aleatoric, atol=2e-6)


def test_total_is_aleatoric_plus_epistemic():
    logits, _ = case()
    weights = np.array([1.0, 2.0, 0.0, 0.5, 3.0])
    total = scores.predictive_entropy(combine.mean_probs(logits, weights))
    parts = scores.expected_entropy(logits, weights) + scores.mutual_information(
        logits, weights
    )
    np.testing.assert_allclose(parts, total, atol=2e-6)


def test_entropy_by_hand():
    log_probs = jnp.array([[0.0, -1e4], [5.0, 5.0]])
    np.testing.assert_allclose(
        scores.predictive_entropy(log_probs), [0.0, np.log(2)], atol=1e-6
    )
    vetoed = jnp.array([[0.0, -jnp.inf]])
    assert scores.predictive_entropy(vetoed) == 0.0


def test_two_sure_members_that_differ_have_log_two_of_epistemic_uncertainty():
    logits = jnp.array([[[1e4, -1e4]], [[-1e4, 1e4]]])
    np.testing.assert_allclose(scores.mutual_information(logits), [np.log(2)])
    assert scores.expected_entropy(logits) == 0.0


def test_ensemble_nll_is_mean_member_nll_minus_the_jensen_gap():
    logits, labels = case()
    weight = np.random.default_rng(1).uniform(size=20)
    ensemble = scores.nll(combine.mean_probs(logits), labels, sample_weight=weight)
    members = scores.nll(logits, labels, sample_weight=weight).mean()
    gap = scores.jensen_gap(logits, labels, sample_weight=weight)
    np.testing.assert_allclose(ensemble, members - gap, rtol=1e-5)


def test_weighted_identity_holds_too():
    logits, labels = case()
    weights = np.array([1.0, 2.0, 0.0, 0.5, 3.0])
    ensemble = scores.nll(combine.mean_probs(logits, weights), labels)
    members = np.average(scores.nll(logits, labels), weights=weights)
    gap = scores.jensen_gap(logits, labels, weights=weights)
    np.testing.assert_allclose(ensemble, members - gap, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 1e4))
def test_gap_and_mutual_information_are_never_negative(seed, scale):
    logits, labels = case(3, 6, 3, scale, seed)
    assert scores.jensen_gap(logits, labels) >= 0
    information = scores.mutual_information(logits)
    assert (information >= 0).all() and (information <= np.log(3) + 1e-5).all()


@pytest.mark.parametrize("name", ["jensen_gap", "mutual_information", "disagreement"])
def test_one_member_and_equal_members_have_no_diversity(name):
    logits, labels = case()
    for same in (logits[:1], np.repeat(logits[:1], 4, axis=0)):
        args = (same, labels) if name == "jensen_gap" else (same,)
        np.testing.assert_allclose(getattr(scores, name)(*args), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["jensen_gap", "mutual_information", "expected_entropy", "disagreement"]
)
def test_order_duplicates_and_masks_of_members(name):
    logits, labels = case()

    def score(logits, **kwargs):
        args = (logits, labels) if name == "jensen_gap" else (logits,)
        return getattr(scores, name)(*args, **kwargs)

    plain = score(logits)
    np.testing.assert_allclose(score(logits[::-1]), plain, atol=1e-6)
    if name != "disagreement":  # a pair of copies agrees
        np.testing.assert_allclose(score(np.tile(logits, (2, 1, 1))), plain, atol=1e-6)
    mask = np.array([True, False, True, True, False])
    broken = np.where(mask[:, None, None], logits, np.nan)
    np.testing.assert_allclose(score(broken, mask=mask), score(logits[mask]), atol=1e-6)


def test_predictions_bring_their_own_mask_and_weights():
    logits, labels = case()
    mask, weights = np.array([1, 0, 1, 1, 0], bool), np.arange(1.0, 6.0)
    said = Predictions.from_logits(logits, mask=mask, weights=weights)
    np.testing.assert_allclose(
        scores.mutual_information(said),
        scores.mutual_information(logits[mask], weights[mask]),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        scores.jensen_gap(said, labels),
        scores.jensen_gap(logits[mask], labels, weights=weights[mask]),
        atol=1e-6,
    )


def test_vote_uncertainties_equal_counting():
    logits, _ = case()
    logits[2, 3] = np.nan  # abstains
    mask = np.ones((5, 20), bool)
    mask[0, :7] = False
    votes = np.where(mask & ~np.isnan(logits).any(-1), logits.argmax(-1), -1)
    ratio = jax.jit(scores.variation_ratio)(logits, mask=mask)
    spread = jax.jit(scores.vote_entropy)(logits, mask=mask)
    for row in range(20):
        counts = np.bincount(votes[:, row][votes[:, row] >= 0], minlength=4)
        np.testing.assert_allclose(
            ratio[row], 1 - counts.max() / counts.sum(), atol=1e-6
        )
        np.testing.assert_allclose(spread[row], entropy(counts), atol=1e-6)
    unanimous = Predictions.from_votes(np.ones((3, 2), int), 4)
    np.testing.assert_array_equal(scores.variation_ratio(unanimous), 0)
    np.testing.assert_array_equal(scores.vote_entropy(unanimous), 0)
    nobody = Predictions.from_votes(-np.ones((3, 2), int), 4)
    assert np.isnan(scores.variation_ratio(nobody)).all()


def test_row_scores_equal_numpy_also_for_large_logits():
    logits, _ = case()
    for scale in (1.0, 1e4):
        z = scale * logits
        probs = np.sort(np.exp(log_softmax(z, axis=-1)), axis=-1)
        np.testing.assert_allclose(scores.max_prob(z), probs[..., -1], rtol=1e-5)
        np.testing.assert_allclose(
            scores.margin(z), probs[..., -1] - probs[..., -2], atol=2e-6
        )
        total = logsumexp(z, axis=-1)
        np.testing.assert_allclose(scores.energy(z), -total, rtol=1e-5)
        np.testing.assert_allclose(
            scores.dempster_shafer(z),
            4 / (4 + np.exp(np.minimum(total, 600))),
            atol=1e-6,
        )
    with pytest.raises(ValueError, match="two classes"):
        scores.margin(np.zeros((3, 1), np.float32))
    with pytest.raises(TypeError, match="floating point"):
        scores.energy(np.zeros((3, 2), int))


def test_a_broken_row_of_many_stays_nan_in_one_program():
    """jax 0.12.0.1 loses a NaN in a compiled `jnp.maximum` on CPU, not of few rows."""
    logits = np.random.default_rng(0).normal(size=(3, 4_096, 4)).astype(np.float32)
    logits[1, 4, 2] = np.nan
    rows = jax.jit(scores.mutual_information)(logits)
    assert np.isnan(rows[4]) and np.isfinite(np.delete(rows, 4)).all()
    assert np.isnan(jax.jit(lambda z: scores.mutual_information(z).mean())(logits))
