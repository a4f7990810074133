"""What a checkpoint says about itself, so that damage to any part of it is noticed.

Its JSON lists every leaf with shape, dtype and a checksum for each row, and ends with a
CRC-32 of the whole text: the seal. So a flipped byte in the JSON breaks the seal, one
in Orbax's own descriptions gives leaves that are not on the list, and one in the data
gives another checksum.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

_PARTS = {"meta", "leaves", "crc32"}


class DamagedCheckpoint(ValueError):
    """A checkpoint was whole when it was written, and is not any more."""


class Leaf(NamedTuple):
    """One array as it was saved.

    Attributes:
        shape: `[row, ...]`, padding included.
        dtype: by NumPy's name.
        checksums: `[row]`, see `ensjax.checkpoint.checksums`.
    """

    shape: tuple[int, ...]
    dtype: str
    checksums: np.ndarray

    def abstract(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype as JAX knows them."""
        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))

    def check(self, name: str, checksums: np.ndarray, rows: np.ndarray) -> None:
        """Raises `DamagedCheckpoint` unless some rows are what was saved."""
        changed = self.checksums[rows] != checksums[rows]
        if changed.any():
            rows = np.asarray(rows)[changed]
            shown = ", ".join(map(str, rows[:8])) + ", ..." * (len(rows) > 8)
            raise DamagedCheckpoint(f"{name} of member {shown} is not what was saved")


def seal(
    meta: Mapping[str, Any],
    table: Mapping[str, Any],
    checksums: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The JSON of a checkpoint: `meta`, and what is needed to check all of it.

    Args:
        meta: JSON-able.
        table: the named arrays `[row, ...]`.
        checksums: `[row]` of each.
    """
    leaves = {
        name: {
            "shape": list(x.shape),
            "dtype": str(np.dtype(x.dtype)),
            "checksums": checksums[name].astype(">u4").tobytes().hex(),
        }
        for name, x in table.items()
    }
    sealed = {"meta": meta, "leaves": leaves}
    return sealed | {"crc32": _crc32(sealed)}


def unseal(stored: Any) -> tuple[dict[str, Any], dict[str, Leaf] | None]:
    """`meta` and the leaves by name; None for a checkpoint written without a seal.

    Raises:
        DamagedCheckpoint: if the seal is broken.
    """
    if not isinstance(stored, dict):
        raise DamagedCheckpoint("its JSON holds no object")
    if not _PARTS & stored.keys():  # of version 0.1
        return stored, None
    parts = {name: value for name, value in stored.items() if name != "crc32"}
    if stored.keys() != _PARTS or stored["crc32"] != _crc32(parts):
        raise DamagedCheckpoint("its JSON is not what was saved")
    leaves = {
        name: Leaf(
            tuple(leaf["shape"]),
            leaf["dtype"],
            np.frombuffer(bytes.fromhex(leaf["checksums"]), ">u4").astype(np.uint32),
        )
        for name, leaf in stored["leaves"].items()
    }
    return stored["meta"], leaves


def check_leaves(found: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises `DamagedCheckpoint` unless both have the same names, shapes and dtypes."""
    for name in saved.keys() | found.keys():
        if name not in found:
            raise DamagedCheckpoint(f"{name} is missing")
        if name not in saved:
            raise DamagedCheckpoint(f"it describes a leaf {name!r} that was not saved")
        if tuple(found[name].shape) != tuple(saved[name].shape) or (
            np.dtype(found[name].dtype) != np.dtype(saved[name].dtype)
        ):
            raise DamagedCheckpoint(f"its description of {name} is not what was saved")


def _crc32(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
