"""Metrics are valid JSON lines, cut on resume, and passed to other loggers."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest

from ensjax.experiment import loggers
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.loggers import (
    JsonlLogger,
    Loggers,
    TensorBoardLogger,
    WandbLogger,
    check_logger_names,
    cut_metrics,
    read_metrics,
    summarise_members,
)


class FakeLogger:
    def __init__(self):
        self.lines, self.is_closed = [], False

    def write(self, step, metrics):
        self.lines.append((step, metrics))

    def close(self):
        self.is_closed = True


def write_steps(path, steps, phase=None, value=1.0):
    logger = JsonlLogger(path, phase=phase)
    for step in steps:
        logger.write(step, {"loss": [value, math.nan], "rate": 0.5})
    logger.close()


def steps_of(path, phase=None):
    return [line["step"] for line in read_metrics(path, phase=phase)]


def test_a_line_has_the_step_first_lists_for_members_and_null_for_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.write(
        np.int64(3), {"loss": np.array([0.5, np.nan]), "rate": np.float32(0.25)}
    )
    logger.close()
    text = path.read_text()
    assert text == '{"step": 3, "loss": [0.5, null], "rate": 0.25}\n'
    (line,) = read_metrics(path)
    assert math.isnan(line["loss"][1])


def test_every_line_is_on_disk_at_once(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.write(1, {"loss": 1.0})
    assert steps_of(tmp_path / "metrics.jsonl") == [1]
    logger.close()


def test_a_resumed_logger_replaces_the_lines_from_its_first_step_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [10, 20, 30, 40], value=1.0)
    write_steps(path, [30, 40, 50], value=2.0)  # resumed from a checkpoint at 20
    assert steps_of(path) == [10, 20, 30, 40, 50]
    assert [line["loss"][0] for line in read_metrics(path)] == [1, 1, 2, 2, 2]


def test_two_writes_of_one_step_are_both_kept(tmp_path):
    write_steps(tmp_path / "metrics.jsonl", [10, 10, 20])
    assert steps_of(tmp_path / "metrics.jsonl") == [10, 10, 20]


def test_a_logger_that_was_closed_goes_on_without_cutting_again(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for step in (10, 20, 20):
        logger.write(step, {"loss": 1.0})
        logger.close()
    assert steps_of(tmp_path / "metrics.jsonl") == [10, 20, 20]


def test_phases_are_cut_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [10, 20], phase="ensemble")
    write_steps(path, [10, 20], phase="single")
    write_steps(path, [20], phase="single")
    assert steps_of(path, "ensemble") == [10, 20]
    assert steps_of(path, "single") == [10, 20]
    cut_metrics(path, 0, phase="ensemble")
    assert steps_of(path) == [10, 20]


def test_cutting_keeps_the_step_itself_and_drops_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [10, 20, 30])
    with open(path, "a") as file:
        file.write('{"step": 15, "lo')
    assert steps_of(path) == [10, 20, 30]
    cut_metrics(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
        10,
        20,
    ]
    cut_metrics(tmp_path / "absent.jsonl", 20)


def test_several_loggers_are_one(tmp_path):
    fakes = [FakeLogger(), FakeLogger()]
    both = Loggers(fakes)
    both.write(1, {"loss": 2.0})
    both.close()
    assert all(fake.lines == [(1, {"loss": 2.0})] and fake.is_closed for fake in fakes)


def test_members_are_summarised_without_those_that_are_not_finite():
    scalars = summarise_members({"loss": [1.0, 3.0, math.inf], "rate": 0.5})
    assert scalars == {
        "loss/mean": 2.0,
        "loss/min": 1.0,
        "loss/max": 3.0,
        "loss/not_finite": 1,
        "rate": 0.5,
    }
    assert summarise_members({"loss": [math.nan]}) == {"loss/not_finite": 1}


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (
        lambda: TensorBoardLogger(tmp_path),
        lambda: WandbLogger(tmp_path, name="x", config={}),
    ):
        with pytest.raises(ImportError, match=r"pip install 'ensjax\[(tensor|wandb)"):
            make()
    with pytest.raises(ConfigError, match="needs the package tensorboardX"):
        check_logger_names(["tensorboard"])
    with pytest.raises(ConfigError, match="unknown logger 'tb'"):
        check_logger_names(["tb"])


class FakeWandb:
    """Keeps what `wandb.init` was given, and what the run was told."""

    def __init__(self):
        self.settings, self.lines, self.is_finished = [], [], False

    def init(self, **settings):
        self.settings.append(settings)
        return self

    def log(self, metrics, step):
        self.lines.append((step, metrics))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(loggers, "require_logger", lambda name: None)
    return fake


def test_wandb_gets_scalars_by_step(wandb, tmp_path):
    logger = WandbLogger(tmp_path, name="coins", config={"seed": 0})
    logger.write(5, {"loss": [1.0, 2.0]})
    logger.close()
    assert wandb.settings[0]["name"] == "coins"
    assert wandb.lines[0][0] == 5
    assert wandb.lines[0][1]["loss/mean"] == 1.5
    assert wandb.is_finished


def test_wandb_goes_on_with_the_run_of_the_same_folder_and_config(
    wandb, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for folder, seed in (("a", 0), (tmp_path / "a", 0), ("b", 0), ("a", 1)):
        WandbLogger(folder, name="coins", config={"seed": seed})
    first, again, elsewhere, other = (settings["id"] for settings in wandb.settings)
    assert first == again and len({first, elsewhere, other}) == 3
    assert {settings["resume"] for settings in wandb.settings} == {"allow"}


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    logger = TensorBoardLogger(tmp_path / "events")
    logger.write(5, {"loss": [1.0, 2.0], "rate": 0.5})
    logger.close()
    (file,) = (tmp_path / "events").iterdir()
    content = file.read_bytes()
    assert b"loss/mean" in content and b"rate" in content
