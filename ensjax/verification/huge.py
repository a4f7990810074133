"""What only a huge ensemble can do: reach far, come close, and bracket the truth.

Functions of the size of an ensemble draw subsets of that size with replacement. A
member that is NaN is missing: it may be drawn, and that subset is smaller there.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import EXTENT, of_each
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric, check_forecast


@functools.lru_cache(maxsize=1)
def best_member_error() -> Metric:
    """The root of the mean squared error of the best member of each element.

        sqrt <min_m (x_m - y)^2>

    In the unit of the values. Only known once the truth is: a measure of coverage, no
    score of a forecast. For a calibrated normal ensemble it is 1.41, 0.36, 0.12 and
    0.026 standard deviations with 1, 10, 50 and 1,000 members.

    Source: Mahesh et al. 2024, arXiv:2408.01581 (huge ensembles II), section 3.
    """

    return Metric(
        _CLOSEST,
        lambda squared, truth, reference: {"squared": squared},
        lambda mean: jnp.sqrt(mean["squared"]),
        best="low",
    )


_CLOSEST = of_each(
    "closest",
    lambda values, given: OfMembers(
        lowest={"squared": (values - given["truth"][None]) ** 2}
    ),
    lambda found, truth, reference: found.lowest["squared"],
)


@functools.lru_cache(maxsize=1)
def bracketed() -> Metric:
    """The share of observations strictly between the smallest and largest member.

    (M - 1) / (M + 1) for a reliable ensemble without ties.
    """

    def statistics(extent, truth, reference):
        del reference
        inside = (extent.minimum < truth) & (extent.maximum > truth)
        undefined = jnp.isnan(extent.minimum) | jnp.isnan(truth)
        return {"inside": jnp.where(undefined, jnp.nan, inside * 1.0)}

    return Metric(EXTENT, statistics, lambda mean: mean["inside"], best="none")


def gain(forecast: jax.Array, *, member_mask: jax.Array | None = None) -> jax.Array:
    """How many standard deviations the farthest member is from the mean, `[...]`.

        max((max - mean) / s, (mean - min) / s),   s divided by M

    For n normal members about 2.5 (50), 3.4 (1,000) and 4.0 (7,424).

    Args:
        forecast: `[member, ...]`.
        member_mask: booleans `[member]` or `[member, ...]`.

    Returns:
        NaN where all members are equal. Of members that stream, see `mean_gain`.

    Source: Mahesh et al. 2024, arXiv:2408.01581, and the code that belongs to it.
    """
    forecast = floating(forecast)
    nothing = jnp.zeros(forecast.shape[1:], forecast.dtype)
    forecast, nothing, mask = check_forecast(forecast, nothing, member_mask)
    count = jnp.sum(mask, axis=0)
    number = jnp.where(count > 0, count, jnp.nan)
    mean = jnp.sum(jnp.where(mask, forecast, 0.0), axis=0) / number
    away = jnp.where(mask, forecast - mean[None], 0.0)
    spread = jnp.sqrt(jnp.sum(away**2, axis=0) / number)
    farthest = jnp.max(jnp.abs(away), axis=0)
    return farthest / jnp.where(spread > 0, spread, jnp.nan)


@functools.lru_cache(maxsize=1)
def mean_gain() -> Metric:
    """The mean `gain` of the elements; `mean_gain().over()` is its map.

    A property of the members, which stream. The truth only says how elements are laid
    out. Those whose members are all equal have no gain and are not scored.
    """
    return Metric(
        _REACH,
        lambda reached, truth, reference: {"gain": reached},
        lambda mean: mean["gain"],
        best="none",
        least_members=2,
    )


def _reached(found, truth, reference):
    del truth, reference
    mean, variance, count = found.moments["member"]
    spread = jnp.sqrt(variance * (count - 1) / count)
    low, high = found.lowest["member"], found.highest["member"]
    farthest = jnp.maximum(high - mean, mean - low)
    return farthest / jnp.where(spread > 0, spread, jnp.nan)


_REACH = of_each(
    "reach",
    lambda values, given: OfMembers(
        moments={"member": values},
        lowest={"member": values},
        highest={"member": values},
    ),
    _reached,
)


def gain_of_size(
    key: jax.Array, forecast: jax.Array, size: int, *, num_resamples: int = 100
) -> jax.Array:
    """The mean `gain` of resamples of `size` members, `[...]`.

    Resamples whose members are all equal have none and are left out.

    Args:
        key: random key.
        forecast: `[member, ...]`.
        size: members of a resample.
        num_resamples: how many.

    Raises:
        ValueError: if a number is below 1.
    """
    _check_size(size, num_resamples)
    return jnp.nanmean(_resample(key, forecast, size, num_resamples, gain), axis=0)


def satisfactory(
    key: jax.Array,
    forecast: jax.Array,
    truth: jax.Array,
    size: int,
    *,
    num_resamples: int = 100,
    share: float = 0.95,
) -> jax.Array:
    """Whether more than `share` of resamples of a size bracket the truth, `[...]` bool.

    The satisfactory size of an element is the smallest of which this holds. False where
    the truth or every member is missing.

    Args:
        key: random key.
        forecast: `[member, *truth]`; NaN: the member is missing.
        truth: `[...]`.
        size: members of a resample.
        num_resamples: how many.
        share: of them that must bracket the truth (0-1).

    Raises:
        ValueError: if a number is below 1 or a shape does not fit.
    """
    _check_size(size, num_resamples)
    forecast, truth, _ = check_forecast(forecast, truth, None)

    def inside(members):
        is_there = ~jnp.isnan(members)
        low = jnp.min(members, axis=0, where=is_there, initial=jnp.inf)
        high = jnp.max(members, axis=0, where=is_there, initial=-jnp.inf)
        return (low < truth) & (high > truth)

    inside = _resample(key, forecast, size, num_resamples, inside)
    return jnp.mean(inside * 1.0, axis=0) > share


class Probability(NamedTuple):
    """A probability and the ends of its interval over resamples, each `[...]`."""

    estimate: jax.Array
    low: jax.Array
    high: jax.Array


def exceedance_interval(
    key: jax.Array,
    forecast: jax.Array,
    threshold: jax.Array,
    size: int,
    *,
    num_resamples: int = 100,
    confidence: float = 0.95,
) -> Probability:
    """The share of members above a threshold, and how it varies with a size.

    Args:
        key: random key.
        forecast: `[member, ...]`; NaN: the member is missing.
        threshold: a number, or `[...]`.
        size: members of a resample.
        num_resamples: how many; one that has no member of an element is left out there.
        confidence: of the percentile interval, in (0, 1).

    Returns:
        NaN where no member is there, or no threshold.

    Raises:
        ValueError: if a number is out of range.
    """
    _check_size(size, num_resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")
    forecast = floating(forecast)
    level = jnp.broadcast_to(jnp.asarray(threshold, forecast.dtype), forecast.shape[1:])

    def share(members):
        count = jnp.sum(~jnp.isnan(members), axis=0)
        is_known = (count > 0) & ~jnp.isnan(level)
        above = jnp.sum(members > level[None], axis=0)
        return above / jnp.where(is_known, count, jnp.nan)

    draws = _resample(key, forecast, size, num_resamples, share)
    tail = (1 - confidence) / 2
    low, high = jnp.nanquantile(draws, jnp.asarray([tail, 1 - tail]), axis=0)
    return Probability(share(forecast), low, high)


def _check_size(size, num_resamples):
    if size < 1 or num_resamples < 1:
        raise ValueError(
            f"size and num_resamples must be 1 or more; got {size}, {num_resamples}."
        )


def _resample(key, forecast, size, num_resamples, function):
    """`function` of resamples `[size, ...]` of the members, one after the other."""
    forecast = floating(forecast)

    def one(number):
        drawn = jax.random.fold_in(key, number)
        rows = jax.random.randint(drawn, (size,), 0, len(forecast))
        return function(forecast[rows])

    return jax.lax.map(one, jnp.arange(num_resamples))
