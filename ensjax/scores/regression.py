"""Scores of real-valued predictions: Gaussian NLL, CRPS, RMSE, mixture moments."""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.rows import broadcast_rows, row_weights, weighted_mean


def gaussian_nll(
    mean: jax.Array,
    variance: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean negative log-likelihood of a normal distribution, in nats (of target units).

        NLL = mean_n [log(2 pi s_n^2) + (y_n - mu_n)^2 / s_n^2] / 2

    Args:
        mean: `[..., batch]`.
        variance: the variance s^2, positive, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`, the constant log(2 pi) / 2 included. NaN or inf if a variance is not
        positive.

    Raises:
        ValueError: if a shape does not fit.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, equation 1.
    """
    mean, targets, weight = _check(mean, targets, sample_weight)
    variance = _same_shape("variance", variance, mean)
    squared = (targets - mean) ** 2 / variance
    return weighted_mean((jnp.log(2 * np.pi * variance) + squared) / 2, weight)


def crps_gaussian(
    mean: jax.Array,
    std: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean continuous ranked probability score of a normal; in target units.

        CRPS = s [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)],   z = (y - mu) / s

    Args:
        mean: `[..., batch]`.
        std: the standard deviation s, positive, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if a standard deviation is 0.

    Raises:
        ValueError: if a shape does not fit.

    Source: Gneiting and Raftery 2007, equation 21 (there with the sign reversed).
    """
    mean, targets, weight = _check(mean, targets, sample_weight)
    std = _same_shape("std", std, mean)
    z = (targets - mean) / std
    density = jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    # 2 Phi(z) - 1 = erf(z / sqrt 2), without cancellation near z = 0.
    inner = z * jax.scipy.special.erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi)
    return weighted_mean(std * inner, weight)


def rmse(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Root of the mean squared error over the batch, `[...]`, in target units.

    Args:
        mean: predicted values, `[..., batch]`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Raises:
        ValueError: if a shape does not fit.
    """
    mean, targets, weight = _check(mean, targets, sample_weight)
    return jnp.sqrt(weighted_mean((mean - targets) ** 2, weight))


def mae(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean absolute error over the batch, `[...]`, in target units.

    Arguments as for `rmse`.
    """
    mean, targets, weight = _check(mean, targets, sample_weight)
    return weighted_mean(jnp.abs(mean - targets), weight)


def mixture_moments(
    mean: jax.Array,
    variance: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the mixture of the members' distributions.

        mu = sum_m w_m mu_m,   s^2 = sum_m w_m s_m^2 + sum_m w_m (mu_m - mu)^2

    The first term of the variance is aleatoric, the second epistemic (divided by M, not
    M - 1: it is the variance of the mixture itself). One member gives its own moments.

    Args:
        mean: `[member, ...]`.
        variance: variances (not standard deviations), same shape as `mean`.
        weights: `[member]`, non-negative; they are normalised.
        mask: `[member]`; a False member counts as removed.

    Returns:
        `(mean, variance)`, each `[...]`.

    Raises:
        ValueError: if a shape does not fit.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4, with the
    variance in the form that does not cancel.
    """
    mean = _floating(mean)
    variance = _same_shape("variance", variance, mean)
    if mean.ndim < 1:
        raise ValueError("mean must be [member, ...]; got a scalar.")
    weights = row_weights(weights, mean.shape[:1], mean.dtype)
    if mask is not None:
        mask = broadcast_rows("mask", mask, mean.shape[:1]).astype(bool)
        weights = jnp.where(mask, weights, 0.0)
    weights = (weights / jnp.sum(weights)).reshape((-1,) + (1,) * (mean.ndim - 1))
    counts = weights != 0
    mean = jnp.where(counts, mean, 0.0)  # 0 * NaN is NaN
    variance = jnp.where(counts, variance, 0.0)
    center = jnp.sum(weights * mean, axis=0, keepdims=True)
    spread = jnp.sum(weights * (mean - center) ** 2, axis=0)
    return center[0], jnp.sum(weights * variance, axis=0) + spread


def _floating(values):
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _same_shape(name, values, mean):
    values = _floating(values)
    if values.shape != mean.shape:
        raise ValueError(
            f"{name} must have the shape of mean, {mean.shape}; got {values.shape}."
        )
    return values


def _check(mean, targets, sample_weight):
    mean = _floating(mean)
    if mean.ndim < 1:
        raise ValueError("mean must be [..., batch]; got a scalar.")
    targets = broadcast_rows("targets", _floating(targets), mean.shape)
    return mean, targets, row_weights(sample_weight, mean.shape, mean.dtype)
