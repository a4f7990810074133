"""Forecasts at stations: interpolation, heights, weights, error of observations.

A forecast field becomes `[..., station]`, and observations are truth of that shape, so
every metric of this room scores them. NaN is an observation that is missing.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import MOMENTS, needed
from ensjax.verification.metric import Metric

LAPSE_RATE = 0.0065  # K/m, of the standard atmosphere
EARTH_RADIUS_KM = 6371.0


class Stations(NamedTuple):
    """Where stations lie in a grid, made by `find_stations`.

    Attributes:
        index: of the grid points around each, `[corner, station, axis]` integers.
        weight: of each point, `[corner, station]`; they add up to 1.
        shape: of the grid.
    """

    index: np.ndarray
    weight: np.ndarray
    shape: tuple[int, ...]


def find_stations(
    coordinates: Sequence[np.ndarray],
    positions: np.ndarray,
    *,
    periods: Sequence[float | None] | None = None,
    method: str = "linear",
) -> Stations:
    """The grid points around each station, and their weights.

    Args:
        coordinates: of each axis of the grid, rising or falling throughout, such as
            `(latitudes, longitudes)`.
        positions: of the stations in them, `[station, axis]`.
        periods: of each axis, such as `(None, 360.0)`: it closes around the end. None:
            no axis does.
        method: "linear" (bilinear on two axes) or "nearest"; half way between two
            points, the one of the greater coordinate.

    Raises:
        ValueError: if a shape or word does not fit, coordinates are not in order, or a
            station is outside of the grid; names the axis, and the station.

    Example:
        >>> found = find_stations([np.arange(4.0)], np.array([[3.5]]), periods=[4.0])
        >>> at_stations(jnp.array([1.0, 0.0, 0.0, 2.0]), found).tolist()
        [1.5]
    """
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 2 or positions.shape[1] != len(coordinates):
        raise ValueError(
            f"positions must be [station, axis] with {len(coordinates)} axes; got shape"
            f" {positions.shape}."
        )
    if method not in ("linear", "nearest"):
        raise ValueError(f'method must be "linear" or "nearest"; got {method!r}.')
    periods = (None,) * len(coordinates) if periods is None else tuple(periods)
    if len(periods) != len(coordinates):
        raise ValueError(
            f"periods must hold one entry for each of {len(coordinates)} axes; got"
            f" {len(periods)}."
        )
    sides = [
        _along(np.asarray(c, np.float64), positions[:, i], periods[i], i)
        for i, c in enumerate(coordinates)
    ]
    number = len(positions)
    index = np.zeros((1, number, 0), np.int32)
    weight = np.ones((1, number), np.float64)
    for low, high, share in sides:
        if method == "nearest":
            low = np.where(share < 0.5, low, high)
            index = np.concatenate(
                [index, np.tile(low[None, :, None], (len(index), 1, 1))], axis=2
            )
            continue
        pairs = [
            np.concatenate([index, np.tile(x[None, :, None], (len(index), 1, 1))], 2)
            for x in (low, high)
        ]
        index = np.concatenate(pairs)
        weight = np.concatenate([weight * (1 - share), weight * share])
    shape = tuple(len(c) for c in coordinates)
    return Stations(index.astype(np.int32), weight.astype(np.float32), shape)


def _along(points, position, period, axis):
    """Indices below and above each position, and how far it is between them."""
    steps = np.diff(points)
    if (
        points.ndim != 1
        or not len(points)
        or not (np.all(steps > 0) or np.all(steps < 0))
    ):
        raise ValueError(f"coordinates of axis {axis} must rise or fall throughout.")
    order = np.arange(len(points))
    if len(steps) and steps[0] < 0:
        points, order = points[::-1], order[::-1]
    if period is not None:
        if not points[-1] - points[0] < period:
            raise ValueError(
                f"coordinates of axis {axis} span {points[-1] - points[0]:g}, which is"
                f" not less than its period {period:g}: a point is in them twice."
            )
        position = points[0] + np.mod(position - points[0], period)
        points, order = (
            np.append(points, points[0] + period),
            np.append(order, order[0]),
        )
    outside = ~((position >= points[0]) & (position <= points[-1]))
    if outside.any():
        raise ValueError(
            f"station {np.nonzero(outside)[0][0]} is at {position[outside][0]:g} on"
            f" axis {axis}, outside of the grid ({points[0]:g} to {points[-1]:g})."
        )
    high = np.clip(np.searchsorted(points, position, side="right"), 1, None)
    high = np.minimum(high, len(points) - 1)
    low = np.maximum(high - 1, 0)
    gap = points[high] - points[low]
    share = (position - points[low]) / np.where(gap > 0, gap, 1.0)
    return order[low], order[high], share


def at_stations(field: jax.Array, stations: Stations) -> jax.Array:
    """A field at the stations, `[..., station]`; NaN where a point it needs is.

    Apply it to forecast and truth alike where both are fields: interpolation smooths.

    Args:
        field: `[..., *grid]`.
        stations: from `find_stations` of that grid.

    Raises:
        ValueError: if the field is not on the grid.
    """
    field = floating(field)
    axes = len(stations.shape)
    if field.ndim < axes or field.shape[field.ndim - axes :] != stations.shape:
        raise ValueError(
            f"field must be [..., {', '.join(map(str, stations.shape))}], the grid of"
            f" the stations; got shape {field.shape}."
        )
    rows = field.reshape(*field.shape[: field.ndim - axes], -1)
    strides = np.array([int(np.prod(stations.shape[i + 1 :])) for i in range(axes)])
    place = (stations.index * strides).sum(axis=-1)  # [corner, station]
    total = None
    for at, share in zip(place, stations.weight, strict=True):
        wide = share.reshape((1,) * (rows.ndim - 1) + share.shape).astype(field.dtype)
        # A point of no weight may be missing.
        part = jnp.where(wide == 0, 0.0, jnp.take(rows, at, axis=-1) * wide)
        total = part if total is None else total + part
    return total


def to_station_height(
    temperature: jax.Array,
    model_height: jax.Array,
    station_height: jax.Array,
    *,
    lapse_rate: float = LAPSE_RATE,
) -> jax.Array:
    """Temperature taken from the height of the model's ground to that of the station.

        T + 0.0065 K/m (model height - station height)

    Args:
        temperature: `[..., station]`, in K or degrees Celsius.
        model_height: of the model's ground at the stations, `[station]`, in m: from
            `at_stations`, as the temperature.
        station_height: `[station]`, in m.
        lapse_rate: in K/m.

    Raises:
        ValueError: if a height is not `[station]`.
    """
    temperature = floating(temperature)
    heights = [floating(h) for h in (model_height, station_height)]
    for name, height in zip(("model_height", "station_height"), heights, strict=True):
        if height.shape != temperature.shape[-1:]:
            raise ValueError(
                f"{name} must be [station] = {temperature.shape[-1:]}; got shape"
                f" {height.shape}."
            )
    change = lapse_rate * (heights[0] - heights[1])
    return temperature + change.reshape((1,) * (temperature.ndim - 1) + (-1,))


@functools.lru_cache(maxsize=1)
def deflated_error() -> Metric:
    """Root mean square error less the known error of the observations.

        sqrt(<(xbar - y)^2 - s^2>)

    What the error would be against the truth, if errors of observations are independent
    of the forecast's. NaN where the mean is negative. Its reference is
    {"observation_sd": s}, `[*truth]`.
    """

    def statistics(moments, truth, reference):
        error = needed(reference, "observation_sd", truth.shape)
        return {"squared": moments.error**2 - error**2}

    return Metric(
        MOMENTS, statistics, lambda mean: jnp.sqrt(mean["squared"]), best="low"
    )


def density_weights(distances: np.ndarray, radius: float) -> np.ndarray:
    """Weights of stations that lie unevenly, `[station]` with mean 1, NumPy.

        1 / (number of stations within the radius, itself among them)

    Args:
        distances: between all of them, `[station, station]`, such as of
            `great_circle_km`.
        radius: in the same unit, not negative.

    Raises:
        ValueError: if `distances` is not square or the radius is negative.
    """
    distances = np.asarray(distances, np.float64)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(
            f"distances must be [station, station]; got shape {distances.shape}."
        )
    if not radius >= 0:
        raise ValueError(f"radius must not be negative; got {radius}.")
    weights = 1.0 / np.maximum((distances <= radius).sum(axis=1), 1)
    return weights / weights.mean()


def great_circle_km(latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """Distances between all pairs of places on the earth, `[station, station]`, NumPy.

    Args:
        latitudes, longitudes: in degrees, `[station]`.
    """
    lat, lon = (np.radians(np.asarray(x, np.float64)) for x in (latitudes, longitudes))
    # The haversine form: that of the cosine loses near places.
    half = np.sin((lat[:, None] - lat[None]) / 2) ** 2
    half += (
        np.cos(lat[:, None])
        * np.cos(lat[None])
        * (np.sin((lon[:, None] - lon[None]) / 2) ** 2)
    )
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
