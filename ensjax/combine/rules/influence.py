"""How much each member moves the consensus, and how far from it each one is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ensjax.predictions import ABSTAIN, Predictions
from ensjax.scores.rows import row_weights, weighted_mean

Rule = Callable[[Predictions], jax.Array]


def leave_one_out(rule: Rule, predictions: Predictions) -> jax.Array:
    """The consensus without each member in turn, `[member, batch, ...]`.

    Args:
        rule: `rule(predictions) -> [batch, ...]`: any rule of this room that takes
            `Predictions` alone, or a `functools.partial` of one.
        predictions: of two members or more; without the only one there is NaN (or, of
            votes, an abstention).

    Raises:
        ValueError, TypeError: those of the rule.
    """
    mask = predictions.mask

    def without(keep):
        own = keep if mask.ndim == 1 else keep[:, None]
        return rule(predictions.replace(mask=mask & own))

    return jax.lax.map(without, ~jnp.eye(predictions.num_members, dtype=bool))


def mask_nan(predictions: Predictions) -> Predictions:
    """The predictions, where each member is masked on rows on which it holds a NaN.

    A NaN in what it states beside its points (`scale`, `lower`, `upper`) counts as one.
    A rule then makes its consensus of the others. Without a NaN they stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> from ensjax.predictions import Predictions
        >>> said = Predictions.from_points(jnp.array([[1.0], [3.0], [jnp.nan]]))
        >>> combine.mean_points(combine.mask_nan(said)).tolist()
        [2.0]
    """
    broken = _is_broken(predictions)
    if not isinstance(broken, jax.core.Tracer) and not broken.any():
        return predictions
    mask = predictions.mask.reshape(predictions.num_members, -1) & ~broken
    return predictions.replace(mask=mask)


def influence(
    rule: Rule, predictions: Predictions, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """How far the consensus moves when a member is left out, `[member]`.

    The consensus is that of the members without a NaN (`mask_nan`), so that one broken
    member does not hide what the others do. Its own influence is infinite.

    The mean over rows of `|difference|` (of points and quantiles, averaged over targets
    or levels), of half the sum of absolute differences of probabilities (total
    variation, 0-1), or of whether the choice changes (rules that return classes).
    0 for a masked member.

    Args:
        rule, predictions: as for `leave_one_out`; rules of classes return
            log-probabilities or class indices.
        sample_weight: `[batch]`, non-negative.
    """
    whole = mask_nan(predictions)
    moved = leave_one_out(rule, whole)
    distances = _distance(predictions, moved, rule(whole)[None])
    counts = predictions.mask.reshape(predictions.num_members, -1)
    distances = jnp.where(counts & _is_broken(predictions), jnp.inf, distances)
    weight = row_weights(sample_weight, distances.shape[1:], distances.dtype)
    return weighted_mean(distances, jnp.broadcast_to(weight, distances.shape))


def consensus_distance(
    predictions: Predictions,
    consensus: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean distance of each member to the consensus, `[member]`.

    Distances are those of `influence`. A large one marks a member that is broken, or
    that alone is right.

    Args:
        predictions: of the members; rows that are masked, or on which a member
            abstains, do not count for it. Nor does a row whose consensus is NaN, but
            for members that are NaN themselves: these have an infinite distance.
        consensus: `[batch, class]` log-probabilities, `[batch]` classes, or `[batch]`
            or `[batch, target]` points, as a rule returns them. One NaN among the
            members makes that of most rules NaN: give `rule(mask_nan(predictions))`.
        sample_weight: `[batch]`, non-negative.

    Returns:
        NaN for a member without rows.

    Raises:
        ValueError: if a shape does not fit.
    """
    members = predictions.values
    if predictions.kind in ("logits", "log_probs"):
        classes = jnp.issubdtype(jnp.asarray(consensus).dtype, jnp.integer)
        members = predictions.votes if classes else predictions.log_probs
    consensus = jnp.asarray(consensus)[None]
    if consensus.shape[1:] != members.shape[1:]:
        raise ValueError(
            f"consensus must be {members.shape[1:]}; got shape {consensus.shape[1:]}."
        )
    distances = _distance(predictions, members, consensus)
    weight = row_weights(sample_weight, distances.shape[1:], distances.dtype)
    counts = predictions.mask.reshape(predictions.num_members, -1)
    if jnp.issubdtype(members.dtype, jnp.integer):
        counts = counts & (members != ABSTAIN)
    else:
        broken = _values_are_broken(predictions)
        distances = jnp.where(broken, jnp.inf, distances)
        counts = counts & (broken | ~_holds_nan(consensus))
    return weighted_mean(distances, jnp.where(counts, weight[None], 0.0))


def _is_broken(predictions):
    """Whether a member holds a NaN on a row, `[member, batch]`; votes never do."""
    broken = _values_are_broken(predictions)
    for part in (predictions.scale, predictions.lower, predictions.upper):
        if part is not None:
            broken |= _holds_nan(part)
    return broken


def _values_are_broken(predictions):
    """The same of what a consensus is made of, whatever is stated beside it."""
    if predictions.kind in ("logits", "log_probs"):
        return _holds_nan(predictions.log_probs)
    return _holds_nan(predictions.values)


def _holds_nan(values):
    """`[member, batch, ...]` to `[member, batch]`."""
    return jnp.isnan(values).reshape(*values.shape[:2], -1).any(axis=-1)


def _distance(predictions, first, second):
    """Of two arrays `[member, batch, ...]`, the second with one member or all."""
    if jnp.issubdtype(first.dtype, jnp.integer):
        return (first != second).astype(jnp.float32)
    if predictions.kind in ("logits", "log_probs"):
        difference = jnp.abs(jnp.exp(first) - jnp.exp(second))
        return jnp.sum(difference, axis=-1) / 2
    difference = jnp.abs(first - second)
    return difference.reshape(*difference.shape[:2], -1).mean(axis=-1)
