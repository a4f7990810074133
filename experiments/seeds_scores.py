"""What `seeds.py` measures of ensembles of one field on a ring."""

import numpy as np

from ensjax import verification


def gaussian(seeds, num_samples: int, seed: int) -> np.ndarray:
    """Samples of a normal distribution at each place, from the seeds' mean and sd."""
    draw = np.random.default_rng(seed).normal(size=(num_samples, *seeds.shape[1:]))
    return (seeds.mean(0) + seeds.std(0, ddof=1) * draw).astype(np.float32)


def measure(ensembles, truth, event: float) -> dict[str, np.ndarray]:
    """Scores of ensembles `[member, case, site]` by name, against truth `[case, site]`.

    Returns:
        For each ensemble `<name>_crps`, `_fair`, `_rmse`, `_ssr`, `_spread` (mean),
        `_pattern` (correlation of its spread with that of "full" over cases and sites),
        `_power` `[wavenumber]` relative to "full", without 0, and `_tail` (share of
        members above the event relative to "full"); `_crps_equal` has as many members
        as "full".
    """
    found = {}
    full = ensembles["full"]
    full_spread, full_power = full.std(0, ddof=1), power(full)
    for name, members in ensembles.items():
        skill = verification.spread_skill()(members, truth)
        spread = members.std(0, ddof=1)
        values = {
            "crps": verification.crps()(members, truth),
            "crps_equal": verification.crps()(members[: len(full)], truth),
            "fair": verification.crps("fair")(members, truth),
            "rmse": np.sqrt(np.mean((members.mean(0) - truth) ** 2)),
            "ssr": skill[2],
            "spread": spread.mean() / full_spread.mean(),
            "pattern": np.corrcoef(spread.ravel(), full_spread.ravel())[0, 1],
            "power": power(members) / full_power,
            "tail": np.mean(members > event) / max(np.mean(full > event), 1e-9),
        }
        found |= {f"{name}_{key}": np.asarray(v) for key, v in values.items()}
    return found


def power(members) -> np.ndarray:
    """Mean power of members at each wavenumber above 0, `[wavenumber]`."""
    return np.mean(np.abs(np.fft.rfft(members, axis=-1)) ** 2, axis=(0, 1))[1:]
