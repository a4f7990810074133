"""What a rule sums over members: their values, and weights that sum to 1.

Values of members without weight are 0 where they are not finite, because 0 * NaN is
NaN: a broken member that is masked leaves no trace.
"""

import jax
import jax.numpy as jnp

from ensjax.predictions import (
    Predictions,
    as_points,
    as_predictions,
    weighted_log_probs,
)


def member_log_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities `[member, batch, class]` and weights that broadcast to them.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; None: those of the
            `Predictions`, or ones. They are normalised over the members that count.
        mask: `[member]` or `[member, batch]`; a False member has the weight 0.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.
    """
    return weighted_log_probs(as_predictions(logits, weights=weights, mask=mask))


def member_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Points `[member, batch, ...]`, 0 without weight, and weights of as many axes.

    Arguments as for `member_log_probs`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: for predictions that are no points.
    """
    predictions = as_points(points, weights=weights, mask=mask)
    values = predictions.values
    weights = predictions.normalized_weights.astype(values.dtype)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return jnp.where(weights == 0, 0.0, values), weights
