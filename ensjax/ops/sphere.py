"""Real spherical harmonics of fields on a Gaussian or regular grid, by dense matrices.

A field is a sum of orthonormal real harmonics of degree l and order m,

    Y_l0 = P_l0,   Y_lm cos = sqrt(2) P_lm cos(m lambda),   sin likewise,

with P_lm normalised so that Y_lm = P_lm e^(i m lambda) has square 1 over the sphere.
Waves are stored as `[..., part 2, l, m]`: cosines, then sines; what is no harmonic (m >
l, the sine of m = 0) is 0. The area mean of a field's square is the plain sum of the
squares of its waves over 4 pi. Nothing here is complex, which TPUs hardly do: a
transform along circles, by a matrix or a fast one, then a matrix for each m along
latitudes. That suits grids of up to some hundred latitudes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.circles import circle_field, circle_waves
from ensjax.ops.legendre import (
    analysis_table,
    legendre,
    legendre_in_program,
    synthesis_table,
)
from ensjax.ops.spherical_grid import SphericalGrid, find_grid

# Grids and tables are named here too, where they were before and stored networks look.
__all__ = [
    "SphericalGrid",
    "along_degrees",
    "along_latitudes",
    "analysis_table",
    "circle_field",
    "circle_waves",
    "find_grid",
    "from_real_harmonics",
    "harmonic_mask",
    "legendre",
    "legendre_in_program",
    "order_weights",
    "synthesis_table",
    "to_real_harmonics",
    "wave_power",
    "wide",
]


def to_real_harmonics(field: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The waves of a field, real `[..., part 2, l, m]`; linear in the field.

    Args:
        field: `[..., lat, lon]`; low precision is computed in float32.
        grid: its grid.

    Raises:
        ValueError: if the shape does not fit.

    Example:
        >>> import numpy as np
        >>> from ensjax.ops.sphere import SphericalGrid, to_real_harmonics
        >>> grid = SphericalGrid(8, 16)
        >>> north = np.sin(np.radians(grid.latitudes()))[:, None]
        >>> waves = to_real_harmonics(np.tile(north, 16), grid)  # sqrt(4 pi / 3) Y_10
        >>> print(waves.shape, waves[0, 1, 0].round(4))
        (2, 8, 8) 2.0467
    """
    field = wide(field)
    if field.shape[-2:] != grid.shape:
        raise ValueError(
            f"field must be [..., lat, lon] = {grid.shape}; got {field.shape}."
        )
    around = circle_waves(field, grid.degree + 1)
    return along_latitudes(around, analysis_table(grid, field.dtype))


def from_real_harmonics(waves: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The field `[..., lat, lon]` of waves `[..., part 2, l, m]`.

    What is no harmonic is ignored.

    Args:
        waves: real; low precision is computed in float32.
        grid: of the field.

    Raises:
        ValueError: if the shape does not fit.
    """
    waves = wide(waves)
    if waves.shape[-3:] != grid.wave_shape:
        raise ValueError(
            f"waves must be [..., part, l, m] = {grid.wave_shape}; got {waves.shape}."
        )
    table = synthesis_table(grid, waves.dtype)
    return circle_field(along_degrees(waves, table), grid.num_longitudes)


def along_latitudes(around: jax.Array, table: jax.Array) -> jax.Array:
    """Waves `[..., part, l, m]` of sums along circles `[..., lat, part, m]`."""
    return jnp.einsum("mlj,...jpm->...plm", table, around, precision="highest")


def along_degrees(waves: jax.Array, table: jax.Array) -> jax.Array:
    """Sums along circles `[..., lat, part, m]` of waves `[..., part, l, m]`."""
    return jnp.einsum("mlj,...plm->...jpm", table, waves, precision="highest")


def harmonic_mask(grid: SphericalGrid) -> np.ndarray:
    """1 where there is a harmonic and 0 elsewhere, float32 `[part 2, l, m]`."""
    part, degree, order = np.indices(grid.wave_shape)
    is_harmonic = (order <= degree) & ((part == 0) | (order > 0))
    return is_harmonic.astype(np.float32)


def order_weights(grid: SphericalGrid) -> np.ndarray:
    """How many complex harmonics have degree l and order m or -m, float32 `[l, m]`.

    1 for m = 0, 2 for 0 < m <= l, 0 for m > l.
    """
    return harmonic_mask(grid).sum(axis=0)


def wave_power(waves: jax.Array) -> jax.Array:
    """Power of each degree, `[..., l]`; the sum is the area mean of the field's square.

    Args:
        waves: `[..., part 2, l, m]`, 0 where there is no harmonic.
    """
    return jnp.sum(jnp.square(waves), axis=(-3, -1)) / np.float32(4 * np.pi)


def wide(values: jax.Array) -> jax.Array:
    """As floating-point numbers of float32 or wider."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
