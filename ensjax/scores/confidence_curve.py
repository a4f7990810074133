"""Confidence curves: the error that is left when the least certain rows are dropped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import broadcast_rows, check_targets, floating, weighted_mean
from ensjax.scores.selective import RiskCoverage, curve_area, error_curve


class ConfidenceCurve(NamedTuple):
    """Errors of the rows that are kept over that of all, `[..., batch]`.

    The last axis counts the rows kept, from one to all. Rows dropped at random have a
    ratio of 1 on average, wherever the curve stands.

    Attributes:
        kept: fraction of the weight that is kept, rising to 1.
        error: ratio when the least certain rows are dropped first; 1 at the end.
        oracle: ratio when the rows of largest error are dropped first.
        weight: weight of the row that was added last; rows of weight 0 come last.
    """

    kept: jax.Array
    error: jax.Array
    oracle: jax.Array
    weight: jax.Array


def confidence_curve(
    mean: jax.Array,
    uncertainty: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> ConfidenceCurve:
    """Mean absolute error of the most certain rows over that of all rows.

    Rows of equal uncertainty have no order: each takes the mean error of its ties.

    Args:
        mean: predicted values, `[..., batch]`.
        uncertainty: larger means less certain (a standard deviation, a distance), of
            the same shape or `[batch]`; only its order counts.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `ConfidenceCurve` with fields `[..., batch]`; ratios are NaN if all errors are 0
        or an uncertainty that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.

    Source: De Breuck et al. 2021, arXiv:2102.02263 (confidence-error curves); Ilg et
    al. 2018, arXiv:1802.07095, section 4 (sparsification plots).
    """
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    uncertainty = broadcast_rows("uncertainty", floating(uncertainty), mean.shape)
    error = jnp.abs(mean - targets)
    total = weighted_mean(error, weight)
    undefined = jnp.any(jnp.isnan(uncertainty) & (weight != 0), axis=-1) | (total == 0)
    scale = jnp.where(undefined, jnp.nan, jnp.where(total == 0, 1.0, total))[..., None]
    ranked = error_curve(error, -uncertainty, weight)
    oracle = error_curve(error, -error, weight)
    return ConfidenceCurve(
        ranked.coverage, ranked.risk / scale, oracle.risk / scale, ranked.weight
    )


def confidence_curve_area(
    mean: jax.Array,
    uncertainty: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean of the confidence curve over the rows kept, `[...]`; below 1 is useful.

        A = mean_k (MAE of the k most certain rows) / MAE,    k = 1..n

    1 is what a random order has on average. `sparsification_error` is A minus that of
    the oracle. Arguments as for `confidence_curve`.
    """
    curve = confidence_curve(mean, uncertainty, targets, sample_weight=sample_weight)
    return curve_area(RiskCoverage(curve.kept, curve.error, curve.weight))
