"""Sets and intervals are MAPIE's, on the same predictions of the same rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LinearRegression, QuantileRegressor
from sklearn.model_selection import KFold, StratifiedShuffleSplit

from ensjax import combine
from ensjax.scores.rows import label_log_probs

pytestmark = pytest.mark.slow
classification = pytest.importorskip("mapie.classification")
regression = pytest.importorskip("mapie.regression")
Subsample = pytest.importorskip("mapie.subsample").Subsample

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(4, 0.7), 300)
LABELS = (RNG.random(300)[:, None] > PROBS.cumsum(axis=1)).sum(axis=1).clip(0, 3)
FIT, NEW = slice(0, 150), slice(150, 300)


class Said(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its probabilities."""

    def __init__(self, num_classes=4):
        self.num_classes = num_classes
        self.classes_ = np.arange(num_classes)
        self.n_features_in_ = num_classes

    def fit(self, x, y):
        return self

    def predict(self, x):
        return np.argmax(x, axis=1)

    def predict_proba(self, x):
        return x


class SaidPoint(RegressorMixin, BaseEstimator):
    """A fitted regression, one column of whose input is its prediction."""

    def __init__(self, column=0, num_columns=1):
        self.column, self.num_columns = column, num_columns
        self.n_features_in_ = num_columns

    def fit(self, x, y):
        self.is_fitted_ = True
        return self

    def predict(self, x):
        return x[:, self.column]


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


def peer_raps(probs, labels, alpha, state, include_last_label):
    """MAPIE's sets of the last 150 rows, with the penalty and rank that it chose."""
    peer = classification.SplitConformalClassifier(
        Said(probs.shape[1]).fit(None, None),
        confidence_level=1 - alpha,
        conformity_score="raps",
        prefit=True,
        random_state=state,
    )
    peer.conformalize(probs[FIT], labels[FIT])
    options = {"include_last_label": include_last_label}
    sets = peer.predict_set(probs[NEW], conformity_score_params=options)[1][:, :, 0]
    chosen = peer._mapie_classifier.conformity_score_function_
    rank = int(np.ravel(chosen.k_star)[0])
    return sets, combine.RapsScore(float(chosen.lambda_star), rank)


def raps_loop(probs, u, penalty, free_rank):
    """Equation 4 of arXiv:2009.14193, a row and a class at a time, in float64."""
    found = np.empty_like(probs)
    for row, part, out in zip(probs, u, found):
        total = 0.0
        for rank, label in enumerate(np.argsort(-row, kind="stable"), start=1):
            out[label] = total + part * row[label] + penalty * max(rank - free_rank, 0)
            total += row[label]
    return found


def many_classes():
    """Probabilities `[300, 12]` from sure to flat, so that sets pass the free rank."""
    rng = np.random.default_rng(0)
    sharp = 10 ** rng.uniform(-1, 1.5, (300, 1)) * np.ones(12)
    probs = np.stack([rng.dirichlet(row) for row in sharp])
    return probs, np.array([rng.choice(12, p=row) for row in probs])


@pytest.mark.parametrize("alpha, state", [(0.5, 7), (0.5, 0), (0.15, 5)])
def test_raps_sets_are_mapies_with_its_penalty_and_random_numbers(alpha, state):
    probs, labels = many_classes()
    # A tenth of its rows only chooses penalty and rank.
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=state)
    fit, _ = next(split.split(probs[FIT], labels[FIT]))
    fit_probs, fit_labels = probs[FIT][fit], labels[FIT][fit]
    u, new_u = (
        1 - np.random.RandomState(state).uniform(size=n) for n in (len(fit), 150)
    )
    theirs, score = peer_raps(probs, labels, alpha, state, "randomized")
    own = label_log_probs(score(np.log(fit_probs), u), fit_labels)
    threshold = float(combine.conformal_quantile(own, alpha))
    ours = np.asarray(score(np.log(probs[NEW]), new_u)) <= threshold

    settings = score.penalty, score.free_rank
    expected = raps_loop(fit_probs, u, *settings)[np.arange(len(fit)), fit_labels]
    limit = np.sort(expected)[int(np.ceil((len(fit) + 1) * (1 - alpha))) - 1]
    np.testing.assert_array_equal(
        ours, raps_loop(probs[NEW], new_u, *settings) <= limit
    )
    # The last class stays if (total + penalty - threshold) / width <= u. The width is
    # its probability in the paper; MAPIE takes off the penalty of the rank before it.
    # So sets are the same unless the last rank is free_rank + 2 or more, and there
    # they differ by that one class at most.
    total = raps_loop(probs[NEW], np.ones(150), *settings)
    last = 1 + (total < limit).sum(axis=1)
    ranks = 1 + np.argsort(np.argsort(-probs[NEW], axis=1), axis=1)
    may_differ = (last >= score.free_rank + 2)[:, None] & (ranks == last[:, None])
    np.testing.assert_array_equal(ours[~may_differ], theirs[~may_differ])
    assert may_differ.any() == (state != 7)

    # Without the draw MAPIE still draws for the threshold, and empty sets get a class.
    theirs, again = peer_raps(probs, labels, alpha, state, False)
    assert again == score
    ours = np.asarray(score(np.log(probs[NEW]), None)) <= threshold
    is_empty = ~ours.any(axis=1)
    ours[is_empty] = ranks[is_empty] == 1
    np.testing.assert_array_equal(ours, theirs)


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


# Ends are moved outwards, and inwards, where some cross.
@pytest.mark.parametrize("alpha, width", [(0.1, 0.4), (0.3, 0.4), (0.3, 3.0)])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_bands_are_mapies(alpha, width, is_symmetric):
    rng = np.random.default_rng(1)
    y = rng.normal(size=300)
    points = y + rng.normal(size=300)
    spread = width * rng.uniform(0.2, 1.0, size=300)
    said = np.stack([points - spread, points + 1.5 * spread, points], axis=1)
    peer = regression.ConformalizedQuantileRegressor(
        [SaidPoint(column, 3).fit(None, None) for column in range(3)],
        confidence_level=1 - alpha,
        prefit=True,
    )
    peer.conformalize(said[FIT], y[FIT])
    theirs = peer.predict_interval(said[NEW], symmetric_correction=is_symmetric)
    theirs = theirs[1][:, :, 0]
    fit = combine.fit_conformal_band if is_symmetric else combine.fit_asymmetric_band
    band = fit(said[FIT, 0], said[FIT, 1], y[FIT], alpha=alpha)
    ours = np.stack(band(said[NEW, 0], said[NEW, 1]), axis=1)
    assert (float(band.below) < 0) == (width == 3.0)
    # MAPIE leaves ends crossed that were moved past each other, and warns.
    np.testing.assert_allclose(ours, np.sort(theirs, axis=1), atol=1e-5)
    assert (theirs[:, 0] > theirs[:, 1]).any() == (width == 3.0)


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_jackknife_after_bootstrap_intervals_are_mapies(alpha):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3))
    y = x @ np.array([1.0, -1.0, 0.5]) + rng.normal(size=60)
    new = rng.normal(size=(40, 3))
    draws = Subsample(n_resamplings=25, random_state=3)
    peer = regression.JackknifeAfterBootstrapRegressor(
        LinearRegression(), confidence_level=1 - alpha, resampling=draws
    )
    peer.fit_conformalize(x, y)
    theirs = peer.predict_interval(new)[1][:, :, 0]
    drawn = [rows for rows, _ in draws.split(x)]
    members = [LinearRegression().fit(x[rows], y[rows]) for rows in drawn]
    inbag = np.stack([np.bincount(rows, minlength=60) for rows in drawn])
    assert (inbag == 0).any(axis=0).all()
    fitted = combine.fit_jackknife_after_bootstrap(
        np.stack([member.predict(x) for member in members]), inbag, y
    )
    ours = fitted(np.stack([member.predict(new) for member in members]), alpha=alpha)
    np.testing.assert_allclose(np.stack(ours, axis=1), theirs, atol=1e-5)
    np.testing.assert_allclose(fitted.errors, np.abs(peer.conformity_scores), atol=1e-5)
