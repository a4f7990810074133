"""Metrics on an object store are merged as one file on a disk would have them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensjax.experiment import json_files, lease
from ensjax.experiment.json_files import is_local
from ensjax.experiment.loggers import JsonlLogger, read_metrics
from ensjax.experiment.run_directory import open_run, view_run
from ensjax.experiment.run_identity import check_run
from ensjax.experiment.segments import SegmentLogger

TOY = str(Path(__file__).parent / "toy" / "configs" / "toy.py") + ":smoke"
ROOT = str(Path(__file__).parents[2])
CONFIG = {"experiment": "toy", "seed": 0}

# Attempts of (phase, value, steps) each.
ATTEMPTS = [
    [(None, 1.0, [10, 20, 30, 40])],
    [(None, 2.0, [30, 40])],  # resumed from 20
    [(None, 3.0, [50]), ("single", 3.0, [10, 20])],  # from 40
    [("single", 4.0, [20, 30]), ("times", 4.0, [30])],
    [(None, 5.0, [20])],  # from 10: the later checkpoints were damaged
]


def write(make_logger):
    for attempt in ATTEMPTS:
        for phase, value, steps in attempt:
            logger = make_logger(phase)
            for step in steps:
                logger.write(step, {"loss": [value, math.nan]})
            logger.close()


def test_segments_read_as_the_file_that_is_cut_and_appended(tmp_path):
    file, folder = tmp_path / "metrics.jsonl", tmp_path / "store" / "metrics"
    write(lambda phase: JsonlLogger(file, phase=phase))
    write(lambda phase: SegmentLogger(folder, phase=phase))
    for phase in (None, "single", "times"):
        expected = read_metrics(file, phase=phase)
        assert repr(read_metrics(folder.with_suffix(".jsonl"), phase=phase)) == repr(
            expected
        )
        assert expected
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"attempt-000{number}.jsonl" for number in range(1, 8)]


def test_every_line_is_on_the_store_at_once_and_valid_json(tmp_path):
    logger = SegmentLogger(tmp_path)
    for step in (1, 2):
        logger.write(step, {"loss": math.inf})
        lines = (tmp_path / "attempt-0001.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == {"step": step, "loss": None}
    logger.close()
    logger.write(2, {"loss": 1.0})  # goes on, and cuts nothing
    assert [line["step"] for line in read_metrics(f"{tmp_path}.jsonl")] == [1, 2, 2]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder that is treated as a mounted object store."""
    monkeypatch.setenv(json_files.OBJECT_STORE_FOLDERS, str(tmp_path / "store"))
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.0)
    return tmp_path / "store"


def test_what_is_local(store, tmp_path):
    assert is_local(tmp_path) and is_local(tmp_path / "stores") and is_local("runs")
    for path in (store, store / "a", "gs://bucket/run", "s3://bucket/run", "gs:/b"):
        assert not is_local(path)


def test_a_file_that_is_appended_is_refused_on_a_store(store):
    with pytest.raises(ValueError, match="pass a folder there to SegmentLogger"):
        JsonlLogger(store / "metrics.jsonl")


def test_a_run_on_a_store_has_a_lease_and_segments(store):
    path = store / "run"
    for attempt, steps in enumerate(([10, 20, 30], [20, 30, 40])):
        with open_run(path, CONFIG, versions={"jax": str(attempt)}) as run:
            logger = run.logger()
            for step in steps:
                logger.write(step, {"loss": float(attempt)})
            assert not json.loads((path / "lease.json").read_text())["is_released"]
        assert json.loads((path / "lease.json").read_text())["is_released"]
        assert check_run(path, CONFIG) == "resume"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "config.json",
        "lease.json",
        "metrics",
        "versions.json",
    ]
    run = view_run(path)
    assert [(x["step"], x["loss"]) for x in run.metrics()] == [
        (10, 0.0),
        (20, 1.0),
        (30, 1.0),
        (40, 1.0),
    ]
    with open_run(path, CONFIG, versions={}) as run:
        run.cut_metrics(20)
    assert [line["step"] for line in run.metrics()] == [10, 20]
    assert run.versions == {"jax": "0", "resumed_with": [{"jax": "1"}, {}]}


def test_a_folder_with_a_lease_alone_is_a_new_run(store):
    (store / "run").mkdir(parents=True)
    (store / "run" / "lease.json").write_text('{"is_released": true}')
    assert check_run(store / "run", CONFIG) == "new"
    open_run(store / "run", CONFIG, versions={}).close()
    assert check_run(store / "run", CONFIG) == "resume"


@pytest.mark.slow
def test_a_run_whose_lease_is_taken_ends_with_one_line(tmp_path):
    """The whole command, on a folder that is treated as a mounted store."""
    environ = os.environ | {
        "PYTHONPATH": ROOT,
        json_files.OBJECT_STORE_FOLDERS: str(tmp_path),
    }
    arguments = ["run", TOY, "--workdir", "w", "--config.seconds_per_step=0.5"]
    program = (
        "import sys; from ensjax.experiment import lease; from ensjax import cli;"
        " lease.RENEW_SECONDS = 0.3; sys.exit(cli.main(sys.argv[1:]))"
    )
    environ["ENSJAX_PARENT_PIPE"] = str(os.pipe()[0])
    run = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=environ,
        pass_fds=[int(environ["ENSJAX_PARENT_PIPE"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(read_metrics(tmp_path / "w/metrics.jsonl")) < 3:
        assert run.poll() is None
    while run.poll() is None:  # it may be renewing at the same moment
        (tmp_path / "w/lease.json").write_text(
            '{"owner": "b", "process": 7, "host": "beta"}'
        )
        try:
            _, errors = run.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    assert run.returncode == 75
    assert errors.count("\n") == 1
    assert errors.startswith("ensjax: w was taken over by process 7 on beta, because")
