"""Three kinds of recurrent networks and a meta-model over them, on unseen domains.

Members of all seeds, left-out domains and skips train as one stack for each
architecture, all in one program; each draws the clips of its own seed, domains and
skip. Beside it, `recurrent_stacking_clips.py` makes the clips,
`recurrent_stacking_scores.py` fits meta-models and measures,
`recurrent_stacking_claims.py` judges, `recurrent_stacking_figures.py` draws and
`recurrent_stacking_checks.py` finds mistakes before the run.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

import ensjax
from ensjax import losses, nn
from ensjax.experiment.fields import load_beside
from ensjax.experiment.processes import everywhere
from ensjax.experiment.stages import run_stages
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.train import GroupJob, TrainingJob

data = load_beside(__file__, "recurrent_stacking_clips")
measures = load_beside(__file__, "recurrent_stacking_scores")
verdicts = load_beside(__file__, "recurrent_stacking_claims")
figures = load_beside(__file__, "recurrent_stacking_figures")
checks = load_beside(__file__, "recurrent_stacking_checks")

SEED_STRIDE = 2**16  # between ids of members of different seeds

validate = checks.validate


class Job(NamedTuple):
    """What one member of each architecture is trained for."""

    seed: int
    left_out: int
    skip: int


def plan_jobs(config, num_domains: int, num_frames: int) -> dict[int, list[Job]]:
    """The jobs by number of frames.

    Every domain is left out at skip 1 and `config.frames` frames. The last one is also
    left out at every skip, with as many frames, and with as long a duration.
    """
    last = num_domains - 1
    frames = config.frames if config.data.name == "simulated" else num_frames
    kinds = {frames: [(domain, 1) for domain in range(num_domains)]}
    if len(config.skips) > 1:
        for skip in config.skips:
            for length in (frames, num_frames // skip):
                chosen = kinds.setdefault(length, [])
                if (last, skip) not in chosen:
                    chosen.append((last, skip))
    return {
        length: [Job(s, *kind) for s in range(config.num_seeds) for kind in chosen]
        for length, chosen in kinds.items()
    }


def run(config, run_dir):
    """Trains, predicts, stacks, scores and reports; the same command resumes."""
    clips = everywhere(lambda: data.load_clips(config))
    jobs = all_jobs(config, clips)
    stages = {
        f"frames_{frames}": functools.partial(
            _train_and_predict, config, run_dir, clips, frames, jobs[frames]
        )
        for frames in jobs
    }
    outputs = run_stages(run_dir, config, stages)
    outputs = {frames: outputs[f"frames_{frames}"] for frames in jobs}
    for found in outputs.values():
        measures.refuse_leaks(found)
    results = measures.measure(config, clips, jobs, outputs)
    scalars = verdicts.summarise(config, results)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, clips, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, clips, results),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def training_job(config):
    """The members of the longest clips, a stack of each architecture."""
    clips = everywhere(lambda: data.load_clips(config))
    jobs = all_jobs(config, clips)
    frames = max(jobs)
    examples, weights = training_data(config, clips, frames, jobs[frames])
    return stacks_job(
        config, clips.x.shape[-1], frames, jobs[frames], examples, weights
    )


def all_jobs(config, clips) -> dict[int, list[Job]]:
    """As `plan_jobs`, for the domains and frames of the clips."""
    return plan_jobs(config, int(clips.domain.max()) + 1, clips.x.shape[2])


def job_ids(config, jobs) -> list[int]:
    """The id of each job's first member; those of other architectures follow.

    Jobs are numbered within their seed, so that a seed is the same among more.
    """
    seen: dict[int, int] = {}
    ids = []
    for job in jobs:
        number = seen.get(job.seed, 0)
        seen[job.seed] = number + 1
        ids.append(job.seed * SEED_STRIDE + number * len(config.architectures))
    return ids


def stacks_job(config, num_features, frames, jobs, examples, weights) -> GroupJob:
    """One stack of each architecture, with a member for each job, as one `fit`."""
    options = dict(
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        steps=config.total_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        sampling="weighted",
        weights=weights,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        block=checks.members_at_once(config),
        save_every_steps=config.save_every_steps,
    )
    stacks = []
    for kind in range(len(config.architectures)):
        make_model = functools.partial(
            nn.Recurrent,
            in_features=num_features,
            hidden=config.hidden[kind],
            num_outputs=2,
            cell=config.cells[kind],
            bidirectional=config.bidirectional[kind],
            recurrent_init=config.recurrent_init[kind],
            pool=config.pool,
        )
        stacks.append(
            TrainingJob(
                make_model=functools.partial(_make, make_model),
                member_ids=tuple(i + kind for i in job_ids(config, jobs)),
                init_seed=config.seed,
                data=examples,
                hyper=np.full(len(jobs), config.learning_rate),
                mesh_sizes=config.mesh.to_dict(),
                options=options,
                stage=f"frames_{frames}",
            )
        )
    return GroupJob(tuple(stacks))


def _make(build, rngs):
    return build(rngs=rngs)


def training_data(config, clips, frames, jobs):
    """`((x, lengths), labels)` of all jobs, and `[job, example]` what each may draw."""
    sources = sorted({(job.seed % len(clips.x), job.skip) for job in jobs})
    rows = np.flatnonzero(clips.part == data.TRAIN)
    x = np.concatenate(
        [prepare(config, clips.inputs(*source, frames)[rows]) for source in sources]
    )
    labels = np.tile(clips.is_live[rows], len(sources))
    if clips.lengths is not None:
        x = (x, np.tile(clips.lengths[rows], len(sources)))
    weights = np.zeros((len(jobs), len(sources), len(rows)), np.float32)
    for number, job in enumerate(jobs):
        place = sources.index((job.seed % len(clips.x), job.skip))
        weights[number, place] = clips.domain[rows] != job.left_out
    return (x, labels), weights.reshape(len(jobs), -1)


def prepare(config, x):
    """Clips `[..., frame, feature]`, less their own mean frame if the config says."""
    return x - x.mean(axis=-2, keepdims=True) if config.subtract_mean else x


def own_inputs(config, clips, frames, jobs, part):
    """Each job's own clips `[job, row, frame, feature]`, and which rows they are.

    Rows are padded with copies of the first one to a common number; `is_row` says
    which count.
    """
    rows = [clips.rows(part, job.left_out) for job in jobs]
    most = max(map(len, rows))
    is_row = np.array([np.arange(most) < len(r) for r in rows])
    rows = np.array([np.pad(r, (0, most - len(r)), constant_values=r[0]) for r in rows])
    x = np.stack(
        [
            prepare(config, clips.inputs(job.seed, job.skip, frames)[r])
            for job, r in zip(jobs, rows, strict=True)
        ]
    )
    if clips.lengths is not None:
        x = (x, clips.lengths[rows])
    return x, rows, is_row


def _train_and_predict(config, run_dir, clips, frames, jobs, done):
    """Logits of every architecture and job on its development and test clips.

    Beside them `drawn [job, clip]`, the clips that a job's members may have drawn.
    """
    del done
    examples, weights = training_data(config, clips, frames, jobs)
    job = stacks_job(config, clips.x.shape[-1], frames, jobs, examples, weights)
    group, log = job.fit(
        checkpoint_dir=run_dir.checkpoints / job.stage,
        logger=run_dir.logger(job.stage),
    )
    rows = np.flatnonzero(clips.part == data.TRAIN)
    drawn = np.zeros((len(jobs), len(clips.part)), bool)
    drawn[:, rows] = (weights.reshape(len(jobs), -1, len(rows)) > 0).any(axis=1)
    found = {"frozen_steps": log.frozen_steps, "drawn": drawn}
    inputs, ends = [], [0]
    for part, number in (("dev", data.DEVELOPMENT), ("test", data.TEST)):
        x, found[f"{part}_rows"], found[f"{part}_is_row"] = own_inputs(
            config, clips, frames, jobs, number
        )
        inputs.append(x)
        ends.append(ends[-1] + found[f"{part}_rows"].shape[1])
    # One call, and so one program, for the rows of both parts.
    x = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *inputs)
    logits = np.stack([_predict_own(ensemble, x) for ensemble in group.ensembles])
    for part, start, end in zip(("dev", "test"), ends, ends[1:]):
        found[f"{part}_logits"] = logits[:, :, start:end]
    return found


def _predict_own(ensemble, x):
    """`[member, row, class]` of every member on inputs of its own."""
    forward = map_members(
        Forward(ensemble.graph), kinds=("member", "member"), mesh=ensemble.mesh
    )
    return ensjax.mesh.fetch(forward(ensemble.state, x))
