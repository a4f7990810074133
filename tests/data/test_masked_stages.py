"""Stages fitted by masks are scikit-learn's fitted on the training rows."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensjax import data

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
X = RNG.normal(100.0, 1.0, (60, 12)) + LABELS[:, None] * RNG.normal(size=12)
X[:, 7] = 3.0  # constant: no F
FOLDS = data.make_folds("toy", 60, 4, seed=0, labels=LABELS)


def test_all_folds_in_one_program_are_scikit_learn_in_each():
    x = X.copy()
    x[RNG.random(x.shape) < 0.1] = np.nan
    x[:, 7] = 3.0
    stages = (
        data.ImputeMean(),
        data.SelectByF(5, num_classes=3),
        data.Standardize(),
        data.PrincipalComponents(3),
    )
    ours = data.fit_masked_stages(stages, x, LABELS, FOLDS).transform(x)
    for split, transformed in zip(FOLDS, ours):
        peer = make_pipeline(
            SimpleImputer(), SelectKBest(k=5), StandardScaler(), PCA(3)
        )
        train = split["train"]
        with np.errstate(all="ignore"):
            peer.fit(x[train], LABELS[train])
        theirs = peer.transform(x)
        signs = np.sign((theirs * transformed).sum(axis=0))
        np.testing.assert_allclose(transformed, theirs * signs, atol=2e-3)


def test_f_is_that_of_scikit_learn_and_nan_for_constants():
    weight = FOLDS.split(0).mask("train")
    ours = np.asarray(data.f_scores(X, LABELS, weight, 3))
    with np.errstate(all="ignore"):
        theirs = f_classif(X[weight], LABELS[weight])[0]
    np.testing.assert_allclose(np.delete(ours, 7), np.delete(theirs, 7), rtol=1e-3)
    chosen = data.SelectByF(12, num_classes=3).fit(X, LABELS, weight)["columns"]
    others = np.delete(np.arange(12), 7)
    best_first = others[np.argsort(-theirs[others])]
    assert chosen.tolist() == [*best_first, 7]


def test_rows_that_are_not_trained_on_leave_no_trace():
    stages = (data.SelectByF(4, num_classes=3), data.Standardize())
    split = FOLDS.split(1)
    spoiled = X.copy()
    spoiled[split["test"]] = np.nan
    clean = data.fit_masked_stages(stages, X, LABELS, [split]).fitted
    dirty = data.fit_masked_stages(stages, spoiled, LABELS, [split]).fitted
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_labels_that_are_no_class_are_refused_and_not_counted_as_another():
    # With a clamp three classes are judged as two.
    with pytest.raises(ValueError, match=r"from 0 to 1, with num_classes=2; got \[2\]"):
        data.fit_masked_stages((data.SelectByF(3, 2),), X, LABELS, FOLDS)
    unknown = np.where(np.arange(60) == 7, -1, LABELS)
    with pytest.raises(ValueError, match=r"got \[-1\], first in row 7"):
        data.f_scores(X, unknown, np.ones(60), 3)
    with pytest.raises(TypeError, match="num_classes"):
        data.SelectByF(3)
    # Of a row that is not trained on nothing is asked.
    rest = np.arange(60) != 7
    found = data.f_scores(X, unknown, rest, 3)
    np.testing.assert_allclose(found, data.f_scores(X, LABELS, rest, 3))
    compiled = jax.jit(data.f_scores, static_argnums=3)(X, unknown, np.ones(60), 3)
    assert np.isnan(compiled).all()


def test_the_best_features_of_wine_are_those_of_scikit_learn():
    x, labels = load_wine(return_X_y=True)
    folds = data.make_folds("wine", len(labels), 2, seed=0, labels=labels)
    stages = (data.SelectByF(3, num_classes=3),)
    fitted = data.fit_masked_stages(stages, x, labels, folds).fitted[0]
    for split, columns in zip(folds, fitted["columns"]):
        train = split["train"]
        best = np.argsort(-f_classif(x[train], labels[train])[0])[:3]
        np.testing.assert_array_equal(columns, best)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one split"):
        data.fit_masked_stages((), X, LABELS, [])
    with pytest.raises(ValueError, match="the splits' 60 rows"):
        data.fit_masked_stages((), X[:50], LABELS, FOLDS)
