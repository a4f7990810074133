"""`evaluate`: several scores of an ensemble and its members, with intervals.

Of class probabilities, of points (`evaluate_points`), of intervals and of sets, each as
a flat dict of numbers.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import (
    Predictions,
    as_points,
    as_predictions,
    predictive_log_probs,
)
from ensjax.provenance import Provenance, check_scored_rows
from ensjax.scores.bounds import (
    coverage_width_criterion,
    interval_coverage,
    interval_score,
    mean_width,
)
from ensjax.scores.calibration import ece
from ensjax.scores.classification import accuracy
from ensjax.scores.decomposition import pooled_points
from ensjax.scores.intervals import paired_bootstrap
from ensjax.scores.proper import brier, nll
from ensjax.scores.rank_correlation import spearman_correlation
from ensjax.scores.regression import (
    mae,
    max_error,
    median_absolute_error,
    pearson_correlation,
    r2,
    rmse,
    slope,
)
from ensjax.scores.selective import aurc
from ensjax.scores.sets import mean_set_size, set_coverage

METRICS = {"nll": nll, "accuracy": accuracy, "brier": brier, "ece": ece, "aurc": aurc}
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


def evaluate(
    predictions: jax.Array | Predictions,
    labels: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] = tuple(METRICS),
    *,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of the ensemble and of each member, as a flat dict that JSON can hold.

    The ensemble is the mixture of the members that count, by their weights
    (`predictive_log_probs`). All metrics, the ensemble and its members see the same
    resamples.

    Args:
        predictions: `[member, batch, class]` logits, or `Predictions` with
            probabilities. A masked member has no score.
        labels: class indices, `[batch]`.
        metrics: names of `METRICS`, or name -> `score(log_probs, labels, *,
            sample_weight) -> [...]`, such as any classification score of this room.
        sample_weight: `[batch]`, non-negative.
        groups: `[batch]` integers or strings: rows of one group (a patient, a scene)
            are resampled together.
        bootstrap: number of resamples; 0: no intervals.
        confidence: of the intervals.
        seed: of the resamples.
        allow_seen: scores also rows that members were trained or fitted on, to look at
            the fit. Otherwise `Predictions` of such rows are refused; members may be
            masked there, or the rows have no weight.

    Returns:
        For every metric `name`: `name` of the ensemble, `name_mean_member` (the mean of
        the members' own scores), `name_gain` (ensemble minus mean member) and
        `name_members`, a list with None for masked members; with a bootstrap also
        `_low` and `_high` of the first three. And `num_members`, those that count, and
        `num_rows`, those of weight above 0.

    Raises:
        ValueError: for an unknown metric, no metric, no member that counts, or a shape
            that does not fit; it names the metric.
        TypeError: if the predictions are votes or labels are not integers.
        LeakageError: if a member that counts has seen a row that does; names both.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> logits = jnp.zeros((2, 4, 3))
        >>> result = scores.evaluate(logits, jnp.arange(4) % 3, ["nll"])
        >>> round(result["nll"], 4), result["num_members"]
        (1.0986, 2)
    """
    functions = _functions(metrics, METRICS)
    predictions = as_predictions(predictions)
    members = predictions.log_probs
    counts = np.asarray(jnp.broadcast_to(_by_row(predictions), members.shape[:2]))
    rows = _Rows.of(members.shape[1], sample_weight, groups)
    _check_seen(predictions, counts, rows, allow_seen)
    return _evaluate(
        functions,
        predictive_log_probs(predictions),
        members,
        (labels,),
        counts,
        rows,
        _Bootstrap(bootstrap, confidence, seed),
    )


def evaluate_points(
    points: jax.Array | Predictions,
    targets: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] = tuple(
        POINT_METRICS
    ),
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of real-valued predictions, of the members' mean and of each member.

    Args:
        points: `[member, batch]`, or `Predictions` of points; one model becomes an
            ensemble of one with `points[None]`.
        targets: `[batch]`.
        metrics: names of `POINT_METRICS`, or name -> `score(points, targets, *,
            sample_weight) -> [...]`.
        weights: of the mean, `[member]` or `[member, batch]`; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed. Like
            `weights`, those of `Predictions` where it is not given.

    The other arguments, what is returned and what raises are those of `evaluate`.
    """
    functions = _functions(metrics, POINT_METRICS)
    predictions = as_points(points, weights=weights, mask=mask)
    if isinstance(points, Predictions):
        weights, mask = predictions.weights, predictions.mask
    points = predictions.points
    ensemble, shares = pooled_points(points, weights=weights, mask=mask)
    counts = np.broadcast_to(np.asarray(shares > 0), points.shape)
    rows = _Rows.of(points.shape[1], sample_weight, groups)
    _check_seen(predictions, counts, rows, allow_seen)
    return _evaluate(
        functions,
        ensemble,
        points,
        (targets,),
        counts,
        rows,
        _Bootstrap(bootstrap, confidence, seed),
    )


def evaluate_intervals(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    nominal: float = 0.9,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Coverage, width, interval score and CWC of predicted intervals.

    Args:
        lower: `[batch]` of one system.
        upper: `[batch]`.
        targets: `[batch]`.
        nominal: the coverage aimed at, in (0, 1).
        provenance: of the intervals, such as `fitted.fitted_rows.mark(...)` of what
            made them; None: unknown, and nothing is checked.

    The other arguments are those of `evaluate`.

    Returns:
        "coverage", "width", "interval_score" and "cwc"; with a bootstrap also `_low`
        and `_high` of each; "nominal" and "num_rows".

    Raises:
        ValueError: if a number is out of range or a shape does not fit.
        LeakageError: as `evaluate`.
    """
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    if lower.ndim != 1:
        raise ValueError(f"lower must be [batch]; got shape {lower.shape}.")
    score = functools.partial(interval_score, alpha=1 - nominal)
    criterion = functools.partial(coverage_width_criterion, nominal=nominal)

    def values(weight):
        return {
            "coverage": interval_coverage(lower, upper, targets, sample_weight=weight),
            "width": mean_width(lower, upper, sample_weight=weight),
            "interval_score": score(lower, upper, targets, sample_weight=weight),
            "cwc": criterion(lower, upper, targets, sample_weight=weight),
        }

    rows = _Rows.of(lower.shape[0], sample_weight, groups)
    _check_rows(provenance, (), rows.weight[None] != 0, allow_seen)
    found = _one_system(values, rows, _Bootstrap(bootstrap, confidence, seed))
    return found | {"nominal": float(nominal)}


def evaluate_sets(
    sets: jax.Array,
    labels: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Coverage and mean size of sets of classes, bool `[batch, class]`.

    Args:
        sets: bool, `[batch, class]`.
        labels: class indices, `[batch]`.
        provenance: of the sets, as for `evaluate_intervals`.

    The other arguments are those of `evaluate`.

    Returns:
        "coverage" and "size"; with a bootstrap also `_low` and `_high`; "num_rows".

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `sets` are not bool or `labels` not integers.
        LeakageError: as `evaluate`.
    """
    sets = jnp.asarray(sets)
    if sets.ndim != 2:
        raise ValueError(f"sets must be [batch, class]; got shape {sets.shape}.")

    def values(weight):
        return {
            "coverage": set_coverage(sets, labels, sample_weight=weight),
            "size": mean_set_size(sets, sample_weight=weight),
        }

    rows = _Rows.of(sets.shape[0], sample_weight, groups)
    _check_rows(provenance, (), rows.weight[None] != 0, allow_seen)
    return _one_system(values, rows, _Bootstrap(bootstrap, confidence, seed))


def _check_seen(predictions, counts, rows, allow_seen):
    counts = counts & (np.asarray(rows.weight) != 0)
    _check_rows(predictions.provenance, predictions.names, counts, allow_seen)


def _check_rows(provenance, names, counts, allow_seen):
    if provenance is not None and len(provenance.rows) != counts.shape[1]:
        raise ValueError(
            f"the provenance is of {len(provenance.rows)} rows, and"
            f" {counts.shape[1]} are scored; choose rows with Predictions.take."
        )
    check_scored_rows(provenance, names=names, counts=counts, allow_seen=allow_seen)


class _Bootstrap(NamedTuple):
    num_resamples: int
    confidence: float
    seed: int


class _Rows(NamedTuple):
    weight: jax.Array
    groups: np.ndarray | None
    num_groups: int | None

    @classmethod
    def of(cls, num_rows, sample_weight, groups):
        weight = jnp.ones(num_rows)
        weight = weight if sample_weight is None else jnp.asarray(sample_weight)
        if weight.shape != (num_rows,):
            raise ValueError(f"sample_weight must be [{num_rows}]; got {weight.shape}.")
        if groups is None:
            return cls(weight, None, None)
        groups = np.asarray(groups)
        if groups.shape != (num_rows,):
            raise ValueError(f"groups must be [{num_rows}]; got {groups.shape}.")
        names, groups = np.unique(groups, return_inverse=True)
        return cls(weight, groups, len(names))


def _evaluate(functions, ensemble, members, truth, counts, rows, bootstrap):
    """The result of `evaluate`, of scores of any kind of prediction."""
    if not counts.any():
        raise ValueError("No member counts: all are masked or have weight 0.")
    # A member that is masked in some rows is scored on the others.
    of_members = jnp.asarray(counts, jnp.float32)
    is_member = jnp.asarray(counts.any(axis=1))

    def numbers(weight):
        """`[3]` for each metric, and the members' own."""
        found, own_values = {}, {}
        for name, score in functions.items():
            own = score(members, *truth, sample_weight=of_members * weight[None])
            if own.shape != is_member.shape:
                raise ValueError(
                    f"metric {name!r} must return one number for each leading axis,"
                    f" [member] for [member, batch, ...]; got {own.shape}."
                )
            mean = jnp.sum(jnp.where(is_member, own, 0.0)) / jnp.sum(is_member)
            value = score(ensemble, *truth, sample_weight=weight)
            found[name] = value
            found[f"{name}_mean_member"] = mean
            found[f"{name}_gain"] = value - mean
            own_values[f"{name}_members"] = own
        return found, own_values

    found, own_values = jax.jit(numbers)(rows.weight)
    result = _one_system(lambda weight: numbers(weight)[0], rows, bootstrap, found)
    num_rows = result.pop("num_rows")
    kept = np.asarray(is_member)
    for name, own in own_values.items():
        result[name] = [
            float(x) if keep else None for x, keep in zip(own, kept, strict=True)
        ]
    return result | {"num_members": int(is_member.sum()), "num_rows": num_rows}


def _one_system(values, rows, bootstrap, found=None):
    """`values(weight) -> {name: scalar}` as floats, with the ends of intervals."""
    if bootstrap.num_resamples < 0:
        raise ValueError(
            f"bootstrap must not be negative; got {bootstrap.num_resamples}."
        )
    found = jax.jit(values)(rows.weight) if found is None else found
    names = list(found)
    result = {name: float(found[name]) for name in names}
    if bootstrap.num_resamples:
        ends = paired_bootstrap(
            jax.random.key(bootstrap.seed),
            lambda counts: jnp.stack(
                [values(counts * rows.weight)[name] for name in names]
            ),
            rows.weight.shape[0],
            groups=rows.groups,
            num_groups=rows.num_groups,
            num_resamples=bootstrap.num_resamples,
            confidence=bootstrap.confidence,
        )
        for i, name in enumerate(names):
            result[f"{name}_low"] = float(ends.low[i])
            result[f"{name}_high"] = float(ends.high[i])
    return result | {"num_rows": int((rows.weight != 0).sum())}


def _functions(metrics, known):
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


def _by_row(predictions):
    """Whether each member counts in each row, `[member, 1]` or `[member, batch]`."""
    weights = predictions.normalized_weights
    return weights.reshape(len(weights), -1) > 0  # NaN where nobody counts
