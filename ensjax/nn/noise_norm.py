"""Layer norms that noise steers: how a network with noise inside makes its members.

The noise may be there at each place, `[*space, noise channel]`, or be one vector for
the whole of a state, `[noise channel]`. `ensjax.nn.noise_inputs` draws it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.one_step import OneStep
from ensjax.nn.repeated_blocks import again_for_gradient
from ensjax.nn.shifted_conv import ShiftedConv

_zeros = nnx.initializers.zeros_init()


class NoiseMlp(nnx.Module):
    """What the noise says to the norms: two layers and a layer norm, place by place.

    It does not start from zeros: through norms that do, it would then never learn.

    Args:
        num_noise_channels: of the noise.
        num_outputs: channels of the result; by default those of the noise, or 4.
        width: between the layers.
        dtype: of the arithmetic.
        rngs: stream `params`.

    Raises:
        ValueError: for fewer than 3 outputs: of one channel the layer norm leaves
            nothing, and of two a sign.
    """

    def __init__(
        self,
        num_noise_channels: int,
        *,
        num_outputs: int | None = None,
        width: int = 32,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if num_outputs is None:
            num_outputs = max(4, num_noise_channels)
        if num_noise_channels < 1 or num_outputs < 3:
            raise ValueError(
                "there is at least one noise channel, and 3 outputs, of which a layer"
                f" norm leaves two; got {num_noise_channels} and {num_outputs}."
            )
        self.num_outputs = num_outputs
        options = dict(dtype=dtype, rngs=rngs)
        self.linear1 = nnx.Linear(num_noise_channels, width, **options)
        self.linear2 = nnx.Linear(width, num_outputs, **options)
        self.norm = nnx.LayerNorm(num_outputs, **options)

    def __call__(self, noise: jax.Array) -> jax.Array:
        """`[..., output]` of noise `[..., noise channel]`."""
        return self.norm(self.linear2(nnx.gelu(self.linear1(noise))))


class NoiseConditionedNorm(nnx.Module):
    """A layer norm over channels whose scale and shift are linear in the noise.

        y = norm(x) (1 + W_s z + b_s) + W_b z + b_b

    The norm has no parameters of its own, and all W and b start from zeros: the members
    of a new network are equal.

    Args:
        num_features: channels of x.
        num_noise_channels: of z, such as `NoiseMlp` makes it.
        epsilon: added to the variance.
        dtype: of the arithmetic; parameters are float32.
        rngs: stream `params`.

    Raises:
        ValueError: on the call, if x or z has other channels, or z lies on other places
            than x.

    Source: Lang et al. 2024, arXiv:2412.15832, section 2, as in anemoi-core's
    conditional layer norm.

    Example::

        norm = NoiseConditionedNorm(32, 4, rngs=nnx.Rngs(0))
        norm(x, z)  # [40, 32], [40, 4] or [4] -> [40, 32]

        # In a module of flax linen, whose parameters then hold those of the norm:
        flax.nnx.bridge.to_linen(NoiseConditionedNorm, 32, 4, name="norm")(x, z)
    """

    def __init__(
        self,
        num_features: int,
        num_noise_channels: int,
        *,
        epsilon: float = 1e-5,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.num_features, self.num_noise_channels = num_features, num_noise_channels
        self.norm = nnx.LayerNorm(
            num_features,
            epsilon=epsilon,
            use_bias=False,
            use_scale=False,
            dtype=dtype,
            rngs=rngs,
        )
        options = dict(kernel_init=_zeros, bias_init=_zeros, dtype=dtype, rngs=rngs)
        self.scale = nnx.Linear(num_noise_channels, num_features, **options)
        self.shift = nnx.Linear(num_noise_channels, num_features, **options)

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """`[*space, channel]` of x `[*space, channel]` and z `[*space or none, z]`."""
        is_fitting = (
            x.shape[-1:] == (self.num_features,)
            and z.shape[-1:] == (self.num_noise_channels,)
            and z.shape[:-1] in ((), x.shape[:-1])
        )
        if not is_fitting:
            raise ValueError(
                f"x is [*space, {self.num_features}] and z [*space,"
                f" {self.num_noise_channels}] or [{self.num_noise_channels}]; got"
                f" {x.shape} and {z.shape}."
            )
        scale, shift = self.scale(z), self.shift(z)
        if z.ndim == 1:
            scale, shift = (v.reshape(*(1,) * (x.ndim - 1), -1) for v in (scale, shift))
        return self.norm(x) * (1 + scale) + shift


class NoiseConditionedBlock(nnx.Module):
    """x + conv(gelu(norm(conv(gelu(norm(x, z))), z))): a residual block on a grid.

    Args:
        width: channels.
        num_noise_channels: of z.
        kernel_size, padding: of `ShiftedConv`.
        dtype: of the arithmetic.
        rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        num_noise_channels: int,
        *,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        dtype=None,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        grid = dict(padding=padding, **options)
        self.norm1 = NoiseConditionedNorm(width, num_noise_channels, **options)
        self.conv1 = ShiftedConv(width, width, kernel_size, **grid)
        self.norm2 = NoiseConditionedNorm(width, num_noise_channels, **options)
        self.conv2 = ShiftedConv(width, width, kernel_size, **grid)

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """`[*space, channel]`, as x is."""
        h = self.conv1(nnx.gelu(self.norm1(x, z)))
        return x + self.conv2(nnx.gelu(self.norm2(h, z)))


class NoiseForecaster(OneStep):
    """An emulator of one step whose norms are steered by noise.

        next = reference(state) + step_scale * network(noise, state)

    A deterministic one, of 0 noise channels, is given None for the noise; its norms
    then have a scale and a shift of their own.

    Args:
        num_channels: of a state, which is standardised.
        num_noise_channels: of the noise, at each place or of the whole; 0 without.
        width, depth: channels inside, and the number of blocks.
        kernel_size, padding: of `ShiftedConv`.
        step_scale: standard deviation of what a state changes by in a step.
        noise_width: inside of `NoiseMlp`.
        reference: what the change is added to, such as `WaveTruncation((8,))` for the
            state's large scales, so that noise on fine ones is not carried from step to
            step; None for the state itself.
        flags_first_step: whether the network is told if a step is a forecast's first,
            by a channel that is then 1 and else 0.
        num_extra_channels: of what else is known of the step, such as an earlier state
            (`LastStates`); 0 without.
        remat: compute blocks again for the gradient, in a loop.
        dtype: of the arithmetic; parameters and states are float32.
        rngs: stream `params`.

    Raises:
        ValueError: on the call, for noise or states of other channels, or where the
            first step is not told as it was built for.

    Source: Lang et al. 2024, arXiv:2412.15832, section 2, with convolutions on a closed
    grid in the place of a graph transformer.

    Example::

        model = NoiseForecaster(1, num_noise_channels=4, rngs=nnx.Rngs(0))
        model(noise, state)  # [36, 4], [36, 1] -> [36, 1]
    """

    # Of the class, as those of `OneStep`.
    remat: bool = False
    num_extra_channels: int = 0

    def __init__(
        self,
        num_channels: int,
        *,
        num_noise_channels: int = 4,
        width: int = 32,
        depth: int = 3,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        step_scale: float = 1.0,
        noise_width: int = 32,
        reference: Callable[[jax.Array], jax.Array] | None = None,
        flags_first_step: bool = False,
        num_extra_channels: int = 0,
        remat: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if num_extra_channels < 0:
            raise ValueError(
                f"num_extra_channels must not be negative; got {num_extra_channels}."
            )
        options = dict(dtype=dtype, rngs=rngs)
        grid = dict(kernel_size=kernel_size, padding=padding, **options)
        self.num_channels, self.step_scale = num_channels, step_scale
        self.reference, self.flags_first_step = reference, flags_first_step
        self.remat = remat
        if num_extra_channels:  # without, a network is what it was before it had any
            self.num_extra_channels = num_extra_channels
        self.num_noise_channels = num_noise_channels
        # Without noise z is one constant: W z + b then are a scale and a shift.
        self.mlp = (
            NoiseMlp(num_noise_channels, width=noise_width, **options)
            if num_noise_channels
            else None
        )
        z_channels = 1 if self.mlp is None else self.mlp.num_outputs
        num_seen = num_channels + num_extra_channels + flags_first_step
        self.stem = ShiftedConv(num_seen, width, **grid)
        self.blocks = nnx.List(
            NoiseConditionedBlock(width, z_channels, **grid) for _ in range(depth)
        )
        self.norm = NoiseConditionedNorm(width, z_channels, **options)
        self.head = ShiftedConv(width, num_channels, **grid)

    def __call__(
        self,
        noise: jax.Array | None,
        state: jax.Array,
        extra: jax.Array | None = None,
        *,
        is_first: Any = None,
    ) -> jax.Array:
        """The next state, `[*space, channel]`.

        Args:
            noise: `[*space, noise channel]` or `[noise channel]`; None without.
            state: `[*space, channel]`, standardised.
            extra: `[*space, extra channel]`; None without them.
            is_first: whether the state is an analysis, a boolean that may be traced;
                None unless the network has `flags_first_step`.
        """
        seen = self._seen(state, extra, self.num_extra_channels, is_first)
        found = None if noise is None else noise.shape[-1]
        if found != (self.num_noise_channels or None):
            raise ValueError(
                f"the emulator was built for {self.num_noise_channels} noise channels"
                f" (0: None is given); got {None if noise is None else noise.shape}."
            )
        z = jnp.ones(1) if self.mlp is None else self.mlp(noise)
        h = self.stem(seen)
        if self.remat:
            h = again_for_gradient(self.blocks, h, z)
        else:
            for block in self.blocks:
                h = block(h, z)
        return self._advanced(state, self.head(nnx.gelu(self.norm(h, z))))
