"""Out-of-bag predictions: each row by the members that were not trained on it.

Bagged members leave about a third of the rows out, so that an ensemble has honest
predictions of its own training rows for free: for scores, calibration, and weights.
`counts` are the weights of every row in every member's resample, `[member, example]`;
0 says that a member has not seen the row (`data.bootstrap_weights`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.rules.average import mean_probs
from ensjax.data.sampling import out_of_bag
from ensjax.member_arrays import counting_members
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import LeakageError
from ensjax.scores.decomposition import MemberMoments, member_moments


def out_of_bag_predictions(
    predictions: jax.Array | Predictions, counts: jax.Array
) -> Predictions:
    """The predictions of training rows, with every member masked where it trained.

    Every rule and score that takes a mask `[member, batch]` is then out of bag.

    Args:
        predictions: of the training rows, `[member, batch, class]` logits or
            `Predictions` (votes too); a mask of theirs is kept.
        counts: `[member, batch]`, not negative.

    Raises:
        ValueError: if a shape does not fit.

    Source: Breiman 1996, "Out-of-bag estimation".
    """
    predictions = as_predictions(predictions)
    mask = predictions.mask.reshape(predictions.num_members, -1)
    counts = _counts(counts, predictions.values.shape[:2])
    return as_predictions(predictions, mask=out_of_bag(counts) & mask)


def out_of_bag_log_probs(
    predictions: jax.Array | Predictions, counts: jax.Array
) -> jax.Array:
    """Log of the out-of-bag members' mean probability, `[batch, class]`, in nats.

    NaN in rows that every member has seen. Arguments as for `out_of_bag_predictions`.

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: if `Predictions` say that a member was trained on a row that it
            left out by `counts`. In a compiled program, where counts are not known and
            nothing can raise, such a row is NaN.
    """
    held_out = out_of_bag_predictions(predictions, counts)
    is_leak = _leaks(held_out)
    return jnp.where(is_leak[:, None], jnp.nan, mean_probs(held_out))


def out_of_bag_points(
    points: jax.Array, counts: jax.Array, *, ddof: int, mask: jax.Array | None = None
) -> MemberMoments:
    """Mean and spread of real-valued predictions over the out-of-bag members.

    Args:
        points: of the training rows, `[member, batch, ...]`.
        counts: `[member, batch]`, not negative.
        ddof: 0 or 1, of the spread; see `scores.member_moments`.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `MemberMoments`; NaN in rows that every member has seen.

    Raises:
        ValueError: if a shape does not fit.
    """
    points = jnp.asarray(points)
    kept = out_of_bag(_counts(counts, points.shape[:2]))
    if mask is not None:
        mask = jnp.asarray(mask).astype(bool)
        if mask.shape not in (kept.shape[:1], kept.shape):
            raise ValueError(
                f"mask must be [member] or [member, batch] = {kept.shape}; got"
                f" {mask.shape}."
            )
        kept &= mask.reshape(len(mask), -1)
    return member_moments(points, ddof=ddof, mask=kept)


def out_of_bag_score(
    score: Callable[..., jax.Array],
    predictions: jax.Array | Predictions,
    counts: jax.Array,
    labels: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """A score of the out-of-bag ensemble on its own training rows.

    Rows that every member has seen do not count.

    Args:
        score: `score(log_probs, labels, *, sample_weight)`, such as `scores.accuracy`.
        predictions: as for `out_of_bag_predictions`.
        counts: `[member, batch]`.
        labels: class indices, `[batch]`.
        sample_weight: `[batch]`, non-negative.

    Returns:
        What `score` returns.

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: as `out_of_bag_log_probs`, for rows with a weight; in a compiled
            program the score is then NaN.
    """
    held_out = out_of_bag_predictions(predictions, counts)
    known = jnp.any(held_out.mask & (held_out.normalized_weights > 0), axis=0)
    weight = jnp.ones(known.shape) if sample_weight is None else sample_weight
    weight = jnp.where(known, jnp.asarray(weight, jnp.float32), 0.0)
    is_leak = jnp.any(_leaks(held_out, weight) & (weight != 0))
    found = score(mean_probs(held_out), labels, sample_weight=weight)
    return jnp.where(is_leak, jnp.nan, found)


def _leaks(held_out, weight=None):
    """`[batch]`, where a member is said to have seen what it left out; raises if known.

    Args:
        held_out: of `out_of_bag_predictions`.
        weight: `[batch]`; rows of weight 0 do not count.
    """
    about, shape = held_out.provenance, held_out.values.shape[:2]
    if about is None or about.seen is None:
        return jnp.zeros(shape[1], bool)
    if len(about.rows) != shape[1]:
        raise ValueError(
            f"the provenance is of {len(about.rows)} rows, the predictions of"
            f" {shape[1]}; choose rows with Predictions.take."
        )
    counts = counting_members(held_out.weights, held_out.mask)
    leaks = jnp.any(counts & about.seen, axis=0)
    if weight is not None:
        leaks &= weight != 0
    if isinstance(leaks, jax.core.Tracer) or not leaks.any():
        return leaks
    rows = np.unique(about.rows[np.asarray(leaks)])
    raise LeakageError(
        f"by counts members left out {len(rows)} rows of {about.source!r} (the first is"
        f" row {rows[0]}) that they were trained on by the provenance. Give the counts"
        " of these rows and members, in their order."
    )


def _counts(counts, shape):
    counts = jnp.asarray(counts)
    if counts.shape != shape:
        raise ValueError(
            f"counts must be [member, batch] = {shape}, of the rows that were"
            f" predicted; got shape {counts.shape}."
        )
    return counts
