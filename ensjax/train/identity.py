"""What makes a run the run it is, as JSON: a checkpoint of another one is refused."""

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mesh import fetch

# Metadata of a dataclass's field that the class has not always had: at its default it
# is not described, and checkpoints from before there was the field stay what they are.
LATER = {"is_later": True}


def describe(value: Any) -> Any:
    """A function or a setting by what it is called and what it holds.

    Functions are told apart by their names alone: a checkpoint outlives the process
    that wrote it, and code may be edited in between.

    Args:
        value: a function, a `functools.partial`, a dataclass, a number, an array, or
            tuples and dicts of these.

    Returns:
        What JSON can hold, equal for equal settings in any process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, functools.partial):
        return ["partial", *map(describe, (value.func, value.args, value.keywords))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if not _is_as_before(field, value)
        }
        return [type(value).__name__, describe(fields)]
    if isinstance(value, dict):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return digest(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _is_as_before(field, value):
    is_later = field.metadata.get("is_later", False)
    return is_later and getattr(value, field.name) == field.default


def digest(tree: Any) -> str | None:
    """A checksum of all arrays of a tree; None where a process holds only parts."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        is_whole = not isinstance(leaf, jax.Array) or (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        if not is_whole:
            return None
        array = np.ascontiguousarray(jax.device_get(leaf))
        about = f"{array.dtype}{array.shape}".encode()
        checksum = zlib.crc32(array.view(np.uint8).reshape(-1), checksum)
        checksum = zlib.crc32(about, checksum)
    return f"{checksum:08x}"


# Entries of each leaf that a fingerprint looks at, and how far two may differ: another
# mesh rounds initial weights differently.
_ENTRIES = 64
_TOLERANCE = 1e-4


def fingerprint(params: Any) -> list[list[float]]:
    """Two random projections of some entries of every member's weights, and their norm.

    Args:
        params: leaves `[member, ...]`, which may live on several devices or processes.

    Returns:
        Three numbers for each member; compare them with `began_alike`.
    """
    return np.asarray(fetch(_projections(params)), float).tolist()


@jax.jit
def _projections(params):
    entries = []
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            rows = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
            stride = max(1, rows.shape[1] // _ENTRIES)
            entries.append(rows[:, ::stride][:, :_ENTRIES])
    entries = jnp.concatenate(entries, axis=1)
    directions = np.random.default_rng(0).normal(size=(entries.shape[1], 2))
    along = (entries[:, :, None] * directions[None].astype(np.float32)).sum(axis=1)
    norm = jnp.linalg.norm(entries, axis=1, keepdims=True)
    return jnp.concatenate([along, norm], axis=1)


def began_alike(stored: Any, ours: Any) -> bool:
    """Whether two fingerprints are of the same weights."""
    stored, ours = np.asarray(stored, float), np.asarray(ours, float)
    if stored.shape != ours.shape:
        return False
    # A member may be broken from the start.
    if (np.isfinite(stored) != np.isfinite(ours)).any():
        return False
    with np.errstate(invalid="ignore"):
        is_close = np.abs(stored - ours) <= _TOLERANCE * ours[:, 2:]
    return bool((is_close | ~np.isfinite(ours)).all())
