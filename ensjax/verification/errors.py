"""Errors of the ensemble mean: mean square error, its debiased form, bias and drift."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import MOMENTS
from ensjax.verification.metric import Metric


def mean_square_error(*, debiased: bool = False) -> Metric:
    """The mean squared error of the ensemble mean, in squared units.

        mean (xbar - y)^2      debiased: mean [(xbar - y)^2 - s^2 / M]

    with s^2 the unbiased variance of the members: what the mean of infinitely many
    exchangeable members would have. It may be negative, and needs two members.

    Args:
        debiased: which form.
    """
    return _squared(debiased, False)


def root_mean_square_error(*, debiased: bool = False) -> Metric:
    """The root of `mean_square_error`, taken after averaging; in the values' unit.

    NaN where a debiased mean is negative.
    """
    return _squared(debiased, True)


@functools.lru_cache(maxsize=4)
def _squared(debiased, root):
    def statistics(moments, truth, reference):
        del truth, reference
        squared = moments.error**2
        if debiased:
            squared = squared - moments.variance / moments.count
        return {"squared": squared}

    def final(mean):
        return jnp.sqrt(mean["squared"]) if root else mean["squared"]

    return Metric(
        MOMENTS,
        statistics,
        final,
        best="low",
        is_fair=debiased,
        least_members=2 if debiased else 1,
    )


@functools.lru_cache(maxsize=1)
def bias() -> Metric:
    """The mean error of the ensemble mean, mean (xbar - y), in the values' unit.

    `bias().over(0)` is its map, over the cases alone.
    """
    return Metric(
        MOMENTS,
        lambda moments, truth, reference: {"error": moments.error},
        lambda mean: mean["error"],
        best="none",
    )


class BiasDrift(NamedTuple):
    """How the bias changes with lead time.

    Attributes:
        change: bias less that at the first lead, `[lead, ...]`.
        slope: of the least-squares line, in the unit of the values a day, `[...]`.
        intercept: its value at lead 0, `[...]`.
    """

    change: jax.Array
    slope: jax.Array
    intercept: jax.Array


def bias_drift(bias_by_lead: jax.Array, lead_days: jax.Array) -> BiasDrift:
    """The drift of a bias over lead times.

    Args:
        bias_by_lead: `[lead, ...]`, of `bias` with the lead axis kept.
        lead_days: lead times in days, `[lead]`, two or more that differ.

    Raises:
        ValueError: if a shape does not fit or there are fewer than two leads.
    """
    bias_by_lead, lead_days = floating(bias_by_lead), floating(lead_days)
    if lead_days.ndim != 1 or bias_by_lead.shape[:1] != lead_days.shape:
        raise ValueError(
            "bias_by_lead must be [lead, ...] and lead_days [lead]; got shapes"
            f" {bias_by_lead.shape} and {lead_days.shape}."
        )
    if len(lead_days) < 2:
        raise ValueError("a drift needs two leads or more; got one.")
    away = lead_days - jnp.mean(lead_days)
    wide = away.reshape(-1, *(1,) * (bias_by_lead.ndim - 1))
    squares = jnp.sum(away**2)
    slope = jnp.sum(wide * bias_by_lead, axis=0) / jnp.where(
        squares > 0, squares, jnp.nan
    )
    intercept = jnp.mean(bias_by_lead, axis=0) - slope * jnp.mean(lead_days)
    return BiasDrift(bias_by_lead - bias_by_lead[:1], slope, intercept)
