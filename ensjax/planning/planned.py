"""`Plan`: what is known of a job before it runs."""

import dataclasses
import math
from typing import Any

from ensjax.planning.collectives import Collective
from ensjax.planning.memory import ProgramMemory
from ensjax.planning.step_cost import StepCost
from ensjax.planning.trial import Trial

# `Checkpoints` keeps this many, and removes the oldest when a new one is whole.
_CHECKPOINTS_KEPT = 2


@dataclasses.dataclass(frozen=True)
class MemberSize:
    """What one member holds.

    Attributes:
        parameters: numbers that are trained.
        params_bytes: theirs.
        rest_bytes: of what is not trained by gradients (batch statistics, random keys).
        optimizer_bytes: of the optimizer's state.
        best_bytes: of the best weights so far, where they are kept.
        state_bytes: of all that a checkpoint holds of a member.
    """

    parameters: int
    params_bytes: int
    rest_bytes: int
    optimizer_bytes: int
    best_bytes: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class StackPlan:
    """What one stack of a group takes of the program that trains all of them.

    Attributes:
        num_members: of the stack.
        num_rows: with its padding.
        member: sizes of one member.
        step: one step of the stack on one device; None if it was not asked for, or is
            not one of its own (a joint objective).
    """

    num_members: int
    num_rows: int
    member: MemberSize
    step: StepCost | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job needs and does. All bytes are of one device unless said.

    A job is one call of `fit` (`TrainingJob`, `GroupJob`) or of `map_members`
    (`MappedJob`); the latter has one program, one call, and neither evaluations nor
    checkpoints.

    Attributes:
        platform: "cpu", "gpu" or "tpu": whose compiler this is from.
        device_kind: such as "TPU v5 lite".
        mesh: devices along "member", "data" and "model".
        num_members: members in all.
        num_rows: rows of the stack in all; what is above `num_members` is padding.
        batch_size: examples of the global batch of each member; None for a mapped job.
        member: sizes of one member; of a group those of one member of each stack
            together.
        arrays: bytes on a device by what they are, by their shapes; a TPU pads some.
        programs: "training", "evaluation" (where there is one) and "initial state"; of
            a mapped job "members".
        step: one step; None if it was not asked for.
        steps: optimizer steps in all.
        steps_per_call: of one call of the compiled program.
        num_calls: calls of it.
        num_evaluations: of the whole run.
        num_checkpoints: saves of the whole run.
        checkpoint_bytes: of one checkpoint, all members, without compression.
        trial: what was measured; None if nothing was.
        why_no_trial: in words; empty if there was one.
        beside: what the call of a mapped job does beside its steps, such as making
            members and asking them; None for a training job.
        stacks: of a group, in order; else empty.
    """

    platform: str
    device_kind: str
    mesh: dict[str, int]
    num_members: int
    num_rows: int
    batch_size: int | None
    member: MemberSize
    arrays: dict[str, int]
    programs: tuple[ProgramMemory, ...]
    step: StepCost | None
    steps: int
    steps_per_call: int
    num_calls: int
    num_evaluations: int
    num_checkpoints: int
    checkpoint_bytes: int
    trial: Trial | None
    why_no_trial: str
    beside: StepCost | None = None
    stacks: tuple[StackPlan, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def peak_bytes(self) -> int:
        """The most that is on a device at any time, with everything that stays there.

        Not in it: what a compiler takes while it tries variants of a kernel, and what
        an allocator cannot use.
        """
        return max(program.peak_bytes for program in self.programs)

    @property
    def padding(self) -> float:
        """The share of the work that is done for padding, from 0 to 1."""
        return 1 - self.num_members / self.num_rows

    @property
    def checkpoint_directory_bytes(self) -> int:
        """Of the checkpoints that are kept, without compression.

        While one is written, there is one more.
        """
        return _CHECKPOINTS_KEPT * self.checkpoint_bytes

    @property
    def compile_seconds(self) -> float:
        """To lower and compile all programs once, on the machine of the plan."""
        return sum(p.lower_seconds + p.compile_seconds for p in self.programs)

    @property
    def wall_seconds(self) -> float | None:
        """An estimate of the run, with compilation; None without a trial.

        Not in it: loading data, writing checkpoints, and what comes after training.
        """
        if self.trial is None:
            return None
        return (
            self.compile_seconds
            + self.steps * self.trial.seconds_per_step
            + self.num_calls * self.trial.seconds_per_call
            + self.num_evaluations * self.trial.seconds_per_evaluation
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, with the properties under "derived"."""
        derived = ("num_devices", "peak_bytes", "padding", "checkpoint_directory_bytes")
        derived += ("compile_seconds", "wall_seconds")
        return dataclasses.asdict(self) | {
            "derived": {name: getattr(self, name) for name in derived}
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """The plan of `to_json`, also after it was written and read."""
        names = {f.name for f in dataclasses.fields(cls)} & set(value)
        fields = {name: value[name] for name in names}
        fields["member"] = MemberSize(**value["member"])
        fields["programs"] = tuple(ProgramMemory(**p) for p in value["programs"])
        for name in ("step", "beside"):
            if value.get(name) is not None:
                fields[name] = _cost_from_json(value[name])
        fields["stacks"] = tuple(map(_stack_from_json, value.get("stacks", ())))
        if value["trial"] is not None:
            fields["trial"] = Trial(**value["trial"])
        return cls(**fields)


def _cost_from_json(value) -> StepCost:
    found = [
        Collective(**{**c, "axes": tuple(c["axes"])}) for c in value["collectives"]
    ]
    return StepCost(**{**value, "collectives": tuple(found)})


def _stack_from_json(value) -> StackPlan:
    step = None if value["step"] is None else _cost_from_json(value["step"])
    return StackPlan(**{**value, "member": MemberSize(**value["member"]), "step": step})
