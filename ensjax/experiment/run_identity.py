"""Whether a folder holds the run that a config describes, another one, or none."""

import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from ensjax.experiment import lease
from ensjax.experiment.configs import (
    ABSENT,
    first_difference,
    has_other_members,
    normalise_config,
    other_run,
    other_training,
)
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.json_files import read_json
from ensjax.experiment.loggers import read_metrics


def check_run(
    path: str | os.PathLike, config: ml_collections.ConfigDict | Mapping[str, Any]
) -> str:
    """What the same command would do here: "new", "resume", "finished" or "changed".

    A run is "changed" if only its members are others; a mesh may always be another.

    Raises:
        ConfigError: if the folder holds something else, or a run of another config
            (names the first field that differs and both values), or its metrics cannot
            be read.
    """
    path = epath.Path(path)
    if not path.exists():
        return "new"
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another --workdir.")
    if not (path / "config.json").exists():
        if any(entry.name != lease.NAME for entry in path.iterdir()):
            raise ConfigError(
                f"{path} holds files but no config.json, so it is no run of ensjax;"
                " choose another --workdir."
            )
        return "new"
    if (path / "checkpoints").exists() and not (path / "checkpoints").is_dir():
        raise ConfigError(f"{path}/checkpoints is a file; it must be a folder.")
    try:
        old = read_json(path / "config.json")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    new = as_normalised(config)
    difference = other_run(old, new)
    if difference is not None:
        raise _other_run(path, difference)
    is_finished = (path / "results.json").exists()
    if is_finished and not has_other_members(old, new):
        return "finished"
    read_metrics(path / "metrics.jsonl")  # it will be written on
    return "changed" if has_other_members(old, new) else "resume"


def refuse_other_members(
    path: str | os.PathLike, config: ml_collections.ConfigDict
) -> None:
    """Raises `ConfigError` for a run whose experiment cannot change its members."""
    difference = first_difference(
        read_json(epath.Path(path) / "config.json"), as_normalised(config)
    )
    if difference is not None:
        raise _other_run(path, difference)


def refuse_other_training(
    path: str | os.PathLike, config: ml_collections.ConfigDict
) -> None:
    """Raises `ConfigError` if the run at `path` trains members in another way.

    Its members, mesh, blocks and intervals of saving and logging may be others.
    """
    check_is_run(path)
    try:
        theirs = read_json(epath.Path(path) / "config.json")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    difference = other_training(theirs, as_normalised(config))
    if difference is not None:
        raise ConfigError(
            f"--members_from: {path} holds members of another training:"
            f" {_in_words(difference)}. Members of one run are trained alike."
        )


def _other_run(path, difference):
    return ConfigError(
        f"{path} holds another run: {_in_words(difference)}."
        " Choose another --workdir, or run with the same config."
    )


def _in_words(difference):
    key, *values = difference
    before, after = (value if value == ABSENT else repr(value) for value in values)
    return f"config.{key} is {before} there and {after} here"


def check_is_run(path: str | os.PathLike) -> None:
    """Raises `ConfigError` if there is no run at `path`."""
    if not (epath.Path(path) / "config.json").exists():
        raise ConfigError(f"{path} is no run of ensjax (it has no config.json).")


def as_normalised(
    config: ml_collections.ConfigDict | Mapping[str, Any],
) -> dict[str, Any]:
    """As JSON has it, of a config or of a mapping."""
    if isinstance(config, ml_collections.ConfigDict):
        return normalise_config(config)
    return normalise_config(ml_collections.ConfigDict(dict(config)))
