"""What `crps_forecast.py` measures of ensembles of the two-scale Lorenz-96.

Ensembles are `[member, case, lead, site]` and truth `[case, lead, site]`, in deviations
of the climate. Cases start from independent states of the climate, so that a block of
the bootstrap is one case.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification import (
    crps,
    draw_blocks,
    member_activity,
    rank_histogram,
    root_mean_square_error,
    spread_skill,
)

BLOCK_CASES = 1
_LEADS = (0, 2)  # axes that are averaged over, where leads are kept


def by_lead(members, truth) -> dict[str, np.ndarray]:
    """Scores at every lead, `[lead]` each.

    Returns:
        `fair` (of one member its absolute error), `rmse` of the mean, `ssr` (0 for one
        member) and `activity`, that of single members over that of the truth.
    """
    found = _by_lead(jnp.asarray(members), jnp.asarray(truth))
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


@jax.jit
def _by_lead(members, truth):
    is_one = members.shape[0] == 1
    zeros = {"climatology": jnp.zeros_like(truth)}
    activity = member_activity().over(*_LEADS)(members, truth, reference=zeros)
    score = crps("standard" if is_one else "fair").over(*_LEADS)
    ssr = jnp.zeros(truth.shape[1])
    if not is_one:
        ssr = spread_skill().over(*_LEADS)(members, truth).ratio
    return {
        "fair": score(members, truth),
        "rmse": root_mean_square_error().over(*_LEADS)(members, truth),
        "ssr": ssr,
        "activity": activity[0] / activity[1],
    }


def rank_counts(members, truth, leads) -> np.ndarray:
    """Counts of the truth's rank at some leads, `[lead, rank]`."""
    metric = rank_histogram(len(members)).over(*_LEADS)
    places = np.asarray(leads) - 1
    found = _scored(metric, members[:, :, places], truth[:, places])
    return np.asarray(found.counts, np.float64)


@functools.partial(jax.jit, static_argnames="metric")
def _scored(metric, members, truth):
    return metric(members, truth)


# Variables of a cell beside a lead, on the ring of sites.
def _as_it_is(x):
    return x


def _step_along(x):
    return jnp.roll(x, -1, axis=-1) - x


def _wide_mean(x):
    """The mean of nine sites: the large scale."""
    return sum(jnp.roll(x, shift, axis=-1) for shift in range(-4, 5)) / 9


VARIABLES = {"x": _as_it_is, "difference": _step_along, "mean of 9": _wide_mean}


def cells(members, other, truth, key, num_resamples) -> dict[str, np.ndarray]:
    """Fair CRPS of two systems in cells of variable and lead, compared in pairs.

    Returns:
        `first` and `second` `[variable, lead]`, the `share` of cells in which the first
        is lower, and the ends of its bootstrap interval over cases, `low` and `high`.
    """
    found = [
        np.stack([_by_case(x, truth, variable=name) for name in VARIABLES])
        for x in (members, other)
    ]  # [variable, case, lead]
    counts = np.asarray(
        draw_blocks(
            key,
            truth.shape[0],
            block_length=BLOCK_CASES,
            num_resamples=num_resamples,
        )
    )
    first, second = (np.einsum("rc,vcl->rvl", counts, x) for x in found)
    shares = (first < second).mean(axis=(1, 2))
    low, high = np.quantile(shares, (0.025, 0.975))
    means = [x.mean(axis=1) for x in found]
    return {
        "first": means[0],
        "second": means[1],
        "share": np.float64((means[0] < means[1]).mean()),
        "low": np.float64(low),
        "high": np.float64(high),
    }


@functools.partial(jax.jit, static_argnames="variable")
def _by_case(members, truth, *, variable):
    see = VARIABLES[variable]
    return crps("fair").over(2)(see(members), see(truth))


def sizes(members, truth, numbers, key, num_resamples) -> dict[str, np.ndarray]:
    """Whether the first few of many members score as all of them.

    Sizes share the cases, so that their differences are compared in pairs: intervals of
    the scores themselves are those of the cases, and overlap whatever the members are.
    The spread-skill ratio is compared in its unbiased form, which members that are
    exchangeable have alike at any number; the other one, off 1, has not.

    Returns:
        `fair` `[size, 3]`, the mean over leads with the ends of its bootstrap interval
        over cases; `ssr` and `unbiased_ssr` `[size, lead]`; `difference` `[size, 3]` of
        the fair score of so many from that of the most, in pairs, and `ssr_difference`
        likewise of the unbiased ratio, means over leads; `furthest` `[2]` (fair score,
        ratio), the largest difference of any size at any lead, of half the width of its
        interval, where intervals of all sizes, leads and both scores hold at once at 95
        %; and `permuted`, the largest change of a score by lead if members change
        places.
    """
    members, truth = jnp.asarray(members), jnp.asarray(truth)
    counts = draw_blocks(
        key, len(truth), block_length=BLOCK_CASES, num_resamples=num_resamples
    )
    # The first row is what was seen: every case once.
    counts = jnp.concatenate([jnp.ones((1, len(truth))), counts])
    rows = [_resampled(counts, members[:number], truth) for number in numbers]
    fair, unbiased = (
        np.stack([np.asarray(row[i], np.float64) for row in rows]) for i in range(2)
    )  # [size, resample, lead]
    less = [x[:-1] - x[-1:] for x in (fair, unbiased)]
    order = np.random.default_rng(0).permutation(len(members))
    moved, still = by_lead(members[order], truth), by_lead(members, truth)
    return {
        "fair": _with_ends(fair.mean(axis=-1)),
        "ssr": np.stack([by_lead(members[:n], truth)["ssr"] for n in numbers]),
        "unbiased_ssr": unbiased[:, 0],
        "difference": _with_ends((fair - fair[-1:]).mean(axis=-1)),
        "ssr_difference": _with_ends((unbiased - unbiased[-1:]).mean(axis=-1)),
        "furthest": _furthest(np.stack(less)),
        "permuted": np.max(
            [np.abs(moved[n] - still[n]).max() for n in ("fair", "ssr")]
        ),
    }


@jax.jit
def _resampled(counts, members, truth):
    """Fair score and unbiased ratio `[resample, lead]`, of sums over cases."""
    own = spread_skill().over(2)(members, truth)  # [case, lead]
    variance = own.spread**2
    debiased = own.skill**2 - variance / len(members)

    def total(x):
        return jnp.einsum("rc,cl->rl", counts, x, precision="highest")

    fair = total(crps("fair").over(2)(members, truth)) / len(truth)
    return fair, jnp.sqrt(total(variance) / total(debiased))


def _with_ends(draws):
    """What was seen and the ends of its interval, `[size, 3]`, of `[size, 1 + n]`."""
    ends = np.quantile(draws[:, 1:], (0.025, 0.975), axis=1)
    return np.stack([draws[:, 0], *ends], axis=1)


def _furthest(draws):
    """Of `[score, size, 1 + n, lead]`, in half-widths that hold for all at once.

    The half-width is a multiple of the bootstrap's deviation: the multiple that the
    largest of all stays below in 95 % of the resamples.
    """
    seen, drawn = draws[:, :, :1], draws[:, :, 1:]
    deviation = drawn.std(axis=2, keepdims=True)
    most = np.max(np.abs(drawn - seen) / deviation, axis=(0, 1, 3))
    own = np.max(np.abs(seen) / deviation, axis=(1, 2, 3))
    return own / np.quantile(most, 0.95)


# Means of some outputs, raw and as anomalies from hindcasts.


def late_means(values, leads, num_outputs) -> np.ndarray:
    """Means of outputs that end at some leads, `[..., lead, site]`."""
    parts = [values[..., lead - num_outputs : lead, :].mean(axis=-2) for lead in leads]
    return np.stack(parts, axis=-2)


def drift(amplitude, num_sites, num_leads, output_length) -> np.ndarray:
    """A known drift of a simulator, `[lead, site]`, in deviations of the climate."""
    place = np.sin(6 * np.pi * np.arange(num_sites) / num_sites)
    time = output_length * (1 + np.arange(num_leads))
    return amplitude * np.outer(1 - np.exp(-time / 2), place)


def anomaly_ratios(emulated, truth, hindcasts, simulated, usual) -> np.ndarray:
    """Fair CRPS of the emulator over that of simulators, `[raw or anomaly, simulator,
    lead]`.

    Args:
        emulated: means `[member, case, lead, site]`.
        truth: `[case, lead, site]`.
        hindcasts: of other cases "emulated" `[member, case, lead, site]` and "truth"
            `[case, lead, site]`, from which each one's climatology by lead and place is
            taken.
        simulated: of every simulator `[member, case, lead, site]`.
        usual: of every simulator its climatology `[lead, site]`.
    """
    own = {
        name: np.asarray(x).mean(axis=tuple(range(np.ndim(x) - 2)))
        for name, x in hindcasts.items()
    }
    score = functools.partial(_scored, crps("fair").over(*_LEADS))
    found = np.zeros((2, len(simulated), truth.shape[1]))
    for number, (other, climate) in enumerate(zip(simulated, usual, strict=True)):
        pairs = (
            (emulated, other, truth),
            (emulated - own["emulated"], other - climate, truth - own["truth"]),
        )
        for kind, (first, second, seen) in enumerate(pairs):
            seen = jnp.asarray(seen, jnp.float32)
            first, second = (
                score(jnp.asarray(x, jnp.float32), seen) for x in (first, second)
            )
            found[kind, number] = np.asarray(first / second)
    return found
