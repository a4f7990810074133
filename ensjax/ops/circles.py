"""Real waves along circles of evenly spaced places, by a matrix or the fast one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Circles of so many places are transformed by a matrix, larger ones by the FFT.
_MOST_BY_MATRIX = 256


def circle_waves(field: jax.Array, num_orders: int) -> jax.Array:
    """sum_j f_j cos(m lambda_j), and with the sine: `[..., part 2, m]`.

    Args:
        field: `[..., lon]`, real.
        num_orders: m from 0 to one less, at most lon // 2 + 1 of them.
    """
    length = field.shape[-1]
    if length <= _MOST_BY_MATRIX:
        matrix = jnp.asarray(_circle(length)[:, :, :num_orders], field.dtype)
        return jnp.einsum("...j,jpm->...pm", field, matrix, precision="highest")
    modes = jnp.fft.rfft(field, axis=-1)[..., :num_orders]
    return jnp.stack([modes.real, -modes.imag], axis=-2)


def circle_field(waves: jax.Array, length: int) -> jax.Array:
    """The field `[..., lon]` of `circle_waves` `[..., part 2, m]`.

    Orders that are not given are 0; the sines of m = 0 and m = lon / 2 are ignored.
    """
    num_orders = waves.shape[-1]
    if length <= _MOST_BY_MATRIX:
        order = np.arange(num_orders)
        share = np.where((order == 0) | (2 * order == length), 1.0, 2.0) / length
        matrix = _circle(length)[:, :, :num_orders] * share
        matrix = jnp.asarray(matrix, waves.dtype)
        return jnp.einsum("...pm,jpm->...j", waves, matrix, precision="highest")
    modes = jax.lax.complex(waves[..., 0, :], -waves[..., 1, :])
    padding = [(0, 0)] * (modes.ndim - 1) + [(0, length // 2 + 1 - num_orders)]
    return jnp.fft.irfft(jnp.pad(modes, padding), n=length, axis=-1)


@functools.lru_cache(maxsize=16)
def _circle(length):
    """cos(m lambda_j) and sin(m lambda_j), `[lon, part 2, m]`, float64."""
    place, order = np.arange(length)[:, None], np.arange(length // 2 + 1)
    # Whole turns are taken off in integers, which are exact.
    angle = 2 * np.pi * (place * order % length) / length
    sine = np.where(2 * order % length == 0, 0.0, np.sin(angle))
    return np.stack([np.cos(angle), sine], axis=1)
