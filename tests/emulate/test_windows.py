"""Windows of runs, and members that each have data of their own."""

import numpy as np
import pytest

from ensjax.emulate.windows import OwnTask, windows
from ensjax.train import NoiseCrps, RolloutLoss, Stage, train_curriculum


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


def test_what_the_loss_says_of_itself_is_said_of_its_tasks():
    """A curriculum of such losses is checked before its first stage is trained."""
    data = np.zeros((4, 2, 3, 5, 1), np.float32)  # [window, task, time, site, 1]
    short, long = (OwnTask(RolloutLoss(steps, NoiseCrps(2))) for steps in (2, 3))
    assert (short.num_steps, long.num_steps) == (2, 3)
    assert short.takes_missing is True
    short.check(data)
    # The first axis of a window would be the task's without `OwnTask`.
    with pytest.raises(ValueError, match="of 3 steps needs windows of 4 times"):
        long.check(data)
    with pytest.raises(ValueError, match=r"batch\['x'\] must be \[batch, task, ...\]"):
        short.check({"x": np.zeros(4)})
    OwnTask(lambda model, batch, key, weight: 0.0).check(data)
    assert not hasattr(OwnTask(None), "num_steps")
    stages = [Stage(1, 1e-3, short), Stage(1, 1e-3, long)]
    with pytest.raises(ValueError, match="stage 1: .*needs windows of 4 times"):
        train_curriculum(None, data, stages, batch_size=2)
