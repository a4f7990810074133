"""Out-of-fold rows: no member saw them, and sample weights reach every fold's fit."""

import jax
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

import ensjax
from ensjax import combine, data, nn
from ensjax.provenance import LeakageError

FOLDS = np.array([0, 1, 2, 0, 1, 2, 0])


def test_members_of_a_fold_never_draw_the_rows_that_it_holds_out():
    weight = np.arange(7.0)
    weights = combine.fold_weights(FOLDS, 2, sample_weight=weight)
    assert weights.shape == (6, 7)
    for k in range(3):
        expected = np.where(k == FOLDS, 0, weight)
        np.testing.assert_array_equal(weights[2 * k], expected)
        np.testing.assert_array_equal(weights[2 * k + 1], expected)


def test_each_row_is_predicted_by_the_members_of_its_own_fold():
    outputs = np.random.default_rng(0).normal(size=(6, 7, 2)).astype(np.float32)
    weights = combine.fold_weights(FOLDS, 2)
    found = combine.out_of_fold(outputs, FOLDS, weights=weights, source="toy")
    assert found.provenance.part == "out-of-fold"
    for n, fold in enumerate(FOLDS):
        for m in range(2):
            np.testing.assert_array_equal(found.values[m, n], outputs[2 * fold + m, n])
    assert not found.provenance.seen.any()
    jax.eval_shape(combine.fit_stacking, found, np.arange(7) % 2)
    # Folds that are not those of the training are found out.
    mixed = combine.out_of_fold(outputs, (FOLDS + 1) % 3, weights=weights, source="toy")
    with pytest.raises(LeakageError, match="'member 0' .and 1 more members. was train"):
        combine.fit_stacking(mixed, np.arange(7) % 2)


@pytest.mark.slow
def test_neural_members_of_all_folds_train_in_one_fit_as_if_rows_were_not_there():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    folds = combine.fold_of_rows(data.k_folds(30, 3, seed=0))
    weights = combine.fold_weights(folds, 2)

    def train(x):
        ensemble = ensjax.Ensemble.init(
            lambda rngs: nn.MLP(in_features=4, hidden=(8,), num_outputs=2, rngs=rngs),
            num_members=6,
        )
        ensemble, _ = ensjax.fit(
            ensemble,
            (x, y),
            loss=ensjax.losses.cross_entropy,
            make_tx=optax.adam,
            hyper=1e-2,
            steps=10,
            batch_size=8,
            sampling="weighted",
            weights=weights,
            progress=False,
        )
        return ensemble

    clean = train(x)
    spoilt = x.copy()
    spoilt[folds == 1] += 5
    other = train(spoilt)
    a, b = (np.asarray(ensjax.predict(e, x)) for e in (clean, other))
    np.testing.assert_array_equal(a[2:4], b[2:4])  # fold 1 never saw them
    assert not np.array_equal(a[:2], b[:2])


def test_estimators_equal_cross_val_predict_and_get_their_sample_weights():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    weight = rng.uniform(0.1, 5, 60)
    splits = data.k_folds(60, 4, seed=0, labels=y)
    folds = combine.fold_of_rows(splits)
    member = LogisticRegression()
    found = combine.estimator_out_of_fold([member], x, y, folds)
    expected = cross_val_predict(member, x, y, cv=splits, method="predict_proba")
    np.testing.assert_allclose(found[0], expected)
    weighted = combine.estimator_out_of_fold(
        [member], x, y, folds, sample_weight=weight
    )
    for train, test in splits:
        fitted = LogisticRegression().fit(x[train], y[train], weight[train])
        np.testing.assert_allclose(weighted[0, test], fitted.predict_proba(x[test]))
    assert np.abs(weighted - found).max() > 0.01
    assert not hasattr(member, "coef_")  # clones were fitted
    # An estimator without weights says so: they are not dropped.
    with pytest.raises(TypeError, match="sample_weight"):
        combine.estimator_out_of_fold(
            [KNeighborsClassifier()], x, y, folds, sample_weight=weight
        )


def test_a_class_that_a_fold_lacks_has_probability_zero_there():
    x, y = np.arange(8.0)[:, None], np.array([0, 1, 0, 1, 0, 1, 2, 2])
    folds = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    found = combine.estimator_out_of_fold([KNeighborsClassifier(1)], x, y, folds)
    assert found.shape == (1, 8, 3)
    assert (found[0, 5:, 2] == 0).all()
    with pytest.raises(ValueError, match="fold 0 lacks a class"):
        combine.estimator_out_of_fold(
            [LogisticRegression()], x, y, folds, method="decision_function"
        )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least two folds"):
        combine.fold_weights(np.array([0, 2, 2]), 1)
    with pytest.raises(ValueError, match="folds must be integers"):
        combine.fold_weights(np.array([0.0, 1.0]), 1)
    with pytest.raises(ValueError, match="not negative"):
        combine.fold_weights(FOLDS, 1, sample_weight=-np.ones(7))
    with pytest.raises(ValueError, match="of 3 folds and 7 rows"):
        combine.out_of_fold(np.zeros((4, 7, 2)), FOLDS)
    with pytest.raises(ValueError, match="every row from 0 on once"):
        combine.fold_of_rows([([0, 1], [2]), ([0, 2], [1])])
    masks = np.array([[True], [False]])  # read as numbers, the rows 1 and 0
    with pytest.raises(TypeError, match="test rows of split 0 .* got a mask"):
        combine.fold_of_rows([(~mask, mask) for mask in masks])


def test_points_of_folds_are_taken_from_the_fold_that_held_the_row_out():
    folds = np.array([0, 1, 0])
    outputs = np.arange(12, dtype=np.float32).reshape(4, 3)  # two folds of two members
    found = combine.out_of_fold(outputs, folds)
    np.testing.assert_array_equal(found.points, [[0, 7, 2], [3, 10, 5]])
    assert not found.provenance.seen.any()
    with pytest.raises(TypeError, match="must be logits or points"):
        combine.out_of_fold(outputs.astype(int), folds)
