"""A network from channels to other channels on the same closed grid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import norm_layer
from ensjax.nn.shifted_conv import ShiftedConv


class ResidualBlock(nnx.Module):
    """x + conv(act(conv(act(norm(x))))), on a closed grid, `[*space, width]`."""

    def __init__(self, width, *, kernel_size, padding, norm, dtype, rngs):
        options = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.norm = norm_layer(norm, width, dtype=dtype, rngs=rngs)
        self.conv1 = ShiftedConv(width, width, kernel_size, **options)
        self.conv2 = ShiftedConv(width, width, kernel_size, **options)

    def __call__(self, x):
        # Norms take the first axis for a batch, which one state does not have.
        h = x if self.norm is None else self.norm(x[None])[0]
        return x + self.conv2(nnx.gelu(self.conv1(nnx.gelu(h))))


class GridNet(nnx.Module):
    """A convolution, residual blocks, and a convolution that starts from zeros.

    It is a function of one sample, such as the heads of a Gaussian
    (`emulate.GaussianPerturbation`); a batch is made of it by `jax.vmap`.

    Args:
        num_in, num_out: channels.
        width: channels inside.
        depth: number of blocks.
        kernel_size: taps, one number for each axis of the grid.
        padding: "circular", "lat_lon" or "cubed_sphere".
        norm: `None`, "group" or "layer" before each block's convolutions.
        dtype: of the arithmetic; parameters and outputs are float32.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes or names that do not fit.

    Example::

        network = GridNet(2, 4, rngs=nnx.Rngs(params=0))
        network(x)  # [36, 2] -> [36, 4]
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        width: int = 32,
        depth: int = 3,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        norm: str | None = "layer",
        dtype=None,
        rngs: nnx.Rngs,
    ):
        grid = dict(kernel_size=kernel_size, padding=padding, dtype=dtype, rngs=rngs)
        self.stem = ShiftedConv(num_in, width, **grid)
        self.blocks = nnx.List(
            ResidualBlock(width, norm=norm, **grid) for _ in range(depth)
        )
        self.head = ShiftedConv(width, num_out, zero_init=True, **grid)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*space, num_out]` of `[*space, num_in]`, float32.

        Raises:
            ValueError: if the channels are not `num_in`.
        """
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(nnx.gelu(h)).astype(jnp.float32)
