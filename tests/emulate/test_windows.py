"""Windows of runs, and members that each have data of their own."""

import numpy as np
import pytest

from ensjax.emulate.windows import OwnTask, windows


def test_windows_are_slices_of_single_runs():
    runs = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    found = windows(runs, 3, stride=2)
    expected = [runs[r, t : t + 3] for r in range(2) for t in (0, 2)]
    np.testing.assert_array_equal(found, expected)
    found[:] = 0  # a copy
    assert runs.any()


@pytest.mark.parametrize("length, stride", [(6, 1), (0, 1), (2, 0)])
def test_what_does_not_fit_is_refused(length, stride):
    with pytest.raises(ValueError, match="length|runs"):
        windows(np.zeros((2, 5)), length, stride=stride)


def test_each_member_sees_its_own_task():
    loss = OwnTask(lambda model, batch, key, weight: batch["x"].sum() + model)
    batch = {"x": np.arange(6.0).reshape(2, 3)}  # [batch, task]
    found = [loss(10.0, batch, None, hyper={"task": i}) for i in range(3)]
    assert found == [13.0, 15.0, 17.0]
    assert loss.axis is None
