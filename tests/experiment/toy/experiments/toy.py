"""Adds up coins; its checkpoint is a folder with one number, as Orbax names folders."""

import os
import signal
import time

import jax
import numpy as np
from matplotlib.figure import Figure

from ensjax.experiment import ConfigError, check, claim, not_run
from ensjax.experiment.processes import everywhere

PAPER = "Nobody 1900"


def validate(config):
    if config.total_steps % config.save_every_steps:
        raise ConfigError(
            f"config.total_steps ({config.total_steps}) must be a multiple of"
            f" config.save_every_steps ({config.save_every_steps})."
        )
    if config.optimizer.learning_rate < 0:
        raise ValueError("learning_rate must be positive:\n  it is not.")


def run(config, run_dir):
    saved = sorted(int(folder.name) for folder in run_dir.checkpoints.glob("*"))
    first = saved[-1] if saved else 0
    total = np.zeros(config.num_members)
    if saved:
        text = (run_dir.checkpoints / str(first) / "total").read_text()
        total = np.array([float(number) for number in text.split()])
    logger = run_dir.logger()
    for step in range(first + 1, config.total_steps + 1):
        rng = np.random.default_rng((config.seed, step))
        total += rng.random(config.num_members)
        time.sleep(config.seconds_per_step)
        logger.write(step, {"loss": list(total / step), "mean": float(total.mean())})
        if step % config.save_every_steps == 0:
            meet()
            if run_dir.is_writable:
                folder = run_dir.checkpoints / str(step)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "total").write_text(" ".join(map(repr, total.tolist())))
        fail(config.fault, step)
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot(total)
    run_dir.add_figure("coins", figure, 'The <sum> of "coins" & more.')
    rows = [["a <b>", 1.23456789, None], ["c", 3, "ok"]]
    run_dir.add_table("A table", ["name", "value", "note"], rows, "Numbers & words.")
    means = total / config.total_steps
    about = dict(paper="Nobody 1900", source="table 1", certainty="read", scale="toy")
    run_dir.finish(
        title="Coins <toy>",
        summary="Coins were thrown.",
        scalars={"mean": float(means.mean()), "worst": float("nan")},
        claims=[
            claim(
                "mean > 0.9", expected="> 0.9", values_by_seed=means, bound=0.9, **about
            ),
            claim(
                "mean > 0", expected=0.5, values_by_seed=[*means] * 2, bound=0, **about
            ),
            not_run("at full size", expected=0.5, **about),
        ],
        checks=[check("mean below 1", bound="< 1", measured=means.max(), passed=True)],
    )


def meet():
    """Waits for the other processes, as training does in every step."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.process_allgather(np.ones(1))


def fail(fault, step):
    if step < 15 or not fault:
        return
    if fault == "bug":
        raise KeyError("a bug")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "abort":
        os.abort()
    if fault == "space":
        raise OSError(28, "No space left on device")
    if fault == "user" or (fault == "user on 1" and jax.process_index() == 1):
        raise ConfigError("no such data here")
    if fault == "known to all":
        everywhere(lambda: fail("user on 1", step))
