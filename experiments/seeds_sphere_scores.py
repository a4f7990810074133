"""What `seeds_sphere.py` measures of ensembles of fields on a Gaussian grid.

Values are in units of the climate, `[member, case, variable, lat, lon]`; every mean
over places has the weights of their areas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification
from ensjax.experiment.fields import load_beside
from ensjax.verification import SphericalGrid, gauss_weights, spherical_power

ring = load_beside(__file__, "seeds_scores")

gaussian = ring.gaussian
# Between bins of spread, in units of the climate.
SPREAD_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25)
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of which the CRPS is computed


def area_weights(fields) -> np.ndarray:
    """Of mean 1, float32 `[lat, 1]`."""
    return gauss_weights(fields.shape[-2])[:, None].astype(np.float32)


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
        `_crps_equal` of as many members as "full" has (fewer where there are fewer) and
        `_by_size` `[size]` (NaN where there are fewer), both the mean over all subsets;
        `_crps_own` in the units of `[variable]`; `_spread` (root of the mean variance,
        relative to "full"), `_pattern` (correlation of its spread with that of "full"
        over cases, variables and areas), `_tail` (share of events) relative to "full",
        `_power` `[variable, degree]` in squared units from degree 1 on, `_ranks` (area
        of each rank over that of a reliable ensemble), `_outliers` likewise, and
        `_binned` `[spread and skill, bin]` (NaN in bins of less than 1 % of the area).
    """
    weights, full = area_weights(truth), ensembles["full"]
    rows = {
        name: jax.device_get(
            _measure(members, truth, np.asarray(sd), weights, num_equal=len(full))
        )
        for name, members in ensembles.items()
    }
    full_tail = tail(full, event_sds)
    found = {}
    for name, members in ensembles.items():
        values = rows[name] | {
            "spread": rows[name]["spread"] / rows["full"]["spread"],
            "pattern": pattern(members, full, weights),
            "tail": tail(members, event_sds) / max(full_tail, 1e-9),
        }
        found |= {f"{name}_{key}": np.asarray(v) for key, v in values.items()}
    return found


@functools.partial(jax.jit, static_argnames="num_equal")
def _measure(members, truth, sd, weights, *, num_equal):
    """What is of one ensemble alone, as one program."""
    score = functools.partial(_score, truth=truth, weights=weights)
    equal = members[:num_equal]
    ranks = score(verification.rank_histogram(len(equal)), equal)
    skill = score(verification.spread_skill(), members)
    binned = score(verification.binned_spread_skill(SPREAD_EDGES), members)
    is_filled = binned.weight >= 0.01 * binned.weight.sum()
    sd = sd[None]
    parts = score(verification.crps_parts("fair"), members)
    each = verification.crps().over(0, 2, 3)
    own = _score(each, members * sd[None], truth * sd, weights)
    by_size = [
        ring.expected_crps(parts, size) if size <= len(members) else jnp.nan
        for size in SIZES
    ]
    return {
        "crps": ring.expected_crps(parts, len(members)),
        "crps_equal": ring.expected_crps(parts, len(equal)),
        "crps_own": own,
        "fair": parts.crps,
        "rmse": skill.skill,
        "ssr": skill.ratio,
        "spread": skill.spread,
        "power": power(members * sd[None]),
        "ranks": ranks.counts / ranks.expected,
        "outliers": ranks.outliers * (len(equal) + 1) / 2,
        "by_size": jnp.stack(by_size),
        "binned": jnp.where(is_filled[None], jnp.stack(binned[:2]), jnp.nan),
    }


def _score(metric, members, truth, weights):
    return metric(members, truth, weights=weights)


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


def power(fields) -> jax.Array:
    """Mean power of members by degree of spherical harmonics, `[variable, degree]`.

    Degree 0, the mean over the globe, is left out.
    """
    grid = SphericalGrid(*fields.shape[-2:])
    return spherical_power(fields, grid).mean(axis=(0, 1))[:, 1:]
