"""Spheres whose latitudes are split over a mesh axis, inside a `shard_map`.

Every device holds the rows of its own block, `[..., lat / devices, lon]`. For what is
along latitudes the axis is transposed by an all-to-all that is written out: each device
then has all latitudes of some orders m, sums them, and sends back. Neighbours exchange
the rows at their edges. Where latitudes do not divide (721 over 4 devices), the last
rows are none: whatever finite numbers are in them have no effect. With `axis=None` a
function is that of the whole sphere.

Derivatives are those of the sum of all devices' losses; `ensjax.ops.device_sums` says
how to sum them, and how to pass what all devices share (parameters, whole fields).
"""

from typing import Any

import jax
import jax.numpy as jnp

from ensjax.ops.circles import circle_field, circle_waves
from ensjax.ops.legendre import analysis_table, synthesis_table
from ensjax.ops.sphere import (
    along_degrees,
    along_latitudes,
    from_real_harmonics,
    to_real_harmonics,
    wide,
)
from ensjax.ops.spherical_grid import SphericalGrid


def num_parts(axis: str | None) -> int:
    """Devices along the axis."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def rows_here(num_latitudes: int, axis: str | None) -> int:
    """Rows of a device; the last ones are none where they do not divide."""
    return -(-num_latitudes // num_parts(axis))


def own_block(whole: jax.Array, axis: str | None, *, dim: int) -> jax.Array:
    """This device's share along one dimension of what every device has whole.

    Zeros where there is none.
    """
    if axis is None:
        return whole
    size = rows_here(whole.shape[dim], axis)
    whole = _padded(whole, size * num_parts(axis), dim)
    first = jax.lax.axis_index(axis) * size
    return jax.lax.dynamic_slice_in_dim(whole, first, size, axis=dim)


def _padded(values, size, dim):
    """So many along a dimension, with zeros behind."""
    padding = [(0, 0)] * values.ndim
    padding[dim] = (0, size - values.shape[dim])
    return jnp.pad(values, padding)


def whole_rows(block: jax.Array, axis: str | None, *, dim: int) -> jax.Array:
    """All rows, of every device's block, by an all-gather, and behind them the none."""
    if axis is None:
        return block
    return jax.lax.all_gather(block, axis, axis=dim % block.ndim, tiled=True)


def with_halo(block: jax.Array, width: int, axis: str | None, *, dim: int) -> jax.Array:
    """A block with `width` rows more on either side; 0 beyond the poles.

    Rows come from the neighbours, or where one of them has too few from all devices.
    """
    dim = dim % block.ndim
    padding = [(0, 0)] * block.ndim
    padding[dim] = (width, width)
    if axis is None or width == 0:
        return jnp.pad(block, padding)
    rows, parts = block.shape[dim], num_parts(axis)
    if width > rows:
        whole = jnp.pad(whole_rows(block, axis, dim=dim), padding)
        first = jax.lax.axis_index(axis) * rows
        return jax.lax.dynamic_slice_in_dim(whole, first, rows + 2 * width, axis=dim)
    first = jax.lax.slice_in_dim(block, 0, width, axis=dim)
    last = jax.lax.slice_in_dim(block, rows - width, rows, axis=dim)
    # A device that nobody sends to receives zeros.
    up = [(i, i + 1) for i in range(parts - 1)]
    before = jax.lax.ppermute(last, axis, up)
    after = jax.lax.ppermute(first, axis, [(j, i) for i, j in up])
    return jnp.concatenate([before, block, after], axis=dim)


def num_orders_here(grid: SphericalGrid, axis: str | None) -> int:
    """Orders m of a device; the last ones have none where they do not divide."""
    return -(-(grid.degree + 1) // num_parts(axis))


def split_to_waves(
    block: jax.Array, grid: SphericalGrid, axis: str | None
) -> jax.Array:
    """The waves of some orders, `[..., part 2, l, m / devices]`, of all latitudes.

    Args:
        block: this device's rows, `[..., lat / devices, lon]`.
        grid: of the whole field.
        axis: of the mesh, over which latitudes are split; waves are split by order.

    Raises:
        ValueError: if shapes do not fit.
    """
    if axis is None:
        return to_real_harmonics(block, grid)
    block = wide(block)
    expected = (rows_here(grid.num_latitudes, axis), grid.num_longitudes)
    if block.shape[-2:] != expected:
        raise ValueError(
            f"a block must be [..., lat / devices, lon] = {expected}; got"
            f" {block.shape}."
        )
    around = _filled(circle_waves(block, grid.degree + 1), grid, axis)
    # [..., lat / devices, part, m] -> [..., lat, part, m / devices]
    last = around.ndim - 1
    around = jax.lax.all_to_all(around, axis, last, last - 2, tiled=True)
    return along_latitudes(around, _own_table(analysis_table(grid, block.dtype), axis))


def split_from_waves(
    waves: jax.Array, grid: SphericalGrid, axis: str | None
) -> jax.Array:
    """This device's rows of the field of waves that are split by order.

    Args:
        waves: `[..., part 2, l, m / devices]`, from `split_to_waves`.
        grid: of the whole field.
        axis: as there.

    Returns:
        `[..., lat / devices, lon]`.
    """
    if axis is None:
        return from_real_harmonics(waves, grid)
    waves = wide(waves)
    expected = (2, grid.degree + 1, num_orders_here(grid, axis))
    if waves.shape[-3:] != expected:
        raise ValueError(
            f"waves must be [..., part, l, m / devices] = {expected}; got"
            f" {waves.shape}."
        )
    around = along_degrees(waves, _own_table(synthesis_table(grid, waves.dtype), axis))
    # [..., lat, part, m / devices] -> [..., lat / devices, part, m]
    last = around.ndim - 1
    around = jax.lax.all_to_all(around, axis, last - 2, last, tiled=True)
    return circle_field(around[..., : grid.degree + 1], grid.num_longitudes)


def own_orders(whole: Any, grid: SphericalGrid, axis: str | None) -> jax.Array:
    """This device's orders of what every device has whole, `[..., m]`; else 0."""
    whole = jnp.asarray(whole)
    if axis is None:
        return whole
    return own_block(_filled(whole, grid, axis), axis, dim=whole.ndim - 1)


def _filled(values, grid, axis):
    """Orders `[..., m]` with zeros behind, so that they divide over the devices."""
    return _padded(values, num_orders_here(grid, axis) * num_parts(axis), -1)


def _own_table(table, axis):
    """The orders `[m / devices, l, lat]` of this device, with rows that are none."""
    rows = rows_here(table.shape[-1], axis) * num_parts(axis)
    return own_block(_padded(table, rows, -1), axis, dim=0)
