"""What one training step costs: operations, bytes moved and collectives.

The compiler counts the body of a loop once, however often it runs. So what is counted
is a program of its own, without a loop: one step of those members that run at once, as
it is in the body of the loops of `fit`. The rest is multiplication.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ensjax.blocks import Blocks, inner_jaxprs
from ensjax.mapping import MeshProgram, members_at_once
from ensjax.mesh import AXES, platform
from ensjax.planning.collectives import Collective, read_collectives
from ensjax.planning.memory import compile_lowered
from ensjax.train.joint_program import JointSteps
from ensjax.train.lowering import AbstractRun
from ensjax.train.member import Member
from ensjax.train.programs import TrainSteps


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One step of all members of one device, padding included.

    The order of the data, which is drawn once an epoch, and the look at a member's
    health, once in up to 128 steps, are not in it.

    Attributes:
        block: how many local members run at once; of several stacks the most.
        flops: operations, as the compiler counts them: a multiplication and an addition
            are two.
        bytes_moved: read and written by the operations, after fusion.
        collectives: that join several devices.
        has_loop: whether a member's own step holds a loop of matrix products (a scan in
            the model or the loss), whose body the compiler counts once; then `flops`
            and `bytes_moved` are too small.
    """

    block: int
    flops: float
    bytes_moved: float
    collectives: tuple[Collective, ...]
    has_loop: bool


def step_cost(run: AbstractRun, *, say: Callable[[str], None] = print) -> StepCost:
    """Compiles one step of `run` without its loops, and counts.

    Args:
        run: of one stack of members, or of several.
        say: is told what is being compiled.
    """
    return cost_together(step_costs(run, say=say))


def step_costs(
    run: AbstractRun, *, say: Callable[[str], None] = print
) -> tuple[StepCost, ...]:
    """As `step_cost`, of each stack; of a joint objective one of all of them."""
    if isinstance(run.job, JointSteps):
        say("compiling one step, to count what it does")
        return (_counted(run, _lower_joint_step(run), members_of_a_block(run), 1),)
    costs = []
    for number, rows in enumerate(run.num_rows):
        own = run.of_stack(number)
        block = members_of_a_block(own)
        rounds = rows // run.mesh.shape["member"] // block
        of_stack = f" of stack {number + 1}" if len(run.num_rows) > 1 else ""
        say(f"compiling one step{of_stack}, to count what it does")
        costs.append(_counted(own, _lower_step(own, block), block, rounds))
    return tuple(costs)


def _counted(run, lowered, block, rounds) -> StepCost:
    sizes = [run.mesh.shape[axis] for axis in AXES]
    program, text = compile_with_text(lowered.lowered, run.mesh, "StepAlone")
    counts = program.cost_analysis()
    collectives = read_collectives(text, sizes)
    return StepCost(
        block=block,
        flops=counts["flops"] * rounds,
        bytes_moved=counts["bytes accessed"] * rounds,
        collectives=tuple(c.times(rounds) for c in collectives),
        has_loop=lowered.has_loop,
    )


def cost_together(costs: Sequence[StepCost]) -> StepCost:
    """What stacks cost that run one after the other."""
    if len(costs) == 1:
        return costs[0]
    found: dict[tuple, Collective] = {}
    for each in (c for cost in costs for c in cost.collectives):
        key = (each.operation, each.axes)
        old = found.get(key, Collective(*key, 0, 0))
        found[key] = Collective(
            *key, old.count + each.count, old.result_bytes + each.result_bytes
        )
    return StepCost(
        block=max(cost.block for cost in costs),
        flops=sum(cost.flops for cost in costs),
        bytes_moved=sum(cost.bytes_moved for cost in costs),
        collectives=tuple(found.values()),
        has_loop=any(cost.has_loop for cost in costs),
    )


def members_of_a_block(run: AbstractRun) -> int:
    """How many local members run at once.

    Of a joint objective in its smallest part, of several stacks in the smallest.
    """
    kind = _WatchedJoint if isinstance(run.job, JointSteps) else _WatchedSteps
    fields = {f.name: getattr(run.job, f.name) for f in dataclasses.fields(run.job)}
    sizes = _Sizes()
    program = MeshProgram(kind(**fields, sizes=sizes), run.mesh)
    arguments = (run.states, run.hypers, run.ids, run.weights, run.data)
    jax.eval_shape(program.jitted, *arguments, 0, 1, 0)
    return min(sizes.seen)


class _Sizes:
    """What was seen while tracing; equal to nothing else."""

    def __init__(self):
        self.seen = []


class _Watched:
    def over_members(self, fns, kinds, *stacks, shared=(), updates_first=False):
        for fn, *rows in zip(fns, *stacks, strict=True):
            size = members_at_once(fn, *rows, *shared, kinds=kinds, blocks=self.blocks)
            self.sizes.seen.append(size)
        return super().over_members(
            fns, kinds, *stacks, shared=shared, updates_first=updates_first
        )


@dataclasses.dataclass(frozen=True)
class _WatchedSteps(_Watched, TrainSteps):
    sizes: _Sizes | None = None


@dataclasses.dataclass(frozen=True)
class _WatchedJoint(_Watched, JointSteps):
    sizes: _Sizes | None = None


@dataclasses.dataclass(frozen=True)
class _OneStep:
    """The body of the loop over steps, of one member."""

    member: Member

    def __call__(self, state, hyper, member_id, weights, rows, data, step, seed):
        batch = self.member.batch(rows, data, weights, seed, member_id, step, 0)
        return self.member.step(state, batch, hyper, seed, member_id, step)


@dataclasses.dataclass(frozen=True)
class _StepAlone(TrainSteps):
    """One step; the rows of its batches are an argument."""

    rows_kind: str = "member"

    def in_specs(self):
        """As `TrainSteps`, with the rows split over data."""
        states, hypers, ids, weights, data, *_ = super().in_specs()
        by_data = {"member": jax.P("member", "data"), "shared": jax.P("data")}
        rows = by_data[self.rows_kind]
        return (states, hypers, ids, weights, rows, data, jax.P(), jax.P())

    def local(self, states, hypers, ids, weights, rows, *shared):
        """The step of all local members."""
        kinds = ("member",) * 3 + (self.weights_kind, self.rows_kind, self.data_kind)
        results = self.over_members(
            [_OneStep(member) for member in self.members],
            (*kinds, "shared", "shared"),
            states,
            hypers,
            ids,
            weights,
            rows,
            shared=shared,
        )
        return tuple(r[0] for r in results), tuple(r[1] for r in results)


@dataclasses.dataclass(frozen=True)
class _JointStepAlone(JointSteps):
    """One step of a joint objective; the rows of its batch are an argument."""

    def in_specs(self):
        """As `TrainSteps`, with the rows split over data."""
        states, hypers, ids, weights, data, *_ = super().in_specs()
        return (states, hypers, ids, weights, jax.P("data"), data, jax.P(), jax.P())

    def local(self, states, hypers, ids, weights, rows, data, step, seed):
        """The step of all local members."""
        batch = self.members[0].batch(rows[0], data, weights, seed, 0, step, 0)
        return self._step(states, hypers, ids, batch, seed, step)


@dataclasses.dataclass(frozen=True)
class _Lowered:
    lowered: jax.stages.Lowered
    has_loop: bool


def _lower_step(run, block):
    """The step of one block of members on every device."""
    job = run.job
    num_rows = block * run.mesh.shape["member"]

    def cut(tree):
        return jax.tree.map(lambda x: _resized(x, num_rows), tree)

    sampling, batch_size = job.members[0].sampling, job.members[0].batch_size
    rows_kind, rows = "member", (num_rows, batch_size)
    if sampling in ("shared", "stream"):
        rows_kind, rows = "shared", (batch_size,)
    alone = _StepAlone(
        job.members,
        Blocks(1 if block == 1 else None),
        weights_kind=job.weights_kind,
        data_kind=job.data_kind,
        rows_kind=rows_kind,
    )
    weights = cut(run.weights) if job.weights_kind == "member" else run.weights
    stacks = (cut(run.states), cut(run.hypers), cut(run.ids), weights)
    # A stream is looked at with the batch of one step.
    brings_rows = sampling in ("weighted", "stream")
    return _lower_alone(alone, run, stacks, rows, drawn=brings_rows)


def _lower_joint_step(run):
    """The step of all members, all at once: their outputs are needed together."""
    job = run.job
    alone = _JointStepAlone(
        job.members,
        Blocks(None),
        weights_kind=job.weights_kind,
        data_kind=job.data_kind,
        joint=dataclasses.replace(job.joint, batch_block=None),
        num_members=job.num_members,
    )
    stacks = (run.states, run.hypers, run.ids, run.weights)
    rows, drawn = (job.members[0].batch_size,), job.data_kind == "batch"
    return _lower_alone(alone, run, stacks, rows, drawn=drawn)


def _lower_alone(alone, run, stacks, rows_shape, *, drawn):
    spec = alone.in_specs()[4]
    rows = jax.ShapeDtypeStruct(
        rows_shape, jnp.int32, sharding=NamedSharding(run.mesh, spec)
    )
    rows = (None if drawn else rows,) * len(run.num_rows)
    data = run.data
    if alone.data_kind == "batch":  # [batch, step, ...], of which one step is enough
        data = jax.tree.map(lambda x: _resized(x, x.shape[0], num_steps=1), data)
    traced = MeshProgram(alone, run.mesh).jitted.trace(*stacks, rows, data, 0, 0)
    return _Lowered(traced.lower(), has_loop(traced.jaxpr.jaxpr))


def _resized(x, num_rows, *, num_steps=None):
    rest = x.shape[1:] if num_steps is None else (num_steps, *x.shape[2:])
    return jax.ShapeDtypeStruct((num_rows, *rest), x.dtype, sharding=x.sharding)


def has_loop(jaxpr: Any, *, in_loop: bool = False) -> bool:
    """Whether a matrix product or a convolution runs inside a loop."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if in_loop and name in ("dot_general", "conv_general_dilated"):
            return True
        is_loop = name == "while"
        if name == "scan":  # one that is written out is none
            is_loop = eqn.params["unroll"] < eqn.params["length"]
        inside = in_loop or is_loop
        if any(has_loop(inner, in_loop=inside) for inner, _ in inner_jaxprs(eqn)):
            return True
    return False


def compile_with_text(
    lowered: jax.stages.Lowered, mesh: Mesh, name: str
) -> tuple[Any, str]:
    """The compiled program, and its text; `name` ends that of its jitted function.

    `as_text` cannot read operations of a TPU compiler that is newer than jaxlib
    ("Unknown opcode"), so there the compiler writes the text itself.
    """
    if platform(mesh) != "tpu":
        program, _ = compile_lowered(lowered)
        return program, program.as_text()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program, _ = compile_lowered(lowered, options)
        pattern = f"*{name}*after_optimizations.txt"
        (written,) = Path(folder).glob(pattern)
        return program, written.read_text()
