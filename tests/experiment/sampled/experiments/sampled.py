"""Trains nothing; its exact denoisers of two leads are what `ensjax sample` takes."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.sample_job import SampleJob, SamplerSettings
from ensjax.experiment import ConfigError

DAYS = np.datetime64("2020-01-01") + np.arange(12)
LEADS = np.array([1, 2], "timedelta64[D]")
LAT, LON = np.array([-45.0, 0.0, 45.0]), np.array([0.0, 180.0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal:
    """The denoiser of a normal distribution around the condition."""

    sd: jax.Array

    def __call__(self, x, sigma, condition):
        weight = self.sd**2 / (self.sd**2 + sigma**2)
        return weight * x + (1 - weight) * condition


def middle(row):
    """The mean of a start, `[lead, variable, lat, lon]`."""
    return (10 * row + np.arange(12.0).reshape(2, 1, 3, 2)).astype(np.float32)


def sample_job(config, run_dir, model):
    if model not in (None, "wide"):
        raise ConfigError(f"--model is one of wide; got {model}.")
    restored = []

    def restore(samples, row):
        restored.append(row)
        if len(restored) == 2 and "KILL_AT_THE_SECOND_BLOCK" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return samples[:, :, None] + middle(row) - 0.1 * row

    return SampleJob(
        denoisers=Normal(jnp.full(2, config.sd * (1 if model is None else 2))),
        condition=lambda row: np.full((2, 1, 1), 0.1 * row, np.float32),
        shape=(3, 2),
        restore=restore,
        case=DAYS,
        lead=LEADS,
        variable=["t2m"],
        space={"lat": LAT, "lon": LON},
        units={"t2m": "K"},
        source="a normal distribution",
        truth=middle,
        seed=config.seed,
        sampler=SamplerSettings("heun", 40),
        members_at_once=4,
    )


def run(config, run_dir):
    run_dir.finish(title="Sampled", summary="Nothing.", scalars={"sd": config.sd})
