"""What only a huge ensemble can do: reach far, come close, and bracket the truth.

Functions of the size of an ensemble draw subsets of that size: with replacement by
default, without, or cluster by cluster (`member_draws`). A member that is NaN is
missing: it may be drawn, and that subset is smaller there.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import EXTENT, of_each
from ensjax.verification.member_draws import of_size, resampled_means
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


@functools.lru_cache(maxsize=1)
def outliers() -> Metric:
    """The share of observations below all members or above all.

    2 / (M + 1) for a reliable ensemble (`expected_outliers`). An observation that is
    equal to a member is not outside, as where it does not rain.
    """

    def statistics(extent, truth, reference):
        del reference
        undefined = jnp.isnan(extent.minimum) | jnp.isnan(truth)
        outside = is_outside(extent.minimum, extent.maximum, truth)
        return {"outside": jnp.where(undefined, jnp.nan, outside * 1.0)}

    return Metric(EXTENT, statistics, lambda mean: mean["outside"], best="none")


def is_outside(minimum: jax.Array, maximum: jax.Array, truth: jax.Array) -> jax.Array:
    """Whether the truth is strictly beyond all members, `[...]` bool."""
    return (truth < minimum) | (truth > maximum)


def expected_outliers(num_members: int) -> float:
    """The share outside of a reliable ensemble without ties, 2 / (M + 1)."""
    return 2.0 / (num_members + 1)


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
    key: jax.Array,
    forecast: jax.Array,
    size: int,
    *,
    num_resamples: int = 100,
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> jax.Array:
    """The mean `gain` of resamples of `size` members, `[...]`.

    Resamples whose members are all equal have none and are left out.

    Args:
        key: random key.
        forecast: `[member, ...]`.
        size: members of a resample.
        num_resamples: how many.
        replace, clusters: as in `draw_members`.

    Raises:
        ValueError: if a number is out of range.
    """
    options = dict(num_resamples=num_resamples, replace=replace, clusters=clusters)
    return jnp.nanmean(of_size(key, forecast, size, gain, **options), axis=0)


def satisfactory(
    key: jax.Array,
    forecast: jax.Array,
    truth: jax.Array,
    size: int,
    *,
    num_resamples: int = 100,
    share: float = 0.95,
    replace: bool = True,
    clusters: np.ndarray | None = None,
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
        share: of them, from 0 to below 1; more must bracket the truth.
        replace, clusters: as in `draw_members`.

    Raises:
        ValueError: if a number is out of range or a shape does not fit.
    """
    if not 0 <= share < 1:
        raise ValueError(
            "share must be from 0 to below 1, as more than it of the resamples must"
            f" bracket the truth; got {share}."
        )
    forecast, truth, _ = check_forecast(forecast, truth, None)

    def inside(members):
        is_there = ~jnp.isnan(members)
        low = jnp.min(members, axis=0, where=is_there, initial=jnp.inf)
        high = jnp.max(members, axis=0, where=is_there, initial=-jnp.inf)
        return (low < truth) & (high > truth)

    options = dict(num_resamples=num_resamples, replace=replace, clusters=clusters)
    inside = of_size(key, forecast, size, inside, **options)
    return jnp.mean(inside * 1.0, axis=0) > share


def satisfactory_size(
    key: jax.Array,
    forecast: jax.Array,
    truth: jax.Array,
    sizes: Sequence[int],
    *,
    num_resamples: int = 100,
    share: float = 0.95,
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> jax.Array:
    """The smallest of some sizes that is `satisfactory`, `[...]`; infinite: none is.

    Args:
        key: random key.
        forecast, truth: as in `satisfactory`.
        sizes: that rise, `[size]`.
        num_resamples, share, replace, clusters: as in `satisfactory`.

    Raises:
        ValueError: if sizes do not rise, or as `satisfactory`.
    """
    sizes = tuple(sizes)
    if not sizes or any(a >= b for a, b in zip(sizes, sizes[1:])):
        raise ValueError(f"sizes must rise; got {sizes}.")
    options = dict(
        num_resamples=num_resamples, share=share, replace=replace, clusters=clusters
    )
    found = jnp.full(jnp.shape(truth), jnp.inf)
    for number, size in reversed(list(enumerate(sizes))):
        own = jax.random.fold_in(key, number)
        is_enough = satisfactory(own, forecast, truth, size, **options)
        found = jnp.where(is_enough, float(size), found)
    return found


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
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> Probability:
    """The share of members above a threshold, and how it varies with a size.

    Args:
        key: random key.
        forecast: `[member, ...]`; NaN: the member is missing.
        threshold: a number, or `[...]`.
        size: members of a resample.
        num_resamples: how many; one that has no member of an element is left out there.
        confidence: of the percentile interval, in (0, 1).
        replace, clusters: as in `draw_members`.

    Returns:
        NaN where no member is there, or no threshold.

    Raises:
        ValueError: if a number is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")
    forecast = floating(forecast)
    level = jnp.broadcast_to(jnp.asarray(threshold, forecast.dtype), forecast.shape[1:])
    is_unknown = jnp.isnan(forecast) | jnp.isnan(level)[None]
    above = jnp.where(is_unknown, jnp.nan, (forecast > level[None]) * 1.0)
    draws = resampled_means(
        key,
        above,
        size,
        num_resamples=num_resamples,
        replace=replace,
        clusters=clusters,
    )
    tail = (1 - confidence) / 2
    low, high = jnp.nanquantile(draws, jnp.asarray([tail, 1 - tail]), axis=0)
    return Probability(jnp.nanmean(above, axis=0), low, high)


def log_log_slope(sizes: Sequence[float], values: jax.Array) -> jax.Array:
    """The power of the size that values follow, by least squares of logs, `[...]`.

    -1/2 where they are widths of intervals of a mean over independent members.

    Args:
        sizes: positive, two or more, `[size]`.
        values: positive, `[size, ...]`.

    Raises:
        ValueError: if there are fewer than two sizes, or a shape does not fit.
    """
    x = np.log(np.asarray(sizes, np.float64))
    y = jnp.log(floating(values))
    if x.ndim != 1 or len(set(x.tolist())) < 2 or y.shape[:1] != x.shape:
        raise ValueError(
            f"values must be [size, ...] of two or more sizes; got {y.shape} and"
            f" {tuple(sizes)}."
        )
    away = jnp.asarray(x - x.mean(), y.dtype)
    return jnp.einsum("s,s...->...", away, y) / jnp.sum(away**2)
