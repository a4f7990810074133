"""A soft vote whose weights were fitted on validation rows, by how often each is right.

Weights by accuracy are rough: with one view much better than the others the vote may
lose to it. `best` says which single member validation would choose; report it beside.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_predictions,
    check_some_count,
    check_use,
    covered_weight,
)
from ensjax.combine.rules.average import mean_probs
from ensjax.combine.rules.pool import give_back_pool
from ensjax.combine.rules.vote import accuracy_weights
from ensjax.ops.limits import at_least, between
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows, is_correct, weighted_mean

_LEAST = 1e-7  # accuracies are held off 0 and 1 by the number of rows before


@struct.dataclass
class WeightedVote:
    """`MemberWeights` with how often each is right; called, it returns their mean.

    Attributes:
        weights: `[member]`, non-negative, summing to 1; 0 for masked members.
        accuracy: `[member]` on the rows of the fit; NaN for masked members.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    weights: jax.Array
    accuracy: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the weighted vote")
    )

    @property
    def best(self) -> jax.Array:
        """The member with the highest accuracy on the rows of the fit; lowest index."""
        return jnp.argmax(jnp.where(jnp.isnan(self.accuracy), -1.0, self.accuracy))

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """`[batch, class]` log of the weighted mean probability, in nats.

        Of `Predictions`, that of one member.

        Args:
            logits: `[member, batch, class]` logits or `Predictions`; weights inside
                `Predictions` are not used.

        Raises:
            ValueError: if a shape does not fit, or members are others, or in another
                order.
            LeakageError: for test rows that it was fitted on.
        """
        check_use(self.fitted_rows, logits)
        pooled = mean_probs(logits, self.weights)
        return give_back_pool(logits, pooled, self.fitted_rows, self.weights)


def fit_accuracy_vote(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> WeightedVote:
    """Weights in proportion to the accuracy above chance: max(a_m - 1 / C, 0).

    Equal weights if no member is better than chance.

    Args:
        logits: of held-out rows, `[member, batch, class]` or `Predictions`.
        labels: class indices `[batch]`.
        mask: `[member]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `WeightedVote`; in a compiled program NaN if no row counts.

    Raises:
        ValueError: if a shape does not fit, masks are by row, or no row counts.
        TypeError: if `labels` are not integers, or only votes are known.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.
    """
    accuracy, mask, classes, _, fitted_rows = _measure(
        logits, labels, mask, sample_weight
    )
    gain = at_least(accuracy - 1 / classes, 0.0)
    return WeightedVote(_normalise(gain, mask), accuracy, fitted_rows)


def fit_log_odds_vote(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> WeightedVote:
    """Weights in proportion to the log-odds of the accuracy, and at least 0.

    log((C - 1) a_m / (1 - a_m)), best for independent members that vote; accuracies are
    held 1 / (2 n) away from 0 and 1, n the number of rows that have a weight. Arguments
    and result as for `fit_accuracy_vote`.

    Source: Kuncheva 2004, theorem 4.1.
    """
    accuracy, mask, classes, rows, fitted_rows = _measure(
        logits, labels, mask, sample_weight
    )
    clip = jnp.minimum(0.25, 0.5 / jnp.maximum(rows, 1))
    odds = accuracy_weights(between(accuracy, clip, 1 - clip), classes, clip=_LEAST)
    return WeightedVote(_normalise(at_least(odds, 0.0), mask), accuracy, fitted_rows)


def _measure(logits, labels, mask, sample_weight):
    predictions = as_predictions(logits, mask=mask)
    if predictions.mask.ndim == 2:
        raise ValueError(
            "a weighted vote has one weight for each member, so masks must be [member];"
            f" got shape {predictions.mask.shape}."
        )
    fitted_rows = check_predictions(
        "the weighted vote", predictions, row_weight=sample_weight
    )
    said, labels, weight = check_rows(predictions.log_probs, labels, sample_weight)
    check_some_count("the weighted vote", covered_weight(predictions, weight[0]))
    accuracy = weighted_mean(is_correct(said, labels), weight)
    accuracy = jnp.where(predictions.mask, accuracy, jnp.nan)
    rows = jnp.sum(weight[0] != 0)
    return accuracy, predictions.mask, said.shape[2], rows, fitted_rows


def _normalise(weights, mask):
    weights = jnp.where(mask, weights, 0.0)
    total = jnp.sum(weights)
    equal = mask / jnp.sum(mask)
    return jnp.where(total == 0, equal, weights / jnp.where(total == 0, 1.0, total))
