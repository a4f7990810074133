"""`Checkpoints`: the states of one run by step, through Orbax.

A save becomes visible only when it is whole, and what was damaged since is noticed
when it is read: by a checksum of every leaf and member, which lie in the checkpoint's
own JSON under one more.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from ensjax.checkpoint import seals
from ensjax.checkpoint.checksums import row_checksums
from ensjax.checkpoint.reading import read_or_damaged
from ensjax.checkpoint.seals import DamagedCheckpoint
from ensjax.checkpoint.trees import (
    check_same_leaves,
    from_table,
    hush_orbax,
    one_chunk_a_member,
    table_of,
    target_table,
)
from ensjax.mesh import from_first_process

T = TypeVar("T")


class _Manager(ocp.CheckpointManager):
    """Leaves the agreement on a preemption to the training loop.

    Orbax would ask for it at every save, under numbers of its own, and the processes
    would wait for a number that never comes.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, by step.

    Saving is asynchronous: it copies to the host and returns, and the files are written
    while training goes on. `close` (or `wait`) waits for the last of them. In a job of
    several processes every method is collective, and what one process cannot read is
    damaged for all.
    """

    def __init__(self, directory: Any, *, max_to_keep: int | None = 2):
        self.directory = epath.Path(directory)
        self._damaged: list[int] = []
        self._is_tidy = False
        hush_orbax()
        self._manager = _Manager(
            self.directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                create=True,
                enable_async_checkpointing=True,
                lightweight_initialize=True,  # a damaged one must not stop us here
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The last committed checkpoint's step; None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of all committed checkpoints, ascending; damaged ones included."""
        return from_first_process(sorted(self._manager.all_steps()))

    def newest_whole(
        self, read: Callable[[int], T], *, say: Callable[[str], None]
    ) -> tuple[int, T] | None:
        """The newest step that can be read, with what `read(step)` returns for it.

        A checkpoint for which `read` raises `DamagedCheckpoint` is passed over, and
        moved to `<step>.damaged` when the next one is saved: it is never read again,
        nor deleted.

        Args:
            read: calls `read_meta` and `restore`.
            say: is given one line if a checkpoint was passed over.

        Returns:
            None if nothing was saved.

        Raises:
            DamagedCheckpoint: if no checkpoint is whole. Nothing is moved then.
        """
        damaged = {}
        for step in reversed(self.all_steps()):
            try:
                value = read(step)
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
                continue
            if damaged:
                say(f"{'; '.join(damaged.values())}; going on from step {step}")
            self._damaged = list(damaged)
            return step, value
        if damaged:
            raise DamagedCheckpoint(
                f"no checkpoint in {self.directory} is whole: "
                f"{'; '.join(damaged.values())}. Nothing was changed there. Put a whole"
                " one back, or start in another directory."
            )
        return None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving a stacked state, leaves `[row, ...]`, and JSON-able `meta`."""
        self._move_damaged()
        self._remove_torn()
        table = table_of(state)
        args = one_chunk_a_member(table)
        sealed = seals.seal(meta, table, row_checksums(table))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(table, save_args=args),
                meta=ocp.args.JsonSave(sealed),
            ),
            force=True,  # whether it is time is known to the caller
        )

    def read_meta(self, step: int) -> dict[str, Any]:
        """What `save` was given as `meta`.

        Raises:
            DamagedCheckpoint: if it cannot be read, or is not what was written.
        """
        return self._unsealed(step)[0]

    def read_leaves(self, step: int) -> dict[str, seals.Leaf]:
        """Shapes, dtypes and checksums of what was saved, by the names of leaves.

        Raises:
            DamagedCheckpoint: if they cannot be read, or are not what was written.
        """
        leaves = self._unsealed(step)[1]
        if leaves is None:
            raise DamagedCheckpoint(f"checkpoint {step} has no checksums")
        return leaves

    def restore(
        self,
        step: int,
        like: Any,
        *,
        num_members: int | tuple[int, ...] | None = None,
        rows: tuple[np.ndarray, ...] | None = None,
        stacks: Sequence[int] | None = None,
    ) -> Any:
        """The state of a step, on the devices and with the rows of `like`.

        Args:
            step: one that was saved.
            like: `jax.ShapeDtypeStruct`s `[row, ...]` with shardings. Its number of
                rows may differ from the stored one, as padding depends on the mesh.
            num_members: rows that are members; the others are padding. A tuple if
                `like` is a tuple of stacks.
            rows: instead, for every stack, which stored rows are taken, in their order.
            stacks: which of the stored stacks those of `like` are; default: all.

        Raises:
            ValueError: if leaves are missing, superfluous or of another shape; named.
            DamagedCheckpoint: if files are missing or torn, or the rows of a member are
                not what was saved; names leaf and member. Checkpoints of versions that
                kept no checksums are not compared.
        """
        if rows is None:
            is_tuple = not isinstance(num_members, int)
            counts = num_members if is_tuple else (num_members,)
            rows = tuple(np.arange(count) for count in counts)
            if not is_tuple:
                like = (like,)
        else:
            is_tuple = True
        stacks = range(len(rows)) if stacks is None else stacks
        _, leaves = self._unsealed(step)
        if leaves is None:
            stored = self._read(step, _stored_leaves)
        else:
            stored = {name: leaf.abstract() for name, leaf in leaves.items()}
        whole = like if is_tuple else like[0]
        if is_tuple:
            places = dict(zip(stacks, like, strict=True))
            whole = tuple(places.get(i) for i in range(1 + max(places)))
            own = tuple(f"{i}." for i in stacks)
            asked = {n: x for n, x in stored.items() if n.startswith(own)}
        else:
            asked = stored
        wanted = target_table(whole)
        check_same_leaves(asked, wanted, self.directory)
        target = {
            name: _with_rows(leaf, stored[name].shape[0])
            for name, leaf in wanted.items()
        }

        def read(path):
            if leaves is not None:
                seals.check_leaves(_stored_leaves(path), stored)
            args = ocp.args.PyTreeRestore(
                target,
                restore_args=_restore_args(target, stored),
                partial_restore=len(asked) < len(stored),
            )
            return ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)

        table = self._read(step, read)
        taken = [
            own
            for part, own in zip(like, rows, strict=True)
            for _ in jax.tree.leaves(part)
        ]
        taken = dict(zip(wanted, taken, strict=True))
        if leaves is not None:
            found = row_checksums(table)  # collective, and the same everywhere
            with _naming(step):
                for name, own in taken.items():
                    leaves[name].check(name, found[name], own)
        for name, leaf in wanted.items():
            table[name] = _take_rows(table[name], taken[name], leaf)
        return from_table(table, whole if not is_tuple else like, names=list(wanted))

    def wait(self) -> None:
        """Waits until everything saved so far is on disk; raises what went wrong."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the directory."""
        self._manager.close()

    def _unsealed(self, step):
        """The step's `meta` and leaves; see `seals.unseal`."""

        def read(path):
            handler = ocp.JsonCheckpointHandler()
            stored = handler.restore(path / "meta", args=ocp.args.JsonRestore())
            return seals.unseal(stored)

        return self._read(step, read)

    def _read(self, step, read):
        """`read(the step's folder)`, or `DamagedCheckpoint` on all processes.

        Orbax's manager is passed by: it meets the other processes at a barrier, where
        they would wait for one that cannot read its part.
        """
        path = self.directory.resolve() / str(step)
        with _naming(step):
            return read_or_damaged(lambda: read(path))

    def _move_damaged(self):
        """Takes what was passed over out of the way of steps to be saved."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                moved = self.directory / f"{step}.damaged"
                while moved.exists():  # the same step was damaged before
                    moved = moved.parent / f"{moved.name}-again"
                (self.directory / str(step)).rename(moved)
        self._damaged = []
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("moved damaged checkpoints")
        self._manager.reload()

    def _remove_torn(self):
        """Removes what saves that were cut off have left; before the first save.

        Not when the directory is opened: whoever only reads must not touch the save of
        the run that is under way.
        """
        if not self._is_tidy and jax.process_index() == 0:
            for folder in self.directory.glob("*.orbax-checkpoint-tmp*"):
                folder.rmtree()
        self._is_tidy = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def _naming(step):
    try:
        yield
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(f"checkpoint {step} is damaged ({error})") from None


def _stored_leaves(path):
    """The leaves of a step as Orbax describes them, by name."""
    return ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def _take_rows(stored, rows, leaf):
    """Some rows of an array with the shape and sharding of `leaf`, padded by row 0."""
    if stored.shape == leaf.shape and (rows == np.arange(len(rows))).all():
        return stored
    padded = np.concatenate([rows, np.repeat(rows[:1], leaf.shape[0] - len(rows))])
    take = jax.jit(lambda x, index: x[index], out_shardings=leaf.sharding)
    # Waited for: on CPU devices many programs that exchange rows, all under way at
    # once, can wait for each other for ever.
    return jax.block_until_ready(take(stored, padded.astype(np.int32)))


def _with_rows(leaf, rows):
    """A leaf with as many rows as are stored, or so many more that devices share them.

    Else every device would hold all members for a while.
    """
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding) and sharding.spec and sharding.spec[0]:
        devices = sharding.mesh.shape["member"]
        rows = -(-rows // devices) * devices
    shape = (rows, *leaf.shape[1:])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def _restore_args(target, stored):
    args = ocp.checkpoint_utils.construct_restore_args(target)
    for name, leaf in target.items():
        if leaf.shape[0] != stored[name].shape[0]:  # Orbax fills up with zeros
            args[name] = dataclasses.replace(args[name], strict=False)
    return args
