"""The scores that `evaluate` and its like know by name, for each kind of prediction."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from ensjax.member_arrays import wide_labels
from ensjax.scores.calibration import (
    adaptive_ece,
    classwise_ece,
    debiased_calibration_error,
    ece,
    mce,
)
from ensjax.scores.classification import (
    accuracy,
    balanced_accuracy,
    balanced_classification_accuracy,
    cohen_kappa,
    macro_f1,
    matthews_correlation,
    per_class_f1,
    top_k_accuracy,
)
from ensjax.scores.proper import brier, nll, rps
from ensjax.scores.quantiles import (
    crossing_rate,
    crps_quantiles,
    quantile_coverage,
    weighted_interval_score,
)
from ensjax.scores.rank_correlation import spearman_correlation
from ensjax.scores.ranking import hand_till_auroc, macro_auroc
from ensjax.scores.regression import (
    mae,
    max_error,
    median_absolute_error,
    pearson_correlation,
    pinball,
    r2,
    rmse,
    slope,
)
from ensjax.scores.rows import row_weights, weighted_mean
from ensjax.scores.selective import (
    augrc,
    aurc,
    aurc_trapezoid,
    coverage_at_risk,
    error_auroc,
    excess_aurc,
    risk_at_coverage,
)
from ensjax.scores.smooth_calibration import smooth_ece

# Of log-probabilities `[..., batch, class]`.
METRICS = {
    score.__name__: score
    for score in (
        *(nll, brier, rps),
        *(accuracy, balanced_accuracy, balanced_classification_accuracy),
        *(cohen_kappa, macro_f1, matthews_correlation, top_k_accuracy),
        *(ece, adaptive_ece, classwise_ece, debiased_calibration_error, mce),
        *(smooth_ece, macro_auroc, hand_till_auroc),
        *(aurc, aurc_trapezoid, augrc, excess_aurc, error_auroc),
        *(coverage_at_risk, risk_at_coverage),
    )
}
DEFAULT_METRICS = ("nll", "accuracy", "brier", "ece", "aurc")
POINT_METRICS = {
    "mae": mae,
    "rmse": rmse,
    "median_absolute_error": median_absolute_error,
    "max_error": max_error,
    "r2": r2,
    "pearson_correlation": pearson_correlation,
    "spearman_correlation": spearman_correlation,
    "slope": slope,
}


def _mean_pinball(quantiles, targets, *, levels, sample_weight=None):
    losses = pinball(quantiles, targets, levels=levels, sample_weight=sample_weight)
    return jnp.mean(losses, axis=-1)


def mean_coverage_error(quantiles, targets, *, levels, sample_weight=None):
    """Mean over levels of |share of targets at most the quantile - level|, `[...]`."""
    gaps = coverage_gaps(quantiles, targets, levels=levels, sample_weight=sample_weight)
    return jnp.sum(jnp.abs(gaps), axis=-1)


def coverage_gaps(quantiles, targets, *, levels, sample_weight=None):
    """The summands of `mean_coverage_error` with their sign, `[..., level]`."""
    covered = quantile_coverage(quantiles, targets, sample_weight=sample_weight)
    levels = jnp.asarray(levels).reshape((1,) * (covered.ndim - 1) + (-1,))
    return (covered - levels) / levels.size


def _crossing_rate(quantiles, targets, *, levels, sample_weight=None):
    return crossing_rate(quantiles, sample_weight=sample_weight)


# Means over levels: of the pinball loss, and of |share of targets below - level|.
QUANTILE_METRICS = {
    "pinball": _mean_pinball,
    "crps_quantiles": crps_quantiles,
    "mean_coverage_error": mean_coverage_error,
    "crossing_rate": _crossing_rate,
    "weighted_interval_score": weighted_interval_score,
}


def _of_votes(score):
    """`score` of log-probabilities, of votes `[..., batch]`."""

    def scored(votes, labels, *, num_classes, sample_weight=None):
        said, labels = _with_abstention(votes, labels, num_classes)
        return score(said, labels, sample_weight=sample_weight)

    return scored


def _macro_f1(votes, labels, *, num_classes, sample_weight=None):
    said, labels = _with_abstention(votes, labels, num_classes)
    every = per_class_f1(said, labels, sample_weight=sample_weight)
    return jnp.mean(every[..., :num_classes], axis=-1)


def _balanced_classification_accuracy(
    votes, labels, *, num_classes, sample_weight=None
):
    said, labels = _with_abstention(votes, labels, num_classes)
    mean = balanced_classification_accuracy(said, labels, sample_weight=sample_weight)
    # Without the part of abstaining, which is no class: no row is of it.
    weight = row_weights(sample_weight, said.shape[:-1])
    abstained = weighted_mean((votes < 0) * 1.0, weight)
    part = (0.5 + 1 - abstained) / 2
    return ((num_classes + 1) * mean - part) / num_classes


def _with_abstention(votes, labels, num_classes):
    """Logits of votes, with a last class of abstentions that no row is of."""
    votes = jnp.where(votes < 0, num_classes, votes)
    said = 50.0 * jax.nn.one_hot(votes, num_classes + 1)
    # A vote for what is no class is as wrong as a label of none.
    said = jnp.where(votes[..., None] > num_classes, jnp.nan, said)
    labels = wide_labels(labels)
    return said, jnp.where(labels >= num_classes, -1, labels)


# Of votes: `score(votes, labels, *, num_classes, sample_weight)`.
VOTE_METRICS = {
    "accuracy": _of_votes(accuracy),
    "balanced_accuracy": _of_votes(balanced_accuracy),
    "macro_f1": _macro_f1,
    "cohen_kappa": _of_votes(cohen_kappa),
    "matthews_correlation": _of_votes(matthews_correlation),
    "balanced_classification_accuracy": _balanced_classification_accuracy,
}


def chosen_metrics(
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None,
    known: Mapping[str, Callable[..., jax.Array]],
    default: Sequence[str],
) -> dict[str, Callable[..., jax.Array]]:
    """Name -> function of the metrics that are asked for; None: the default ones.

    Raises:
        ValueError: for an unknown name, a string, or no metric.
    """
    if metrics is None:
        metrics = default
    if isinstance(metrics, str):
        raise ValueError(f"metrics is a list of names; got the string {metrics!r}.")
    if not isinstance(metrics, Mapping):
        unknown = [name for name in metrics if name not in known]
        if unknown:
            raise ValueError(
                f"unknown metrics {', '.join(map(repr, unknown))}; there are"
                f" {', '.join(known)}. Others go in as {{name: function}}."
            )
        metrics = {name: known[name] for name in metrics}
    if not metrics:
        raise ValueError("metrics is empty.")
    return dict(metrics)
