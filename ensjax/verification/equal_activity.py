"""Error, correlation and activity in one pass, and the error at equal activity.

A forecast that is smoothed has a smaller error and no more skill. With the activity
beside it, the error can be said without that reward: as if the forecast's anomalies
were rescaled to the activity of the truth.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ops.limits import at_least
from ensjax.verification.ingredients import MOMENTS, needed
from ensjax.verification.metric import Metric


class ActivityErrors(NamedTuple):
    """Of the ensemble mean against the truth, from sums over all elements.

    Attributes:
        rmse: root mean square error, in the unit of the values.
        equal_activity_rmse: the same as if the forecast's anomalies were as active as
            the truth's.
        acc: uncentred correlation of anomalies (-1 to 1).
        forecast_activity, truth_activity: roots of mean squared anomalies.
        activity_ratio: forecast over truth; below 1: the forecast is too smooth.
        identity_gap: (MSE - A_f^2 - A_y^2 + 2 A_f A_y ACC) / A_y^2, which is 0 but for
            rounding: error and anomalies belong to the same elements.
    """

    rmse: jax.Array
    equal_activity_rmse: jax.Array
    acc: jax.Array
    forecast_activity: jax.Array
    truth_activity: jax.Array
    activity_ratio: jax.Array
    identity_gap: jax.Array


@functools.lru_cache(maxsize=1)
def activity_errors() -> Metric:
    """Error, ACC, activity and the error at equal activity, `ActivityErrors`.

        MSE = A_f^2 + A_y^2 - 2 A_f A_y ACC
        error at equal activity = sqrt(2) A_y sqrt(1 - ACC)

    with anomalies as in `anomalies`, whose reference it takes. Of single members, give
    one member at a time.

    Source: the identity is Murphy and Epstein 1989, Monthly Weather Review 117, section
    3, without centring; the error at equal activity follows from it with A_f = A_y.
    """

    def statistics(moments, truth, reference):
        observed = truth - needed(reference, "climatology", truth.shape)
        predicted = observed + moments.error
        return {
            "squared": moments.error**2,
            "product": predicted * observed,
            "forecast": predicted**2,
            "truth": observed**2,
        }

    def final(mean):
        predicted, observed = jnp.sqrt(mean["forecast"]), jnp.sqrt(mean["truth"])
        both = predicted * observed
        both = jnp.where(both > 0, both, jnp.nan)
        acc = mean["product"] / both
        # 2 A_f A_y (1 - ACC) without the difference of ACC to 1, which would be all
        # rounding for a good forecast.
        apart = mean["squared"] - (predicted - observed) ** 2
        equal = observed * jnp.sqrt(at_least(apart, 0.0) / both)
        implied = mean["forecast"] + mean["truth"] - 2 * predicted * observed * acc
        some = jnp.where(observed > 0, observed, jnp.nan)
        return ActivityErrors(
            jnp.sqrt(mean["squared"]),
            equal,
            acc,
            predicted,
            observed,
            predicted / some,
            (mean["squared"] - implied) / some**2,
        )

    return Metric(MOMENTS, statistics, final, best="none")


def equal_activity_rmse(acc: jax.Array, truth_activity: jax.Array) -> jax.Array:
    """The error of a forecast of this correlation and of the activity of the truth.

        sqrt(2) A_y sqrt(1 - ACC)

    For scores that were written down elsewhere; `activity_errors` has it to more digits
    where ACC is near 1.

    Args:
        acc: uncentred correlation of anomalies.
        truth_activity: of the truth, of a shape that broadcasts.
    """
    return jnp.sqrt(2.0) * truth_activity * jnp.sqrt(at_least(1.0 - acc, 0.0))
