"""Alarms of a report: a score that was bought by smoothing, and a mean that drifts.

They say no more than that a reader should look: both bounds are conventions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating

LEAST_DROP = 0.05
LEAST_SHARE = 0.25


class SmoothingAlarm(NamedTuple):
    """Where a smaller error comes with less activity.

    Attributes:
        fires: booleans, of the shape of the errors.
        error_change: of the error, as a share of the reference's; negative: improved.
        activity_change: of the activity ratio, likewise; negative: smoother.
        is_known: booleans; False where a score is missing (NaN), or one of the
            reference is 0. There it does not fire, which says nothing.
    """

    fires: jax.Array
    error_change: jax.Array
    activity_change: jax.Array
    is_known: jax.Array


def smoothing_alarm(
    rmse: jax.Array,
    activity_ratio: jax.Array,
    *,
    reference_rmse: jax.Array,
    reference_activity_ratio: jax.Array,
    drop: float = LEAST_DROP,
) -> SmoothingAlarm:
    """Fires where the error improves on a reference and activity drops by over 5 %.

    Args:
        rmse: of the forecast, such as by lead, `[...]`; NaN where it is missing, as in
            the others.
        activity_ratio: its activity over the truth's, `[...]`.
        reference_rmse, reference_activity_ratio: of the forecast it is compared with.
        drop: as a share of the reference's activity ratio, from which it fires.

    Raises:
        ValueError: if shapes differ or `drop` is negative.
    """
    values = [
        floating(x)
        for x in (rmse, activity_ratio, reference_rmse, reference_activity_ratio)
    ]
    _check_shapes(
        ("rmse", "activity_ratio", "reference_rmse", "reference_activity_ratio"), values
    )
    if not drop >= 0:
        raise ValueError(f"drop must not be negative; got {drop}.")
    error, activity = (
        x / jnp.where(reference > 0, reference, jnp.nan) - 1
        for x, reference in zip(values[:2], values[2:], strict=True)
    )
    is_known = ~(jnp.isnan(error) | jnp.isnan(activity))
    fires = (error < 0) & (activity < -drop)
    return SmoothingAlarm(fires, error, activity, is_known)


class DriftAlarm(NamedTuple):
    """Whether the bias is a large part of the error at the last lead, `[...]`.

    Last and first are of the leads that have both scores.

    Attributes:
        fires: booleans; False also where it is not known.
        share: bias over root mean square error at the last lead, with its sign; NaN
            where it is not known, or where there is no error.
        growth: bias at the last lead less that at the first, in the values' unit.
        last: which lead that is, an index; -1 where no lead has scores: not known.
    """

    fires: jax.Array
    share: jax.Array
    growth: jax.Array
    last: jax.Array


def drift_alarm(
    bias: jax.Array, rmse: jax.Array, *, share: float = LEAST_SHARE
) -> DriftAlarm:
    """Fires where |bias| at the last lead with scores exceeds 25 % of the error there.

    Args:
        bias: signed, `[lead, ...]`; NaN where it is missing.
        rmse: root mean square error, `[lead, ...]`, likewise.
        share: from which it fires.

    Raises:
        ValueError: if shapes differ, there is no lead, or the share is not positive.
    """
    bias, rmse = floating(bias), floating(rmse)
    _check_shapes(("bias", "rmse"), (bias, rmse))
    if bias.ndim < 1 or not len(bias):
        raise ValueError(f"bias must be [lead, ...]; got shape {bias.shape}.")
    if not share > 0:
        raise ValueError(f"share must be positive; got {share}.")
    number = len(bias)
    lead = jnp.arange(number).reshape(-1, *(1,) * (bias.ndim - 1))
    is_known = ~(jnp.isnan(bias) | jnp.isnan(rmse))
    last = jnp.max(jnp.where(is_known, lead, -1), axis=0)
    first = jnp.min(jnp.where(is_known, lead, number), axis=0)

    def at(values, index):
        index = jnp.clip(index, 0, number - 1)[None]
        found = jnp.take_along_axis(values, index, axis=0)[0]
        return jnp.where(last >= 0, found, jnp.nan)

    error, final = at(rmse, last), at(bias, last)
    found = final / jnp.where(error > 0, error, jnp.nan)
    return DriftAlarm(jnp.abs(found) > share, found, final - at(bias, first), last)


def _check_shapes(names, values):
    shapes = [value.shape for value in values]
    if len(set(shapes)) > 1:
        told = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise ValueError(f"{' and '.join(names)} must be of one shape; got {told}.")
