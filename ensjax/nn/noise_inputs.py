"""Noise for networks that make members of it, beside white noise at each place.

Each is a function of a key and the shape of a state, `noise(key, [*space, channel])`,
hashable and compared by value, as `NoiseCrps` takes it. `train.WhiteNoise` draws at
each place; `emulate.spherical_noise` holds processes on a sphere.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

GEOMETRIES = ("circular", "lat_lon")


@dataclasses.dataclass(frozen=True)
class GlobalNoise:
    """One vector of independent normal numbers for the whole of a state.

    Attributes:
        num_channels: of the vector.

    Raises:
        ValueError: if there are none.

    Source: Alet et al. 2025, arXiv:2506.10772 (FGN), which has 32 for each member and
    step.
    """

    num_channels: int = 32

    def __post_init__(self):
        _check_channels(self.num_channels)

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`[num_channels]`; the shape of the state does not matter."""
        del shape
        return jax.random.normal(key, (self.num_channels,))


@dataclasses.dataclass(frozen=True)
class ProjectedNoise:
    """White noise of a coarse grid, projected to the grid with Gaussian weights.

    Neighbours on the grid are then correlated. Of each place's weights the squares sum
    to 1, so that the noise has variance 1 everywhere (a projection whose weights sum to
    1 themselves has less).

    Attributes:
        num_channels: at each place.
        factor: how many times coarser each axis is; it divides the axis.
        length: standard deviation of the Gaussian, in coarse spacings (on the sphere
            those of latitude).
        geometry: "circular" (every axis is closed) or "lat_lon" (two axes, latitude and
            longitude at the centres of equal cells; distances are along great circles).

    Raises:
        ValueError: for numbers or words that do not fit; on the call, for a grid that
            they do not fit.

    Source: Lang et al. 2024, arXiv:2412.15832, as in anemoi-core, which projects from
    an octahedral grid.
    """

    num_channels: int = 4
    factor: int = 4
    length: float = 1.0
    geometry: str = "circular"

    def __post_init__(self):
        _check_channels(self.num_channels)
        if self.factor < 1 or not self.length > 0:
            raise ValueError(
                "factor is at least 1 and length above 0; got"
                f" {self.factor} and {self.length}."
            )
        if self.geometry not in GEOMETRIES:
            raise ValueError(
                f"geometry is one of {', '.join(GEOMETRIES)}; got {self.geometry!r}."
            )

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`[*space, num_channels]` for a state of shape `[*space, channel]`."""
        space = tuple(shape[:-1])
        is_sphere = self.geometry == "lat_lon"
        if not space or (is_sphere and len(space) != 2):
            axes = "two axes" if is_sphere else "at least one axis"
            raise ValueError(f"{self.geometry} noise needs {axes}; got space {space}.")
        if any(size % self.factor for size in space):
            raise ValueError(
                f"factor {self.factor} must divide every axis of the grid {space}."
            )
        coarse = tuple(size // self.factor for size in space)
        drawn = jax.random.normal(key, (*coarse, self.num_channels))
        if is_sphere:
            weights = _sphere_weights(*space, self.factor, self.length)
            drawn = drawn.reshape(math.prod(coarse), self.num_channels)
            return (weights @ drawn).reshape(*space, self.num_channels)
        for axis, size in enumerate(space):
            weights = _ring_weights(size, self.factor, self.length)
            drawn = jnp.moveaxis(jnp.tensordot(weights, drawn, (1, axis)), 0, axis)
        return drawn


def _check_channels(number):
    if number < 1:
        raise ValueError(f"num_channels must be at least 1; got {number}.")


def _ring_weights(size, factor, length):
    """`[place, coarse place]` of a closed axis; the squares of a row sum to 1."""
    fine = (np.arange(size) + 0.5) / factor
    coarse = np.arange(size // factor) + 0.5
    away = np.abs(fine[:, None] - coarse[None])
    return _unit(np.minimum(away, len(coarse) - away) / length)


def _sphere_weights(num_lat, num_lon, factor, length):
    """`[place, coarse place]` on a sphere of equal cells; squares of a row sum to 1."""

    def points(lats, lons):
        lat = np.pi * ((np.arange(lats) + 0.5) / lats - 0.5)
        lon = 2 * np.pi * (np.arange(lons) + 0.5) / lons
        lat, lon = (x.ravel() for x in np.meshgrid(lat, lon, indexing="ij"))
        return np.stack(
            [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1
        )

    coarse = num_lat // factor, num_lon // factor
    cosines = points(num_lat, num_lon) @ points(*coarse).T
    angles = np.arccos(np.clip(cosines, -1, 1))
    return _unit(angles / (np.pi / coarse[0]) / length)


def _unit(distance):
    weights = np.exp(-0.5 * distance**2)
    norm = np.sqrt(np.sum(weights**2, axis=1, keepdims=True))
    return jnp.asarray(weights / norm, jnp.float32)
