"""Which member is best: over all rows, and in each row (the oracle).

Both are bounds, not systems: they are chosen by the truth. An ensemble that is worse
than its best member should not be used for its score; the distance to the oracle is
what a perfect choice of members would still gain.
"""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import wide_labels
from ensjax.predictions import ABSTAIN, votes
from ensjax.predictions import log_probs as normalize
from ensjax.scores.regression import pinball
from ensjax.scores.rows import (
    broadcast_rows,
    check_rows,
    check_targets,
    label_log_probs,
)

LARGER_IS_BETTER = (
    *("accuracy", "balanced_accuracy", "balanced_classification_accuracy"),
    *("cohen_kappa", "macro_f1", "matthews_correlation", "top_k_accuracy"),
    *("coverage_at_risk", "error_auroc", "hand_till_auroc", "macro_auroc"),
    *("r2", "pearson_correlation", "spearman_correlation"),
)


def best_member(
    name: str, values: jax.Array, counts: jax.Array, larger_is_better: bool
) -> jax.Array:
    """The index of the member with the best value, the first among equals, a scalar.

    Args:
        name: of the metric; a slope is best at 1.
        values: `[member]`; a NaN is worse than any number.
        counts: bool, `[member]`.
        larger_is_better: else the smallest value is the best.
    """
    if name == "slope":
        loss = jnp.abs(values - 1)
    else:
        loss = -values if larger_is_better else values
    return jnp.argmin(_loss_of(loss, counts))


def oracle_log_probs(
    log_probs: jax.Array, labels: jax.Array, counts: jax.Array
) -> jax.Array:
    """In each row the member that gives the label the most, of those that are right.

    Of all members where none is right. Its accuracy is the share of rows that some
    member gets right.

    Args:
        log_probs: `[member, batch, class]`.
        labels: `[batch]`.
        counts: bool, `[member, batch]`.

    Returns:
        `[batch, class]`; NaN in rows without a member.
    """
    values, labels, _ = check_rows(log_probs, labels)
    right = counts & (votes(values) == labels)
    loss = -label_log_probs(values, labels)
    some = jnp.any(right, axis=0, keepdims=True)
    loss = jnp.where(some & ~right, jnp.inf, loss)
    return choose_rows(normalize(log_probs), loss, counts)


def oracle_votes(votes: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """The label where some member names it, else what the first member says, `[batch]`.

    Args:
        votes: `[member, batch]`.
        labels: `[batch]`.
        counts: bool, `[member, batch]`.

    Returns:
        Class indices of the dtype of `votes`; -1 in rows without a member.

    Raises:
        TypeError: if `labels` are not integers.
        ValueError: if a shape does not fit.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers [batch]; got {labels.dtype}.")
    labels = broadcast_rows("labels", wide_labels(labels), votes.shape[1:])
    labels = labels.astype(votes.dtype)
    right = counts & (votes == labels[None])
    first = jnp.take_along_axis(votes, jnp.argmax(counts, axis=0)[None], axis=0)[0]
    first = jnp.where(jnp.any(counts, axis=0), first, ABSTAIN)
    return jnp.where(jnp.any(right, axis=0), labels, first)


def oracle_points(
    points: jax.Array, targets: jax.Array, counts: jax.Array
) -> jax.Array:
    """In each row the member that is nearest to the target, `[batch]`.

    Args:
        points: `[member, batch]`.
        targets: `[batch]`.
        counts: bool, `[member, batch]`.
    """
    points, targets, _ = check_targets("points", points, targets)
    return choose_rows(points, jnp.abs(points - targets), counts)


def oracle_quantiles(
    quantiles: jax.Array, targets: jax.Array, counts: jax.Array, *, levels: jax.Array
) -> jax.Array:
    """In each row the member with the least pinball loss over levels, `[batch, level]`.

    Args:
        quantiles: `[member, batch, level]`.
        targets: `[batch]`.
        counts: bool, `[member, batch]`.
        levels: `[level]`.
    """
    # A row is a batch of its own here.
    losses = pinball(quantiles[:, :, None], targets[:, None], levels=levels)
    return choose_rows(quantiles, jnp.sum(losses, axis=-1), counts)


def choose_rows(values, loss, counts):
    """`values [member, batch, ...]` of the member with the least loss in each row."""
    best = jnp.argmin(_loss_of(loss, counts), axis=0)
    index = best.reshape(1, -1, *(1,) * (values.ndim - 2))
    chosen = jnp.take_along_axis(values, index, axis=0)[0]
    some = jnp.any(counts, axis=0).reshape(-1, *(1,) * (values.ndim - 2))
    return jnp.where(some, chosen, jnp.nan)


def _loss_of(loss, counts):
    # Behind every member that counts stand those that do not; a NaN is not chosen
    # while there is a number.
    loss = jnp.where(jnp.isnan(loss), jnp.inf, loss)
    largest = jnp.finfo(loss.dtype).max
    return jnp.where(counts, jnp.minimum(loss, largest), jnp.inf)
