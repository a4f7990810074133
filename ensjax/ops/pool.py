"""Max and average pooling whose gradients stay fast inside `scan`.

A window is separable: it is reduced along one spatial axis after the other, by
elementwise operations on pieces. Where the window tiles (strides equal to its
shape) the pieces come from a reshape, else from shifted, strided slices. The
gradient of `lax.reduce_window` with a maximum (select-and-scatter) is an order of
magnitude slower on CPU.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.window import explicit_padding


def max_pool(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    *,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Maximum of each window, as `nnx.max_pool`.

    Where two entries tie, each comparison gives half of the gradient to either side
    (`jnp.maximum`; `nnx.max_pool` gives all to the first entry). A NaN makes its
    window's output NaN, and that output's gradient is zero.

    Args:
        x: `[..., *space, channel]`; space has as many axes as the window.
        window: size along each spatial axis.
        strides: steps between windows along each spatial axis.
        padding: "VALID", "SAME", "SAME_LOWER" or `(low, high)` pairs, of minus
            infinity.

    Returns:
        `[..., *outputs, channel]`, in the dtype of `x`.

    Raises:
        ValueError: if the sizes do not fit each other.
        TypeError: if `x` is not floating point.
    """
    padding = _check(x, window, strides, padding)
    return _reduce(x, window, strides, padding, jnp.maximum, -jnp.inf)


def avg_pool(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    *,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """Mean of each window, as `nnx.avg_pool`, summed in float32 or wider.

    Args:
        x: `[..., *space, channel]`; space has as many axes as the window.
        window: size along each spatial axis.
        strides: steps between windows along each spatial axis.
        padding: "VALID", "SAME", "SAME_LOWER" or `(low, high)` pairs, of zeros.
        count_include_pad: whether the padded zeros count as entries of the mean.

    Returns:
        `[..., *outputs, channel]`, in the dtype of `x`.

    Raises:
        ValueError: if the sizes do not fit each other.
        TypeError: if `x` is not floating point.
    """
    padding = _check(x, window, strides, padding)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    sums = _reduce(x.astype(dtype), window, strides, padding, jnp.add, 0.0)
    if count_include_pad or not any(low or high for low, high in padding):
        return (sums / math.prod(window)).astype(x.dtype)

    counts = np.ones(())
    space = x.shape[-1 - len(window) : -1]
    for size, extent, stride, (low, high) in zip(space, window, strides, padding):
        inside = np.pad(np.ones(size), (low, high))
        windows = np.lib.stride_tricks.sliding_window_view(inside, extent)
        counts = np.multiply.outer(counts, windows[::stride].sum(axis=-1))
    counts = counts.reshape((1,) * (x.ndim - len(window) - 1) + (*counts.shape, 1))
    return (sums / jnp.asarray(counts, dtype)).astype(x.dtype)


def _check(x, window, strides, padding):
    """Raises where the sizes do not fit; else the padding as pairs."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"pooling needs floating point entries; got {x.dtype}. Convert with"
            " x.astype(jnp.float32)."
        )
    if len(window) != len(strides) or x.ndim < len(window) + 1:
        raise ValueError(
            "x must be [..., *space, channel] with one window size and one stride for"
            f" each spatial axis; got shape {x.shape}, window {tuple(window)} and"
            f" strides {tuple(strides)}."
        )
    space = x.shape[-1 - len(window) : -1]
    pairs = explicit_padding(padding, space, window, strides)
    fits = len(pairs) == len(window) and all(
        0 < extent <= size + low + high and min(stride, low + 1, high + 1) > 0
        for size, extent, stride, (low, high) in zip(space, window, strides, pairs)
    )
    if not fits:
        raise ValueError(
            "each window must fit into its padded axis, with strides of at least 1 and"
            f" padding of at least 0; got space {space}, window {tuple(window)},"
            f" strides {tuple(strides)} and padding {pairs}. A smaller window, or the"
            " mean over the spatial axes, suits a small image."
        )
    return pairs


def _reduce(x, window, strides, padding, combine, fill):
    first = x.ndim - 1 - len(window)
    config = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in enumerate(padding, start=first):
        config[axis] = (low, high, 0)
    if any(low or high for low, high in padding):
        x = jax.lax.pad(x, jnp.asarray(fill, x.dtype), config)
    for axis, (extent, stride) in enumerate(zip(window, strides), start=first):
        x = _fold(_pieces(x, axis, extent, stride), combine)
    return x


def _pieces(x, axis, extent, stride):
    """The entries of every window along `axis`: `extent` arrays of all outputs."""
    num_outputs = (x.shape[axis] - extent) // stride + 1
    if extent != stride:
        last = (num_outputs - 1) * stride + 1
        return [
            jax.lax.slice_in_dim(x, start, start + last, stride, axis)
            for start in range(extent)
        ]
    x = jax.lax.slice_in_dim(x, 0, num_outputs * extent, axis=axis)
    tiles = x.reshape(*x.shape[:axis], num_outputs, extent, *x.shape[axis + 1 :])
    return [
        jax.lax.index_in_dim(tiles, i, axis + 1, keepdims=False) for i in range(extent)
    ]


def _fold(pieces: list[jax.Array], combine: Callable) -> jax.Array:
    """Combines neighbours until one is left, so that sums keep their accuracy."""
    while len(pieces) > 1:
        pairs = [combine(a, b) for a, b in zip(pieces[::2], pieces[1::2])]
        pieces = pairs + pieces[2 * len(pairs) :]
    return pieces[0]
