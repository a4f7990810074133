"""Scores of the class that was chosen: accuracy, top-k, confusion, recall, F1."""

import jax
import jax.numpy as jnp

from ensjax.predictions import votes
from ensjax.scores.rows import check_rows, is_correct, label_log_probs, weighted_mean


def accuracy(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Fraction of rows whose first choice is the label (0-1).

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`. Among equals the
            lowest class counts as first.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range, or a
            NaN in the row, makes the score NaN, unless its weight is 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative; a mask works too.

    Returns:
        `[...]`: one value per member for `[member, batch, class]`. Their mean is the
        mean member's accuracy, not the ensemble's.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    return weighted_mean(is_correct(log_probs, labels), weight)


def top_k_accuracy(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    k: int = 5,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Fraction of rows whose label is among the first `k` choices (0-1).

    Among equals the lower class comes first, so k = 1 is `accuracy`.

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        k: number of choices, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `k` is not between 1 and the number of
            classes.
        TypeError: if `labels` are not integers.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    num_classes = log_probs.shape[-1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be between 1 and {num_classes} classes; got {k}.")
    picked = label_log_probs(log_probs, labels)
    classes = jnp.arange(num_classes).reshape((1,) * labels.ndim + (-1,))
    ahead = (log_probs > picked[..., None]) | (
        (log_probs == picked[..., None]) & (classes < labels[..., None])
    )
    hit = (jnp.sum(ahead, axis=-1) < k).astype(log_probs.dtype)
    return weighted_mean(jnp.where(jnp.isnan(picked), jnp.nan, hit), weight)


def confusion_matrix(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Weight of rows of each true class that were given each class.

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. Rows with a label out of
            range or a NaN are not counted: compare the sum with the number of rows.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[..., class, class]`, first the true class, then the chosen one (as in
        scikit-learn).

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    num_classes = log_probs.shape[-1]
    true = jax.nn.one_hot(labels, num_classes, dtype=log_probs.dtype)
    chosen = jax.nn.one_hot(votes(log_probs), num_classes, dtype=log_probs.dtype)
    # Counts must be exact, also where matrix products default to fewer bits.
    return jnp.einsum(
        "...nt,...nc->...tc", true * weight[..., None], chosen, precision="highest"
    )


def per_class_recall(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Accuracy on the rows of each class, `[..., class]`; NaN for a class without rows.

    Arguments as for `confusion_matrix`.
    """
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    return jnp.diagonal(counts, axis1=-2, axis2=-1) / jnp.sum(counts, axis=-1)


def balanced_accuracy(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean recall over the classes that have rows (0-1), `[...]`.

    Also called unweighted average recall. Arguments as for `confusion_matrix`.
    """
    recall = per_class_recall(log_probs, labels, sample_weight=sample_weight)
    return jnp.nanmean(recall, axis=-1)


def macro_f1(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean over all classes of F1 = 2 TP / (2 TP + FP + FN), `[...]`; 0/0 counts as 0.

    Arguments as for `confusion_matrix`.
    """
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    twice_hits = 2 * jnp.diagonal(counts, axis1=-2, axis2=-1)
    total = jnp.sum(counts, axis=-1) + jnp.sum(counts, axis=-2)
    return jnp.mean(jnp.where(total == 0, 0.0, twice_hits / total), axis=-1)
