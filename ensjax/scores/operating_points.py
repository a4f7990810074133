"""Operating points: one threshold on confidence, and what is accepted above it.

A point found on some rows is optimistic on the same rows. Where a mixture with
out-of-distribution rows is classified selectively, accepting one of those is an error.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import broadcast_rows, floating, row_weights
from ensjax.scores.selective import error_curve

_TOLERANCE = 1e-6
# The first rows of a risk-coverage curve are a few coin flips: the larger of the two.
MIN_ROWS, MIN_SHARE = 20, 0.01


class OperatingPoint(NamedTuple):
    """Rows of at least this confidence are accepted.

    Attributes:
        threshold: the smallest confidence that is accepted, `[...]`.
        coverage: share of the weight that is accepted, `[...]`.
        risk: mean error of what is accepted, `[...]`.
    """

    threshold: jax.Array
    coverage: jax.Array
    risk: jax.Array


def point_at_risk(
    confidence: jax.Array,
    error: jax.Array,
    *,
    risk: float,
    sample_weight: jax.Array | None = None,
) -> OperatingPoint:
    """The last point of the risk-coverage curve whose risk is at most `risk`.

    The first max(20, 1 %) rows are skipped, whose risk is that of a few rows. Where the
    risk is reached nowhere after them, it is the point of lowest risk. Tied rows have
    no order and are accepted together or not at all.

    Args:
        confidence: larger is surer, `[..., batch]`.
        error: 0 or 1, or another cost of accepting the row, `[batch]` or
            `[..., batch]`.
        risk: the mean error aimed at, at least 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `OperatingPoint` of `[...]`; NaN if a row that counts holds a NaN, or none
        counts.

    Raises:
        ValueError: if `risk` is negative, or a shape does not fit.

    Source: Xia and Bouganis 2023, arXiv:2303.08010, whose code takes the point of
    nearest risk after the first 500 rows; that may lie at a tiny coverage.
    """
    if not risk >= 0:
        raise ValueError(f"risk must not be negative; got {risk}.")
    confidence, error, weight = _rows(confidence, error, sample_weight)

    def choose(ends, coverage, risks, counts):
        num_rows = jnp.sum(counts)
        skipped = jnp.maximum(MIN_ROWS, jnp.ceil(MIN_SHARE * num_rows))
        # With fewer rows than are skipped there is one point: all of them.
        allowed = ends & (jnp.cumsum(counts) > jnp.minimum(skipped, num_rows - 1))
        reached = allowed & (risks <= risk + _TOLERANCE)
        last = ends.shape[0] - 1 - jnp.argmax(reached[::-1])
        lowest = jnp.argmin(jnp.where(allowed, risks, jnp.inf))
        return jnp.where(jnp.any(reached), last, lowest)

    return _find_point(confidence, error, weight, choose)


def point_at_coverage(
    confidence: jax.Array,
    error: jax.Array | None = None,
    *,
    coverage: float,
    sample_weight: jax.Array | None = None,
) -> OperatingPoint:
    """The first point of the risk-coverage curve that accepts at least `coverage`.

    On rows of in-distribution data it is the threshold of that true positive rate.

    Args:
        confidence: larger is surer, `[..., batch]`.
        error: `[batch]` or `[..., batch]`; None: not known, and the risk is NaN.
        coverage: in (0, 1].
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `OperatingPoint` of `[...]`; NaN as for `point_at_risk`.

    Raises:
        ValueError: if `coverage` is not in (0, 1], or a shape does not fit.
    """
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"coverage must lie in (0, 1]; got {coverage}.")
    is_known = error is not None
    error = error if is_known else jnp.zeros(jnp.shape(confidence))
    confidence, error, weight = _rows(confidence, error, sample_weight)

    def choose(ends, covered, risks, counts):
        return jnp.argmax(ends & (covered >= coverage - _TOLERANCE))

    point = _find_point(confidence, error, weight, choose)
    return (
        point if is_known else point._replace(risk=jnp.full_like(point.risk, math.nan))
    )


def point_at_threshold(
    confidence: jax.Array,
    error: jax.Array,
    threshold: jax.Array | float,
    *,
    sample_weight: jax.Array | None = None,
) -> OperatingPoint:
    """What a threshold that was fixed elsewhere accepts of these rows.

    Args:
        confidence: larger is surer, `[..., batch]`.
        error: `[batch]` or `[..., batch]`.
        threshold: the smallest confidence that is accepted, `[...]` or a number.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `OperatingPoint` of `[...]`; the risk is NaN where nothing is accepted.

    Raises:
        ValueError: if a shape does not fit.
    """
    confidence, error, weight = _rows(confidence, error, sample_weight)
    threshold = jnp.broadcast_to(floating(threshold), confidence.shape[:-1])
    accepted = jnp.where(confidence >= threshold[..., None], weight, 0.0)
    kept = jnp.sum(accepted, axis=-1)
    wrong = jnp.sum(jnp.where(accepted == 0, 0.0, error) * accepted, axis=-1)
    undefined = _has_nan(confidence, error, weight)
    coverage = jnp.where(undefined, jnp.nan, kept / jnp.sum(weight, axis=-1))
    return OperatingPoint(
        threshold, coverage, jnp.where(undefined, jnp.nan, wrong / kept)
    )


def mix_with_ood(
    error: jax.Array,
    ood_confidence: jax.Array,
    *,
    ood_share: float = 0.5,
    ood_cost: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Errors and weights of a mixture in which accepting an outlier is an error (SCOD).

    For rows in the order (in distribution, out of distribution), as of
    `jnp.concatenate([confidence, ood_confidence], axis=-1)`:

        point_at_coverage(both, error_of_both, coverage=0.5, sample_weight=weight).risk

    is the selective risk at half the mixture, and `point_at_threshold` that of a
    threshold chosen on rows in distribution alone.

    Args:
        error: of the rows in distribution, `[..., batch]`.
        ood_confidence: of the others, `[..., other]`; only its shape is used.
        ood_share: of the mixture's weight, in (0, 1); 0.5 mixes 1 : 1.
        ood_cost: of accepting one of the others, beta; a wrong row costs 1.

    Returns:
        `error [..., batch + other]` and `sample_weight [..., batch + other]`.

    Raises:
        ValueError: if `ood_share` is not in (0, 1), or a shape does not fit.

    Source: Xia and Bouganis 2022, arXiv:2207.07506 (selective classification with
    out-of-distribution data, SCOD).
    """
    if not 0.0 < ood_share < 1.0:
        raise ValueError(f"ood_share must lie in (0, 1); got {ood_share}.")
    error, shape = floating(error), jnp.shape(ood_confidence)
    if error.ndim < 1 or shape[:-1] != error.shape[:-1] or not shape:
        raise ValueError(
            f"error [..., batch] and ood_confidence [..., other] must have the same"
            f" leading axes; got shapes {error.shape} and {shape}."
        )
    others = jnp.full(shape, ood_cost, error.dtype)
    # 1 in distribution, so that as many of both at 1 : 1 are rows without weights.
    relative = ood_share / (1 - ood_share) * error.shape[-1] / shape[-1]
    weight = [jnp.ones(error.shape), jnp.full(shape, relative)]
    both = jnp.concatenate([error, others], axis=-1)
    return both, jnp.concatenate(weight, axis=-1).astype(error.dtype)


def _rows(confidence, error, sample_weight):
    confidence = floating(confidence)
    if confidence.ndim < 1:
        raise ValueError("confidence must be [..., batch]; got a scalar.")
    error = broadcast_rows("error", floating(error), confidence.shape)
    weight = row_weights(sample_weight, confidence.shape, confidence.dtype)
    return confidence, error, weight


def _has_nan(confidence, error, weight):
    nan = jnp.isnan(confidence) | jnp.isnan(error)
    return jnp.any((nan & (weight != 0)) | jnp.isnan(weight), axis=-1)


def _find_point(confidence, error, weight, choose):
    def one(confidence, error, weight):
        order = jnp.lexsort((-confidence, weight == 0))
        falling, counts = confidence[order], (weight[order] != 0).astype(jnp.int32)
        curve = error_curve(error, confidence, weight)
        # A threshold stops at the last row of a group of ties, or of all that count.
        ends = jnp.concatenate(
            [(falling[1:] != falling[:-1]) | (counts[1:] == 0), jnp.ones(1, bool)]
        ) & (counts == 1)
        at = choose(ends, curve.coverage, curve.risk, counts)
        return falling[at], curve.coverage[at], curve.risk[at]

    leading = confidence.shape[:-1]
    flat = (x.reshape(-1, x.shape[-1]) for x in (confidence, error, weight))
    point = [x.reshape(leading) for x in jax.vmap(one)(*flat)]
    undefined = _has_nan(confidence, error, weight) | (jnp.sum(weight, axis=-1) == 0)
    return OperatingPoint(*(jnp.where(undefined, jnp.nan, x) for x in point))
