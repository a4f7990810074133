"""Sets and intervals are MAPIE's, on the same predictions of the same rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.model_selection import KFold

from ensjax import combine
from ensjax.scores.rows import label_log_probs

pytestmark = pytest.mark.slow
classification = pytest.importorskip("mapie.classification")
regression = pytest.importorskip("mapie.regression")

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(4, 0.7), 300)
LABELS = (RNG.random(300)[:, None] > PROBS.cumsum(axis=1)).sum(axis=1).clip(0, 3)
FIT, NEW = slice(0, 150), slice(150, 300)


class Said(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its probabilities."""

    def __init__(self):
        self.classes_ = np.arange(4)
        self.n_features_in_ = 4

    def fit(self, x, y):
        return self

    def predict(self, x):
        return np.argmax(x, axis=1)

    def predict_proba(self, x):
        return x


class SaidPoint(RegressorMixin, BaseEstimator):
    """A fitted regression whose input is its prediction."""

    n_features_in_ = 1

    def fit(self, x, y):
        self.is_fitted_ = True
        return self

    def predict(self, x):
        return x[:, 0]


def peer_sets(score, alpha, **params):
    peer = classification.SplitConformalClassifier(
        Said().fit(None, None),
        confidence_level=1 - alpha,
        conformity_score=score,
        prefit=True,
        random_state=7,
    )
    peer.conformalize(PROBS[FIT], LABELS[FIT])
    return peer.predict_set(PROBS[NEW], conformity_score_params=params)[1][:, :, 0]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_lac_sets_are_mapies(alpha):
    log_probs = np.log(PROBS)
    sets = combine.fit_conformal_sets(
        combine.LacScore(), log_probs[FIT], LABELS[FIT], alpha=alpha
    )
    np.testing.assert_array_equal(sets(log_probs[NEW]), peer_sets("lac", alpha))


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_random_aps_sets_are_mapies_with_its_random_numbers(alpha):
    score, log_probs = combine.ApsScore(), jnp.log(PROBS)
    # MAPIE takes u off the class's own part where we put it on, and draws both times
    # from the same state.
    u = 1 - np.random.RandomState(7).uniform(size=150)
    scores = label_log_probs(score(log_probs[FIT], u), jnp.asarray(LABELS[FIT]))
    threshold = combine.conformal_quantile(scores, alpha)
    ours = np.asarray(score(log_probs[NEW], u)) <= float(threshold)
    np.testing.assert_array_equal(
        ours, peer_sets("aps", alpha, include_last_label="randomized")
    )


def test_absolute_intervals_are_mapies():
    y = RNG.normal(size=300)
    points = y + RNG.normal(size=300)
    peer = regression.SplitConformalRegressor(
        SaidPoint().fit(None, None), confidence_level=0.9, prefit=True
    )
    peer.conformalize(points[FIT, None], y[FIT])
    theirs = peer.predict_interval(points[NEW, None])[1][:, :, 0]
    ours = combine.fit_conformal_interval(points[FIT], y[FIT], alpha=0.1)(points[NEW])
    np.testing.assert_allclose(np.stack(ours, axis=1), theirs, atol=1e-5)


def test_cv_plus_intervals_are_mapies():
    x = RNG.normal(size=(60, 3))
    y = x @ np.array([1.0, -1.0, 0.5]) + RNG.normal(size=60)
    new = RNG.normal(size=(40, 3))
    folds = list(KFold(5).split(x))
    peer = regression.CrossConformalRegressor(
        LinearRegression(), confidence_level=0.8, method="plus", cv=KFold(5)
    )
    peer.fit_conformalize(x, y)
    theirs = peer.predict_interval(new)[1][:, :, 0]
    fold_of_row, out_of_fold = np.empty(60, int), np.empty(60)
    models = [LinearRegression().fit(x[train], y[train]) for train, _ in folds]
    for fold, (_, test) in enumerate(folds):
        fold_of_row[test] = fold
        out_of_fold[test] = models[fold].predict(x[test])
    ours = combine.fit_cv_plus(out_of_fold, y, fold_of_row)(
        np.stack([model.predict(new) for model in models]), alpha=0.2
    )
    np.testing.assert_allclose(np.stack(ours, axis=1), theirs, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_cv_plus_bands_are_mapies(alpha):
    x = RNG.normal(size=(60, 3))
    y = x @ np.array([1.0, -1.0, 0.5]) + RNG.normal(size=60) * (1 + (x[:, 0] > 0))
    new = RNG.normal(size=(40, 3))
    folds = list(KFold(5).split(x))
    model = QuantileRegressor(alpha=1e-3)
    peer = regression.CrossConformalizedQuantileRegressor(
        model, confidence_level=1 - alpha, method="plus", cv=KFold(5)
    )
    peer.fit_conformalize(x, y)
    theirs = peer.predict_interval(new)[1][:, :, 0]
    fold_of_row, own, said = np.empty(60, int), np.empty((2, 60)), np.empty((2, 5, 40))
    for fold, (train, test) in enumerate(folds):
        fold_of_row[test] = fold
        for end, level in enumerate((alpha / 2, 1 - alpha / 2)):
            fitted = QuantileRegressor(quantile=level, alpha=1e-3).fit(
                x[train], y[train]
            )
            own[end, test], said[end, fold] = (
                fitted.predict(x[test]),
                fitted.predict(new),
            )
    ours = combine.fit_cv_plus_band(*own, y, fold_of_row)(*said, alpha=alpha)
    np.testing.assert_allclose(np.stack(ours, axis=1), theirs, atol=1e-5)
