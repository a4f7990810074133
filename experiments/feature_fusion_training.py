"""How `feature_fusion.py` trains: members, fusions and schedules, each as one stack.

A job is a condition and a seed. Fusions are trained with several settings each; rows
that neither they nor the members are trained on choose the setting and the step.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax.experiment.fields import load_beside
from ensjax.mapping import map_members
from ensjax.provenance import Provenance, check_fitting_rows
from ensjax.train import EarlyStopping, TrainingJob

models = load_beside(__file__, "feature_fusion_models")

SEED_STRIDE = 2**16  # between ids of members of different seeds


def parts_of(config) -> dict[str, slice]:
    """Rows of a job by what they are for."""
    ends = np.cumsum(
        [config.num_member, config.num_fusion - config.num_choice, config.num_choice]
    )
    starts = [0, *ends]
    names = ("member", "fusion", "choice", "test")
    return {
        name: slice(int(start), None if end is None else int(end))
        for name, start, end in zip(names, starts, [*ends, None], strict=True)
    }


def member_ids(config, task, per_job: int) -> list[int]:
    """Ids of `per_job` members of every job, job by job."""
    return [
        seed * SEED_STRIDE + condition * per_job + number
        for condition in range(len(task.conditions))
        for seed in range(config.num_seeds)
        for number in range(per_job)
    ]


# Members


def members_job(config, task) -> TrainingJob:
    """One member for each view and job, as one stack: views are padded to one width."""
    x, labels = _padded(task)
    jobs, views = x.shape[:2]
    own = parts_of(config)["member"]
    width = x.shape[-1]
    return TrainingJob(
        make_model=functools.partial(
            _make,
            functools.partial(
                models.ViewNet, width, config.hidden, config.features, task.num_classes
            ),
        ),
        member_ids=tuple(member_ids(config, task, views)),
        init_seed=config.seed,
        data=(x[:, :, own].reshape(-1, width), labels[:, :, own].reshape(-1)),
        hyper=np.full(jobs * views, config.member_learning_rate, np.float32),
        mesh_sizes=config.mesh.to_dict(),
        options=_options(config)
        | dict(
            loss=models.member_loss(config.l2),
            make_tx=optax.adam,
            steps=config.member_steps,
            weights=_own_rows(jobs * views, config.num_member),
        ),
    )


def train_members(config, run_dir, name, task, done):
    """Features `[view, job, row, feature]` and logits of each view's member.

    Beside them `drawn [view, job, row]`, the rows that the member may have drawn.
    """
    del done
    x, _ = _padded(task)
    jobs, views, rows, _ = x.shape
    job = members_job(config, task)
    ensemble, log = job.fit(**_files(config, run_dir, name))
    own = parts_of(config)["member"]
    weights = job.options["weights"].reshape(jobs * views, -1, config.num_member)
    drawn = np.zeros((jobs * views, rows), bool)
    drawn[:, own] = (weights > 0).any(axis=1)
    found = _outputs(ensemble, "features_and_logits", x.reshape(jobs * views, rows, -1))
    features, logits = (
        np.swapaxes(values.reshape(jobs, views, rows, -1), 0, 1) for values in found
    )
    return {
        "features": features,
        "logits": logits,
        "drawn": np.swapaxes(drawn.reshape(jobs, views, rows), 0, 1),
        "frozen_steps": log.frozen_steps,
    }


def _padded(task):
    """Views `[job, view, row, width]` and labels `[job, view, row]`."""
    width = max(view.shape[-1] for view in task.views)
    x = np.stack(
        [np.pad(v, ((0, 0), (0, 0), (0, width - v.shape[-1]))) for v in task.views],
        axis=1,
    )
    return x, np.repeat(task.labels[:, None], len(task.views), axis=1)


# Fusions and schedules


def train_fusions(config, run_dir, name, task, members, done):
    """Logits `[kind, job, row, class]` and weights `[kind, job, row, view]`.

    Args:
        members: the stage with the members' features and logits.
    """
    stage, parts = done[members], parts_of(config)
    for part in ("fusion", "choice"):
        refuse_leaks(stage["drawn"], parts[part])
    # Features of each view, and logits of all: [job, row, view, class].
    x = (tuple(stage["features"]), np.moveaxis(stage["logits"], 0, 2))
    stacks = [
        (kind, form) for kind in config.fusions for form in models.forms(config, kind)
    ]
    makers = [
        functools.partial(models.RowFusion, config, *stack, task.num_classes)
        for stack in stacks
    ]
    fitted, log, loss = _fit_and_choose(
        config,
        run_dir,
        name,
        task,
        makers,
        x=x,
        rows=parts_of(config)["fusion"],
        loss=models.fusion_loss(config.balance),
        make_tx=models.make_optimizer("joint"),
        steps=config.fusion_steps,
    )
    outputs = [
        _outputs(e, "logits_and_weights", _repeat(config, x)) for e in fitted.ensembles
    ]
    logits, weights = (np.stack(values) for values in zip(*outputs, strict=True))
    kinds = [[kind for kind, _ in stacks].index(kind) for kind in config.fusions]
    ends = [*kinds[1:], len(stacks)]
    chosen = [
        (_choose(logits[a:b], loss[a:b]), _choose(weights[a:b], loss[a:b]))
        for a, b in zip(kinds, ends)
    ]
    logits, weights = (np.stack(values) for values in zip(*chosen, strict=True))
    return {"logits": logits, "weights": weights, "frozen_steps": log.frozen_steps}


def refuse_leaks(drawn, rows):
    """Raises `LeakageError` if a member may have drawn a row of the fusions.

    Args:
        drawn: `[view, job, row]`.
        rows: a slice of the rows of every job.
    """
    numbers = np.arange(drawn.shape[-1])[rows]
    seen = drawn[..., rows].reshape(-1, len(numbers))
    about = Provenance("rows of a job", numbers, seen=seen)
    check_fitting_rows("the fusions", about)


def train_schedule(config, run_dir, name, task, done):
    """Logits, weights and members' logits of a net whose parts train together."""
    del done
    parts = parts_of(config)
    train = slice(0, parts["fusion"].stop)
    widths = tuple(v.shape[-1] for v in task.views)
    makers = [
        functools.partial(models.FusedNet, config, form, widths, task.num_classes)
        for form in models.forms(config, "gated")
    ]
    fitted, log, loss = _fit_and_choose(
        config,
        run_dir,
        name,
        task,
        makers,
        x=task.views,
        rows=train,
        loss=models.ScheduleLoss(name, config.beta, config.balance),
        make_tx=models.make_optimizer(name),
        steps=config.member_steps + config.fusion_steps,
    )
    outputs = [
        _outputs(e, "all_outputs", _repeat(config, task.views))
        for e in fitted.ensembles
    ]
    logits, weights, members = (
        _choose(np.stack(values), loss) for values in zip(*outputs, strict=True)
    )
    return {
        "logits": logits,
        "weights": weights,
        "member_logits": np.swapaxes(members, 0, 1),  # [view, job, row, class]
        "frozen_steps": log.frozen_steps,
    }


def _fit_and_choose(
    config, run_dir, name, task, makers, *, x, rows, loss, make_tx, steps
):
    """The trained group, its log, and the choice rows' NLL `[stack, job, setting]`.

    Every maker is one stack of a member for each job and setting, at its best step.

    Args:
        x: inputs of all jobs, leaves `[job, row, ...]`.
        rows: those that are trained on.
    """
    jobs, settings = len(task.labels), list(config.search_l2)
    ids = member_ids(config, task, len(makers) * len(settings))
    ids = np.reshape(ids, (jobs, len(makers), len(settings)))
    columns = np.repeat(np.arange(jobs), len(settings))
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    group = ensjax.Group(
        tuple(
            _with_jobs(
                ensjax.Ensemble.init(
                    functools.partial(_make, make),
                    member_ids=ids[:, number].reshape(-1),
                    seed=config.seed,
                    mesh=mesh,
                ),
                columns,
            )
            for number, make in enumerate(makers)
        )
    )
    examples = (x, task.labels)
    if isinstance(loss, models.ScheduleLoss):
        is_fusion = np.arange(task.labels.shape[1]) >= config.num_member
        is_fusion = np.broadcast_to(is_fusion, task.labels.shape)
        examples = (*examples, is_fusion.astype(np.float32))
    trained = jax.tree.map(
        lambda leaf: leaf[:, rows].reshape(-1, *leaf.shape[2:]), examples
    )
    choice = parts_of(config)["choice"]
    held_out = jax.tree.map(
        lambda leaf: np.ascontiguousarray(np.swapaxes(leaf[:, choice], 0, 1)),
        (x, task.labels),
    )
    number = len(trained[1]) // jobs
    own = np.repeat(_own_rows(jobs, number), len(settings), axis=0)
    members = jobs * len(makers)
    group, log = ensjax.fit(
        group,
        trained,
        hyper={
            "learning_rate": np.full(
                members * len(settings), config.learning_rate, np.float32
            ),
            "l2": np.tile(np.float32(settings), members),
        },
        loss=loss,
        make_tx=make_tx,
        steps=steps,
        weights=np.tile(own, (len(makers), 1)),
        evaluation=held_out,
        evaluation_loss=models.choice_loss,
        evaluate_every_steps=config.evaluate_every_steps,
        evaluation_batch_size=config.num_choice,
        early_stopping=EarlyStopping(patience=None),
        **_options(config),
        **_files(config, run_dir, name),
    )
    best = np.nanmin(log.evaluations["loss"], axis=0)
    return group, log, best.reshape(len(makers), jobs, len(settings))


def _choose(values, loss):
    """Of stacks and settings those of the least loss, `[job, ...]`.

    Args:
        values: `[stack, job * setting, ...]`.
        loss: `[stack, job, setting]`.
    """
    stacks, jobs, settings = loss.shape
    values = values.reshape(stacks, jobs, settings, *values.shape[2:])
    flat = np.swapaxes(loss, 0, 1).reshape(jobs, -1)
    # A setting that stopped being finite is not chosen.
    best = np.where(np.isnan(flat), np.inf, flat).argmin(axis=1)
    return values[best // settings, np.arange(jobs), best % settings]


def _options(config):
    """What all training has in common and decides numbers."""
    return dict(
        batch_size=config.batch_size,
        seed=config.seed,
        sampling="weighted",
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        block=models.members_at_once(config),
    )


def _files(config, run_dir, name):
    return dict(
        checkpoint_dir=run_dir.checkpoints / name,
        save_every_steps=config.save_every_steps,
        logger=run_dir.logger(name),
    )


def _with_jobs(ensemble, jobs):
    """The ensemble whose members know their job, `[member]`."""

    def replace(path, leaf):
        is_job = getattr(path[0], "key", None) == "job"
        return jnp.asarray(jobs, leaf.dtype) if is_job else leaf

    rest = jax.tree.map_with_path(replace, ensemble.state["rest"])
    state = {**ensemble.state, "rest": rest}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def _repeat(config, x):
    return jax.tree.map(lambda leaf: np.repeat(leaf, len(config.search_l2), axis=0), x)


def _own_rows(jobs, rows):
    """`[job, job * row]`: each may draw its own rows."""
    return np.repeat(np.eye(jobs, dtype=np.float32), rows, axis=1)


def _outputs(ensemble, method, x):
    """What a method of every member returns on inputs of its own, on the host."""
    forward = map_members(
        models.Outputs(ensemble.graph, method),
        kinds=("member", "member"),
        mesh=ensemble.mesh,
    )
    return ensjax.mesh.fetch(forward(ensemble.state, x))


def _make(build, rngs):
    return build(rngs=rngs)
