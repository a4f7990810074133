"""`plan`: what a training job needs and does, before it runs."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ensjax.ensemble import Ensemble
from ensjax.mesh import AXES, platform
from ensjax.planning.collectives import Collective
from ensjax.planning.memory import (
    ProgramMemory,
    compile_lowered,
    device_bytes,
    program_memory,
    tree_bytes,
)
from ensjax.planning.step_cost import StepCost, step_cost
from ensjax.planning.trial import Trial, is_at_hand, measure, why_no_trial
from ensjax.train.job import TrainingJob
from ensjax.train.lowering import AbstractRun, abstract_run

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
class Plan:
    """What a training job needs and does. All bytes are of one device unless said.

    Attributes:
        platform: "cpu", "gpu" or "tpu": whose compiler this is from.
        device_kind: such as "TPU v5 lite".
        mesh: devices along "member", "data" and "model".
        num_members: members in all.
        num_rows: rows of the stack in all; what is above `num_members` is padding.
        batch_size: examples of the global batch of each member.
        member: sizes of one member.
        arrays: bytes on a device by what they are, by their shapes; a TPU pads some.
        programs: "training", "evaluation" (where there is one) and "initial state".
        step: one step; None if it was not asked for.
        steps: optimizer steps in all.
        steps_per_call: of one call of the compiled program.
        num_calls: calls of it.
        num_evaluations: of the whole run.
        num_checkpoints: saves of the whole run.
        checkpoint_bytes: of one checkpoint, all members, without compression.
        trial: what was measured; None if nothing was.
        why_no_trial: in words; empty if there was one.
    """

    platform: str
    device_kind: str
    mesh: dict[str, int]
    num_members: int
    num_rows: int
    batch_size: int
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
        fields = {f.name: value[f.name] for f in dataclasses.fields(cls)}
        fields["member"] = MemberSize(**value["member"])
        fields["programs"] = tuple(ProgramMemory(**p) for p in value["programs"])
        if value["step"] is not None:
            found = [
                Collective(**{**c, "axes": tuple(c["axes"])})
                for c in value["step"]["collectives"]
            ]
            fields["step"] = StepCost(**{**value["step"], "collectives": tuple(found)})
        if value["trial"] is not None:
            fields["trial"] = Trial(**value["trial"])
        return cls(**fields)


def plan(
    job: TrainingJob,
    *,
    mesh: Mesh | None = None,
    save_every_steps: int | None = 0,
    costs: bool = True,
    trial: str = "never",
    say: Callable[[str], None] | None = None,
) -> Plan:
    """What `job.fit()` would need and do, from its compiled programs.

    The programs are those that `fit` would run, with all their steps in one call. They
    are lowered from shapes and compiled; nothing is allocated unless there is a trial.

    Args:
        job: what is to be trained. Its data may be shapes.
        mesh: default: the job's, on the devices that there are. It may be of devices
            that are not there, such as those of a TPU topology.
        save_every_steps: as for `fit`; 0: never.
        costs: whether one step is compiled by itself, to count operations, bytes and
            collectives.
        trial: "always": a few steps are run on the devices of the mesh, and timed,
            which allocates what `fit` would; "auto": if they are there, the job fits
            and a step is short; "never". Where the job has only shapes, the data are
            zeros.
        say: is told what is being done, a line at a time.

    Returns:
        The plan; its docstring has the units.

    Raises:
        DoesNotFit: if the compiler finds that the training program does not fit.
        TypeError, ValueError: as `fit`, for a job that cannot work; or for a trial on
            devices that are not there.

    Example:
        >>> import jax, numpy as np, optax
        >>> from ensjax import losses, nn
        >>> from ensjax.planning import plan
        >>> from ensjax.train import TrainingJob
        >>> def make_model(rngs):
        ...     return nn.MLP(in_features=4, num_outputs=3, rngs=rngs)
        >>> x = jax.ShapeDtypeStruct((5000, 4), np.float32)
        >>> y = jax.ShapeDtypeStruct((5000,), np.int32)
        >>> job = TrainingJob(
        ...     make_model, member_ids=(0, 1), init_seed=0, data=(x, y), hyper=1e-3,
        ...     mesh_sizes=dict(member=1), options=dict(
        ...         loss=losses.cross_entropy, make_tx=optax.adam, steps=100))
        >>> plan(job).num_calls
        20
    """
    if trial not in ("always", "auto", "never"):
        raise ValueError(f'trial is "always", "auto" or "never"; got {trial!r}.')
    say = say or (lambda text: None)
    mesh = job.mesh() if mesh is None else mesh
    if trial == "always" and not is_at_hand(mesh):
        raise ValueError("A trial needs the devices of the mesh, which are not here.")
    say("tracing the programs")
    ensemble = job.abstract_ensemble(mesh)
    run = describe(job, mesh, save_every_steps=save_every_steps)
    arrays = _arrays(run, ensemble)
    compiled, programs = {}, []
    for name, lower in _lowerings(run).items():
        start = time.perf_counter()
        lowered = lower()
        lower_seconds = time.perf_counter() - start
        say(f"compiling the program of {name}")
        compiled[name], seconds = compile_lowered(lowered)
        programs.append(
            program_memory(
                name,
                compiled[name],
                mesh,
                beside_bytes=sum(arrays[key] for key in _BESIDE[name]),
                lower_seconds=lower_seconds,
                compile_seconds=seconds,
            )
        )
    cost = step_cost(run, say=say) if costs else None
    measured, why_not = None, "not asked for"
    if trial != "never":
        peak = max(program.peak_bytes for program in programs)
        why_not = "" if trial == "always" else why_no_trial(mesh, peak, cost)
    if not why_not:
        say("running a few steps on the devices of the plan")
        measured = measure(run, job, compiled)
    schedule, device = run.schedule, mesh.devices.flat[0]
    return Plan(
        platform=platform(mesh),
        device_kind=device.device_kind,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        num_members=sum(run.num_members),
        num_rows=sum(run.num_rows),
        batch_size=run.job.members[0].batch_size,
        member=_member_size(run),
        arrays=arrays,
        programs=tuple(programs),
        step=cost,
        steps=schedule.steps,
        steps_per_call=schedule.steps_per_call,
        num_calls=math.ceil(schedule.steps / schedule.steps_per_call),
        num_evaluations=_times(schedule.steps, schedule.evaluate_every_steps),
        num_checkpoints=_times(schedule.steps, schedule.save_every_steps),
        checkpoint_bytes=tree_bytes(run.states),
        trial=measured,
        why_no_trial=why_not,
    )


def describe(
    job: TrainingJob, mesh: Mesh, *, save_every_steps: int | None = 0
) -> AbstractRun:
    """The programs of a job on a mesh, in shapes.

    What the job's own options say of saves goes before `save_every_steps`.
    """
    return abstract_run(
        job.abstract_ensemble(mesh),
        job.data,
        hyper=job.hyper,
        mesh=mesh,
        **({"save_every_steps": save_every_steps} | dict(job.options)),
    )


# What stays on a device while a program runs and is no argument of it: `fit` holds the
# members that it was given, its padded copy of them, and everything else it has placed.
_BESIDE = {
    "training": ("members as given", "members as padded", "evaluation data"),
    "evaluation": (
        "members as given",
        "members as padded",
        "data",
        "hyperparameters",
        "sampling weights",
    ),
    "initial state": (
        "members as given",
        "data",
        "evaluation data",
        "member ids",
        "sampling weights",
    ),
}


def _lowerings(run):
    lowerings = {"training": run.lower_training}
    if run.evaluate is not None:
        lowerings["evaluation"] = run.lower_evaluation
    return lowerings | {"initial state": run.lower_init}


def _arrays(run, ensemble: Ensemble) -> dict[str, int]:
    """Bytes on one device of everything that `fit` holds there, by what it is."""
    given = tree_bytes((ensemble.state, ensemble.member_ids))
    if run.num_members[0] % run.mesh.shape["member"] == 0:
        given //= run.mesh.shape["member"]  # else every device holds all of them
    return {
        "training state": device_bytes(run.states),
        "members as given": given,
        "members as padded": device_bytes(run.model_states),
        "data": device_bytes(run.data),
        "evaluation data": device_bytes(run.evaluation),
        "hyperparameters": device_bytes(run.hypers),
        "member ids": device_bytes(run.ids),
        "sampling weights": device_bytes(run.weights),
    }


def _member_size(run) -> MemberSize:
    (state,), (rows,) = run.states, run.num_rows
    parts = {name: tree_bytes(state.get(name, ())) // rows for name in state}
    return MemberSize(
        parameters=sum(
            math.prod(x.shape[1:]) for x in jax.tree.leaves(state["params"])
        ),
        params_bytes=parts["params"],
        rest_bytes=parts["rest"],
        optimizer_bytes=parts["opt_state"],
        best_bytes=parts.get("best", 0),
        state_bytes=sum(parts.values()),
    )


def _times(steps: int, interval: int) -> int:
    """How often something happens that is due at every interval and at the end."""
    return math.ceil(steps / interval) if interval else 0
