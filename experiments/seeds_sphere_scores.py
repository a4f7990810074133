"""What `seeds_sphere.py` measures of ensembles of fields on a Gaussian grid.

Values are in units of the climate, `[member, case, variable, lat, lon]`; every mean
over places has the weights of their areas.
"""

import functools

import jax.numpy as jnp
import numpy as np

from ensjax import verification
from ensjax.verification import SphericalGrid, gauss_weights, spherical_power

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of which the CRPS is computed


def area_weights(fields) -> np.ndarray:
    """Of mean 1, float32 `[lat, 1]`."""
    return gauss_weights(fields.shape[-2])[:, None].astype(np.float32)


def gaussian(seeds, num_samples: int, seed: int) -> np.ndarray:
    """Samples of a normal distribution at each place, from the seeds' mean and sd."""
    draw = np.random.default_rng(seed).normal(size=(num_samples, *seeds.shape[1:]))
    return (seeds.mean(0) + seeds.std(0, ddof=1) * draw).astype(np.float32)


def measure(ensembles, truth, sd, *, event_sds: float) -> dict[str, np.ndarray]:
    """Scores of ensembles by name, against truth `[case, variable, lat, lon]`.

    Args:
        ensembles: `[member, case, variable, lat, lon]`; "full" is what others are
            compared with.
        truth: in the same units.
        sd: the climate's, `[variable, lat, 1]`, for what is in units of the variables.
        event_sds: an event is so many deviations or more off the climate's mean.

    Returns:
        For each ensemble `<name>_crps`, `_fair`, `_rmse` and `_ssr` over variables;
        `_crps_equal` of as many members as "full"; `_crps_own` in the units of
        `[variable]`; `_spread` (root of the mean variance, relative to "full"),
        `_pattern` (correlation of its spread with that of "full" over cases, variables
        and areas), `_power` `[variable, degree]` from degree 1 on and `_tail` (share of
        events) relative to "full", `_power_own` in squared units, `_ranks` (counts of
        area), `_outliers`, `_by_size` `[size]` (CRPS of the first members, NaN where
        there are not so many) and `_binned` `[spread and skill, bin]`.
    """
    weights = area_weights(truth)
    full = ensembles["full"]
    full_power, full_tail = power(full * sd), tail(full, event_sds)
    edges = verification.spread_quantiles(full, num_bins=8)
    found = {}
    for name, members in ensembles.items():
        score = functools.partial(_score, members, truth, weights)
        equal = functools.partial(_score, members[: len(full)], truth, weights)
        skill = score(verification.spread_skill())
        ranks = equal(verification.rank_histogram(min(len(members), len(full))))
        binned = score(verification.binned_spread_skill(edges))
        by_variable = verification.crps().over(0, 2, 3)
        values = {
            "crps": score(verification.crps()),
            "crps_equal": equal(verification.crps()),
            "crps_own": by_variable(members * sd, truth * sd, weights=weights),
            "fair": score(verification.crps("fair")),
            "rmse": skill.skill,
            "ssr": skill.ratio,
            "spread": skill.spread / _spread(full, weights),
            "pattern": pattern(members, full, weights),
            "power": power(members * sd) / full_power,
            "power_own": power(members * sd),
            "tail": tail(members, event_sds) / np.maximum(full_tail, 1e-9),
            "ranks": ranks.counts / ranks.expected,
            "outliers": ranks.outliers * len(ranks.counts) / 2,
            "by_size": [
                _score(members[:size], truth, weights, verification.crps())
                if size <= len(members)
                else np.nan
                for size in SIZES
            ],
            "binned": jnp.stack([binned.spread, binned.skill]),
        }
        found |= {f"{name}_{key}": np.asarray(v) for key, v in values.items()}
    return found


def _score(members, truth, weights, metric):
    return metric(members, truth, weights=weights)


def _spread(members, weights):
    return np.sqrt((members.var(axis=0, ddof=1) * weights).mean())


def pattern(members, full, weights) -> float:
    """Correlation of two ensembles' spreads over cases, variables and areas."""
    one, other = (x.std(axis=0, ddof=1) for x in (members, full))
    weights = np.broadcast_to(weights, one.shape)
    one, other = (x - np.average(x, weights=weights) for x in (one, other))

    def product(a, b):
        return np.average(a * b, weights=weights)

    return float(
        product(one, other) / np.sqrt(product(one, one) * product(other, other))
    )


def tail(members, event_sds: float) -> float:
    """The share of members and areas that are beyond the event on either side."""
    is_event = np.abs(members) >= event_sds
    return float((is_event * area_weights(members)).mean())


def power(fields) -> np.ndarray:
    """Mean power of members by degree of spherical harmonics, `[variable, degree]`.

    Degree 0, the mean over the globe, is left out.
    """
    grid = SphericalGrid(*fields.shape[-2:])
    return np.asarray(spherical_power(fields, grid)).mean(axis=(0, 1))[:, 1:]
