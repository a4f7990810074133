"""Checks of config fields that several experiments with forecasts have.

They are of the archive of Lorenz-96 (`lorenz96_forecasts.py`) and the networks that
learn it, and of the rain at Innsbruck (`seeds_rainfall_data.py`). All raise
`ConfigError` in one line, for what would fail or mislead after the simulation.
"""

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_blocks,
    check_multiples,
    check_numbers,
    check_run,
    load_beside,
)

weather = load_beside(__file__, "lorenz96_forecasts")
rain = load_beside(__file__, "seeds_rainfall_data")

SUM_DAYS = 3  # of which a rain sum is


def check_full_size(config, section: str) -> None:
    """That a config whose source is ERA5 has what the preset `paper` has of it."""
    if "space" not in config[section]:
        raise ConfigError(
            f"config.{section} must have the fields of preset paper, such as"
            f" {section}.space, for ERA5; it has {', '.join(config[section])}."
        )


def check_archive(config, *, num_times: int) -> None:
    """Of `config.archive`, and of the batches of windows that are cut from it.

    Args:
        config: of the run.
        num_times: of the longest window.
    """
    weather.validate(config)
    check_numbers(config, ("archive.forcing",))
    counts = [name for name in config.archive if name.startswith("num_")]
    counts += ["steps_per_output", "spin_up_steps"]
    check_numbers(config, [f"archive.{n}" for n in counts], at_least=0, are_whole=True)
    # A step of the imperfect simulator is half an output.
    check_multiples(config, ("archive.steps_per_output",), of=2)
    check_numbers(config, ("archive.num_train_outputs",), at_least=num_times)
    archive = config.archive
    windows = archive.num_train_runs * (archive.num_train_outputs - num_times + 1)
    check_numbers(
        config, ("training.batch_size",), at_least=1, at_most=windows, are_whole=True
    )


def check_network(config) -> None:
    """Of `config.model`, a convolutional network around the ring of sites."""
    check_numbers(config, ("model.width",), at_least=1, are_whole=True)
    check_numbers(config, ("model.depth",), at_least=0, are_whole=True)
    check_numbers(
        config,
        ("model.kernel_size",),
        at_least=1,
        at_most=config.archive.num_sites,
        are_whole=True,
    )
    if not config.model.kernel_size % 2:
        raise ConfigError(
            "config.model.kernel_size must be odd, for as many sites on either side;"
            f" got {config.model.kernel_size}."
        )


def check_checkpoints(config) -> None:
    """Of what trains checkpoints (`huge_ensembles_training.py`), of any size."""
    check_run(config, batch_size="training.batch_size")
    check_numbers(config, ("num_seeds", "num_checkpoints"), at_least=1, are_whole=True)
    names = ("total_steps", "batch_size", "steps_per_call", "save_every_steps")
    names = [f"training.{name}" for name in names]
    check_numbers(config, names, at_least=1, are_whole=True)
    check_numbers(config, ("training.learning_rate",), above=0)
    check_blocks(config, ("training.block",))
    # Both are cut to the training, and a save is between two calls.
    training = config.training
    save, call = (
        min(number, training.total_steps)
        for number in (training.save_every_steps, training.steps_per_call)
    )
    if save % call:
        raise ConfigError(
            f"config.training.save_every_steps={training.save_every_steps} must be a"
            f" multiple of config.training.steps_per_call={training.steps_per_call},"
            f" both cut to the {training.total_steps} steps."
        )


def check_bred(config) -> None:
    """Of checkpoints of Lorenz-96, and of their perturbations."""
    check_archive(config, num_times=2)
    check_network(config)
    check_numbers(config, ("model.step_scale",), above=0)
    # One has no spread, and no other to be drawn in its place.
    check_numbers(config, ("num_checkpoints",), at_least=2)
    names = [f"perturbations.{n}" for n in ("num_cycles", "num_pairs", "error_leads")]
    check_numbers(config, names, at_least=1, are_whole=True)
    most = config.archive.num_train_outputs - 1
    check_numbers(config, ("perturbations.error_leads",), at_most=most)
    check_numbers(config, ("perturbations.share", "analysis_noise"), above=0)


def check_rain(config, *, num_train: int = 1, num_test: int = 1) -> None:
    """Of `config.rain`: a split with cases on both sides that share no day.

    Args:
        config: of the run.
        num_train, num_test: cases that there have to be.
    """
    check_numbers(config, ("rain.gap_days",), at_least=SUM_DAYS, are_whole=True)
    check_numbers(config, ("rain.num_test",), at_least=0, are_whole=True)
    split = config.rain.split_date
    try:
        rain.innsbruck_rain()
    except (ImportError, ValueError) as error:
        raise ConfigError(f"config.rain: {error}") from error
    try:
        train, test = rain.load(config.rain)
    except ValueError as error:
        raise ConfigError(
            "config.rain.split_date must be a day with data before and after it, such"
            f" as '2009-01-01'; got {split!r}."
        ) from error
    found = len(train.observed), len(test.observed)
    if found[0] < num_train or found[1] < num_test:
        raise ConfigError(
            f"config.rain.split_date={split!r} and rain.num_test must leave"
            f" {num_train} or more cases to train on and {num_test} to test on; got"
            f" {found[0]} and {found[1]}."
        )
