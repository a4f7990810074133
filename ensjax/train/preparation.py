"""`prepare_run`: what `fit` was given, checked and put on the devices; nothing runs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.mesh import fetch
from ensjax.train import arguments, identity
from ensjax.train.assembly import Evaluation, Stacks, build_programs
from ensjax.train.evaluation import EarlyStopping
from ensjax.train.feeds import ResidentData, is_resident, takes_missing_of
from ensjax.train.health import Health
from ensjax.train.objectives import Joint
from ensjax.train.operations import operations_of
from ensjax.train.run import Run
from ensjax.train.schedule import Schedule
from ensjax.train.streamed import StreamedData


def prepare_run(
    ensemble: Ensemble | Group,
    data: Any,
    *,
    loss: Callable[..., Any] | Joint,
    make_tx: Callable[..., optax.GradientTransformation],
    hyper: Any,
    steps: int,
    batch_size: int,
    seed: int,
    sampling: str,
    weights: Any,
    loss_weights: Any,
    augment: Callable[[jax.Array, Any], Any] | None,
    evaluation: Any,
    evaluation_loss: Callable[..., Any] | None,
    evaluate_every_steps: int | None,
    evaluation_batch_size: int,
    early_stopping: EarlyStopping | None,
    averages: Mapping[str, Any] | None,
    health: str | Health,
    steps_per_call: int | None,
    log_every_steps: int | None,
    block: int | str | None,
    unroll: bool,
    mesh: Mesh | None,
    shard_state: bool,
    save_every_steps: int | None,
    saves: bool,
) -> Run:
    """A run of all members, traced once so that mistakes in a loss show.

    Args:
        ensemble: what to train.
        data: as for `fit`, and so are all others.
        saves: whether there will be checkpoints.

    Raises:
        TypeError, ValueError: for what does not fit together.
    """
    ensembles = arguments.stacks_of(ensemble)
    health = Health.of(health)
    healths = health.for_stacks(ensembles)
    mesh = ensembles[0].mesh if mesh is None else mesh
    arguments.check_fit_mesh(mesh, loss)
    seed = arguments.check_seed(seed)
    arguments.check_functions(loss, make_tx, hyper, augment, evaluation_loss)
    arguments.check_sampling(
        sampling, weights, loss_weights, is_resident=is_resident(data)
    )
    arguments.check_evaluation(
        evaluation,
        data if is_resident(data) else None,
        evaluation_loss=evaluation_loss,
        evaluate_every_steps=evaluate_every_steps,
        evaluation_batch_size=evaluation_batch_size,
        early_stopping=early_stopping,
    )
    averages = arguments.check_averages(averages)
    schedule = Schedule.of(
        steps=steps,
        steps_per_call=steps_per_call,
        log_every_steps=log_every_steps,
        evaluate_every_steps=evaluate_every_steps if evaluation is not None else 0,
        save_every_steps=save_every_steps if saves else 0,
    )
    if is_resident(data):
        feed = ResidentData.of(
            data,
            batch_size=batch_size,
            mesh=mesh,
            takes_missing=takes_missing_of(loss, data),
        )
    else:
        sampling = "stream"
        feed = StreamedData.of(
            data,
            mesh=mesh,
            max_steps=schedule.steps_per_call,
            saves=saves,
            loss=loss,
        )
    if isinstance(loss, Joint):
        arguments.check_joint(
            loss,
            ensembles,
            sampling=sampling,
            local_batch_size=feed.batch_size // mesh.shape["data"],
            evaluation=evaluation,
            evaluation_loss=evaluation_loss,
            loss_weights=loss_weights,
        )
    if is_resident(data):
        arguments.check_labels(loss, ensembles, data, "data")
    if evaluation is not None:
        watches = evaluation_loss or loss
        arguments.check_labels(watches, ensembles, evaluation, "evaluation")
    counts = tuple(e.num_members for e in ensembles)
    stacks = Stacks(counts, Blocks(block, unroll), mesh)
    hyper = arguments.per_member(hyper, sum(counts))
    if hyper is not None:
        arguments.check_optimizer(make_tx, hyper, ensembles)
    weighs_loss = loss_weights is not None
    weights = loss_weights if weighs_loss else weights
    weights_digest = None if weights is None else identity.digest(weights)
    member_digests = None
    if weights is not None and np.ndim(weights) == 2:
        member_digests = [identity.digest(row) for row in np.asarray(weights)]
    weights, weights_kind = arguments.placed_weights(
        weights, feed.num_examples, stacks, for_loss=weighs_loss
    )
    hypers = stacks.placed(stacks.split(hyper))
    ids = stacks.placed([e.member_ids for e in ensembles])
    model_states = stacks.placed([e.state for e in ensembles])
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
        averages=averages,
        healths=healths,
        max_steps=schedule.steps_per_call,
        weights_kind=weights_kind,
        weighs_loss=weighs_loss,
        data_kind=feed.kind,
        blocks=stacks.blocks,
        mesh=mesh,
        shard_state=shard_state,
    )
    watched = None
    if evaluation is not None:
        watched = Evaluation.of(
            evaluation,
            job,
            loss=evaluation_loss or loss,
            batch_size=evaluation_batch_size,
            stopping=early_stopping,
            mesh=mesh,
        )
    best = {}
    if early_stopping is not None:  # which weights are the best depends on these
        best = {
            "evaluation": identity.digest(evaluation),
            "evaluation_loss": identity.describe(evaluation_loss),
        }
    if averages:
        best["averages"] = identity.describe(averages)
    run = Run(
        schedule=schedule,
        init=init.job,
        job=job,
        evaluation=watched,
        stacks=stacks,
        places=tuple(stacks.split(np.arange(sum(counts)))),
        model_states=model_states,
        hypers=hypers,
        ids=ids,
        weights=weights,
        weights_kind=weights_kind,
        feed=feed,
        seed=seed,
        identity={
            "seed": seed,
            "num_stacks": len(ensembles),
            "sampling": sampling,
            "batch_size": feed.batch_size,
            "num_examples": feed.num_examples,
            "loss": identity.describe(loss),
            "make_tx": identity.describe(make_tx),
            "augment": identity.describe(augment),
            "early_stopping": identity.describe(early_stopping),
            "health": identity.describe(health),
            "data": identity.digest(feed.arrays) if is_resident(data) else None,
            "weights": weights_digest if weights_kind == "shared" else None,
            **best,
        },
        facts={
            "ids": np.concatenate([fetch(e.member_ids) for e in ensembles]).tolist(),
            "stack": np.repeat(np.arange(len(counts)), counts).tolist(),
            **_named(hyper),
            **({} if member_digests is None else {"weights": member_digests}),
            **(_fingerprints(ensembles) if saves else {}),
        },
        keeps_best=early_stopping is not None,
    )
    # Tracing now shows what is wrong with a loss before anything is written; the first
    # call finds the trace.
    shapes = run.abstract_states()
    inputs = (hypers, ids, weights, feed.abstract(), 0)
    jax.eval_shape(run.program.jitted, shapes, *inputs, schedule.steps_per_call, seed)
    if watched is not None:
        jax.eval_shape(lambda *args: watched(*args), shapes, ids, 0, seed)
    if saves:
        run.identity["operations"] = operations_of(
            job.members,
            model_states,
            hypers,
            _batch_shapes(feed),
            num_members=counts,
            evaluation=None
            if early_stopping is None
            else _first_rows(watched.arrays, evaluation_batch_size),
            evaluation_loss=evaluation_loss or loss,
            mesh=mesh,
        )
    return run


def _first_rows(arrays, batch_size):
    """Shapes of a batch of what is evaluated, leaves `[example, ...]`."""

    def shape(leaf):
        rows = min(batch_size, leaf.shape[0])
        return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, arrays)


def _batch_shapes(feed):
    """Of a global batch, leaves `[batch, ...]`."""

    def shape(leaf):
        rest = leaf.shape[1 if feed.kind == "shared" else 2 :]
        return jax.ShapeDtypeStruct((feed.batch_size, *rest), leaf.dtype)

    return jax.tree.map(shape, feed.abstract())


def _named(hyper):
    """Hyperparameters by name, `[member]`, as JSON holds them."""
    return {
        "hyper" + jax.tree_util.keystr(path): np.asarray(value).tolist()
        for path, value in jax.tree.leaves_with_path(hyper)
    }


def _fingerprints(ensembles):
    prints = [identity.fingerprint(e.params) for e in ensembles]
    return {"initial_weights": sum(prints, [])}
