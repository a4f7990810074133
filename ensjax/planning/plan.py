"""`plan`: what a job needs and does, before it runs."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.mesh import AXES, platform
from ensjax.planning.mapped_job import MappedJob
from ensjax.planning.mapped_plan import plan_mapped
from ensjax.planning.memory import (
    compile_lowered,
    device_bytes,
    program_memory,
    tree_bytes,
)
from ensjax.planning.planned import MemberSize, Plan, StackPlan
from ensjax.planning.step_cost import StepCost, cost_together, step_costs
from ensjax.planning.trial import is_at_hand, measure, why_no_trial
from ensjax.train.group_job import GroupJob
from ensjax.train.job import TrainingJob
from ensjax.train.lowering import AbstractRun, abstract_run


def plan(
    job: TrainingJob | GroupJob | MappedJob,
    *,
    mesh: Mesh | None = None,
    save_every_steps: int | None = 0,
    costs: bool = True,
    trial: str = "never",
    say: Callable[[str], None] | None = None,
) -> Plan:
    """What `job.fit()` would need and do, from its compiled programs.

    The programs are those that `fit` would run, with all their steps in one call, or
    the one of a `MappedJob`. They are lowered from shapes and compiled; nothing is
    allocated unless there is a trial.

    Args:
        job: what is to be trained. Its data may be shapes, or a loader, of which the
            first batch is read. The stacks of a `GroupJob` are one program; the plan
            says of each what it takes, too.
        mesh: default: the job's, on the devices that there are. It may be of devices
            that are not there, such as those of a TPU topology.
        save_every_steps: as for `fit`; 0: never.
        costs: whether one step is compiled by itself, to count operations, bytes and
            collectives.
        trial: "always": a few steps are run on the devices of the mesh, and timed,
            which allocates what `fit` would; "auto": if they are there, the job fits
            and a step is short; "never". Where the job has only shapes, or a loader,
            the data are zeros. Of a `MappedJob`, whose steps are inside its one call:
            never.
        say: is told what is being done, a line at a time.

    Returns:
        The plan; its docstring has the units.

    Raises:
        DoesNotFit: if the compiler finds that the training program does not fit.
        TypeError, ValueError: as `fit` or `map_members`, for a job that cannot work; or
            for a trial on devices that are not there, or of a `MappedJob`.

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
    if isinstance(job, MappedJob):
        return plan_mapped(job, mesh, costs=costs, trial=trial, say=say)
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
                beside_bytes=sum(arrays[key] for key in _beside(name, run)),
                lower_seconds=lower_seconds,
                compile_seconds=seconds,
            )
        )
    each = step_costs(run, say=say) if costs else ()
    cost = cost_together(each) if costs else None
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
        member=_sum_of_sizes(_member_sizes(run)),
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
        stacks=_stacks(run, each),
    )


def describe(
    job: TrainingJob | GroupJob, mesh: Mesh, *, save_every_steps: int | None = 0
) -> AbstractRun:
    """The programs of a job on a mesh, in shapes.

    What the job's own options say of saves goes before `save_every_steps`.
    """
    return abstract_run(
        job.abstract_ensemble(mesh),
        job.data,
        hyper=job.hyper,
        mesh=mesh,
        is_stream=job.is_stream,
        **({"save_every_steps": save_every_steps} | job.fit_options()),
    )


# What stays on a device while a program runs and is no argument of it: `fit` holds the
# members that it was given, its padded copy of them, and everything else it has placed.
_BESIDE = {
    "training": (
        "members as given",
        "members as padded",
        "evaluation data",
        "batches read ahead",
    ),
    "evaluation": (
        "members as given",
        "members as padded",
        "data",
        "batches read ahead",
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


# Chunks of a stream on the devices beside the one in use, at most: two that wait, and
# one in the making (`data.prefetch_chunks`).
_CHUNKS_AHEAD = 3


def _beside(name, run) -> list[str]:
    # A stream is read when the state is there.
    absent = ("data",) if _is_stream(run) and name == "initial state" else ()
    return [key for key in _BESIDE[name] if key not in absent]


def _is_stream(run) -> bool:
    return run.job.data_kind == "batch"


def _bytes_ahead(run) -> int:
    if not _is_stream(run):
        return 0
    calls = math.ceil(run.schedule.steps / run.schedule.steps_per_call)
    return min(_CHUNKS_AHEAD, calls - 1) * device_bytes(run.data)


def _lowerings(run):
    lowerings = {"training": run.lower_training}
    if run.evaluate is not None:
        lowerings["evaluation"] = run.lower_evaluation
    return lowerings | {"initial state": run.lower_init}


def _arrays(run, ensemble: Ensemble | Group) -> dict[str, int]:
    """Bytes on one device of everything that `fit` holds there, by what it is."""
    given, devices = 0, run.mesh.shape["member"]
    for own in ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,):
        size = tree_bytes((own.state, own.member_ids))
        # Where they do not divide, every device holds all of them.
        is_split = own.member_ids.shape[0] % devices == 0
        given += size // devices if is_split else size
    return {
        "training state": device_bytes(run.states),
        "members as given": given,
        "members as padded": device_bytes(run.model_states),
        "data": device_bytes(run.data),
        "batches read ahead": _bytes_ahead(run),
        "evaluation data": device_bytes(run.evaluation),
        "hyperparameters": device_bytes(run.hypers),
        "member ids": device_bytes(run.ids),
        "sampling weights": device_bytes(run.weights),
    }


def _member_sizes(run) -> list[MemberSize]:
    """Of one member of each stack."""
    return [
        _member_size(state, rows)
        for state, rows in zip(run.states, run.num_rows, strict=True)
    ]


def _member_size(state, rows) -> MemberSize:
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


def _sum_of_sizes(sizes) -> MemberSize:
    return MemberSize(*map(sum, zip(*map(dataclasses.astuple, sizes), strict=True)))


def _stacks(run, costs: tuple[StepCost, ...]) -> tuple[StackPlan, ...]:
    """Of a group what each stack takes; of one stack nothing."""
    sizes = _member_sizes(run)
    if len(sizes) == 1:
        return ()
    # The step of a joint objective is one of all stacks.
    costs = costs if len(costs) == len(sizes) else (None,) * len(sizes)
    return tuple(
        StackPlan(members, rows, size, cost)
        for members, rows, size, cost in zip(
            run.num_members, run.num_rows, sizes, costs, strict=True
        )
    )


def _times(steps: int, interval: int) -> int:
    """How often something happens that is due at every interval and at the end."""
    return math.ceil(steps / interval) if interval else 0
