"""The programs of `fit` for shapes alone: no data, no devices, no training.

`abstract_run` describes a call of `fit`, whose programs can then be lowered;
`lower_step` is the short way to its training program.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ensjax.blocks import Blocks
from ensjax.data.streams import as_batches
from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.mapping import MeshProgram, mesh_program
from ensjax.train import arguments
from ensjax.train.assembly import abstract_states, build_programs, evaluation_job
from ensjax.train.evaluation import EarlyStopping, Evaluate
from ensjax.train.feeds import check_arrays, is_resident
from ensjax.train.health import Health
from ensjax.train.objectives import Joint
from ensjax.train.programs import TrainSteps
from ensjax.train.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """What a call of `fit` would run, in shapes with their shardings.

    Attributes:
        schedule: steps and intervals.
        mesh: its devices, which need not be there.
        num_members: of every stack.
        num_rows: of every stack with its padding.
        init: makes the states from `model_states` and `hypers`.
        job: the training program; its arguments are `states`, `hypers`, `ids`,
            `weights` and `data`, and three integers.
        evaluate: the evaluation, or None; its arguments are `states`, `ids` and
            `evaluation`, and two integers.
        model_states: the members before training, leaves `[row, ...]`; `fit` keeps them
            on the devices all the time.
        states: of training, leaves `[row, ...]`.
        hypers, ids, weights: of every stack.
        data: leaves `[example, ...]`, whole on every device; of a stream leaves
            `[batch, step, ...]`, the batches of one call, split over "data".
        evaluation: leaves `[example, ...]`, or None.
    """

    schedule: Schedule
    mesh: Mesh
    num_members: tuple[int, ...]
    num_rows: tuple[int, ...]
    init: MeshProgram
    job: TrainSteps
    evaluate: Evaluate | None
    model_states: Any
    states: Any
    hypers: Any
    ids: Any
    weights: Any
    data: Any
    evaluation: Any

    def of_stack(self, number: int) -> "AbstractRun":
        """One stack by itself; of a joint objective there is no such run."""
        one = slice(number, number + 1)
        names = [
            "num_members",
            "num_rows",
            "model_states",
            "states",
            "hypers",
            "ids",
            "weights",
        ]
        parts = {name: getattr(self, name)[one] for name in names}
        job = dataclasses.replace(self.job, members=self.job.members[one])
        return dataclasses.replace(self, job=job, **parts)

    def lower_training(self) -> jax.stages.Lowered:
        """The program of `schedule.steps_per_call` steps."""
        return mesh_program(self.job, self.mesh).lower(
            self.states,
            self.hypers,
            self.ids,
            self.weights,
            self.data,
            0,
            self.schedule.steps_per_call,
            0,
        )

    def lower_evaluation(self) -> jax.stages.Lowered:
        """The program that evaluates; there must be one."""
        return mesh_program(self.evaluate, self.mesh).lower(
            self.states, self.ids, self.evaluation, 0, 0
        )

    def lower_init(self) -> jax.stages.Lowered:
        """The program that makes the states."""
        return self.init.lower(self.model_states, self.hypers)


def abstract_run(
    ensemble: Ensemble | Group,
    data: Any,
    *,
    loss: Callable[..., Any] | Joint,
    make_tx: Callable[..., optax.GradientTransformation],
    hyper: Any = None,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    sampling: str = "independent",
    weights: Any = None,
    loss_weights: Any = None,
    augment: Callable[[jax.Array, Any], Any] | None = None,
    evaluation: Any = None,
    evaluation_loss: Callable[..., Any] | None = None,
    evaluate_every_steps: int | None = None,
    evaluation_batch_size: int = 512,
    early_stopping: EarlyStopping | None = None,
    keep_best: bool = False,
    averages: Mapping[str, Any] | None = None,
    health: str | Health = "freeze",
    steps_per_call: int | None = None,
    log_every_steps: int | None = None,
    save_every_steps: int | None = 0,
    block: int | str | None = "auto",
    unroll: bool = False,
    mesh: Mesh | None = None,
    shard_state: bool = False,
    is_stream: bool = False,
) -> AbstractRun:
    """The programs of `fit` for the same arguments; nothing is allocated.

    Args:
        ensemble: members, or their shapes:
            `jax.eval_shape(lambda: Ensemble.init(make_model, num_members=64))`.
        data: resident data or shapes, leaves `[example, ...]`; or a loader, whose
            first batch is looked at.
        is_stream: `data` are shapes `[batch, ...]` of one global batch of a loader.
        keep_best: whether the state holds best weights, also without `early_stopping`.
        save_every_steps: None: as often as it reports; 0: never.

    The other arguments are those of `fit`, where arrays may be their shapes.

    Raises:
        TypeError, ValueError: as `fit`, except for what only values could show.
    """
    if not is_resident(data):
        data, is_stream = batch_shapes(data), True
    ensembles = ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,)
    mesh = ensembles[0].mesh if mesh is None else mesh
    arguments.check_fit_mesh(mesh, loss)
    arguments.check_seed(seed)
    arguments.check_functions(loss, make_tx, hyper, augment, evaluation_loss)
    averages = arguments.check_averages(averages)
    arguments.check_sampling(sampling, weights, loss_weights, is_resident=not is_stream)
    arguments.check_evaluation(
        evaluation,
        None if is_stream else data,
        evaluation_loss=evaluation_loss,
        evaluate_every_steps=evaluate_every_steps,
        evaluation_batch_size=evaluation_batch_size,
        early_stopping=early_stopping,
    )
    num_examples = jax.tree.leaves(data)[0].shape[0]
    shards = mesh.shape["data"]
    if is_stream:  # as in `StreamedData`
        sampling, batch_size, num_examples = "stream", num_examples, 0
        if batch_size % shards:
            raise ValueError(
                f"data has batches of {batch_size} examples, which must divide over"
                f" data={shards} devices."
            )
    elif not 1 <= batch_size <= num_examples or batch_size % shards:
        raise ValueError(
            f"batch_size={batch_size} must be at most the {num_examples} examples and"
            f" divide over data={shards} devices."
        )
    if isinstance(loss, Joint):
        arguments.check_joint(
            loss,
            ensembles,
            sampling=sampling,
            local_batch_size=batch_size // shards,
            evaluation=evaluation,
            evaluation_loss=evaluation_loss,
            loss_weights=loss_weights,
        )
    schedule = Schedule.of(
        steps=steps,
        steps_per_call=steps_per_call,
        log_every_steps=log_every_steps,
        evaluate_every_steps=evaluate_every_steps if evaluation is not None else 0,
        save_every_steps=save_every_steps,
    )
    blocks = Blocks(block, unroll)
    counts = tuple(e.member_ids.shape[0] for e in ensembles)
    num_rows = tuple(blocks.rows(count, mesh.shape["member"]) for count in counts)

    def by_stack(trees):
        def stacked(tree, rows):
            return jax.tree.map(
                lambda x: _shape((rows, *x.shape[1:]), x.dtype, mesh, jax.P("member")),
                tree,
            )

        return tuple(map(stacked, trees, num_rows))

    model_states = by_stack([e.state for e in ensembles])
    # Every stack's rows have the same shapes behind the member axis.
    hypers = by_stack([arguments.per_member(hyper, sum(counts))] * len(counts))
    weights_kind, placed_weights = "shared", (None,) * len(ensembles)
    weighs_loss = loss_weights is not None
    given = loss_weights if weighs_loss else weights
    if given is not None:
        weights_kind = arguments.check_weights_shape(
            np.shape(given),
            num_examples,
            sum(counts),
            name="loss_weights" if weighs_loss else "weights",
        )
        dtype = np.float32 if weighs_loss else np.uint32
        rows = (_shape(np.shape(given), dtype, mesh, jax.P()),) * len(ensembles)
        placed_weights = by_stack(rows) if weights_kind == "member" else rows
    init, job = build_programs(
        ensembles,
        model_states,
        hypers,
        loss=loss,
        make_tx=make_tx,
        has_hyper=hyper is not None,
        sampling=sampling,
        batch_size=batch_size,
        num_examples=num_examples,
        augment=augment,
        keep_best=keep_best or early_stopping is not None,
        averages=averages,
        healths=Health.of(health).for_stacks(ensembles),
        max_steps=schedule.steps_per_call,
        weights_kind=weights_kind,
        weighs_loss=weighs_loss,
        data_kind="batch" if is_stream else "shared",
        blocks=blocks,
        mesh=mesh,
        shard_state=shard_state,
    )
    evaluate = held_out = None
    if evaluation is not None:
        evaluate = evaluation_job(
            job,
            mesh,
            jax.tree.leaves(evaluation)[0].shape[0],
            loss=evaluation_loss or loss,
            batch_size=evaluation_batch_size,
            stopping=early_stopping,
        )
        held_out = _shapes(evaluation, mesh, evaluate.data_spec)
    return AbstractRun(
        schedule=schedule,
        mesh=mesh,
        num_members=counts,
        num_rows=num_rows,
        init=init,
        job=job,
        evaluate=evaluate,
        model_states=model_states,
        states=abstract_states(init, job, mesh, model_states, hypers),
        hypers=hypers,
        ids=by_stack([e.member_ids for e in ensembles]),
        weights=placed_weights,
        data=_data_shapes(data, mesh, schedule.steps_per_call if is_stream else 0),
        evaluation=held_out,
    )


def batch_shapes(loader: Any) -> Any:
    """Shapes of the first batch of a loader, which is read.

    Raises:
        TypeError: for what cannot be iterated.
        ValueError: for an iterator, which would lose its first batch; or no batch.
    """
    if not hasattr(loader, "__iter__"):
        raise TypeError(
            "data must be arrays [example, ...] or an iterable of batches; got"
            f" {type(loader).__name__}."
        )
    if iter(loader) is loader:
        raise ValueError(
            f"The {type(loader).__name__} that was given as data would lose its first"
            " batch. Give what begins anew with every iter, such as ensjax.data.stream;"
            " or the shapes of a batch, with is_stream=True."
        )
    batch = next(as_batches(loader, num_epochs=1))
    check_arrays("data (its first batch)", batch, takes_missing=True)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def lower_step(
    ensemble: Ensemble | Group,
    data: Any,
    *,
    loss: Callable[..., Any] | Joint,
    make_tx: Callable[..., optax.GradientTransformation],
    hyper: Any = None,
    batch_size: int = 64,
    sampling: str = "independent",
    weights: Any = None,
    loss_weights: Any = None,
    augment: Callable[[jax.Array, Any], Any] | None = None,
    keep_best: bool = False,
    health: str | Health = "freeze",
    steps_per_call: int = 1,
    block: int | str | None = "auto",
    unroll: bool = False,
    mesh: Mesh | None = None,
    shard_state: bool = False,
) -> jax.stages.Lowered:
    """The training program of `fit` for the same arguments, lowered and not run.

    Its compiled form tells collectives (`as_text`), operations (`cost_analysis`) and
    bytes (`memory_analysis`). Only shapes are read, so that nothing is allocated, and
    the mesh may be of devices that are not there, such as a TPU topology.

    Args:
        ensemble: members, or their shapes:
            `jax.eval_shape(lambda: Ensemble.init(make_model, num_members=64))`.
        data: resident data, or its shapes, leaves `[example, ...]`.
        loss: as for `fit`, and so are all others.
        make_tx: builds the optimizer.
        hyper: hyperparameters.
        batch_size: examples of the global batch of each member.
        sampling: "independent", "shared", "bootstrap" or "weighted".
        weights: for "weighted": `[example]` or `[member, example]`, or their shape.
        loss_weights: of the rows in the loss, in the same shapes.
        augment: of one example.
        keep_best: whether the state holds best weights, as with early stopping.
        health: what is done with broken members.
        steps_per_call: 1 is written without a loop, so that all of it is counted.
        block: local members that run at once.
        unroll: local members one after the other.
        mesh: default: the ensemble's.
        shard_state: keep the state split over "data".

    Raises:
        ValueError: if sampling is unknown, weights are missing or of another shape, or
            the batch does not divide over the data shards or exceeds the examples.

    Example:
        >>> import ensjax, jax, jax.numpy as jnp, optax
        >>> def make_model(rngs):
        ...     return ensjax.nn.MLP(in_features=4, num_outputs=3, rngs=rngs)
        >>> ensemble = ensjax.Ensemble.init(make_model, num_members=2)
        >>> shapes = (
        ...     jax.ShapeDtypeStruct((5000, 4), jnp.float32),
        ...     jax.ShapeDtypeStruct((5000,), jnp.int32))
        >>> lowered = lower_step(
        ...     ensemble, shapes, loss=ensjax.losses.cross_entropy,
        ...     make_tx=optax.adam, hyper=1e-3)
        >>> lowered.compile().memory_analysis().argument_size_in_bytes > 0
        True
    """
    return abstract_run(
        ensemble,
        data,
        loss=loss,
        make_tx=make_tx,
        hyper=hyper,
        steps=steps_per_call,
        batch_size=batch_size,
        sampling=sampling,
        weights=weights,
        loss_weights=loss_weights,
        augment=augment,
        keep_best=keep_best,
        health=health,
        steps_per_call=steps_per_call,
        log_every_steps=steps_per_call,
        block=block,
        unroll=unroll,
        mesh=mesh,
        shard_state=shard_state,
    ).lower_training()


def _shapes(tree, mesh, spec):
    """Shapes of resident arrays, in the types that JAX computes with."""
    return jax.tree.map(
        lambda x: _shape(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), mesh, spec),
        tree,
    )


def _data_shapes(data, mesh, steps_of_a_stream):
    """Of what lies on the devices; of a stream the batches of one call."""
    if not steps_of_a_stream:
        return _shapes(data, mesh, jax.P())
    chunk = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (x.shape[0], steps_of_a_stream, *x.shape[1:]), x.dtype
        ),
        data,
    )
    return _shapes(chunk, mesh, jax.P("data"))


def _shape(shape, dtype, mesh, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
