"""JSON on disk: valid for every reader, and never half-written.

JSON has no NaN and no infinities: numbers that are not finite are written as `null`.
"""

import json
import math
import os
import threading
from typing import Any

import numpy as np
from etils import epath

from ensjax.experiment.exit_codes import ConfigError


def to_json_value(value: Any) -> Any:
    """`value` in JSON's own types: tuples and arrays as lists, non-finite as None.

    Raises:
        TypeError: if a leaf is neither a number, a string, a bool nor None.
    """
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__array__"):  # NumPy and JAX arrays and scalars
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.bool_) and array.dtype.kind not in "iu":
            array = array.astype(np.float64)  # also bfloat16
        return to_json_value(array.tolist())
    raise TypeError(
        "JSON holds numbers, strings, bools, lists and dicts; got"
        f" {type(value).__name__} ({value!r}). Convert it first."
    )


# Folders, separated as in PATH, where object stores are mounted (gcsfuse, s3fs).
OBJECT_STORE_FOLDERS = "ENSJAX_OBJECT_STORE_FOLDERS"


def is_local(path: str | os.PathLike) -> bool:
    """Whether `path` lies on a file system of this machine, with locks and appending.

    `gs://` and `s3://` do not, nor do the folders that the environment variable
    ENSJAX_OBJECT_STORE_FOLDERS names because an object store is mounted there.
    """
    path = os.fspath(path)
    if "://" in path or path.startswith("gs:/"):
        return False
    place = os.path.abspath(path)
    folders = os.environ.get(OBJECT_STORE_FOLDERS, "").split(os.pathsep)
    return not any(
        os.path.commonpath([place, os.path.abspath(folder)]) == os.path.abspath(folder)
        for folder in folders
        if folder
    )


def check_json_option(file: str) -> None:
    """Raises `ConfigError` if `--json FILE` cannot be written, before hours of work."""
    if not is_local(file):
        return
    folder = os.path.dirname(os.path.abspath(file))
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--json {file}: cannot write into {folder}.")
    if os.path.isdir(file):
        raise ConfigError(f"--json {file} is a folder; name a file.")


def write_bytes(path: epath.Path, data: bytes) -> None:
    """Replaces the file at once: a reader sees the old content or the new, whole.

    Raises:
        OSError: if the disk is full; the earlier file is left as it was.
    """
    if not is_local(path):  # one upload is one object there
        epath.Path(path).write_bytes(data)
        return
    # A lease is renewed by a thread, beside what the run writes.
    owner = f"{os.getpid()}.{threading.get_ident()}"
    temporary = path.parent / f".{path.name}.{owner}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(path: epath.Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any) -> str:
    """`value` as indented JSON with a final line break."""
    return json.dumps(to_json_value(value), indent=2, allow_nan=False) + "\n"


def write_json(path: epath.Path, value: Any) -> None:
    """Writes `value` as JSON, at once (see `write_bytes`)."""
    write_bytes(path, json_text(value).encode())


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in the file.

    Raises:
        ConfigError: if there is no such file, or it holds no JSON object; names it.
    """
    try:
        value = json.loads(epath.Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} holds no valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} must hold a JSON object; got {type(value).__name__}."
        )
    return value
