"""Anomalies from a climatology: their correlation (ACC) and their activity.

A smoother forecast has a smaller error without more skill. So correlation and activity
come together: with them the mean squared error is

    MSE = A_f^2 + A_y^2 - 2 A_f A_y ACC
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ops.limits import between
from ensjax.verification.frozen import Frozen, freeze
from ensjax.verification.ingredients import MOMENTS, needed
from ensjax.verification.metric import Metric


class Anomalies(NamedTuple):
    """Of the anomalies of the ensemble mean and of the truth.

    Attributes:
        acc: their uncentred correlation (-1 to 1).
        forecast_activity, truth_activity: roots of their mean squares, in the unit of
            the values.
        activity_ratio: forecast over truth; below 1: the forecast is too smooth.
    """

    acc: jax.Array
    forecast_activity: jax.Array
    truth_activity: jax.Array
    activity_ratio: jax.Array


@functools.lru_cache(maxsize=1)
def anomalies() -> Metric:
    """ACC and activity, `Anomalies`, of sums over all elements.

        ACC = <f' y'> / sqrt(<f'^2> <y'^2>),   f' = xbar - c, y' = y - c
        A_f = sqrt(<f'^2>)

    Its reference is {"climatology": c}, `[*truth]`, at the valid time. Of single
    members, give one member at a time.

    Source: the uncentred form, whose sums are over cases and space before the ratio.
    """

    def statistics(moments, truth, reference):
        observed = truth - needed(reference, "climatology", truth.shape)
        predicted = observed + moments.error
        return {
            "product": predicted * observed,
            "forecast": predicted**2,
            "truth": observed**2,
        }

    def final(mean):
        predicted, observed = jnp.sqrt(mean["forecast"]), jnp.sqrt(mean["truth"])
        both = predicted * observed
        acc = mean["product"] / jnp.where(both > 0, both, jnp.nan)
        ratio = predicted / jnp.where(observed > 0, observed, jnp.nan)
        return Anomalies(acc, predicted, observed, ratio)

    return Metric(MOMENTS, statistics, final, best="none")


@functools.lru_cache(maxsize=1)
def member_activity() -> Metric:
    """Activity of the members themselves, and of the truth: `(members, truth)`.

    The root of the mean over members, cases and space of squared anomalies, where
    `anomalies` has that of the ensemble mean. Reference as there.
    """

    def statistics(moments, truth, reference):
        observed = truth - needed(reference, "climatology", truth.shape)
        count = moments.count
        variance = jnp.where(count > 1, moments.variance * (count - 1) / count, 0.0)
        return {
            "forecast": (observed + moments.error) ** 2 + variance,
            "truth": observed**2,
        }

    def final(mean):
        return jnp.sqrt(mean["forecast"]), jnp.sqrt(mean["truth"])

    return Metric(MOMENTS, statistics, final, best="none")


def centred_acc(
    *, vector_axes: int = 2, area_weights: jax.Array | None = None
) -> Metric:
    """The centred ACC: pattern correlations of cases, averaged through Fisher's z.

        tanh mean_case artanh r_case

    r being the correlation of the anomalies of the ensemble mean and of the truth over
    the vector axes, less their area means. One that is 1 to rounding counts as
    1 - 1e-6. The reference is {"climatology": c}, `[*truth]`.

    Args:
        vector_axes: how many of the last axes are a pattern.
        area_weights: non-negative, of a shape that broadcasts to a pattern's.
    """
    return _centred(vector_axes, freeze(area_weights))


@functools.lru_cache(maxsize=64)
def _centred(vector_axes, weights: Frozen | None):
    def of_members(forecast, truth, mask, reference, _):
        return MOMENTS.of_members(forecast, truth, mask, reference, 0)

    def statistics(moments, truth, reference):
        observed = truth - needed(reference, "climatology", truth.shape)
        predicted = observed + moments.error
        axes = tuple(range(truth.ndim - vector_axes, truth.ndim))
        share = jnp.ones(truth.shape) if weights is None else weights.like(truth.shape)

        def mean(x):
            x = jnp.where(share == 0, 0.0, x) * share
            return jnp.sum(x, axis=axes, keepdims=True) / jnp.sum(
                share, axis=axes, keepdims=True
            )

        f, y = predicted - mean(predicted), observed - mean(observed)
        both = jnp.sqrt(mean(f**2) * mean(y**2))
        r = mean(f * y) / jnp.where(both > 0, both, jnp.nan)
        r = between(r.reshape(truth.shape[: truth.ndim - vector_axes]), -1, 1)
        return {"z": jnp.arctanh(r * (1 - 1e-6))}

    ingredient = dataclasses.replace(MOMENTS, of_members=of_members)
    return Metric(
        ingredient,
        statistics,
        lambda mean: jnp.tanh(mean["z"]),
        best="high",
        vector_axes=vector_axes,
    )
