"""Thresholds of two-class members: from which probability on each says yes.

Members that were made for another question lean to one answer ("yes" bias), and votes
add the leaning up. A threshold for each member, fitted on a few labelled rows, takes it
away without touching the members.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_predictions,
    check_some_count,
    check_use,
)
from ensjax.ops.limits import between
from ensjax.predictions import Predictions, as_predictions
from ensjax.predictions import log_probs as normalize
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows

_WHAT = "the vote thresholds"


@struct.dataclass
class VoteThresholds:
    """One threshold per member; called on two-class predictions it returns votes.

    Attributes:
        log_odds: `[member]`: a member votes for class 1 if log p_1 - log p_0 is above.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    log_odds: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    @property
    def probability(self) -> jax.Array:
        """`[member]`: the probability of class 1 above which a member votes for it."""
        return jax.nn.sigmoid(self.log_odds)

    def __call__(self, logits: jax.Array | Predictions) -> Predictions:
        """The members' votes; mask, weights and names stay.

        By the provenance, members have then seen the rows of the fit as well.

        Args:
            logits: `[member, batch, 2]` logits, or `Predictions`.

        Returns:
            `Predictions` of votes, -1 where a row holds a NaN.

        Raises:
            ValueError: if the shape does not fit, or members or classes are others, or
                in another order.
            LeakageError: for test rows that it was fitted on.
        """
        predictions = as_predictions(logits)
        check_use(self.fitted_rows, logits, by_class=True)
        if self.log_odds.shape != (predictions.num_members,):
            raise ValueError(
                f"There are {self.log_odds.shape[0]} thresholds for"
                f" {predictions.num_members} members."
            )
        odds = _log_odds(predictions)
        votes = (odds > self.log_odds[:, None]).astype(jnp.int32)
        return Predictions.from_votes(
            jnp.where(jnp.isnan(odds), -1, votes),
            2,
            weights=predictions.weights,
            mask=predictions.mask,
            names=predictions.names,
            provenance=self.fitted_rows.mark(predictions.provenance),
        )


def fit_vote_thresholds(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> VoteThresholds:
    """For each member the threshold that gets most of some labelled rows right.

    Candidates lie in the middle between neighbouring log-odds, one below and one above
    all rows. Of equally good ones the nearest to even odds is taken, so that rows that
    say nothing change nothing.

    Args:
        logits: logits or log-probabilities `[member, batch, 2]` of held-out rows, or
            `Predictions`, whose masked rows do not count for the member.
        labels: 0 or 1, `[batch]`. Another label makes all thresholds NaN, unless its
            weight is 0.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `VoteThresholds`, callable on predictions of other rows; NaN for a member with a
        NaN in a row that counts, or without such a row.

    Raises:
        ValueError: if there are not two classes, a shape does not fit, or no row
            counts.
        TypeError: if `labels` are not integers, or only votes are known.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.
    """
    predictions = as_predictions(logits)
    fitted_rows = check_predictions(_WHAT, predictions, row_weight=sample_weight)
    odds = _log_odds(predictions)
    _, labels, weight = check_rows(predictions.log_probs, labels, sample_weight)
    mask = predictions.mask
    weight = jnp.where(mask.reshape(len(mask), -1), weight, 0.0)
    check_some_count(_WHAT, weight)
    return VoteThresholds(jax.vmap(_fit)(odds, labels, weight), fitted_rows)


def _log_odds(predictions):
    if predictions.num_classes != 2:
        raise ValueError(
            f"Vote thresholds are for two classes; got {predictions.num_classes}."
        )
    values = normalize(predictions.log_probs)
    # Both -inf never happens in a normalised row; one of them does.
    return values[..., 1] - values[..., 0]


def _fit(odds, labels, weight):
    # Rows without weight go last, beyond every row that counts.
    odds = jnp.where(weight == 0, jnp.inf, between(odds, -80.0, 80.0))
    order = jnp.argsort(odds)
    odds, labels, weight = odds[order], labels[order], weight[order]
    last = jnp.max(jnp.where(weight == 0, -jnp.inf, odds))
    odds = jnp.where(weight == 0, last, odds)
    # gain[k]: weight that is right if the k lowest rows are called 0, the others 1.
    step = weight * jnp.where(labels == 0, 1.0, -1.0)
    ones = jnp.sum(jnp.where(labels == 1, weight, 0.0))
    gain = ones + jnp.concatenate([jnp.zeros(1), jnp.cumsum(step)])
    middle = (odds[1:] + odds[:-1]) / 2
    threshold = jnp.concatenate([odds[:1] - 1.0, middle, odds[-1:] + 1.0])
    # Between equal rows there is no threshold.
    is_between = jnp.concatenate(
        [jnp.ones(1, bool), odds[1:] > odds[:-1], jnp.ones(1, bool)]
    )
    slack = 1e-6 * jnp.sum(weight)
    best = jnp.max(jnp.where(is_between, gain, -jnp.inf))
    is_best = is_between & (gain >= best - slack)
    place = jnp.argmin(jnp.where(is_best, jnp.abs(threshold), jnp.inf))
    known = (labels == 0) | (labels == 1)
    undefined = jnp.any((jnp.isnan(odds) | ~known) & (weight != 0))
    undefined |= ~jnp.any(weight > 0)
    return jnp.where(undefined, jnp.nan, threshold[place])
