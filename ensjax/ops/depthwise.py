"""Depthwise convolution as a sum of shifted products."""

import functools
import math

import jax
import jax.numpy as jnp

from ensjax.ops.window import Window, pad_space, sum_like, taps


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    preferred_element_type=None,
) -> jax.Array:
    """Convolution of every channel of `x` with kernels of its own.

        y[..., c * m + j] = sum_t x[... + t, c] * kernel[t, 0, c * m + j]

    The sum over taps is elementwise, so the compiler fuses it into one loop that is
    as fast under `vmap` over kernels and inside `scan` as outside. The gradient of
    `x` is the same sum over the cotangent. Derivatives exist as for `mixed_conv`:
    not `jax.jvp` of the convolution itself.

    Args:
        x: `[batch, *space, channel]`.
        kernel: `[*tap, 1, channel * multiplier]`.
        window: strides, padding and dilation; its groups are the channels of `x`.

    Returns:
        `[batch, *outputs, channel * multiplier]`, summed in float32 or wider.
    """
    num_out = kernel.shape[-1]
    dtype = x.dtype if preferred_element_type is None else preferred_element_type
    x = jnp.repeat(x, num_out // x.shape[-1], axis=-1)
    rows = kernel.reshape(math.prod(window.shape), num_out)
    return _one_to_one(x, rows, window, jnp.dtype(dtype))


def _shifted_sum(x, rows, window, dtype):
    """Sum over taps of shifted `x` times `rows` `[tap, channel]`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    rows = rows.astype(wide).reshape(rows.shape[0], *(1,) * (x.ndim - 1), -1)
    products = [tap.astype(wide) * row for tap, row in zip(taps(x, window), rows)]
    return functools.reduce(jnp.add, products).astype(dtype)


_one_to_one = jax.custom_vjp(_shifted_sum, nondiff_argnums=(2, 3))


def _forward(x, rows, window, dtype):
    return _shifted_sum(x, rows, window, dtype), (x, rows)


def _backward(window, dtype, residuals, cotangent):
    x, rows = residuals
    num_space = len(window.shape)
    padding = window.transposed_padding(x.shape[1:-1])
    dense = Window(
        shape=window.shape,
        strides=(1,) * num_space,
        padding=((0, 0),) * num_space,
        dilation=window.dilation,
    )
    padded = pad_space(cotangent, padding, window.strides)
    dx = _shifted_sum(padded, rows[::-1], dense, x.dtype)

    # A product with ones sums over examples and space twice as fast on CPU as the
    # reduction does.
    wide = jnp.promote_types(dtype, jnp.float32)
    num_channels = x.shape[-1]
    ones = jnp.ones((1, cotangent.size // num_channels), wide)
    cotangent = cotangent.astype(wide)
    drows = jnp.concatenate(
        [
            jnp.matmul(
                ones,
                (tap.astype(wide) * cotangent).reshape(-1, num_channels),
                precision="highest",
            )
            for tap in taps(x, window)
        ]
    )
    return sum_like(dx, x), sum_like(drows.astype(rows.dtype), rows)


_one_to_one.defvjp(_forward, _backward)
