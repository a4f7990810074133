"""What forecasts of a product of members take before anything of them exists.

The program is that of `fold_product`; what is not at hand (weights, analyses) is known
by its shape. What one step costs is counted apart, since a rollout's program does not
know how many steps it has.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ensjax.emulate.perturb import Start
from ensjax.emulate.product import MemberForecast, fold_program
from ensjax.emulate.product_job import MemberId
from ensjax.emulate.rollout import one_step
from ensjax.members import num_members
from ensjax.mesh import AXES, make_mesh
from ensjax.planning import MappedJob, ProgramMemory, StepCost, plan
from ensjax.planning.memory import compile_lowered, device_bytes, program_memory


@dataclasses.dataclass(frozen=True)
class ForecastJob:
    """One call of `fold_product`, with shapes in the place of what is not at hand.

    Attributes:
        forecast, members, lead_steps, block, split_models: as there.
        models: `[checkpoint, ...]`, arrays or `jax.ShapeDtypeStruct`s.
        starts: leaves `[start, ...]`, likewise.
        make_states: `make_states()` gives the states; only their shapes are asked for.
        mesh_sizes: devices along "member", "data" and "model".
    """

    forecast: MemberForecast
    members: MemberId
    models: Any
    starts: Start
    make_states: Callable[[], dict[str, Any]]
    lead_steps: Sequence[int]
    block: int
    mesh_sizes: Mapping[str, int]
    split_models: bool = False

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh of these sizes over some devices; all that there are by default."""
        return make_mesh(**self.mesh_sizes, devices=devices)

    def program(self, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
        """The program on a mesh, and shapes and shardings of its arguments.

        Raises:
            TypeError, ValueError: as `fold_product`.
        """
        program, arguments = fold_program(
            self.forecast,
            self.members,
            jax.eval_shape(self.make_states),
            models=self.models,
            starts=self.starts,
            lead_steps=self.lead_steps,
            block=self.block,
            split_models=self.split_models,
            mesh=mesh,
        )

        def abstract(leaf, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        specs = program.job.in_specs()
        return program, tuple(
            jax.tree.map(lambda leaf, spec=spec: abstract(leaf, spec), argument)
            for argument, spec in zip(arguments, specs, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class ForecastPlan:
    """What a `ForecastJob` needs and does; bytes and operations are of one device.

    Attributes:
        num_members: in all.
        num_rows: of each device, padding included.
        block: of these at once.
        mesh: devices along "member", "data" and "model".
        num_steps: of one member to the last lead.
        num_breeding_steps: of one member, to make its perturbation.
        arrays: bytes of weights, starts and states.
        memory: of the program.
        step: of a block of members, one step.
    """

    num_members: int
    num_rows: int
    block: int
    mesh: dict[str, int]
    num_steps: int
    num_breeding_steps: int
    arrays: dict[str, int]
    memory: ProgramMemory
    step: StepCost

    @property
    def flops(self) -> float:
        """Operations of the whole call, those of the steps."""
        steps = self.num_steps + self.num_breeding_steps
        return self.num_rows / self.block * steps * self.step.flops

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, with the properties."""
        sums = {"flops": self.flops, "peak_bytes": self.memory.peak_bytes}
        return dataclasses.asdict(self) | sums


def plan_forecasts(
    job: ForecastJob, mesh: Mesh, *, say: Callable[[str], None] = print
) -> ForecastPlan:
    """Compiles the program of a job for the devices of a mesh; nothing runs.

    Args:
        job: what is planned.
        mesh: of its sizes.
        say: is told what is being done.

    Raises:
        DoesNotFit: if the compiler finds that the program does not fit.
        TypeError, ValueError: as `fold_product`.
    """
    say("tracing the program of forecasts")
    program, arguments = job.program(mesh)
    states, rows, _, models, starts, *_ = arguments
    lowered = program.lower(*arguments)
    say("compiling the program of forecasts")
    compiled, seconds = compile_lowered(lowered)
    memory = program_memory("forecasts", compiled, mesh, compile_seconds=seconds)
    say("compiling one step of a block of members, to count what it does")
    arrays = {"weights": models, "starts": starts, "states": states}
    return ForecastPlan(
        num_members=int(np.shape(job.members.start)[0]),
        num_rows=num_members(rows) // mesh.shape["member"],
        block=job.block,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        num_steps=int(job.lead_steps[-1]),
        num_breeding_steps=getattr(job.forecast.perturb, "num_steps", 0),
        arrays={name: device_bytes(tree) for name, tree in arrays.items()},
        memory=memory,
        step=_step_cost(job, mesh),
    )


def _step_cost(job, mesh) -> StepCost:
    """Of a block of members of one checkpoint on one device."""
    one = make_mesh(member=1, devices=mesh.devices.flat[:1])
    states = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, job.block, *x.shape[1:]), x.dtype),
        job.starts.state,
    )
    models = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), job.models
    )
    of_block = MappedJob(
        functools.partial(_block_step, job.forecast.rollout.step),
        ("member", "member"),
        (models, states),
        mesh_sizes=dict(member=1),
        block=1,
    )
    found = plan(of_block, mesh=one, trial="never", say=lambda text: None)
    return dataclasses.replace(found.step, block=job.block)


def _block_step(step, model, states):
    def of_member(number, state):
        return one_step(step, model, jax.random.key(number), state)

    numbers = jax.numpy.arange(num_members(states))
    return jax.vmap(of_member)(numbers, states)
