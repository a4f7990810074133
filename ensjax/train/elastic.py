"""Where the members of a run are stored, as the run grows, shrinks and takes members.

A checkpoint directory holds the steps of a run. When its members change, the new set is
saved in a folder of its own, `generation-1`, `generation-2` and so on; the older ones
stay as they are. Members that have to catch up are saved in `joining-...` until they
have, and these folders go once the generation that they join is on disk.
"""

import contextlib
import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ensjax.checkpoint import Checkpoints, DamagedCheckpoint
from ensjax.mesh import from_first_process
from ensjax.train.agreement import (
    OtherRun,
    as_json,
    check_intervals,
    check_members,
    check_same,
    is_same,
)


@dataclasses.dataclass(frozen=True)
class Stored:
    """The last whole checkpoint in one directory.

    Attributes:
        directory: of the checkpoints.
        step: steps done.
        run: the identity of the run.
        facts: of its members, name -> list in the order of the stored rows.
        meta: the rest of what was saved with it.
    """

    directory: str
    step: int
    run: dict[str, Any]
    facts: dict[str, list[Any]]
    meta: dict[str, Any]

    @classmethod
    def of(cls, directory: Any, step: int, meta: dict[str, Any]) -> "Stored":
        """From what was saved with a step.

        Raises:
            ValueError: if another version has written it.
        """
        if not {"run", "members", "history"} <= meta.keys():
            raise OtherRun(
                f"{directory} holds a checkpoint of an older version of ensjax, which"
                " cannot be resumed. Start in another checkpoint_dir."
            )
        return cls(str(directory), step, meta["run"], meta["members"], meta)

    @property
    def ids(self) -> list[int]:
        """Of its members, stack by stack."""
        return self.facts["ids"]

    def stack_of(self, column: int) -> int:
        """Which of the stored stacks holds a member."""
        numbers = self.facts["stack"]
        return sorted(set(numbers)).index(numbers[column])

    @property
    def root(self) -> str:
        """The checkpoint directory of its run."""
        path = epath.Path(self.directory)
        return str(path.parent if _NAMES.fullmatch(path.name) else path)

    @functools.cached_property
    def columns(self) -> dict[tuple[int, int], int]:
        """(id, stack) of every member -> its column."""
        keys = zip(self.ids, self.facts["stack"], strict=True)
        return {key: column for column, key in enumerate(keys)}

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The row of every member in its stack."""
        stacks = np.asarray(self.facts["stack"])
        rows = np.zeros(len(stacks), int)
        for stack in set(stacks.tolist()):
            rows[stacks == stack] = np.arange((stacks == stack).sum())
        return rows


@dataclasses.dataclass(frozen=True)
class Part:
    """Members of a run that are at one step in one place.

    Attributes:
        stored: where they are; None: they begin.
        members: their places in the run.
        columns: their columns in `stored`.
    """

    stored: Stored | None
    members: np.ndarray
    columns: np.ndarray

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.stored is None else self.stored.step


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run begins: its parts, by their steps, and where it is saved.

    Attributes:
        parts: of all members, those that have made the fewest steps first.
        directory: for the whole run.
        is_there: whether it holds the whole run already.
        damaged: (directory, step) of checkpoints that cannot be read, and why.
        notes: a line for each directory where such a one was passed over.
    """

    parts: tuple[Part, ...]
    directory: str
    is_there: bool
    damaged: dict[tuple[str, int], str]
    notes: tuple[str, ...]

    def pass_over_damaged(self, checkpoints: Checkpoints) -> None:
        """Tells the one that saves, which moves them out of the way then."""
        _newest(checkpoints, self.damaged, lambda line: None)


def find_origin(
    run: Any,
    checkpoint_dir: Any,
    members_from: Sequence[Any],
    damaged: dict[tuple[str, int], str],
) -> Origin:
    """Looks for every member of a run where it is stored with the most steps.

    Args:
        run: the whole run.
        checkpoint_dir: its own directory.
        members_from: checkpoint directories of other runs of the same settings.
        damaged: (directory, step) of checkpoints that are not looked at, and why.

    Raises:
        ValueError: if a directory holds another run, a member that began with other
            weights or has other hyperparameters, or too many steps.
        DamagedCheckpoint: if no checkpoint of a directory is whole.
    """
    notes: list[str] = []
    broken: list[DamagedCheckpoint] = []

    def find(directory):
        found = []
        for path in _stores(directory):
            try:
                found.append(_stored(path, damaged, notes.append))
            except DamagedCheckpoint as error:  # another may hold its members
                broken.append(error)
                which, *_ = str(error).split(". ")
                notes.append(f"{which}; its members are looked for elsewhere")
        return found

    root = epath.Path(checkpoint_dir)
    own, others = find(root), []
    if broken and not any(own):
        raise broken[0]
    for directory in members_from:
        known = len(broken)
        found = find(epath.Path(directory))
        if not any(found) and len(broken) > known:
            raise broken[known]
        if not any(found):
            raise OtherRun(
                f"{directory} of members_from holds no checkpoint; give the folder"
                " `checkpoints` of a run."
            )
        others += found
    stores = []
    for stored in filter(None, own + others):
        if not _is_joining(stored.directory):
            check_same(stored.run, run.identity, stored.directory)
        elif not is_same(stored.run, run.identity):
            continue  # left by another run that wanted to grow
        if stored.step > run.schedule.steps:
            raise OtherRun(
                f"{stored.directory} holds step {stored.step} of a run, but steps="
                f"{run.schedule.steps}. Pass at least {stored.step}, or another"
                " checkpoint_dir."
            )
        stores.append(stored)
    parts = _parts(run, stores)
    if len(parts) > 1 and run.keeps_best:
        check_intervals(run, parts)
    whole = parts[0].stored if len(parts) == 1 else None
    if whole is not None and whole.ids == run.facts["ids"]:
        at_home = epath.Path(whole.directory) in (root, *_generations(root))
        if at_home:
            return Origin(parts, whole.directory, True, damaged, tuple(notes))
    if not any(stores):
        return Origin(parts, str(root), False, damaged, tuple(notes))
    if run.is_joint:
        raise OtherRun(
            f"{root} holds other members than this run has, and under a joint objective"
            " a member depends on all others: they cannot be added, removed or taken"
            " over. Use another checkpoint_dir."
        )
    numbers = [_number(path) for path in _generations(root)]
    new = root / f"generation-{max(numbers, default=0) + 1}"
    return Origin(parts, str(new), False, damaged, tuple(notes))


def stored_in(checkpoint_dir: Any, *, every_step: bool = False) -> list[Stored]:
    """What the checkpoints of a run hold: the newest of every generation, or all.

    Those whose own JSON is damaged are left out.

    Raises:
        DamagedCheckpoint: without `every_step`, if none of a directory is whole.
    """
    found = []
    root = epath.Path(checkpoint_dir)
    for path in [root, *_generations(root)] if root.exists() else []:
        if not every_step:
            found.append(_stored(path, {}, lambda line: None))
            continue
        with Checkpoints(path) as checkpoints:
            for step in checkpoints.all_steps():
                with contextlib.suppress(DamagedCheckpoint):
                    meta = checkpoints.read_meta(step)
                    found.append(Stored.of(path, step, meta))
    return [stored for stored in found if stored is not None]


def joining_directory(checkpoint_dir: Any, ids: Sequence[int]) -> str:
    """Where some members are saved until they have caught up."""
    digest = zlib.crc32(json.dumps(sorted(ids)).encode())
    return str(epath.Path(checkpoint_dir) / f"joining-{digest:08x}")


def remove_joining(checkpoint_dir: Any, ids: Sequence[int]) -> None:
    """Removes what was saved of members that have caught up, all among `ids`."""
    for path in _stores(epath.Path(checkpoint_dir)):
        if not _is_joining(path):
            continue
        stored = _stored(path, {}, lambda line: None)
        if stored is None:  # nothing was saved, or nothing of it can be read
            is_done = not any(step.name.isdecimal() for step in path.iterdir())
        else:
            is_done = set(stored.ids) <= set(ids)
        if is_done and jax.process_index() == 0:
            path.rmtree()


def set_aside(directory: Any) -> None:
    """Takes a folder of members that catch up, of which nothing is whole, away."""
    path = epath.Path(directory)
    if jax.process_index() == 0 and path.exists():
        moved = path.parent / f"{path.name}.damaged"
        while moved.exists():
            moved = moved.parent / f"{moved.name}-again"
        path.rename(moved)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {path}")


def _stored(directory, damaged, say) -> Stored | None:
    """The newest whole checkpoint of a directory; None if none was saved."""
    with Checkpoints(directory) as checkpoints:
        try:
            found = _newest(checkpoints, damaged, say)
        except DamagedCheckpoint:
            if _is_joining(directory):  # its members catch up again
                return None
            raise
    return None if found is None else Stored.of(directory, *found)


def _newest(checkpoints, damaged, say):
    def read(step):
        reason = damaged.get((str(checkpoints.directory), step))
        if reason is not None:
            raise DamagedCheckpoint(reason)
        return checkpoints.read_meta(step)

    return checkpoints.newest_whole(read, say=say)


def _parts(run, stores) -> tuple[Part, ...]:
    """Every member at its highest step; those at one place together."""
    facts = as_json(run.facts)
    keys = list(zip(facts["ids"], facts["stack"], strict=True))
    members: dict[Any, list[int]] = {None: []} | {i: [] for i in range(len(stores))}
    # Of equals the one that holds the most of these members, so that a run that has
    # been joined is not joined again; then the first: the run's own come before others.
    held = [sum(key in stored.columns for key in keys) for stored in stores]
    for place, key in enumerate(keys):
        holders = [i for i, stored in enumerate(stores) if key in stored.columns]
        best = None
        if holders:
            best = max(holders, key=lambda i: (stores[i].step, held[i], -i))
        members[best].append(place)
    parts = []
    for number, places in members.items():
        if not places:
            continue
        stored = None if number is None else stores[number]
        columns = []
        if stored is not None:
            columns = [stored.columns[keys[place]] for place in places]
            check_members(stored, columns, facts, places)
        parts.append(Part(stored, np.array(places), np.array(columns, int)))
    return tuple(sorted(parts, key=lambda part: part.step))


def _stores(root) -> list[epath.Path]:
    """The directories below `root` that may hold checkpoints, oldest first."""
    if not from_first_process(root.exists()):
        return []
    names = sorted(
        (path.name for path in root.iterdir() if _NAMES.fullmatch(path.name)),
        key=lambda name: (name.startswith("joining"), len(name), name),
    )
    return [root, *(root / name for name in from_first_process(names))]


_NAMES = re.compile(r"generation-\d+|joining-[0-9a-f]{8}")


def _generations(root) -> list[epath.Path]:
    return [path for path in _stores(root)[1:] if not _is_joining(path)]


def _number(path) -> int:
    return int(path.name.removeprefix("generation-"))


def _is_joining(path) -> bool:
    return epath.Path(path).name.startswith("joining-")
