"""Scores that only an ensemble has, by name and with intervals.

How much its members differ (`evaluate_diversity`), and what its spread tells of its
error (`evaluate_spread`); how well its doubt finds rows is in `evaluation_detection`.
Rows, or groups of them, are drawn again as by `evaluate`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import counting_members
from ensjax.predictions import (
    Predictions,
    as_points,
    as_predictions,
    predictive_log_probs,
)
from ensjax.scores.confidence_curve import confidence_curve_area
from ensjax.scores.decomposition import ambiguity_decomposition, member_moments
from ensjax.scores.diversity import (
    disagreement,
    double_fault,
    error_correlation,
    kappa,
    label_probability_variance,
    mean_pairwise_kl,
    normalized_disagreement,
    pairwise_mean,
    q_statistic,
)
from ensjax.scores.evaluation_rows import Bootstrap, Rows, check_seen
from ensjax.scores.metrics import chosen_metrics
from ensjax.scores.programs import With, known_name, score_one
from ensjax.scores.rank_correlation import error_rank_correlation
from ensjax.scores.rows import row_weights, weighted_mean
from ensjax.scores.spread import crps_samples, sparsification_error, spread_skill
from ensjax.scores.uncertainty import (
    expected_entropy,
    jensen_gap,
    mutual_information,
    predictive_entropy,
    variation_ratio,
    vote_entropy,
)


def _pairs(score):
    """The mean over pairs of members of a score that gives `[member, member]`."""

    def mean(predictions, labels, *, sample_weight=None):
        return pairwise_mean(score(predictions, labels, sample_weight=sample_weight))

    return mean


def _without_labels(score):
    def scored(predictions, labels, *, sample_weight=None):
        return score(predictions, sample_weight=sample_weight)

    return scored


def _kappa(predictions, labels, *, sample_weight=None):
    return pairwise_mean(kappa(predictions, sample_weight=sample_weight))


def _mean_row(score):
    """The mean over rows of a score that gives `[batch]`."""

    def mean(predictions, labels, *, sample_weight=None):
        values = score(predictions)
        return weighted_mean(values, row_weights(sample_weight, values.shape))

    return mean


def _predictive_entropy(predictions):
    return predictive_entropy(predictive_log_probs(predictions))


# `score(predictions, labels, *, sample_weight)` to a scalar.
DIVERSITY_METRICS = {
    "disagreement": _without_labels(disagreement),
    "normalized_disagreement": normalized_disagreement,
    "kappa": _kappa,
    "error_correlation": _pairs(error_correlation),
    "q_statistic": _pairs(q_statistic),
    "double_fault": _pairs(double_fault),
    "mean_pairwise_kl": _without_labels(mean_pairwise_kl),
    "label_probability_variance": label_probability_variance,
    "jensen_gap": jensen_gap,
    "predictive_entropy": _mean_row(_predictive_entropy),
    "expected_entropy": _mean_row(expected_entropy),
    "mutual_information": _mean_row(mutual_information),
    "variation_ratio": _mean_row(variation_ratio),
    "vote_entropy": _mean_row(vote_entropy),
}


def _spread_skill(points, targets, *, mask, sample_weight):
    # One member has no spread; NaN, as of members that are masked.
    if len(points) < 2:
        return jnp.full((), jnp.nan)
    return spread_skill(points, targets, mask=mask, sample_weight=sample_weight)


def _of_spread(score):
    def scored(points, targets, *, mask, sample_weight=None):
        mean, std, _ = member_moments(points, ddof=1, mask=mask)
        return score(mean, std, targets, sample_weight=sample_weight)

    return scored


def _ambiguity(points, targets, *, mask, sample_weight=None):
    parts = ambiguity_decomposition(
        points, targets, mask=mask, sample_weight=sample_weight
    )
    return parts.ambiguity


# `score(points, targets, *, mask, sample_weight)` of `[member, batch]` to a scalar.
SPREAD_METRICS = {
    "ambiguity": _ambiguity,
    "crps_samples": crps_samples,
    "spread_skill": _spread_skill,
    "sparsification_error": _of_spread(sparsification_error),
    "confidence_curve_area": _of_spread(confidence_curve_area),
    "error_rank_correlation": _of_spread(error_rank_correlation),
}


def evaluate_diversity(
    predictions: jax.Array | Predictions,
    labels: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """How much the members differ: each measure, and the ends of its interval.

    Args:
        predictions: `[member, batch, class]` logits, or `Predictions`; votes will do
            for measures of votes.
        labels: class indices, `[batch]`.
        metrics: names of `DIVERSITY_METRICS`, or name -> `score(predictions, labels, *,
            sample_weight)` to a scalar. None: all. Of pairs of members it is the mean;
            "error_correlation", "q_statistic" and "double_fault" take a mask
            `[member]`. Entropies are means over rows, in nats.

    The other arguments are those of `evaluate`.

    Returns:
        For every metric `name`: its value, and with a bootstrap `name_low` and
        `name_high`; `num_members` and `num_rows`.

    Raises:
        ValueError, TypeError, LeakageError: as `evaluate`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> logits = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> labels = jnp.array([0, 0])
        >>> scores.evaluate_diversity(logits, labels, ["disagreement"])["disagreement"]
        0.5
    """
    functions = chosen_metrics(metrics, DIVERSITY_METRICS, tuple(DIVERSITY_METRICS))
    predictions = as_predictions(predictions)
    counts, rows = counts_and_rows(predictions, sample_weight, groups, allow_seen)
    parts = _by_rows(predictions)
    found = score_one(
        With.of(_diversity, functions=tuple(functions.items()), parts=tuple(parts)),
        {"labels": labels} | parts,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        more=(predictions.replace(provenance=None),),
        ranges={k: known_name(f, DIVERSITY_METRICS) for k, f in functions.items()},
    )
    return with_members(found, counts)


def _diversity(weight, labels, *given, functions, parts):
    *arrays, predictions = given
    arrays = [jnp.moveaxis(array, 0, 1) for array in arrays]
    predictions = predictions.replace(**dict(zip(parts, arrays, strict=True)))
    return {
        name: _scalar(name, score(predictions, labels, sample_weight=weight))
        for name, score in functions
    }


def evaluate_spread(
    points: jax.Array | Predictions,
    targets: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """What the spread of the members tells of the error of their mean, with intervals.

    Args:
        points: `[member, batch]`, or `Predictions` of points. Members count equally;
            those that are masked, or have the weight 0, do not.
        targets: `[batch]`.
        metrics: names of `SPREAD_METRICS`, or name -> `score(points, targets, *, mask,
            sample_weight)` to a scalar. None: all. The spread is the standard deviation
            over members with ddof = 1: of one member, what needs it is NaN.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    The other arguments are those of `evaluate`.

    Returns, raises: as `evaluate_diversity`.
    """
    functions = chosen_metrics(metrics, SPREAD_METRICS, tuple(SPREAD_METRICS))
    predictions = as_points(points, mask=mask)
    if predictions.points.ndim != 2:
        raise ValueError(
            f"points must be [member, batch]; got shape {predictions.points.shape}."
        )
    counts, rows = counts_and_rows(predictions, sample_weight, groups, allow_seen)

    values = With.of(_spread, functions=tuple(functions.items()))
    arrays = {"targets": targets, "points": predictions.points.T, "counts": counts.T}
    found = score_one(
        values,
        arrays,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        ranges={k: known_name(f, SPREAD_METRICS) for k, f in functions.items()},
    )
    return with_members(found, counts)


def _spread(weight, targets, points, counts, *, functions):
    told = dict(mask=counts.T, sample_weight=weight)
    return {
        name: _scalar(name, score(points.T, targets, **told))
        for name, score in functions
    }


def counts_and_rows(predictions, sample_weight, groups, allow_seen):
    """Which members count, bools `[member, batch]`, and `Rows`; checks what is seen."""
    counts = np.asarray(counting_members(predictions.weights, predictions.mask))
    counts = counts.reshape(len(counts), -1)
    counts = np.broadcast_to(counts, predictions.values.shape[:2])
    if not counts.any():
        raise ValueError("No member counts: all are masked or have weight 0.")
    rows = Rows.of(counts.shape[1], sample_weight, groups)
    check_seen(predictions, counts, rows, allow_seen)
    return counts, rows


def _by_rows(predictions):
    """Name -> `[batch, ...]` of what has rows."""
    parts = {"values": predictions.values}
    for name in ("mask", "weights"):
        if getattr(predictions, name).ndim == 2:
            parts[name] = getattr(predictions, name)
    return {name: jnp.moveaxis(part, 1, 0) for name, part in parts.items()}


def _scalar(name, value):
    if jnp.shape(value):
        raise ValueError(f"metric {name!r} must give a scalar; got {value.shape}.")
    return value


def with_members(found, counts):
    num_rows = found.pop("num_rows")
    members = int(counts.any(axis=1).sum())
    return found | {"num_members": members, "num_rows": num_rows}
