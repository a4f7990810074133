"""Level 0 of `spherical_noise.py`: noise against theory; and scores of forecasts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.ops.sphere import to_real_harmonics, wave_power
from ensjax.train import area_crps, wave_crps
from ensjax.verification import log_spectral_distance

training = load_beside(__file__, "spherical_noise_training")

LARGE = 5  # the last degree of what is called large scales
_DRAWS = 2_000  # of 500 the longest scale's deviation is known to .015 only
_SCRAMBLED_CASES, _SCRAMBLED_MEMBERS = 60, 8
_SCRAMBLED_KM = 2100.0  # the channel nearest to it is scrambled
_RADIUS_KM = 6370.0


# Level 0


def noise_statistics(config) -> dict[str, np.ndarray]:
    """The noise of many members at two steps, against theory; and the scramble test.

    All of it is measured on fields, and the theory is written out here, not asked of
    the noise (`published_power`, `row_errors`).

    Returns:
        By channel: `sd` of a place, how far from 1 it is in standard errors,
        `sd_errors`, `lag` (correlation of one step with the next) and
        `lag_expected`, `power` and `power_expected` `[channel, l]`; `power_errors` and
        `latitude_errors`, the largest deviations of a degree and of a row of places in
        standard errors; `contrast_errors`, that of the poles' variance from the
        equator's; `pair_sum` and `pair_sd`, of members of a centred loss, see
        `_pairs`; `scramble_places` and `scramble_waves`, ratios of scores of scrambled
        members to those of whole ones; and `fields` `[2, channel, lat, lon]` of the
        first draw at both steps.
    """
    noise, grid = training.noise_of(config), training.grid_of(config)
    lengths = np.asarray(config.noise.lengths_km)
    before, fields = _draws(noise, config.seed)  # [draw, lat, lon, channel]
    area = grid.quadrature() / 2
    squares = (fields**2).mean(axis=2)  # [draw, lat, channel]
    by_latitude = squares.mean(axis=0)
    power = np.asarray(_power(np.moveaxis(fields, -1, 1), grid)).mean(axis=0)
    expected = published_power(lengths, grid.degree)
    degree = np.arange(grid.degree + 1)
    error = np.sqrt(2 / ((2 * degree + 1) * _DRAWS))
    is_there = expected > 1e-9  # below, the float32 of a field has its own power
    off = np.where(is_there, np.abs(power / np.where(is_there, expected, 1) - 1), 0)
    sd_error = deviation_error(expected) / np.sqrt(_DRAWS)
    row_error = row_errors(expected, grid) / np.sqrt(_DRAWS)  # [channel, lat]
    places, waves = _scramble(config)
    pair_sum, pair_sd = _pairs(config)
    both = [np.einsum("dijc,dijc,i->c", x, y, area) for x, y in
            ((before, fields), (before, before), (fields, fields))]  # fmt: skip
    sd = np.sqrt(area @ by_latitude)
    return {
        "sd": sd,
        "sd_errors": np.abs(sd - 1) / sd_error,
        "lag": both[0] / np.sqrt(both[1] * both[2]),
        "lag_expected": np.full(len(lengths), np.exp(-config.noise.lambd)),
        "power": power,
        "power_expected": expected,
        "power_errors": (off / error).max(axis=1),
        "latitude_errors": (np.abs(by_latitude.T - 1) / row_error).max(axis=1),
        "contrast_errors": _contrast_errors(squares, grid),
        "pair_sum": np.float64(pair_sum),
        "pair_sd": np.float64(pair_sd),
        "scramble_places": np.float64(places),
        "scramble_waves": np.float64(waves),
        "fields": np.moveaxis(np.stack([before[0], fields[0]]), -1, 1),
    }


def deviation_error(power) -> np.ndarray:
    """Standard error of a field's deviation by one draw, `[...]`, of its expected one.

    The mean square over the sphere is the sum of all waves' powers, of which a degree
    has 2 l + 1; its root has half of its relative error.

    Args:
        power: expected by degree, `[..., l]`.
    """
    degree = np.arange(power.shape[-1])
    share = power / power.sum(axis=-1, keepdims=True)
    return np.sqrt((share**2 / (2 * degree + 1)).sum(axis=-1) / 2)


def published_power(lengths_km, last_degree) -> np.ndarray:
    """Power by degree of noise of variance 1, as published, `[channel, l]`.

        P_l = (2 l + 1) exp(-kT l (l + 1)) / F0,   kT = (L / R)^2 / 2,

    with F0 the sum of the same over l >= 1; no power at l = 0, and none beyond the last
    degree. Source: Bonev et al. 2025, arXiv:2507.12144, of the noise.
    """
    kt = 0.5 * (np.asarray(lengths_km, np.float64)[:, None] / _RADIUS_KM) ** 2
    degree = np.arange(last_degree + 1)
    # Against degree 1, so that the longest noise does not underflow.
    power = (2 * degree + 1) * np.exp(-kt * (degree * (degree + 1) - 2))
    power[:, 0] = 0
    return power / power.sum(axis=1, keepdims=True)


def row_errors(power, grid) -> np.ndarray:
    """Deviation of one draw's mean of squares along a row of places, `[channel, lat]`.

    Of a Gaussian field with this power by degree, whose places at an angle g have the
    correlation r(g) = sum_l P_l legendre_l(cos g): the variance of the mean of squares
    is 2 mean r^2 over the row. Near a pole a row is one place, and r is 1.
    """
    sine = np.sin(np.radians(grid.latitudes()))
    turn = 2 * np.pi * np.arange(grid.num_longitudes) / grid.num_longitudes
    cosine = sine[:, None] ** 2 + (1 - sine[:, None] ** 2) * np.cos(turn)
    series = np.polynomial.legendre.legval(cosine, np.asarray(power).T)
    return np.sqrt(2 * (series**2).mean(axis=-1))


def _contrast_errors(squares, grid):
    """Variance of the poles less the equator's, in standard errors, `[channel]`.

    The mean of f^2 legendre_2(sin latitude) over the sphere is 0 if the variance is the
    same everywhere; its standard error is that of the draws. All rows count in it.
    """
    sine = np.sin(np.radians(grid.latitudes()))
    weight = grid.quadrature() / 2 * (1.5 * sine**2 - 0.5)
    contrast = np.einsum("dic,i->dc", squares, weight)
    error = contrast.std(axis=0, ddof=1) / np.sqrt(len(contrast))
    return np.abs(contrast.mean(axis=0)) / error


def _draws(noise, seed):
    """Fields of many members at two steps, `[draw, lat, lon, channel]` each."""

    @jax.jit
    def run(keys):
        def of_member(key):
            state = noise.init(key)
            later = noise.step(state, jax.random.fold_in(key, 1))
            return noise.to_grid(state), noise.to_grid(later)

        return jax.vmap(of_member)(keys)

    keys = jax.random.split(jax.random.key(seed), _DRAWS)
    return jax.tree.map(np.asarray, run(keys))


def _pairs(config):
    """The noise of the members of a centred loss, seen by a network that shows it.

    Returns:
        The largest |member 2k + member 2k + 1|, which should be 0; and the deviation of
        the mean of the pairs' first members, over 1 / root of the pairs: 1 if the pairs
        are different draws, and 0 if there is no noise.
    """
    num_pairs = 16
    stage = (2, 1e-3, "fair", 1, 2 * num_pairs, True)
    score = training.loss_of(config, stage).rollout.score
    shape = (*training.grid_of(config).shape, len(config.noise.lengths_km))
    key = jax.random.key(config.seed)
    fields = jax.jit(lambda k: score.members(lambda noise, _: noise, k, shape, None))
    first, second = np.asarray(fields(key)).reshape(num_pairs, 2, *shape).swapaxes(0, 1)
    mean = first.mean(axis=0) * np.sqrt(num_pairs)
    area = training.grid_of(config).quadrature() / 2
    return np.abs(first + second).max(), np.sqrt(area @ (mean**2).mean(axis=(1, 2)))


def _scramble(config):
    """Scores of members dealt out anew at every place over those of whole members."""
    grid = training.grid_of(config)
    noise = training.noise_of(config)
    lengths = np.asarray(config.noise.lengths_km)
    channel = int(np.abs(np.log(lengths / _SCRAMBLED_KM)).argmin())
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


def measure(config, archive, forecasts, longer) -> dict[str, np.ndarray]:
    """Scores of one seed's forecasts.

    Args:
        config: of the run.
        archive: of `simulate`.
        forecasts: `[case, member, lead, lat, lon, variable]`.
        longer: of the first members, `[case, member, step, lat, lon, variable]`.

    Returns:
        `rmse` of the mean and `large_ssr` (spread over error of degrees 1 to 5) `[lead,
        variable]`; what `of_runs` gives, of all runs; by run of the test, which is what
        it is made of, `crps_by_run` `[run, lead, variable]`, `power_by_run` and
        `long_power_by_run` `[run, lead, variable, l]`, `truth_power_by_run` `[run,
        variable, l]` of all its days, and `error_by_run` and `spread_by_run` `[run,
        lead and step, variable]`, the mean square of the error and what it is of a
        reliable ensemble; `is_finite`;
        `ranks` `[lead, member + 1]` and `long_ranks` of the truth, by area, 1 for a
        reliable ensemble.
    """
    grid = training.grid_of(config)
    _, truth = training.data.test_starts(config, archive)
    near = _with_members_first(forecasts, truth)
    far = _with_members_first(longer, training.data.long_truth(config, archive))
    found = jax.tree.map(np.asarray, _scored(*near, grid))
    days = np.moveaxis(archive["test"], -1, 2)
    cases = [jax.tree.map(np.asarray, _by_case(*both, grid)) for both in (near, far)]
    of_run = functools.partial(_of_run, len(archive["test"]))
    by_run = {
        "crps_by_run": of_run(cases[0]["crps"]),
        "power_by_run": of_run(cases[0]["power"]),
        "long_power_by_run": of_run(cases[1]["power"]),
        "truth_power_by_run": np.asarray(_power(days, grid)).mean(axis=1),
    }
    # The mean of M members of the truth's own law misses it by (M + 1) / M.
    shares = [(len(members) + 1) / len(members) for members, _ in (near, far)]
    for name, factors in (("error", (1, 1)), ("spread", shares)):
        sums = [x * c[name].sum(axis=-1) for x, c in zip(factors, cases, strict=True)]
        by_run[f"{name}_by_run"] = of_run(np.concatenate(sums, axis=1))
    whole = of_runs(config, {name: x[None] for name, x in by_run.items()})
    kept = {name: found[name] for name in ("rmse", "large_ssr")}
    return kept | by_run | {name: x[0, 0] for name, x in whole.items()} | {
        "is_finite": np.isfinite(forecasts).all() & np.isfinite(longer).all(),
        "ranks": _ranks(*near, grid),
        "long_ranks": _ranks(*far, grid),
    }  # fmt: skip


def _of_run(num_runs, x):
    """Means of the cases of each run, `[run, ...]`: all runs have as many."""
    return np.asarray(x).reshape(num_runs, -1, *x.shape[1:]).mean(axis=1)


def of_runs(config, by_run, weights=None) -> dict[str, np.ndarray]:
    """Scores where the runs of the test have weights, of all or drawn again.

    Args:
        config: of the run.
        by_run: what `measure` gives by run, of seeds, `[seed, run, ...]`.
        weights: of runs, that add to 1, `[draw, run]`; None: one draw, all equal.

    Returns:
        `[draw, seed, ...]`: `crps` (fair) `[lead, variable]`; `power` of members by
        lead `[lead, variable, l]` and `truth_power` `[variable, l]`; `distance` of the
        last lead's power from it in decibel, mean over variables; `long_ratio` of power
        at the long steps over the truth's `[step, variable, l]`; `ssr` `[lead,
        variable]` and `long_ssr` `[step, variable]`, spread over error.
    """
    num_runs = by_run["error_by_run"].shape[1]
    weights = np.full((1, num_runs), 1 / num_runs) if weights is None else weights
    mean = {
        name.removesuffix("_by_run"): np.einsum(
            "dr,sr...->ds...", weights, by_run[name]
        )
        for name in RUN_SCORES
    }
    last, truth = slice(1, config.last_degree + 1), mean["truth_power"]
    distance = log_spectral_distance(
        mean["power"][:, :, -1, :, last], truth[..., last], first=0
    )
    num_leads = len(config.test.lead_days)
    with np.errstate(invalid="ignore"):  # of networks that ran away
        share = np.sqrt(mean["spread"] / mean["error"])
    ratio = mean["long_power"] / np.where(truth > 0, truth, 1)[:, :, None]
    return {
        "crps": mean["crps"],
        "power": mean["power"],
        "truth_power": truth,
        "distance": np.asarray(distance).mean(axis=-1),
        "long_ratio": ratio,
        "ssr": share[:, :, :num_leads],
        "long_ssr": share[:, :, num_leads:],
    }


RUN_SCORES = (
    "crps_by_run",
    "power_by_run",
    "long_power_by_run",
    "truth_power_by_run",
    "error_by_run",
    "spread_by_run",
)


def _with_members_first(forecasts, truth):
    """`[member, case, lead, variable, lat, lon]`, and `[case, lead, ...]`."""
    return np.moveaxis(forecasts, -1, 3).swapaxes(0, 1), np.moveaxis(truth, -1, 2)


def score_members(config, members, truth) -> dict[str, np.ndarray]:
    """The scores of `measure` that need no long forecast, and the truth's power.

    Args:
        config: of the run.
        members: `[member, case, lead, variable, lat, lon]`.
        truth: `[case, lead, variable, lat, lon]`.

    Returns:
        `crps`, `rmse`, `spread`, `ssr`, `large_ssr` `[lead, variable]`; `crps_by_run`
        `[run, lead, variable]`; `power` of members and `truth_power` `[lead, variable,
        l]`.
    """
    grid, num_runs = training.grid_of(config), config.data.num_test_runs
    found = _scored(members, truth, grid) | {
        "crps_by_run": _of_run(num_runs, _by_case(members, truth, grid)["crps"]),
        "truth_power": _power(truth, grid).mean(axis=0),
    }
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=1)
def _power(fields, grid):
    return wave_power(to_real_harmonics(fields, grid))


@functools.partial(jax.jit, static_argnums=2)
def _by_case(members, truth, grid):
    """Power, mean squares of error and spread `[case, ..., l]`, and CRPS."""
    mean = members.mean(axis=0)
    around = _power(members - mean[None], grid).sum(axis=0) / (members.shape[0] - 1)
    return {
        "crps": area_crps(members, truth, grid),
        "power": _power(members, grid).mean(axis=0),
        "error": _power(mean - truth, grid),
        "spread": around,
    }


@functools.partial(jax.jit, static_argnums=2)
def _scored(members, truth, grid):
    count = members.shape[0]
    cases = _by_case(members, truth, grid)
    crps, power, error, spread = (
        cases[name].mean(axis=0) for name in ("crps", "power", "error", "spread")
    )  # [lead, variable], and [lead, variable, l]

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
