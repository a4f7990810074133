"""How well members rank classes: areas under ROC curves over several classes.

Rows are ordered by the log-odds of the class, since float32 probabilities near 1 are
equal; log-odds that are equal to rounding tie (`ties.merge_ties`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.confidence import class_log_odds
from ensjax.scores.ood import auroc
from ensjax.scores.rows import check_rows, label_log_probs
from ensjax.scores.ties import merge_ties


def macro_auroc(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean over classes of the AUROC of "this class or another" (0-1), `[...]`.

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range, or a
            NaN in the row, makes the score NaN, unless its weight is 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`, over the classes that some rows have and some have not; NaN if there is
        none.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Provost and Domingos 2001, with equal weights of classes.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    num_classes = log_probs.shape[-1]

    def of_class(k):
        own = merge_ties(class_log_odds(log_probs, k), weight)
        return auroc(own, labels == k, sample_weight=weight)

    areas = jax.lax.map(of_class, jnp.arange(num_classes))
    areas = jnp.moveaxis(areas, 0, -1)
    return _unless_undefined(jnp.nanmean(areas, axis=-1), log_probs, labels, weight)


def hand_till_auroc(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean over pairs of classes of how well the two are told apart (0-1), `[...]`.

        mAUC = 2 / (C (C - 1)) sum_{i < j} (A(i | j) + A(j | i)) / 2

    where A(i | j) is the AUROC of p_i among the rows of the two classes, ties counting
    half. It does not depend on how frequent the classes are.

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range, or a
            NaN in the row, makes the score NaN, unless its weight is 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`, over the pairs of classes that both have rows; NaN if there is none.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Hand and Till 2001, equation 7.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    num_classes = log_probs.shape[-1]

    def of_pair(pair):
        i, j = pair
        of_two = jnp.where((labels == i) | (labels == j), weight, 0.0)
        own = merge_ties(class_log_odds(log_probs, i), of_two)
        return auroc(own, labels == i, sample_weight=of_two)

    first, second = np.nonzero(~np.eye(num_classes, dtype=bool))
    areas = jax.lax.map(of_pair, (jnp.asarray(first), jnp.asarray(second)))
    areas = jnp.moveaxis(areas, 0, -1)
    return _unless_undefined(jnp.nanmean(areas, axis=-1), log_probs, labels, weight)


def _unless_undefined(value, log_probs, labels, weight):
    """NaN where a row that counts holds a NaN or a label out of range."""
    undefined = jnp.isnan(label_log_probs(log_probs, labels)) & (weight != 0)
    return jnp.where(jnp.any(undefined, axis=-1), jnp.nan, value)
