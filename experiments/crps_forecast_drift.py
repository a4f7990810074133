"""A simulator of `crps_forecast.py` whose drift is in its equations.

A drift that is added to what a simulator gives is taken off by the climatology of its
hindcasts to the last digit, whatever the simulator is. Here a forcing that differs by
place is added to the tendency instead, and the flow makes of it what it does: the mean
moves, and so do the errors about it, which no climatology takes off.
"""

import dataclasses

import numpy as np

from ensjax.emulate.closure import ClosureLorenz96
from ensjax.emulate.trajectories import forecast, run_trajectories
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch

lorenz = load_beside(__file__, "lorenz96_forecasts")

# Forcings, in units of the tendency, of which the drift is measured.
PUSHES = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 11.0, 12.0, 13.0, 14.0, 16.0, 20.0)
_CALIBRATION, _FORECASTS = 700, 1_000  # apart from all other draws of a seed


def pattern(num_sites: int) -> np.ndarray:
    """`sin(6 pi k / K)` of site k, as of the drift that is added, `[site]`."""
    return np.sin(6 * np.pi * np.arange(num_sites) / num_sites)


@dataclasses.dataclass(frozen=True)
class _Pushed:
    system: ClosureLorenz96
    lead_steps: tuple[int, ...]

    def __call__(self, key, x, push):
        own = self.system
        # What is taken off the forcing may differ by place.
        offset = own.offset - push * pattern(own.num_sites).astype(np.float32)
        pushed = dataclasses.replace(own, offset=offset)
        return forecast(pushed, pushed.begin(x, key), self.lead_steps)[:, 0]


def pushed_ensemble(config, archive, starts, pushes, num_members, seed) -> np.ndarray:
    """Forecasts of the simulator with forcings that differ by place.

    Args:
        config: of the run.
        archive: of a seed.
        starts: `[case, site]`, in deviations.
        pushes: amplitudes of the forcing, in units of the tendency.
        num_members: of each case and forcing.
        seed: of the noise, which is another for every row.

    Returns:
        `[push, member, case, lead, site]` at all leads, in deviations, float32.
    """
    shape = (len(pushes), num_members, *starts.shape)
    states = np.broadcast_to(starts * archive["sd"] + archive["mean"], shape)
    own = np.repeat(np.asarray(pushes, np.float32), num_members * len(starts))
    steps = 2 * (1 + np.arange(config.archive.num_leads))
    found = run_trajectories(
        _Pushed(lorenz.closure_of(config, archive), tuple(steps.tolist())),
        np.arange(len(own)),
        seed=seed,
        stacked=(states.reshape(-1, shape[-1]).astype(np.float32), own),
    )
    found = (fetch(found) - archive["mean"]) / archive["sd"]
    found = found.reshape(*shape[:3], *found.shape[1:])
    return found.astype(np.float32)


def amplitude(drift) -> np.ndarray:
    """Of the wave with the pattern's length in a drift `[..., site]`, at any phase."""
    angle = 6 * np.pi * np.arange(drift.shape[-1]) / drift.shape[-1]
    parts = (2 * np.mean(drift * wave(angle), axis=-1) for wave in (np.sin, np.cos))
    return np.hypot(*parts)


def pushes_of(config, archive, starts, seed) -> np.ndarray:
    """Forcings with which the mean drifts by `config.drifts` at the end, `[drift]`.

    The mean over starts at all leads of the last quarter, in deviations, is measured at
    the forcings `PUSHES` and interpolated; beyond the last one it is that one.
    """
    made = pushed_ensemble(config, archive, starts, PUSHES, 1, seed)
    last = made[..., -max(1, config.archive.num_leads // 4) :, :]
    means = last.mean(axis=(1, 2, 3))  # [push, site]
    size = np.maximum.accumulate(amplitude(means - means[0]))
    return np.interp(config.drifts, size, PUSHES)


def measure(config, archive, own, others, seed, means) -> dict[str, np.ndarray]:
    """Forecasts and hindcasts of the simulators that drift by `config.drifts`.

    Args:
        config: of the run.
        archive: of a seed.
        own: starts that are verified, `[case, site]`.
        others: of hindcasts.
        seed: of the seed.
        means: what is kept of `[..., lead, site]`: means that end at some leads.

    Returns:
        `forecasts` and `hindcasts` `[drift, member, case, lead, site]` of means;
        `pushes` `[drift]`; and `amplitudes` `[drift, lead]`, how far the mean of all
        hindcasts is from that without a forcing.
    """
    first = seed * _FORECASTS
    pushes = pushes_of(config, archive, others, first + _CALIBRATION)
    made = {
        name: means(
            pushed_ensemble(config, archive, starts, pushes, count, first + draw)
        )
        for name, starts, count, draw in (
            ("forecasts", own, config.num_members, _CALIBRATION + 1),
            ("hindcasts", others, config.num_hindcast_members, _CALIBRATION + 2),
        )
    }
    climates = made["hindcasts"].mean(axis=(1, 2))
    still = climates[np.argmin(np.abs(pushes))]
    return made | {"pushes": pushes, "amplitudes": amplitude(climates - still)}
