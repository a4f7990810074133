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
    bootstrap_comparison,
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


@functools.partial(jax.jit, static_argnames="metric")
def _summed(metric, members, truth):
    return metric.sums(members, truth)


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

    Returns:
        `fair` `[size, 3]`, the mean over leads with the ends of its bootstrap interval
        over cases; `ssr` `[size]`; `difference` `[size, 3]` of the fair score of so
        many from that of the most, in pairs; and `permuted`, the largest change of a
        score by lead if members change places.
    """
    members, truth = jnp.asarray(members), jnp.asarray(truth)
    metric = crps("fair").over(1, 2)
    sums = [_summed(metric, members[:number], truth) for number in numbers]
    scores = [by_lead(members[:number], truth) for number in numbers]
    blocks = dict(block_length=BLOCK_CASES, num_resamples=num_resamples)
    fair, differences = [], []
    for own in sums:
        compared = bootstrap_comparison(key, metric, own, sums[-1], **blocks)
        fair.append([float(x) for x in compared.first])
        differences.append([float(x) for x in compared.difference])
    order = np.random.default_rng(0).permutation(len(members))
    moved, still = by_lead(members[order], truth), scores[-1]
    return {
        "fair": np.array(fair),
        "ssr": np.array([x["ssr"].mean() for x in scores]),
        "difference": np.array(differences),
        "permuted": np.max(
            [np.abs(moved[n] - still[n]).max() for n in ("fair", "ssr")]
        ),
    }


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


def anomaly_ratios(emulated, simulated, truth, hindcasts, drifts) -> np.ndarray:
    """Fair CRPS of the emulator over that of the simulator, `[raw or anomaly, drift,
    lead]`.

    Args:
        emulated, simulated: means `[member, case, lead, site]`, without drift.
        truth: `[case, lead, site]`.
        hindcasts: of other cases "emulated" and "simulated" `[member, case, lead,
            site]` and "truth" `[case, lead, site]`, from which each one's climatology
            by lead and place is taken.
        drifts: of the simulator, `[drift, lead, site]`.
    """
    usual = {
        name: np.asarray(x).mean(axis=tuple(range(np.ndim(x) - 2)))
        for name, x in hindcasts.items()
    }
    score = functools.partial(_scored, crps("fair").over(*_LEADS))
    found = np.zeros((2, len(drifts), truth.shape[1]))
    for number, own in enumerate(drifts):
        moved = simulated + own
        pairs = (
            (emulated, moved, truth),
            (
                emulated - usual["emulated"],
                moved - (usual["simulated"] + own),
                truth - usual["truth"],
            ),
        )
        for kind, (first, second, seen) in enumerate(pairs):
            seen = jnp.asarray(seen, jnp.float32)
            first, second = (
                score(jnp.asarray(x, jnp.float32), seen) for x in (first, second)
            )
            found[kind, number] = np.asarray(first / second)
    return found
