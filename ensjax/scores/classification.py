"""Scores of the class that was chosen: accuracy, confusion, recall, F1, kappa, MCC."""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import TIE_TOLERANCE, wide_labels
from ensjax.predictions import votes
from ensjax.scores.rows import (
    bin_sum,
    check_rows,
    is_correct,
    label_log_probs,
    weighted_mean,
)


def accuracy(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Fraction of rows whose first choice is the label (0-1).

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`. Among equals (to
            rounding, as everywhere here) the lowest class counts as first.
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
        k: number of choices, at least 1. With no more classes than that every label is
            among them: 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `k` is below 1.
        TypeError: if `labels` are not integers.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    num_classes = log_probs.shape[-1]
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    picked = label_log_probs(log_probs, labels)
    classes = jnp.arange(num_classes).reshape((1,) * labels.ndim + (-1,))
    ahead = (log_probs > picked[..., None] + TIE_TOLERANCE) | (
        (log_probs >= picked[..., None] - TIE_TOLERANCE) & (classes < labels[..., None])
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
    return count_choices(votes(log_probs), labels, weight, log_probs.shape[-1])


def count_choices(
    choice: jax.Array, labels: jax.Array, weight: jax.Array, num_classes: int
) -> jax.Array:
    """`confusion_matrix` of the chosen classes `[..., batch]`, -1 for none.

    All three are `[..., batch]`. A NaN among the weights spoils every number.
    """
    labels = wide_labels(labels)  # also for the product below
    counted = (choice >= 0) & (labels >= 0) & (labels < num_classes)
    place = jnp.where(counted, labels * num_classes + choice, 0)
    sums = bin_sum(jnp.where(counted, weight, 0.0), place, num_classes**2)
    negative = jnp.any(jnp.isnan(weight), axis=-1)[..., None]
    sums = jnp.where(negative, jnp.nan, sums)
    return sums.reshape(*sums.shape[:-1], num_classes, num_classes)


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


def per_class_precision(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Share of right rows among those given each class, `[..., class]`.

    NaN for a class that is never chosen. Arguments as for `confusion_matrix`.
    """
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    return jnp.diagonal(counts, axis1=-2, axis2=-1) / jnp.sum(counts, axis=-2)


def per_class_f1(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """F1 = 2 TP / (2 TP + FP + FN) of each class, `[..., class]`; 0/0 counts as 0.

    Arguments as for `confusion_matrix`.
    """
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    twice_hits = 2 * jnp.diagonal(counts, axis1=-2, axis2=-1)
    total = jnp.sum(counts, axis=-1) + jnp.sum(counts, axis=-2)
    return jnp.where(total == 0, 0.0, twice_hits / total)


def macro_f1(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean over all classes of `per_class_f1`, `[...]`: 0/0 counts as 0.

    Arguments as for `confusion_matrix`.
    """
    return jnp.mean(per_class_f1(log_probs, labels, sample_weight=sample_weight), -1)


def balanced_classification_accuracy(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean over classes of the balanced accuracy of "this class or another", `[...]`.

        BCA = mean_c [TP_c / (TP_c + FN_c) + TN_c / (TN_c + FP_c)] / 2,   0/0 = 1/2

    It is not `balanced_accuracy`, which has no specificity in it. Arguments as for
    `confusion_matrix`.

    Source: Marinescu et al. 2020, arXiv:2002.03419 (the TADPOLE challenge).
    """
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    hits = jnp.diagonal(counts, axis1=-2, axis2=-1)
    of_class, chosen = jnp.sum(counts, axis=-1), jnp.sum(counts, axis=-2)
    others = jnp.sum(of_class, axis=-1, keepdims=True) - of_class
    rejected = others - (chosen - hits)
    sensitivity = jnp.where(of_class == 0, 0.5, hits / of_class)
    specificity = jnp.where(others == 0, 0.5, rejected / others)
    return jnp.mean((sensitivity + specificity) / 2, axis=-1)


def matthews_correlation(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Matthews correlation of labels and choices over all classes (-1 to 1), `[...]`.

        MCC = (s c - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

    where s is the weight of all rows, c of those that are right, and t_k and p_k of
    those that are and that are called k. 0 if all rows are or are called one class.
    Arguments as for `confusion_matrix`.

    Source: Gorodkin 2004, equation 8 (R_K).
    """
    true, chosen, agree = _shares(log_probs, labels, sample_weight)
    covariance = agree - jnp.sum(true * chosen, axis=-1)
    variances = (1 - jnp.sum(true**2, axis=-1)) * (1 - jnp.sum(chosen**2, axis=-1))
    # By the classes that occur: shares sum to 1 only to rounding.
    is_constant = ~jnp.isnan(agree) & (
        (jnp.sum(true > 0, axis=-1) < 2) | (jnp.sum(chosen > 0, axis=-1) < 2)
    )
    return jnp.where(
        is_constant, 0.0, covariance / jnp.sqrt(jnp.where(is_constant, 1.0, variances))
    )


def cohen_kappa(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    costs: str | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Cohen's kappa of labels and choices: agreement beyond chance, `[...]`.

        kappa = 1 - sum_tc d_tc n_tc / sum_tc d_tc e_tc

    where n_tc is the share of rows of class t that are called c, and e_tc that of
    independent choices with the same frequencies. (`kappa` compares members.)

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`.
        costs: of a mistake d_tc: None (1 for every one), "linear" |t - c| or
            "quadratic" (t - c)^2, for ordered classes.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if chance makes no mistake (one class alone).

    Raises:
        ValueError: if a shape does not fit or `costs` is unknown.
        TypeError: if `labels` are not integers.

    Source: Cohen 1960, 1968.
    """
    exponents = {None: 0, "linear": 1, "quadratic": 2}
    if costs not in exponents:
        raise ValueError(f'costs is None, "linear" or "quadratic"; got {costs!r}.')
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    shares = counts / jnp.sum(counts, axis=(-2, -1), keepdims=True)
    classes = jnp.arange(counts.shape[-1])
    distance = jnp.abs(classes[:, None] - classes[None, :]).astype(shares.dtype)
    cost = jnp.where(distance == 0, 0.0, distance ** exponents[costs])
    cost = cost.reshape((1,) * (shares.ndim - 2) + cost.shape)
    true, chosen = jnp.sum(shares, axis=-1), jnp.sum(shares, axis=-2)
    expected = jnp.sum(cost * true[..., :, None] * chosen[..., None, :], axis=(-2, -1))
    seen = jnp.sum(cost * shares, axis=(-2, -1))
    return jnp.where(expected == 0, jnp.nan, 1 - seen / expected)


def _shares(log_probs, labels, sample_weight):
    """Of all rows: those of each class, those called it, and those that are right."""
    counts = confusion_matrix(log_probs, labels, sample_weight=sample_weight)
    shares = counts / jnp.sum(counts, axis=(-2, -1), keepdims=True)
    agree = jnp.trace(shares, axis1=-2, axis2=-1)
    return jnp.sum(shares, axis=-1), jnp.sum(shares, axis=-2), agree
