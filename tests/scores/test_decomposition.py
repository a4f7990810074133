"""Decompositions hold to rounding; each part equals a float64 loop."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from ensjax import scores
from ensjax.predictions import Predictions

MEMBERS, ROWS = 4, 30
member_moments = jax.jit(scores.member_moments, static_argnames="ddof")
ambiguity = jax.jit(scores.ambiguity_decomposition)
nll_parts = jax.jit(scores.nll_decomposition)
residual_correlation = jax.jit(scores.residual_correlation)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    targets = rng.normal(1000, 1, ROWS).astype(np.float32)
    points = (targets + rng.normal(size=(MEMBERS, ROWS))).astype(np.float32)
    mask = rng.uniform(size=(MEMBERS, ROWS)) > 0.3
    mask[0] = True
    return points, targets, mask, rng.uniform(0.1, 2, ROWS).astype(np.float32)


def test_moments_equal_a_loop_over_rows(case):
    points, _, mask, _ = case
    broken = np.where(mask, points, np.nan)
    for ddof in (0, 1):
        found = member_moments(broken, ddof=ddof, mask=mask)
        for row in range(ROWS):
            own = points[mask[:, row], row].astype(float)
            np.testing.assert_allclose(found.mean[row], own.mean(), rtol=1e-6)
            assert found.num_members[row] == len(own)
            expected = own.std(ddof=ddof) if len(own) > ddof else np.nan
            np.testing.assert_allclose(found.std[row], expected, rtol=1e-3, atol=1e-4)


def test_one_member_has_no_spread_with_ddof_0_and_an_undefined_one_with_1(case):
    points = case[0][:1]
    np.testing.assert_array_equal(member_moments(points, ddof=0).std, 0)
    np.testing.assert_array_equal(member_moments(points, ddof=0).mean, points[0])
    assert np.isnan(member_moments(points, ddof=1).std).all()
    with pytest.raises(ValueError, match="ddof must be 0 or 1"):
        scores.member_moments(points, ddof=2)


def test_the_ambiguity_identity_and_its_parts(case):
    points, targets, mask, weight = case
    weights = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
    broken = np.where(mask, points, np.nan)
    broken[3] = np.nan
    found = ambiguity(broken, targets, weights=weights, mask=mask, sample_weight=weight)
    w = (weights[:, None] * mask).astype(float)
    w /= w.sum(axis=0)
    errors = points.astype(float) - targets
    mean = (w * errors).sum(axis=0)
    np.testing.assert_allclose(
        found.ensemble, np.average(mean**2, weights=weight), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.members, np.average((w * errors**2).sum(0), weights=weight), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.ensemble, found.members - found.ambiguity, rtol=1e-5
    )
    assert found.ambiguity > 0


@pytest.mark.slow
def test_identical_members_have_no_ambiguity_and_one_member_is_the_ensemble(case):
    points, targets, _, _ = case
    same = np.repeat(points[:1], MEMBERS, axis=0)
    found = ambiguity(same, targets)
    np.testing.assert_allclose(found.ambiguity, 0, atol=1e-9)
    np.testing.assert_allclose(found.ensemble, found.members, rtol=1e-6)


def test_the_nll_identity_with_masks_and_weights(case):
    _, _, mask, weight = case
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(MEMBERS, ROWS, 3)).astype(np.float32)
    labels = rng.integers(0, 3, ROWS)
    weights = np.array([1.0, 0.5, 2.0, 0.3], np.float32)
    predictions = Predictions.from_logits(logits, weights=weights, mask=mask)
    found = nll_parts(predictions, labels, sample_weight=weight)
    log_probs = log_softmax(logits.astype(float), axis=-1)[:, np.arange(ROWS), labels]
    w = weights[:, None] * mask
    w = w / w.sum(axis=0)
    members = np.average(-(w * log_probs).sum(axis=0), weights=weight)
    ensemble = np.average(-np.log((w * np.exp(log_probs)).sum(axis=0)), weights=weight)
    np.testing.assert_allclose(found.members, members, rtol=1e-5)
    np.testing.assert_allclose(found.ensemble, ensemble, rtol=1e-5)
    np.testing.assert_allclose(found.gap, members - ensemble, atol=1e-5)


def test_residual_correlation_equals_numpy(case):
    points, targets, _, weight = case
    found = residual_correlation(points, targets, sample_weight=weight)
    errors = points.astype(float) - targets
    covariance = np.cov(errors, aweights=weight)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=2e-4)
    mask = np.array([True, False, True, True])
    broken = points.copy()
    broken[1] = np.nan
    kept = residual_correlation(broken, targets, mask=mask, sample_weight=weight)
    assert np.isnan(kept[1]).all() and np.isnan(kept[:, 1]).all()
    np.testing.assert_allclose(kept[0, 2], found[0, 2], rtol=1e-5)


@pytest.mark.parametrize("error", [0.1, 0.3, 1 / 3])
def test_residuals_that_are_all_equal_correlate_with_nothing(case, error):
    _, _, _, weight = case
    points = np.random.default_rng(2).normal(size=(MEMBERS, ROWS)).astype(np.float32)
    points[1] = error
    points[1, 3], weight = np.nan, np.where(np.arange(ROWS) == 3, 0, weight)
    zeros = np.zeros(ROWS, np.float32)
    for run in (residual_correlation, scores.residual_correlation):
        for own in (weight, weight.astype(bool).astype(np.float32)):
            found = np.asarray(run(points, zeros, sample_weight=own))
            assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
            assert np.isfinite(np.delete(np.delete(found, 1, 0), 1, 1)).all()
    found = residual_correlation(1e15 * points, zeros, sample_weight=own)
    expected = np.corrcoef(np.delete(points, 3, axis=1)[[0, 2]].astype(float))
    np.testing.assert_allclose(found[0, 2], expected[0, 1], atol=1e-5)
