"""The programs of a run, put together from what `fit` was given."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.mapping import MeshProgram, mesh_program
from ensjax.members import pad_members
from ensjax.mesh import place
from ensjax.train.evaluation import EarlyStopping, Evaluate
from ensjax.train.feeds import ResidentData, takes_missing_of
from ensjax.train.health import Health
from ensjax.train.joint_program import JointSteps
from ensjax.train.layout import Layout
from ensjax.train.member import Member
from ensjax.train.objectives import Joint
from ensjax.train.programs import InitState, TrainSteps


@dataclasses.dataclass(frozen=True)
class Stacks:
    """How rows of several stacks are padded and placed."""

    num_members: tuple[int, ...]
    blocks: Blocks
    mesh: Mesh

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows of every stack, with padding."""
        devices = self.mesh.shape["member"]
        return tuple(self.blocks.rows(count, devices) for count in self.num_members)

    def split(self, tree: Any) -> list[Any]:
        """One part of `[all members, ...]` leaves for every stack."""
        parts, start = [], 0
        for count in self.num_members:
            take = slice(start, start + count)
            parts.append(jax.tree.map(lambda x: x[take], tree))  # noqa: B023
            start += count
        return parts

    def placed(self, trees: Any) -> tuple[Any, ...]:
        """Padded to whole blocks on every device, and on the mesh."""
        placed = []
        for tree, rows in zip(trees, self.num_rows, strict=True):
            padded = jax.jit(pad_members, static_argnums=1)(tree, rows)
            placed.append(place(padded, self.mesh, jax.P("member")))
        return tuple(placed)


def build_programs(
    ensembles: tuple[Ensemble, ...],
    model_states: Any,
    hypers: Any,
    *,
    loss: Callable[..., Any] | Joint,
    make_tx: Callable[..., optax.GradientTransformation],
    has_hyper: bool,
    sampling: str,
    batch_size: int,
    num_examples: int,
    augment: Callable[[jax.Array, Any], Any] | None,
    keep_best: bool,
    averages: tuple[tuple[str, Any], ...] = (),
    healths: tuple[Health, ...],
    max_steps: int,
    weights_kind: str,
    weighs_loss: bool = False,
    data_kind: str,
    blocks: Blocks,
    mesh: Mesh,
    shard_state: bool,
) -> tuple[MeshProgram, TrainSteps]:
    """The program that makes the training states, and the job that trains.

    Args:
        ensembles: one for each stack.
        model_states: their states, padded; shapes are enough.
        hypers: hyperparameters of each stack, padded; shapes are enough.
        healths: what is done with broken members, for each stack.

    The other arguments are those of `fit` or of `TrainSteps`.
    """
    shards = mesh.shape["data"]
    members = tuple(
        Member(
            graph=e.graph,
            loss=loss,
            make_tx=make_tx,
            has_hyper=has_hyper,
            sampling=sampling,
            batch_size=batch_size,
            num_examples=num_examples,
            data_shards=shards,
            augment=augment,
            keep_best=keep_best,
            averages=averages,
            weighs_loss=weighs_loss,
            health=health,
        )
        for e, health in zip(ensembles, healths, strict=True)
    )
    init = mesh_program(InitState(members, blocks), mesh)
    if shard_state and shards > 1:
        shapes = jax.eval_shape(init.jitted, model_states, hypers)
        members = tuple(
            dataclasses.replace(member, layout=Layout.of(state, shards))
            for member, state in zip(members, shapes, strict=True)
        )
        init = mesh_program(InitState(members, blocks), mesh)
    job = TrainSteps(
        members,
        blocks,
        max_steps=max_steps,
        weights_kind=weights_kind,
        data_kind=data_kind,
    )
    if isinstance(loss, Joint):
        fields = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
        counts = tuple(e.num_members for e in ensembles)
        job = JointSteps(**fields, joint=loss, num_members=counts)
    return init, job


def evaluation_job(
    job: TrainSteps,
    mesh: Mesh,
    num_examples: int,
    *,
    loss: Callable[..., Any],
    batch_size: int,
    stopping: EarlyStopping | None,
) -> Evaluate:
    """Of a job's members; examples are split over data shards if they divide."""
    shards = mesh.shape["data"]
    return Evaluate(
        job.members,
        job.blocks,
        loss=loss,
        batch_size=batch_size,
        split_data=shards > 1 and num_examples % shards == 0,
        stopping=stopping,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation job and the arrays that it reads.

    Attributes:
        job: compiled for a mesh when it is called.
        arrays: on the devices.
        mesh: the devices.
    """

    job: Evaluate
    arrays: Any
    mesh: Mesh

    @classmethod
    def of(
        cls,
        data: Any,
        job: TrainSteps,
        *,
        loss: Callable[..., Any],
        batch_size: int,
        stopping: EarlyStopping | None,
        mesh: Mesh,
    ) -> "Evaluation":
        """Puts arrays on the devices.

        Raises:
            ValueError: for arrays that do not fit together.
        """
        feed = ResidentData.of(
            data,
            batch_size=None,
            mesh=mesh,
            name="evaluation",
            takes_missing=takes_missing_of(loss, data),
        )
        evaluate = evaluation_job(
            job,
            mesh,
            feed.num_examples,
            loss=loss,
            batch_size=batch_size,
            stopping=stopping,
        )
        return cls(evaluate, place(feed.arrays, mesh, evaluate.data_spec), mesh)

    def __call__(self, states: Any, ids: Any, step: Any, seed: Any) -> Any:
        """The states and the metrics of every stack."""
        program = mesh_program(self.job, self.mesh)
        return program(states, ids, self.arrays, step, seed)


def abstract_states(init, job, mesh, model_states, hypers):
    """Shapes and shardings of the states, without making them."""
    shapes = jax.eval_shape(init.jitted, model_states, hypers)
    return jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            part,
        ),
        job.state_specs(),
        shapes,
        is_leaf=lambda x: isinstance(x, jax.P),
    )
