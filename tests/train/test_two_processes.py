"""Two real processes train what one process does."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ensjax

JOB = Path(__file__).with_name("job.py")
ROOT = str(Path(__file__).parents[2])
pytestmark = pytest.mark.slow


def load_job():
    """The job as a module, to be run in this process."""
    spec = importlib.util.spec_from_file_location("training_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_one_process(folder, **options):
    folder.mkdir(exist_ok=True)
    ensemble, log = load_job().run(folder, **options)
    return jax.device_get(jax.tree.leaves(ensemble.params)), log


def in_two_processes(folder, *, expected=(0, 0), **options):
    """What they trained; with other exit codes expected, what they wrote to stderr."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [str(JOB), str(folder), str(folder / "end.npz"), json.dumps(options)]
    # Files, not pipes: a full pipe would stop the other process.
    logs = [folder / f"errors-{i}.txt" for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments, str(port), str(i)],
            env=os.environ | {"PYTHONPATH": ROOT},
            stdout=subprocess.DEVNULL,
            stderr=open(logs[i], "w"),  # noqa: SIM115
        )
        for i in range(2)
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    words = [log.read_text() for log in logs]
    assert codes == list(expected), "\n".join(text[-3000:] for text in words)
    if any(codes):
        return words
    end = np.load(folder / "end.npz")
    return [end[f"arr_{i}"] for i in range(len(end.files) - 2)], end


def check_close(a, b, tolerance=1e-6):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)


@pytest.mark.parametrize("layout", ["member", "data", "split state"])
def test_two_processes_train_what_one_does(tmp_path, layout):
    one, one_log = in_one_process(tmp_path / "one", steps=20, layout=layout)
    two, end = in_two_processes(tmp_path / "two", steps=20, layout=layout)
    check_close(two, one)
    if layout == "member":
        # Nothing is added up across processes here: the same programs, the same bits.
        check_close(two, one, tolerance=0)
    np.testing.assert_allclose(end["loss"], one_log.metrics["loss"], atol=1e-6)
    # Only the first process has written lines.
    lines = (tmp_path / "two" / "lines-0.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert not (tmp_path / "two" / "lines-1.jsonl").exists()


@pytest.mark.parametrize("layout", ["member", "split state"])
def test_two_processes_and_one_go_on_from_each_others_checkpoints(tmp_path, layout):
    unbroken, _ = in_one_process(
        tmp_path / "whole", steps=20, layout=layout, checkpoints=False
    )
    in_two_processes(tmp_path / "a", steps=10, layout=layout)
    resumed, log = in_one_process(tmp_path / "a", steps=20, layout=layout)
    assert log.resumed_step == 10
    check_close(resumed, unbroken)
    in_one_process(tmp_path / "b", steps=10, layout=layout)
    resumed, end = in_two_processes(tmp_path / "b", steps=20, layout=layout)
    assert end["resumed_step"] == 10
    check_close(resumed, unbroken)


@pytest.mark.parametrize("model_name", ["cnn", "resnet-8", "vit"])
def test_two_processes_train_every_model_as_one_does(tmp_path, model_name):
    options = dict(steps=20, model_name=model_name, checkpoints=False)
    one, _ = in_one_process(tmp_path / "one", **options)
    two, _ = in_two_processes(tmp_path / "two", **options)
    check_close(two, one, tolerance=0)


def test_two_processes_save_one_ensemble(tmp_path):
    two, _ = in_two_processes(tmp_path, steps=2, checkpoints=False, save=True)
    loaded = ensjax.Ensemble.load(tmp_path / "ensemble")
    assert loaded.member_ids.tolist() == [0, 1, 2, 3, 4]
    check_close(two, jax.device_get(jax.tree.leaves(loaded.params)), tolerance=0)


def test_processes_that_hold_the_same_rows_must_be_fed_the_same(tmp_path):
    words = in_two_processes(
        tmp_path,
        expected=(1, 1),
        steps=2,
        layout="same rows",
        checkpoints=False,
        save=True,
    )
    for text in words:
        assert "data differs between processes" in text
        assert "Give every process the whole batch" in text
    assert not (tmp_path / "ensemble").exists()
