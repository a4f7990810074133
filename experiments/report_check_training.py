"""The members and readers of `report_check.py`: stacks over seeds, domains and members.

A member is an MLP with six outputs: two for "the report is another patient's" and four
for the kind of error. Untuned members are trained on the first two in the general
domain; tuning goes on from their weights with the other four.
"""

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
    weights = (np.repeat(np.arange(num_seeds), x.shape[1])[None] == own[:, None]) * 1.0
    ids = [
        SEED_STRIDE * seed + member
        for seed in range(num_seeds)
        for member in range(per_seed)
    ]
    return _job(config, (x, y), weights, ids, config.untuned_steps, match_loss)


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
                row = np.zeros(num_seeds * num_domains * num_rows)
                drawn = rng.integers(num_rows, size=num_rows)
                counts = np.bincount(drawn, minlength=num_rows)
                row[block * num_rows : (block + 1) * num_rows] = counts
                weights.append(row)
                first = DOMAIN_STRIDE * (1 + domain)
                ids.append(SEED_STRIDE * seed + first + member)
    steps = config.reader_steps if is_reader else config.tuned_steps
    return _job(config, (x, y), np.stack(weights), ids, steps, kind_loss)


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

    def run(job, name, ensemble=None):
        options = dict(
            checkpoint_dir=run_dir.checkpoints / name,
            logger=run_dir.logger(name),
            save_every_steps=config.steps_per_call,
        )
        if ensemble is None:
            return job.fit(**options)[0]
        ensemble = ensemble.with_ids(job.member_ids)
        options |= job.options
        return ensjax.fit(ensemble, job.data, hyper=job.hyper, **options)[0]

    untuned = run(untuned_job(config, rows), "untuned")
    tuned, reader = (
        run(
            tuned_job(config, rows, is_reader=is_reader),
            "reader" if is_reader else "tuned",
            untuned.select(untuned_places(config, is_reader=is_reader)),
        )
        for is_reader in (False, True)
    )
    return {
        "untuned": _own_logits(untuned, config, rows.held_out[0])[..., :NUM_MATCH],
        "tuned": _own_logits(tuned, config, rows.held_out[0])[..., NUM_MATCH:],
        "reader": _own_logits(reader, config, rows.reader_held_out)[
            :, :, 0, :, NUM_MATCH:
        ],
    }


def _own_logits(ensemble, config, x):
    """Logits of all members on the rows of their own seed, `[seed, domain, member...]`.

    `x` is `[seed, domain, row, feature]`. Untuned members are of no domain and say
    something about both; the reader among them is left out.
    """
    seeds, domains = x.shape[:2]
    is_untuned = len(ensemble) == seeds * (config.num_members + 1)
    if is_untuned:
        chosen = np.arange(len(ensemble)).reshape(seeds, -1)[:, : config.num_members]
        ensemble = ensemble.select(chosen.reshape(-1))
        rows = np.repeat(x.reshape(seeds, -1, x.shape[-1]), config.num_members, axis=0)
    else:
        per_world = len(ensemble) // (seeds * domains)
        rows = np.repeat(x.reshape(-1, *x.shape[2:]), per_world, axis=0)
    forward = map_members(
        Forward(ensemble.graph),
        kinds=("member", "member_batch"),
        out="member_batch",
        mesh=ensemble.mesh,
    )
    logits = ensjax.mesh.fetch(forward(ensemble.state, rows))
    if is_untuned:
        shape = (seeds, config.num_members, domains, x.shape[2], -1)
        return np.swapaxes(logits.reshape(shape), 1, 2)
    return logits.reshape(seeds, domains, per_world, x.shape[2], -1)
