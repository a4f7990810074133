"""What is fitted inside splits has seen their training rows and nothing else."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ensjax import data
from ensjax.provenance import LeakageError, check_fitting_rows

RNG = np.random.default_rng(0)
Y = np.arange(40) % 2
X = RNG.normal(size=(40, 5))
FOLDS = data.make_folds("toy", 40, 4, seed=0, labels=Y)


class Spy(TransformerMixin, BaseEstimator):
    """Remembers the rows it was fitted on by their first column."""

    def fit(self, x, y):
        self.seen_ = x[:, 0].copy()
        return self

    def transform(self, x):
        return x


class Doubling(BaseEstimator):
    """A sampler: every row of class 1 twice."""

    def fit_resample(self, x, y):
        rows = np.concatenate([np.arange(len(y)), np.flatnonzero(y == 1)])
        return x[rows], y[rows]


def test_stages_see_the_training_rows_of_their_split():
    fitted = data.fit_in_splits([Doubling(), Spy(), LogisticRegression()], X, Y, FOLDS)
    for pipeline, split in zip(fitted, FOLDS):
        (spy,) = pipeline.transforms
        train = X[split["train"], 0]
        assert set(spy.seen_) == set(train)
        assert len(spy.seen_) == 30 + 15
        assert pipeline.predict_proba(X[split["test"]]).shape == (10, 2)
        assert set(pipeline.predict(X)) <= {0, 1}


def test_a_stage_that_was_fitted_elsewhere_forgets_it():
    scaler = StandardScaler().fit(X + 1000)
    (pipeline,) = data.fit_in_splits([scaler], X, Y, [FOLDS.split(0)])
    train = X[FOLDS.split(0)["train"]]
    np.testing.assert_allclose(pipeline.transform(train).mean(axis=0), 0, atol=1e-12)
    with pytest.raises(TypeError, match="only transforms"):
        pipeline.predict(X)


def test_out_of_fold_probabilities_have_seen_none_of_their_rows():
    fitted = data.fit_in_splits([LogisticRegression()], X, Y, FOLDS)
    probs, provenance = data.predict_held_out(fitted, X)
    assert (provenance.rows == np.arange(40)).all() and not provenance.seen.any()
    for pipeline, split in zip(fitted, FOLDS):
        rows = split["test"]
        np.testing.assert_array_equal(probs[rows], pipeline.predict_proba(X[rows]))
    check_fitting_rows("the stack", provenance.take(np.arange(40), part="oof"))
    seen = data.predict_held_out(fitted[:1], X, part="train")[1]
    with pytest.raises(LeakageError, match="was trained on them"):
        check_fitting_rows("the stack", seen)
    with pytest.raises(ValueError, match="two splits"):
        data.predict_held_out(fitted, X, part="train")


def test_what_is_no_stage_is_refused():
    with pytest.raises(TypeError, match="stage 0, LogisticRegression"):
        data.fit_in_splits([LogisticRegression(), StandardScaler()], X, Y, FOLDS)
    with pytest.raises(ValueError, match="must hold the 40 rows"):
        data.fit_in_splits([StandardScaler()], X[:9], Y[:9], FOLDS)


def canary(num_features, num_kept, seeds):
    """Mean accuracy on noise: selection inside the folds, and on all rows before."""
    inside, outside = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(200, num_features)).astype(np.float32)
        y = np.arange(200) % 2
        folds = data.make_folds("noise", 200, 5, seed=seed, labels=y)
        model = LogisticRegression(max_iter=200)
        stages = [SelectKBest(k=num_kept), model]
        fitted = data.fit_in_splits(stages, x, y, folds)
        probs, _ = data.predict_held_out(fitted, x)
        inside.append((probs.argmax(axis=1) == y).mean())
        leaky = SelectKBest(k=num_kept).fit_transform(x, y)
        fitted = data.fit_in_splits([model], leaky, y, folds)
        probs, _ = data.predict_held_out(fitted, leaky)
        outside.append((probs.argmax(axis=1) == y).mean())
    return np.array(inside), np.array(outside)


def test_noise_stays_noise_in_the_pipeline_and_shines_when_selected_before():
    inside, outside = canary(2000, 60, range(1))
    # 200 predictions of fair coins: 0.5 +- 0.106 is three standard errors.
    assert abs(inside.mean() - 0.5) < 0.106
    assert outside.mean() > 0.75


@pytest.mark.slow
def test_the_leak_canary_of_200_rows_and_5000_features():
    inside, outside = canary(5000, 100, range(10))
    assert abs(inside.mean() - 0.5) <= 0.06
    assert outside.mean() > 0.85


def test_held_out_probabilities_stand_in_the_columns_of_their_classes():
    # Group a has the classes 0 and 1, group b 1 and 2.
    y = np.array([0, 1] * 10 + [1, 2] * 10)
    x = RNG.normal(size=(40, 2)) + 5 * np.eye(3)[y][:, :2]
    groups = np.repeat(["a", "b"], 20)
    splits = data.leave_one_group_out("groups", groups)
    fitted = data.fit_in_splits([LogisticRegression()], x, y, splits)
    probs, provenance = data.predict_held_out(fitted, x)
    assert probs.shape == (40, 3) and (provenance.rows == np.arange(40)).all()
    np.testing.assert_array_equal(probs[:20, 0], 0)  # by one that knows 1 and 2
    np.testing.assert_array_equal(probs[20:, 2], 0)
    for pipeline in fitted:
        rows, classes = pipeline.split["test"], pipeline.estimator.classes_
        np.testing.assert_array_equal(
            probs[rows][:, classes], pipeline.predict_proba(x[rows])
        )
