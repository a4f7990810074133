"""Rain as `seeds_rainfall.py` uses it: the split, the scale, and what it is held to.

Rain is skewed, and often there is none. Square roots are standardised, and an observed
0 becomes a number below it, so that a density exists; what is sampled below 0 is no
rain.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from ensjax.emulate.packaged_rain import innsbruck_rain

# Of the two-member spread, whose logarithm EMOS takes; in sqrt(mm).
_SPREAD_FLOOR = 0.05
NUM_QUANTILES = 200


class Rain(NamedTuple):
    """One part of the data, in mm.

    Attributes:
        members: `[case, member]`.
        observed: `[case]`.
        date: valid dates `[case]`.
        rows: numbers of the cases in the data set, `[case]`.
    """

    members: np.ndarray
    observed: np.ndarray
    date: np.ndarray
    rows: np.ndarray


class Scale(NamedTuple):
    """Mean and standard deviation of sqrt(rain in mm)."""

    mean: float
    sd: float

    def standardise(self, root):
        return ((root - self.mean) / self.sd).astype(np.float32)

    def restore(self, z):
        """Rain in mm of standardised roots; below 0 none."""
        return np.square(np.maximum(z * self.sd + self.mean, 0.0))


def load(config) -> tuple[Rain, Rain]:
    """Training and test cases, which share no case and no day of rain."""
    archive = innsbruck_rain()
    date = archive.valid_time[:, 0]
    first = np.datetime64(config.split_date)
    is_train = date < first - np.timedelta64(config.gap_days - 1, "D")
    parts = archive.split(is_train, date >= first)
    train, test = (
        Rain(
            part.values[:, :, 0, 0],
            part.truth[:, 0, 0],
            part.valid_time[:, 0],
            part.rows,
        )
        for part in parts
    )
    if config.num_test:
        test = Rain(*(x[: config.num_test] for x in test))
    return train, test


def fit_scale(train: Rain) -> Scale:
    root = np.sqrt(train.observed.astype(np.float64))
    return Scale(float(root.mean()), float(root.std()))


def training_cases(config, train: Rain, scale: Scale) -> dict[str, np.ndarray]:
    """Standardised members and observations, `[case, task 1, member, channel 1]`."""
    rng = np.random.default_rng(config.seed)
    root = np.sqrt(train.observed)
    depth = -config.dry_depth * rng.uniform(size=root.shape)
    root = np.where(root == 0, depth, root)
    return {
        "members": scale.standardise(np.sqrt(train.members))[:, None, :, None],
        "others": scale.standardise(root)[:, None, None, None],
    }


def given(config, part: Rain, scale: Scale) -> np.ndarray:
    """The members that the model is given, `[case, seed, channel 1]`."""
    return scale.standardise(np.sqrt(part.members[:, : config.num_given]))[..., None]


def climatology(train: Rain) -> np.ndarray:
    """Quantiles of what was observed in training, `[quantile]`, mm."""
    levels = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    return np.quantile(train.observed, levels)


def fit_emos(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Left-censored Gaussian regression of sqrt(rain) by maximum likelihood, `[4]`.

        mu = a + b mean,  sd = exp(c + d ln s)

    with mean and standard deviation s of the members' roots, `[case, member]`.
    """
    mean, log_spread = _predictors(members)
    root = np.sqrt(observed.astype(np.float64))

    def loss(parameters):
        mu, sd = _gaussian(parameters, mean, log_spread)
        dry = stats.norm.logcdf(-mu / sd)
        wet = stats.norm.logpdf(root, mu, sd)
        return -np.where(root > 0, wet, dry).mean()

    start = np.array([0.0, 0.8, 0.5, 0.1])
    return optimize.minimize(loss, start, method="BFGS").x


def emos_members(parameters, members, number=NUM_QUANTILES) -> np.ndarray:
    """Quantiles of the fitted distribution, `[quantile, case]`, mm."""
    mu, sd = _gaussian(parameters, *_predictors(members))
    levels = (np.arange(number) + 0.5) / number
    return np.square(np.maximum(stats.norm.ppf(levels[:, None], mu, sd), 0.0))


def _predictors(members):
    root = np.sqrt(members.astype(np.float64))
    spread = np.maximum(root.std(axis=-1, ddof=1), _SPREAD_FLOOR)
    return root.mean(axis=-1), np.log(spread)


def _gaussian(parameters, mean, log_spread):
    a, b, c, d = parameters
    return a + b * mean, np.exp(c + d * log_spread)


def fit_emos_of_some(train: Rain, number: int) -> np.ndarray:
    """EMOS for ensembles of `number` members, fitted on as many disjoint ones as go."""
    times = train.members.shape[1] // number
    groups = [train.members[:, i * number : (i + 1) * number] for i in range(times)]
    return fit_emos(np.concatenate(groups), np.tile(train.observed, times))


def reference_systems(config, train: Rain, test: Rain) -> dict[str, np.ndarray]:
    """What generated rain is compared with, each `[member, case]` in mm."""
    few = config.num_given
    fitted = fit_emos_of_some(train, few)
    emos = emos_members(fitted, test.members[:, :few])
    every = train.members.shape[1]
    own = emos_members(fit_emos_of_some(train, every), test.members)
    usual = climatology(train)[:, None]
    others = test.members[:, few:].T
    # As many of one kind as of the other: each of the others counts five times.
    halves = [np.repeat(others, 5, axis=0)]
    halves += [emos_members(fitted, test.members[:, :few], len(halves[0]))]
    return {
        f"raw, {every} members": test.members.T,
        f"the {few} given": test.members[:, :few].T,
        "the others": others,
        "climatology": np.repeat(usual, len(test.observed), axis=1),
        f"EMOS of {few}": emos,
        f"EMOS of {every}": own,
        "half others, half EMOS": np.concatenate(halves),
    }
