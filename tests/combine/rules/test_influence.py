"""Influence of members on the consensus, and their distance to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ensjax import combine
from ensjax.predictions import Predictions

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(5, 6)).astype(np.float32)
LOGITS = RNG.normal(size=(5, 6, 3)).astype(np.float32)

influence = jax.jit(combine.influence, static_argnums=0)
leave_one_out = jax.jit(combine.leave_one_out, static_argnums=0)
consensus_distance = jax.jit(combine.consensus_distance)


def test_leaving_out_equals_removing():
    said = Predictions.from_points(POINTS)
    got = leave_one_out(combine.median_points, said)
    want = [np.median(np.delete(POINTS, k, axis=0), axis=0) for k in range(5)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    by_row = said.replace(mask=jnp.ones((5, 6), bool))
    np.testing.assert_array_equal(leave_one_out(combine.median_points, by_row), got)


def test_influence_of_points_is_the_mean_absolute_move():
    weight = np.asarray([1.0, 2, 0, 1, 1, 1])
    said = Predictions.from_points(POINTS)
    got = influence(combine.mean_points, said, sample_weight=weight)
    for k in range(5):
        moved = np.delete(POINTS, k, axis=0).mean(0) - POINTS.mean(0)
        want = np.average(abs(moved), weights=weight)
        assert float(got[k]) == pytest.approx(want, rel=1e-4)


def test_influence_of_classes_is_the_total_variation_of_what_is_pooled():
    said = Predictions.from_logits(LOGITS)
    rule = functools.partial(combine.trimmed_probs, share=0.0)
    got = influence(rule, said)
    probs = softmax(LOGITS.astype(np.float64), axis=-1)
    for k in range(5):
        moved = np.delete(probs, k, axis=0).mean(0) - probs.mean(0)
        assert float(got[k]) == pytest.approx(abs(moved).sum(-1).mean() / 2, rel=1e-4)


def test_influence_of_votes_is_how_often_the_choice_changes():
    said = Predictions.from_votes(np.asarray([[0, 0, 1], [0, 1, 1], [1, 1, 0]]), 2)
    got = influence(combine.majority_vote, said)
    # Ties go to class 0, which changes the last row without the first member, the last
    # two without the second, and the second row without the third.
    np.testing.assert_allclose(got, [1 / 3, 2 / 3, 1 / 3], rtol=1e-6)


def test_a_masked_member_has_no_influence_and_no_distance():
    mask = np.asarray([True, True, False, True, True])
    points = np.where(mask[:, None], POINTS, np.nan)
    said = Predictions.from_points(points, mask=mask)
    got = np.asarray(influence(combine.mean_points, said))
    assert got[2] == 0.0 and (got[mask] > 0).all()
    far = consensus_distance(said, jax.jit(combine.mean_points)(said))
    want = abs(POINTS[mask] - POINTS[mask].mean(0)).mean(1)
    np.testing.assert_allclose(np.asarray(far)[mask], want, rtol=1e-5)
    assert np.isnan(far[2])


def test_distance_of_classes_is_total_variation_or_the_share_of_other_choices():
    said = Predictions.from_logits(LOGITS)
    far = consensus_distance(said, jax.jit(combine.mean_probs)(said))
    probs = softmax(LOGITS.astype(np.float64), axis=-1)
    want = abs(probs - probs.mean(0)).sum(-1).mean(-1) / 2
    np.testing.assert_allclose(far, want, rtol=1e-5)
    votes = Predictions.from_votes(np.asarray([[0, 1, -1], [0, 0, 0]]), 2)
    far = consensus_distance(votes, jnp.asarray([0, 0, 1]))
    np.testing.assert_allclose(far, [1 / 2, 1 / 3], rtol=1e-6)  # -1 does not count
    with pytest.raises(ValueError, match=r"consensus must be \(6, 3\)"):
        consensus_distance(said, jnp.zeros((5, 3)))


@pytest.mark.slow
def test_a_broken_member_is_furthest_and_moves_the_mean_but_not_the_median():
    points = POINTS.copy()
    points[3] += 1e3
    said = Predictions.from_points(points)
    far = consensus_distance(said, jax.jit(combine.median_points)(said))
    assert int(jnp.argmax(far)) == 3
    assert float(influence(combine.mean_points, said)[3]) > 100
    assert float(influence(combine.median_points, said)[3]) < 2
    weights = combine.distance_weights(far)
    assert float(weights[3]) < 0.01 * float(weights[0])


def test_a_member_with_a_nan_is_told_and_hides_no_other():
    points = np.concatenate([POINTS, np.where(np.arange(6) < 2, np.nan, 0)[None]])
    said = Predictions.from_points(points.astype(np.float32))
    mask = np.ones((6, 6), bool)
    mask[5, :2] = False
    healthy = said.replace(values=jnp.nan_to_num(said.values), mask=jnp.asarray(mask))
    want = influence(combine.mean_points, healthy)
    for run in (influence, combine.influence):
        got = np.asarray(run(combine.mean_points, said))
        assert np.isposinf(got[5])
        np.testing.assert_allclose(got[:5], want[:5], rtol=1e-6)
    kept = combine.mask_nan(said)
    np.testing.assert_array_equal(kept.mask, mask)
    far = np.asarray(consensus_distance(said, combine.mean_points(kept)))
    assert np.isposinf(far[5])
    want = consensus_distance(healthy, combine.mean_points(healthy))
    np.testing.assert_allclose(far[:5], want[:5], rtol=1e-6)
    # Of the plain consensus, which is NaN on two rows, the others tell.
    far = np.asarray(consensus_distance(said, combine.mean_points(said)))
    want = abs(points - points.mean(0))[:5, 2:].mean(1)
    np.testing.assert_allclose(far[:5], want, rtol=1e-5)
    assert np.isposinf(far[5])
    assert (np.asarray(combine.distance_weights(far)) > 0).tolist() == [True] * 5 + [
        False
    ]


def test_a_member_with_nan_logits_is_told_too():
    logits = LOGITS.copy()
    logits[1, 0, 2] = np.nan
    said = Predictions.from_logits(logits)
    assert not np.asarray(combine.mask_nan(said).mask)[1, 0]
    got = np.asarray(influence(combine.mean_probs, said))
    assert np.isposinf(got[1]) and np.isfinite(np.delete(got, 1)).all()
    whole = Predictions.from_logits(LOGITS)
    assert combine.mask_nan(whole) is whole
