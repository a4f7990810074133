"""Votes: each member names one class, and the classes are counted.

Two sums count as equal when they differ by less than 1e-6 of the total weight, so that
the order in which devices add them up decides nothing.
"""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import counting_members
from ensjax.ops.limits import between
from ensjax.predictions import (
    ABSTAIN,
    Predictions,
    as_predictions,
    predictive_log_probs,
)

TIES = ("lowest", "probability", "abstain", "random", "best_member")
_TOLERANCE = 1e-6


def majority_vote(
    logits: jax.Array | Predictions,
    *,
    ties: str = "lowest",
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    accuracy: jax.Array | None = None,
) -> jax.Array:
    """The class that most members put first (plurality).

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`
            (votes will do); members that abstain (-1, or a NaN row) do not count, nor
            do those whose weight inside `Predictions` is 0. Other weights are not used.
        ties: what decides among classes with equally many votes. `"lowest"`: the lowest
            index, as in scikit-learn. `"probability"`: the largest mean probability of
            all members that count. `"abstain"`: nothing, the answer is -1. `"random"`:
            chance, by `key`. `"best_member"`: the member of the largest `accuracy`
            among those that voted for one of these classes.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        key: random key, for `ties="random"`.
        accuracy: of each member on other rows, `[member]`, for `ties="best_member"`. Of
            equally good members the lowest class decides.

    Returns:
        `[batch]` class indices, int32; -1 where no member votes.

    Raises:
        ValueError: if a shape does not fit, `ties` is unknown, or what it needs is not
            given.
        TypeError: if `ties="probability"` and only votes are known.

    Source: Kuncheva 2004, section 4.2.
    """
    predictions = as_predictions(logits, mask=mask)
    # Whoever has no part in the mixture has none in the vote.
    weights, mask = predictions.weights, predictions.mask
    predictions = predictions.replace(mask=counting_members(weights, mask))
    weights = jnp.ones(predictions.num_members)
    return _decide(predictions, weights, ties, key, accuracy)


def weighted_vote(
    logits: jax.Array | Predictions,
    weights: jax.Array,
    *,
    ties: str = "lowest",
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    accuracy: jax.Array | None = None,
) -> jax.Array:
    """The class with the largest summed weight of the members that put it first.

        argmax_c sum_m w_m 1[y_m = c]

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`
            (votes will do). Weights inside `Predictions` are not used here.
        weights: `[member]` or `[member, batch]`, as from `accuracy_weights`; a negative
            one counts against the class, and a class that nobody names has the sum 0.
        ties: as in `majority_vote`.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        key, accuracy: as in `majority_vote`.

    Returns:
        `[batch]` class indices, int32; -1 where no member votes.

    Raises:
        ValueError: if a shape does not fit or `ties` is unknown.
        TypeError: if `ties="probability"` and only votes are known.

    Source: Kuncheva 2004, section 4.3.
    """
    predictions = as_predictions(logits, mask=mask)
    weights = jnp.asarray(weights, jnp.float32)
    shape = predictions.values.shape[:2]
    if weights.shape not in (shape[:1], shape):
        raise ValueError(
            f"weights must be [member] = {shape[:1]} or [member, batch] = {shape};"
            f" got shape {weights.shape}."
        )
    return _decide(predictions, weights, ties, key, accuracy)


def accuracy_weights(
    accuracy: jax.Array, num_classes: int, *, clip: float = 1e-3
) -> jax.Array:
    """Vote weights that are best for independent members of known accuracy.

        w_m = log((C - 1) a_m / (1 - a_m))

    0 for a member that guesses, negative below that.

    Args:
        accuracy: accuracy of each member on rows that are not used again, `[member]`.
        num_classes: number of classes C, at least 2.
        clip: accuracies are held between `clip` and 1 - `clip`, so that one faultless
            member does not outvote all others; 1 / (2 n) for n rows is natural.

    Returns:
        `[member]`.

    Raises:
        ValueError: if `num_classes` is below 2 or `clip` is not in (0, 0.5).

    Source: Kuncheva 2004, theorem 4.1; errors spread evenly over the other classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; got {num_classes}.")
    if not 0.0 < clip < 0.5:
        raise ValueError(f"clip must lie in (0, 0.5); got {clip}.")
    accuracy = between(jnp.asarray(accuracy, jnp.float32), clip, 1 - clip)
    return jnp.log((num_classes - 1) * accuracy / (1 - accuracy))


def _decide(predictions, weights, ties, key, accuracy):
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}; got {ties!r}.")
    for rule, name, value in (
        ("random", "key", key),
        ("best_member", "accuracy", accuracy),
    ):
        if (ties == rule) != (value is not None):
            raise ValueError(
                f'ties="{rule}" and {name}= go together; got ties={ties!r}.'
            )
    choices, mask = predictions.votes, predictions.mask
    weights = weights[:, None] if weights.ndim == 1 else weights
    mask = mask[:, None] if mask.ndim == 1 else mask
    # [member, batch]; what is no class is no vote, as -1 is not.
    counts = mask & (choices >= 0) & (choices < predictions.num_classes)
    weights = jnp.where(counts, weights, 0.0)
    # The one-hot row of a class out of range, such as -1, is all zeros.
    chosen = jax.nn.one_hot(choices, predictions.num_classes)
    sums = jnp.sum(weights[..., None] * chosen, axis=0)  # [batch, class]
    slack = _TOLERANCE * jnp.sum(jnp.abs(weights), axis=0)[:, None]
    tied = sums >= jnp.max(sums, axis=-1, keepdims=True) - slack

    lowest = jnp.argmax(tied, axis=-1).astype(jnp.int32)
    if ties == "lowest":
        winner = lowest
    elif ties == "abstain":
        winner = jnp.where(jnp.sum(tied, axis=-1) > 1, ABSTAIN, lowest)
    elif ties == "random":
        draws = jnp.where(tied, jax.random.uniform(key, tied.shape), -1.0)
        winner = jnp.argmax(draws, axis=-1).astype(jnp.int32)
    elif ties == "best_member":
        winner = _first_of_best(accuracy, counts, chosen, tied)
    else:
        # All members that count are equal here, whatever their votes weigh.
        pooled = predictive_log_probs(
            predictions.log_probs,
            jnp.ones(mask.shape[0]),
            jnp.broadcast_to(counts, choices.shape),
        )
        pooled = jnp.where(tied, pooled, -jnp.inf)
        best = pooled >= jnp.max(pooled, axis=-1, keepdims=True) - _TOLERANCE
        winner = jnp.argmax(best & tied, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(counts, axis=0), winner, ABSTAIN)


def _first_of_best(accuracy, counts, chosen, tied):
    """The tied class with the best member that names it, `[batch]`."""
    accuracy = jnp.asarray(accuracy, jnp.float32)
    if accuracy.shape != counts.shape[:1]:
        raise ValueError(
            f"accuracy must be [member] = {counts.shape[:1]}; got {accuracy.shape}."
        )
    names_it = (chosen > 0) & counts[..., None]
    best = jnp.where(names_it, accuracy[:, None, None], -jnp.inf)
    best = jnp.where(tied, jnp.max(best, axis=0), -jnp.inf)
    # A tied class that nobody names loses to those that somebody does.
    return jnp.argmax(best, axis=-1).astype(jnp.int32)
