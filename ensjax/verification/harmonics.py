"""Complex coefficients of spherical harmonics, as scores and the literature have them.

A field is a sum of a_lm Y_lm with orthonormal Y_lm, so that its area mean square is
sum |a_lm|^2 / (4 pi). Coefficients of a real field are stored for m >= 0, as complex
numbers `[l, m]`; those below the diagonal (m > l) are 0, and those of m > 0 stand for
two. The transform itself, and its real form, are in `ensjax.ops.sphere`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.sphere import (
    SphericalGrid,
    from_real_harmonics,
    to_real_harmonics,
)


def to_harmonics(field: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The coefficients a_lm of a field, complex64 `[..., l, m]`, m from 0.

    Args:
        field: `[..., lat, lon]`, real.
        grid: its grid.

    Raises:
        ValueError: if the shape does not fit.
    """
    field = jnp.asarray(field, jnp.float32)
    waves = to_real_harmonics(field, grid)
    share = _share(grid)
    share = share.reshape((1,) * (waves.ndim - 2) + share.shape)
    return jax.lax.complex(waves[..., 0, :, :] * share, -waves[..., 1, :, :] * share)


def from_harmonics(coefficients: jax.Array, grid: SphericalGrid) -> jax.Array:
    """The field of coefficients `[..., l, m]`, float32 `[..., lat, lon]`.

    Args:
        coefficients: complex; the imaginary part of m = 0 is ignored.
        grid: the grid of the field.

    Raises:
        ValueError: if the shape does not fit.
    """
    size = grid.degree + 1
    if coefficients.shape[-2:] != (size, size):
        raise ValueError(
            f"coefficients must be [..., l, m] = {(size, size)}; got"
            f" {coefficients.shape}."
        )
    parts = jnp.stack([coefficients.real, -coefficients.imag], axis=-3)
    share = _share(grid)
    share = share.reshape((1,) * (parts.ndim - 1) + share.shape)
    return from_real_harmonics(parts.astype(jnp.float32) / share, grid)


def _share(grid):
    """Of a real wave in its coefficient, `[m]`: 1 for m = 0, else sqrt(1 / 2)."""
    order = np.arange(grid.degree + 1)
    return np.where(order == 0, 1.0, np.sqrt(0.5)).astype(np.float32)
