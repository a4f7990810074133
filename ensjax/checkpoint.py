"""Stacked pytrees to disk and back, through Orbax.

A tree is stored as a flat table of named arrays, so that a mismatch is reported by the
name of its leaf, with one chunk per member, so that a member can be read at the cost of
one. A save becomes visible only when it is whole.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from ensjax.members import pad_members

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


def _table(tree):
    """Named plain arrays: typed keys become their data."""
    leaves = [
        jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)
    ]
    return dict(zip(leaf_names(tree), leaves, strict=True))


def _target_table(like):
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


def _from_table(table, like):
    leaves = []
    for name, leaf in zip(leaf_names(like), jax.tree.leaves(like), strict=True):
        value = table[name]
        if _is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=_KEY_KINDS[str(leaf.dtype)])
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _one_chunk_a_member(table):
    """Without `shard_axes` Orbax would halve the longest axes instead."""
    return {
        name: ocp.SaveArgs(
            chunk_byte_size=max(1, x.nbytes // max(1, x.shape[0])), shard_axes=(0,)
        )
        for name, x in table.items()
    }


def _hush_orbax():
    """Orbax logs every step of a save, its barriers, and how small its chunks are."""
    logging.getLogger("absl").addFilter(_not_chatter)


def _not_chatter(record):
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname


class Checkpoints:
    """The checkpoints of one run, by step.

    Saving is asynchronous: it copies to the host and returns, and the files are written
    while training goes on. `close` (or `wait`) waits for the last of them.
    """

    def __init__(self, directory: Any, *, max_to_keep: int | None = 2):
        self.directory = epath.Path(directory)
        _hush_orbax()
        self._manager = ocp.CheckpointManager(
            self.directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, create=True, enable_async_checkpointing=True
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The last whole checkpoint's step; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving a stacked state, leaves `[row, ...]`, and JSON-able `meta`."""
        table = _table(state)
        args = _one_chunk_a_member(table)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(table, save_args=args),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def read_meta(self, step: int) -> dict[str, Any]:
        """What `save` was given as `meta`."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(
        self, step: int, like: Any, *, num_members: int | tuple[int, ...]
    ) -> Any:
        """The state of a step, on the devices and with the rows of `like`.

        Args:
            step: one that was saved.
            like: `jax.ShapeDtypeStruct`s `[row, ...]` with shardings. Its number of
                rows may differ from the stored one, as padding depends on the mesh.
            num_members: rows that are members; the others are padding. A tuple if
                `like` is a tuple of stacks.

        Raises:
            ValueError: if leaves are missing, superfluous or of another shape; named.
        """
        stored = self._manager.item_metadata(step)["state"].tree
        wanted = _target_table(like)
        _check_same_leaves(stored, wanted, self.directory)
        rows = {name: stored[name].shape[0] for name in wanted}
        target = {name: _with_rows(leaf, rows[name]) for name, leaf in wanted.items()}
        table = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                )
            ),
        )["state"]
        counts = num_members
        if isinstance(num_members, int):
            counts, like = (num_members,), (like,)
        members = [
            count
            for part, count in zip(like, counts, strict=True)
            for _ in jax.tree.leaves(part)
        ]
        for (name, leaf), count in zip(wanted.items(), members, strict=True):
            if rows[name] != leaf.shape[0]:
                repad = jax.jit(
                    lambda x, n=leaf.shape[0], m=count: pad_members(x[:m], n),
                    out_shardings=leaf.sharding,
                )
                table[name] = repad(table[name])
        if isinstance(num_members, int):
            like = like[0]
        return _from_table(table, like)

    def wait(self) -> None:
        """Waits until everything saved so far is on disk; raises what went wrong."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the directory."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _with_rows(leaf, rows):
    shape = (rows, *leaf.shape[1:])
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding) and rows != leaf.shape[0]:
        spec = sharding.spec
        if spec and spec[0] and rows % sharding.mesh.shape["member"]:
            sharding = NamedSharding(sharding.mesh, jax.P(None, *spec[1:]))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def _check_same_leaves(stored, wanted, directory):
    for name in wanted:
        if name not in stored:
            raise ValueError(
                f"{directory} holds no leaf {name!r}; it was written for another model"
                f" or optimizer. It holds: {', '.join(sorted(stored))}."
            )
        if tuple(stored[name].shape[1:]) != tuple(wanted[name].shape[1:]):
            raise ValueError(
                f"{name} is {list(stored[name].shape[1:])} for each member in"
                f" {directory}, but {list(wanted[name].shape[1:])} here; the model,"
                " the optimizer or the data differ."
            )
        if np.dtype(stored[name].dtype) != np.dtype(wanted[name].dtype):
            raise ValueError(
                f"{name} is {stored[name].dtype} in {directory}, but"
                f" {wanted[name].dtype} here."
            )
    for name in stored:
        if name not in wanted:
            raise ValueError(
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
    table = _table(tree)
    args = _one_chunk_a_member(table)
    _hush_orbax()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), table, save_args=args)


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
    """Reads what `save_tree` wrote onto the devices of `like`; see `restore`."""
    path = epath.Path(path)
    wanted = _target_table(like)
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path.resolve()).item_metadata.tree
        _check_same_leaves(stored, wanted, path)
        args = ocp.checkpoint_utils.construct_restore_args(wanted)
        table = checkpointer.restore(path.resolve(), item=wanted, restore_args=args)
    return _from_table(table, like)


def stored_shapes(path: Any) -> dict[str, tuple[int, ...]]:
    """Shapes `[member, ...]` of the leaves in what `save_tree` wrote, by name.

    Raises:
        ValueError: if there is nothing at `path`.
    """
    path = epath.Path(path)
    if not path.exists():
        raise ValueError(f"There is no saved ensemble at {path}.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path.resolve()).item_metadata.tree
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}
