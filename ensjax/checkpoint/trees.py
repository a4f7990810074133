"""Stacked trees as flat tables of named arrays, in a directory of their own.

A mismatch is reported by the name of its leaf. There is one chunk per member, so that
a member can be read at the cost of one. A directory becomes visible only when it is
whole.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ensjax.checkpoint import seals
from ensjax.checkpoint.checksums import row_checksums
from ensjax.checkpoint.reading import read_or_damaged

_KEY_KINDS = {
    "key<fry>": "threefry2x32",
    "key<rbg>": "rbg",
    "key<urbg>": "unsafe_rbg",
}


def leaf_names(tree: Any) -> list[str]:
    """A readable, unique name for every leaf: `params.dense.kernel`."""
    names = []
    for path, _ in jax.tree.leaves_with_path(tree):
        name = re.sub(r"[^A-Za-z0-9_]+", ".", jax.tree_util.keystr(path)).strip(".")
        names.append(name.removesuffix(".value") or "array")
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{n}.{i}" if n in repeated else n for i, n in enumerate(names)]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def from_plain(value: Any, dtype: Any) -> Any:
    """An array as it is stored, as typed keys where `dtype` says that it was such."""
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return value
    return jax.random.wrap_key_data(jnp.asarray(value), impl=_KEY_KINDS[str(dtype)])


def table_of(tree):
    """Named plain arrays: typed keys become their data."""
    leaves = [
        jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)
    ]
    return dict(zip(leaf_names(tree), leaves, strict=True))


def target_table(like):
    """The shapes and shardings that `_table` gives for an abstract tree."""

    def target(leaf):
        if not _is_key(leaf):
            return leaf
        data = jax.eval_shape(
            jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        )
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    leaves = [target(leaf) for leaf in jax.tree.leaves(like)]
    return dict(zip(leaf_names(like), leaves, strict=True))


def from_table(table, like, names=None):
    leaves = []
    names = leaf_names(like) if names is None else names
    for name, leaf in zip(names, jax.tree.leaves(like), strict=True):
        leaves.append(from_plain(table[name], leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def one_chunk_a_member(table):
    """Without `shard_axes` Orbax would halve the longest axes instead."""
    return {
        name: ocp.SaveArgs(
            chunk_byte_size=max(1, x.nbytes // max(1, x.shape[0])), shard_axes=(0,)
        )
        for name, x in table.items()
    }


def hush_orbax():
    """Orbax logs every step of a save, its barriers, and how small its chunks are.

    Also the tracebacks of what goes wrong in its threads, which is raised again where
    the save is waited for; and of writes that are still under way then, and whose event
    loop has gone.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_chatter)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


def _not_chatter(record):
    if record.name == "asyncio":
        error = record.exc_info[1] if record.exc_info else None
        return "OCDBT" not in str(error) and "orbax" not in str(error)
    is_news = record.levelno >= logging.ERROR and not record.exc_info
    return is_news or "orbax" not in record.pathname


class _WithoutClosedLoops:
    """What Python does with errors that nobody can catch, but for one kind."""

    def __init__(self, hook):
        self._hook = hook

    def __call__(self, unraisable):
        is_closed_loop = isinstance(unraisable.exc_value, RuntimeError) and (
            str(unraisable.exc_value) == "Event loop is closed"
        )
        if unraisable.object is not None or not is_closed_loop:
            self._hook(unraisable)


class OtherLeaves(ValueError):
    """What is stored has other leaves than what it is read for."""


def check_same_leaves(stored, wanted, directory):
    """Raises `OtherLeaves` if names, shapes or types differ; names the first leaf."""
    for name in wanted:
        if name not in stored:
            raise OtherLeaves(
                f"{directory} holds no leaf {name!r}; it was written for another model"
                f" or optimizer. It holds: {', '.join(sorted(stored))}."
            )
        if tuple(stored[name].shape[1:]) != tuple(wanted[name].shape[1:]):
            raise OtherLeaves(
                f"{name} is {list(stored[name].shape[1:])} for each member in"
                f" {directory}, but {list(wanted[name].shape[1:])} here; the model,"
                " the optimizer or the data differ."
            )
        if np.dtype(stored[name].dtype) != np.dtype(wanted[name].dtype):
            raise OtherLeaves(
                f"{name} is {stored[name].dtype} in {directory}, but"
                f" {wanted[name].dtype} here."
            )
    for name in stored:
        if name not in wanted:
            raise OtherLeaves(
                f"{directory} holds a leaf {name!r} that this run lacks; it was written"
                " for another model or optimizer."
            )


def save_tree(path: Any, tree: Any) -> None:
    """Writes a stacked tree to a new directory and waits until it is there.

    Raises:
        ValueError: if the path exists; nothing is overwritten.
    """
    path = epath.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another path or remove it first.")
    table = table_of(tree)
    args = one_chunk_a_member(table)
    hush_orbax()
    sealed = seals.seal({}, table, row_checksums(table))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), table, save_args=args)
    if jax.process_index() == 0:
        _seal_of(path).write_text(json.dumps(sealed))


def _seal_of(path):
    """Beside the directory, with the checksums of its leaves and members."""
    return path.parent / f"{path.name}.json"


@contextlib.contextmanager
def written_whole(path: Any) -> Iterator[epath.Path]:
    """A directory to write to, which becomes `path` only when all is there.

    Raises:
        ValueError: if `path` exists; nothing is overwritten.
    """
    path = epath.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another path or remove it first.")
    partial = path.parent / f".{path.name}.partial"
    is_main = jax.process_index() == 0
    if is_main and partial.exists():  # left by a save that was interrupted
        partial.rmtree()
    try:
        yield partial
        if is_main:
            partial.rename(path)
    except BaseException:
        if is_main and partial.exists():
            partial.rmtree()
        raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {path}")


def load_tree(path: Any, like: Any) -> Any:
    """Reads what `save_tree` wrote onto the devices of `like`; see `restore`.

    Raises:
        ValueError: if leaves are missing, superfluous or of another shape; named.
        DamagedCheckpoint: if the rows of a member are not what was saved. Directories
            that were written without checksums are not compared.
    """
    path = epath.Path(path)
    wanted = target_table(like)
    check_same_leaves(_stored_tree(path), wanted, path)
    with ocp.PyTreeCheckpointer() as checkpointer:
        args = ocp.checkpoint_utils.construct_restore_args(wanted)
        table = read_or_damaged(
            lambda: checkpointer.restore(path.resolve(), item=wanted, restore_args=args)
        )
    if _seal_of(path).exists():
        leaves = read_or_damaged(
            lambda: seals.unseal(json.loads(_seal_of(path).read_text()))[1]
        )
        found = row_checksums(table)
        for name, leaf in leaves.items():
            leaf.check(name, found[name], np.arange(leaf.shape[0]))
    return from_table(table, like)


def _stored_tree(path):
    """The leaves as Orbax describes them; None there stands for what is torn."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = read_or_damaged(lambda: checkpointer.metadata(path.resolve()))
    if found.item_metadata is None:
        raise seals.DamagedCheckpoint(f"the arrays in {path} cannot be read")
    return found.item_metadata.tree


def stored_shapes(path: Any) -> dict[str, tuple[int, ...]]:
    """Shapes `[member, ...]` of the leaves in what `save_tree` wrote, by name.

    Raises:
        ValueError: if there is nothing at `path`.
        DamagedCheckpoint: if it cannot be read.
    """
    path = epath.Path(path)
    if not path.exists():
        raise ValueError(f"There is no saved ensemble at {path}.")
    tree = _stored_tree(path)
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}
