"""The plan of a `MappedJob`: its one program, and what a step inside it costs."""

import math
import time
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from ensjax.mapping import MeshProgram, map_members, members_at_once
from ensjax.mesh import AXES, platform
from ensjax.planning.collectives import Collective, read_collectives
from ensjax.planning.mapped_job import MappedJob
from ensjax.planning.memory import (
    compile_lowered,
    device_bytes,
    program_memory,
    tree_bytes,
)
from ensjax.planning.planned import MemberSize, Plan
from ensjax.planning.step_cost import StepCost, compile_with_text, has_loop

# What is written out to count a step: the difference of the two is one step, without
# what the compiler moves out of a loop because it is the same in every step.
_FEW, _MORE = 2, 3


def plan_mapped(
    job: MappedJob,
    mesh: Mesh,
    *,
    costs: bool = True,
    trial: str = "never",
    say: Callable[[str], None],
) -> Plan:
    """What the program of `job.compile(mesh)` needs and does; see `plan`.

    Raises:
        DoesNotFit: if the compiler finds that the program does not fit.
        TypeError, ValueError: as `map_members`; or if a trial is asked for.
    """
    if trial == "always":
        raise ValueError(
            "The steps of a mapped job are inside its one call, so that none can be"
            " tried alone; run a smaller config instead."
        )
    say("tracing the program of members")
    arguments = job.abstract_arguments(mesh)
    program = job.program(mesh)
    start = time.perf_counter()
    lowered = program.lower(*arguments)
    lower_seconds = time.perf_counter() - start
    say("compiling the program of members")
    compiled, seconds = compile_lowered(lowered)
    memory = program_memory(
        "members",
        compiled,
        mesh,
        lower_seconds=lower_seconds,
        compile_seconds=seconds,
    )
    num_rows = program.job.blocks.rows(job.num_members, mesh.shape["member"])
    step, beside = (
        _costs(job, program, arguments, num_rows, say) if costs else (None,) * 2
    )
    params_bytes = tree_bytes(job.params)
    arrays = {f"{kind} arguments": 0 for kind in dict.fromkeys(job.kinds)}
    for kind, argument in zip(job.kinds, arguments, strict=True):
        arrays[f"{kind} arguments"] += device_bytes(argument)
    return Plan(
        platform=platform(mesh),
        device_kind=mesh.devices.flat[0].device_kind,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        num_members=job.num_members,
        num_rows=num_rows,
        batch_size=None,
        member=MemberSize(
            parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(job.params)),
            params_bytes=params_bytes,
            rest_bytes=0,
            optimizer_bytes=0,
            best_bytes=0,
            state_bytes=0,
        ),
        arrays=arrays | {"outputs": memory.output_bytes},
        programs=(memory,),
        step=step,
        steps=job.steps,
        steps_per_call=job.steps,
        num_calls=1,
        num_evaluations=0,
        num_checkpoints=0,
        checkpoint_bytes=0,
        trial=None,
        why_no_trial="the steps are inside one call, and none can be tried alone",
        beside=beside,
    )


def _costs(job, program, arguments, num_rows, say):
    """One step of all local members, and the rest of the call (None: no step is known).

    Of one block of members on every device, written out, times the blocks.
    """
    mesh = program.mesh
    block = _members_of_a_block(program, arguments)
    rounds = num_rows // mesh.shape["member"] // block

    def count(fn):
        alone = map_members(
            fn,
            kinds=job.kinds,
            out=job.out,
            mesh=mesh,
            block=1 if block == 1 else None,
        )
        traced = alone.jitted.trace(*_cut(job, arguments, block * mesh.shape["member"]))
        name = alone.jitted.__name__
        compiled, text = compile_with_text(traced.lower(), mesh, name)
        counts = compiled.cost_analysis()
        sizes = [mesh.shape[axis] for axis in AXES]
        return StepCost(
            block=block,
            flops=counts["flops"],
            bytes_moved=counts["bytes accessed"],
            collectives=read_collectives(text, sizes),
            has_loop=has_loop(traced.jaxpr.jaxpr),
        )

    if job.written_out is None:
        say("compiling one block of members, to count what it does")
        return _combined(rounds, (count(job.fn), 1)), None
    say(f"compiling {_FEW} and {_MORE} steps, to count what one does")
    few, more = (count(job.written_out(n)) for n in (_FEW, _MORE))
    step = _combined(rounds, (more, 1), (few, -1))
    beside = _combined(rounds, (few, _MORE), (more, -_FEW))
    return step, beside


def _combined(rounds, *terms) -> StepCost:
    """`rounds` times a sum of costs with whole factors."""
    found: dict[tuple, Collective] = {}
    for cost, factor in terms:
        for each in cost.collectives:
            key = (each.operation, each.axes)
            old = found.get(key, Collective(*key, 0, 0))
            found[key] = Collective(
                *key,
                old.count + factor * rounds * each.count,
                old.result_bytes + factor * rounds * each.result_bytes,
            )
    first = terms[0][0]
    return StepCost(
        block=first.block,
        flops=rounds * sum(f * cost.flops for cost, f in terms),
        bytes_moved=rounds * sum(f * cost.bytes_moved for cost, f in terms),
        collectives=tuple(c for c in found.values() if c.count),
        has_loop=any(cost.has_loop for cost, _ in terms),
    )


class _Watched:
    """A job of `map_members` that tells how many local members run at once."""

    def __init__(self, job):
        self.job, self.donate, self.seen = job, (), []

    def __getattr__(self, name):
        return getattr(self.job, name)

    def local(self, *args):
        job = self.job
        size = members_at_once(job.fn, *args, kinds=job.kinds, blocks=job.blocks)
        self.seen.append(size)
        return job.local(*args)


def _members_of_a_block(program, arguments) -> int:
    watched = _Watched(program.job)
    jax.eval_shape(MeshProgram(watched, program.mesh).jitted, *arguments)
    return watched.seen[0]


def _cut(job, arguments, num_rows):
    """The arguments with so many members."""

    def resized(x, kind):
        if kind not in ("member", "member_batch"):
            return x
        # Members that do not divide are whole on every device; these do.
        spec = jax.P("member", "data") if kind == "member_batch" else jax.P("member")
        sharding = jax.sharding.NamedSharding(x.sharding.mesh, spec)
        shape = (num_rows, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    return tuple(
        jax.tree.map(lambda x, kind=kind: resized(x, kind), argument)
        for kind, argument in zip(job.kinds, arguments, strict=True)
    )
