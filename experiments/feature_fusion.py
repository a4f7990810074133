"""Do learned weights of members' features beat votes, stacking and the best member?

For each task three members, one for each view of a row, train on some rows; fusions of
their features, meta-models and weights are fitted on other rows; all are tested on
third ones. Members of all seeds are one stack, fusions one stack for each kind. Beside
it, `feature_fusion_tasks.py` makes the rows, `feature_fusion_models.py` the modules,
`feature_fusion_scores.py` measures, `feature_fusion_claims.py` judges,
`feature_fusion_figures.py` draws, and `feature_fusion_checks.py` finds mistakes first.
"""

import functools

import numpy as np
import optax

import ensjax
from ensjax import combine
from ensjax.experiment.fields import load_beside
from ensjax.experiment.processes import everywhere
from ensjax.experiment.stages import run_stages
from ensjax.mapping import map_members
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance

tasks = load_beside(__file__, "feature_fusion_tasks")
models = load_beside(__file__, "feature_fusion_models")
measures = load_beside(__file__, "feature_fusion_scores")
verdicts = load_beside(__file__, "feature_fusion_claims")
figures = load_beside(__file__, "feature_fusion_figures")
checks = load_beside(__file__, "feature_fusion_checks")

SEED_STRIDE = 2**16  # between ids of members of different seeds

validate = checks.validate


def run(config, run_dir):
    """Trains members and fusions, scores and reports; the same command resumes."""
    loaded = everywhere(lambda: {n: tasks.load_task(config, n) for n in config.tasks})
    stages = {}
    for name, task in loaded.items():
        stages[f"members_{name}"] = functools.partial(
            _train_members, config, run_dir, name, task
        )
        stages[f"fusions_{name}"] = functools.partial(
            _train_fusions, config, run_dir, name, task
        )
    first = config.tasks[0]
    for schedule in config.schedules:
        stages[schedule] = functools.partial(
            _train_schedule, config, run_dir, schedule, loaded[first]
        )
    outputs = run_stages(run_dir, config, stages)
    results = measures.measure(config, loaded, outputs)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results),
        scalars=verdicts.summarise(config, results),
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def member_ids(config, task, per_job: int) -> list[int]:
    """Ids of `per_job` members of every job, job by job."""
    return [
        seed * SEED_STRIDE + condition * per_job + number
        for condition in range(len(task.conditions))
        for seed in range(config.num_seeds)
        for number in range(per_job)
    ]


def _train_members(config, run_dir, name, task, done):
    """Features `[view, job, row, feature]` and logits of each view's member.

    Beside them `drawn [view, job, row]`, the rows that the member may have drawn.
    """
    del done
    # Views are padded to one width, so that all members are one stack.
    width = max(view.shape[-1] for view in task.views)
    x = np.stack(
        [np.pad(v, ((0, 0), (0, 0), (0, width - v.shape[-1]))) for v in task.views],
        axis=1,
    )  # [job, view, row, width]
    jobs, views, rows, _ = x.shape
    labels = np.repeat(task.labels[:, None], views, axis=1)
    x, labels = x.reshape(jobs * views, rows, -1), labels.reshape(jobs * views, rows)
    own = slice(0, config.num_member)
    make_model = functools.partial(
        models.ViewNet, width, config.hidden, config.features, task.num_classes
    )
    ensemble = ensjax.Ensemble.init(
        functools.partial(_make, make_model),
        member_ids=member_ids(config, task, views),
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh.to_dict()),
    )
    weights = _own_rows(jobs * views, config.num_member)
    ensemble, log = _fit(
        config,
        run_dir,
        f"members_{name}",
        ensemble,
        (x[:, own].reshape(-1, width), labels[:, own].reshape(-1)),
        loss=models.member_loss(config.l2),
        make_tx=optax.adam,
        hyper=config.member_learning_rate,
        steps=config.member_steps,
        weights=weights,
    )
    features, logits = _outputs(ensemble, "features_and_logits", x)
    drawn = np.zeros((jobs * views, rows), bool)
    drawn[:, own] = (weights.reshape(jobs * views, -1, config.num_member) > 0).any(1)

    def by_view(values):
        return np.swapaxes(values.reshape(jobs, views, rows, -1), 0, 1)

    return {
        "features": by_view(features),
        "logits": by_view(logits),
        "drawn": by_view(drawn)[..., 0],
        "frozen_steps": log.frozen_steps,
    }


def _train_fusions(config, run_dir, name, task, done):
    """Logits `[kind, job, row, class]` and weights `[kind, job, row, view]`."""
    features = done[f"members_{name}"]["features"]
    views, jobs = features.shape[:2]
    own = slice(config.num_member, config.num_member + config.num_fusion)
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    kinds = config.fusions
    ensembles = []
    for number, kind in enumerate(kinds):
        make_model = functools.partial(
            _make_fusion, config, kind, views, task.num_classes
        )
        ids = [i + number for i in member_ids(config, task, len(kinds))[:: len(kinds)]]
        ensembles.append(
            ensjax.Ensemble.init(
                make_model, member_ids=ids, seed=config.seed, mesh=mesh
            )
        )
    x = fusion_inputs(features, done[f"members_{name}"]["drawn"], own)
    group, log = _fit(
        config,
        run_dir,
        f"fusions_{name}",
        ensjax.Group(tuple(ensembles)),
        (x, task.labels[:, own].reshape(-1)),
        loss=models.fusion_loss(config.l2, config.balance),
        make_tx=optax.adam,
        hyper=config.learning_rate,
        steps=config.fusion_steps,
        weights=np.tile(_own_rows(jobs, config.num_fusion), (len(kinds), 1)),
    )
    found = [
        _outputs(e, "logits_and_weights", tuple(features)) for e in group.ensembles
    ]
    logits, weights = (np.stack(values) for values in zip(*found, strict=True))
    return {"logits": logits, "weights": weights, "frozen_steps": log.frozen_steps}


def fusion_inputs(features, drawn, own):
    """Features of each view, `[job * row, feature]`, of the fusions' rows.

    Raises:
        LeakageError: if a member of any view and job may have drawn one of them.
    """
    views, jobs, rows, width = features.shape
    about = Provenance(
        "rows of a job",
        np.arange(rows)[own],
        seen=drawn[..., own].reshape(-1, len(range(rows)[own])),
    )
    said = Predictions.from_features(
        features[:, :, own].reshape(views * jobs, -1, width), provenance=about
    )
    (found, _) = combine.fusion_rows(said, what="the fusions").inputs
    return tuple(
        np.concatenate(found[view * jobs : (view + 1) * jobs]) for view in range(views)
    )


def _train_schedule(config, run_dir, schedule, task, done):
    """Logits, weights and members' logits of a net whose parts train together."""
    del done
    train = slice(0, config.num_member + config.num_fusion)
    jobs, rows = task.labels[:, train].shape
    is_fusion = np.arange(rows) >= config.num_member
    x = tuple(v[:, train].reshape(jobs * rows, -1) for v in task.views)
    make_model = functools.partial(
        models.FusedNet,
        config,
        tuple(v.shape[-1] for v in task.views),
        task.num_classes,
    )
    ensemble = ensjax.Ensemble.init(
        functools.partial(_make, make_model),
        member_ids=member_ids(config, task, 1),
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh.to_dict()),
    )
    ensemble, log = _fit(
        config,
        run_dir,
        schedule,
        ensemble,
        (
            x,
            task.labels[:, train].reshape(-1),
            np.tile(is_fusion, jobs).astype(np.float32),
        ),
        loss=models.schedule_loss(schedule, config.l2, config.beta, config.balance),
        make_tx=models.make_optimizer(schedule),
        hyper=config.learning_rate,
        steps=config.member_steps + config.fusion_steps,
        weights=_own_rows(jobs, rows),
    )
    logits, weights, members = _outputs(ensemble, "all_outputs", task.views)
    return {
        "logits": logits,
        "weights": weights,
        "member_logits": np.swapaxes(members, 0, 1),  # [view, job, row, class]
        "frozen_steps": log.frozen_steps,
    }


def _fit(config, run_dir, name, ensemble, examples, **options):
    return ensjax.fit(
        ensemble,
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        sampling="weighted",
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        block=checks.members_at_once(config),
        checkpoint_dir=run_dir.checkpoints / name,
        save_every_steps=config.save_every_steps,
        logger=run_dir.logger(name),
        **options,
    )


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


def _make_fusion(config, kind, num_views, num_classes, rngs):
    return models.build_fusion(config, kind, num_views, num_classes, rngs)
