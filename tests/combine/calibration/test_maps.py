"""Calibration maps against scikit-learn and scipy, of ensembles and of members."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ensjax import combine
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

N, C = 90, 3


def draw(seed=0):
    """Log-probabilities of a model that is too sure and biased; weights with zeros."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(N, C))
    labels = (truth + rng.gumbel(size=(N, C))).argmax(axis=1)
    logits = 3 * truth + np.array([1.0, 0.0, -1.0])
    weight = rng.integers(0, 3, N).astype(np.float32)
    return log_softmax(logits, axis=1).astype(np.float32), labels, weight


LOG_PROBS, LABELS, WEIGHT = draw()


@functools.cache
def fitted(name):
    fits = {
        "vector": functools.partial(combine.fit_vector_scaling, l2=0.02),
        "matrix": functools.partial(combine.fit_matrix_scaling, l2=0.02),
        "odir": functools.partial(
            combine.fit_matrix_scaling, l2=0.0, off_diagonal=0.3, bias=0.2
        ),
        "platt": combine.fit_platt,
        "isotonic": combine.fit_isotonic_map,
    }
    spoiled = np.where(WEIGHT[:, None] == 0, np.nan, LOG_PROBS)
    return jax.jit(fits[name])(spoiled, LABELS, WEIGHT)


def minimum(penalty, start, kernel_of):
    """The same objective in float64 by scipy's BFGS."""
    x = LOG_PROBS.astype(np.float64)

    def loss(flat):
        kernel, bias = kernel_of(flat[:-C]), flat[-C:]
        scores = log_softmax(x @ kernel.T + bias, axis=1)
        nll = -scores[np.arange(N), LABELS]
        return (WEIGHT * nll).sum() / WEIGHT.sum() + penalty(kernel, bias)

    return minimize(loss, start, method="BFGS", options={"gtol": 1e-8}).x


def test_vector_scaling_is_the_minimum_that_scipy_finds():
    def penalty(kernel, bias):
        return 0.01 * (((np.diag(kernel) - 1) ** 2).sum() + (bias**2).sum())

    flat = minimum(penalty, np.r_[np.ones(C), np.zeros(C)], np.diag)
    got = fitted("vector")
    np.testing.assert_allclose(got.kernel, flat[:C], atol=2e-4)
    np.testing.assert_allclose(got.bias, flat[C:], atol=2e-4)


def test_matrix_scaling_is_scikit_learns_logistic_regression():
    peer = LogisticRegression(C=1 / (0.02 * WEIGHT.sum()), tol=1e-10, max_iter=5000)
    peer.fit(LOG_PROBS, LABELS, sample_weight=WEIGHT)
    got = fitted("matrix")
    np.testing.assert_allclose(got.kernel, peer.coef_, atol=1e-3)
    np.testing.assert_allclose(
        np.exp(got(LOG_PROBS)), peer.predict_proba(LOG_PROBS), atol=2e-4
    )


@pytest.mark.slow
def test_odir_pulls_the_matrix_to_its_diagonal_as_far_as_scipy_says():
    off = 1 - np.eye(C)

    def penalty(kernel, bias):
        return 0.3 / (C * (C - 1)) * (off * kernel**2).sum() + 0.2 / C * (bias**2).sum()

    flat = minimum(
        penalty, np.r_[np.eye(C).ravel(), np.zeros(C)], lambda k: k.reshape(C, C)
    )
    # The penalty leaves the diagonal free; the objective is flat in no direction.
    got = fitted("odir")
    np.testing.assert_allclose(got.kernel, flat[:-C].reshape(C, C), atol=1e-3)
    np.testing.assert_allclose(got.bias, flat[-C:], atol=1e-3)


class Said(ClassifierMixin, BaseEstimator):
    """A fitted model that says what it is given."""

    def __init__(self, classes=C):
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, x, y, sample_weight=None):
        return self

    def predict(self, x):
        return np.argmax(x, axis=1)


class SaidOdds(Said):
    def decision_function(self, x):
        return x if self.classes > 2 else x[:, 0]


class SaidProbs(Said):
    def predict_proba(self, x):
        return x


@pytest.mark.slow
def test_platt_is_scikit_learns_sigmoid_for_three_classes_and_for_two():
    probs = np.exp(LOG_PROBS.astype(np.float64))
    odds = np.clip(np.log(probs) - np.log1p(-probs), -16, 16)  # ours are cut off
    peer = CalibratedClassifierCV(FrozenEstimator(SaidOdds()), method="sigmoid")
    peer.fit(odds, LABELS, sample_weight=WEIGHT)
    got = np.exp(fitted("platt")(LOG_PROBS))
    np.testing.assert_allclose(got, peer.predict_proba(odds), atol=1e-3)

    two = np.stack([LOG_PROBS[:, 0] * 0, LOG_PROBS[:, 1] - LOG_PROBS[:, 0]], axis=1)
    labels = (LABELS == 1).astype(int)
    peer = CalibratedClassifierCV(FrozenEstimator(SaidOdds(2)), method="sigmoid")
    peer.fit(two[:, 1:], labels)
    ours = combine.calibrate_ensemble(combine.fit_platt, two, labels)
    np.testing.assert_allclose(
        np.exp(ours(two)), peer.predict_proba(two[:, 1:]), atol=1e-3
    )


@pytest.mark.slow
def test_isotonic_is_scikit_learns_for_every_class():
    probs = np.exp(LOG_PROBS)
    peer = CalibratedClassifierCV(FrozenEstimator(SaidProbs()), method="isotonic")
    peer.fit(probs, LABELS, sample_weight=WEIGHT)
    got = np.exp(fitted("isotonic")(LOG_PROBS))
    np.testing.assert_allclose(got, peer.predict_proba(probs), atol=1e-5)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("platt", "isotonic")]


@pytest.mark.parametrize("name", ["vector", "matrix", *SLOW])
def test_a_calibrated_model_has_less_nll_and_is_normalised(name):
    def nll(log_probs):
        picked = np.asarray(log_probs)[np.arange(N), LABELS]
        return -(WEIGHT * picked).sum() / WEIGHT.sum()

    after = fitted(name)(LOG_PROBS)
    np.testing.assert_allclose(np.exp(after).sum(axis=1), 1.0, atol=1e-5)
    assert nll(after) < nll(LOG_PROBS) - 0.05


@pytest.mark.slow
def test_members_are_calibrated_as_if_alone_and_the_ensemble_after_pooling():
    fit = functools.partial(combine.fit_vector_scaling, l2=0.02)
    other, _, _ = draw(1)
    both = jnp.stack([LOG_PROBS, other])
    each = combine.calibrate_each_member(fit, both, LABELS, sample_weight=WEIGHT)
    alone = fitted("vector")
    np.testing.assert_allclose(each.map.kernel[0], alone.kernel, atol=1e-4)
    np.testing.assert_allclose(
        each(both), combine.mean_probs(each.members(both)), atol=1e-6
    )
    # A member that is masked, and broken, is one that is not there.
    masked = Predictions.from_logits(
        both.at[1].set(jnp.nan), mask=np.array([True, False])
    )
    kept = combine.calibrate_each_member(fit, masked, LABELS, sample_weight=WEIGHT)
    np.testing.assert_allclose(kept(masked).values[0], each.members(both)[0], atol=1e-4)
    pooled = combine.calibrate_ensemble(fit, masked, LABELS, sample_weight=WEIGHT)
    together = pooled(masked).values[0]
    np.testing.assert_allclose(together, alone(LOG_PROBS), atol=1e-4)


@pytest.mark.slow
def test_what_cannot_be_fitted_is_nan_or_refused():
    wrong = LABELS.copy()
    wrong[0], weight = C, np.ones(N, np.float32)
    assert np.isnan(fitted_on(combine.fit_vector_scaling, wrong, weight).bias).all()
    assert np.isnan(fitted_on(combine.fit_platt, wrong, weight).slope).all()
    assert np.isnan(
        fitted_on(combine.fit_isotonic_map, wrong, weight).functions.y
    ).all()
    with pytest.raises(ValueError, match="there must be at least one row"):
        combine.calibrate_ensemble(
            combine.fit_platt, np.zeros((2, 0, 3)), np.zeros(0, int)
        )
    rows = np.arange(N)
    said = Predictions.from_logits(
        jnp.asarray(LOG_PROBS)[None],
        provenance=Provenance.of("wine", rows, trained_on=np.array([7])),
    )
    for calibrate in (combine.calibrate_ensemble, combine.calibrate_each_member):
        with pytest.raises(LeakageError, match="row 7 of 'wine'"):
            calibrate(combine.fit_platt, said, LABELS)
    with pytest.raises(LeakageError, match="row 7 of 'wine'"):
        combine.calibrate_members(said, LABELS)


def fitted_on(fit, labels, weight):
    return jax.jit(fit)(LOG_PROBS, labels, weight)
