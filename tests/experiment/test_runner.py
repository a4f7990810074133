"""Every mistake of the user is one line, exit code 2, and an unchanged folder."""

import fcntl
import importlib.util
import os
import resource
from pathlib import Path

import pytest

from ensjax.experiment import run_lock
from ensjax.experiment.json_files import read_json
from ensjax.experiment.loggers import read_metrics
from ensjax.experiment.processes import ProcessFlags
from ensjax.experiment.run_directory import open_run
from ensjax.experiment.runner import RunOptions, default_workdir, run_and_report

TOY = str(Path(__file__).parent / "toy" / "configs" / "toy.py")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_lock, "_LOCK_PATIENCE_SECONDS", 0.1)
    return tmp_path


def run(spec=TOY + ":smoke", *overrides, **options):
    pairs = [tuple(text.split("=", 1)) for text in overrides]
    return run_and_report(RunOptions(spec, overrides=pairs, **options))


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def small_disk():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def other_run():
    open_run("w", {"experiment": "toy", "seed": 9}, versions={}).close()


def other_files():
    Path("w").mkdir()
    Path("w/notes.txt").write_text("x")


def held_run():
    os.makedirs("runs")
    run(f"{TOY}:smoke", workdir="held")
    Path("held/results.json").unlink()
    descriptor = os.open("held/.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def lone_config():
    Path("mine").mkdir()
    Path("mine/lone.py").write_text(Path(TOY).read_text().replace('"toy"', '"tay"'))


MISTAKES = {
    "unknown key": (
        None,
        lambda: run(TOY, "num_member=3"),
        "unknown config key 'num_member'; the nearest is 'num_members'",
    ),
    "wrong type": (None, lambda: run(TOY, "num_members=x"), "of type int (now 4)"),
    "missing file": (
        None,
        lambda: run("configs/nope.py"),
        "no config file configs/nope",
    ),
    "unknown name": (None, lambda: run("nope"), "no config named 'nope'"),
    "unknown preset": (
        None,
        lambda: run(TOY + ":tiny"),
        "smoke, small, claims, gpu, paper",
    ),
    "no members": (
        None,
        lambda: run(TOY, "num_members=0"),
        "must be at least 1; got 0",
    ),
    "no steps": (None, lambda: run(TOY, "total_steps=0"), "config.total_steps must be"),
    "mesh of 0": (None, lambda: run(TOY, "mesh.data=0"), "config.mesh.data must be"),
    "mesh too large": (None, lambda: run(TOY, "mesh.data=99"), "does not fit 8 device"),
    "validate": (None, lambda: run(TOY, "total_steps=45"), "must be a multiple of"),
    "engine's ValueError": (
        None,
        lambda: run(TOY, "optimizer.learning_rate=-1"),
        "learning_rate must be positive: it is not.",
    ),
    "another run": (
        other_run,
        lambda: run(workdir="w"),
        "w holds another run: config.",
    ),
    "other files": (other_files, lambda: run(workdir="w"), "holds files but no config"),
    "a file": (
        lambda: Path("w").write_text("x"),
        lambda: run(workdir="w"),
        "w is a file",
    ),
    "below a file": (
        lambda: Path("w").write_text("x"),
        lambda: run(workdir="w/run"),
        "cannot write w/run",
    ),
    "unwritable": (None, lambda: run(workdir="/proc/run"), "cannot write /proc/run"),
    "no space": (small_disk, lambda: run(workdir="w"), "no space left for w"),
    "in use": (held_run, lambda: run(workdir="held"), "in use by another process"),
    "unknown logger": (None, lambda: run(loggers=["tb"]), "unknown logger 'tb'"),
    "half the flags": (
        None,
        lambda: run(flags=ProcessFlags("localhost:1234", 2)),
        "--process_id missing",
    ),
    "no devices": (None, lambda: run(devices=0), "--devices must be at least 1"),
    "no experiment": (
        lone_config,
        lambda: run("mine/lone.py"),
        "no experiment named 'tay'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, tmp_path, capfd):
    prepare, act, message = MISTAKES[mistake]
    undo = (prepare or (lambda: None))()
    capfd.readouterr()
    before = snapshot(tmp_path)
    try:
        code = act()
    finally:
        if callable(undo):
            undo()
    output = capfd.readouterr()
    assert code == 2
    assert output.err.startswith("ensjax: ") and output.err.count("\n") == 1
    assert message in output.err
    assert output.out == ""
    assert snapshot(tmp_path) == before


def test_a_run_finishes_and_the_same_command_says_so(capfd):
    assert run() == 0
    assert capfd.readouterr().out == "finished: runs/toy-smoke/report.html\n"
    before = snapshot(Path("runs"))
    assert run() == 0
    assert "runs/toy-smoke is finished" in capfd.readouterr().out
    assert snapshot(Path("runs")) == before
    versions = read_json(Path("runs/toy-smoke/versions.json"))
    assert (versions["config_name"], versions["preset"]) == ("toy", "smoke")
    assert versions["platform"] == "cpu" and versions["jax"]


def test_a_stopped_run_resumes_to_the_same_results(capfd):
    assert run(workdir="whole") == 0
    assert run(TOY + ":smoke", "fault=bug", workdir="stopped") == 1
    assert "KeyError: 'a bug'" in capfd.readouterr().err
    config = Path("stopped/config.json")
    config.write_text(config.read_text().replace('"bug"', '""'))
    assert run(workdir="stopped") == 0
    assert "resuming stopped" in capfd.readouterr().out
    for name in ("results.json", "metrics.jsonl"):
        assert Path("stopped", name).read_text() == Path("whole", name).read_text()
    assert [line["step"] for line in read_metrics("stopped/metrics.jsonl")] == list(
        range(1, 21)
    )


def test_no_space_during_the_run_has_its_own_exit_code(capfd):
    assert run(TOY + ":smoke", "fault=space", workdir="w") == 74
    assert capfd.readouterr().err == ""  # the parent says it
    assert not Path("w/results.json").exists()
    assert len(read_metrics("w/metrics.jsonl")) == 15


def test_a_user_error_inside_the_run_is_one_line(capfd):
    assert run(TOY + ":smoke", "fault=user", workdir="w") == 2
    assert capfd.readouterr().err == "ensjax: no such data here\n"
    assert Path("w/checkpoints/10").is_dir()  # it can be resumed


def test_a_user_error_before_the_first_checkpoint_leaves_the_place_free(capfd):
    mistake = (TOY + ":smoke", "fault=user", "save_every_steps=20")
    Path("empty").mkdir()
    for workdir in ("deep/in/w", "empty"):
        assert run(*mistake, workdir=workdir) == 2
        assert capfd.readouterr().err == "ensjax: no such data here\n"
    assert list(Path("empty").iterdir()) == [] and not Path("deep").exists()
    assert run(workdir="empty") == 0


def test_the_default_workdir_is_named_after_config_and_preset():
    assert default_workdir("configs/deep.py:paper") == "runs/deep-paper"
    assert default_workdir("deep") == "runs/deep-small"


def test_a_store_without_its_package_is_one_line(capsys):
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed, and would ask the network")
    assert run(workdir="gs://bucket/run") == 2
    error = capsys.readouterr().err
    assert "--workdir gs://bucket/run needs a package" in error
    assert "pip install 'ensjax[gcs]'" in error and error.count("\n") == 1
