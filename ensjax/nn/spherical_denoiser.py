"""A denoiser on the sphere, of the blocks of `SphericalForecaster`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.denoiser_net import NoiseEmbedding
from ensjax.nn.spherical_forecaster import SphericalForecaster
from ensjax.ops.sphere import SphericalGrid


class SphericalDenoiser(nnx.Module):
    """`network(x, noise, condition) -> [lat, lon, channel]`, for `diffusion.EDM`.

    The trunk is that of a `SphericalForecaster`: the noisy sample goes in where a state
    does, and where a forecaster is told its noise, this network is told the condition
    and, the same at every place, the level of the sample's noise. Both come beside the
    input of every block.

    Args:
        grid: of samples and condition.
        num_channels: of a sample.
        num_condition_channels: of the condition; 0 without one.
        num_level_channels: that tell the level.
        width, noise_width, blocks, kernel_shape, mlp_ratio, layer_scale,
            knows_latitude, dtype: of `SphericalForecaster`.
        rngs: stream `params`.

    Raises:
        ValueError: as `SphericalForecaster`; on the call, if there is a condition where
            there should be none, or another.

    Example::

        grid = SphericalGrid(32, 64, truncation=21)
        network = SphericalDenoiser(grid, 2, num_condition_channels=2, rngs=rngs)
        network(x, noise, condition)  # [32, 64, 2], [], [32, 64, 2] -> [32, 64, 2]
    """

    def __init__(
        self,
        grid: SphericalGrid,
        num_channels: int,
        *,
        num_condition_channels: int = 0,
        num_level_channels: int = 8,
        width: int = 16,
        noise_width: int | None = None,
        blocks: Sequence[str] = ("local", "global", "local", "global"),
        kernel_shape: tuple[int, int] = (3, 3),
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        knows_latitude: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.num_condition_channels = num_condition_channels
        self.embedding = NoiseEmbedding(num_level_channels, rngs=rngs)
        self.trunk = SphericalForecaster(
            grid,
            num_channels,
            num_noise_channels=num_level_channels + num_condition_channels,
            width=width,
            noise_width=noise_width,
            blocks=blocks,
            kernel_shape=kernel_shape,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            knows_latitude=knows_latitude,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """What the parametrisation makes the clean sample of, `[lat, lon, channel]`."""
        found = None if condition is None else condition.shape
        expected = (*x.shape[:-1], self.num_condition_channels)
        if found != (expected if self.num_condition_channels else None):
            raise ValueError(
                f"the network was built for a condition of"
                f" {self.num_condition_channels} channels beside a sample {x.shape};"
                f" got {found}."
            )
        level = self.embedding(noise)
        level = jnp.broadcast_to(
            level.reshape((1,) * (x.ndim - 1) + (-1,)), (*x.shape[:-1], level.shape[-1])
        )
        told = [level] if condition is None else [level, condition.astype(level.dtype)]
        return self.trunk(jnp.concatenate(told, axis=-1), x)
