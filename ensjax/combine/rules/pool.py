"""One member made of several: `Predictions` in, `Predictions` out.

Rules have no memory and return arrays; `pool` keeps the names and the provenance beside
them, so that what is fitted on a pool is checked as on its members. What was fitted
(a temperature, a meta-model) gives back by itself what it is given: `give_back`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.calibration.fitting import known_counts
from ensjax.combine.rules.interval_pools import PooledInterval
from ensjax.combine.rules.points import Gaussian
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows


def pool(
    rule: Callable[[Predictions], Any], predictions: Predictions, *, name: str = "pool"
) -> Predictions:
    """What a rule makes of the members, as predictions of one member.

    Args:
        rule: `rule(predictions)`: any rule of this room that takes `Predictions` alone
            and returns log-probabilities, class indices, points, a `Gaussian`, a
            `PooledInterval` or quantiles, or a `functools.partial` of one.
        predictions: of the members.
        name: of the one member.

    Returns:
        `Predictions` of one member, masked on rows where no member counts. It has seen
        what the members that count have seen: neither masked ones, nor those of weight
        0 (inside `Predictions`, or as the `weights` of a `functools.partial`), which
        are masked for the rule. A mask or weights whose values are not known, in a
        compiled program, leave out none.

    Raises:
        ValueError: if the result is no prediction of these rows.
        TypeError: for predictions of features.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> from ensjax.predictions import Predictions
        >>> votes = Predictions.from_votes(jnp.array([[0, 1], [1, 1], [1, 0]]), 2)
        >>> combine.pool(combine.majority_vote, votes).votes.tolist()
        [[1, 1]]
    """
    if predictions.kind == "features":
        raise TypeError("features are no predictions to pool; see combine.fusion_rows.")
    weights = predictions.weights
    if isinstance(rule, functools.partial) and rule.keywords.get("weights") is not None:
        weights = rule.keywords["weights"]
    counts = known_counts(predictions, weights)
    if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) == 0):
        # Whatever the rule makes of weights, what they leave out has no part in it.
        predictions = predictions.replace(mask=counts)
    about = predictions.provenance
    if about is not None:
        about = about.pooled(counts)
    return _one_member(predictions, rule(predictions), name, about)


def give_back(
    given: Any,
    values: Any,
    fitted_rows: FittedRows,
    *,
    mask: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> Any:
    """What something fitted has made: of `Predictions` those of one member.

    They have seen the rows of the fit, and what the members have seen that count.

    Args:
        given: `Predictions` of the members, or arrays, whose values stay arrays.
        values: what was made of them, without a member axis.
        fitted_rows: of what made them.
        mask: as it was given beside `Predictions`.
        weights: `[member]` or `[member, batch]`, of what was made: members of weight 0
            have no part in it. None: all have.
    """
    if not isinstance(given, Predictions):
        return values
    given = as_predictions(given, mask=mask)
    about = given.provenance
    if about is not None:
        about = fitted_rows.mark(about.pooled(known_counts(given, weights)))
    name = fitted_rows.what.removeprefix("the ")
    return _one_member(given, values, name, about)


def give_back_pool(
    given: Any, values: Any, fitted_rows: FittedRows, weights: jax.Array | None
) -> Any:
    """The same of what was made of `mean_probs`: members of weight 0 have no part.

    Args:
        given, values, fitted_rows: as for `give_back`.
        weights: of the pool; None: those of `Predictions`.
    """
    if not isinstance(given, Predictions):
        return values
    weights = given.weights if weights is None else weights
    return give_back(given, values, fitted_rows, weights=weights)


def give_back_members(
    given: Any, values: jax.Array, fitted_rows: FittedRows, kind: str
) -> Any:
    """The same of values `[member, batch, ...]`: the members stay, and have seen both.

    Args:
        given, fitted_rows: as for `give_back`.
        values: what was made of each member.
        kind: of the values.
    """
    if not isinstance(given, Predictions):
        return values
    return given.replace(
        values=values, kind=kind, provenance=fitted_rows.mark(given.provenance)
    )


def _one_member(given, values, name, about):
    told = dict(
        mask=jnp.any(given.mask, axis=0, keepdims=True),
        names=(name,),
        provenance=about,
        columns=given.columns,
    )
    parts = {}
    if isinstance(values, Gaussian):
        values, parts = values.mean, {"scale": values.std[None]}
    elif isinstance(values, PooledInterval):
        parts = {"lower": values.lower[None], "upper": values.upper[None]}
        values = values.point
    shape, rows = jnp.shape(values), given.values.shape[1:]
    if given.kind == "points" and shape == rows:
        return Predictions.from_points(values[None], **parts, **told)
    if given.kind == "quantiles" and shape == rows:
        told.pop("columns")
        return Predictions.from_quantiles(values[None], given.levels, **told)
    if given.num_classes and shape == rows[:1] and values.dtype == jnp.int32:
        return Predictions.from_votes(values[None], given.num_classes, **told)
    if given.num_classes and shape == (*rows[:1], given.num_classes):
        made = Predictions.from_logits(values[None], **told)
        return made.replace(kind="log_probs")
    raise ValueError(
        f"of {given.kind} {given.values.shape} a rule must make one prediction of each"
        f" row; got shape {shape}."
    )
