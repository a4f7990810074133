"""The parent says in one line how a run ended, and passes signals on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ensjax.experiment.supervisor import _heeded, describe_end, last_step

TOY = str(Path(__file__).parent / "toy" / "configs" / "toy.py")
SLOW_RUN = ["run", f"{TOY}:smoke", "--workdir", "w", "--config.seconds_per_step=0.2"]


@pytest.fixture(autouse=True)
def heeded_signals():
    """What runs in the background has these ignored, and so have its children."""
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGHUP)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def start(folder, *arguments):
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "ensjax.cli", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )


def wait_for_step(folder, step):
    end = time.monotonic() + 60
    while f'{{"step": {step},' not in metrics_of(folder):
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.05)


def metrics_of(folder):
    path = folder / "w" / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    "number, code, words",
    [
        pytest.param(
            signal.SIGINT,
            130,
            "the run was interrupted (Ctrl-C)",
            marks=pytest.mark.slow,
        ),
        (signal.SIGTERM, 143, "the run was told to end (SIGTERM)"),
    ],
)
def test_a_signal_ends_the_run_with_the_command_to_resume(
    tmp_path, number, code, words
):
    run = start(tmp_path, *SLOW_RUN)
    wait_for_step(tmp_path, 11)
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == code
    assert errors.count("\n") == 1
    assert f"{words} (exit code {code}); last committed step 10 in w;" in errors
    assert f"to resume: ensjax {' '.join(SLOW_RUN)}" in errors


def test_a_killed_child_is_reported_and_resumed(tmp_path):
    run = start(tmp_path, "run", f"{TOY}:smoke", "--config.fault=kill")
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75
    assert errors.count("\n") == 1
    assert "was killed (SIGKILL" in errors
    assert "last committed step 10 in runs/toy-smoke" in errors


@pytest.mark.slow
def test_a_bug_is_a_traceback_and_the_way_to_go_on(tmp_path):
    run = start(tmp_path, "run", f"{TOY}:smoke", "--config.fault=bug")
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    *_, error, line = errors.splitlines()
    assert error == "KeyError: 'a bug'"
    assert line.startswith("ensjax: the run ended with the error above (exit code 1);")
    assert "last committed step 10 in runs/toy-smoke; to resume: ensjax run" in line
    # Before anything was committed there is nothing to go on from.
    arguments = ("--workdir=w", "--config.save_every_steps=20", "--config.fault=bug")
    run = start(tmp_path, "run", f"{TOY}:smoke", *arguments)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert errors.splitlines()[-1] == "KeyError: 'a bug'"


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_goes_on(tmp_path):
    run = start(tmp_path, *SLOW_RUN, "--config.seconds_per_step=0.01")
    run.stdout.close()
    assert run.wait(60) == 0, run.stderr.read()
    assert (tmp_path / "w/results.json").exists()


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert _heeded(signal.SIGTERM, signal.SIGHUP) == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert _heeded(signal.SIGHUP) == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_the_child_dies_with_its_parent_and_lets_go_of_the_lock(tmp_path):
    run = start(tmp_path, *SLOW_RUN)
    wait_for_step(tmp_path, 3)
    run.kill()
    run.communicate(timeout=30)  # the pipes close when the child is gone as well
    lines = metrics_of(tmp_path)
    time.sleep(0.5)
    assert metrics_of(tmp_path) == lines
    again = start(tmp_path, *SLOW_RUN)
    output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert "resuming w" in output and "finished: w/report.html" in output


def test_exit_codes_are_those_of_the_documentation():
    assert describe_end(0) == (0, None)
    assert describe_end(1) == (1, None)
    assert describe_end(2) == (2, None)
    assert describe_end(3) == (3, None)
    for code, end in [(74, 74), (75, 75), (130, 130), (143, 143), (134, 75)]:
        assert describe_end(code)[0] == end and describe_end(code)[1]
    for number, end in [("INT", 130), ("TERM", 143), ("KILL", 75), ("SEGV", 75)]:
        assert describe_end(-getattr(signal, f"SIG{number}"))[0] == end
    assert "SIGSEGV" in describe_end(-signal.SIGSEGV)[1]


def test_a_peer_is_blamed_only_where_one_is_known_to_be_lost():
    code, reason = describe_end(-signal.SIGABRT, has_lost_peer=True)
    assert code == 75 and reason.startswith("ended because it lost a peer")
    assert "peer" not in describe_end(-signal.SIGABRT)[1]


def test_the_last_step_is_read_from_checkpoints_then_metrics(tmp_path):
    path = str(tmp_path)
    assert last_step(path + "/nothing") == "nothing committed yet"
    assert last_step(path) == "nothing committed yet"
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "a": 1}\n{"step": 9, "a"')
    assert last_step(path) == "no checkpoint, last logged step 9"
    for step in ("5", "20", "100.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    assert last_step(path) == "last committed step 20"
    phase = tmp_path / "checkpoints" / "single" / "15"
    phase.mkdir(parents=True)
    os.utime(phase, (time.time() + 9, time.time() + 9))
    assert last_step(path) == "last committed step 15"  # the fit that is going on
