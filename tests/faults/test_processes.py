"""Two and four real processes: the run of one process, whatever befalls them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment.loggers import read_metrics

CONFIG = str(Path(__file__).with_name("small.py")) + ":smoke"
ROOT = str(Path(__file__).parents[2])
pytestmark = pytest.mark.slow


class Job:
    """One `ensjax run` as several processes of a device each, in the folder `w`."""

    def __init__(self, folder, count, *arguments, seconds_per_line=0.0):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.folder = folder
        environ = os.environ | {"PYTHONPATH": ROOT, "JAX_NUM_CPU_DEVICES": "1"}
        environ["SECONDS_PER_LINE"] = str(seconds_per_line)
        # Files, not pipes: a full pipe would stop the other processes.
        self.logs = [folder / f"errors-{index}.txt" for index in range(count)]
        self.output = folder / "output.txt"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "ensjax.cli", "run", CONFIG, "--workdir", "w"]
                + [*arguments, f"--coordinator=localhost:{port}"]
                + [f"--num_processes={count}", f"--process_id={index}"],
                cwd=folder,
                stdout=open(self.output, "w") if index == 0 else subprocess.DEVNULL,  # noqa: SIM115
                stderr=open(self.logs[index], "w"),  # noqa: SIM115
                env=environ,
            )
            for index in range(count)
        ]

    def wait(self, timeout):
        end = time.monotonic() + timeout
        try:
            codes = [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()  # whose child ends with it
        return codes, [log.read_text() for log in self.logs]

    def wait_for_step(self, step):
        end, path = time.monotonic() + 180, self.folder / "w/metrics.jsonl"
        while not (path.exists() and f'{{"step": {step},' in path.read_text()):
            assert time.monotonic() < end, [log.read_text() for log in self.logs]
            time.sleep(0.05)

    def kill_work_of(self, index):
        """Kills the child that does the work, as the kernel does without memory."""
        parent = self.processes[index].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)


def in_one_process(folder, num_devices, *arguments):
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-m", "ensjax.cli", "run", CONFIG, "--workdir", "w"]
        + [f"--devices={num_devices}", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ROOT},
        check=True,
        timeout=180,
        stdout=subprocess.DEVNULL,
    )
    return folder / "w"


def saved_steps(folder):
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def assert_same_run(a, b):
    """The same weights, bit for bit, and the same lines once each."""
    steps = [line["step"] for line in read_metrics(a / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_metrics(b / "metrics.jsonl")]
    assert len(set(steps)) == len(steps) == 10
    a, b = np.load(a / "weights.npz"), np.load(b / "weights.npz")
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


def test_one_of_two_is_told_to_end_and_both_save_the_same_step(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    unbroken = in_one_process(one, 2)
    two.mkdir()
    job = Job(two, 2, seconds_per_line=0.5)
    job.wait_for_step(8)  # saves are due at 20 and 40
    job.processes[1].send_signal(signal.SIGTERM)
    codes, errors = job.wait(timeout=60)
    assert codes == [85, 85], errors
    *_, step = saved_steps(two / "w")
    assert 8 <= step < 40 and step != 20  # wherever the machine was by then
    for index, text in enumerate(errors):
        text = "".join(x for x in text.splitlines(True) if "SIGTERM caught" not in x)
        assert text.startswith(
            f"ensjax: this process ({index} of 2) was told to end (SIGTERM) and saved"
            f" first (exit code 85); last committed step {step} in w; to resume: ensjax"
        ), text
    job = Job(two, 2)
    codes, errors = job.wait(timeout=120)
    assert codes == [0, 0], errors
    assert f"resuming from step {step} of 40" in job.output.read_text()
    assert_same_run(two / "w", unbroken)


def test_what_one_of_two_cannot_read_is_damaged_for_both(tmp_path):
    # Wide enough for chunks of their own: small ones lie in what both read.
    arguments = ("--config.save_every_steps=4", "--config.width=64")
    job = Job(tmp_path, 2, *arguments, seconds_per_line=0.5)
    job.wait_for_step(16)
    job.kill_work_of(0)
    codes, errors = job.wait(timeout=60)
    assert codes == [75, 75], errors
    before, last = saved_steps(tmp_path / "w")
    # The file with the members of process 1 alone.
    folder = tmp_path / f"w/checkpoints/{last}/state/ocdbt.process_1/d"
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    job = Job(tmp_path, 2, *arguments)
    codes, errors = job.wait(timeout=120)
    assert codes == [0, 0], errors
    words = job.output.read_text()
    assert f"checkpoint {last} is damaged (" in words
    assert f"going on from step {before}" in words
    assert f"resuming from step {before} of 40" in words
    assert (tmp_path / f"w/checkpoints/{last}.damaged").is_dir()
    unbroken = in_one_process(tmp_path / "one", 2, *arguments)
    assert_same_run(tmp_path / "w", unbroken)


def test_four_processes_are_the_run_of_one_also_after_a_kill(tmp_path):
    unbroken = in_one_process(tmp_path / "one", 4)
    four = tmp_path / "four"
    four.mkdir()
    job = Job(four, 4, seconds_per_line=0.5)
    job.wait_for_step(28)
    begin = time.monotonic()
    job.kill_work_of(2)
    codes, errors = job.wait(timeout=60)
    assert time.monotonic() - begin < 60
    assert codes == [75] * 4, errors
    for index, text in enumerate(errors):
        assert text.count("\n") == 1, text
        assert text.startswith(f"ensjax: this process ({index} of 4) ")
        assert "was killed (SIGKILL" in text if index == 2 else "lost a peer" in text
        assert "last committed step 20 in w" in text and "to resume: ensjax run" in text
    job = Job(four, 4)
    codes, errors = job.wait(timeout=180)
    assert codes == [0] * 4, errors
    assert_same_run(four / "w", unbroken)
