"""Trains a small ensemble and keeps its weights.

The environment says how slowly, since the config is that of one run: SECONDS_PER_LINE
of metrics, and SECONDS_OF_SCORING.
"""

import os
import time

import jax
import numpy as np
import optax

import ensjax
from ensjax.mesh import fetch

_rng = np.random.default_rng(0)
X = _rng.normal(size=(32, 6)).astype(np.float32)
Y = _rng.integers(0, 3, 32)


class Slowly:
    """A logger that takes its time before it passes a line on."""

    def __init__(self, logger):
        self._logger = logger

    def write(self, step, metrics):
        _sleep("SECONDS_PER_LINE")
        self._logger.write(step, metrics)


def train(config, *, checkpoint_dir, logger):
    """The trained ensemble and the log."""

    def make_model(rngs):
        return ensjax.nn.MLP(
            in_features=6,
            hidden=(config.width,),
            num_outputs=3,
            dropout=0.1,
            rngs=rngs,
        )

    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    return ensjax.fit(
        ensjax.Ensemble.init(make_model, num_members=config.num_members, mesh=mesh),
        (X, Y),
        loss=ensjax.losses.cross_entropy,
        make_tx=lambda lr: optax.adam(lr, eps=1e-3),
        hyper=np.linspace(1e-3, 1e-2, config.num_members),
        steps=config.total_steps,
        batch_size=8,
        seed=config.seed,
        sampling="bootstrap",
        evaluation=(X, Y),
        evaluate_every_steps=2 * config.log_every_steps,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.log_every_steps,
        block=1,  # the same programs on any mesh
        checkpoint_dir=checkpoint_dir,
        save_every_steps=config.save_every_steps,
        logger=logger,
    )


def run(config, run_dir):
    """For `ensjax run`; the weights go to `weights.npz`."""
    logger = Slowly(run_dir.logger())
    ensemble, log = train(config, checkpoint_dir=run_dir.checkpoints, logger=logger)
    weights = fetch(jax.tree.leaves(ensemble.params))
    if run_dir.is_writable:
        print("scoring", flush=True)
    _sleep("SECONDS_OF_SCORING")
    if run_dir.is_writable:
        np.savez(run_dir.path / "weights.npz", *weights)
    scalars = {"loss": float(log.metrics["loss"][-1].mean())}
    run_dir.finish(title="Small", summary="It ran.", scalars=scalars)


def _sleep(name):
    time.sleep(float(os.environ.get(name, "0")))
