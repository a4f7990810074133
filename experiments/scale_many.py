"""Thousands of small members with everything of their own, for `bench_scale`.

    python experiments/scale_many.py 1000 1000

trains 1,000 MLPs 64-64-10 for 1,000 steps of batch 32 on scikit-learn's digits as one
program, in a process of its own, and prints what it took as one line of JSON. Every
member has its own learning rate, initial weights, bootstrap resample, data order, best
weights and early stop (a stopped member changes no more, but its steps are computed).
"""

import json
import resource
import sys
import time

import jax
import numpy as np
import optax

import ensjax
from ensjax import data, losses, nn
from ensjax.mesh import use_cpu_cores
from ensjax.train.lowering import lower_step

BATCH_SIZE = 32
EVALUATE_EVERY_STEPS = 100
PATIENCE = 5  # evaluations
SEED = 0


def make_model(rngs):
    """One member."""
    return nn.MLP(in_features=64, hidden=(64,), rngs=rngs)


def train(num_members: int, steps: int) -> dict[str, float]:
    """Trains them; times in seconds, memory in bytes."""
    use_cpu_cores()
    digits = data.find_dataset("digits")(test_size=360, seed=SEED)
    rows = (digits.x_train, digits.y_train)
    ensemble = ensjax.Ensemble.init(make_model, num_members=num_members, seed=SEED)
    jax.block_until_ready(ensemble.state)
    about = dict(
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        hyper=np.geomspace(1e-4, 1e-2, num_members).astype(np.float32),
        batch_size=BATCH_SIZE,
        sampling="bootstrap",
    )
    steps_per_call = min(EVALUATE_EVERY_STEPS, steps)
    before = _peak_bytes()
    start = time.perf_counter()
    _, log = ensjax.fit(
        ensemble,
        rows,
        **about,
        steps=steps,
        steps_per_call=steps_per_call,
        log_every_steps=steps_per_call,
        evaluation=(digits.x_test, digits.y_test),
        early_stopping=ensjax.EarlyStopping(patience=PATIENCE),
        progress=False,
    )
    seconds = time.perf_counter() - start
    peak = _peak_bytes()
    memory = lower_step(
        ensemble, rows, **about, keep_best=True, steps_per_call=steps_per_call
    )
    memory = memory.compile().memory_analysis()
    best = log.evaluation_steps[:, None] == log.best_steps
    return {
        "seconds": seconds,
        "compile_seconds": log.compile_seconds,
        "training_seconds": steps / log.steps_per_second,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "program_bytes_per_device": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "stopped": int((log.stopped_steps >= 0).sum()),
        "not_finite": int((log.frozen_steps >= 0).sum()),
        "mean_best_accuracy": float(log.evaluations["accuracy"][best].mean()),
        "devices": len(jax.devices()),
    }


def _peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(train(int(sys.argv[1]), int(sys.argv[2]))))
