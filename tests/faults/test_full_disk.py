"""A disk that fills up stops the run with a line, and costs nothing that was saved."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment.loggers import read_metrics

CONFIG = str(Path(__file__).with_name("small.py")) + ":smoke"
ROOT = str(Path(__file__).parents[2])
ARGUMENTS = ["--workdir", "w", "--config.save_every_steps=4", "--config.width=64"]
pytestmark = pytest.mark.slow


def start(folder, **slowly):
    return subprocess.Popen(
        [sys.executable, "-m", "ensjax.cli", "run", CONFIG, *ARGUMENTS],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT} | slowly,
    )


def limit_files(run, size):
    """From now on no file of the run can grow beyond `size` bytes."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    _, hard = resource.prlimit(int(children[0]), resource.RLIMIT_FSIZE)
    resource.prlimit(int(children[0]), resource.RLIMIT_FSIZE, (size, hard))


def saved_steps(folder):
    names = [path.name for path in (folder / "w/checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run = start(folder)
    _, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    return np.load(folder / "w/weights.npz")


# Metrics are lines of some hundred bytes; the arrays of a checkpoint take more.
@pytest.mark.parametrize("fails, size", [("metrics", 500), ("checkpoint", 20_000)])
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(
    tmp_path, unbroken, fails, size
):
    run = start(tmp_path, SECONDS_PER_LINE="0.5")
    end = time.monotonic() + 120
    while len(saved_steps(tmp_path)) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    limit_files(run, size)
    _, errors = run.communicate(timeout=60)
    *_, last = saved_steps(tmp_path)
    assert run.returncode == 74, errors
    assert errors.splitlines()[-1].startswith(
        "ensjax: the run found no space left (earlier files are whole) (exit code 74);"
        f" last committed step {last} in w; to resume: ensjax run "
    )
    assert errors.count("\n") == 1, errors
    lines = read_metrics(tmp_path / "w/metrics.jsonl")
    assert lines[-1]["step"] >= last  # what could not be written whole is left out
    run = start(tmp_path)
    output, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    assert f"resuming from step {last} of 40" in output and "damaged" not in output
    weights = np.load(tmp_path / "w/weights.npz")
    for name in unbroken.files:
        np.testing.assert_array_equal(weights[name], unbroken[name])
    steps = [line["step"] for line in read_metrics(tmp_path / "w/metrics.jsonl")]
    assert steps == list(range(4, 41, 4))
