"""A run of one process is given more members by two, and the other way round."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensjax.experiment.json_files import read_json

SPEC = str(Path(__file__).parent / "trained" / "configs" / "trained.py") + ":smoke"
ROOT = str(Path(__file__).parents[2])
pytestmark = pytest.mark.slow


def run(folder, workdir, *arguments, count):
    """Runs the config on two devices, in one process or in two; returns the losses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environ = os.environ | {"PYTHONPATH": ROOT, "JAX_NUM_CPU_DEVICES": str(2 // count)}
    command = [sys.executable, "-m", "ensjax.cli", "run", SPEC, "--workdir", workdir]
    command += arguments
    flags = [[]]
    if count > 1:
        shared = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        flags = [[*shared, f"--process_id={index}"] for index in range(count)]
    processes = [
        subprocess.Popen(
            [*command, *own],
            cwd=folder,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"errors-{index}.txt", "w"),  # noqa: SIM115
        )
        for index, own in enumerate(flags)
    ]
    try:
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("errors-*.txt"))]
    assert codes == [0] * count, errors
    return list(read_json(folder / workdir / "results.json")["scalars"].values())


def test_members_come_and_go_over_any_number_of_processes(tmp_path):
    expected = run(tmp_path, "whole", "--config.num_members=7", count=1)
    run(tmp_path, "w", count=1)
    grown = run(tmp_path, "w", "--config.num_members=7", count=2)
    np.testing.assert_allclose(grown, expected, rtol=1e-5)
    fewer = run(tmp_path, "w", "--members", "5,1", count=2)
    np.testing.assert_allclose(fewer, np.take(expected, [5, 1]), rtol=1e-5)
    back = run(tmp_path, "w", "--config.num_members=7", count=1)
    assert back == grown
    checkpoints = sorted(path.name for path in (tmp_path / "w/checkpoints").iterdir())
    kept = [name for name in checkpoints if not name.isdecimal()]
    # The seven were all in the first of them, where the last run went on.
    assert kept == ["generation-1", "generation-2"]
