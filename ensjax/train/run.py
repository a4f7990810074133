"""`Run`: what one run of training is made of, for all its members or some of them."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ensjax.mapping import MeshProgram, mesh_program
from ensjax.train.assembly import Evaluation, Stacks, abstract_states
from ensjax.train.objectives import Joint
from ensjax.train.programs import InitState, TrainSteps
from ensjax.train.rows import gather_rows
from ensjax.train.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run is made of; `fit` fills it in for all members.

    Attributes:
        schedule: steps and intervals.
        init: makes the states at step 0.
        job: advances the states by many steps.
        evaluation: of the states, or None.
        stacks: members, blocks and mesh.
        places: for every stack, which members of the whole run its rows are.
        model_states, hypers, ids, weights: of every stack, padded.
        weights_kind: whether weights are "member" or "shared".
        feed: `ResidentData` or `StreamedData`.
        seed: of the run.
        identity: what must agree with a checkpoint that is resumed; JSON-able.
        facts: what must agree member by member: name -> `[member of the whole run]`.
        keeps_best: whether the states hold best weights.
    """

    schedule: Schedule
    init: InitState
    job: TrainSteps
    evaluation: Evaluation | None
    stacks: Stacks
    places: tuple[np.ndarray, ...]
    model_states: Any
    hypers: Any
    ids: Any
    weights: Any
    weights_kind: str
    feed: Any
    seed: int
    identity: dict[str, Any]
    facts: dict[str, list[Any]]
    keeps_best: bool

    @property
    def program(self) -> MeshProgram:
        """The compiled form of `job`."""
        return mesh_program(self.job, self.stacks.mesh)

    @property
    def is_joint(self) -> bool:
        """Whether members see each other."""
        return isinstance(self.job.members[0].loss, Joint)

    @property
    def members(self) -> np.ndarray:
        """Which members of the whole run these are, stack by stack."""
        return np.concatenate(self.places)

    @property
    def total(self) -> int:
        """Members of the whole run."""
        return len(self.facts["ids"])

    def make_states(self) -> Any:
        """The states at step 0."""
        program = mesh_program(self.init, self.stacks.mesh)
        return program(self.model_states, self.hypers)

    def abstract_states(self) -> Any:
        """Their shapes and shardings."""
        mesh = self.stacks.mesh
        program = mesh_program(self.init, mesh)
        return abstract_states(program, self.job, mesh, self.model_states, self.hypers)

    def take(self, members: Any) -> "Run":
        """The run of some members, by their places in the whole one; order is kept.

        A stack of which there is none is left out.
        """
        wanted = np.asarray(members)
        rows = [np.flatnonzero(np.isin(own, wanted)) for own in self.places]
        kept = [i for i, own in enumerate(rows) if len(own)]
        counts = tuple(len(rows[i]) for i in kept)
        if counts == self.stacks.num_members:
            return self
        stacks = dataclasses.replace(self.stacks, num_members=counts)

        def taken(trees):
            return tuple(
                gather_rows([trees[i]], rows[i], count, stacks.mesh, jax.P("member"))
                for i, count in zip(kept, stacks.num_rows, strict=True)
            )

        def of_kept(job):
            return dataclasses.replace(job, members=tuple(job.members[i] for i in kept))

        weights = tuple(self.weights[i] for i in kept)
        evaluation = self.evaluation
        if evaluation is not None:
            job = of_kept(evaluation.job)
            evaluation = dataclasses.replace(evaluation, job=job)
        return dataclasses.replace(
            self,
            init=of_kept(self.init),
            job=of_kept(self.job),
            evaluation=evaluation,
            stacks=stacks,
            places=tuple(self.places[i][rows[i]] for i in kept),
            model_states=taken(self.model_states),
            hypers=taken(self.hypers),
            ids=taken(self.ids),
            weights=taken(self.weights) if self.weights_kind == "member" else weights,
        )

    def take_states(self, sources: Any) -> Any:
        """States of these members, put together from others that hold them.

        Args:
            sources: pairs `(run, states)`, each of some members of the whole run.
        """
        by_stack = {}
        for run, states in sources:
            for number, own in run._stack_numbers():
                by_stack.setdefault(number, []).append((own, states))
        specs = self.job.state_specs()
        results = []
        for position, (number, places) in enumerate(
            zip(self._numbers, self.places, strict=True)
        ):
            parts, holds, start = [], {}, 0
            for (index, own), states in by_stack[number]:
                part = states[index]
                parts.append(part)
                holds |= {int(place): start + i for i, place in enumerate(own)}
                start += jax.tree.leaves(part)[0].shape[0]
            rows = [holds[int(place)] for place in places]
            results.append(
                gather_rows(
                    parts,
                    rows,
                    self.stacks.num_rows[position],
                    self.stacks.mesh,
                    specs[position],
                )
            )
        return tuple(results)

    @property
    def _numbers(self) -> list[int]:
        """Which stacks of the whole run these are."""
        return [self.facts["stack"][int(own[0])] for own in self.places]

    def _stack_numbers(self):
        """Pairs: the number of a stack in the whole run, and (index here, places)."""
        return [
            (number, (index, own))
            for index, (number, own) in enumerate(
                zip(self._numbers, self.places, strict=True)
            )
        ]
