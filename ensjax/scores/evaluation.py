"""`evaluate`: several scores of an ensemble and its members, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import Predictions, as_predictions, predictive_log_probs
from ensjax.scores.calibration import ece
from ensjax.scores.classification import accuracy
from ensjax.scores.intervals import paired_bootstrap
from ensjax.scores.proper import brier, nll
from ensjax.scores.selective import aurc

METRICS = {"nll": nll, "accuracy": accuracy, "brier": brier, "ece": ece, "aurc": aurc}


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

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> logits = jnp.zeros((2, 4, 3))
        >>> result = scores.evaluate(logits, jnp.arange(4) % 3, ["nll"])
        >>> round(result["nll"], 4), result["num_members"]
        (1.0986, 2)
    """
    functions = _functions(metrics)
    predictions = as_predictions(predictions)
    members = predictions.log_probs
    num_members, num_rows = members.shape[:2]
    counts = np.asarray(jnp.broadcast_to(_by_row(predictions), members.shape[:2]))
    if not counts.any():
        raise ValueError("No member counts: all are masked or have weight 0.")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must not be negative; got {bootstrap}.")
    weight = jnp.ones(num_rows) if sample_weight is None else jnp.asarray(sample_weight)
    if weight.shape != (num_rows,):
        raise ValueError(f"sample_weight must be [{num_rows}]; got {weight.shape}.")
    ensemble = predictive_log_probs(predictions)
    # A member that is masked in some rows is scored on the others.
    of_members = jnp.asarray(counts, weight.dtype)
    is_member = jnp.asarray(counts.any(axis=1))

    def all_values(resampled):
        rows = resampled * weight
        found = {}
        for name, score in functions.items():
            own = score(members, labels, sample_weight=of_members * rows[None])
            if own.shape != (num_members,):
                raise ValueError(
                    f"metric {name!r} must return one number for each leading axis,"
                    f" [member] for [member, batch, class]; got {own.shape}."
                )
            mean = jnp.sum(jnp.where(is_member, own, 0.0)) / jnp.sum(is_member)
            value = score(ensemble, labels, sample_weight=rows)
            found[name] = (value, mean, value - mean, own)
        return found

    values = jax.jit(all_values)(jnp.ones(num_rows))
    result = {}
    intervals = _intervals(all_values, num_rows, groups, bootstrap, confidence, seed)
    for name, (*numbers, own) in values.items():
        for i, suffix in enumerate(("", "_mean_member", "_gain")):
            result[name + suffix] = float(numbers[i])
            if intervals is not None:
                result[f"{name}{suffix}_low"] = float(intervals[0][name][i])
                result[f"{name}{suffix}_high"] = float(intervals[1][name][i])
        kept = np.asarray(is_member)
        result[f"{name}_members"] = [
            float(x) if keep else None for x, keep in zip(own, kept, strict=True)
        ]
    result["num_members"] = int(is_member.sum())
    result["num_rows"] = int((weight != 0).sum())
    return result


def _functions(metrics):
    if isinstance(metrics, str):
        raise ValueError(f"metrics is a list of names; got the string {metrics!r}.")
    if not isinstance(metrics, Mapping):
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ValueError(
                f"unknown metrics {', '.join(map(repr, unknown))}; there are"
                f" {', '.join(METRICS)}. Others go in as {{name: function}}."
            )
        metrics = {name: METRICS[name] for name in metrics}
    if not metrics:
        raise ValueError("metrics is empty.")
    return dict(metrics)


def _by_row(predictions):
    """Whether each member counts in each row, `[member, 1]` or `[member, batch]`."""
    weights = predictions.normalized_weights
    return weights.reshape(len(weights), -1) > 0  # NaN where nobody counts


def _intervals(all_values, num_rows, groups, bootstrap, confidence, seed):
    """The ends of all intervals, `name -> [3]`; None without a bootstrap."""
    if not bootstrap:
        return None
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (num_rows,):
            raise ValueError(f"groups must be [{num_rows}]; got {groups.shape}.")
        names, groups = np.unique(groups, return_inverse=True)
    found = paired_bootstrap(
        jax.random.key(seed),
        lambda rows: jnp.stack(
            [jnp.stack(numbers[:3]) for numbers in all_values(rows).values()]
        ),
        num_rows,
        groups=groups,
        num_groups=None if groups is None else len(names),
        num_resamples=bootstrap,
        confidence=confidence,
    )
    order = list(all_values(jnp.ones(num_rows)))
    return tuple(
        dict(zip(order, np.asarray(ends), strict=True))
        for ends in (found.low, found.high)
    )
