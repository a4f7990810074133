"""A short measured trial: a few steps of the program that a plan has compiled."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ensjax.mapping import mesh_program
from ensjax.mesh import place, platform
from ensjax.planning.memory import free_bytes
from ensjax.planning.step_cost import StepCost
from ensjax.train import arguments
from ensjax.train.arguments import stacks_of
from ensjax.train.assembly import Stacks
from ensjax.train.feeds import canonical
from ensjax.train.group_job import GroupJob
from ensjax.train.job import TrainingJob
from ensjax.train.lowering import AbstractRun

# A trial ends with the first round after this; a round is a short call and a long one.
_SECONDS = 3.0
_MAX_ROUNDS = 5

# Of all devices together: a few seconds a step.
_CPU_FLOPS = 5e10


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was measured on the devices of a plan.

    A call of one step and a call of several were timed in turns, after one of each that
    was not; of every length the fastest counts. The difference is the time of the steps
    between them.

    Attributes:
        seconds_per_step: of all members.
        seconds_per_call: what a call takes beside its steps, at least 0.
        seconds_per_evaluation: of one evaluation; 0 where there is none.
        steps_in_long_call: of the longer of the two calls; 1 where only such were made.
        rounds: how often each was timed.
        data: "the job's own", or "zeros" where the job had only shapes.
        seconds: the trial took in all, without compilation.
    """

    seconds_per_step: float
    seconds_per_call: float
    seconds_per_evaluation: float
    steps_in_long_call: int
    rounds: int
    data: str
    seconds: float


def is_at_hand(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are those of this process."""
    return set(mesh.devices.flat) <= set(jax.local_devices())


def why_no_trial(mesh: Mesh, peak_bytes: int, cost: StepCost | None) -> str:
    """Why a trial should not be run unasked, or nothing.

    Args:
        mesh: of the plan.
        peak_bytes: of the plan, on a device.
        cost: of a step, where it is known.
    """
    if not is_at_hand(mesh):
        return "the devices are not here"
    free = free_bytes(mesh)
    if free is not None and peak_bytes > free:
        return f"{free / 2**30:.1f} GiB are free on a device, which is too little"
    if cost is not None and platform(mesh) == "cpu":
        flops = cost.flops * mesh.devices.size
        if flops > _CPU_FLOPS:
            return f"a step is {flops:.1e} operations, which takes a CPU long"
    return ""


def measure(
    run: AbstractRun, job: TrainingJob | GroupJob, programs: Mapping[str, Any]
) -> Trial:
    """Runs and times compiled programs of `run`; allocates what `fit` would.

    Args:
        run: of the job, on a mesh of real devices.
        job: its data are used, or zeros in their shapes.
        programs: compiled: "training", and "evaluation" where there is one.
    """
    start = time.perf_counter()
    inputs = Inputs.of(run, job)
    states = inputs.states

    def call(num_steps):
        nonlocal states
        began = time.perf_counter()
        states, sums = programs["training"](
            states, *inputs.others, inputs.data, 0, num_steps, 0
        )
        jax.block_until_ready((states, sums))
        return time.perf_counter() - began

    call(1)
    one = call(1)
    # As many steps as take about half a second, by a call of one.
    most = run.schedule.steps_per_call
    length = int(np.clip(0.5 / one, min(2, most), most))
    long_call, rounds = call(length), 0
    while rounds < _MAX_ROUNDS:
        one, long_call = min(one, call(1)), min(long_call, call(length))
        rounds += 1
        if time.perf_counter() - start > _SECONDS:
            break
    per_step = (long_call - one) / (length - 1) if length > 1 else one
    # Noise can make the long call the shorter one.
    per_step = per_step if per_step > 0 else long_call / length
    return Trial(
        seconds_per_step=per_step,
        seconds_per_call=max(0.0, one - per_step) if length > 1 else 0.0,
        seconds_per_evaluation=_time_evaluation(run, inputs, states, programs),
        steps_in_long_call=length,
        rounds=rounds,
        data=inputs.source,
        seconds=time.perf_counter() - start,
    )


def _time_evaluation(run, inputs, states, programs):
    if run.evaluate is None:
        return 0.0
    held_out = place(inputs.evaluation, run.mesh, _spec_of(run.evaluation))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        states, metrics = programs["evaluation"](
            states, inputs.others[1], held_out, 0, 0
        )
        jax.block_until_ready((states, metrics))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _spec_of(tree):
    return jax.tree.leaves(tree)[0].sharding.spec


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays on the devices, as `fit` places them.

    Attributes:
        states: of training, at step 0; the first call takes them over.
        others: hyperparameters, ids and weights of every stack.
        data: leaves `[example, ...]`; of a stream zeros, `[batch, step, ...]`.
        evaluation: on the host, leaves `[example, ...]`, or None.
        source: "the job's own", or "zeros".
    """

    states: Any
    others: tuple[Any, Any, Any]
    data: Any
    evaluation: Any
    source: str

    @classmethod
    def of(cls, run: AbstractRun, job: TrainingJob | GroupJob) -> "Inputs":
        """Those of a job; zeros for data of which only the shapes are known."""
        ensembles = stacks_of(job.ensemble(run.mesh))
        stacks = Stacks(run.num_members, run.job.blocks, run.mesh)
        hyper = arguments.per_member(job.hyper, sum(run.num_members))
        options = job.options
        for_loss = options.get("loss_weights") is not None
        weights = options.get("loss_weights" if for_loss else "weights")
        is_stream = run.job.data_kind == "batch"
        weights, _ = arguments.placed_weights(
            _filled(weights, 1.0),
            0 if is_stream else _length(job.data),
            stacks,
            for_loss=for_loss,
        )
        hypers = stacks.placed(stacks.split(hyper))
        ids = stacks.placed([ensemble.member_ids for ensemble in ensembles])
        model_states = stacks.placed([ensemble.state for ensemble in ensembles])
        init = mesh_program(run.init.job, run.mesh)
        # Of a loader a plan reads one batch, which is not what a call takes.
        data, spec = (run.data, jax.P("data")) if is_stream else (job.data, jax.P())
        is_own = not any(map(_is_shape, jax.tree.leaves(data)))
        return cls(
            states=jax.block_until_ready(init(model_states, hypers)),
            others=(hypers, ids, weights),
            data=place(_filled(data, 0), run.mesh, spec),
            evaluation=_filled(options.get("evaluation"), 0),
            source="the job's own" if is_own else "zeros",
        )


def _length(tree):
    return jax.tree.leaves(tree)[0].shape[0]


def _is_shape(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _filled(tree, value):
    """Arrays of one value in place of shapes."""
    return jax.tree.map(
        lambda x: canonical(np.full(x.shape, value, x.dtype) if _is_shape(x) else x),
        tree,
    )
