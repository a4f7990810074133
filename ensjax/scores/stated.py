"""Points with what their members state of them: a scale, and the ends of intervals.

`evaluate_points` scores arrays `[..., batch, field]` whose first field are the points.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ensjax.predictions import Predictions
from ensjax.scores.best import choose_rows
from ensjax.scores.bounds import coverage_probability_accuracy, weighted_error_score
from ensjax.scores.programs import With
from ensjax.scores.regression import crps_gaussian, gaussian_nll
from ensjax.scores.spread import ence, miscalibration_area

_GAUSSIAN, _ENDS = ("points", "scale"), ("lower", "upper")


def _gaussian_nll(points, scale, targets, *, sample_weight=None):
    return gaussian_nll(points, scale**2, targets, sample_weight=sample_weight)


# Name -> the score, and the fields that it takes before the targets.
_TAKEN = {
    "gaussian_nll": (_gaussian_nll, _GAUSSIAN),
    "crps_gaussian": (crps_gaussian, _GAUSSIAN),
    "ence": (ence, _GAUSSIAN),
    "miscalibration_area": (miscalibration_area, _GAUSSIAN),
    "weighted_error_score": (weighted_error_score, ("points", *_ENDS)),
    "coverage_probability_accuracy": (coverage_probability_accuracy, _ENDS),
}


def _of_fields(given, targets, *, score, takes, fields, sample_weight=None):
    """The score of some fields of `given [..., batch, field]`."""
    parts = [given[..., fields.index(name)] for name in takes]
    return score(*parts, targets, sample_weight=sample_weight)


# Scores of what is stated, each with its defaults: ENCE in 10 bins, and the coverage of
# intervals against one half.
STATED_METRICS = {
    name: With.of(_of_fields, score=score, takes=takes)
    for name, (score, takes) in _TAKEN.items()
}


def stated_of(predictions: Predictions) -> dict[str, jax.Array]:
    """Name of a field -> `[member, batch]`, of those that the predictions have."""
    stated = {"points": predictions.points}
    for name in ("scale", "lower", "upper"):
        if getattr(predictions, name) is not None:
            stated[name] = getattr(predictions, name)
    return stated


def of_stated(
    functions: Mapping[str, Callable[..., jax.Array]], fields: tuple[str, ...]
) -> dict[str, Callable[..., jax.Array]]:
    """The functions, of arrays `[..., batch, field]`.

    Raises:
        ValueError: if a score takes what is not stated; it names both.
    """
    chosen = {}
    for name, score in functions.items():
        if score is not STATED_METRICS.get(name):
            score = With.of(_of_fields, score=score, takes=("points",))
        takes = dict(score.options)["takes"]
        missing = [field for field in takes if field not in fields]
        if missing:
            raise ValueError(
                f"metric {name!r} needs {' and '.join(missing)} of the members; give"
                " them with Predictions.from_points(points,"
                f" {'=..., '.join(missing)}=...)."
            )
        chosen[name] = With(score.function, (*score.options, ("fields", fields)))
    return chosen


def pool_stated(
    stated: Mapping[str, jax.Array], points: jax.Array, shares: jax.Array
) -> jax.Array:
    """What the ensemble states, `[batch, field]`: of the mixture, and mean ends.

    Args:
        stated: name -> `[member, batch]`.
        points: the weighted mean, `[batch]`.
        shares: of the members, `[member, batch]` or `[member, 1]`.
    """

    def mean(values):
        # Of a member without a share nothing is left, NaN included.
        return jnp.sum(jnp.where(shares == 0, 0.0, values) * shares, axis=0)

    pooled = {name: mean(values) for name, values in stated.items()} | {
        "points": points
    }
    if "scale" in stated:
        away = stated["points"] - points[None]
        pooled["scale"] = jnp.sqrt(mean(stated["scale"] ** 2 + away**2))
    return jnp.stack(list(pooled.values()), axis=-1)


def oracle_stated(
    stated: jax.Array, targets: jax.Array, counts: jax.Array
) -> jax.Array:
    """In each row what the member states that is nearest to the target.

    Args:
        stated: `[member, batch, field]`.
        targets: `[batch]`.
        counts: bool, `[member, batch]`.

    Returns:
        `[batch, field]`; NaN in rows without a member.
    """
    away = jnp.abs(stated[..., 0] - targets[None])
    return choose_rows(stated, away, counts)
