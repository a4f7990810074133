"""Configs: finding the file, reading it, overriding fields, comparing two of them.

A config is a Python file with `get_config(preset)` returning an
`ml_collections.ConfigDict` whose field `experiment` names the module that runs it.
"""

import hashlib
import importlib.machinery
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from ensjax.experiment.exit_codes import ConfigError, one_line
from ensjax.experiment.json_files import to_json_value
from ensjax.experiment.overrides import (
    apply_overrides,
    flatten_fields,
    join_names,
    name_nearest,
)

PRESETS = ("smoke", "small", "claims", "gpu", "paper")
DEFAULT_PRESET = "small"
ABSENT = "absent"  # the value of a field that a config lacks


class ConfigSource(NamedTuple):
    """Where a config comes from: its name, its preset and its file."""

    name: str
    preset: str
    path: Path


def packaged_folder(kind: str) -> Path:
    """The folder `kind` ("configs" or "experiments") that belongs to this ensjax.

    A wheel carries it inside the package; a checkout has it beside the package.
    """
    package = Path(__file__).parents[1]
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def split_spec(spec: str) -> tuple[str, str]:
    """`"configs/x.py:paper"` as (path or name, preset); no preset means "small"."""
    head, colon, preset = spec.rpartition(":")
    if not colon or "/" in preset or os.sep in preset:
        return spec, DEFAULT_PRESET
    return head, preset


def find_config(spec: str) -> ConfigSource:
    """The config that `spec` means: a path to a file, or a packaged name.

    Raises:
        ConfigError: if there is no such file or name, or no such preset.
    """
    target, preset = split_spec(spec)
    if preset not in PRESETS:
        raise ConfigError(
            f"unknown preset {preset!r}; the presets are {join_names(PRESETS)}."
        )
    if target.endswith(".py") or "/" in target or os.sep in target:
        path = Path(target)
        if not path.is_file():
            raise ConfigError(f"there is no config file {target}.")
        return ConfigSource(path.stem, preset, path)
    path = packaged_folder("configs") / f"{target}.py"
    if not path.is_file():
        known = names_in("configs")
        raise ConfigError(
            f"there is no config named {target!r}{name_nearest(target, known)};"
            f" the names are {join_names(known) or 'none'}. A path ends in .py."
        )
    return ConfigSource(target, preset, path)


def names_in(kind: str) -> list[str]:
    """The names of the packaged `kind` ("configs" or "experiments"), sorted."""
    files = packaged_folder(kind).glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def presets_of(path: Path) -> tuple[str, ...]:
    """The presets that the config file has: those for which it returns a config."""
    get_config = getattr(load_module(path, "config"), "get_config", None)
    if get_config is None:
        return ()
    if not inspect.signature(get_config).parameters:
        return (DEFAULT_PRESET,)
    presets = []
    for preset in PRESETS:
        try:
            get_config(preset)
        except Exception:  # as `load_config`, which shows the file's own words
            continue
        presets.append(preset)
    return tuple(presets)


def presets_by_config() -> dict[str, tuple[str, ...]]:
    """The presets that each packaged config has, by its name."""
    folder = packaged_folder("configs")
    return {name: presets_of(folder / f"{name}.py") for name in names_in("configs")}


def load_config(
    spec: str, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[ConfigSource, ml_collections.ConfigDict]:
    """The config of `spec` with the overrides applied, locked.

    Args:
        spec: path or name, with an optional `:preset`.
        overrides: pairs (`"optimizer.learning_rate"`, `"0.1"`), typed by the field.

    Raises:
        ConfigError: for anything wrong with the file, the preset or an override.
    """
    source = find_config(spec)
    module = load_module(source.path, "config")
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{source.path} defines no get_config(preset).")
    takes_preset = bool(inspect.signature(get_config).parameters)
    if not takes_preset and source.preset != DEFAULT_PRESET:
        raise ConfigError(f"get_config() of {source.path} takes no preset.")
    try:
        config = get_config(source.preset) if takes_preset else get_config()
    except Exception as error:
        raise ConfigError(_file_error(source.path, error)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"get_config of {source.path} must return an ml_collections.ConfigDict;"
            f" it returned {type(config).__name__}."
        )
    apply_overrides(config, overrides)
    config.lock()
    normalise_config(config)  # refuses functions and other objects
    check_config(config)
    return source, config


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises `ConfigError` unless counts are positive and the mesh sizes make sense.

    Only fields that are there are looked at: `num_members`, `members`, `num_seeds`,
    `total_steps`, `batch_size` and the section `mesh`.
    """
    members = config.get("members")
    if isinstance(members, (tuple, list)):
        is_id = [type(m) is int and 0 <= m < 2**31 for m in members]
        if not all(is_id) or len(set(members)) < len(members):
            raise ConfigError(
                "config.members holds numbers of members, each once, from 0 to"
                f" 2^31 - 1; got {tuple(members)}."
            )
    for key in ("num_members", "num_seeds", "total_steps", "batch_size"):
        value = config.get(key)
        if isinstance(value, (int, float)) and value < 1:
            raise ConfigError(f"config.{key} must be at least 1; got {value}.")
    mesh = config.get("mesh")
    if not isinstance(mesh, ml_collections.ConfigDict):
        return
    for axis, size in mesh.items():
        if axis not in ("member", "data", "model"):
            raise ConfigError(
                f"config.mesh has the axes member, data and model; got {axis!r}."
            )
        if not isinstance(size, int) or (size < 1 and size != -1):
            raise ConfigError(
                f"config.mesh.{axis} must be at least 1, or -1 for all devices that"
                f" are left; got {size}."
            )
    if list(mesh.values()).count(-1) > 1:
        raise ConfigError("only one axis of config.mesh can be -1.")


def check_devices(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Raises `ConfigError` if the mesh of the config does not fit the devices."""
    mesh = config.get("mesh")
    if not isinstance(mesh, ml_collections.ConfigDict):
        return
    needed = math.prod(size for size in mesh.values() if size > 0)
    if needed > num_devices or (-1 in mesh.values() and num_devices % needed):
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
        raise ConfigError(
            f"config.mesh ({sizes}) does not fit {num_devices} device(s); choose sizes"
            " whose product divides it, or --devices N for N fake CPU devices."
        )


def normalise_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: tuples as lists, infinities and NaN as strings.

    Raises:
        ConfigError: if a field holds a function or another object; names it.
    """
    for key, value in flatten_fields(config):
        try:
            to_json_value(value)
        except TypeError as error:
            raise ConfigError(
                f"config.{key}: a config holds numbers, strings and tuples; got"
                f" {type(value).__name__} ({value!r})."
            ) from error
    return to_json_value(_name_non_finite(config.to_dict()))


# Fields in which a run may be continued with another value: its members are found by
# their ids on any devices.
ELASTIC_FIELDS = ("num_members", "members", "mesh")


# Fields with one value for all members, or a tuple with one for each member number:
# such a tuple may be longer or shorter when a run is given other members.
PER_MEMBER_FIELDS = ("optimizer.learning_rate",)


def without_elastic(config: dict[str, Any]) -> dict[str, Any]:
    """A normalised config without `ELASTIC_FIELDS`."""
    return {k: v for k, v in config.items() if k not in ELASTIC_FIELDS}


def other_run(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field that makes two normalised configs those of different runs.

    As `first_difference`, without `ELASTIC_FIELDS` and with `PER_MEMBER_FIELDS` as far
    as both reach; `fit` compares what every member that is taken over was given.
    """
    old, new = (dict(flatten_fields(without_elastic(c))) for c in (old, new))
    for field in PER_MEMBER_FIELDS:
        values = [config.get(field) for config in (old, new)]
        if all(isinstance(v, (list, tuple)) and len(v) > 1 for v in values):
            length = min(map(len, values))
            old[field], new[field] = (list(v)[:length] for v in values)
    for field, value in old.items():
        # Earlier versions kept a number as text where a word may stand, too.
        if isinstance(value, str) and value == str(new.get(field)):
            old[field] = new[field]
    return first_difference(old, new)


# Fields, by their last name, in which another run may differ whose members are taken
# over: which members it has, and how they were run, saved and shown.
_FIELDS_OF_PROGRESS = (
    "block",
    "unroll",
    "conv_form",
    "steps_per_call",
    "save_every_steps",
    "log_every_steps",
    "num_seeds",
    "num_bins",
    "num_shown",
)


def other_training(
    old: dict[str, Any], new: dict[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first field in which two normalised configs do not train members alike.

    As `other_run`, but without what only says how members are run, saved and shown.
    """
    old, new = (
        {
            key: value
            for key, value in flatten_fields(without_elastic(config))
            if key.rsplit(".", 1)[-1] not in _FIELDS_OF_PROGRESS
        }
        for config in (old, new)
    )
    return other_run(old, new)


def has_other_members(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two normalised configs differ in which members they have."""
    return any(
        (old.get(name) or None) != (new.get(name) or None)
        for name in ("num_members", "members")
    )


def from_json(settings: dict[str, Any]) -> ml_collections.ConfigDict:
    """The config of a `config.json`: lists become tuples, as configs have them."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ml_collections.ConfigDict(tuples(settings))
    config.lock()
    return config


def first_difference(old: dict, new: dict) -> tuple[str, Any, Any] | None:
    """The first field (dotted) in which two normalised configs differ, and both values.

    A field that one of them lacks has the value `ABSENT` there.
    """
    old, new = dict(flatten_fields(old)), dict(flatten_fields(new))
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if before != after or isinstance(before, bool) != isinstance(after, bool):
            return key, before, after
    return None


def find_experiment(source: ConfigSource, config: ml_collections.ConfigDict) -> Path:
    """The file of the experiment that `config.experiment` names.

    A name is looked up in the folder `experiments` beside the config's own folder,
    then among the packaged ones; a path ending in `.py` is relative to the config file.

    Raises:
        ConfigError: if the field or the file is missing.
    """
    name = config.get("experiment")
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{source.path} must set config.experiment = "a name".')
    if name.endswith(".py"):
        path = source.path.parent / name
        if not path.is_file():
            raise ConfigError(f"there is no experiment file {path}.")
        return path
    beside = source.path.absolute().parent.parent / "experiments" / f"{name}.py"
    packaged = packaged_folder("experiments") / f"{name}.py"
    for path in (beside, packaged):
        if path.is_file():
            return path
    known = names_in("experiments")
    raise ConfigError(
        f"there is no experiment named {name!r}{name_nearest(name, known)};"
        f" looked for {beside} and {packaged}."
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a file without leaving `__pycache__` beside it."""

    def set_data(self, path, data, *, _mode=0o666):
        del path, data, _mode


def load_module(path: Path, kind: str) -> ModuleType:
    """The module in `path`, imported under the name `ensjax_<kind>_<stem>`.

    The name does not depend on the folder, so pickles and caches stay valid when a
    file is copied. A file that was loaded already, and has not changed, is not read
    again. Experiments load the modules beside them with it.

    Raises:
        ConfigError: if a config raises while it is read. An experiment's error is a
            bug and comes as it is.
    """
    name = f"ensjax_{kind}_{path.stem}"
    state = (str(path.absolute()), path.stat().st_mtime_ns)
    known = sys.modules.get(name)
    if known is not None and known.__spec__.loader_state == state:
        return known
    loader = _SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    spec.loader_state = state
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if kind == "config":
            raise ConfigError(_file_error(path, error)) from error
        raise
    return module


def _file_error(path: Path, error: Exception) -> str:
    lines = [getattr(error, "lineno", None)]  # a SyntaxError is not in its traceback
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            lines.append(frame.lineno)
    where = f"{path} line {lines[-1]}" if lines[-1] else f"{path}"
    return f"{where}: {type(error).__name__}: {one_line(error)}"


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _name_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_name_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
