"""What `seeds.py` measures of ensembles of one field on a ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import verification

# Between the bins of spread, in deviations of the climate.
SPREAD_EDGES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)


def gaussian(seeds, num_samples: int, seed: int) -> np.ndarray:
    """Samples of a normal distribution at each place, from the seeds' mean and sd."""
    draw = np.random.default_rng(seed).normal(size=(num_samples, *seeds.shape[1:]))
    return (seeds.mean(0) + seeds.std(0, ddof=1) * draw).astype(np.float32)


def measure(ensembles, truth, event: float, *, sizes) -> dict[str, np.ndarray]:
    """Scores of ensembles `[member, case, site]` by name, against truth `[case, site]`.

    Args:
        ensembles: by name, "full" among them.
        truth: what came true.
        event: what a site exceeds in it.
        sizes: numbers of members of the curve.

    Returns:
        For each ensemble `<name>_crps`, `_fair`, `_rmse`, `_ssr`; `_crps_equal` (of as
        many members as "full" has; fewer where there are fewer) and `_curve` `[size]`
        (NaN where there are fewer), both the mean over all subsets; relative to "full"
        `_spread` (mean), `_power` `[wavenumber]` without 0 and `_tail` (share of
        members above the event); `_pattern`, the correlation of its spread with that of
        "full" over cases and sites, and `_pattern_equal`, the same of half as many
        members as "full" has with the second half of "full"; `_counts` `[rank]` and
        `_unreliability` of at most as many members as "full" has; `_reliability` `[3,
        bin]` (probability, frequency, weight) of the event; and `_binned` `[3, bin]`
        (spread, skill, weight).
    """
    found = {}
    full = ensembles["full"]
    half = len(full) // 2
    full_spread, other_spread = full.std(0, ddof=1), full[half:].std(0, ddof=1)
    full_power, full_tail = power(full), max(np.mean(full > event), 1e-9)
    for name, members in ensembles.items():
        spread = members.std(0, ddof=1)
        number = min(len(members), len(full))
        verified = jax.device_get(_verified(members, truth, event, number=number))
        parts = verified.pop("parts")
        values = {
            "crps": expected_crps(parts, len(members)),
            "crps_equal": expected_crps(parts, number),
            "curve": [
                expected_crps(parts, size) if size <= len(members) else np.nan
                for size in sizes
            ],
            "fair": parts.crps,
            "rmse": np.sqrt(np.mean((members.mean(0) - truth) ** 2)),
            "spread": spread.mean() / full_spread.mean(),
            "pattern": correlation(spread, full_spread),
            "pattern_equal": correlation(members[:half].std(0, ddof=1), other_spread),
            "power": power(members) / full_power,
            "tail": np.mean(members > event) / full_tail,
            **verified,
        }
        found |= {
            f"{name}_{key}": np.asarray(v, np.float64) for key, v in values.items()
        }
    return found


@functools.partial(jax.jit, static_argnames="number")
def _verified(members, truth, event, *, number):
    """What is of one ensemble alone, as one program; ranks of `number` members."""
    ranks = verification.rank_histogram(number)(members[:number], truth)
    levels = {"thresholds": jnp.full((1,), event, jnp.float32)}
    table = verification.event_table(num_bins=10)(members, truth, reference=levels)
    diagram = verification.reliability_diagram(table)
    binned = verification.binned_spread_skill(SPREAD_EDGES)(members, truth)
    return {
        "parts": verification.crps_parts("fair")(members, truth),
        "ssr": verification.spread_skill()(members, truth).ratio,
        "counts": ranks.counts,
        "unreliability": ranks.unreliability,
        "reliability": jnp.stack([x[0] for x in diagram]),
        "binned": jnp.stack(binned),
    }


def curve_sizes(num_full: int, num_samples: int) -> list[int]:
    """Numbers of members of `_curve`, up to `num_samples`."""
    sizes = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, num_full, num_samples}
    return sorted(size for size in sizes if size <= num_samples)


def expected_crps(parts, num_members: int):
    """The standard CRPS of so many members, the mean over all subsets of them.

    Args:
        parts: of the fair CRPS of all members.
        num_members: of a subset.
    """
    return parts.skill - (1 - 1 / num_members) * parts.spread / 2


def correlation(first, second) -> float:
    """Of two fields over cases and sites."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def power(members) -> np.ndarray:
    """Mean power of members at each wavenumber above 0, `[wavenumber]`."""
    return np.mean(np.abs(np.fft.rfft(members, axis=-1)) ** 2, axis=(0, 1))[1:]
