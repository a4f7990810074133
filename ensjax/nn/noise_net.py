"""A network with noise inside: each draw of the noise is one member of an ensemble.

It is a function of one member of one case, `network(noise, condition)`, on a closed
grid. Members are made of it by `jax.vmap` over the noise, networks are stacked outside.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.denoiser_net import FilmBlock, with_condition
from ensjax.nn.shifted_conv import ShiftedConv


class SiteNoise(nnx.Module):
    """What the noise at each place says to the blocks: two layers, place by place.

    Args:
        num_noise_channels: of the noise.
        width: channels of the result.
        dtype: of the arithmetic.
        rngs: stream `params`.
    """

    def __init__(self, num_noise_channels: int, width: int, *, dtype=None, rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.linear1 = nnx.Linear(num_noise_channels, width, **options)
        self.linear2 = nnx.Linear(width, width, **options)

    def __call__(self, noise: jax.Array) -> jax.Array:
        """`[*space, width]` of `[*space, noise channel]`."""
        return self.linear2(nnx.silu(self.linear1(noise)))


class ResidualGenerator(nnx.Module):
    """`ResidualDenoiser` with noise in the place of the noisy sample and its level.

    The noise enters beside the condition, and steers every block place by place. The
    last layer starts from zeros: the members of a new network are equal, and the first
    step of a CRPS parts them, since its error term reaches that layer through features
    that differ.

    Args:
        num_channels: of a member.
        num_condition_channels: of the condition; 0 without one.
        num_noise_channels: at each place.
        width: channels inside.
        depth: number of blocks.
        kernel_size: taps, one number for each axis of the grid.
        padding: "circular", "lat_lon" or "cubed_sphere".
        embedding_width: of what the noise says to the blocks; `None` for `width`.
        norm: `None`, "group" or "layer" before each block's convolutions.
        dtype: of the arithmetic; parameters and outputs are float32.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes or names that do not fit.

    Source: Lang et al. 2024, arXiv:2412.15832, section 2 (noise at every node steers
    the blocks); Perez et al. 2018, arXiv:1709.07871, equation 2, for how.

    Example::

        network = ResidualGenerator(1, num_condition_channels=3, rngs=nnx.Rngs(0))
        network(noise, condition)  # [40, 4], [40, 3] -> [40, 1]
    """

    def __init__(
        self,
        num_channels: int,
        *,
        num_condition_channels: int = 0,
        num_noise_channels: int = 4,
        width: int = 32,
        depth: int = 3,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        embedding_width: int | None = None,
        norm: str | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if num_noise_channels < 1:
            raise ValueError(
                f"num_noise_channels must be at least 1; got {num_noise_channels}."
            )
        embedding_width = width if embedding_width is None else embedding_width
        grid = dict(kernel_size=kernel_size, padding=padding, dtype=dtype, rngs=rngs)
        self.num_noise_channels = num_noise_channels
        self.num_condition_channels = num_condition_channels
        self.embedding = SiteNoise(
            num_noise_channels, embedding_width, dtype=dtype, rngs=rngs
        )
        self.stem = ShiftedConv(
            num_noise_channels + num_condition_channels, width, **grid
        )
        self.blocks = nnx.List(
            FilmBlock(width, width, embedding_width, norm=norm, **grid)
            for _ in range(depth)
        )
        self.head = ShiftedConv(width, num_channels, zero_init=True, **grid)

    def __call__(
        self, noise: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """`[*space, channel]` of one member's noise and the condition of its case.

        Args:
            noise: `[*space, noise channel]`, of unit variance.
            condition: `[*space, condition channel]`, or None without one.

        Raises:
            ValueError: if the noise or the condition has other channels.
        """
        if noise.ndim < 2 or noise.shape[-1] != self.num_noise_channels:
            raise ValueError(
                f"noise must be [*space, {self.num_noise_channels}]; got shape"
                f" {noise.shape}."
            )
        embedding = self.embedding(noise)
        h = self.stem(with_condition(noise, condition, self.num_condition_channels))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(nnx.gelu(h)).astype(jnp.float32)
