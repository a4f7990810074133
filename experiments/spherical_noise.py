"""Noise that respects the sphere, and what it does for an emulator's spectra.

`_data.py` simulates, `_training.py` trains and forecasts, `_scores.py` measures noise
and forecasts, `_claims.py` judges and `_figures.py` draws.
"""

import importlib.util
import time

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_blocks,
    check_numbers,
    check_rising,
    check_run,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages
from ensjax.nn.spherical_forecaster import BLOCKS
from ensjax.train.progress import duration
from ensjax.verification.bootstrap import LEAST_BLOCKS
from ensjax.verification.crps import ESTIMATORS

fields = load_beside(__file__, "forecast_fields")
training = load_beside(__file__, "spherical_noise_training")
scores = load_beside(__file__, "spherical_noise_scores")
verdicts = load_beside(__file__, "spherical_noise_claims")
figures = load_beside(__file__, "spherical_noise_figures")

training_job = training.training_job
MEASURED = "noise-2"


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    data = config.data
    choose("data.source", data.source, dict.fromkeys(("held_suarez", "era5")))
    name = "small" if data.source == "held_suarez" else "fourcastnet3"
    choose("model.name", config.model.name, {name: None})
    if data.source == "era5":
        fields.check_full_size(config, "data")
    check_run(config, batch_size="batch_size")
    counts = ("num_seeds", "num_members", "batch_size", "steps_per_call")
    check_numbers(config, counts, at_least=1, are_whole=True)
    check_numbers(config, ("noise.lengths_km", "max_norm"), above=0)
    check_numbers(config, ("noise.lambd", "spectral_weight"), at_least=0)
    check_numbers(config, ("alpha",), at_least=0, at_most=1)
    check_blocks(config, ("block",))
    _validate_stages(config)
    if data.source == "era5":
        return
    _validate_model(config)
    _validate_data(config)
    _validate_test(config)
    if importlib.util.find_spec("dinosaur") is None:
        raise ConfigError(
            "config.data: the Held-Suarez simulator needs package dinosaur: pip install"
            " 'ensjax[weather]'"
        )


def _validate_stages(config):
    if not config.stages:
        raise ConfigError("config.stages must hold one stage or more; got none.")
    for number, stage in enumerate(config.stages):
        if not isinstance(stage, (tuple, list)) or not 4 <= len(stage) <= 8:
            raise ConfigError(
                "config.stages hold (steps, rate, estimator, rollout steps), and may go"
                " on with (members, centred, batch size, halving steps); got"
                f" {stage!r}."
            )
        name, row = f"stages[{number}]", training.stage_row(config, stage)
        own, whole = {name: row._asdict()}, dict(are_whole=True)
        check_numbers(own, (f"{name}.steps",), at_least=2, **whole)
        counts = ("rollout_steps", "num_members", "batch_size")
        check_numbers(own, [f"{name}.{x}" for x in counts], at_least=1, **whole)
        check_numbers(own, (f"{name}.halving_steps",), at_least=0, **whole)
        check_numbers(own, (f"{name}.rate",), above=0)
        choose(f"{name}.estimator", row.estimator, dict.fromkeys(ESTIMATORS))
        if row.centred not in (True, False):
            raise ConfigError(
                f"config.{name}.centred must be True or False; got {row.centred!r}."
            )
        if row.steps % config.steps_per_call:
            raise ConfigError(
                f"config.steps_per_call must divide the {row.steps} steps of a stage;"
                f" got {config.steps_per_call}."
            )
    try:
        training.stages_of(config)
    except ValueError as error:
        raise ConfigError(f"config.stages: {error}") from error


def _validate_model(config):
    options = config.model.options
    counts = ("width", "noise_width", "kernel_shape")
    counts = [f"model.options.{name}" for name in counts]
    check_numbers(config, counts, at_least=1, are_whole=True)
    if len(options.kernel_shape) != 2:
        raise ConfigError(
            f"config.model.options.kernel_shape are two; got {options.kernel_shape}."
        )
    if not options.blocks:
        raise ConfigError("config.model.options.blocks must hold one or more; got ().")
    for block in options.blocks:
        choose("model.options.blocks", block, dict.fromkeys(BLOCKS))
    names = ("mlp_ratio", "layer_scale", "state_share")
    check_numbers(config, [f"model.options.{name}" for name in names], above=0)
    check_numbers(config, ("model.options.state_share",), at_most=1)
    if round(options.mlp_ratio * options.width) < 1:
        raise ConfigError(
            "config.model.options.mlp_ratio must leave a channel of"
            f" {options.width}; got {options.mlp_ratio}."
        )


def _validate_data(config):
    data, whole = config.data, dict(are_whole=True)
    counts = ("num_train_runs", "num_test_runs", "num_test_days", "spin_up_days")
    counts += ("num_levels", "step_minutes")
    check_numbers(config, [f"data.{name}" for name in counts], at_least=1, **whole)
    # Degrees up to 5 are compared; the simulator has none beyond its own.
    most = training.data.HeldSuarez.truncation
    check_numbers(config, ("data.truncation",), at_least=5, at_most=most, **whole)
    try:
        training.data.system_of(config)
    except ValueError as error:
        raise ConfigError(f"config.data: {error}") from error
    rows = [training.stage_row(config, stage) for stage in config.stages]
    longest = 1 + max(row.rollout_steps for row in rows)
    check_numbers(config, ("data.num_days",), at_least=longest, **whole)
    windows = data.num_train_runs * (data.num_days - longest + 1)
    for row in rows:
        if row.batch_size > windows:
            raise ConfigError(
                f"config.data has {windows} windows to train on, too few for a batch of"
                f" {row.batch_size}."
            )


def _validate_test(config):
    data, whole = config.data, dict(are_whole=True)
    counts = ("num_members", "num_long_members")
    check_numbers(config, [f"test.{name}" for name in counts], at_least=2, **whole)
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
    counts = ("test.gap_days", "test.cases_at_once")
    check_numbers(config, counts, at_least=1, **whole)
    most = data.truncation
    check_numbers(config, ("last_degree",), at_least=5, at_most=most, **whole)
    check_rising(config, ("test.lead_days", "test.long_days"), at_least=1)
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


def run(config, run_dir):
    """Simulates, trains, forecasts, measures noise and judges; resumes by stages."""
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: simulate(config),
        "emulate": lambda done: emulate(config, run_dir, done["simulate"]),
        # The name changes with what the stage gives: "noise" is of older versions.
        MEASURED: lambda done: scores.noise_statistics(config),
    }
    done = run_stages(run_dir, config, stages)
    done["noise"] = done.pop(MEASURED)
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
