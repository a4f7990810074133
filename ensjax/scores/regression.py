"""Scores of real-valued predictions: Gaussian NLL, CRPS, errors, mixture moments."""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.rows import (
    broadcast_rows,
    check_targets,
    floating,
    row_weights,
    same_shape,
    weighted_mean,
)

# Sums of weights that are equal may differ by rounding.
_TOLERANCE = 1e-6


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
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    variance = same_shape("variance", variance, "mean", mean)
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
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    std = same_shape("std", std, "mean", mean)
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
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    return jnp.sqrt(weighted_mean((mean - targets) ** 2, weight))


def mae(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean absolute error over the batch, `[...]`, in target units.

    Arguments as for `rmse`.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    return weighted_mean(jnp.abs(mean - targets), weight)


def median_absolute_error(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Median of the absolute errors over the batch, `[...]`, in target units.

    With weights, the mean of the smallest error at which at least half of the weight is
    reached and the smallest at which more than half is: equal weights give the usual
    median. Arguments as for `rmse`.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    error = jnp.where(weight == 0, jnp.inf, jnp.abs(mean - targets))
    order = jnp.argsort(error, axis=-1)
    error = jnp.take_along_axis(error, order, axis=-1)
    reached = jnp.cumsum(jnp.take_along_axis(weight, order, axis=-1), axis=-1)
    half = reached[..., -1:] / 2
    slack = _TOLERANCE * half
    lower = jnp.argmax(reached >= half - slack, axis=-1)[..., None]
    upper = jnp.argmax(reached > half + slack, axis=-1)[..., None]
    ends = [jnp.take_along_axis(error, place, axis=-1) for place in (lower, upper)]
    undefined = jnp.any(jnp.isnan(error) & (weight != 0), axis=-1)
    undefined |= ~(reached[..., -1] > 0)
    return jnp.where(undefined, jnp.nan, (ends[0] + ends[1])[..., 0] / 2)


def max_error(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Largest absolute error among the rows of weight above 0, `[...]`, target units.

    Arguments as for `rmse`.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    error = jnp.where(weight == 0, -jnp.inf, jnp.abs(mean - targets))
    largest = jnp.max(error, axis=-1)
    undefined = jnp.any(jnp.isnan(weight), axis=-1) | jnp.isneginf(largest)
    return jnp.where(undefined, jnp.nan, largest)


def r2(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Coefficient of determination 1 - sum (y - f)^2 / sum (y - ybar)^2, `[...]`.

    1 is best, 0 what the targets' own mean reaches; NaN for targets that are all equal.
    Arguments as for `rmse`.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    center = weighted_mean(targets, weight)[..., None]
    variance = weighted_mean((targets - center) ** 2, weight)
    error = weighted_mean((mean - targets) ** 2, weight)
    return jnp.where(
        variance == 0, jnp.nan, 1 - error / jnp.where(variance == 0, 1.0, variance)
    )


def pearson_correlation(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Pearson correlation of predictions and targets (-1 to 1), `[...]`.

    NaN if either is constant. Arguments as for `rmse`.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)

    def centered(values):
        return values - weighted_mean(values, weight)[..., None]

    a, b = centered(mean), centered(targets)
    covariance = weighted_mean(a * b, weight)
    variances = weighted_mean(a**2, weight) * weighted_mean(b**2, weight)
    is_constant = variances == 0
    return jnp.where(
        is_constant,
        jnp.nan,
        covariance / jnp.sqrt(jnp.where(is_constant, 1, variances)),
    )


def slope(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Least-squares slope of targets on predictions, `[...]`; 1 is best.

        cov(f, y) / var(f)

    Below 1, predictions are spread too far; above 1, too little. Others fit predictions
    on targets instead, which noise in the targets brings below 1. NaN for predictions
    that are all equal. Arguments as for `rmse`.

    Source: Cox 1958 (calibration slope).
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    away = mean - weighted_mean(mean, weight)[..., None]
    covariance = weighted_mean(
        away * (targets - weighted_mean(targets, weight)[..., None]), weight
    )
    variance = weighted_mean(away**2, weight)
    return covariance / jnp.where(variance == 0, jnp.nan, variance)


def pinball(
    quantiles: jax.Array,
    targets: jax.Array,
    *,
    levels: jax.Array,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean pinball (quantile) loss of each level, in target units.

        L_a = mean_n max(a (y_n - q_n), (a - 1) (y_n - q_n))

    Args:
        quantiles: `[..., batch, level]`.
        targets: `[batch]` or `[..., batch]`.
        levels: probabilities of the quantiles, `[level]`, each in (0, 1) (not checked
            where it is traced).
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[..., level]`. Twice its mean over levels that are spread evenly is near the
        CRPS.

    Raises:
        ValueError: if a shape does not fit.

    Source: Koenker and Bassett 1978.
    """
    by_level = jnp.moveaxis(pinball_losses(quantiles, targets, levels=levels), -1, 0)
    weight = row_weights(sample_weight, by_level.shape[1:], by_level.dtype)
    return jnp.moveaxis(weighted_mean(by_level, weight[None]), 0, -1)


def pinball_losses(
    quantiles: jax.Array, targets: jax.Array, *, levels: jax.Array
) -> jax.Array:
    """The pinball loss of every row and level, `[..., batch, level]`; see `pinball`.

    Raises:
        ValueError: if a shape does not fit.
    """
    quantiles, levels = floating(quantiles), floating(levels)
    if quantiles.ndim < 2 or levels.shape != quantiles.shape[-1:]:
        raise ValueError(
            "quantiles must be [..., batch, level] and levels [level]; got shapes"
            f" {quantiles.shape} and {levels.shape}."
        )
    targets = broadcast_rows("targets", floating(targets), quantiles.shape[:-1])
    over = targets[..., None] - quantiles
    levels = levels.reshape((1,) * (quantiles.ndim - 1) + (-1,))
    return jnp.where(over >= 0, levels * over, (levels - 1) * over)


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
    mean = floating(mean)
    variance = same_shape("variance", variance, "mean", mean)
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
