"""`fit`: trains every member of an ensemble as one compiled program of many steps."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from ensjax.ensemble import Ensemble
from ensjax.group import Group
from ensjax.members import trim_members
from ensjax.train import arguments
from ensjax.train.evaluation import EarlyStopping
from ensjax.train.health import Health
from ensjax.train.history import TrainingLog
from ensjax.train.loop import run_schedule
from ensjax.train.objectives import Joint
from ensjax.train.places import check_places
from ensjax.train.preparation import prepare_run


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
    loss_weights: Any = None,
    augment: Callable[[jax.Array, Any], Any] | None = None,
    evaluation: Any = None,
    evaluation_loss: Callable[..., Any] | None = None,
    evaluate_every_steps: int | None = None,
    evaluation_batch_size: int = 512,
    early_stopping: EarlyStopping | None = None,
    averages: Mapping[str, Any] | None = None,
    health: str | Health = "freeze",
    steps_per_call: int | None = None,
    log_every_steps: int | None = None,
    block: int | str | None = "auto",
    unroll: bool = False,
    mesh: Mesh | None = None,
    shard_state: bool = False,
    checkpoint_dir: Any = None,
    save_every_steps: int | None = None,
    members_from: str | os.PathLike | Sequence[Any] = (),
    logger: Any = None,
    progress: bool = True,
) -> tuple[Ensemble | Group, TrainingLog]:
    """Trains all members at once; compiled through `ensjax.mapping`.

    A member that becomes non-finite is frozen (or what `health` says) and reported;
    nothing of the others changes. The same call with the same `checkpoint_dir` resumes.

    There the members may be others than those that are stored: those that are stored
    (by id) go on, new ones first catch up as an ensemble of their own, and the others
    are left where they are. Every member is what it would have been.

    Args:
        ensemble: what to train; it is left as it is.
        data: arrays with a leading example axis (a tuple, dict or one array), which are
            kept whole on every device and read by index, so that members never cost
            copies; or an iterable of NumPy batches (a grain loader, a PyTorch loader, a
            list of tuples), which all members share. In a job of several processes an
            iterable yields the examples that the process's own devices hold.
        loss: `loss(model, batch, key) -> scalar` or `(scalar, metrics)` of one member,
            a mean over the batch; or a `Joint` objective of all members. A loss with an
            attribute `takes_hyper = True` (`train.SoftLabels`) is also given `hyper=`,
            the member's own, so that members may differ in it; evaluation then needs
            an `evaluation_loss` without it.
        make_tx: `make_tx(hyper)` -> optax transformation of one member, which is built
            inside the program; `make_tx()` if `hyper` is None.
        hyper: a number, an array or tuple `[member]`, or a dict of these.
        steps: optimizer steps in all.
        batch_size: examples of the global batch of each member; streams bring theirs.
        seed: of data order, augmentation and what the loss draws.
        sampling: "independent" (each member its own order), "shared" (one order),
            "bootstrap" (its own resample, in its own order) or "weighted" (draws with
            replacement in proportion to `weights`).
        weights: `[example]` or `[member, example]`, for "weighted".
        loss_weights: `[example]` or `[member, example]`, not negative: how much each
            row counts in a member's loss, such as `data.bootstrap_weights`. The loss is
            then called as `loss(model, batch, key, weight)` with the weights `[batch]`
            of the batch's rows, and divides by their sum (`losses.weighted_mean`); what
            is in `ensjax.losses` does. Evaluation is not weighted.
        augment: `augment(key, example) -> example` of one example; its key depends on
            member, step and the example's place in the global batch.
        evaluation: arrays like `data`, on which the members are evaluated.
        evaluation_loss: `loss` by default; needed for a joint objective.
        evaluate_every_steps: default: with every report.
        evaluation_batch_size: examples at a time.
        early_stopping: keeps the best weights of each member, and stops it.
        averages: averages of the weights along training by name, such as `{"ema":
            weight_space.EMA(0.99)}`; any object with `init(params)` and `update(state,
            params)` of one member. Their states come back as `log.averages`, and
            `weight_space.averaged` makes an ensemble of one. After a step that does not
            count (a member that is not finite) they are what they were. A member that
            is seeded again begins a new one, from `restart(state, init(params))` where
            there is such a method: it keeps the number of the step.
        health: what becomes of a member that is not finite: "freeze", "rollback",
            "reseed", "off", or an `ensjax.Health` with its settings.
        steps_per_call: steps in one call of the compiled program. All intervals are
            multiples of it. 1 runs without a compiled loop.
        log_every_steps: between reports; default: about a twentieth of `steps`.
        block: local members that run at once; see `map_members`.
        unroll: local members one after the other, without a loop.
        mesh: default: the ensemble's.
        shard_state: keep the state of each member split over the mesh axis "data", leaf
            by leaf. A step gathers the weights for the loss, and each shard updates its
            own part. For an optimizer that is not elementwise (clipping by a norm,
            factored moments) a step also gathers gradients and the optimizer's state
            of the members that run at once, so that it is exact.
        checkpoint_dir: where to save; nothing is saved without it.
        save_every_steps: default: with every report. The end is always saved.
        members_from: checkpoint directories (or one) of other runs with the same
            settings, such as parts of an ensemble that were trained elsewhere. Members
            that `checkpoint_dir` lacks are taken over from them. What `loss`,
            `make_tx`, `augment` and the models compute is compared, not only their
            names; where the versions of JAX, flax or optax differ it cannot be, which
            is said.
        logger: has `write(step, metrics)`; only process 0 calls it.
        progress: whether to print.

    Returns:
        The trained ensemble (each member's best weights with `early_stopping`), and the
        log.

    Raises:
        TypeError, ValueError: for what does not fit together, before any work is done
            and anything is written; or if `checkpoint_dir` holds another run.

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
    members_from = check_places(checkpoint_dir, members_from, logger)
    if checkpoint_dir is None:
        for name, value in (
            ("save_every_steps", save_every_steps),
            ("members_from", members_from or None),
        ):
            if value is not None:
                raise ValueError(f"{name} needs a checkpoint_dir to save to.")
    run = prepare_run(
        ensemble,
        data,
        loss=loss,
        make_tx=make_tx,
        hyper=hyper,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        sampling=sampling,
        weights=weights,
        loss_weights=loss_weights,
        augment=augment,
        evaluation=evaluation,
        evaluation_loss=evaluation_loss,
        evaluate_every_steps=evaluate_every_steps,
        evaluation_batch_size=evaluation_batch_size,
        early_stopping=early_stopping,
        averages=averages,
        health=health,
        steps_per_call=steps_per_call,
        log_every_steps=log_every_steps,
        block=block,
        unroll=unroll,
        mesh=mesh,
        shard_state=shard_state,
        save_every_steps=save_every_steps,
        saves=checkpoint_dir is not None,
    )
    states, log = run_schedule(
        run,
        checkpoint_dir=checkpoint_dir,
        members_from=members_from,
        logger=logger,
        progress=progress,
    )
    ensembles = arguments.stacks_of(ensemble)
    trained = [
        _with_state(e, state, run.stacks.mesh)
        for e, state in zip(ensembles, states, strict=True)
    ]
    for name in averages or ():
        own = tuple(
            _trimmed(state["averages"][name], e.num_members, run.stacks.mesh)
            for e, state in zip(ensembles, states, strict=True)
        )
        log.averages[name] = own if isinstance(ensemble, Group) else own[0]
    return (Group(tuple(trained)) if isinstance(ensemble, Group) else trained[0]), log


def _with_state(ensemble, state, mesh):
    """The ensemble with what was trained: the best weights where they were kept."""
    model_state = {name: state[name] for name in ("params", "rest")}
    if "best" in state:
        model_state = _choose_best(state["best"], model_state)
    model_state = _trimmed(model_state, ensemble.num_members, mesh)
    result = dataclasses.replace(ensemble, state=model_state, mesh=mesh)
    return result.on_mesh(mesh)


def _trimmed(stacked, count, mesh):
    """Without the rows that only fill blocks."""
    if jax.tree.leaves(stacked)[0].shape[0] == count:
        return stacked
    divides = count % mesh.shape["member"] == 0
    sharding = NamedSharding(mesh, jax.P("member") if divides else jax.P())
    trim = jax.jit(trim_members, static_argnums=1, out_shardings=sharding)
    return trim(stacked, count)


@jax.jit
def _choose_best(best, last):
    """The best weights of every member, or its last if it was never evaluated."""

    def choose(a, b):
        has_best = best["step"] >= 0
        return jnp.where(has_best.reshape(-1, *(1,) * (b.ndim - 1)), a, b)

    return {name: jax.tree.map(choose, best[name], last[name]) for name in last}
