"""Weights of members: from losses, teams and errors that go together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from ensjax import combine
from ensjax.combine import MemberWeights
from ensjax.predictions import Predictions

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 40, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 40)


@jax.jit
def tempered(said):
    """Weights at a temperature of the number of rows, and at 1."""
    return [
        combine.bma_weights(said, LABELS, temperature=temperature).weights
        for temperature in (40.0, 1.0)
    ]


def test_bma_weights_are_the_tempered_posterior_over_members():
    picked = log_softmax(LOGITS.astype(np.float64), axis=-1)[:, np.arange(40), LABELS]
    prior = np.asarray([1.0, 2.0, 0.5])
    said = Predictions.from_logits(LOGITS, weights=prior)
    for temperature, got in zip((40.0, 1.0), tempered(said), strict=True):
        want = softmax(picked.sum(1) / temperature + np.log(prior))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="positive"):
        combine.bma_weights(said, LABELS, temperature=0.0)


def test_a_masked_member_has_no_weight_and_missing_rows_no_advantage():
    mask = np.ones((3, 40), bool)
    mask[0, 20:], mask[2] = False, False
    values = np.where(mask[..., None], LOGITS, np.nan)
    said = Predictions.from_logits(values, mask=mask)
    got = np.asarray(tempered(said)[0])
    picked = log_softmax(LOGITS.astype(np.float64), axis=-1)[:, np.arange(40), LABELS]
    means = np.asarray([picked[0, :20].mean(), picked[1].mean()])
    np.testing.assert_allclose(got, [*softmax(means), 0], rtol=1e-4)


def test_softmin_weights_are_finite_for_huge_and_missing_losses():
    got = combine.softmin_weights(jnp.asarray([1e6, 1e6 + 1, jnp.inf, jnp.nan]))
    np.testing.assert_allclose(got, [*softmax([0, -1.0]), 0, 0], rtol=1e-2)
    even = combine.softmin_weights(jnp.asarray([1.0, 2.0]), temperature=1e9)
    np.testing.assert_allclose(even, [0.5, 0.5], rtol=1e-6)


def test_fitted_weights_are_those_of_the_predictions():
    weights = combine.MemberWeights(jnp.asarray([0.5, 0.3, 0.2]))
    assert weights(LOGITS).weights.tolist() == weights.weights.tolist()
    with pytest.raises(ValueError, match="3 weights for 2 members"):
        weights(LOGITS[:2])


def test_a_team_counts_once_however_many_entries_it_sends():
    got = combine.team_weights(["a", "b", "a", "a"])
    np.testing.assert_allclose(got, [1 / 6, 1 / 2, 1 / 6, 1 / 6])
    points = np.asarray([[0.0], [3.0], [0.0], [0.0]])
    np.testing.assert_allclose(combine.mean_points(points, got), [1.5])


def test_members_whose_errors_go_together_count_as_one():
    truth = RNG.normal(size=200)
    first, second = RNG.normal(size=(2, 200))
    points = truth + np.stack([first, first + 0.05 * second, second, first])
    said = Predictions.from_points(points.astype(np.float32))
    got = combine.cluster_weights(said, truth, threshold=0.9).weights
    np.testing.assert_allclose(got, [1 / 6, 1 / 6, 1 / 2, 1 / 6])
    np.testing.assert_allclose(
        combine.cluster_weights(said, truth, threshold=1.0).weights,
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
        rtol=1e-5,
    )
    masked = said.replace(mask=jnp.asarray([True, True, True, False]))
    got = combine.cluster_weights(masked, truth).weights
    np.testing.assert_allclose(got, [0.25, 0.25, 0.5, 0])


def test_what_would_make_every_correlation_nan_is_refused():
    """Not equal weights, as if no errors went together."""
    truth = RNG.normal(size=50)
    points = (truth + RNG.normal(size=(3, 50))).astype(np.float32)
    said = Predictions.from_points(points, names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"targets of rows \[5\] are not finite"):
        combine.cluster_weights(said, np.where(np.arange(50) == 5, np.nan, truth))
    points[1, 7] = np.nan
    said = Predictions.from_points(points, names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"member 'b' says .* in rows \[7\]; mask it"):
        combine.cluster_weights(said, truth)
    masked = said.replace(mask=jnp.asarray([True, False, True]))
    assert combine.cluster_weights(masked, truth).weights[1] == 0
    with pytest.raises(ValueError, match=r"rows \[3\] .* no class"):
        combine.cluster_weights(
            Predictions.from_logits(LOGITS), np.where(np.arange(40) == 3, -1, LABELS)
        )
    broken = LOGITS.copy()
    broken[2, 4, 1] = np.nan
    with pytest.raises(ValueError, match=r"member .member 2. says .* in rows \[4\]"):
        combine.cluster_weights(Predictions.from_logits(broken), LABELS)


@pytest.mark.slow
def test_classifiers_that_fail_on_the_same_rows_count_as_one():
    votes = np.stack([LABELS, LABELS, LABELS, LABELS])
    votes[0, :10] = votes[1, :10] = (LABELS[:10] + 1) % 4
    votes[2, 20:35] = (LABELS[20:35] + 1) % 4
    said = Predictions.from_votes(votes, 4)  # the last is never wrong
    got = combine.cluster_weights(said, LABELS).weights
    np.testing.assert_allclose(got, [1 / 6, 1 / 6, 1 / 3, 1 / 3], rtol=1e-6)


def test_members_far_from_the_consensus_are_weighed_down():
    got = combine.distance_weights(jnp.asarray([1.0, 1.0, 2.0, 12.0, jnp.nan]))
    # The median distance is 1.5, so that 4.5 is the limit.
    np.testing.assert_allclose(got, np.asarray([1, 1, 1, 4.5 / 12, 0]) / 3.375)


def test_member_weights_take_any_kind_of_predictions():
    weights = MemberWeights(jnp.asarray([0.25, 0.75]))
    points = Predictions.from_points(np.asarray([[0.0], [4.0]]))
    assert combine.mean_points(weights(points)).tolist() == [3.0]
