"""Out-of-fold predictions: no row is predicted by a model that has seen it."""

import numpy as np
import pytest

from ensjax import combine
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


def test_no_row_is_predicted_by_a_model_that_has_seen_it():
    fits = {"a": Memory().fit, "b": Memory().fit}
    held_out = combine.fit_out_of_fold(
        fits, X, 10 * X[:, 0], num_folds=5, seed=1, source="numbers", rows=ROWS
    )
    assert held_out.values.shape == (2, 13, 2) and held_out.names == ("a", "b")
    assert not held_out.values[:, :, 1].any()
    sizes = np.bincount(held_out.fold)
    assert sizes.tolist() == [3, 3, 3, 2, 2]
    expected = 13 - sizes[held_out.fold]
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
            {"a": Memory().fit, "b": fit}, X, 10 * X[:, 0], source="n", rows=ROWS
        )
