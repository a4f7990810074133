"""A run that is killed at any moment goes on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

JOB = Path(__file__).with_name("job.py")
ROOT = str(Path(__file__).parents[2])


def start(folder, result, options):
    """The job as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(JOB), str(folder), str(result), options],
        env=os.environ | {"PYTHONPATH": ROOT},
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "errors.txt", "a"),
    )


def committed_steps(checkpoints):
    return {int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal()}


def wait_until(process, condition):
    end = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_with_the_bits_of_the_one_that_was_not(tmp_path, seed):
    draws = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert start(whole, whole / "end.npz", '{"steps": 60}').wait(180) == 0
    checkpoints = broken / "checkpoints"
    kills = ["training", "save", "save", "training"]
    draws.shuffle(kills)
    last, unfinished = 0, 0
    for moment in kills:
        process = start(broken, broken / "end.npz", '{"steps": 60, "seconds": 0.1}')
        # At least one save more than before, so that each of them resumes.
        wait_until(process, lambda: max(committed_steps(checkpoints), default=0) > last)  # noqa: B023
        if moment == "training":
            time.sleep(draws.uniform(0.0, 0.3))
        else:
            wait_until(process, lambda: list(checkpoints.glob("*tmp*")))
            time.sleep(draws.uniform(0.0, 0.01))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        unfinished += len(list(checkpoints.glob("*tmp*")))
        last = max(committed_steps(checkpoints))
        assert last < 60
    assert unfinished  # at least one kill tore a save
    assert start(broken, broken / "end.npz", '{"steps": 60}').wait(180) == 0
    expected, got = np.load(whole / "end.npz"), np.load(broken / "end.npz")
    assert got["resumed_step"] == last > 0 == expected["resumed_step"]
    for name in set(expected.files) - {"resumed_step"}:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
