"""Counts above thresholds: strict, exact, one threshold for all or each its own."""

import numpy as np
import pytest

from ensjax.mesh import make_mesh
from ensjax.reduce import (
    finish_exceedances,
    init_exceedances,
    reduce_exceedances,
    update_exceedances,
)

X = np.array([[1, 5], [2, 5], [3, 7], [4, 8]], np.float32)


def test_members_strictly_above_shared_thresholds():
    state = update_exceedances(init_exceedances(X[0], [2.0, 5.0, 7.5]), X)
    np.testing.assert_array_equal(state.above, [[2, 4], [0, 2], [0, 1]])
    np.testing.assert_array_equal(
        finish_exceedances(state), [[0.5, 1], [0, 0.5], [0, 0.25]]
    )


def test_every_element_may_have_its_own_thresholds():
    thresholds = {"t": np.array([[2.0, 7.0], [0.0, 0.0]], np.float32), "u": [1.5]}
    thresholds["u"] = np.asarray(thresholds["u"], np.float32)
    x = {"t": X, "u": X[:, 0].astype(np.int32)}
    state = reduce_exceedances(x, thresholds, mesh=make_mesh(member=2))
    np.testing.assert_array_equal(state.above["t"], [[2, 1], [4, 4]])
    np.testing.assert_array_equal(state.above["u"], [3])


def test_one_array_of_thresholds_serves_every_leaf():
    x = {"t": X, "u": X[:, :1, None]}
    state = reduce_exceedances(x, [2.0], mesh=make_mesh(member=1))
    np.testing.assert_array_equal(state.above["t"], [[2, 4]])
    np.testing.assert_array_equal(state.above["u"], [[[2]]])


def test_thresholds_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"thresholds must be .*\(2,\).*got \(3, 5\)"):
        init_exceedances(X[0], np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"thresholds\['u'\] must be .*got none"):
        init_exceedances({"t": X[0], "u": X[0]}, {"t": np.zeros((1, 2))})
    with pytest.raises(ValueError, match=r"thresholds\['v'\] belongs to no values"):
        init_exceedances({"t": X[0]}, {"t": np.zeros((1, 2)), "v": np.zeros((1, 2))})
