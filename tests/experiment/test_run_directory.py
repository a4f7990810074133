"""A run directory is made whole or not at all, kept to one process, and resumed."""

import os
import subprocess
import sys
import textwrap

import ml_collections
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from ensjax.experiment import run_lock
from ensjax.experiment.claims import check
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import read_json
from ensjax.experiment.loggers import read_metrics
from ensjax.experiment.run_directory import open_run, view_run
from ensjax.experiment.run_identity import check_run

CONFIG = {"experiment": "toy", "seed": 0, "widths": (8, 8), "mesh": {"member": -1}}
VERSIONS = {"ensjax": "0", "jax": "1"}


def open_here(path, config=CONFIG, **options):
    return open_run(path, config, versions=VERSIONS, **options)


def finish(run):
    run.finish(title="T", summary="S", scalars={"a": 1.0})


def tree(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(run_lock, "_LOCK_PATIENCE_SECONDS", 0.2)


def test_a_new_run_has_its_config_and_versions(tmp_path):
    assert check_run(tmp_path / "a" / "b", CONFIG) == "new"
    with open_here(tmp_path / "a" / "b") as run:
        assert run.config["widths"] == [8, 8]
        assert run.versions == VERSIONS
        assert not run.is_finished
    assert tree(tmp_path) == [
        "a",
        "a/b",
        "a/b/.lock",
        "a/b/config.json",
        "a/b/versions.json",
    ]


def test_an_empty_folder_becomes_a_run(tmp_path):
    open_here(tmp_path).close()
    assert (tmp_path / "config.json").exists()


def test_the_same_config_resumes_and_a_finished_run_says_so(tmp_path):
    open_here(tmp_path / "run").close()
    config = ml_collections.ConfigDict(dict(CONFIG))
    assert check_run(tmp_path / "run", config) == "resume"
    with open_here(tmp_path / "run") as run:
        finish(run)
        assert run.is_finished
    assert check_run(tmp_path / "run", config) == "finished"


def test_another_config_is_refused_with_the_field_and_both_values(tmp_path):
    open_here(tmp_path / "run").close()
    other = CONFIG | {"optimizer": {"learning_rate": 0.2}}
    with pytest.raises(ConfigError, match="config.optimizer.learning_rate is"):
        check_run(tmp_path / "run", other)
    # Devices may always be others, and members have a word of their own.
    assert check_run(tmp_path / "run", CONFIG | {"mesh": {"member": 2}}) == "resume"
    more = CONFIG | {"num_members": 99}
    assert check_run(tmp_path / "run", more) == "changed"


def test_a_folder_with_other_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds files but no config.json"):
        check_run(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="is a file"):
        check_run(tmp_path / "notes.txt", CONFIG)
    with pytest.raises(ConfigError, match="cannot write"):
        open_here(tmp_path / "notes.txt" / "run")
    assert tree(tmp_path) == ["notes.txt"]


def test_a_failure_while_creating_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(path, data):
        if path.name == "versions.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(run_lock, "write_bytes", fail)
    with pytest.raises(ConfigError, match="no space left for .*; nothing was begun"):
        open_here(tmp_path / "a" / "b" / "run")
    assert tree(tmp_path) == []


def test_a_second_process_is_refused_until_the_first_dies(tmp_path):
    script = f"""
        import time
        from ensjax.experiment.run_directory import open_run
        run = open_run({str(tmp_path / "run")!r}, {CONFIG!r}, versions={VERSIONS!r})
        print("open", flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(ConfigError, match="in use by another process"):
        open_here(tmp_path / "run")
    holder.kill()
    holder.wait()
    open_here(tmp_path / "run").close()  # death has let go of the lock


def test_a_resume_with_other_versions_keeps_the_first_and_notes_the_new(tmp_path):
    open_here(tmp_path).close()
    for versions in (VERSIONS, VERSIONS | {"jax": "2"}, VERSIONS | {"jax": "2"}):
        open_run(tmp_path, CONFIG, versions=versions).close()
    stored = read_json(epath.Path(tmp_path / "versions.json"))
    assert stored == VERSIONS | {"resumed_with": [VERSIONS | {"jax": "2"}]}


def test_metrics_are_cut_to_the_committed_step(tmp_path):
    with open_here(tmp_path) as run:
        logger = run.logger()
        for step in (10, 20, 30):
            logger.write(step, {"loss": 1.0})
        run.cut_metrics(20)
        assert [line["step"] for line in read_metrics(run.path / "metrics.jsonl")] == [
            10,
            20,
        ]


def test_figures_and_tables_are_kept_once_by_name(tmp_path):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    with open_here(tmp_path) as run:
        for caption in ("first", "second"):
            run.add_figure("fan", figure, caption)
            run.add_table("scores", ["a"], [[np.float32(0.5)]], caption)
        assert run.contents["figures"] == [{"name": "fan", "caption": "second"}]
        assert run.contents["tables"][0]["rows"] == [[0.5]]
        with pytest.raises(ValueError, match="becomes a file name"):
            run.add_figure("../fan", figure, "x")
        with pytest.raises(ValueError, match="has 2 columns"):
            run.add_table("scores", ["a", "b"], [[1]], "x")
    png = (tmp_path / "figures" / "fan.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_finishing_writes_the_report_before_the_results(tmp_path, monkeypatch):
    from ensjax.experiment import report

    def fail(run, results):
        raise OSError(28, "No space left on device")

    with open_here(tmp_path) as run:
        monkeypatch.setattr(report, "build_report", fail)
        with pytest.raises(OSError):
            finish(run)
        assert not run.is_finished
        monkeypatch.undo()
        finish(run)
    assert (tmp_path / "report.html").exists()
    assert run.results["scalars"] == {"a": 1.0}


def test_a_view_reads_and_writes_nothing(tmp_path):
    open_here(tmp_path).close()
    before = tree(tmp_path)
    view = view_run(tmp_path)
    view.logger().write(1, {"loss": 1.0})
    view.add_figure("fan", None, "x")
    view.add_table("scores", ["a"], [[1]], "x")
    view.cut_metrics(0)
    finish(view)
    view.close()
    assert tree(tmp_path) == before
    assert view.config["seed"] == 0
    finish(view_run(tmp_path / "on another host"))  # whose disk does not have it
    with pytest.raises(ValueError, match="come twice"):
        twice = [check("x", bound=1, measured=1, passed=True)] * 2
        view.finish(title="", summary="", scalars={}, checks=twice)
