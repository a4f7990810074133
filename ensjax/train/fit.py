"""`fit`: trains every member of an ensemble as one compiled program of many steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ensjax.data.sampling import accumulate_weights
from ensjax.ensemble import Ensemble, Group
from ensjax.mapping import Blocks, MeshProgram, mesh_program
from ensjax.members import pad_members, trim_members
from ensjax.mesh import check_mesh, place
from ensjax.train.evaluation import EarlyStopping, Evaluate
from ensjax.train.feeds import ResidentData, StreamedData, is_resident
from ensjax.train.joint_program import JointSteps
from ensjax.train.layout import Layout
from ensjax.train.loop import Schedule, TrainingLog, run_schedule
from ensjax.train.member import SAMPLINGS, Member
from ensjax.train.objectives import Joint
from ensjax.train.programs import InitState, TrainSteps


def fit(
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
    augment: Callable[[jax.Array, Any], Any] | None = None,
    evaluation: Any = None,
    evaluation_loss: Callable[..., Any] | None = None,
    evaluate_every_steps: int | None = None,
    evaluation_batch_size: int = 512,
    early_stopping: EarlyStopping | None = None,
    steps_per_call: int | None = None,
    log_every_steps: int | None = None,
    block: int | str | None = "auto",
    unroll: bool = False,
    mesh: Mesh | None = None,
    shard_state: bool = False,
    checkpoint_dir: Any = None,
    save_every_steps: int | None = None,
    logger: Any = None,
    progress: bool = True,
) -> tuple[Ensemble | Group, TrainingLog]:
    """Trains all members at once; compiled through `ensjax.mapping`.

    A member that becomes non-finite is frozen at its last finite weights and reported;
    nothing of the others changes. The same call with the same `checkpoint_dir` resumes.

    Args:
        ensemble: what to train; it is left as it is.
        data: arrays with a leading example axis (a tuple, dict or one array), which are
            kept whole on every device and read by index, so that members never cost
            copies; or an iterable of NumPy batches (a grain loader, a PyTorch loader),
            which all members share. In a job of several processes an iterable yields the
            examples that the process's own devices hold.
        loss: `loss(model, batch, key) -> scalar` or `(scalar, metrics)` of one member, a
            mean over the batch; or a `Joint` objective of all members.
        make_tx: `make_tx(hyper)` -> optax transformation of one member, which is built
            inside the program; `make_tx()` if `hyper` is None.
        hyper: a number, an array or tuple `[member]`, or a dict of these.
        steps: optimizer steps in all.
        batch_size: examples of the global batch of each member; a stream brings its own.
        seed: of data order, augmentation and what the loss draws.
        sampling: "independent" (each member its own order), "shared" (one order),
            "bootstrap" (its own resample, in its own order) or "weighted" (draws with
            replacement in proportion to `weights`).
        weights: `[example]` or `[member, example]`, for "weighted".
        augment: `augment(key, example) -> example` of one example; its key depends on
            member, step and the example's place in the global batch.
        evaluation: arrays like `data`, on which the members are evaluated.
        evaluation_loss: `loss` by default; needed for a joint objective.
        evaluate_every_steps: default: with every report.
        evaluation_batch_size: examples at a time.
        early_stopping: keeps the best weights of each member, and stops it.
        steps_per_call: steps in one call of the compiled program. The intervals below
            are multiples of it. 1 runs without a compiled loop.
        log_every_steps: between reports; default: a twentieth of `steps`.
        block: local members that run at once; see `map_members`.
        unroll: local members one after the other, without a loop.
        mesh: default: the ensemble's.
        shard_state: rest the state of each member split over the mesh axis "data".
        checkpoint_dir: where to save; nothing is saved without it.
        save_every_steps: default: with every report. The end is always saved.
        logger: has `write(step, metrics)`; only process 0 calls it.
        progress: whether to print.

    Returns:
        The trained ensemble (each member's best weights with `early_stopping`), and the
        log.

    Raises:
        ValueError: for what does not fit together, before any work is done.

    Example:
        >>> import ensjax, numpy as np, optax
        >>> def make_model(rngs):
        ...     return ensjax.nn.MLP(in_features=2, num_outputs=2, rngs=rngs)
        >>> ensemble = ensjax.Ensemble.init(make_model, num_members=4)
        >>> x, y = np.random.rand(32, 2), np.arange(32) % 2
        >>> ensemble, log = ensjax.fit(
        ...     ensemble, (x, y), loss=ensjax.losses.cross_entropy,
        ...     make_tx=optax.adam, hyper=1e-3, steps=10, batch_size=8, progress=False)
        >>> log.metrics["loss"].shape
        (10, 4)
    """
    ensembles = ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,)
    mesh = ensembles[0].mesh if mesh is None else mesh
    check_mesh(mesh)
    _check_ids(ensembles)
    schedule = Schedule.of(
        steps=steps,
        steps_per_call=steps_per_call,
        log_every_steps=log_every_steps,
        evaluate_every_steps=evaluate_every_steps if evaluation is not None else 0,
        save_every_steps=save_every_steps if checkpoint_dir is not None else 0,
    )
    if is_resident(data):
        if sampling not in SAMPLINGS[:-1]:
            raise ValueError(
                f"sampling is one of {', '.join(SAMPLINGS[:-1])}; got {sampling!r}."
            )
        feed = ResidentData.of(data, batch_size=batch_size, mesh=mesh)
    else:
        sampling = "stream"
        feed = StreamedData.of(data, mesh=mesh, max_steps=schedule.steps_per_call)
    if isinstance(loss, Joint):
        _check_joint(loss, sampling, evaluation, evaluation_loss, early_stopping)
    if early_stopping is not None and evaluation is None:
        raise ValueError(
            "early_stopping watches an evaluation; pass evaluation=(x, y)."
        )
    if (weights is not None) != (sampling == "weighted"):
        raise ValueError('weights belong to sampling="weighted", and it needs them.')

    blocks = Blocks(block, unroll)
    counts = tuple(e.num_members for e in ensembles)
    stacks = _Stacks(counts, blocks, mesh)
    hypers = stacks.split(per_member(hyper, sum(counts)))
    ids = stacks.placed([e.member_ids for e in ensembles])
    hypers = stacks.placed(hypers)
    model_states = stacks.placed([e.state for e in ensembles])
    weights, weights_kind = _cumulative(weights, feed.num_examples, stacks)

    init, job = build_programs(
        ensembles,
        model_states,
        hypers,
        loss=loss,
        make_tx=make_tx,
        has_hyper=hyper is not None,
        sampling=sampling,
        batch_size=feed.batch_size,
        num_examples=feed.num_examples,
        augment=augment,
        keep_best=early_stopping is not None,
        max_steps=schedule.steps_per_call,
        weights_kind=weights_kind,
        data_kind=feed.kind,
        blocks=blocks,
        mesh=mesh,
        shard_state=shard_state,
    )
    members, layouts = job.members, job.layouts
    evaluate = None
    if evaluation is not None:
        evaluate = _evaluation(
            evaluation,
            evaluation_loss or loss,
            evaluation_batch_size,
            early_stopping,
            members,
            blocks,
            layouts,
            mesh,
        )
    states, log = run_schedule(
        schedule,
        mesh_program(job, mesh),
        evaluate,
        make_states=lambda: init(model_states, hypers),
        abstract_states=lambda: abstract_states(init, job, mesh, model_states, hypers),
        hypers=hypers,
        ids=ids,
        weights=weights,
        feed=feed,
        seed=seed,
        num_members=counts,
        checkpoint_dir=checkpoint_dir,
        logger=logger,
        progress=progress,
        stopping=early_stopping,
    )
    trained = [
        _with_state(e, state, early_stopping is not None, mesh, layouts)
        for e, state in zip(ensembles, states, strict=True)
    ]
    return (Group(tuple(trained)) if isinstance(ensemble, Group) else trained[0]), log


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
    max_steps: int,
    weights_kind: str,
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
        )
        for e in ensembles
    )
    init = mesh_program(InitState(members, blocks), mesh)
    layouts = ()
    if shard_state:
        shapes = jax.eval_shape(init.jitted, model_states, hypers)
        layouts = tuple(Layout.of(state, shards) for state in shapes)
        init = mesh_program(InitState(members, blocks, layouts=layouts), mesh)
    job = TrainSteps(
        members,
        blocks,
        max_steps=max_steps,
        weights_kind=weights_kind,
        data_kind=data_kind,
        layouts=layouts,
    )
    if isinstance(loss, Joint):
        fields = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
        counts = tuple(e.num_members for e in ensembles)
        job = JointSteps(**fields, joint=loss, num_members=counts)
    return init, job


@dataclasses.dataclass(frozen=True)
class _Stacks:
    """How rows of several stacks are padded and placed."""

    num_members: tuple[int, ...]
    blocks: Blocks
    mesh: Mesh

    def split(self, tree):
        """One part of `[all members, ...]` leaves for every stack."""
        parts, start = [], 0
        for count in self.num_members:
            take = slice(start, start + count)
            parts.append(jax.tree.map(lambda x: x[take], tree))  # noqa: B023
            start += count
        return parts

    def placed(self, trees):
        """Padded to whole blocks on every device, and on the mesh."""
        placed = []
        for tree, count in zip(trees, self.num_members, strict=True):
            rows = self.blocks.rows(count, self.mesh.shape["member"])
            padded = jax.jit(pad_members, static_argnums=1)(tree, rows)
            placed.append(place(padded, self.mesh, jax.P("member")))
        return tuple(placed)


def _check_ids(ensembles):
    ids = np.concatenate([np.asarray(jax.device_get(_whole(e))) for e in ensembles])
    if len(set(ids.tolist())) < len(ids):
        raise ValueError(
            f"member_ids must differ, since data order and dropout follow the id; got"
            f" {ids.tolist()}. Give new ids with Ensemble.with_ids."
        )


def _whole(ensemble):
    from ensjax.mesh import fetch

    return fetch(ensemble.member_ids)


def _check_joint(joint, sampling, evaluation, evaluation_loss, early_stopping):
    if sampling not in ("shared", "stream"):
        raise ValueError(
            'A joint objective compares members on the same examples: sampling="shared"'
            f" or a stream; got {sampling!r}."
        )
    if evaluation is not None and evaluation_loss is None:
        raise ValueError(
            "Evaluation is of one member at a time; with a joint objective pass"
            " evaluation_loss."
        )


def per_member(hyper, num_members):
    """Hyperparameters as float32 arrays `[member]`."""

    def spread(path, value):
        name = "hyper" + jax.tree_util.keystr(path)
        value = np.asarray(value)
        if value.dtype == object or not np.issubdtype(value.dtype, np.number):
            raise ValueError(
                f"{name} must be a number or numbers [member]; got {value}."
            )
        if value.ndim and value.shape[0] != num_members:
            raise ValueError(
                f"{name} has {value.shape[0]} values for {num_members} members."
            )
        dtype = np.float32 if np.issubdtype(value.dtype, np.floating) else np.int32
        value = value.astype(dtype)
        return np.broadcast_to(value, (num_members,)) if not value.ndim else value

    leaf = lambda x: isinstance(x, (tuple, list))  # noqa: E731
    return jax.tree_util.tree_map_with_path(spread, hyper, is_leaf=leaf)


def _cumulative(weights, num_examples, stacks):
    if weights is None:
        return (None,) * len(stacks.num_members), "shared"
    weights = np.asarray(weights)
    total = sum(stacks.num_members)
    if weights.shape not in ((num_examples,), (total, num_examples)):
        raise ValueError(
            f"weights are [example] = ({num_examples},) or [member, example] ="
            f" ({total}, {num_examples}); got {weights.shape}."
        )
    cumulative = accumulate_weights(weights)
    if cumulative.ndim == 2:
        return stacks.placed(stacks.split(cumulative)), "member"
    shared = place(jnp.asarray(cumulative), stacks.mesh, jax.P())
    return (shared,) * len(stacks.num_members), "shared"


def _evaluation(
    data, loss, batch_size, stopping, members, blocks, layouts, mesh
) -> Callable[..., Any]:
    shards = mesh.shape["data"]
    feed = ResidentData.of(data, batch_size=None, mesh=mesh, name="evaluation")
    split = shards > 1 and feed.num_examples % shards == 0
    job = Evaluate(
        members,
        blocks,
        layouts=layouts,
        loss=loss,
        batch_size=batch_size,
        split_data=split,
        data_shards=shards if split else 1,
        stopping=stopping,
    )
    arrays = place(feed.arrays, mesh, jax.P("data") if split else jax.P())
    program = mesh_program(job, mesh)
    return lambda states, ids, step, seed: program(states, ids, arrays, step, seed)


def abstract_states(init, job, mesh, model_states, hypers):
    """Shapes and shardings of the states, without making them."""
    shapes = jax.eval_shape(init.jitted, model_states, hypers)
    specs = job.state_specs()
    if not job.layouts:
        specs = jax.tree.map(lambda _: jax.P("member"), shapes)
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        shapes,
        specs,
    )


def _with_state(ensemble, state, use_best, mesh, layouts):
    source = state
    if use_best:
        has_best = state["best"]["step"] >= 0

        def choose(best, last):
            shape = (-1, *(1,) * (last.ndim - 1))
            return jnp.where(has_best.reshape(shape), best, last)

        pick = jax.jit(lambda a, b: jax.tree.map(choose, a, b))
        source = {
            name: pick(state["best"][name], state[name]) for name in ("params", "rest")
        }
    model_state = {"params": source["params"], "rest": source["rest"]}
    count = ensemble.num_members
    if jax.tree.leaves(model_state)[0].shape[0] != count:
        model_state = jax.jit(
            trim_members, static_argnums=1, out_shardings=NamedSharding(mesh, jax.P())
        )(model_state, count)
    result = dataclasses.replace(ensemble, state=model_state, mesh=mesh)
    return result.on_mesh(mesh)
