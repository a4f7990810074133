"""Scores on a subset of the rows, and whether two systems fail on different ones.

A subset that was chosen by what one system got wrong ("cases that the reader missed")
is harder for every other system as well. `matched_control` gives rows that it did not
get wrong and that look as hard, to compare with.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.intervals import Interval, exact_interval, wilson_interval
from ensjax.scores.rows import broadcast_rows, inner_products, row_weights, weigh
from ensjax.scores.significance import mcnemar


class Complementarity(NamedTuple):
    """Two systems on the same rows: where each is right when the other is wrong.

    Attributes:
        both_right, only_first, only_second, both_wrong: numbers of rows.
        first_where_second_wrong: share of the second's errors that the first gets
            right, with its interval; NaN if there is no error.
        second_where_first_wrong: the same the other way round.
        p_value: of McNemar's exact test, two-sided.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    first_where_second_wrong: Interval
    second_where_first_wrong: Interval
    p_value: float


INTERVALS = {"exact": exact_interval, "wilson": wilson_interval}


def subgroup(
    metric: Callable[[jax.Array], jax.Array],
    where: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Any weighted score on the rows of a subset, or of several at once.

    Args:
        metric: `metric(sample_weight [batch]) -> [...]`, for instance a closure over
            one of our scores, as for `paired_bootstrap`.
        where: bool, `[batch]` or `[group, batch]`; groups may overlap.
        sample_weight: `[batch]`, non-negative.

    Returns:
        What `metric` returns, with a group axis in front if `where` has one. A group
        without rows gives what the score gives for no weight, NaN as a rule.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `where` is not bool.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> log_probs, labels = jnp.log(jnp.eye(2)), jnp.array([0, 0])
        >>> def accuracy(w):
        ...     return scores.accuracy(log_probs, labels, sample_weight=w)
        >>> scores.subgroup(accuracy, jnp.array([[True, True], [False, True]])).tolist()
        [0.5, 0.0]
    """
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"where must be bool; got {where.dtype}.")
    if where.ndim not in (1, 2):
        raise ValueError(
            f"where must be [batch] or [group, batch]; got shape {where.shape}."
        )
    weight = row_weights(sample_weight, where.shape)
    weight = jnp.where(where, weight, 0.0)
    return metric(weight) if where.ndim == 1 else jax.lax.map(metric, weight)


def subgroup_rate(
    is_right: jax.Array,
    where: jax.Array,
    *,
    interval: str = "wilson",
    confidence: float = 0.95,
) -> Interval:
    """Share of a subset's rows that are right, with an interval for so few rows.

    Args:
        is_right: bool, `[..., batch]`, such as one row per system.
        where: bool, `[batch]` or `[..., batch]`: the subset.
        interval: "wilson", or "exact" for Clopper and Pearson's (not under `jit`).
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `Interval` of arrays `[...]`; the estimate of an empty subset is NaN.

    Raises:
        ValueError: if a shape does not fit or `interval` is unknown.
        TypeError: if an argument is not bool.
    """
    if interval not in INTERVALS:
        raise ValueError(
            f"interval must be one of {', '.join(INTERVALS)}; got {interval!r}."
        )
    is_right, where = _same_rows(is_right, where)
    successes = jnp.sum(is_right & where, axis=-1)
    trials = jnp.sum(where, axis=-1)
    return INTERVALS[interval](successes, trials, confidence=confidence)


def complementarity(
    first: jax.Array,
    second: jax.Array,
    *,
    interval: str = "wilson",
    confidence: float = 0.95,
) -> Complementarity:
    """What two systems get right where the other is wrong, with intervals and McNemar.

    Args:
        first: bool, `[batch]`: whether the first system is right.
        second: of the second.
        interval: "wilson" or "exact".
        confidence: coverage of the intervals, in (0, 1).

    Raises:
        ValueError: if a shape does not fit or `interval` is unknown.
        TypeError: if an argument is not bool.
    """
    p_value = mcnemar(first, second).p_value
    first, second = np.asarray(first), np.asarray(second)
    options = {"interval": interval, "confidence": confidence}
    return Complementarity(
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
        subgroup_rate(first, ~second, **options),
        subgroup_rate(second, ~first, **options),
        p_value,
    )


def complementarity_matrix(
    is_right: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """How often system i is right where system j is wrong, P(i right | j wrong).

    Args:
        is_right: bool, `[system, batch]`.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `[system, system]`, 0 on the diagonal; a column is NaN if its system is never
        wrong.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `is_right` is not bool.
    """
    right = jnp.asarray(is_right)
    if right.dtype != bool:
        raise TypeError(f"is_right must be bool; got {right.dtype}.")
    if right.ndim != 2:
        raise ValueError(f"is_right must be [system, batch]; got shape {right.shape}.")
    weight = row_weights(sample_weight, right.shape)
    wrong = weigh((~right).astype(weight.dtype), weight)
    both = inner_products(right.astype(weight.dtype), wrong)
    return both / jnp.sum(wrong, axis=-1)[None, :]


def matched_control(
    cases: jax.Array,
    scores: jax.Array,
    *,
    strata: jax.Array | None = None,
    candidates: jax.Array | None = None,
) -> jax.Array:
    """For each case the candidate of its stratum whose score is nearest.

    With replacement: a candidate may serve several cases. Of two that are equally near
    the one with the lower score is taken, and of equal scores the later row.

    Args:
        cases: bool, `[batch]`, such as the rows that a reader got wrong.
        scores: what makes rows alike, `[batch]`, such as the members' mean confidence.
        strata: integers `[batch]` that must agree, such as the kind of error; None: one
            stratum.
        candidates: bool, `[batch]`; None: all that are no cases. A row is never its own
            control.

    Returns:
        `[batch]` row numbers, int32; -1 where the row is no case, no candidate is left
        in its stratum, or its score is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `cases` or `candidates` are not bool, or `strata` not integers.
    """
    cases, scores = jnp.asarray(cases), jnp.asarray(scores)
    if cases.ndim != 1:
        raise ValueError(f"cases must be [batch]; got shape {cases.shape}.")
    scores = broadcast_rows("scores", scores, cases.shape)
    strata = jnp.zeros(cases.shape, jnp.int32) if strata is None else strata
    strata = broadcast_rows("strata", strata, cases.shape)
    candidates = ~cases if candidates is None else jnp.asarray(candidates)
    candidates = broadcast_rows("candidates", candidates, cases.shape)
    for name, values in (("cases", cases), ("candidates", candidates)):
        if values.dtype != bool:
            raise TypeError(f"{name} must be bool; got {values.dtype}.")
    if not jnp.issubdtype(strata.dtype, jnp.integer):
        raise TypeError(f"strata must be integers; got {strata.dtype}.")

    known = ~jnp.isnan(scores)
    candidates &= known
    order = jnp.lexsort((scores, strata))
    place = jnp.arange(len(order), dtype=jnp.int32)
    is_candidate = candidates[order]
    # In the order of stratum and score the nearest are the next ones on both sides.
    below = jax.lax.cummax(jnp.where(is_candidate, place, -1))
    below = jnp.concatenate([jnp.full(1, -1, jnp.int32), below[:-1]])
    last = len(order)
    above = jax.lax.cummin(jnp.where(is_candidate, place, last), reverse=True)
    above = jnp.concatenate([above[1:], jnp.full(1, last, jnp.int32)])

    def distance(to):
        row = order[jnp.clip(to, 0, last - 1)]
        there = (to >= 0) & (to < last) & (strata[row] == strata[order])
        return jnp.where(there, jnp.abs(scores[row] - scores[order]), jnp.inf), row

    (to_below, row_below), (to_above, row_above) = distance(below), distance(above)
    nearest = jnp.where(to_below <= to_above, row_below, row_above)
    found = jnp.isfinite(jnp.minimum(to_below, to_above)) & (cases & known)[order]
    nearest = jnp.where(found, nearest, -1).astype(jnp.int32)
    return jnp.zeros(cases.shape, jnp.int32).at[order].set(nearest)


def _same_rows(is_right, where):
    is_right, where = jnp.asarray(is_right), jnp.asarray(where)
    for name, values in (("is_right", is_right), ("where", where)):
        if values.dtype != bool:
            raise TypeError(f"{name} must be bool; got {values.dtype}.")
    if is_right.ndim < 1:
        raise ValueError("is_right must be [..., batch]; got a scalar.")
    return is_right, broadcast_rows("where", where, is_right.shape)
