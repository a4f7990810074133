"""What an ensemble gains over its members, taken apart exactly; and members' moments.

Real-valued predictions of all members are `points [member, batch]`. A masked member
counts as removed: its values, NaN included, leave no trace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.predictions import Predictions, as_predictions, predictive_log_probs
from ensjax.scores.proper import nll
from ensjax.scores.rows import (
    broadcast_rows,
    centered,
    floating,
    row_weights,
    weighted_mean,
)
from ensjax.scores.uncertainty import jensen_gap


class MemberMoments(NamedTuple):
    """Mean and standard deviation over members, `[batch, ...]`, and `[batch]` counts.

    Attributes:
        mean: NaN where no member counts.
        std: NaN where no more members count than `ddof`.
        num_members: how many members count.
    """

    mean: jax.Array
    std: jax.Array
    num_members: jax.Array


def member_moments(
    points: jax.Array, *, ddof: int, mask: jax.Array | None = None
) -> MemberMoments:
    """Mean and spread of the members' predictions, each row over those that count.

        s^2 = sum_m (x_m - xbar)^2 / (M - ddof)

    Args:
        points: `[member, batch, ...]`.
        ddof: 0 for the variance of the mixture (a single member then has 0), 1 for an
            unbiased one. Packages differ, so there is no default.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Raises:
        ValueError: if a shape does not fit or `ddof` is neither 0 nor 1.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1; got {ddof}.")
    points = floating(points)
    if points.ndim < 2:
        raise ValueError(f"points must be [member, batch, ...]; got {points.shape}.")
    counts = _mask(mask, points.shape[:2])
    number = jnp.sum(counts, axis=0)
    wide = (1,) * (points.ndim - 2)
    counts = counts.reshape(counts.shape + wide)
    divisor = number.reshape(number.shape + wide).astype(points.dtype)
    points = jnp.where(counts, points, 0.0)
    mean = jnp.sum(points, axis=0) / divisor
    away = jnp.where(counts, points - mean[None], 0.0)
    free = divisor - ddof
    variance = jnp.sum(away**2, axis=0) / jnp.where(free > 0, free, jnp.nan)
    return MemberMoments(mean, jnp.sqrt(variance), number)


def pooled_points(
    points: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean of the members' points, and each member's share of it.

    Args:
        points: `[member, batch]`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch]`, NaN where no member counts, and shares `[member, batch]` or
        `[member, 1]`.

    Raises:
        ValueError: if a shape does not fit.
    """
    points, weights = _members(points, weights, mask)
    return jnp.sum(jnp.where(weights == 0, 0.0, points) * weights, axis=0), weights


class AmbiguityDecomposition(NamedTuple):
    """Mean squared errors: `ensemble` = `members` - `ambiguity`."""

    ensemble: jax.Array
    members: jax.Array
    ambiguity: jax.Array


def ambiguity_decomposition(
    points: jax.Array,
    targets: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> AmbiguityDecomposition:
    """The squared error of the mean: members' mean error minus their disagreement.

        (fbar - y)^2 = sum_m w_m (f_m - y)^2 - sum_m w_m (f_m - fbar)^2,
        fbar = sum_m w_m f_m

    each averaged over rows. The three are computed apart, so that their identity can be
    tested; it holds for every row, whatever the members are.

    Args:
        points: `[member, batch]`.
        targets: `[batch]`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        Three scalars, in squared target units; NaN if a row that counts has no member.

    Raises:
        ValueError: if a shape does not fit.

    Source: Krogh and Vedelsby 1995, equation 6.
    """
    points, weights = _members(points, weights, mask)
    targets = broadcast_rows("targets", floating(targets), points.shape[1:])
    row_weight = row_weights(sample_weight, points.shape[1:], points.dtype)
    # Of residuals: the squares of large values would cancel.
    away = jnp.where(weights == 0, 0.0, points - targets[None])
    mean = jnp.sum(weights * away, axis=0)
    members = jnp.sum(weights * away**2, axis=0)
    ambiguity = jnp.sum(weights * (away - mean[None]) ** 2, axis=0)
    return AmbiguityDecomposition(
        *(weighted_mean(x, row_weight) for x in (mean**2, members, ambiguity))
    )


class NllDecomposition(NamedTuple):
    """Negative log-likelihoods in nats: `ensemble` = `members` - `gap`, gap >= 0."""

    ensemble: jax.Array
    members: jax.Array
    gap: jax.Array


def nll_decomposition(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
) -> NllDecomposition:
    """The ensemble's NLL: the members' mean NLL (Gibbs) minus the Jensen gap.

    The three are computed apart. Arguments as for `jensen_gap`.

    Returns:
        Three scalars, in nats.

    Source: Abe et al. 2022, arXiv:2202.06985, section 4.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    gap = jensen_gap(
        predictions, labels, sample_weight=sample_weight, allow_seen=allow_seen
    )
    ensemble = nll(
        predictive_log_probs(predictions), labels, sample_weight=sample_weight
    )
    by_row = predictions.normalized_weights
    rows = row_weights(sample_weight, predictions.values.shape[1:2])
    share = jnp.broadcast_to(by_row.reshape(len(by_row), -1), (len(by_row), len(rows)))
    share = share * rows[None]
    own = nll(predictions.log_probs, labels, sample_weight=share)
    total = jnp.sum(share, axis=1)
    members = jnp.sum(jnp.where(total == 0, 0.0, own) * total) / jnp.sum(total)
    return NllDecomposition(ensemble, members, gap)


def residual_correlation(
    points: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Pearson correlation of the members' errors f_m - y, between each pair.

    The regression counterpart of `error_correlation`. Members gain from each other as
    far as it is below 1.

    Args:
        points: `[member, batch]`.
        targets: `[batch]`.
        mask: `[member]`; a False member's row and column are NaN.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `[member, member]`; NaN where a member's errors are all equal.

    Raises:
        ValueError: if a shape does not fit.
    """
    points = floating(points)
    if points.ndim != 2:
        raise ValueError(f"points must be [member, batch]; got shape {points.shape}.")
    targets = broadcast_rows("targets", floating(targets), points.shape[1:])
    weight = row_weights(sample_weight, points.shape[1:], points.dtype)
    kept = jnp.ones(len(points), bool)
    if mask is not None:
        kept = broadcast_rows("mask", mask, points.shape[:1]).astype(bool)
    errors = jnp.where(
        (weight == 0)[None] | ~kept[:, None], 0.0, points - targets[None]
    )
    errors, scale = centered(errors, jnp.broadcast_to(weight[None], errors.shape))
    scaled = errors * jnp.sqrt(weight)[None]
    covariance = jnp.matmul(scaled, scaled.T, precision="highest")
    norm = jnp.sqrt(jnp.diag(covariance))
    norm = jnp.where(kept & (scale != 0), norm, jnp.nan)
    return covariance / norm[:, None] / norm[None]


def _mask(mask, shape):
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask).astype(bool)
    if mask.shape not in (shape[:1], shape):
        raise ValueError(
            f"mask must be [member] = {shape[:1]} or [member, batch] = {shape}; got"
            f" shape {mask.shape}."
        )
    return jnp.broadcast_to(mask.reshape(len(mask), -1), shape)


def _members(points, weights, mask):
    """Points, and weights `[member, batch]` or `[member, 1]` that sum to 1."""
    points = floating(points)
    if points.ndim != 2:
        raise ValueError(f"points must be [member, batch]; got shape {points.shape}.")
    counts = _mask(mask, points.shape)
    weights = jnp.ones(points.shape[:1]) if weights is None else floating(weights)
    if weights.shape not in (points.shape[:1], points.shape):
        raise ValueError(
            f"weights must be [member] or [member, batch] = {points.shape}; got"
            f" {weights.shape}."
        )
    weights = jnp.where(weights < 0, jnp.nan, weights).reshape(len(points), -1)
    weights = jnp.where(counts, weights, 0.0)
    return points, weights / jnp.sum(weights, axis=0, keepdims=True)
