"""Losses of denoisers, for one example and as a loss of `fit`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.train.losses import example_keys, weighted_mean


def denoising_loss(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    sigma: jax.Array,
    noise: jax.Array,
    *,
    weight: jax.Array | float = 1.0,
) -> jax.Array:
    """weight * mean (D(x0 + sigma noise, sigma) - x0)^2 of one example.

    Args:
        denoise: `denoise(x, sigma) -> [*shape]`.
        x0: the clean sample, `[*shape]`.
        sigma: the noise level.
        noise: of unit variance, `[*shape]`.
        weight: such as `EDM().weight(sigma)`.

    Returns:
        A scalar in float32.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 2.
    """
    error = denoise(x0 + sigma * noise, sigma) - x0
    return weight * jnp.mean(jnp.square(error.astype(jnp.float32)))


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """A loss of `fit` for batches of clean samples and conditions.

    Called as `loss(model, batch, key)`, where `batch` is `(x0, condition)` with leaves
    `[batch, ...]`; the condition may be None. The model is a network of one sample,
    `model(x, noise, condition) -> [*shape]`. Level and noise of an example depend on
    its place in the global batch, so that they are the same on every mesh.

    Attributes:
        parametrisation: `EDM` or `VE`.
        noise: `noise(key) -> sigma`, such as `LogNormalNoise()`.
    """

    parametrisation: Any
    noise: Callable[[jax.Array], jax.Array]

    def __call__(self, model, batch, key, weight=None):
        """The mean loss of the batch; `weight` `[batch]` weighs its rows."""
        x0, condition = batch
        keys = example_keys(key, x0.shape[0])
        losses = jax.vmap(lambda *one: self.of_one(model, *one))(keys, x0, condition)
        return weighted_mean(losses, weight)

    def of_one(self, model: Any, key: Any, x0: Any, condition: Any) -> jax.Array:
        """The loss of one example."""
        sigma_key, noise_key = jax.random.split(key)
        sigma = self.noise(sigma_key)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)

        def denoise(x, sigma):
            return self.parametrisation.denoise(model, x, sigma, condition)

        weight = self.parametrisation.weight(sigma)
        return denoising_loss(denoise, x0, sigma, noise, weight=weight)
