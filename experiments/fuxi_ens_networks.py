"""The networks of `fuxi_ens.py` at full size, whose shapes are planned."""

import jax
import jax.numpy as jnp
from flax import nnx

import ensjax

NUM_STATES = 2


class TransformerForecaster(nnx.Module):
    """The newest state, and beside it what a transformer over both states adds."""

    def __init__(self, network, scale: float):
        self.network, self.scale = network, scale

    def __call__(self, noise: None, state: jax.Array, earlier: jax.Array) -> jax.Array:
        """One step later, `[latitude, longitude, channel]`."""
        del noise
        both = jnp.concatenate([earlier, state], axis=-1)
        return state + self.scale * self.network(both)


def num_channels(config) -> int:
    """Of one state."""
    archive = config.archive
    upper = len(archive.upper_fields) * archive.num_levels
    return upper + len(archive.surface_fields)


def state_shape(config) -> tuple[int, ...]:
    """`(latitude, longitude, channel)`."""
    return (*config.archive.space, num_channels(config))


def networks(config, scale, rngs):
    """Forecaster, the networks of prior and posterior, and channels of a state."""
    model, channels = config.model, num_channels(config)

    def network(num_out, depth):
        return ensjax.nn.WindowTransformer(
            NUM_STATES * channels,
            num_out,
            space=config.archive.space,
            patch_size=model.patch_size,
            window=model.window,
            width=model.width,
            depth=depth,
            num_heads=model.num_heads,
            dtype=model.dtype,
            remat=model.remat,
            rngs=rngs,
        )

    forecaster = network(channels, model.forecaster_depth)
    both = 2 * NUM_STATES * channels  # means and log variances
    prior, posterior = (network(both, model.perturbation_depth) for _ in range(2))
    return TransformerForecaster(forecaster, scale), prior, posterior, channels
