"""Free runs of the Held-Suarez atmosphere of which only the lowest layer is seen.

What is not seen makes the next day uncertain: the task of an emulator with noise.
"""

import dataclasses
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate import Archive, HeldSuarez, kept_archive, run_climate
from ensjax.emulate.windows import windows
from ensjax.experiment import ConfigError
from ensjax.ops.sphere import SphericalGrid

VARIABLES = ("temperature of the lowest layer", "surface pressure")
UNITS = ("K", "hPa")
_OF_TESTS = 10_000  # added to the seed of the runs that are tested on


def grid_of(config) -> SphericalGrid:
    """The simulator's Gaussian grid, to its truncation."""
    return SphericalGrid(32, 64, truncation=config.data.truncation)


def system_of(config) -> HeldSuarez:
    """The simulator."""
    return HeldSuarez(
        num_levels=config.data.num_levels, step_minutes=config.data.step_minutes
    )


def simulate(config) -> dict[str, np.ndarray]:
    """Free runs in units of the climate, from the user's cache if they are there.

    Returns:
        `train` and `test` `[run, day, lat, lon, variable]`, the climate's mean `[lat,
        variable]` and deviation `[variable]`, equal in both hemispheres and of the
        training runs alone; `lat` and `lon` in degrees.
    """
    data = config.data
    if data.source != "held_suarez":
        raise ConfigError(
            f"data.source {data.source!r} is not at hand, so that this preset is"
            " planned: ensjax plan"
        )
    train, space = _runs(config, data.num_train_runs, data.num_days, config.seed)
    test, _ = _runs(
        config, data.num_test_runs, data.num_test_days, config.seed + _OF_TESTS
    )
    both = np.concatenate([train, train[:, :, ::-1]])
    mean = both.mean(axis=(0, 1, 3))  # [lat, variable]
    area = grid_of(config).quadrature()[:, None] / 2
    squares = (both - mean[:, None]) ** 2
    sd = np.sqrt((squares.mean(axis=(0, 1, 3)) * area).sum(axis=0))
    return {
        "train": _standardised(train, mean, sd),
        "test": _standardised(test, mean, sd),
        "mean": mean,
        "sd": sd,
        "lat": space["lat"],
        "lon": space["lon"],
    }


def _standardised(runs, mean, sd):
    return ((runs - mean[:, None]) / sd).astype(np.float32)


def _runs(config, count, days, seed):
    """Runs `[run, day, lat, lon, variable]`, one output a day, and coordinates."""
    data, system = config.data, system_of(config)
    settings = dict(
        system=dataclasses.asdict(system),
        count=count,
        days=days,
        spin_up_days=data.spin_up_days,
        seed=seed,
        dinosaur=importlib.metadata.version("dinosaur"),
    )

    def make():
        values = run_climate(
            system,
            num_trajectories=count,
            num_outputs=days,
            steps_per_output=system.steps_per_day,
            spin_up_steps=data.spin_up_days * system.steps_per_day,
            seed=seed,
        )
        return Archive(
            values[:, None],  # one member
            case=np.arange(count),
            lead=np.arange(1, days + 1).astype("timedelta64[D]"),
            variable=system.variable,
            space=system.space,
            units=system.units,
            source=f"free runs of {system.name}, seed {seed}",
        )

    found = kept_archive("held-suarez-free", settings, make)
    return np.moveaxis(found.values[:, 0], 2, -1), found.space


def training_windows(config, archive) -> np.ndarray:
    """Windows `[window, day, lat, lon, variable]` for the longest rollout."""
    length = 1 + max(stage[3] for stage in config.stages)
    return windows(archive["train"], length)


def window_shapes(config) -> jax.ShapeDtypeStruct:
    """What `training_windows` will be; at full size one batch of the first stage.

    All windows of ERA5 are hundreds of TiB: they stream, and each stage reads as many
    days of a window as its rollout needs.
    """
    data = config.data
    if data.source == "held_suarez":
        length = 1 + max(stage[3] for stage in config.stages)
        count = data.num_train_runs * (data.num_days - length + 1)
        return jax.ShapeDtypeStruct((count, length, 32, 64, 2), np.float32)
    length = 1 + config.stages[0][3]
    shape = (config.batch_size, length, *data.space, data.num_channels)
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_starts(config, archive) -> tuple[np.ndarray, np.ndarray]:
    """Starts `[case, lat, lon, variable]`, and truth `[case, lead, ...]`.

    Run by run, as many of each, and so early that the last long step has a truth.
    """
    test, days = archive["test"], _start_days(config, archive)
    starts = test[:, days].reshape(-1, *test.shape[2:])
    return starts, _truth(archive, days, config.test.lead_days)


def long_truth(config, archive) -> np.ndarray:
    """Truth of the same cases at the long steps, `[case, step, lat, lon, variable]`."""
    return _truth(archive, _start_days(config, archive), config.test.long_days)


def _start_days(config, archive):
    last = archive["test"].shape[1] - 1 - config.test.long_days[-1]
    return np.arange(0, last + 1, config.test.gap_days)


def _truth(archive, days, leads):
    test = archive["test"]
    truth = np.stack([test[:, days + lead] for lead in leads], axis=2)
    return truth.reshape(-1, *truth.shape[2:])


def turned(key, window):
    """A window on a globe that is turned, and as likely in a mirror at the equator.

    The simulator has no continents and equal hemispheres, so that this is as likely as
    the other.
    """
    turn_key, mirror_key = jax.random.split(key)
    turn = jax.random.randint(turn_key, (), 0, window.shape[-2])
    window = jnp.roll(window, turn, axis=-2)
    mirrored = jnp.flip(window, axis=-3)
    return jnp.where(jax.random.bernoulli(mirror_key), mirrored, window)
