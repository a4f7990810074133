"""A run that was made before: its config, its experiment, and what it trained."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from ensjax.experiment.configs import (
    ConfigSource,
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
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    job: Any


def open_past_run(path: str | os.PathLike) -> PastRun:
    """The run at `path`, with its training as its experiment describes it now.

    Raises:
        ConfigError: if there is no run, its experiment is not here any more, or it
            does not say what it trains.
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
    experiment = load_module(find_experiment(source, config), "experiment")
    if not hasattr(experiment, "training_job"):
        raise ConfigError(
            f"the experiment {config.experiment!r} defines no training_job(config), so"
            " its members cannot be made again."
        )
    return PastRun(run, config, experiment.training_job(config))


def set_devices_of(run: RunDirectory) -> None:
    """As many CPU devices as the run had, where it ran on a CPU; before JAX starts."""
    versions = run.versions
    if versions.get("platform") != "cpu" or versions.get("num_processes", 1) > 1:
        return
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", versions["num_devices"])
