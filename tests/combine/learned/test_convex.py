"""Convex weights: the constrained minimum, also with masks and weights of rows."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

fit = jax.jit(combine.fit_convex_weights, static_argnames=("loss", "per_class"))


def case(members=5, rows=80, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    skill = np.linspace(0.2, 2, members)[:, None, None]
    logits = 2 * skill * rng.normal(size=(members, rows, classes))
    logits = logits + 2 * skill * np.eye(classes)[labels][None]
    return logits.astype(np.float32), labels, rng.uniform(0, 2, rows)


def softmax(logits):
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(-1, keepdims=True)


def minimum(objective, members):
    found = minimize(
        objective,
        np.full(members, 1 / members),
        bounds=[(1e-12, None)] * members,
        constraints=[dict(type="eq", fun=lambda w: w.sum() - 1)],
        method="SLSQP",
        options=dict(ftol=1e-15, maxiter=500),
    )
    return found.x, found.fun


@pytest.mark.parametrize("loss", ["nll", "brier"])
def test_equals_the_constrained_minimum_that_scipy_finds(loss):
    logits, labels, weight = case()
    probs, target = softmax(logits), np.eye(3)[labels]

    def objective(w):
        mean = np.tensordot(w, probs, 1)
        if loss == "nll":
            return -np.average(np.log(mean[np.arange(80), labels]), weights=weight)
        return np.average(((mean - target) ** 2).sum(-1), weights=weight)

    fitted = fit(logits, labels, loss=loss, sample_weight=weight)
    weights, least = minimum(objective, 5)
    assert (weights < 1e-3).any()  # the simplex binds
    assert objective(np.asarray(fitted.weights, np.float64)) <= least + 2e-6
    # SciPy's minimum is flat: it knows the weights to the root of what it tells.
    np.testing.assert_allclose(fitted.weights, weights, atol=1e-4)
    expected = np.log(np.tensordot(weights, probs, 1))
    np.testing.assert_allclose(fitted(logits), expected, atol=1e-3)


@pytest.mark.slow
def test_weights_of_each_class_reach_the_minimum_near_equal_weights():
    logits, labels, _ = case(2, classes=2)
    probs = softmax(logits)

    def nll(first):  # the weight of member 0 for each class
        scores = probs[0] * first + probs[1] * (1 - first)
        return -np.log(
            (scores / scores.sum(-1, keepdims=True))[np.arange(80), labels]
        ).mean()

    fitted = fit(logits, labels, per_class=True)
    np.testing.assert_allclose(fitted.weights.sum(0), 1, atol=1e-6)
    best = minimize(nll, [0.5, 0.5], bounds=[(0, 1)] * 2, method="L-BFGS-B")
    assert nll(np.asarray(fitted.weights[0], np.float64)) <= best.fun + 1e-5
    scores = np.einsum("mc,mnc->nc", np.asarray(fitted.weights), probs)
    expected = np.log(scores / scores.sum(-1, keepdims=True))
    np.testing.assert_allclose(fitted(logits), expected, atol=1e-5)


@pytest.mark.slow
def test_masked_members_rows_of_weight_zero_and_order_leave_no_trace():
    logits, labels, _ = case()
    weight = np.ones(80)
    weight[:4] = 0
    mask = np.array([True, False, True, True, True])
    broken = logits.copy()
    broken[1], broken[:, :4] = np.nan, np.nan
    for loss in ("nll", "brier"):
        masked = fit(broken, labels, loss=loss, mask=mask, sample_weight=weight)
        # A member whose rows are a copy of another's takes nothing from the minimum.
        copied = np.where(mask[:, None, None], logits, logits[4])
        whole = fit(copied, labels, loss=loss, sample_weight=weight)
        a, b = np.asarray(masked(broken, mask=mask)), np.asarray(whole(copied))
        np.testing.assert_allclose(a[4:], b[4:], atol=1e-5)
        assert masked.weights[1] == 0
    order = np.array([2, 0, 4, 1, 3])
    ones = np.ones(80)
    a = fit(logits, labels, loss="nll", sample_weight=ones)
    b = fit(logits[order], labels, loss="nll", sample_weight=ones)
    np.testing.assert_allclose(a.weights[order], b.weights, atol=1e-5)


@pytest.mark.slow
def test_one_member_has_all_the_weight():
    logits, labels, _ = case(1)
    alone = combine.fit_convex_weights(logits, labels)
    np.testing.assert_allclose(alone(logits), np.log(softmax(logits[0])), atol=1e-5)


@pytest.mark.slow
def test_members_that_miss_rows_are_weighed_among_those_that_count():
    logits, labels, _ = case(3)
    mask = np.random.default_rng(1).uniform(size=(3, 80)) < 0.7
    fitted = fit(np.where(mask[..., None], logits, np.nan), labels, mask=mask)
    picked = np.where(mask, softmax(logits)[:, np.arange(80), labels], 0)

    def objective(w):
        some = mask.any(0)
        return -np.log((w @ picked)[some] / (w @ mask)[some]).mean()

    _, least = minimum(objective, 3)
    assert objective(np.asarray(fitted.weights, np.float64)) <= least + 5e-6


def test_mistakes_are_named_and_seen_rows_refused():
    logits, labels, _ = case(rows=5)
    with pytest.raises(ValueError, match="loss must be one of nll, brier"):
        combine.fit_convex_weights(logits, labels, loss="mse")
    with pytest.raises(ValueError, match="one weight for each member"):
        combine.fit_convex_weights(logits, labels, loss="brier", per_class=True)
    seen = Provenance.of("toy", np.arange(5), trained_on=np.array([1]))
    with pytest.raises(LeakageError, match="row 1 of 'toy'"):
        combine.fit_convex_weights(
            Predictions.from_logits(logits, provenance=seen), labels
        )
