"""Selective prediction: the error that is left when the least sure rows are rejected.

Rows are sorted by confidence, the surest first; `risk_k` is the error rate of the first
k. Rows of equal confidence have no order, so each takes the mean error of its ties:
that is the expectation over their random order, and no score here depends on the order
in which rows came. A threshold alone cannot stop inside such a group.

Without a confidence, rows are in the order of the probability of their first choice,
told by its log-odds: probabilities above 1 - 6e-8 are all 1 in float32, and a
log-softmax rounds as early. Log-odds are equal to rounding (`ties.merge_ties`);
confidences that the caller gives, as they are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.confidence import max_log_odds
from ensjax.scores.ood import auroc
from ensjax.scores.rows import (
    broadcast_rows,
    check_rows,
    is_correct,
    weigh,
)
from ensjax.scores.ties import merge_ties

# Coverages are ratios of float32 sums: k / N reaches a target of the same value.
_TOLERANCE = 1e-6


class RiskCoverage(NamedTuple):
    """A risk-coverage curve; the last axis counts the rows kept, the surest first.

    Attributes:
        coverage: fraction of the weight that is kept, rising to 1.
        risk: error rate among the rows that are kept.
        weight: weight of the row that was added last; rows of weight 0 come last.
    """

    coverage: jax.Array
    risk: jax.Array
    weight: jax.Array


def risk_coverage(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> RiskCoverage:
    """Error rate of the surest rows against the fraction of rows kept.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range makes
            the curve NaN from there on.
        confidence: larger means surer, `[batch]` or `[..., batch]`; the log-odds of
            the first choice if None. Uncertainties need a minus sign. A NaN that counts
            makes all risks NaN.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `RiskCoverage` with fields `[..., batch]`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv:1705.08500.
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    return error_curve(error, confidence, weight)


def aurc(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Area under the risk-coverage curve, lower is better (0-1).

        AURC = mean_k risk_k        (with weights: sum_k w_k risk_k / sum_k w_k)

    This is the convention of Geifman et al.; others take the trapezoid over k / N and
    divide by 1 - 1 / N. If all rows are equally sure it is the error rate.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        confidence: larger means surer; the log-odds of the first choice if None.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if a confidence that counts is.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, section 2.
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    return curve_area(error_curve(error, confidence, weight))


def excess_aurc(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """`aurc` minus that of an oracle that rejects every error first, `[...]`; >= 0.

    The oracle's area is computed on the same rows, not by the approximation
    r + (1 - r) log(1 - r) of the paper. Arguments as for `aurc`.

    Source: Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206, section 3 (E-AURC).
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    area = curve_area(error_curve(error, confidence, weight))
    return area - curve_area(error_curve(error, -error, weight))


def aurc_trapezoid(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Area under the risk-coverage curve by the trapezoid rule, `[...]` (0-1).

        integral of risk over coverage from 1 / N to 1, divided by 1 - 1 / N

    The convention of torch-uncertainty; `aurc`, the mean of the risks, is another
    number on the same rows. One row alone has its own error. Arguments as for `aurc`.

    Source: Ding et al. 2020, arXiv:1903.02050 (area by integration).
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    coverage, risk, _ = error_curve(error, confidence, weight)
    steps = coverage[..., 1:] - coverage[..., :-1]
    heights = (risk[..., 1:] + risk[..., :-1]) / 2
    # Rows of weight 0 come last, where steps are 0.
    area = jnp.sum(weigh(heights, steps), axis=-1)
    span = 1 - coverage[..., 0]
    return jnp.where(span > 0, area / jnp.where(span > 0, span, 1.0), risk[..., -1])


def error_auroc(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """AUROC of finding errors by low confidence (0-1), `[...]`; 0.5 is chance.

    It knows nothing of the error rate: a worse classifier may have a better one. NaN
    if all rows that count are right, or all wrong. Arguments as for `aurc`.

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136, section 3.1.
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    area = auroc(-confidence, error > 0.5, sample_weight=weight)
    undefined = jnp.any(jnp.isnan(error) & (weight != 0), axis=-1)
    return jnp.where(undefined, jnp.nan, area)


def augrc(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Area under the generalised risk-coverage curve, lower is better (0-1), `[...]`.

        AUGRC = mean_k risk_k * k / N

    The average chance that a row is both kept and wrong. Arguments as for `aurc`.

    Source: Traub et al. 2024, arXiv:2407.01032, section 3.
    """
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    curve = error_curve(error, confidence, weight)
    return curve_area(curve._replace(risk=curve.risk * curve.coverage))


def risk_at_coverage(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    coverage: float = 0.8,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Error rate of the fewest surest rows that make up `coverage`, `[...]` (0-1).

    Arguments as for `aurc`, and `coverage` in (0, 1].

    Raises:
        ValueError: if `coverage` is not in (0, 1], or a shape does not fit.
    """
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"coverage must lie in (0, 1]; got {coverage}.")
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    curve = error_curve(error, confidence, weight)
    first = jnp.argmax(curve.coverage >= coverage - _TOLERANCE, axis=-1)
    found = jnp.take_along_axis(curve.risk, first[..., None], axis=-1)[..., 0]
    # A row that is rejected may be undefined too: the last risk is of all rows.
    return jnp.where(jnp.isnan(curve.risk[..., -1]), jnp.nan, found)


def coverage_at_risk(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    risk: float = 0.05,
    confidence: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Largest coverage whose error rate is at most `risk`, `[...]`; 0 if there is none.

    It looks at the whole curve, not only up to the first time the risk is exceeded.
    Chosen on the rows it is reported on, it is optimistic. Arguments as for `aurc`.

    Raises:
        ValueError: if `risk` is not in [0, 1], or a shape does not fit.
    """
    if not 0.0 <= risk <= 1.0:
        raise ValueError(f"risk must lie in [0, 1]; got {risk}.")
    error, confidence, weight = _errors(log_probs, labels, confidence, sample_weight)
    curve = error_curve(error, confidence, weight)
    reached = (curve.risk <= risk + _TOLERANCE) & (curve.weight > 0)
    largest = jnp.max(jnp.where(reached, curve.coverage, 0.0), axis=-1)
    return jnp.where(jnp.isnan(curve.risk[..., -1]), jnp.nan, largest)


def _errors(log_probs, labels, confidence, sample_weight):
    log_probs, labels, weight = check_rows(log_probs, labels, sample_weight)
    if confidence is None:
        confidence = merge_ties(max_log_odds(log_probs), weight)
    confidence = broadcast_rows("confidence", confidence, labels.shape)
    return 1.0 - is_correct(log_probs, labels), confidence, weight


def error_curve(
    error: jax.Array, confidence: jax.Array, weight: jax.Array
) -> RiskCoverage:
    """The mean error of the surest rows, for errors of any kind `[..., batch]`.

    All NaN if a confidence that counts is: nothing says where its row belongs.
    """
    leading, num_rows = error.shape[:-1], error.shape[-1]
    flat = [x.reshape(-1, num_rows) for x in (error, confidence, weight)]
    curve = jax.vmap(_one_curve)(*flat)
    return RiskCoverage(*(x.reshape(*leading, num_rows) for x in curve))


def _one_curve(error, confidence, weight):
    # Rows without weight go last, where they add nothing.
    undefined = jnp.any(jnp.isnan(confidence) & (weight != 0))
    order = jnp.lexsort((-confidence, weight == 0))
    error, confidence, weight = error[order], confidence[order], weight[order]
    wrong = weigh(error, weight)
    new = (confidence[1:] != confidence[:-1]) | ((weight[1:] == 0) & (weight[:-1] != 0))
    group = jnp.concatenate(
        [jnp.zeros(1, jnp.int32), jnp.cumsum(new.astype(jnp.int32))]
    )
    group_wrong = jax.ops.segment_sum(wrong, group, num_segments=group.shape[0])
    group_weight = jax.ops.segment_sum(weight, group, num_segments=group.shape[0])
    share = jnp.where(group_weight == 0, 0.0, group_wrong / group_weight)[group]
    kept = jnp.cumsum(weight)
    # The share of a group is a rounded quotient; the sum at the end need not be exact.
    risk = jnp.cumsum(share * weight) / kept
    risk = jnp.where(undefined, jnp.nan, risk)
    return RiskCoverage(kept / kept[-1], risk, weight)


def curve_area(curve: RiskCoverage) -> jax.Array:
    """The mean risk over the rows as they are added, `[...]`."""
    total = jnp.sum(curve.weight, axis=-1)
    return jnp.sum(weigh(curve.risk, curve.weight), axis=-1) / total
