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
    """

    fires: jax.Array
    error_change: jax.Array
    activity_change: jax.Array


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
        rmse: of the forecast, such as by lead, `[...]`.
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
    return SmoothingAlarm((error < 0) & (activity < -drop), error, activity)


class DriftAlarm(NamedTuple):
    """Whether the bias is a large part of the error at the last lead, `[...]`.

    Attributes:
        fires: booleans.
        share: bias over root mean square error at the last lead, with its sign.
        growth: bias at the last lead less that at the first, in the values' unit.
    """

    fires: jax.Array
    share: jax.Array
    growth: jax.Array


def drift_alarm(
    bias: jax.Array, rmse: jax.Array, *, share: float = LEAST_SHARE
) -> DriftAlarm:
    """Fires where |bias| at the last lead exceeds 25 % of the error there.

    Args:
        bias: signed, `[lead, ...]`.
        rmse: root mean square error, `[lead, ...]`.
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
    found = bias[-1] / jnp.where(rmse[-1] > 0, rmse[-1], jnp.nan)
    return DriftAlarm(jnp.abs(found) > share, found, bias[-1] - bias[0])


def _check_shapes(names, values):
    shapes = [value.shape for value in values]
    if len(set(shapes)) > 1:
        told = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise ValueError(f"{' and '.join(names)} must be of one shape; got {told}.")
