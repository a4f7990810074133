"""FourCastNet 3 at level 1: a small network on the sphere, its calibration and spectra.

Data, training and scores are those of `spherical_noise.py`; `_sampler.py` has a
diffusion model of the same trunk and `_simulator.py` the simulators' own ensembles;
`_size.py` splits a step by latitude and traces one at full size, `_claims.py` and
`_comparison.py` judge and `_figures.py` draws.
"""

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

base = load_beside(__file__, "spherical_noise")
size = load_beside(__file__, "fourcastnet3_size")
sampler = load_beside(__file__, "fourcastnet3_sampler")
simulator = load_beside(__file__, "fourcastnet3_simulator")
verdicts = load_beside(__file__, "fourcastnet3_claims")
figures = load_beside(__file__, "fourcastnet3_figures")

training = base.training
training_job = training.training_job


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    base.validate(config)
    if config.data.source == "era5":
        return
    whole, data = dict(are_whole=True), config.data
    counts = ("num_states", "gap_days")
    check_numbers(config, [f"simulator.{name}" for name in counts], at_least=1, **whole)
    # A run's states are moved by what the other runs say.
    counts = ("num_members", "num_runs")
    check_numbers(config, [f"simulator.{name}" for name in counts], at_least=2, **whole)
    # As many days of the climate are scored beside them, each of them once.
    days = data.num_train_runs * data.num_days
    check_numbers(config, ("simulator.num_members",), at_most=days)
    check_numbers(config, ("simulator.ridge",), above=0)
    counts = ("steps", "batch_size", "num_timings", "num_level_channels")
    check_numbers(config, [f"sampler.{name}" for name in counts], at_least=1, **whole)
    pairs = data.num_train_runs * (data.num_days - 1)
    check_numbers(config, ("sampler.batch_size",), at_most=pairs)
    counts = ("sampler.num_members", "sampler.num_levels")
    check_numbers(config, counts, at_least=2, **whole)
    names = ("learning_rate", "low", "rho")
    check_numbers(config, [f"sampler.{name}" for name in names], above=0)
    check_numbers(config, ("sampler.high",), above=config.sampler.low)
    check_numbers(config, ("sampler.ema_decay",), above=0, below=1)
    levels = config.sampler.num_levels
    if len(set(levels)) < len(levels):
        raise ConfigError(
            "config.sampler.num_levels are different numbers of two or more; got"
            f" {levels}."
        )
    # A denoiser of half of the steps is trained, too.
    if config.sampler.steps < 4 or config.sampler.steps % (2 * config.steps_per_call):
        raise ConfigError(
            "config.steps_per_call must divide half of sampler.steps ="
            f" {config.sampler.steps}, which are 4 or more; got"
            f" {config.steps_per_call}."
        )
    if config.test.lead_days[0] != 1:
        raise ConfigError(
            "config.test.lead_days begin with day 1, on which systems are compared; got"
            f" {config.test.lead_days}."
        )


def run(config, run_dir):
    """Simulates, trains, forecasts, counts and judges; resumes by stages."""
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: base.simulate(config),
        "size": lambda done: count(config, done["simulate"]),
        "emulate": lambda done: base.emulate(config, run_dir, done["simulate"]),
        "sample": lambda done: sampler.measure(config, run_dir, done["simulate"]),
        # With the truth's equations, and with others.
        "ensemble": lambda done: simulator.measure(
            config, done["simulate"], training.data.system_of(config)
        ),
        "imperfect": lambda done: simulator.measure(
            config, done["simulate"], simulator.imperfect_of(config)
        ),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done)
        | verdicts.systems.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def count(config, archive) -> dict[str, np.ndarray]:
    """A step on several devices (`split_*`), and one at full size (`full_*`)."""
    split = size.split_steps(config, archive)
    full = size.full_size_step()
    return {f"split_{name}": value for name, value in split.items()} | {
        f"full_{name}": value for name, value in full.items()
    }
