"""How well one number per row tells two kinds of rows apart.

For out-of-distribution detection the positives are the rows that should be found, and
the number is an uncertainty: larger means more likely positive. All scores use only the
order of the numbers, and treat ties as ties: no result depends on the order of rows.
"""

import jax
import jax.numpy as jnp

from ensjax.scores.rows import as_kinds, broadcast_rows, row_weights

_TOLERANCE = 1e-6


def auroc(
    scores: jax.Array,
    is_positive: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Chance that a positive scores above a negative, ties counting half (0-1).

        AUROC = (sum of mid-ranks of positives - n_pos (n_pos + 1) / 2) / (n_pos n_neg)

    Args:
        scores: larger means more positive, `[..., batch]`.
        is_positive: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if one kind has no rows, or a score that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `is_positive` is not bool or integer.

    Source: Hanley and McNeil 1982; Fawcett 2006.
    """
    scores, positive, negative = split_rows(scores, is_positive, sample_weight)
    above = mass_above(scores, negative, side="left")
    at_or_above = mass_above(scores, negative, side="right")
    total = jnp.sum(negative, axis=-1)
    # A mean of fractions, not a sum of ranks: ranks squared outgrow float32.
    below = 1.0 - (above + at_or_above) / (2 * total[..., None])
    area = jnp.sum(below * positive, axis=-1) / jnp.sum(positive, axis=-1)
    # Sums of the same weights in another order leave a rest at either end.
    area = jnp.where(area < 0, 0.0, jnp.where(area > 1, 1.0, area))
    return _unless_nan(area, scores, positive + negative)


def auprc(
    scores: jax.Array,
    is_positive: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Average precision: the mean over positives of the precision at their score (0-1).

        AP = sum_n (R_n - R_{n-1}) P_n      over the distinct thresholds

    No interpolation between thresholds (as in scikit-learn). It depends on the fraction
    of positives, which a random order scores.

    Args:
        scores: larger means more positive, `[..., batch]`.
        is_positive: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN without positives, or if a score that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `is_positive` is not bool or integer.
    """
    scores, positive, negative = split_rows(scores, is_positive, sample_weight)
    hits = mass_above(scores, positive, side="right")
    alarms = hits + mass_above(scores, negative, side="right")
    precision = jnp.where(positive > 0, hits / alarms, 0.0)
    area = jnp.sum(precision * positive, axis=-1) / jnp.sum(positive, axis=-1)
    return _unless_nan(area, scores, positive + negative)


def fpr_at_tpr(
    scores: jax.Array,
    is_positive: jax.Array,
    *,
    tpr: float = 0.95,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Smallest false positive rate at which at least `tpr` of the positives are found.

    Thresholds are the scores themselves, without interpolation between them.

    Args:
        scores: larger means more positive, `[..., batch]`.
        is_positive: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        tpr: true positive rate to be reached, in (0, 1].
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]` (0-1); NaN if one kind has no rows, or a score that counts is NaN.

    Raises:
        ValueError: if a shape does not fit or `tpr` is not in (0, 1].
        TypeError: if `is_positive` is not bool or integer.
    """
    if not 0.0 < tpr <= 1.0:
        raise ValueError(f"tpr must lie in (0, 1]; got {tpr}.")
    scores, positive, negative = split_rows(scores, is_positive, sample_weight)
    num_positive = jnp.sum(positive, axis=-1)
    num_negative = jnp.sum(negative, axis=-1)
    found = mass_above(scores, positive, side="right") / num_positive[..., None]
    false_rate = mass_above(scores, negative, side="right") / num_negative[..., None]
    reached = (found >= tpr - _TOLERANCE) & (positive > 0)
    rate = jnp.min(jnp.where(reached, false_rate, 1.0), axis=-1)
    empty = (num_positive == 0) | (num_negative == 0)
    return _unless_nan(jnp.where(empty, jnp.nan, rate), scores, positive + negative)


def split_rows(
    scores: jax.Array, is_positive: jax.Array, sample_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, and the weight of each row as a positive and as a negative.

    All three are `[..., batch]`, checked as `auroc` says.
    """
    scores = jnp.asarray(scores)
    if scores.ndim < 1:
        raise ValueError("scores must be [..., batch]; got a scalar.")
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    is_positive = as_kinds("is_positive", is_positive)
    is_positive = broadcast_rows("is_positive", is_positive, scores.shape)
    weight = row_weights(sample_weight, scores.shape, scores.dtype)
    return (
        scores,
        jnp.where(is_positive, weight, 0.0),
        jnp.where(is_positive, 0.0, weight),
    )


def mass_above(scores: jax.Array, weight: jax.Array, *, side: str) -> jax.Array:
    """Weight of the rows above each score ("left"), or at and above it ("right").

    All `[..., batch]`.
    """

    def one(scores, weight):
        falling = -scores
        order = jnp.argsort(falling)
        ends = jnp.concatenate([jnp.zeros(1, weight.dtype), jnp.cumsum(weight[order])])
        return ends[jnp.searchsorted(falling[order], falling, side=side)]

    flat = (x.reshape(-1, x.shape[-1]) for x in (scores, weight))
    return jax.vmap(one)(*flat).reshape(scores.shape)


def _unless_nan(value, scores, weight):
    undefined = jnp.any(jnp.isnan(scores) & (weight != 0), axis=-1)
    return jnp.where(undefined, jnp.nan, value)
