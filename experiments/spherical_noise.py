"""Noise that respects the sphere, and what it does for an emulator's spectra.

`_data.py` simulates, `_training.py` trains and forecasts, `_scores.py` measures noise
and forecasts, `_claims.py` judges and `_figures.py` draws.
"""

import importlib.util
import time

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.train.progress import duration
from ensjax.verification.bootstrap import LEAST_BLOCKS

training = load_beside(__file__, "spherical_noise_training")
scores = load_beside(__file__, "spherical_noise_scores")
verdicts = load_beside(__file__, "spherical_noise_claims")
figures = load_beside(__file__, "spherical_noise_figures")

training_job = training.training_job


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    data = config.data
    choose("data.source", data.source, dict.fromkeys(("held_suarez", "era5")))
    choose("model.name", config.model.name, dict.fromkeys(("small", "fourcastnet3")))
    check_numbers(config, ("num_seeds", "batch_size", "steps_per_call"), at_least=1)
    check_numbers(config, ("num_members",), at_least=1)
    check_numbers(config, ("noise.lambd", "spectral_weight"), at_least=0)
    for stage in config.stages:
        if not 4 <= len(stage) <= 8 or stage[0] < 2 or stage[3] < 1:
            raise ConfigError(
                "config.stages hold (steps, rate, estimator, rollout steps), with two"
                " steps or more, and may go on with (members, centred, batch size,"
                f" halving steps); got {stage}."
            )
        if stage[0] % config.steps_per_call:
            raise ConfigError(
                f"config.steps_per_call must divide the {stage[0]} steps of a stage;"
                f" got {config.steps_per_call}."
            )
    try:
        for stage in config.stages:
            training.loss_of(config, stage)
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    if data.source == "era5":
        return
    counts = ("num_train_runs", "num_test_runs", "num_days", "num_test_days")
    check_numbers(config, [f"data.{name}" for name in counts], at_least=1)
    check_numbers(config, ("data.truncation",), at_least=1)
    counts = ("num_members", "num_long_members")
    check_numbers(config, [f"test.{name}" for name in counts], at_least=2)
    if config.test.num_long_members > config.test.num_members:
        raise ConfigError(
            "config.test.num_long_members go on of config.test.num_members ="
            f" {config.test.num_members}; got {config.test.num_long_members}."
        )
    if config.num_seeds > 1 and data.num_test_runs < LEAST_BLOCKS:
        raise ConfigError(
            f"config.data.num_test_runs must be {LEAST_BLOCKS} or more with several"
            f" seeds, for intervals that hold their choice; got {data.num_test_runs}."
        )
    check_numbers(config, ("test.gap_days", "test.cases_at_once"), at_least=1)
    check_numbers(config, ("last_degree",), at_least=5, at_most=data.truncation)
    leads = (0, *config.test.lead_days, *config.test.long_days)
    if any(a >= b for a, b in zip(leads, leads[1:])):
        raise ConfigError(
            f"config.test.lead_days and then long_days must rise; got {leads[1:]}."
        )
    if leads[-1] >= data.num_test_days:
        raise ConfigError(
            f"config.test.long_days end at {leads[-1]}, beyond the"
            f" {data.num_test_days} days of a run that is tested on."
        )
    if importlib.util.find_spec("dinosaur") is None:
        raise ConfigError(
            "config.data: the Held-Suarez simulator needs package dinosaur: pip install"
            " 'ensjax[weather]'"
        )


def run(config, run_dir):
    """Measures noise, simulates, trains, forecasts and judges; resumes by stages."""
    training.check_at_hand(config)
    stages = {
        "noise": lambda done: scores.noise_statistics(config),
        "simulate": lambda done: simulate(config),
        "emulate": lambda done: emulate(config, run_dir, done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def simulate(config) -> dict[str, np.ndarray]:
    """The archive, and the number of test cases."""
    archive = training.data.simulate(config)
    starts, _ = training.data.test_starts(config, archive)
    return archive | {"num_cases": np.int64(len(starts))}


def emulate(config, run_dir, archive) -> dict[str, np.ndarray]:
    """Scores of every way of training, and members of the first case.

    Returns:
        What `scores.measure` gives, by variant and seed (`<variant>_<score>` `[seed,
        ...]`), `<variant>_frozen_steps` `[seed]`, and `<variant>_example` `[member 2,
        lead, lat, lon, variable]` of the first seed.
    """
    ensemble, frozen = training.train(config, run_dir, archive)
    starts, _ = training.data.test_starts(config, archive)
    is_white = training.hyper_of(config)["is_white"]
    found, begun = {}, time.perf_counter()
    for number, variant in enumerate(training.VARIANTS):
        own = np.arange(config.num_seeds) + number * config.num_seeds
        # The others go on by two members, for their power.
        num_long = config.test.num_long_members if variant == "diffusion" else 2
        forecasts, longer = training.forecast(
            config, ensemble.select(own.tolist()), starts, is_white[own],
            num_long=num_long,
        )  # fmt: skip
        rows = [
            scores.measure(config, archive, *both)
            for both in zip(forecasts, longer, strict=True)
        ]
        for name in rows[0]:
            found[f"{variant}_{name}"] = np.stack([row[name] for row in rows])
        found[f"{variant}_frozen_steps"] = frozen[own]
        found[f"{variant}_example"] = forecasts[0, 0, :2]
        taken, left = time.perf_counter() - begun, len(training.VARIANTS) - number - 1
        print(
            f"forecasts of {variant}: {duration(taken)}"
            + (f" | {duration(taken / (number + 1) * left)} left" if left else ""),
            flush=True,
        )
    return found
