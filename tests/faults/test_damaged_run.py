"""`ensjax run` over damaged checkpoints: a line and the one before, or exit code 2."""

import contextlib
import shutil
from pathlib import Path

import pytest

from ensjax.experiment.runner import RunOptions, run_and_report

CONFIG = str(Path(__file__).with_name("small.py")) + ":smoke"


def run():
    return run_and_report(RunOptions(CONFIG, workdir="w"))


def snapshot(folder):
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with contextlib.chdir(folder):
        assert run() == 0
    (folder / "w/results.json").unlink()
    return folder


@pytest.fixture
def interrupted(saved, tmp_path, monkeypatch):
    """A run with checkpoints 20 and 40 that has not finished its report."""
    shutil.copytree(saved / "w", tmp_path / "w")
    monkeypatch.chdir(tmp_path)
    return Path("w/checkpoints")


@pytest.mark.slow
def test_the_run_goes_on_from_the_one_before(interrupted, capfd):
    weights = Path("w/weights.npz").read_bytes()
    (interrupted / "40/meta/metadata").write_text("{")
    assert run() == 0
    output = capfd.readouterr().out.splitlines()
    assert output[0] == "resuming w"
    assert output[1].startswith("checkpoint 40 is damaged (JSONDecodeError: ")
    assert output[1].endswith("; going on from step 20")
    assert Path("w/weights.npz").read_bytes() == weights
    assert (interrupted / "40.damaged").is_dir() and (interrupted / "40").is_dir()


@pytest.mark.slow
def test_without_a_whole_checkpoint_nothing_is_touched(interrupted, capfd):
    for step in ("20", "40"):
        (interrupted / step / "state/manifest.ocdbt").write_bytes(b"x")
    before = snapshot(Path("w"))
    assert run() == 2
    errors = capfd.readouterr().err
    assert errors.startswith("ensjax: no checkpoint in w/checkpoints is whole: ")
    assert errors.count("\n") == 1 and "checkpoint 20 is damaged (" in errors
    assert snapshot(Path("w")) == before
