"""Several processes decide as one, and an end of one ends all with a line each."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import read_json
from ensjax.experiment.processes import (
    ProcessFlags,
    check_flags,
    detect_cluster,
    everywhere,
    is_lost_peer,
    on_first_process,
)

TOY = str(Path(__file__).parent / "toy" / "configs" / "toy.py")


@pytest.mark.parametrize(
    "flags, message",
    [
        (ProcessFlags("h:1", 2, None), "--process_id missing"),
        (ProcessFlags(None, 2, 0), "--coordinator missing"),
        (ProcessFlags("h:1", None, None), "--num_processes and --process_id missing"),
        (ProcessFlags("h", 2, 0), "must be HOST:PORT"),
        (ProcessFlags("h:x", 2, 0), "must be HOST:PORT"),
        (ProcessFlags("h:1", 2, 2), "must lie in 0..1"),
    ],
)
def test_flags_come_together_and_fit(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_flags(flags)


def test_all_flags_or_none_are_right():
    check_flags(ProcessFlags())
    check_flags(ProcessFlags("localhost:1234", 2, 1))


def test_a_cluster_is_known_by_its_variables_and_a_laptop_has_none(monkeypatch):
    slurm = dict.fromkeys(
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0"
    )
    assert detect_cluster({}) is None
    assert detect_cluster(slurm | {"SLURM_NTASKS": "4"}) == "slurm"
    assert detect_cluster(slurm | {"SLURM_NTASKS": "1"}) is None
    # Inside an allocation, but not started by srun.
    assert detect_cluster({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}) is None
    openmpi = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert detect_cluster(openmpi) == "openmpi"
    # Open MPI 5 does not say where process 0 is.
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--num_processes 2 --process_id"):
        check_flags(ProcessFlags())
    check_flags(ProcessFlags("localhost:1234", 2, 1))
    assert detect_cluster({"TPU_WORKER_HOSTNAMES": "a,b"}) == "gke-tpu"
    assert detect_cluster({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert detect_cluster({"MEGASCALE_NUM_SLICES": "2"}) == "gke-tpu"


def test_one_process_decides_for_itself():
    assert on_first_process(lambda: 3) == 3
    assert everywhere(lambda: 4) == 4
    with pytest.raises(ConfigError, match="no"):
        everywhere(lambda: (_ for _ in ()).throw(ConfigError("no")))


def test_what_an_error_hides_may_name_a_lost_peer(monkeypatch):
    monkeypatch.setattr("ensjax.experiment.processes.process_count", lambda: 2)

    def raised(cause):
        try:
            raise TimeoutError("Timed out while waiting for a barrier.") from cause
        except TimeoutError as error:
            return error

    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout.")
    assert is_lost_peer(lost) and is_lost_peer(raised(lost))
    assert not is_lost_peer(raised(None))
    assert not is_lost_peer(raised(ValueError("shapes differ")))
    one = raised(None)
    one.__cause__ = raised(one)  # a circle ends
    assert not is_lost_peer(one)


class Job:
    """Two processes of one command on this machine."""

    def __init__(self, folder, *arguments, specs=(TOY + ":smoke", TOY + ":smoke")):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        root = str(Path(__file__).parents[2])
        # Files, not pipes: a full pipe would stop the other process.
        self.logs = [folder / f"errors-{index}.txt" for index in range(2)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "ensjax.cli", "run", specs[index]]
                + [*arguments, f"--coordinator=localhost:{port}"]
                + ["--num_processes=2", f"--process_id={index}"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=open(self.logs[index], "w"),  # noqa: SIM115
                env=os.environ | {"PYTHONPATH": root},
            )
            for index in range(2)
        ]

    def wait(self, timeout=90):
        end = time.monotonic() + timeout
        codes = [
            process.wait(max(0.1, end - time.monotonic())) for process in self.processes
        ]
        return codes, [log.read_text() for log in self.logs]

    def kill_work_of(self, index):
        """Kills the child that does the work, as the kernel does without memory."""
        parent = self.processes[index].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_are_one_run_and_the_first_writes(tmp_path):
    codes, errors = Job(tmp_path, "--workdir", "w").wait()
    assert codes == [0, 0], errors
    assert errors == ["", ""]
    versions = read_json(tmp_path / "w" / "versions.json")
    assert versions["num_processes"] == 2 and versions["num_devices"] == 2
    lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 20  # one writer
    # A mistake is seen by process 0, and told by both in the same words.
    codes, errors = Job(tmp_path, "--workdir", "w", "--config.seed=1").wait()
    assert codes == [2, 2]
    assert errors[0] == errors[1]
    assert "config.seed is 0 there and 1 here" in errors[0]
    assert errors[0].count("\n") == 1


@pytest.mark.slow
def test_a_mistake_on_one_host_ends_both_with_the_same_line(tmp_path):
    specs = (TOY + ":smoke", "nowhere.py")
    codes, errors = Job(tmp_path, "--workdir", "w", specs=specs).wait()
    assert codes == [2, 2]
    assert errors[0] == errors[1] == "ensjax: there is no config file nowhere.py.\n"
    specs = (TOY + ":smoke", TOY + ":claims")
    codes, errors = Job(tmp_path, "--workdir", "w", specs=specs).wait()
    assert codes == [2, 2]
    assert errors[0] == errors[1]
    assert "process 1 was given another config than process 0" in errors[0]
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_mistake_that_one_process_meets_in_the_run_hangs_no_other(tmp_path):
    job = Job(tmp_path, "--workdir", "w", "--config.fault=user on 1")
    codes, errors = job.wait(timeout=60)
    assert codes == [75, 2], errors
    assert "lost a peer" in errors[0]
    assert errors[1] == "ensjax: no such data here\n"
    # Where all look for it together, all say the same.
    job = Job(tmp_path, "--workdir", "v", "--config.fault=known to all")
    codes, errors = job.wait(timeout=60)
    assert codes == [2, 2]
    assert errors == ["ensjax: no such data here\n"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_job_resumes(tmp_path, victim):
    arguments = ("--workdir", "w", "--config.seconds_per_step=0.3")
    job = Job(tmp_path, *arguments)
    metrics = tmp_path / "w" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.exists() and '{"step": 12,' in metrics.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    job.kill_work_of(victim)
    codes, errors = job.wait(timeout=60)
    assert codes == [75, 75], errors
    for index, text in enumerate(errors):
        assert text.count("\n") == 1, text
        assert text.startswith(f"ensjax: this process ({index} of 2) ")
        assert "last committed step 10 in w" in text and "to resume: ensjax run" in text
    assert "was killed (SIGKILL" in errors[victim]
    assert "lost a peer" in errors[1 - victim]
    codes, errors = Job(tmp_path, *arguments).wait()
    assert codes == [0, 0], errors
    lines = metrics.read_text().splitlines()
    assert len(lines) == 20


DIGITS = "deep_ensemble_digits:smoke"


@pytest.mark.slow
def test_the_experiment_in_two_processes_is_that_of_one_also_after_a_kill(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    # More steps than the preset has, so that there is time to kill.
    longer = ("--workdir", "w", "--config.total_steps=2000")
    subprocess.run(
        [sys.executable, "-m", "ensjax.cli", "run", DIGITS, *longer, "--devices=2"],
        cwd=one,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=300,
    )
    two = tmp_path / "two"
    two.mkdir()
    job = Job(two, *longer, specs=(DIGITS, DIGITS))
    checkpoints = two / "w" / "checkpoints"
    end = time.monotonic() + 120
    while not any(p.name.isdecimal() for p in checkpoints.glob("*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    job.kill_work_of(1)
    codes, errors = job.wait(timeout=90)
    assert codes == [75, 75], errors
    codes, errors = Job(two, *longer, specs=(DIGITS, DIGITS)).wait(timeout=300)
    assert codes == [0, 0], errors
    results = [read_json(folder / "w" / "results.json") for folder in (one, two)]
    scalars, others = (found["scalars"] for found in results)
    assert scalars.keys() == others.keys()
    for name, value in scalars.items():
        # The same programs on as many devices; scores are sums in another order.
        assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert (two / "w" / "report.html").stat().st_size > 10_000
