"""Rejection with a promise: a risk that is bounded, or a cost that is least.

`point_at_risk` finds where the risk of some rows is low enough; on other rows it may be
higher. Here the threshold is one at which the risk of *new* rows of the same kind is
low enough with a stated probability. Chow's rule needs no such rows, but probabilities
that are calibrated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import ABSTAIN, TIE_TOLERANCE
from ensjax.predictions import log_probs as normalize
from ensjax.provenance import Provenance, check_fitting_rows
from ensjax.scores.intervals import exact_interval


class BoundedPoint(NamedTuple):
    """Rows of at least this confidence are accepted. NumPy arrays `[...]`.

    Attributes:
        threshold: the smallest confidence that is accepted; inf: nothing is.
        coverage: share of the rows that is accepted.
        risk: share of errors among them; NaN where nothing is accepted.
        bound: that the risk of new rows is below, with the stated probability.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    bound: np.ndarray


def point_with_guaranteed_risk(
    confidence: np.ndarray,
    error: np.ndarray,
    *,
    risk: float,
    delta: float = 0.05,
    sample_weight: np.ndarray | None = None,
    provenance: Provenance | None = None,
) -> BoundedPoint:
    """The largest coverage whose risk is below `risk` with probability 1 - delta.

        B(1 - delta / K; k + 1, n - k) <= risk,   K = ceil(log2(thresholds + 1))

    for k errors in the n rows that are accepted: the exact one-sided bound of Clopper
    and Pearson. Thresholds are the distinct confidences, in which a bisection takes at
    most K steps; each is given delta / K, so that the promise also holds for the
    threshold that is chosen. It finds the largest coverage where the bound rises with
    coverage, as where confidence tells errors apart; else one that is promised as well.
    In float64 on the host, not under `jit`.

    Args:
        confidence: of held-out rows, larger is surer, `[..., batch]`.
        error: 0 or 1 (or bool), `[batch]` or `[..., batch]`.
        risk: share of errors among accepted rows, in (0, 1).
        delta: chance that the promise does not hold, over draws of the rows, in (0, 1).
        sample_weight: 0 or 1 (or bool), `[batch]` or `[..., batch]`: which rows count.
        provenance: of the rows; None: unknown, and nothing is checked. Numbers remember
            no rows: that they are tested on others is the caller's care.

    Returns:
        `BoundedPoint`; where no threshold is good enough, nothing is accepted: inf,
        coverage 0, risk NaN and bound 1.

    Raises:
        ValueError: if a shape does not fit, a number is out of range, errors or weights
            are not 0 and 1, a confidence that counts is NaN, or no row counts.
        LeakageError: if members were trained on rows that count, or they are test rows.

    Source: Geifman and El-Yaniv 2017, arXiv:1705.08500, algorithm 1 (SGR).
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} must lie in (0, 1); got {value}.")
    check_fitting_rows("the threshold", provenance, row_weight=sample_weight)
    confidence = np.asarray(confidence, np.float64)
    weight = 1.0 if sample_weight is None else sample_weight
    error, weight = (
        _zeros_and_ones(name, values, confidence.shape)
        for name, values in (("error", error), ("sample_weight", weight))
    )
    if np.isnan(confidence[weight]).any():
        raise ValueError("a confidence that counts is NaN.")
    if confidence.ndim < 1 or not weight.any(axis=-1).all():
        raise ValueError("confidence must be [..., batch], with some rows that count.")
    leading = confidence.shape[:-1]
    points = [
        _bisect(confidence[i][weight[i]], error[i][weight[i]], risk, delta)
        for i in np.ndindex(leading)
    ]
    return BoundedPoint(*(np.reshape(x, leading) for x in zip(*points, strict=True)))


class CostDecision(NamedTuple):
    """What is least costly for each row, arrays `[..., batch]`.

    Attributes:
        labels: class indices, int32; -1 where rejecting costs less.
        is_rejected: bools.
        expected_cost: of the decision, that of rejecting where it is rejected.
    """

    labels: jax.Array
    is_rejected: jax.Array
    expected_cost: jax.Array


def reject_by_cost(
    log_probs: jax.Array,
    *,
    reject_cost: float,
    costs: jax.Array | None = None,
) -> CostDecision:
    """Chow's rule: the least costly class, or none where an error would cost more.

        rejected if min_c sum_t p_t cost[t, c] > reject_cost

    With cost 1 of every error: where 1 - max_c p_c > reject_cost. It is optimal for the
    true probabilities, so calibrate first (`combine.calibrate`).

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`.
        reject_cost: of leaving a row to somebody else, at least 0.
        costs: `[class, class]`, first the true class, then the chosen one; None: 1 for
            every error, 0 on the diagonal.

    Returns:
        `CostDecision`. Of classes that cost the same (to rounding) the lowest; a row
        with a NaN is rejected, at an expected cost of NaN.

    Raises:
        ValueError: if a shape does not fit or `reject_cost` is negative.

    Source: Chow 1970, On optimum recognition error and reject tradeoff, equation 5.
    """
    if not reject_cost >= 0:
        raise ValueError(f"reject_cost must not be negative; got {reject_cost}.")
    log_probs = jnp.asarray(log_probs)
    if log_probs.ndim < 2:
        raise ValueError(
            f"log_probs must be [..., batch, class]; got shape {log_probs.shape}."
        )
    num_classes = log_probs.shape[-1]
    if costs is None:
        costs = 1.0 - np.eye(num_classes)
    costs = jnp.asarray(costs, jnp.float32)
    if costs.shape != (num_classes, num_classes):
        raise ValueError(
            f"costs must be [class, class] = {(num_classes, num_classes)}; got shape"
            f" {costs.shape}."
        )
    probs = jnp.exp(normalize(log_probs))
    expected = jnp.matmul(probs, costs, precision="highest")
    least = jnp.min(expected, axis=-1, keepdims=True)
    slack = TIE_TOLERANCE * jnp.max(jnp.abs(costs))
    labels = jnp.argmax(expected <= least + slack, axis=-1).astype(jnp.int32)
    least = least[..., 0]
    # Written so that a NaN is rejected.
    is_rejected = ~(least <= reject_cost + slack)
    cost = jnp.where(least > reject_cost + slack, reject_cost, least)
    return CostDecision(jnp.where(is_rejected, ABSTAIN, labels), is_rejected, cost)


def _zeros_and_ones(name, values, shape):
    """As bools of `shape`."""
    values = np.asarray(values)
    if values.ndim and values.shape != shape[len(shape) - values.ndim :]:
        raise ValueError(f"{name} must have shape {shape}; got {values.shape}.")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} must be 0 or 1: the bound counts rows.")
    return np.broadcast_to(values.astype(bool), shape)


def _bisect(confidence, error, risk, delta):
    """Threshold, coverage, risk and bound of one curve."""
    thresholds, place = np.unique(-confidence, return_inverse=True)  # falling
    kept = np.cumsum(np.bincount(place))
    wrong = np.cumsum(np.bincount(place, weights=error))
    steps = int(np.ceil(np.log2(len(thresholds) + 1)))

    def bound(at):
        # Two-sided at twice the share: its upper end is one-sided. Above 1/2 nothing
        # is left of a two-sided interval; the median bound is stricter.
        share = min(2 * delta / steps, 1.0 - 1e-9)
        return exact_interval(wrong[at], kept[at], confidence=1 - share).high

    low, high = -1, len(thresholds)  # good enough; not (or beyond the end)
    while high - low > 1:
        middle = (low + high) // 2
        if bound(middle) <= risk:
            low = middle
        else:
            high = middle
    if low < 0:
        return np.inf, 0.0, np.nan, 1.0
    share = kept[low] / len(confidence)
    return -thresholds[low], share, wrong[low] / kept[low], float(bound(low))
