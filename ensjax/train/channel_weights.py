"""How much each channel, and each row, of a state counts in a loss of forecasts.

Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), section on the loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

# On a level in the order of the channels, then at the surface.
_LEVEL_VARIABLES = 5  # u, v, t, z, q
_SURFACE_WEIGHTS = (0.1, 0.1, 0.1, 0.1, 1.0, 0.1, 0.1)  # u10 v10 u100 v100 t2m msl tcwv


def variable_weights(levels_hpa: Sequence[float]) -> tuple[float, ...]:
    """w of the channels of FourCastNet 3: pressure / 1000 hPa, 1 for t2m, else 0.1.

    Args:
        levels_hpa: pressure of each level. Channels are u, v, t, z and q of every
            level, then u10, v10, u100, v100, t2m, msl and tcwv.

    Raises:
        ValueError: if a pressure is not positive.
    """
    levels = [float(level) for level in levels_hpa]
    if not all(level > 0 for level in levels):
        raise ValueError(f"levels_hpa must be positive; got {levels}.")
    aloft = [level / 1000 for level in levels for _ in range(_LEVEL_VARIABLES)]
    return (*aloft, *_SURFACE_WEIGHTS)


def change_weights(
    series: Any,
    *,
    area: Any = None,
    weights: Sequence[float] | None = None,
    least_change: float = 1e-4,
) -> tuple[float, ...]:
    """`channel_weights` of a loss by how much a channel changes in a step.

        u_c = w_c sigma_c / sigma_dc

    with sigma_c the deviation of a channel and sigma_dc that of its differences from
    one time to the next, both over all places and times. What changes little in a step,
    and would count for little, then counts as much as what changes much.

    Args:
        series: states `[..., time, lat, lon, channel]`, two times or more; NaN do not
            count. Of states that are standardised sigma_c is near 1.
        area: weights of latitudes `[lat]`, such as `SphericalGrid.quadrature()`; None:
            all alike.
        weights: w, one for each channel; None: all 1.
        least_change: the least sigma_dc, in the units of the states.

    Returns:
        A number for each channel, for `SphericalCrps.channel_weights`.

    Raises:
        ValueError: if shapes do not fit, `least_change` is not positive, or a channel
            has no deviation.
    """
    series = np.asarray(series)
    if series.ndim < 4 or series.shape[-4] < 2:
        raise ValueError(
            "series must be [..., time, lat, lon, channel] with two times or more; got"
            f" shape {series.shape}."
        )
    lat, channels = series.shape[-3], series.shape[-1]
    area = np.ones(lat) if area is None else np.asarray(area, np.float64)
    weights = np.ones(channels) if weights is None else np.asarray(weights, np.float64)
    if area.shape != (lat,) or weights.shape != (channels,):
        raise ValueError(
            f"area must be [{lat}] and weights [{channels}]; got shapes {area.shape}"
            f" and {weights.shape}."
        )
    if not least_change > 0 or not (weights >= 0).all():
        raise ValueError(
            "least_change must be positive and weights not negative; got"
            f" {least_change} and {weights.tolist()}."
        )
    deviation = _deviation(series, area)
    change = _deviation(np.diff(series, axis=-4), area)
    if not (deviation > 0).all():
        channel = int(np.flatnonzero(~(deviation > 0))[0])
        raise ValueError(f"channel {channel} of the series is constant, or all NaN.")
    return tuple((weights * deviation / np.maximum(change, least_change)).tolist())


def area_channel_weights(
    area: Any, channel_weights: Sequence[float] | None = None
) -> tuple[Any, ...]:
    """Weights of area times those of channels, nested tuples `[lat, 1, channel]`.

    The `element_weights` of `RolloutLoss` and `VariationalLoss` for states `[lat, lon,
    channel]`. Without them a loss is a plain mean over the grid, in which a pole counts
    as often as there are longitudes.

    Args:
        area: of each row `[lat]`, in any unit: `SphericalGrid.quadrature()`, where a
            pole that is repeated counts once, or `verification.cell_weights(latitudes)`
            for other rows.
        channel_weights: one for each channel, such as `variable_weights(levels)` or
            `change_weights(...)`; None: all 1, `[lat, 1, 1]`.

    Returns:
        Tuples of mean 1, so that a constant field weighs what it does without.

    Raises:
        ValueError: for weights that are negative or all 0, or have other axes.

    Example:
        >>> from ensjax.train import area_channel_weights
        >>> area_channel_weights([1.0, 2.0, 1.0], [1.0, 3.0])[1]
        ((0.75, 2.25),)
    """
    area = np.asarray(area, np.float64)
    channels = np.asarray([1.0] if channel_weights is None else channel_weights)
    for name, values in (("area", area), ("channel_weights", channels)):
        if values.ndim != 1 or not (values >= 0).all() or not values.sum() > 0:
            raise ValueError(
                f"{name} must be one number of 0 or more for each, not all of them 0;"
                f" got shape {values.shape}, from {values.min(initial=0)} on."
            )
    weights = area[:, None, None] * channels.astype(np.float64)
    return tuple(
        tuple(tuple(row) for row in rows)
        for rows in (weights / weights.mean()).tolist()
    )


def _deviation(values, area):
    """By channel, `[channel]`, weighted by area."""
    share = np.where(np.isnan(values), 0.0, area[:, None, None])
    values = np.nan_to_num(values.astype(np.float64))
    axes = tuple(range(values.ndim - 1))
    total = np.maximum(share.sum(axis=axes), 1e-300)
    mean = (share * values).sum(axis=axes) / total
    return np.sqrt((share * (values - mean) ** 2).sum(axis=axes) / total)
