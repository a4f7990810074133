"""Spread against skill: whether the ensemble differs among itself as from the truth."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import MOMENTS
from ensjax.verification.metric import Metric, check_forecast
from ensjax.verification.sums import InBins


class SpreadSkill(NamedTuple):
    """Spread, error of the mean, and two ratios that are 1 for a calibrated ensemble.

    Attributes:
        spread: sqrt <s^2>, s^2 unbiased, in the unit of the values.
        skill: sqrt <(xbar - y)^2>.
        ratio: sqrt(<(M + 1) / M s^2> / <(xbar - y)^2>).
        unbiased_ratio: sqrt(<s^2> / <(xbar - y)^2 - s^2 / M>). Off 1 the two differ.
    """

    spread: jax.Array
    skill: jax.Array
    ratio: jax.Array
    unbiased_ratio: jax.Array


@functools.lru_cache(maxsize=1)
def spread_skill() -> Metric:
    """Spread and skill, `SpreadSkill`, each averaged before roots and ratios.

    It needs two members: elements with fewer are not scored. M is the number of members
    that are there, at each element.

    Source: Fortin et al. 2014, Journal of Hydrometeorology 15, equation 15 (`ratio`;
    see `scores.spread_skill`); the unbiased one takes the error that M members cause
    off the error instead.
    """

    def statistics(moments, truth, reference):
        del truth, reference
        variance, count = moments.variance, moments.count
        squared = moments.error**2
        return {
            "variance": variance,
            "inflated": variance * (count + 1) / count,
            "squared": squared,
            "debiased": squared - variance / count,
        }

    def final(mean):
        return SpreadSkill(
            jnp.sqrt(mean["variance"]),
            jnp.sqrt(mean["squared"]),
            jnp.sqrt(mean["inflated"] / mean["squared"]),
            jnp.sqrt(mean["variance"] / mean["debiased"]),
        )

    return Metric(MOMENTS, statistics, final, best="one", least_members=2)


class BinnedSpreadSkill(NamedTuple):
    """Spread and skill of elements in bins of their spread, each `[..., bin]`.

    Attributes:
        spread: root of the mean variance; NaN where a bin is empty.
        skill: root of the mean squared error of the mean.
        weight: of the elements in the bin.
    """

    spread: jax.Array
    skill: jax.Array
    weight: jax.Array


def binned_spread_skill(edges: tuple[float, ...]) -> Metric:
    """Skill against spread, `BinnedSpreadSkill`: on the diagonal if spread is honest.

    Args:
        edges: the spreads between the bins, rising; a spread on an edge is above it.
            `spread_quantiles` gives those of bins of equal size.

    Raises:
        ValueError: if the edges do not rise.
    """
    edges = tuple(float(e) for e in edges)
    if not edges or any(a >= b for a, b in zip(edges[:-1], edges[1:], strict=True)):
        raise ValueError(f"edges must be one or more numbers that rise; got {edges}.")
    return _binned(edges)


@functools.lru_cache(maxsize=64)
def _binned(edges):
    num_bins = len(edges) + 1

    def statistics(moments, truth, reference):
        del truth, reference
        variance = moments.variance
        spread = jnp.sqrt(jnp.where(jnp.isnan(variance), 0.0, variance))
        index = jnp.searchsorted(jnp.asarray(edges), spread.reshape(-1), side="right")
        index = index.reshape(spread.shape)
        return {
            "count": InBins(jnp.ones_like(variance), index, num_bins),
            "variance": InBins(variance, index, num_bins),
            "squared": InBins(moments.error**2, index, num_bins),
        }

    def final(mean):
        share = jnp.where(mean["count"] > 0, mean["count"], jnp.nan)
        return BinnedSpreadSkill(
            jnp.sqrt(mean["variance"] / share),
            jnp.sqrt(mean["squared"] / share),
            mean["total"]["count"],
        )

    return Metric(MOMENTS, statistics, final, best="none", least_members=2)


def spread_quantiles(
    forecast: jax.Array, *, num_bins: int, member_mask: jax.Array | None = None
) -> tuple[float, ...]:
    """Edges between bins of spread that hold equal numbers of elements.

    Args:
        forecast: `[member, ...]`, all cases or a sample of them.
        num_bins: how many bins; equal spreads may make them fewer.
        member_mask: booleans `[member]` or `[member, ...]`.

    Raises:
        ValueError: if there are fewer than two bins, or no spread can be told.
    """
    if num_bins < 2:
        raise ValueError(f"num_bins must be 2 or more; got {num_bins}.")
    forecast = floating(forecast)
    nothing = jnp.zeros(forecast.shape[1:], forecast.dtype)
    forecast, nothing, mask = check_forecast(forecast, nothing, member_mask)
    moments = MOMENTS.of_members(forecast, nothing, mask, None, 0)
    levels = jnp.arange(1, num_bins) / num_bins
    edges = jnp.nanquantile(jnp.sqrt(moments.variance), levels)
    if jnp.isnan(edges).any():
        raise ValueError("no element has two members: there is no spread.")
    return tuple(sorted({float(e) for e in edges}))
