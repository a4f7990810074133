"""A real global ensemble: mean, spread, spectra and area means against known values.

Everything is computed by the rooms that score forecasts. `verify_glosea_figures.py`
draws.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import reduce
from ensjax.emulate.packaged_glosea import glosea4_temperature
from ensjax.experiment import ConfigError, check
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.verification import (
    SphericalGrid,
    cell_weights,
    crps,
    rank_histogram,
    spherical_power,
    spread_skill,
    zonal_power,
)

figures = load_beside(__file__, "verify_glosea_figures")

# Read off the files with an independent program, to as many digits as are written.
MEMBER_0_MEANS = (290.442, 289.626, 288.592, 287.630, 286.641, 286.249)
AREA_SPREADS = (1.033, 1.137, 0.998, 1.083, 1.259, 1.355)
MEAN_SDS = {0: 0.058, 5: 0.104}
NINO_MEANS, NINO_SDS = {0: 299.12, 5: 297.15}, {0: 0.117, 5: 0.384}
RANGE = (199.56, 318.59)
NUM_MONTHS = 6


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    check_numbers(config, ("num_months",), at_least=1, at_most=NUM_MONTHS)
    check_numbers(config, ("map_months",), at_least=0, at_most=config.num_months - 1)
    check_numbers(config, ("band", "nino_lat"), at_least=-90, at_most=90)
    check_numbers(config, ("nino_lon",), at_least=0, at_most=360)
    for field in ("band", "nino_lat", "nino_lon"):
        if len(config[field]) != 2 or not config[field][0] < config[field][1]:
            raise ConfigError(
                f"config.{field} is a lower and an upper bound; got {config[field]}."
            )
    try:
        glosea4_temperature()
    except ImportError as error:
        raise ConfigError(f"config: {error}") from error


def run(config, run_dir):
    """Reads, measures, compares and reports."""
    archive = glosea4_temperature().select(lead=slice(config.num_months))
    found = measure(config, archive)
    figures.add_tables(run_dir, config, archive, found)
    figures.add_figures(run_dir, config, archive, found)
    run_dir.finish(
        title=config.title,
        summary=describe(archive, found),
        scalars=summarise(found),
        checks=make_checks(found),
    )


def measure(config, archive):
    """Every measured number; fields `[month, lat, lon]`, curves `[month, ...]`."""
    lat, lon = archive.space["lat"], archive.space["lon"]
    values = jnp.asarray(archive.values[0, :, :, 0])  # [member, month, lat, lon]
    weights = jnp.asarray(cell_weights(lat), jnp.float32)[:, None]
    mean, variance = reduce.finish_moments(_moments(values), ddof=1)
    grid = SphericalGrid(len(lat), len(lon), kind="poles")
    # Without the mean over the globe, of which 290 K^2 would round all the rest.
    anomaly = values - _area_mean(values, weights)[..., None, None]
    own, of_mean = (spherical_power(x, grid) for x in (anomaly, anomaly.mean(axis=0)))
    rows = (lat >= config.band[0]) & (lat <= config.band[1])
    zonal = [
        _band_mean(zonal_power(x[..., rows, :]), weights[rows])
        for x in (anomaly, anomaly.mean(axis=0))
    ]
    found = {
        "mean": mean,
        "spread": jnp.sqrt(variance),
        "area_means": _area_mean(values, weights),  # [member, month]
        "area_spread": jnp.sqrt(_area_mean(variance, weights)),
        "nino": _box_mean(config, values, weights, lat, lon),
        "spectrum": own.mean(axis=0),
        "mean_spectrum": of_mean,
        "zonal": zonal[0].mean(axis=0),
        "mean_zonal": zonal[1],
        "range": jnp.stack([values.min(), values.max()]),
        "mean_square": _area_mean(jnp.square(anomaly), weights).mean(axis=0),
    } | _each_in_turn(values, weights)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def _moments(values):
    return reduce.update_moments(reduce.init_moments(values[0]), values)


def _area_mean(field, weights):
    """Of `[..., lat, lon]`, around the first place: float32 then keeps its digits."""
    first = field[..., :1, :1]
    return first[..., 0, 0] + ((field - first) * _front(weights, field)).mean((-2, -1))


def _front(weights, field):
    return weights.reshape((1,) * (field.ndim - weights.ndim) + weights.shape)


def _band_mean(power, weights):
    """Mean over latitudes of `[..., lat, wavenumber]`."""
    return (power * _front(weights, power)).sum(axis=-2) / weights.sum()


def _box_mean(config, values, weights, lat, lon):
    rows = (lat >= config.nino_lat[0]) & (lat <= config.nino_lat[1])
    columns = (lon >= config.nino_lon[0]) & (lon <= config.nino_lon[1])
    inside = weights[rows] / weights[rows].mean()
    return _area_mean(values[..., rows, :][..., columns], inside)


def _each_in_turn(values, weights):
    """Scores with each member as the truth of the others, over all of them."""
    metrics = {
        "turn_ratio": spread_skill(),
        "turn_crps": crps("fair"),
        "turn_ranks": rank_histogram(len(values) - 1),
    }

    # Once compiled, for all places. Ranks are counts, without weights.
    @jax.jit
    def sums(others, truth):
        return {
            name: metric.sums(
                others, truth, weights=None if name == "turn_ranks" else weights
            )
            for name, metric in metrics.items()
        }

    states = None
    for place in range(len(values)):
        own = sums(jnp.delete(values, place, axis=0), values[place])
        states = (
            own
            if states is None
            else {
                name: metrics[name].merge(states[name], own[name]) for name in metrics
            }
        )
    found = {name: metrics[name].finish(state) for name, state in states.items()}
    ordered = jnp.sort(values, axis=0)
    members = len(values)
    order = 2 * jnp.arange(1, members + 1) - members - 1
    # Half the mean distance of two members.
    gini = jnp.tensordot(order.astype(jnp.float32), ordered, axes=1)
    gini = _area_mean(gini / (members * (members - 1)), weights).mean()
    return {
        "turn_ratio": found["turn_ratio"].ratio,
        "turn_crps": found["turn_crps"],
        "turn_ranks": found["turn_ranks"].counts,
        "half_distance": gini,
    }


def summarise(found):
    """Flat scalars of the results."""
    scalars = {
        "lowest_temperature": found["range"][0],
        "highest_temperature": found["range"][1],
        "ratio_each_in_turn": found["turn_ratio"],
        "fair_crps_each_in_turn": found["turn_crps"],
    }
    for month, spread in enumerate(found["area_spread"]):
        scalars[f"area_mean_of_member_0_month_{month}"] = found["area_means"][0, month]
        scalars[f"area_spread_month_{month}"] = spread
        scalars[f"sd_of_area_means_month_{month}"] = sd(found["area_means"])[month]
        scalars[f"nino_month_{month}"] = found["nino"].mean(axis=0)[month]
        scalars[f"nino_sd_month_{month}"] = sd(found["nino"])[month]
        scalars[f"power_kept_by_the_mean_month_{month}"] = kept_power(found)[month]
    return {name: float(value) for name, value in scalars.items()}


def sd(values):
    """Of members, `[month]`."""
    return values.std(axis=0, ddof=1)


def kept_power(found):
    """Power of the upper half of degrees, ensemble mean's over members', `[month]`."""
    half = found["spectrum"].shape[-1] // 2
    return found["mean_spectrum"][:, half:].sum(-1) / found["spectrum"][:, half:].sum(
        -1
    )


def make_checks(found):
    """Known values to their last digit, and identities of the scores."""
    months = len(found["area_spread"])
    golden = [
        _near("area means of member 0, K", found["area_means"][0],
              MEMBER_0_MEANS[:months], 5e-4),
        _near("area spread, K", found["area_spread"], AREA_SPREADS[:months], 5e-4),
        _near("sd of members' area means, K",
              *_known(sd(found["area_means"]), MEAN_SDS), 5e-4),
        _near("temperature of Nino 3.4, K",
              *_known(found["nino"].mean(axis=0), NINO_MEANS), 5e-3),
        _near("sd of Nino 3.4, K", *_known(sd(found["nino"]), NINO_SDS), 5e-4),
    ]  # fmt: skip
    if months == NUM_MONTHS:
        golden.append(_near("lowest and highest, K", found["range"], RANGE, 5e-3))
    ranks = found["turn_ranks"]
    parseval = found["spectrum"].sum(axis=-1) / found["mean_square"]
    return [
        *golden,
        _near("spread over skill, each member in turn the truth",
              found["turn_ratio"], 1.0, 1e-4),
        _near("fair CRPS of that over half the distance of members",
              found["turn_crps"] / found["half_distance"], 1.0, 1e-4),
        check(
            "counts of ranks of that, largest over mean less 1",
            bound="<= 0.01",
            measured=ranks.max() / ranks.mean() - 1,
            passed=ranks.max() / ranks.mean() - 1 <= 0.01,
        ),
        check(
            "power of all degrees over the mean square",
            bound="0.97 to 1",
            measured=parseval.min(),
            passed=parseval.min() >= 0.97 and parseval.max() <= 1 + 1e-4,
        ),
    ]  # fmt: skip


def _known(values, known):
    months = [month for month in known if month < len(values)]
    return values[months], [known[month] for month in months]


def _near(name, measured, expected, tolerance):
    """Whether all numbers are within the tolerance: shows the farthest difference."""
    gap = np.abs(np.asarray(measured) - np.asarray(expected)).max()
    return check(
        f"{name}: distance from what is known",
        bound=f"<= {tolerance:g}",
        measured=gap,
        passed=gap <= tolerance,
    )


def describe(archive, found):
    """What was done and what came out, in a paragraph."""
    kept = kept_power(found)
    return (
        f"{archive.sizes['member']} members of GloSea4 with starts on 18 to 24 July"
        f" 2011, monthly surface temperature for {archive.sizes['lead']} months. The"
        f" area-mean spread goes from {found['area_spread'][0]:.3f} to"
        f" {found['area_spread'][-1]:.3f} K, the mean of the Nino 3.4 box from"
        f" {found['nino'].mean(axis=0)[0]:.2f} to {found['nino'].mean(axis=0)[-1]:.2f}"
        f" K. Of the upper half of degrees the ensemble mean keeps {kept[0]:.1%} of its"
        f" members' power in the first month and {kept[-1]:.1%} in the last: coasts and"
        " mountains, which all members share, hold most of it. There is no truth; with"
        " each member in its place in turn the scores have values that are known."
    )
