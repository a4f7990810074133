"""Calibration: do the probabilities mean what they say?

Binned estimates depend on the number of bins and of rows; report both. All forms use
static shapes, so they run under `jit`: a bin is a fixed row of a sum, empty or not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.confidence import max_log_odds
from ensjax.scores.rows import (
    bin_sum,
    check_rows,
    equal_weight_bins,
    is_correct,
    label_log_probs,
    weigh,
)
from ensjax.scores.ties import equal_width_bin, merge_ties


class ReliabilityBins(NamedTuple):
    """What fell into each bin; the last axis of every field is the bin.

    Attributes:
        confidence: mean confidence of the bin's rows, NaN if it is empty.
        accuracy: fraction of them that is right, NaN if it is empty.
        weight: summed weight of the rows, which is their number without weights.
        edges: `[bin + 1]`, the bins are (lo, hi]; 0 belongs to the first.
    """

    confidence: jax.Array
    accuracy: jax.Array
    weight: jax.Array
    edges: jax.Array


def reliability_bins(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> ReliabilityBins:
    """Accuracy against confidence in equal-width bins (lo, hi] of the top label.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range makes
            the accuracy of its bin NaN, unless its weight is 0.
        num_bins: number of bins between 0 and 1, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `ReliabilityBins` with fields `[..., bin]`.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
        TypeError: if `labels` are not integers.
    """
    confidence, correct, weight = top_label(log_probs, labels, sample_weight)
    _check_bins(num_bins)
    bins = equal_width_bin(confidence, num_bins)
    total = bin_sum(weight, bins, num_bins)
    return ReliabilityBins(
        confidence=bin_sum(weigh(confidence, weight), bins, num_bins) / total,
        accuracy=bin_sum(weigh(correct, weight), bins, num_bins) / total,
        weight=total,
        edges=jnp.asarray(np.linspace(0.0, 1.0, num_bins + 1), confidence.dtype),
    )


def ece(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Expected calibration error of the top label, in equal-width bins (lo, hi]; 0-1.

        ECE = sum_b (W_b / W) |accuracy_b - confidence_b|

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        num_bins: number of bins between 0 and 1, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
        TypeError: if `labels` are not integers.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3 (15 bins as in section 5).
    """
    gaps = equal_width_gaps(
        log_probs, labels, num_bins=num_bins, sample_weight=sample_weight
    )
    return jnp.sum(jnp.abs(gaps), axis=-1)


def equal_width_gaps(log_probs, labels, *, num_bins=15, sample_weight=None):
    """(W_b / W) (accuracy_b - confidence_b) of the bins of `ece`, `[..., bin]`."""
    confidence, correct, weight = top_label(log_probs, labels, sample_weight)
    _check_bins(num_bins)
    gap = bin_sum(
        weigh(correct - confidence, weight),
        equal_width_bin(confidence, num_bins),
        num_bins,
    )
    return gap / jnp.sum(weight, axis=-1, keepdims=True)


def mce(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Largest |accuracy - confidence| over the bins that hold rows (0-1), `[...]`.

    Arguments as for `ece`. One row alone in its bin can decide it.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5.
    """
    bins = reliability_bins(
        log_probs, labels, num_bins=num_bins, sample_weight=sample_weight
    )
    gap = jnp.abs(bins.accuracy - bins.confidence)
    return jnp.max(jnp.where(bins.weight == 0, 0.0, gap), axis=-1)


def adaptive_ece(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Expected calibration error of the top label in bins of equal weight (0-1).

    A row goes to bin floor(num_bins * r), r in (0, 1) being its mid-rank by confidence
    (the middle of the weight that its ties hold). Confidences that are equal, to
    rounding, share a bin, and the order of the rows does not matter. Without ties, and
    when the number of rows is a multiple of `num_bins`, this is the usual split of the
    sorted rows.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        num_bins: number of bins, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
        TypeError: if `labels` are not integers.

    Source: Nixon et al. 2019, arXiv:1904.01685, section 3 (adaptivity), top label only.
    """
    gaps = equal_weight_gaps(
        log_probs, labels, num_bins=num_bins, sample_weight=sample_weight
    )
    return jnp.sum(jnp.abs(gaps), axis=-1)


def equal_weight_gaps(log_probs, labels, *, num_bins=15, sample_weight=None):
    """(W_b / W) (accuracy_b - confidence_b) of the bins of `adaptive_ece`."""
    confidence, correct, weight = top_label(log_probs, labels, sample_weight)
    _check_bins(num_bins)
    bins = _equal_weight(log_probs, weight, num_bins)
    gap = bin_sum(weigh(correct - confidence, weight), bins, num_bins)
    return gap / jnp.sum(weight, axis=-1, keepdims=True)


def debiased_calibration_error(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Root mean squared calibration error of the top label, without the bias of bins.

        sqrt max(0, sum_b (n_b / n) [(confidence_b - accuracy_b)^2
                                     - accuracy_b (1 - accuracy_b) / (n_b - 1)])

    in bins of equal weight (`adaptive_ece` says which). Few rows in a bin make its
    accuracy differ from its confidence by chance; the second term is what that adds. A
    bin of one row says nothing and adds 0.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        num_bins: number of bins, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative; taken as counts of
            rows, so that their scale matters.

    Returns:
        `[...]` (0-1), an L2 error: not comparable with `ece`, which is L1.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
        TypeError: if `labels` are not integers.

    Source: Kumar, Liang and Ma 2019, arXiv:1909.10155, definition 5.1.
    """
    confidence, correct, weight = top_label(log_probs, labels, sample_weight)
    _check_bins(num_bins)
    bins = _equal_weight(log_probs, weight, num_bins)
    rows = bin_sum(weight, bins, num_bins)
    count = jnp.where(rows == 0, 1.0, rows)
    gap = bin_sum(weigh(correct - confidence, weight), bins, num_bins) / count
    right = bin_sum(weigh(correct, weight), bins, num_bins) / count
    chance = right * (1 - right) / jnp.where(rows > 1, rows - 1, 1.0)
    squared = jnp.where(rows > 1, gap**2 - chance, 0.0)
    squared = jnp.where(jnp.isnan(gap), jnp.nan, squared)
    total = jnp.sum(rows * squared, axis=-1) / jnp.sum(weight, axis=-1)
    # jnp.maximum(NaN, 0) is 0 in some compiled programs.
    return jnp.sqrt(jnp.where(total < 0, 0.0, total))


def classwise_ece(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_bins: int = 15,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Calibration error of every class's probability, averaged over classes (0-1).

        mean_c sum_b (W_b / W) |frequency of c in b - mean p_c in b|

    Equal-width bins (lo, hi] of p_c, over all rows. Also called static calibration
    error. With many classes most p_c are near 0 and the score is small.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        num_bins: number of bins between 0 and 1, at least 1.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
        TypeError: if `labels` are not integers.

    Source: Nixon et al. 2019, arXiv:1904.01685, equation 3.
    """
    gaps = classwise_gaps(
        log_probs, labels, num_bins=num_bins, sample_weight=sample_weight
    )
    return jnp.sum(jnp.abs(gaps), axis=-1)


def classwise_gaps(log_probs, labels, *, num_bins=15, sample_weight=None):
    """The summands of `classwise_ece` with their sign, `[..., class * bin]`."""
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    _check_bins(num_bins)
    target = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=log_probs.dtype)
    undefined = jnp.isnan(label_log_probs(log_probs, labels))[..., None]
    probs = jnp.swapaxes(jnp.exp(log_probs), -1, -2)  # [..., class, batch]
    target = jnp.swapaxes(jnp.where(undefined, jnp.nan, target), -1, -2)
    weight = jnp.broadcast_to(weight[..., None, :], probs.shape)
    gap = bin_sum(
        weigh(target - probs, weight), equal_width_bin(probs, num_bins), num_bins
    )
    shares = gap / jnp.sum(weight, axis=-1, keepdims=True) / gap.shape[-2]
    return shares.reshape(*shares.shape[:-2], -1)


def top_label(
    log_probs: jax.Array, labels: jax.Array, sample_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Probability of each row's first choice, whether it is right, and its weight."""
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    return confidence, is_correct(log_probs, labels), weight


def _check_bins(num_bins):
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}.")


def _equal_weight(log_probs, weight, num_bins):
    # By log-odds, which tell rows apart whose probabilities all round to 1.
    level = merge_ties(max_log_odds(log_probs), weight)
    return equal_weight_bins(level, weight, num_bins)
