"""Out-of-fold predictions: no row is predicted by a model that has seen it."""

import numpy as np
import pytest

from ensjax import combine, data
from ensjax.provenance import LeakageError, check_fitting_rows


class Memory:
    """Remembers its rows; predicts two levels: how many it saw, and whether this."""

    def fit(self, x, y):
        assert (y == 10 * x[:, 0]).all()
        seen = set(x[:, 0].tolist())

        def predict(new_x):
            return np.array([[len(seen), row in seen] for row in new_x[:, 0].tolist()])

        return predict


ROWS = np.arange(100, 113)
X = ROWS[:, None].astype(float)
FOLDS = combine.fold_of_rows(data.k_folds(13, 5, seed=1))


def test_no_row_is_predicted_by_a_model_that_has_seen_it():
    fits = {"a": Memory().fit, "b": Memory().fit}
    held_out = combine.fit_out_of_fold(
        fits, X, 10 * X[:, 0], FOLDS, source="numbers", rows=ROWS
    )
    assert held_out.values.shape == (2, 13, 2) and held_out.names == ("a", "b")
    assert not held_out.values[:, :, 1].any()
    expected = 13 - np.bincount(FOLDS)[FOLDS]
    np.testing.assert_array_equal(held_out.values[0, :, 0], expected)
    check_fitting_rows("weights", held_out.provenance)  # may be fitted on


def test_models_of_all_rows_say_which_rows_they_have_seen():
    new = {"validation": np.array([112, 200]), "test": np.array([201])}
    found = combine.fit_and_predict(
        {"a": Memory().fit},
        X,
        10 * X[:, 0],
        {part: ids[:, None].astype(float) for part, ids in new.items()},
        source="numbers",
        rows=ROWS,
        new_rows=new,
    )
    assert found["validation"].values[0].tolist() == [[13, 1], [13, 0]]
    assert found["test"].values[0].tolist() == [[13, 0]]
    with pytest.raises(LeakageError, match="row 112"):
        check_fitting_rows("weights", found["validation"].provenance)
    with pytest.raises(LeakageError, match="test rows only test"):
        check_fitting_rows("weights", found["test"].provenance)


def test_models_must_agree_in_shape():
    def fit(x, y):
        return lambda new_x: np.zeros((len(new_x), 3))

    with pytest.raises(ValueError, match="b must predict"):
        combine.fit_out_of_fold(
            {"a": Memory().fit, "b": fit}, X, 10 * X[:, 0], FOLDS, source="n", rows=ROWS
        )
    with pytest.raises(ValueError, match="x 13, y 12, folds 13, rows 13 rows"):
        combine.fit_out_of_fold({"a": fit}, X, X[1:, 0], FOLDS, source="n", rows=ROWS)


def test_models_that_predict_quantiles_give_predictions_of_quantiles():
    def fit(x, y):
        return lambda new_x: np.tile(np.quantile(y, [0.2, 0.8]), (len(new_x), 1))

    about = dict(levels=(0.2, 0.8), source="numbers", rows=ROWS)
    held_out = combine.fit_out_of_fold({"a": fit}, X, X[:, 0], FOLDS, **about)
    assert held_out.kind == "quantiles" and held_out.levels == (0.2, 0.8)
    for row, fold in enumerate(FOLDS):
        expected = np.quantile(X[fold != FOLDS, 0], [0.2, 0.8])
        np.testing.assert_allclose(held_out.values[0, row], expected, rtol=1e-6)
    new = combine.fit_and_predict(
        {"a": fit}, X, X[:, 0], {"test": X[:2]}, new_rows={"test": ROWS[:2]}, **about
    )
    assert new["test"].kind == "quantiles"
