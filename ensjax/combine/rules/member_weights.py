"""Weights of members: from their losses, their teams, and how alike their errors are.

What is fitted on rows is a `MemberWeights`, which refuses those rows as a test.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.combine.calibration.fitting import check_predictions, check_use
from ensjax.predictions import ABSTAIN, Predictions, as_predictions
from ensjax.provenance import FittedRows, check_fitting_rows
from ensjax.scores.diversity import error_correlation
from ensjax.scores.proper import nll


@struct.dataclass
class MemberWeights:
    """Fitted weights; called on predictions it gives them, for any rule to use.

    Attributes:
        weights: `[member]`, summing to 1.
        fitted_rows: the rows they were fitted on, where these are known.
    """

    weights: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the weights of the members")
    )

    def __call__(self, predictions: jax.Array | Predictions) -> Predictions:
        """The predictions with these weights instead of their own.

        By the provenance, members have then seen the rows of the fit as well.

        Args:
            predictions: `Predictions` of any kind, or `[member, batch, class]` logits.

        Raises:
            ValueError: if members are others than those of the fit, or in another
                order.
            LeakageError: for test rows that the weights were fitted on.
        """
        check_use(self.fitted_rows, predictions)
        predictions = as_predictions(predictions)
        if self.weights.shape != (predictions.num_members,):
            raise ValueError(
                f"There are {self.weights.shape[0]} weights for"
                f" {predictions.num_members} members."
            )
        about = self.fitted_rows.mark(predictions.provenance)
        return predictions.replace(weights=self.weights, provenance=about)


def softmin_weights(
    losses: jax.Array, *, temperature: float = 1.0, prior: jax.Array | None = None
) -> jax.Array:
    """Weights that fall exponentially with the loss, `[member]`.

        w_m = v_m exp(-L_m / T) / Z

    Args:
        losses: `[member]`; an infinite or NaN one has no weight.
        temperature: T, in the unit of the loss; large: all the same, towards 0: the
            best member alone.
        prior: v, non-negative, `[member]`; None: ones.

    Raises:
        ValueError: if a shape does not fit, or `temperature` is not positive.
    """
    losses = jnp.asarray(losses, jnp.float32)
    prior = jnp.ones_like(losses) if prior is None else jnp.asarray(prior, jnp.float32)
    if losses.ndim != 1 or prior.shape != losses.shape:
        raise ValueError(
            f"losses and prior must be [member]; got {losses.shape}, {prior.shape}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    counts = jnp.isfinite(losses) & (prior > 0)
    lowest = jnp.min(jnp.where(counts, losses, jnp.inf))
    away = jnp.where(counts, losses - lowest, 0.0)
    weights = jnp.where(counts, prior * jnp.exp(-away / temperature), 0.0)
    return weights / jnp.sum(weights)


def bma_weights(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    temperature: float = 1.0,
    sample_weight: jax.Array | None = None,
) -> MemberWeights:
    """Weights like those of Bayesian model averaging, from held-out rows.

        w_m = v_m exp(-n NLL_m / T) / Z

    At T = 1 the posterior of "one of the members is right": with many rows it is the
    best member alone, though the mixture may be better. T = n weighs by the mean NLL.

    Args:
        logits: `[member, batch, class]` logits of held-out rows, or `Predictions`,
            whose weights `[member]` are the prior v. A member's masked rows do not
            count in its NLL, the mean over its rows times n.
        labels: class indices `[batch]`.
        temperature: T.
        sample_weight: `[batch]`, non-negative; n is its sum.

    Raises:
        ValueError: if a shape does not fit, weights are `[member, batch]`, or
            `temperature` is not positive.
        TypeError: if only votes are known, or labels are not integers.
        LeakageError: if members were trained on these rows, or they are test rows.

    Source: Hoeting et al. 1999, with a tempered likelihood.
    """
    predictions = as_predictions(logits)
    fitted = check_predictions(
        "the weights of the members",
        predictions,
        row_weight=sample_weight,
        weights=predictions.weights,
    )
    if predictions.weights.ndim != 1:
        raise ValueError(
            "a prior weighs members, [member]; these weights are"
            f" {predictions.weights.shape}."
        )
    values = predictions.log_probs
    rows = jnp.ones(values.shape[1]) if sample_weight is None else sample_weight
    rows = jnp.asarray(rows, values.dtype)
    mask = predictions.mask.reshape(predictions.num_members, -1)
    own = jnp.where(mask, rows[None], 0.0)
    losses = jnp.sum(rows) * nll(values, labels, sample_weight=own)
    weights = softmin_weights(
        losses, temperature=temperature, prior=predictions.weights
    )
    return MemberWeights(weights, fitted)


def team_weights(teams: Sequence[Hashable]) -> np.ndarray:
    """Weights with which every team counts as one, however many members it sent.

    Args:
        teams: the team of each member, `[member]`: names or numbers.

    Returns:
        1 over the size of the member's team and the number of teams, `[member]`.

    Raises:
        ValueError: if there is no member.
    """
    teams = list(teams)
    if not teams:
        raise ValueError("team_weights needs at least one member.")
    sizes = {team: teams.count(team) for team in teams}
    return np.asarray([1 / (sizes[team] * len(sizes)) for team in teams], np.float32)


def cluster_weights(
    predictions: Predictions, targets: Any, *, threshold: float = 0.9
) -> MemberWeights:
    """Weights with which members whose errors go together count as one.

    Members are grouped by average linkage while their mean correlation of errors is at
    least `threshold`, and each group counts as one team. Runs on the host (SciPy).

    Args:
        predictions: of held-out rows: points `[member, batch]`, or classes; a member
            that is masked has no weight.
        targets: `[batch]`: numbers, or class indices (the errors are being wrong).
        threshold: a correlation, in (-1, 1]. A member whose errors do not vary is a
            group of its own.

    Raises:
        ValueError: if a shape or `threshold` does not fit, masks are by row, a target
            is not finite or no class, or a member that is not masked has such a row.
        TypeError: for predictions of another kind.
        LeakageError: if members were trained on these rows, or they are test rows.

    Source: Marinescu et al. 2020, arXiv:2002.03419: entries of one team are alike.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if not -1.0 < threshold <= 1.0:
        raise ValueError(f"threshold must lie in (-1, 1]; got {threshold}.")
    what = "the clusters of the members"
    mask = np.asarray(predictions.mask)
    if mask.ndim != 1:
        raise ValueError("cluster_weights needs members that count on all rows.")
    fitted = check_fitting_rows(
        what, predictions.provenance, names=predictions.names, counts=mask
    )
    kept = np.flatnonzero(mask)
    weights = np.zeros(len(mask), np.float32)
    if predictions.kind == "points":
        errors = np.asarray(predictions.points, np.float64) - np.asarray(targets)
        if errors.ndim != 2:
            raise ValueError("cluster_weights takes points [member, batch].")
        _check_known(
            ~np.isfinite(np.asarray(targets, float)),
            ~np.isfinite(errors) & mask[:, None],
            predictions,
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.corrcoef(errors[kept])
        correlation = np.atleast_2d(correlation)
    else:
        chosen, labels = np.asarray(predictions.votes), np.asarray(targets)
        _check_known(
            (labels < 0) | (labels >= predictions.num_classes),
            (chosen == ABSTAIN) & mask[:, None],
            predictions,
        )
        correlation = np.asarray(error_correlation(predictions, targets), np.float64)
        correlation = correlation[np.ix_(kept, kept)]
    groups = np.arange(len(kept))
    if len(kept) > 1:
        apart = 1 - np.nan_to_num(correlation, nan=-1.0)
        np.fill_diagonal(apart, 0.0)
        tree = linkage(squareform(np.maximum(apart, 0.0), checks=False), "average")
        groups = fcluster(tree, 1 - threshold + 1e-9, criterion="distance")
    weights[kept] = team_weights(groups.tolist())
    return MemberWeights(jnp.asarray(weights), fitted)


def distance_weights(distances: jax.Array, *, cutoff: float = 3.0) -> jax.Array:
    """Weights that fall for members far from the consensus, `[member]`.

        w_m = min(1, k d / d_m) / Z,   d the median of the distances

    Args:
        distances: of each member, as from `consensus_distance`; NaN or infinite ones
            have no weight.
        cutoff: k: members up to k times as far as the median one are not touched.

    Raises:
        ValueError: if a shape does not fit or `cutoff` is not positive.

    Source: the weights of Huber 1964 with the median distance as scale.
    """
    distances = jnp.asarray(distances, jnp.float32)
    if distances.ndim != 1:
        raise ValueError(f"distances must be [member]; got shape {distances.shape}.")
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive; got {cutoff}.")
    counts = jnp.isfinite(distances)
    middle = jnp.nanmedian(jnp.where(counts, distances, jnp.nan))
    limit = cutoff * middle
    far = counts & (distances > limit)
    weights = jnp.where(far, limit / jnp.where(far, distances, 1.0), counts * 1.0)
    return weights / jnp.sum(weights)


def _check_known(bad_targets, bad_outputs, predictions):
    """Raises where one row would make all correlations NaN."""
    if bad_targets.any():
        raise ValueError(
            f"targets of rows {np.flatnonzero(bad_targets)[:5].tolist()} are not finite"
            " or no class; leave these rows out."
        )
    bad = np.flatnonzero(bad_outputs.any(axis=1))
    if len(bad):
        rows = np.flatnonzero(bad_outputs[bad[0]])[:5].tolist()
        raise ValueError(
            f"member {predictions.names[bad[0]]!r} says nothing, or NaN, in rows"
            f" {rows}; mask it or leave these rows out."
        )
