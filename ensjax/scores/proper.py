"""Proper scores of class probabilities: log score, Brier score, ranked probability."""

import jax
import jax.numpy as jnp

from ensjax.scores.rows import check_rows, label_log_probs, weighted_mean


def nll(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean negative log-likelihood of the labels, in nats.

        NLL = - sum_n w_n log p(y_n | x_n) / sum_n w_n

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range makes
            the score NaN, unless its weight is 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative; a mask works too.

    Returns:
        `[...]`: one value per member for `[member, batch, class]`. The mean over
        members is the Gibbs NLL; the ensemble's is the NLL of `combine.mean_probs`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> round(float(scores.nll(jnp.zeros((3, 4)), jnp.array([0, 1, 2]))), 4)
        1.3863
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    return -weighted_mean(label_log_probs(log_probs, labels), weight)


def brier(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean Brier score, summed over classes: from 0 to 2, not halved.

        BS = mean_n sum_c (p_nc - 1[y_n = c])^2

    scikit-learn's `brier_score_loss(scale_by_half=True)` is half of it.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Brier 1950; Gneiting and Raftery 2007, section 3.1.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    target = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=log_probs.dtype)
    score = jnp.sum((jnp.exp(log_probs) - target) ** 2, axis=-1)
    undefined = jnp.isnan(label_log_probs(log_probs, labels))
    return weighted_mean(jnp.where(undefined, jnp.nan, score), weight)


def rps(
    log_probs: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean ranked probability score, for classes that have an order.

        RPS = mean_n sum_c (sum_{k <= c} p_nk - 1[y_n <= c])^2

    The sum is not divided by the number of classes minus one, as some do. For two
    classes it is half of `brier`.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`, in the order of
            the classes.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Epstein 1969; Murphy 1971.
    """
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    target = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=log_probs.dtype)
    score = jnp.sum(jnp.cumsum(jnp.exp(log_probs) - target, axis=-1) ** 2, axis=-1)
    undefined = jnp.isnan(label_log_probs(log_probs, labels))
    return weighted_mean(jnp.where(undefined, jnp.nan, score), weight)
