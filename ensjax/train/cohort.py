"""`Cohort`: members that go through the program together, and what is known of them.

Members that have ended leave the program when that saves enough; what they were stays
on a shelf. Those that catch up are a cohort of their own, which then joins another.
"""

import math
from typing import Any

import jax
import numpy as np

from ensjax.checkpoint import Checkpoints
from ensjax.train.agreement import check_beginnings
from ensjax.train.elastic import Part
from ensjax.train.history import History, Times
from ensjax.train.run import Run


class Cohort:
    """Some members of a run, all after the same number of steps.

    Attributes:
        run: of those that are in the program.
        states: theirs, padded.
        history: of all members of the whole run.
        shelf: `(run, states)` of members that have left the program.
    """

    def __init__(self, run: Run, states: Any, history: History):
        self.run, self.states, self.history = run, states, history
        self.shelf: list[tuple[Run, Any]] = []
        # What was spent before, by the run that spent it.
        self.loaded: dict[str, Times] = {}

    @classmethod
    def of(cls, whole: Run, part: Part) -> "Cohort":
        """New members, or those that a checkpoint holds."""
        run = whole.take(part.members)
        if part.stored is None:
            return cls(run, run.make_states(), History(whole.total))
        stored = part.stored
        column_of = dict(zip(part.members.tolist(), part.columns, strict=True))
        rows = tuple(
            stored.rows[[column_of[int(place)] for place in own]] for own in run.places
        )
        stacks = [stored.stack_of(column_of[int(own[0])]) for own in run.places]
        with Checkpoints(stored.directory) as checkpoints:
            states = checkpoints.restore(
                stored.step, run.abstract_states(), rows=rows, stacks=stacks
            )
        check_beginnings(part, whole.facts)
        history = History.from_json(
            stored.meta["history"], part.columns, part.members, whole.total
        )
        history.position = stored.meta["position"]
        history.read(states, run.places)
        cohort = cls(run, states, history)
        cohort.loaded = {stored.root: history.times}
        return cohort

    @property
    def members(self) -> np.ndarray:
        """Their places in the whole run, also of those on the shelf."""
        return np.sort(np.concatenate([run.members for run, _ in self._sources()]))

    @property
    def has_ended(self) -> bool:
        """Whether no member changes any more, as last read."""
        return bool(self.history.ended(self.members).all())

    @property
    def num_live(self) -> int:
        """How many still change, as last read."""
        return int((~self.history.ended(self.members)).sum())

    def all_states(self, whole: Run) -> tuple[Run, Any]:
        """All members in the order of the whole run, also those on the shelf."""
        if not self.shelf:
            return self.run, self.states
        run = whole.take(self.members)
        jax.block_until_ready(self.states)
        return run, run.take_states(self._sources())

    def join(self, whole: Run, other: "Cohort") -> "Cohort":
        """Both together, after the steps of the other one."""
        run = whole.take(np.concatenate([self.members, other.members]))
        states = run.take_states([*self._sources(), *other._sources()])
        spent = self._spent().plus(other._spent())
        own = self.members
        self.history.absorb(other.history, other.members)
        joined = Cohort(run, states, self.history)
        # Two checkpoints of one run have most of their past in common.
        for root, times in (*self.loaded.items(), *other.loaded.items()):
            known = joined.loaded.get(root, Times())
            longer = max(known, times, key=lambda t: t.device_seconds)
            joined.loaded[root] = longer
        joined.history.times = _sum(joined.loaded).plus(spent)
        joined.history.read(states, run.places)
        joined.history.keep_evaluations(own)
        return joined

    def _spent(self) -> Times:
        return self.history.times.minus(_sum(self.loaded))

    def compact(self, whole: Run) -> bool:
        """Takes members that have ended out of the program, if that saves enough.

        That is at least a block on every device, and a quarter of its rows, so that
        programs are compiled for few sizes; and it depends on nothing but the states.
        It saves time, not memory: here and at every save the whole stack is put
        together beside its parts for a moment.

        Returns:
            Whether the program is a smaller one now.
        """
        live = [
            own[~self.history.ended(own)] if len(own) else own
            for own in self.run.places
        ]
        if self.run.is_joint or not any(len(own) for own in live):
            return False
        stacks = self.run.stacks
        devices, block = stacks.mesh.shape["member"], stacks.blocks.block
        block = block if isinstance(block, int) and not stacks.blocks.unroll else 1
        now = sum(stacks.num_rows) // devices
        then = sum(stacks.blocks.rows(len(own), devices) for own in live) // devices
        if now - then < max(block, math.ceil(now / 4)):
            return False
        live = np.concatenate(live)
        jax.block_until_ready(self.states)
        gone = whole.take(np.setdiff1d(self.run.members, live))
        source = [(self.run, self.states)]
        self.shelf.append((gone, gone.take_states(source)))
        self.run = whole.take(live)
        states = self.run.take_states(source)
        self.states = states
        return True

    def _sources(self):
        return [(self.run, self.states), *self.shelf]


def _sum(times: dict[str, Times]) -> Times:
    total = Times()
    for part in times.values():
        total = total.plus(part)
    return total
