"""Where merged weights come from: the record beside them, and whether it holds."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensjax.interop.merge_plans import MergePlan, knobs_of
from ensjax.interop.output_folders import LINEAGE
from ensjax.interop.small_files import read_config
from ensjax.interop.tensor_choice import TensorChoice
from ensjax.interop.tensor_types import WeightsError
from ensjax.interop.weight_folders import WeightFolder
from ensjax.interop.weight_writer import file_sha256, write_text
from ensjax.weight_space.methods import METHODS

_PACKAGES = ("ensjax", "jax", "numpy", "safetensors", "torch")
_PIECE = 4 * 2**20


class InputHashes:
    """SHA-256 of all files of weights, found by a thread while they are merged."""

    def __init__(self, folders: Sequence[WeightFolder]):
        self._paths = list(dict.fromkeys(p for f in folders for p in f.files))
        self._stop = threading.Event()

    def __enter__(self) -> "InputHashes":
        self._before = {path: _stamp(path) for path in self._paths}
        self._pool = ThreadPoolExecutor(1)
        self._found = {p: self._pool.submit(self._hash, p) for p in self._paths}
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def wait(self) -> dict[Path, str]:
        """The hashes.

        Raises:
            WeightsError: if a file was changed since this was entered.
        """
        hashes = {path: future.result() for path, future in self._found.items()}
        for path, before in self._before.items():
            if _stamp(path) != before:
                raise WeightsError(f"{path} was changed while it was read.")
        return hashes

    def _hash(self, path):
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while not self._stop.is_set() and (piece := file.read(_PIECE)):
                digest.update(piece)
        return digest.hexdigest()


def _stamp(path):
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def lineage_of(
    *,
    plan: MergePlan,
    knobs: Mapping[str, Any],
    per_leaf: Mapping[str, Mapping[str, Any]],
    choice: TensorChoice,
    statistics: str,
    out: str | os.PathLike,
    inputs: Mapping[Path, str],
    roles: Sequence[tuple[str, WeightFolder]],
    dtype: str | None,
    small_files_from: str,
    files_left: Sequence[str],
    output: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The record: what was asked for, of which files, and what came of it."""
    all_knobs = {**knobs_of(plan.method), **knobs}
    given = [_input(role, folder, inputs, out) for role, folder in roles]
    record: dict[str, Any] = {
        "format": 1,
        "method": plan.method,
        "knobs": {name: _plain(value) for name, value in all_knobs.items()},
        "per_leaf": _plain(per_leaf),
        "layout": plan.layout,
        "dtype": dtype,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "inputs": given,
        "num_tensors": len(choice.merged) + len(choice.statistics),
        "statistics": statistics,
        "copied": {
            name: {"from": copied.source.path, "why": copied.why}
            for name, copied in choice.copied.items()
        },
        "left_out": dict(choice.left),
        "ties": dict(choice.ties),
        "small_files_from": small_files_from,
        "files_left_out": list(files_left),
        "notes": list(notes),
        "output": {"files": [dict(file) for file in output]},
    }
    if METHODS[plan.method].needs_key:
        record["seed"] = plan.seed
    record["output"]["sha256"] = _digest(record["output"]["files"])
    return record


def _input(role, folder, hashes, out):
    found = {
        "role": role,
        "path": os.fspath(folder.path),
        "from_here": _from_here(folder.files[0].parent, out),
        "files": [],
    }
    name = (read_config(folder.path) or {}).get("_name_or_path")
    if name and not os.path.isabs(name):
        found["name"] = name
    for path in folder.files:
        size = os.stat(path).st_size
        file = {"name": path.name, "size": size, "sha256": hashes[path]}
        found["files"].append(file)
    found["sha256"] = _digest(found["files"])
    return found


def _from_here(folder, out):
    """The way from the record to a folder, whichever directory is the working one."""
    try:
        way = os.path.relpath(os.path.realpath(folder), os.path.realpath(out))
    except ValueError:  # another drive
        return None
    return Path(way).as_posix()


def _digest(files):
    """One hash of many: of their names and hashes, in the order of the names."""
    lines = sorted(f"{file['sha256']}  {file['name']}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _versions():
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _plain(value):
    """In JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, str, int)):
        return value
    value = np.asarray(value).tolist()
    return value


def write_lineage(folder: Path, lineage: Mapping[str, Any]) -> None:
    """Writes the record into a folder."""
    write_text(folder / LINEAGE, json.dumps(lineage, indent=2) + "\n")


def read_lineage(folder: str | os.PathLike) -> dict[str, Any]:
    """The record of a folder that `merge_folders` has written.

    Raises:
        WeightsError: if there is none.
    """
    path = Path(folder) / LINEAGE
    try:
        lineage = json.loads(path.read_text())
        if lineage["format"] != 1:
            raise WeightsError(f"{path} was written by a newer ensjax.")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no {LINEAGE}; it was not written by ensjax soup."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is no record of a merge.") from error
    return lineage


class Verdict(NamedTuple):
    """Whether one file is what the record says.

    Attributes:
        path: of the file.
        role: "output", or what it was merged as.
        state: "same", "changed" or "missing".
    """

    path: Path
    role: str
    state: str


def verify_lineage(folder: str | os.PathLike) -> list[Verdict]:
    """Compares the files of a merge, and its inputs where they still are, by SHA-256.

    Inputs are looked for on the way from the record to them, so that any directory may
    be the working one and all may be moved together, and by their absolute paths if
    they were named so. One that is at neither place is "missing".

    Raises:
        WeightsError: if there is no record.
    """
    lineage = read_lineage(folder)
    verdicts = [
        _verdict(Path(folder) / file["name"], "output", file)
        for file in lineage["output"]["files"]
    ]
    for given in lineage["inputs"]:
        roots = _roots(given, folder)
        for file in given["files"]:
            found = [_verdict(r / file["name"], given["role"], file) for r in roots]
            verdicts.append(min(found, key=lambda verdict: _BEST.index(verdict.state)))
    return verdicts


_BEST = ("same", "changed", "missing")


def _roots(given, folder):
    """Folders in which an input's files may lie."""
    place = Path(given["path"])
    is_single = place.suffix and len(given["files"]) == 1 and not place.is_dir()
    named = place.parent if is_single else place
    way = given.get("from_here")
    if way is None:  # an earlier record, or another drive
        return [named]
    here = Path(os.path.normpath(Path(os.path.realpath(folder)) / way))
    return [here, named] if named.is_absolute() else [here]


def _verdict(path, role, file):
    if not path.is_file():
        return Verdict(path, role, "missing")
    is_same = (
        path.stat().st_size == file["size"] and file_sha256(path) == file["sha256"]
    )
    return Verdict(path, role, "same" if is_same else "changed")
