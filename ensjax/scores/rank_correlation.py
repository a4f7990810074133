"""Rank correlation: whether two numbers per row rise together."""

import jax
import jax.numpy as jnp

from ensjax.scores.regression import pearson_correlation
from ensjax.scores.rows import check_targets, mid_ranks, same_shape


def spearman_correlation(
    mean: jax.Array, targets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Spearman's correlation of predictions and targets (-1 to 1), `[...]`.

    Pearson's correlation of mid-ranks: equal values share the mean of their ranks. With
    weights a rank is the middle of the weight that its ties hold, which for counts is
    that of repeated rows.

    Args:
        mean: predicted values, `[..., batch]`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if either is constant, or a value that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.

    Source: Spearman 1904.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    undefined = (jnp.isnan(mean) | jnp.isnan(targets)) & (weight != 0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    first, second = (mid_ranks(x, weight) / total for x in (mean, targets))
    first = jnp.where(undefined, jnp.nan, first)
    return pearson_correlation(first, second, sample_weight=weight)


def error_rank_correlation(
    mean: jax.Array,
    uncertainty: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Spearman's correlation of uncertainties and absolute errors (-1 to 1), `[...]`.

    How well uncertainty ranks errors. Even if every error is drawn with exactly the
    standard deviation that was predicted, it stays well below 1.

    Args:
        mean: predicted values, `[..., batch]`.
        uncertainty: larger means less certain, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if either is constant.

    Raises:
        ValueError: if a shape does not fit.
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    uncertainty = same_shape("uncertainty", uncertainty, "mean", mean)
    error = jnp.abs(mean - targets)
    return spearman_correlation(uncertainty, error, sample_weight=weight)
