"""SIGTERM while training saves the step that is reached, and the command resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment.loggers import read_metrics

pytestmark = pytest.mark.slow

CONFIG = str(Path(__file__).with_name("small.py")) + ":smoke"
ROOT = str(Path(__file__).parents[2])
TIMES = ("steps_per_second", "compile_seconds", "goodput", "chip_hours")
BY_CALL = ("member_ids",)  # the first line of every start says whose its columns are


def start(folder, **slowly):
    return subprocess.Popen(
        [sys.executable, "-m", "ensjax.cli", "run", CONFIG, "--workdir", "w"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT} | slowly,
        start_new_session=True,
    )


def wait_for_step(folder, step):
    end, path = time.monotonic() + 120, folder / "metrics.jsonl"
    while not (path.exists() and f'{{"step": {step},' in path.read_text()):
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.02)


def lines(folder):
    """What was logged, without what is never the same."""
    return [
        {name: value for name, value in line.items() if name not in TIMES + BY_CALL}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def saved_steps(folder):
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def assert_same_run(a, b):
    """The same lines and the same weights, bit for bit."""
    assert repr(lines(a)) == repr(lines(b))  # as NaN is not NaN
    a, b = np.load(a / "weights.npz"), np.load(b / "weights.npz")
    assert len(a.files) == 4
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run = start(folder)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    return folder / "w"


def test_sigterm_saves_between_two_saves_and_nothing_of_the_run_changes(
    unbroken, tmp_path
):
    run = start(tmp_path, SECONDS_PER_LINE="0.4")
    wait_for_step(tmp_path / "w", 8)  # the next save is due at 20
    os.killpg(run.pid, signal.SIGTERM)  # the child as well, as a batch system does
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 85
    *_, step = saved_steps(tmp_path / "w")
    assert 8 <= step < 20
    assert output.splitlines()[-1] == f"told to end; step {step} is saved"
    assert errors.count("\n") == 1
    assert errors.startswith(
        "ensjax: the run was told to end (SIGTERM) and saved first (exit code 85);"
        f" last committed step {step} in w; to resume: ensjax run "
    )
    run = start(tmp_path)
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert f"resuming from step {step} of 40" in output
    assert_same_run(tmp_path / "w", unbroken)


def test_sigterm_while_scoring_ends_the_run_as_it_is(tmp_path):
    run = start(tmp_path, SECONDS_OF_SCORING="60")
    while run.stdout.readline() != "scoring\n":
        assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 143
    assert "was told to end (SIGTERM) (exit code 143)" in errors
    assert "last committed step 40 in w" in errors


def test_a_second_sigterm_ends_at_once(tmp_path):
    run = start(tmp_path, SECONDS_PER_LINE="30")
    while not run.stdout.readline().startswith("step 4/40"):
        assert run.poll() is None  # the line is printed, and logged 30 s later
    run.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert run.poll() is None  # it waits for the line, to save
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert run.returncode == 143
    assert "told to end (SIGTERM) (exit code 143); nothing committed yet" in errors
