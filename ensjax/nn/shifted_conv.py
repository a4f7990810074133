"""Convolution on closed grids, as shifted copies and one matrix product."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.padding import PADDINGS, pad_circular

_zeros = nnx.initializers.zeros_init()
_he_normal = nnx.initializers.he_normal()


class ShiftedConv(nnx.Module):
    """A convolution without edges, for weights that are stacked or trained in `scan`.

    The grid is padded, cut into one copy for each tap, and multiplied by a matrix. On
    CPU the gradient of an ordinary convolution loses its fast path inside a compiled
    loop, and `vmap` over its kernels is a grouped convolution; a product has neither
    trouble. It also has forward derivatives, which the likelihood of a diffusion model
    asks for.

    Args:
        num_in, num_out: channels.
        kernel_size: odd numbers of taps, one for each axis; as many as the grid has
            (two on a sphere).
        padding: "circular", "lat_lon" or "cubed_sphere"; see `ensjax.nn.padding`.
        use_bias: whether to add one.
        zero_init: start from zeros, as the last layer of a denoiser does.
        dtype: of the arithmetic; parameters are float32.
        rngs: stream `params`.

    Raises:
        ValueError: if a number of taps is even, or the padding is unknown or has two
            axes and the kernel has not.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel_size: Sequence[int] = (5,),
        *,
        padding: str = "circular",
        use_bias: bool = True,
        zero_init: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if padding not in PADDINGS:
            raise ValueError(
                f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}."
            )
        kernel_size = tuple(kernel_size)
        if not kernel_size or any(k < 1 or k % 2 == 0 for k in kernel_size):
            raise ValueError(
                f"kernel_size must hold odd numbers of taps; got {kernel_size}."
            )
        if padding != "circular" and (len(kernel_size), len(set(kernel_size))) != (
            2,
            1,
        ):
            raise ValueError(
                f"padding {padding!r} needs a kernel of two equal sizes; got"
                f" {kernel_size}."
            )
        self.kernel_size, self.padding = kernel_size, padding
        self.num_in = num_in
        self.linear = nnx.Linear(
            math.prod(kernel_size) * num_in,
            num_out,
            use_bias=use_bias,
            kernel_init=_zeros if zero_init else _he_normal,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., *space, num_out]` of `[..., *space, num_in]`, on the same grid.

        Raises:
            ValueError: if the channels are not `num_in`.
        """
        if x.shape[-1] != self.num_in:
            raise ValueError(
                f"inputs must be [..., *space, {self.num_in}]; got shape {x.shape}."
            )
        return self.linear(jnp.concatenate(self._copies(x), axis=-1))

    def _copies(self, x):
        """The grid as each tap sees it, row by row of the kernel."""
        halves = tuple(k // 2 for k in self.kernel_size)
        if not any(halves):
            return [x]
        axes = range(x.ndim - 1 - len(halves), x.ndim - 1)
        if self.padding == "circular":
            padded = x
            for axis, half in zip(axes, halves, strict=True):
                padded = jnp.moveaxis(
                    pad_circular(jnp.moveaxis(padded, axis, -2), half), -2, axis
                )
        else:
            padded = PADDINGS[self.padding](x, halves[0])
        copies = []
        for shifts in itertools.product(*(range(k) for k in self.kernel_size)):
            copy = padded
            for axis, shift in zip(axes, shifts, strict=True):
                copy = jax.lax.slice_in_dim(
                    copy, shift, shift + x.shape[axis], axis=axis
                )
            copies.append(copy)
        return copies
