"""Filters on geodesic neighbourhoods of a sphere, as tables between rings of latitude.

A discrete-continuous convolution turns a filter psi, a function of the distance and the
bearing from its centre, to every place x_i of a grid and sums a field over the places
around, with their areas q_j:

    (psi * f)(x_i) = sum_j psi(R_i^-1 x_j) f(x_j) q_j

Between two circles of latitude this is a circular convolution along longitudes, hence a
product of their waves: exact also at the poles, where a neighbourhood goes all the way
round. What is left is a small matrix for each order and latitude, over the rows near
it.

Source: Ocampo, Price and McEwen 2022, arXiv:2209.13603, section 4; Bonev et al. 2025,
arXiv:2507.12144, for the basis: products of waves in a window (Morlet).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.circles import circle_field, circle_waves
from ensjax.ops.legendre import MOST_CONSTANT
from ensjax.ops.sphere import wide
from ensjax.ops.sphere_split import own_block, rows_here, whole_rows, with_halo
from ensjax.ops.spherical_grid import SphericalGrid


@dataclasses.dataclass(frozen=True)
class LocalFilters:
    """A basis of filters of one size, from one grid to another.

    With x to the south and y to the east, in units of the cutoff, filter (a, b) is
    w_a(x) w_b(y) cos^2(pi r / 2) for r < 1, where w_0 = 1, w_1 = sin(pi x), w_2 =
    cos(pi x), w_3 = sin(2 pi x) and so on. All are divided by the sum of the first one,
    which is thereby a mean.

    Attributes:
        grid: of the field.
        grid_out: of the result; its longitudes divide the field's. None for the same.
        kernel_shape: numbers of waves along x and y.
        cutoff: radius of the neighbourhood in radians; None for (kernel_shape[0] + 1)
            pi / (2 (lat - 1)) of the coarser grid: 2 rows around for 3 waves.

    Raises:
        ValueError: for sizes that do not fit, or a radius that no row lies in.
    """

    grid: SphericalGrid
    grid_out: SphericalGrid | None = None
    kernel_shape: tuple[int, int] = (3, 3)
    cutoff: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "kernel_shape", tuple(self.kernel_shape))
        if len(self.kernel_shape) != 2 or min(self.kernel_shape) < 1:
            raise ValueError(
                f"kernel_shape must be two positive numbers; got {self.kernel_shape}."
            )
        if self.grid.num_longitudes % self.target.num_longitudes:
            raise ValueError(
                f"{self.target.num_longitudes} longitudes of the result do not divide"
                f" {self.grid.num_longitudes} of the field."
            )
        if not 0 < self.radius <= np.pi:
            raise ValueError(f"cutoff must be from 0 to pi radians; got {self.cutoff}.")
        bands = self._bands()
        if min(map(len, bands)) == 0:
            row = int(np.argmin([len(band) for band in bands]))
            raise ValueError(
                f"no row of the field lies within {self.radius:.4f} radians of row"
                f" {row} of the result: raise the cutoff."
            )

    @property
    def target(self) -> SphericalGrid:
        """The grid of the result."""
        return self.grid if self.grid_out is None else self.grid_out

    @property
    def radius(self) -> float:
        """The cutoff in radians."""
        if self.cutoff is not None:
            return self.cutoff
        rows = min(self.grid.num_latitudes, self.target.num_latitudes)
        return (self.kernel_shape[0] + 1) * np.pi / (2 * (rows - 1))

    @property
    def num_filters(self) -> int:
        return self.kernel_shape[0] * self.kernel_shape[1]

    def _bands(self):
        """The rows of the field near each row of the result."""
        here = np.radians(self.target.latitudes())[:, None]
        near = np.abs(here - np.radians(self.grid.latitudes())) < self.radius
        return [np.flatnonzero(row) for row in near]

    def apply(
        self,
        field: jax.Array,
        weights: jax.Array | None = None,
        *,
        axis: str | None = None,
    ) -> jax.Array:
        """All filters of a field, `[..., filter, lat, lon]`, or weighted sums of them.

        Args:
            field: `[..., lat, lon]`, or this device's rows of it.
            weights: `[channel, filter, out]`, for a field `[..., channel, lat, lon]`;
                the result is then `[..., out, lat, lon]`.
            axis: of the mesh, over which latitudes of both grids are split.

        Raises:
            ValueError: if the shape does not fit.
        """
        field = wide(field)
        rows = rows_here(self.grid.num_latitudes, axis)
        if field.shape[-2:] != (rows, self.grid.num_longitudes):
            raise ValueError(
                "field must be [..., lat, lon] ="
                f" {(rows, self.grid.num_longitudes)}; got {field.shape}."
            )
        around = circle_waves(field, self.grid.num_longitudes // 2 + 1)
        # [part 2, filter, m, lat out, near]
        tables = own_block(_tables(self).astype(field.dtype), axis, dim=3)
        # [near, part, filter, lat out, m]
        tables = jnp.moveaxis(tables, (4, 2), (0, 4))
        mixes_first = weights is not None and weights.shape[2] < weights.shape[0]
        if mixes_first:  # the fewer channels are filtered
            around = jnp.einsum(
                "...cipm,cko->...okipm", around, weights, precision="highest"
            )
        else:
            around = around[..., None, :, :, :]  # filter
        # Cosines and sines of a row are a product with both parts of a table,
        # (even + i odd) (cosine - i sine), of a correlation.
        found = 0.0
        for near, table in zip(self._near(around, axis), tables, strict=True):
            before = tuple(range(near.ndim - 4))
            even, odd = jnp.expand_dims(table, (*(d + 1 for d in before), -2))
            turned = jnp.stack([near[..., 1, :], -near[..., 0, :]], axis=-2)
            found = found + even * near + odd * turned
        if mixes_first:
            found = found.sum(axis=-4)
        elif weights is not None:
            found = jnp.einsum(
                "...ckipm,cko->...oipm", found, weights, precision="highest"
            )
        made = circle_field(found, self.grid.num_longitudes)
        return made[..., :: self.grid.num_longitudes // self.target.num_longitudes]

    def _near(self, around, axis):
        """The rows `[..., lat out, part, m]` that a row sees, one after the other."""
        dim = around.ndim - 3
        if self.target == self.grid:
            half = (_rows(self).shape[1] - 1) // 2
            rows = around.shape[dim]
            padded = with_halo(around, half, axis, dim=dim)
            return [
                jax.lax.slice_in_dim(padded, shift, shift + rows, axis=dim)
                for shift in range(2 * half + 1)
            ]
        index = own_block(jnp.asarray(_rows(self)), axis, dim=0)
        whole = whole_rows(around, axis, dim=dim)
        return [jnp.take(whole, near, axis=dim) for near in index.T]


@functools.lru_cache(maxsize=32)
def _rows(filters: LocalFilters) -> np.ndarray:
    """Rows of the field around each row of the result, int32 `[lat out, near]`.

    On one grid they are as many on either side, and may lie beyond its ends; else those
    that are too many repeat the last one.
    """
    bands = filters._bands()
    if filters.target == filters.grid:
        half = max(max(i - b[0], b[-1] - i) for i, b in enumerate(bands))
        return np.arange(len(bands))[:, None] + np.arange(-half, half + 1)
    most = max(map(len, bands))
    return np.stack([np.resize(np.r_[b, [b[-1]] * most], most) for b in bands]).astype(
        np.int32
    )


def _tables(filters: LocalFilters) -> jax.Array:
    """Sums with cos and sin of m times the longitude, `[part, filter, m, lat, near]`.

    Of the filters around longitude 0, times the areas of the places, float32.
    """
    size = _rows(filters).size * filters.grid.num_longitudes * filters.num_filters
    if size <= MOST_CONSTANT:
        return jnp.asarray(_constant_tables(filters))
    return _tables_by(filters, jnp)


@functools.lru_cache(maxsize=32)
def _constant_tables(filters):
    return _tables_by(filters, np)


def _tables_by(filters, xp):
    """The tables by NumPy in float64, or by JAX in float32, in the program itself."""
    grid, target = filters.grid, filters.target
    length = grid.num_longitudes
    index = _rows(filters)
    is_row = (index >= 0) & (index < grid.num_latitudes)
    repeats = np.zeros_like(is_row)
    repeats[:, 1:] = index[:, 1:] == index[:, :-1]
    kept = np.clip(index, 0, grid.num_latitudes - 1)
    area = grid.quadrature()[kept] * (2 * np.pi / length) * (is_row & ~repeats)
    angle = np.pi / 2 - np.radians(target.latitudes())[:, None, None]
    near = np.pi / 2 - np.radians(grid.latitudes())[kept][:, :, None]
    east = (2 * np.pi / length * np.arange(length))[None, None]
    dtype = np.float64 if xp is np else np.float32
    angle, near, east, area = (
        xp.asarray(x, dtype) for x in (angle, near, east, area[None, :, :, None])
    )
    # [filter, lat, near, lon]
    values = local_basis(filters, angle, near, east, xp=xp) * area
    values = values / values[:1].sum(axis=(2, 3), keepdims=True)
    modes = xp.fft.rfft(values, axis=-1)
    tables = xp.stack([modes.real, -modes.imag])
    return xp.moveaxis(tables, -1, 2).astype(np.float32)


def local_basis(
    filters: LocalFilters,
    colatitude: np.ndarray,
    near: np.ndarray,
    east: np.ndarray,
    *,
    xp=np,
) -> np.ndarray:
    """The filters, before they are divided, `[filter, ...]`.

    Args:
        filters: the basis.
        colatitude: of the centre, in radians.
        near, east: colatitudes of places, and their longitudes from the centre's.
        xp: `numpy` or `jax.numpy`.
    """
    # Cartesian coordinates of the place, turned so that the centre is the pole.
    x = xp.cos(colatitude) * xp.sin(near) * xp.cos(east)
    x = x - xp.sin(colatitude) * xp.cos(near)
    y = xp.sin(near) * xp.sin(east)
    z = xp.sin(colatitude) * xp.sin(near) * xp.cos(east)
    z = z + xp.cos(colatitude) * xp.cos(near)
    flat = xp.hypot(x, y)
    distance = xp.arctan2(flat, z) / filters.radius
    bearing = xp.arctan2(y, x)
    south, to_east = distance * xp.cos(bearing), distance * xp.sin(bearing)
    window = xp.cos(xp.pi / 2 * xp.minimum(distance, 1)) ** 2

    def wave(number, place):
        times = xp.pi * ((number + 1) // 2)
        return xp.sin(times * place) if number % 2 else xp.cos(times * place)

    return xp.stack(
        [
            window * wave(a, south) * wave(b, to_east)
            for a in range(filters.kernel_shape[0])
            for b in range(filters.kernel_shape[1])
        ]
    )
