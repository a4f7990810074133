"""Losses of denoisers, for one example and as a loss of `fit`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.train.losses import example_keys, weighted_mean


def denoising_loss(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    sigma: jax.Array,
    noise: jax.Array,
    *,
    weight: jax.Array | float = 1.0,
    place_weights: Any = None,
) -> jax.Array:
    """weight * mean (D(x0 + sigma noise, sigma) - x0)^2 of one example.

    Args:
        denoise: `denoise(x, sigma) -> [*shape]`.
        x0: the clean sample, `[*shape]`.
        sigma: the noise level.
        noise: of unit variance, `[*shape]`.
        weight: such as `EDM().weight(sigma)`.
        place_weights: of the mean, numbers `[*space]` or of its first axes only, such
            as areas `[lat]` of a sample `[lat, lon, channel]`; None: all alike. They
            are static, and only their ratios count.

    Returns:
        A scalar in float32.

    Raises:
        ValueError: if weights are not of the sample's shape, negative, not finite, or
            all 0.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 2.
    """
    error = denoise(x0 + sigma * noise, sigma) - x0
    squared = jnp.square(error.astype(jnp.float32))
    if place_weights is not None:
        squared = weights_of_mean_1(place_weights, x0.shape) * squared
    return weight * jnp.mean(squared)


def weights_of_mean_1(weights, shape):
    """Weights of places, float32, that broadcast with a sample of this shape."""
    weights = np.asarray(weights, np.float64)
    if not weights.ndim or weights.shape != shape[:-1][: weights.ndim]:
        raise ValueError(
            "place_weights must be [*space], or of its first axes, of samples [*space,"
            f" channel] = {shape}; got shape {weights.shape}."
        )
    mean = weights.mean()
    if not np.isfinite(weights).all() or weights.min() < 0 or mean == 0:
        raise ValueError(
            "place_weights must be finite and at least 0, and not all 0; got"
            f" {weights.min()} to {weights.max()}."
        )
    weights = (weights / mean).astype(np.float32)
    return weights.reshape(*weights.shape, *(1,) * (len(shape) - weights.ndim))


def check_place_weights(weights: Any) -> None:
    """Raises `TypeError` unless they are None or a tuple: a loss is hashed."""
    if not isinstance(weights, tuple | None):
        raise TypeError(
            "place_weights is a tuple of numbers, or of tuples, such as"
            f" tuple(areas); got {type(weights).__name__}."
        )


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
        place_weights: of places, as in `denoising_loss`, in (nested) tuples; on a
            sphere areas of latitudes, `tuple(verification.gauss_weights(num_lat))`.

    Raises:
        TypeError: if `place_weights` is no tuple: a loss is part of the program.
    """

    parametrisation: Any
    noise: Callable[[jax.Array], jax.Array]
    place_weights: tuple[Any, ...] | None = None

    def __post_init__(self):
        check_place_weights(self.place_weights)

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
        return denoising_loss(
            denoise, x0, sigma, noise, weight=weight, place_weights=self.place_weights
        )
