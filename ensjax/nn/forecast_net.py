"""A network that advances a state on a closed grid by one step, with noise or without.

It is a function of one member of one case, `network(noise, state) -> next state`.
Members are made of it by `jax.vmap` over the noise, networks are stacked outside, and a
forecast is the network applied to what it returns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from ensjax.nn.denoiser_net import FilmBlock
from ensjax.nn.grid_net import ResidualBlock
from ensjax.nn.noise_net import SiteNoise
from ensjax.nn.one_step import OneStep, scales_of
from ensjax.nn.shifted_conv import ShiftedConv


class ResidualForecaster(OneStep):
    """The state, and beside it what a convolution, residual blocks and another add.

        next = reference(state) + step_scale * f(state, noise)

    Without noise channels it is deterministic. With them the noise at each place says
    to every block how to scale and shift what it has there. The last layer starts from
    zeros: a new network is persistence (of its reference), and its members are equal
    until the first step of a CRPS parts them.

    Args:
        num_channels: of the state.
        num_noise_channels: at each place; 0 for a deterministic network.
        num_extra_channels: of what else is known of the step, such as an earlier state;
            0 without.
        width: channels inside.
        depth: number of blocks.
        kernel_size: taps, one number for each axis of the grid.
        padding: "circular", "lat_lon" or "cubed_sphere".
        step_scale: standard deviation of one step's change in units of the state, for
            all channels or one for each.
        norm: `None`, "group" or "layer" before each block's convolutions.
        reference: what the change is added to, such as `WaveTruncation((8,))`; None for
            the state itself.
        flags_first_step: whether the network is told if a step is a forecast's first,
            by a channel that is then 1 and else 0.
        dtype: of the arithmetic; parameters and outputs are float32.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes or names that do not fit.

    Source: Lang et al. 2024, arXiv:2412.15832, section 2 (noise at every node steers
    the norms of the blocks); Perez et al. 2018, arXiv:1709.07871, equation 2, for how.

    Example::

        network = ResidualForecaster(1, num_noise_channels=4, rngs=nnx.Rngs(0))
        network(noise, state)  # [36, 4], [36, 1] -> [36, 1]
    """

    def __init__(
        self,
        num_channels: int,
        *,
        num_noise_channels: int = 0,
        num_extra_channels: int = 0,
        width: int = 32,
        depth: int = 3,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        step_scale: float | Sequence[float] = 1.0,
        norm: str | None = "layer",
        reference: Callable[[jax.Array], jax.Array] | None = None,
        flags_first_step: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        for name, count in (
            ("num_noise_channels", num_noise_channels),
            ("num_extra_channels", num_extra_channels),
        ):
            if count < 0:
                raise ValueError(f"{name} must not be negative; got {count}.")
        grid = dict(kernel_size=kernel_size, padding=padding, dtype=dtype, rngs=rngs)
        self.num_channels = num_channels
        self.num_noise_channels = num_noise_channels
        self.num_extra_channels = num_extra_channels
        self.step_scale = scales_of(step_scale, num_channels)
        self.reference, self.flags_first_step = reference, flags_first_step
        num_seen = num_channels + num_extra_channels + flags_first_step
        self.stem = ShiftedConv(num_seen, width, **grid)
        if num_noise_channels:
            self.embedding = SiteNoise(
                num_noise_channels, width, dtype=dtype, rngs=rngs
            )
            self.blocks = nnx.List(
                FilmBlock(width, width, width, norm=norm, **grid) for _ in range(depth)
            )
        else:
            self.embedding = None
            self.blocks = nnx.List(
                ResidualBlock(width, norm=norm, **grid) for _ in range(depth)
            )
        self.head = ShiftedConv(width, num_channels, zero_init=True, **grid)

    def __call__(
        self,
        noise: jax.Array | None,
        state: jax.Array,
        extra: jax.Array | None = None,
        *,
        is_first: Any = None,
    ) -> jax.Array:
        """The state one step later, `[*space, channel]`, float32.

        Args:
            noise: `[*space, noise channel]` of unit variance; None without channels.
            state: `[*space, channel]`.
            extra: `[*space, extra channel]`; None without them.
            is_first: whether the state is an analysis, a boolean that may be traced;
                None unless the network has `flags_first_step`.

        Raises:
            ValueError: if channels are not those of the network, or the first step is
                not told as it was built for.
        """
        seen = self._seen(state, extra, self.num_extra_channels, is_first)
        h = self.stem(seen)
        if self.embedding is None:
            if noise is not None:
                raise ValueError(
                    "This network has no noise channels (num_noise_channels=0); give"
                    " it None as noise."
                )
            for block in self.blocks:
                h = block(h)
        else:
            if noise is None or noise.shape != (
                *state.shape[:-1],
                self.num_noise_channels,
            ):
                raise ValueError(
                    f"noise must be {(*state.shape[:-1], self.num_noise_channels)};"
                    f" got {None if noise is None else noise.shape}."
                )
            embedding = self.embedding(noise)
            for block in self.blocks:
                h = block(h, embedding)
        return self._advanced(state, self.head(nnx.gelu(h)))
