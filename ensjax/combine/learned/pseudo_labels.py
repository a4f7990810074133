"""Pseudo-labels: rows without a label that the ensemble is sure of, and its answers.

Three rules choose the rows: the ensemble's confidence, the agreement of its members, or
a share of each class. At one threshold a rare class, of which members are less sure,
gets fewer rows than it has; a share of each class keeps the proportions. What is chosen
trains members and nothing else: no validation, calibration or test.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import check_predictions
from ensjax.combine.rules.average import mean_probs
from ensjax.combine.rules.vote import majority_vote
from ensjax.member_arrays import ABSTAIN, counting_members
from ensjax.predictions import Predictions, as_predictions
from ensjax.predictions import votes as first_choice
from ensjax.provenance import FittedRows
from ensjax.scores.confidence import max_log_odds
from ensjax.scores.ties import merge_ties

_WHAT = "the pseudo-labels"
_TOLERANCE = 1e-6  # of shares, which are ratios of float32 sums


@struct.dataclass
class PseudoLabels:
    """Labels that an ensemble gave to rows, and which of them are to be used; a pytree.

    Attributes:
        labels: `[batch]` class indices, int32, of all rows; -1 where nothing is said.
        is_chosen: `[batch]` bools; as a `sample_weight` it leaves the others out.
        confidence: `[batch]`, 0 to 1, what the rows were chosen by; NaN where nothing
            is said.
        fitted_rows: the rows, where they are known. What is trained on them has seen
            them: `fitted_rows.check_test` refuses them as test rows.
    """

    labels: jax.Array
    is_chosen: jax.Array
    confidence: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))


def confident_labels(
    logits: jax.Array | Predictions,
    *,
    threshold: float | jax.Array,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    allow_seen: bool = False,
) -> PseudoLabels:
    """Rows whose mean probability of the first choice is at least a threshold.

        chosen if max_c pbar_c(x) >= threshold

    Args:
        logits: of rows without labels, `[member, batch, class]`, or `Predictions`.
        threshold: in [0, 1], a number or one for each class `[class]`, of which that of
            the row's first choice counts.
        weights: `[member]` or `[member, batch]`; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        allow_seen: chooses also among rows that members were trained on, as later
            rounds of self-training do. Never among test rows.

    Returns:
        `PseudoLabels`; a row with a NaN in a member that counts is not chosen.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.
        LeakageError: if `Predictions` say that rows are kept for the test, or, unless
            `allow_seen`, that members were trained on them.

    Source: Lee 2013, Pseudo-label, section 2; a threshold: Sohn et al. 2020,
    arXiv:2001.07685, equation 4.
    """
    predictions, fitted_rows = _check(logits, weights, mask, allow_seen)
    labels, log_odds = _of_the_mean(predictions)
    confidence = jax.nn.sigmoid(log_odds)
    threshold = jnp.asarray(threshold, confidence.dtype)
    if threshold.shape not in ((), (predictions.num_classes,)):
        raise ValueError(
            f"threshold must be a number or [class] = ({predictions.num_classes},); got"
            f" shape {threshold.shape}."
        )
    if threshold.ndim:
        threshold = threshold[jnp.maximum(labels, 0)]
    is_chosen = (labels >= 0) & (confidence >= threshold - _TOLERANCE)
    return PseudoLabels(labels, is_chosen, confidence, fitted_rows)


def agreed_labels(
    logits: jax.Array | Predictions,
    *,
    share: float = 1.0,
    mask: jax.Array | None = None,
    allow_seen: bool = False,
) -> PseudoLabels:
    """Rows whose most named class is named by a share of the members.

    Of the members that count in the row (`majority_vote`), whatever their weights; one
    that abstains counts and does not agree. The confidence is the share that agrees.

    Args:
        logits: of rows without labels, `[member, batch, class]`, or `Predictions`
            (votes will do).
        share: of the members, in (0, 1]; 1: all. Where two classes are named equally
            often, no row is chosen.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        allow_seen: as for `confident_labels`.

    Returns:
        `PseudoLabels`.

    Raises:
        ValueError: if a shape does not fit or `share` is not in (0, 1].
        LeakageError: as `confident_labels`.

    Source: Zhou and Li 2005, Tri-training, section 3 (two members teach the third where
    they agree), for any number of members.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1]; got {share}.")
    predictions, fitted_rows = _check(logits, None, mask, allow_seen)
    counts = counting_members(predictions.weights, predictions.mask)
    choices = predictions.votes
    counts = jnp.broadcast_to(counts.reshape(len(counts), -1), choices.shape)
    labels = majority_vote(predictions)
    agrees = counts & (choices == labels[None])
    agreement = jnp.sum(agrees, axis=0) / jnp.sum(counts, axis=0)
    confidence = jnp.where(labels < 0, jnp.nan, agreement)
    is_tied = majority_vote(predictions, ties="abstain") < 0
    is_chosen = ~is_tied & (confidence >= share - _TOLERANCE)
    return PseudoLabels(labels, is_chosen, confidence, fitted_rows)


def balanced_labels(
    logits: jax.Array | Predictions,
    *,
    share: float,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    allow_seen: bool = False,
) -> PseudoLabels:
    """The surest share of the rows of each class, so that classes keep theirs.

        k_c = ceil(share * n_c),   n_c rows whose first choice is c

    The threshold of a class is the mean probability of its k_c-th surest row; rows that
    are equally sure (to rounding) are chosen together.

    Args:
        logits: of rows without labels, `[member, batch, class]`, or `Predictions`.
        share: of each class, in (0, 1].
        weights, mask, allow_seen: as for `confident_labels`.

    Returns:
        `PseudoLabels`; a row with a NaN in a member that counts is not chosen, and is
        of no class.

    Raises:
        ValueError: if a shape does not fit or `share` is not in (0, 1].
        TypeError, LeakageError: as `confident_labels`.

    Source: Zou et al. 2018, arXiv:1810.07911, algorithm 2 (class-balanced
    self-training; there portions grow by rounds).
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1]; got {share}.")
    predictions, fitted_rows = _check(logits, weights, mask, allow_seen)
    labels, log_odds = _of_the_mean(predictions)
    is_known = labels >= 0
    merged = merge_ties(log_odds, is_known.astype(log_odds.dtype))

    def surer(own):
        """For each row of a class, how many of that class are surer."""
        falling = jnp.sort(jnp.where(own, -merged, jnp.inf))
        return jnp.searchsorted(falling, -merged, side="left")

    def of_class(label):
        own = labels == label
        kept = jnp.ceil(share * jnp.sum(own) - _TOLERANCE)
        return own & (surer(own) < kept)

    chosen = jax.lax.map(of_class, jnp.arange(predictions.num_classes))
    is_chosen = jnp.any(chosen, axis=0)
    return PseudoLabels(labels, is_chosen, jax.nn.sigmoid(log_odds), fitted_rows)


def _check(logits, weights, mask, allow_seen):
    predictions = as_predictions(logits, weights=weights, mask=mask)
    about = predictions.provenance
    checked = predictions
    if allow_seen and about is not None:
        unseen = dataclasses.replace(about, seen=None, known=None)
        checked = predictions.replace(provenance=unseen)
    check_predictions(_WHAT, checked)
    return predictions, FittedRows(_WHAT, about)


def _of_the_mean(predictions):
    """First choice `[batch]`, -1 where there is none, and its log-odds."""
    pooled = mean_probs(predictions)
    labels = first_choice(pooled)
    return labels, jnp.where(labels == ABSTAIN, jnp.nan, max_log_odds(pooled))
