"""A run that was made before: its config, its experiment, and what it trained."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from ensjax.experiment.configs import (
    ConfigSource,
    file_digest,
    find_experiment,
    from_json,
    load_module,
)
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.run_directory import RunDirectory, existing_run


class PastRun(NamedTuple):
    """A run directory and what made it.

    Attributes:
        run: for reading.
        config: as it was run.
        job: the `ensjax.train.TrainingJob` of its members.
        experiment_file: what was loaded, and describes them.
        is_same_file: whether its bytes are those that the run began with; None for a
            run that did not note them.
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    job: Any
    experiment_file: Path
    is_same_file: bool | None

    @property
    def checkpoints(self) -> Any:
        """Of the job's members."""
        return self.run.checkpoints / self.job.stage


class PastExperiment(NamedTuple):
    """A run directory and the experiment that made it.

    Attributes:
        run: for reading.
        config: as it was run.
        module: the experiment, loaded.
        file: of the module.
        is_same_file: as in `PastRun`.
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    module: ModuleType
    file: Path
    is_same_file: bool | None


def load_past_experiment(path: str | os.PathLike) -> PastExperiment:
    """The run at `path` and its experiment as it is now.

    The experiment is the file that the run was made with, wherever this is called; if
    it has moved, one of its name here (`find_experiment`).

    Raises:
        ConfigError: if there is no run, or its experiment is not here any more.
    """
    run = existing_run(path)
    try:
        config, versions = from_json(run.config), run.versions
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name = versions.get("config_name", "config")
    source = ConfigSource(
        name, versions.get("preset", ""), Path("configs") / f"{name}.py"
    )
    file = Path(versions.get("experiment_file", ""))
    if not file.is_file():
        file = find_experiment(source, config)
    digest = versions.get("experiment_sha256")
    module = load_module(file, "experiment")
    is_same = None if digest is None else digest == file_digest(file)
    return PastExperiment(run, config, module, file, is_same)


def open_past_run(path: str | os.PathLike) -> PastRun:
    """The run at `path`, with its training as its experiment describes it now.

    Raises:
        ConfigError: as `load_past_experiment`, or if the experiment does not say what
            it trains.
    """
    run, config, experiment, file, is_same = load_past_experiment(path)
    if not hasattr(experiment, "training_job"):
        raise ConfigError(
            f"the experiment {config.experiment!r} defines no training_job(config), so"
            " its members cannot be made again."
        )
    job = experiment.training_job(config)
    return PastRun(run, config, job, file, is_same)


def of_other_code(past: PastRun) -> str:
    """Words to begin a line with if the experiment's file is another one now."""
    if past.is_same_file is not False:
        return ""
    return (
        f"{past.experiment_file} is not the file that the run was made with, or has"
        " changed since; "
    )


def set_devices_of(run: RunDirectory) -> None:
    """As many CPU devices as the run had last, where that was a CPU; before JAX starts.

    Members' bits on a CPU depend on it, since a device has its share of the threads.
    """
    versions = [run.versions, *run.versions.get("resumed_with", ())][-1]
    if versions.get("platform") != "cpu" or versions.get("num_processes", 1) > 1:
        return
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", versions["num_devices"])
