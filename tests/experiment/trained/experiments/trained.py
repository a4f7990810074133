"""Trains what `training_job` says, and reports the last losses."""

import jax
import numpy as np
import optax

import ensjax
from ensjax.train import TrainingJob
from ensjax.train.objectives import ensemble_nll

_rng = np.random.default_rng(0)
X = _rng.normal(size=(32, 6)).astype(np.float32)
Y = _rng.integers(0, 3, 32)


def make_model(rngs):
    return ensjax.nn.MLP(
        in_features=6, hidden=(8,), num_outputs=3, norm="batch", rngs=rngs
    )


def make_tx(rate):
    return optax.adam(rate, eps=1e-3)


def training_job(config):
    ids = tuple(config.members) or tuple(range(config.num_members))
    rates = np.array([1e-3 * (1 + id_) for id_ in ids], np.float32)
    joint = ensjax.Joint(ensemble_nll)
    return TrainingJob(
        make_model=make_model,
        member_ids=ids,
        init_seed=config.seed,
        data=(X, Y),
        hyper=rates,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=joint if config.joint else ensjax.losses.cross_entropy,
            make_tx=make_tx,
            steps=config.total_steps,
            batch_size=8,
            seed=config.seed,
            sampling="shared" if config.joint else "bootstrap",
            steps_per_call=5,
            log_every_steps=5,
            block=int(config.block) if config.block.isdecimal() else config.block,
        ),
    )


def run(config, run_dir):
    _, log = training_job(config).fit(
        checkpoint_dir=run_dir.checkpoints,
        members_from=run_dir.members_from,
        logger=run_dir.logger(),
        progress=jax.process_index() == 0,
    )
    losses = log.metrics["loss"][-1]
    run_dir.add_table("losses", ["member", "loss"], [*enumerate(losses)], "The last.")
    scalars = {f"loss_{i}": float(loss) for i, loss in enumerate(losses)}
    run_dir.finish(title="Trained", summary="It was.", scalars=scalars)
