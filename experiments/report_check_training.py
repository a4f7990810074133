"""The members and readers of `report_check.py`: stacks over seeds, domains and members.

A member is an MLP with six outputs: two for "the report is another patient's" and four
for the kind of error. Untuned members are trained on the first two in the general
domain; tuning goes on from their weights with the other four.
"""

import dataclasses
import functools

import numpy as np
import optax

import ensjax
from ensjax import losses, nn
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.train import TrainingJob

SEED_STRIDE, DOMAIN_STRIDE = 2**16, 2**12
NUM_MATCH, NUM_KINDS = 2, 4


def match_loss(model, batch, key):
    """Cross-entropy of the first two outputs: is it another patient's report?"""
    return losses.cross_entropy(lambda x: model(x)[:, :NUM_MATCH], batch, key)


def kind_loss(model, batch, key):
    """Cross-entropy of the last four outputs: what kind of error is there?"""
    return losses.cross_entropy(lambda x: model(x)[:, NUM_MATCH:], batch, key)


def untuned_job(config, rows) -> TrainingJob:
    """Members and the reader of all seeds, in the general domain."""
    x, y = rows.general
    num_seeds, per_seed = config.num_seeds, config.num_members + 1
    own = np.repeat(np.arange(num_seeds), per_seed)
    weights = own_rows(own, num_seeds, x.shape[1])
    ids = [
        SEED_STRIDE * seed + member
        for seed in range(num_seeds)
        for member in range(per_seed)
    ]
    job = _job(config, (x, y), weights, ids, config.untuned_steps, match_loss)
    return dataclasses.replace(job, stage="untuned")


def own_rows(seed_of_member, num_seeds: int, num_rows: int) -> np.ndarray:
    """Weights `[member, seed * row]`: 1 for the rows of each member's own seed."""
    seed_of_row = np.repeat(np.arange(num_seeds), num_rows)
    return (seed_of_row == np.asarray(seed_of_member)[:, None]).astype(np.float32)


def tuned_job(config, rows, *, is_reader: bool) -> TrainingJob:
    """Members (or the readers) of all seeds and domains, each on its bootstrap rows."""
    x, y = rows.reader_train if is_reader else rows.train
    num_seeds, num_domains, num_rows = y.shape
    members = reader_members(config) if is_reader else range(config.num_members)
    weights, ids = [], []
    for seed in range(num_seeds):
        for domain in range(num_domains):
            block = seed * num_domains + domain
            for member in members:
                # A resample of its own rows, and none of other seeds and domains.
                rng = np.random.default_rng([config.seed, seed, domain, member])
                row = np.zeros(num_seeds * num_domains * num_rows, np.float32)
                drawn = rng.integers(num_rows, size=num_rows)
                counts = np.bincount(drawn, minlength=num_rows)
                row[block * num_rows : (block + 1) * num_rows] = counts
                weights.append(row)
                first = DOMAIN_STRIDE * (1 + domain)
                ids.append(SEED_STRIDE * seed + first + member)
    steps = config.reader_steps if is_reader else config.tuned_steps
    job = _job(config, (x, y), np.stack(weights), ids, steps, kind_loss)
    return dataclasses.replace(
        job,
        stage="reader" if is_reader else "tuned",
        why_no_replay="The members of this run go on from untuned ones, which it has"
        " trained before; config and seed alone do not make them again.",
    )


def reader_members(config) -> tuple[int, ...]:
    """The reader is one more network, behind the members."""
    return (config.num_members,)


def untuned_places(config, *, is_reader: bool) -> np.ndarray:
    """Which untuned member each tuned one goes on from, in the order of the job."""
    members = reader_members(config) if is_reader else range(config.num_members)
    num_domains = len(config.reports.prevalence)
    return np.array(
        [
            seed * (config.num_members + 1) + member
            for seed in range(config.num_seeds)
            for _ in range(num_domains)
            for member in members
        ]
    )


def _job(config, data, weights, ids, steps, loss):
    x, y = data
    return TrainingJob(
        make_model=functools.partial(make_model, config),
        member_ids=tuple(ids),
        init_seed=config.seed,
        data=(x.reshape(-1, x.shape[-1]), y.reshape(-1)),
        hyper=np.full(len(ids), config.learning_rate, np.float32),
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=loss,
            make_tx=optax.adam,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            sampling="weighted",
            weights=weights,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            block=config.block,
        ),
    )


def make_model(config, rngs):
    """One member, by the config's numbers."""
    settings = config.reports
    return nn.MLP(
        in_features=settings.num_features + 3 * settings.num_findings,
        hidden=tuple(config.hidden),
        num_outputs=NUM_MATCH + NUM_KINDS,
        rngs=rngs,
    )


def train(config, rows, run_dir) -> dict[str, np.ndarray]:
    """Trains all and returns their logits on the held-out rows of their own worlds.

    "untuned" `[seed, domain, member, row, 2]`, "tuned" `[seed, domain, member, row, 4]`
    and "reader" `[seed, domain, row, 4]`.
    """

    def run(job, ensemble=None):
        options = dict(
            checkpoint_dir=run_dir.checkpoints / job.stage,
            logger=run_dir.logger(job.stage),
            save_every_steps=config.steps_per_call,
            members_from=[others / job.stage for others in run_dir.members_from],
        )
        if ensemble is None:
            return job.fit(**options)[0]
        ensemble = ensemble.with_ids(job.member_ids)
        options |= job.options
        return ensjax.fit(ensemble, job.data, hyper=job.hyper, **options)[0]

    untuned = run(untuned_job(config, rows))
    tuned, reader = (
        run(
            tuned_job(config, rows, is_reader=is_reader),
            untuned.select(untuned_places(config, is_reader=is_reader)),
        )
        for is_reader in (False, True)
    )
    held_out = rows.held_out[0]
    per_seed = config.num_members + 1
    of_seeds = logits_of_seeds(untuned, held_out, per_seed=per_seed)
    of_reader = _logits_of_domains(reader, rows.reader_held_out)
    return {
        "untuned": of_seeds[:, :, : config.num_members, :, :NUM_MATCH],
        "tuned": _logits_of_domains(tuned, held_out)[..., NUM_MATCH:],
        "reader": of_reader[:, :, 0, :, NUM_MATCH:],
    }


def logits_of_seeds(ensemble, x, *, per_seed: int) -> np.ndarray:
    """Of members that know no domain: `[seed, domain, member, row, output]`.

    Args:
        ensemble: `per_seed` members of every seed, one behind the other.
        x: rows of each seed and domain, `[seed, domain, row, feature]`.
        per_seed: number of members.
    """
    seeds, domains, num_rows, num_features = x.shape
    rows = np.repeat(x.reshape(seeds, -1, num_features), per_seed, axis=0)
    logits = _logits(ensemble, rows)
    return np.swapaxes(logits.reshape(seeds, per_seed, domains, num_rows, -1), 1, 2)


def _logits_of_domains(ensemble, x):
    """The same of members that have a domain."""
    seeds, domains, num_rows, num_features = x.shape
    each = len(ensemble) // (seeds * domains)
    rows = np.repeat(x.reshape(-1, num_rows, num_features), each, axis=0)
    return _logits(ensemble, rows).reshape(seeds, domains, each, num_rows, -1)


def _logits(ensemble, rows):
    """Every member's logits on rows of its own, `[member, row, output]`."""
    forward = map_members(
        Forward(ensemble.graph),
        kinds=("member", "member_batch"),
        out="member_batch",
        mesh=ensemble.mesh,
    )
    return ensjax.mesh.fetch(forward(ensemble.state, rows))
