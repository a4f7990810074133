"""Level 0 of `spherical_noise.py`: noise against theory; and scores of forecasts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.spherical_noise import of_pair
from ensjax.experiment.fields import load_beside
from ensjax.ops.sphere import to_real_harmonics, wave_power
from ensjax.train import area_crps, wave_crps
from ensjax.verification import log_spectral_distance

training = load_beside(__file__, "spherical_noise_training")

LARGE = 5  # the last degree of what is called large scales
_DRAWS = 500
_SCRAMBLED_CASES, _SCRAMBLED_MEMBERS = 60, 8


# Level 0


def noise_statistics(config) -> dict[str, np.ndarray]:
    """The noise of many members at two steps, against theory; and the scramble test.

    Returns:
        By channel: `sd` of a place, `lag` (correlation of one step with the next) and
        `lag_expected`, `power` and `power_expected` `[channel, l]`, `power_errors` and
        `latitude_errors`, the largest deviations in standard errors; `pair_sum`, the
        largest of |member 2k + member 2k + 1|; `scramble_places` and `scramble_waves`,
        ratios of scores of scrambled members to those of whole ones; and `fields`
        `[2, channel, lat, lon]` of the first draw at both steps.
    """
    noise, grid = training.noise_of(config), training.grid_of(config)
    states, later, fields = _draws(noise, config.seed)
    area = grid.quadrature() / 2
    by_latitude = (fields**2).mean(axis=(0, 2))  # [lat, channel]
    power = np.asarray(wave_power(later)).mean(axis=0)
    expected = noise.power()
    degree = np.arange(grid.degree + 1)
    error = np.sqrt(2 / ((2 * degree + 1) * _DRAWS))
    is_there = expected > 1e-30
    off = np.where(is_there, np.abs(power / np.where(is_there, expected, 1) - 1), 0)
    axes = (0, 2, 3, 4)
    lag = (states * later).sum(axes) / np.sqrt(
        (states**2).sum(axes) * (later**2).sum(axes)
    )
    places, waves = _scramble(config)
    first = np.moveaxis(np.asarray(jax.jit(noise.to_grid)(states[0])), -1, 0)
    return {
        "sd": np.sqrt(area @ by_latitude),
        "lag": lag,
        "lag_expected": noise.memory,
        "power": power,
        "power_expected": expected,
        "power_errors": (off / error).max(axis=1),
        # A row near a pole is one place for the longest scales.
        "latitude_errors": np.abs(by_latitude - 1).max(axis=0) / np.sqrt(2 / _DRAWS),
        "pair_sum": np.float64(_pair_sum(config)),
        "scramble_places": np.float64(places),
        "scramble_waves": np.float64(waves),
        "fields": np.stack([first, np.moveaxis(fields[0], -1, 0)]),
    }


def _draws(noise, seed):
    """States at two steps, and the fields of the second, `[draw, ...]`."""

    @jax.jit
    def run(keys):
        def of_member(key):
            state = noise.init(key)
            later = noise.step(state, jax.random.fold_in(key, 1))
            return state, later, noise.to_grid(later)

        return jax.vmap(of_member)(keys)

    keys = jax.random.split(jax.random.key(seed), _DRAWS)
    return jax.tree.map(np.asarray, run(keys))


def _pair_sum(config):
    """The largest of a centred pair's sums over two steps, which should be 0."""
    noise, shape = training.noise_of(config), (*training.grid_of(config).shape, 1)

    def of_member(member):
        pair, sign = of_pair(member)
        key = jax.random.fold_in(jax.random.key(config.seed), pair)
        return sign * noise.of_steps(key, shape, 2)

    fields = np.asarray(jax.jit(jax.vmap(of_member))(jnp.arange(4)))
    return np.abs(fields[0::2] + fields[1::2]).max()


def _scramble(config):
    """Scores of members dealt out anew at every place over those of whole members."""
    grid = training.grid_of(config)
    noise = training.noise_of(config)
    channel = noise.num_channels // 2  # of middle length
    shape = (_SCRAMBLED_MEMBERS + 1, _SCRAMBLED_CASES)
    keys = jax.random.split(jax.random.key(config.seed + 1), shape)
    draw = jax.jit(
        jax.vmap(jax.vmap(lambda k: noise(k, (*grid.shape, 1))[..., channel]))
    )
    fields = np.asarray(draw(keys))
    members, truth = fields[1:], jnp.asarray(fields[0])
    rng = np.random.default_rng(config.seed)
    order = np.argsort(rng.uniform(size=members.shape), axis=0)

    @jax.jit
    def score(x):
        return area_crps(x, truth, grid).mean(), wave_crps(x, truth, grid).mean()

    scores = [score(x) for x in (members, np.take_along_axis(members, order, axis=0))]
    return np.divide(scores[1], scores[0])


# Forecasts


def measure(config, archive, forecasts, long_power) -> dict[str, np.ndarray]:
    """Scores of one seed's forecasts `[case, member, lead, lat, lon, variable]`.

    Returns:
        `crps` (fair), `rmse` of the mean, `ssr` and `large_ssr` (of degrees 1 to 5)
        `[lead, variable]`; `power` of members by lead `[lead, variable, l]`;
        `truth_power` `[variable, l]` of all days of the test runs; `distance` of the
        last lead's power in decibel, mean over variables; `long_ratio` of power at the
        long steps over the truth's `[step, variable, l]`; `is_finite`; and `ranks`
        `[lead, member + 1]` of the truth, by area, 1 for a reliable ensemble.
    """
    _, truth = training.data.test_starts(config, archive)
    grid = training.grid_of(config)
    members = np.moveaxis(forecasts, -1, 3).swapaxes(0, 1)  # [member, case, lead, ...]
    truth = np.moveaxis(truth, -1, 2)  # [case, lead, variable, lat, lon]
    found = jax.tree.map(np.asarray, _scored(members, truth, grid))
    days = np.moveaxis(archive["test"], -1, 2)
    truth_power = np.asarray(_power(days, grid)).mean(axis=(0, 1))
    last = config.last_degree
    distance = log_spectral_distance(
        found["power"][-1][:, 1 : last + 1], truth_power[:, 1 : last + 1], first=0
    )
    ratio = long_power.mean(axis=(0, 1)) / np.where(truth_power > 0, truth_power, 1)
    return found | {
        "truth_power": truth_power,
        "distance": np.asarray(distance).mean(),
        "long_ratio": ratio,
        "is_finite": np.isfinite(forecasts).all() & np.isfinite(long_power).all(),
        "ranks": _ranks(members, truth, grid),
    }


def score_members(config, members, truth) -> dict[str, np.ndarray]:
    """The scores of `measure` that need no long forecast, and the truth's power.

    Args:
        config: of the run.
        members: `[member, case, lead, variable, lat, lon]`.
        truth: `[case, lead, variable, lat, lon]`.

    Returns:
        `crps`, `rmse`, `spread`, `ssr`, `large_ssr` `[lead, variable]`; `power` of
        members and `truth_power` `[lead, variable, l]`.
    """
    grid = training.grid_of(config)
    found = _scored(members, truth, grid) | {
        "truth_power": _power(truth, grid).mean(axis=0)
    }
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=1)
def _power(fields, grid):
    return wave_power(to_real_harmonics(fields, grid))


@functools.partial(jax.jit, static_argnums=2)
def _scored(members, truth, grid):
    count = members.shape[0]
    mean = members.mean(axis=0)
    crps = area_crps(members, truth, grid).mean(axis=0)
    error = _power(mean - truth, grid).mean(axis=0)  # [lead, variable, l]
    power = _power(members, grid).mean(axis=(0, 1))
    around = _power(members - mean[None], grid).sum(axis=0) / (count - 1)
    spread = around.mean(axis=0)

    def ratio(degrees):
        # The mean of M members of the truth's own law misses it by (M + 1) / M.
        share = spread[..., degrees].sum(-1) / error[..., degrees].sum(-1)
        return jnp.sqrt(share * (count + 1) / count)

    return {
        "crps": crps,
        "rmse": jnp.sqrt(error.sum(-1)),
        "spread": jnp.sqrt(spread.sum(-1)),
        "ssr": ratio(slice(None)),
        "large_ssr": ratio(slice(1, LARGE + 1)),
        "power": power,
    }


def _ranks(members, truth, grid):
    """Share of area by rank of the truth over that of a reliable ensemble's."""
    below = (members < truth).sum(axis=0)  # [case, lead, variable, lat, lon]
    area = np.broadcast_to(grid.quadrature()[:, None], below.shape)
    count = len(members) + 1
    shares = [
        np.bincount(below[:, i].ravel(), area[:, i].ravel(), count)
        for i in range(below.shape[1])
    ]
    return np.stack([share * count / share.sum() for share in shares])
