"""Scores of predicted quantiles `[..., batch, level]`; pinball is in `regression`.

Levels are probabilities that rise, `[level]`, each in (0, 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.bounds import interval_score
from ensjax.scores.regression import pinball
from ensjax.scores.rows import (
    broadcast_rows,
    floating,
    row_weights,
    weighted_mean,
)


class CentralIntervals(NamedTuple):
    """The central intervals between symmetric quantiles, the widest first.

    Attributes:
        lower, upper: `[..., batch, interval]`.
        nominal: the probability that each should hold, a tuple.
    """

    lower: jax.Array
    upper: jax.Array
    nominal: tuple[float, ...]


def central_intervals(quantiles: jax.Array, levels: np.ndarray) -> CentralIntervals:
    """Intervals from each level a below 1/2 to the level 1 - a.

    Args:
        quantiles: `[..., batch, level]`.
        levels: `[level]`, NumPy or Python numbers: which levels pair is not traced.

    Raises:
        ValueError: if a level below 1/2 has no partner, none is below it, or a shape
            does not fit.
    """
    quantiles, levels = floating(quantiles), np.asarray(levels, float)
    _check_shapes(quantiles, levels)
    low, high = _pairs(levels)
    return CentralIntervals(
        quantiles[..., low],
        quantiles[..., high],
        tuple((levels[high] - levels[low]).tolist()),
    )


def weighted_interval_score(
    quantiles: jax.Array,
    targets: jax.Array,
    *,
    levels: np.ndarray,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Weighted interval score (WIS) of symmetric quantiles, in target units.

        WIS = (|y - median| / 2 + sum_k (alpha_k / 2) IS_k) / (K + 1 / 2)

    over the K central intervals, alpha_k being one minus their nominal coverage and
    IS_k their `interval_score`. It is twice the mean pinball loss of the levels. Levels
    without the median leave its term out, and the score is divided by K.

    Args:
        quantiles: `[..., batch, level]`.
        targets: `[batch]` or `[..., batch]`.
        levels: `[level]`, symmetric around 1/2; NumPy or Python numbers.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; lower is better.

    Raises:
        ValueError: if a shape does not fit or the levels are not symmetric.

    Source: Bracher et al. 2021, arXiv:2005.12881, equation 1.
    """
    levels = np.asarray(levels, float)
    lower, upper, nominal = central_intervals(quantiles, levels)
    total = 0.0
    for k, inside in enumerate(nominal):
        alpha = 1 - inside
        score = interval_score(
            lower[..., k],
            upper[..., k],
            targets,
            alpha=alpha,
            sample_weight=sample_weight,
        )
        total = total + (alpha / 2) * score
    count = float(len(nominal))
    if len(levels) % 2:
        middle = floating(quantiles)[..., len(levels) // 2]
        y = broadcast_rows("targets", floating(targets), middle.shape)
        weight = row_weights(sample_weight, middle.shape, middle.dtype)
        total = total + weighted_mean(jnp.abs(y - middle), weight) / 2
        count += 0.5
    return total / count


def crps_quantiles(
    quantiles: jax.Array,
    targets: jax.Array,
    *,
    levels: jax.Array,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """CRPS from quantiles: twice the integral of the pinball loss over levels, `[...]`.

        CRPS = 2 integral_0^1 pinball_a da,   near 2 sum_t w_t pinball_t

    Each level stands for the levels up to the middle between it and the next one, the
    first from 0 and the last to 1. With the levels (k - 1/2) / M it is the CRPS of M
    equally likely samples exactly. In target units.

    Arguments as for `pinball`; levels rise. In a compiled program that makes the levels
    the result is NaN where they do not.

    Raises:
        ValueError: if a shape does not fit, or levels do not rise between 0 and 1.

    Source: Laio and Tamea 2007, equation 12; the exact case is Broecker 2012.
    """
    rise = True
    if isinstance(levels, jax.core.Tracer):
        rise = jnp.all(jnp.diff(levels) > 0)
    else:
        _check_levels(np.asarray(levels, float))
    levels = floating(levels)
    losses = pinball(quantiles, targets, levels=levels, sample_weight=sample_weight)
    ends = jnp.concatenate(
        [jnp.zeros_like(levels[:1]), (levels[1:] + levels[:-1]) / 2, levels[:1] * 0 + 1]
    )
    widths = jnp.diff(ends)
    widths = jnp.where(rise, widths, jnp.nan)
    return 2 * jnp.sum(losses * widths.reshape((1,) * (losses.ndim - 1) + (-1,)), -1)


def crossing_rate(
    quantiles: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Share of neighbouring levels whose quantiles fall instead of rise (0-1), `[...]`.

    Args:
        quantiles: `[..., batch, level]`, at least two levels.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if a quantile that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
    """
    quantiles = floating(quantiles)
    if quantiles.ndim < 2 or quantiles.shape[-1] < 2:
        raise ValueError(
            "quantiles must be [..., batch, level] of two levels or more; got shape"
            f" {quantiles.shape}."
        )
    steps = jnp.diff(quantiles, axis=-1)
    falls = jnp.mean((steps < 0) * 1.0, axis=-1)
    falls = jnp.where(jnp.any(jnp.isnan(steps), axis=-1), jnp.nan, falls)
    return weighted_mean(falls, row_weights(sample_weight, falls.shape, falls.dtype))


def quantile_coverage(
    quantiles: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Share of targets at most each quantile, `[..., level]`: honest if the level.

    Args:
        quantiles: `[..., batch, level]`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Raises:
        ValueError: if a shape does not fit.
    """
    quantiles, targets, weight = _check_targets(quantiles, targets, sample_weight)
    below = (targets[..., None] <= quantiles) * 1.0
    undefined = jnp.isnan(quantiles) | jnp.isnan(targets)[..., None]
    below = jnp.moveaxis(jnp.where(undefined, jnp.nan, below), -1, 0)
    return jnp.moveaxis(weighted_mean(below, weight[None]), 0, -1)


def pit_quantiles(
    quantiles: jax.Array, targets: jax.Array, *, levels: jax.Array
) -> jax.Array:
    """Probability integral transform of the targets, `[..., batch]` (0-1).

    The distribution function is linear between quantiles; a target equal to several of
    them has the middle of their levels. One below all quantiles has half the lowest
    level, one above all the middle between the highest and 1. Uniform over the rows if
    the quantiles are right, but for the ends.

    Args:
        quantiles: `[..., batch, level]`, in order.
        targets: `[batch]` or `[..., batch]`.
        levels: `[level]`.

    Returns:
        NaN where the target or a quantile of the row is NaN.

    Raises:
        ValueError: if a shape does not fit.

    Source: Dawid 1984; the interpolation is ours.
    """
    levels = floating(levels)
    _check_shapes(floating(quantiles), levels)
    quantiles, targets, _ = _check_targets(quantiles, targets, None)
    size, y = levels.shape[0], targets[..., None]
    below = jnp.sum(quantiles < y, axis=-1)
    up_to = jnp.sum(quantiles <= y, axis=-1)

    def at(values, place):
        place = jnp.clip(place, 0, size - 1)
        if values.ndim == 1:
            return values[place]
        return jnp.take_along_axis(values, place[..., None], axis=-1)[..., 0]

    left, right = at(quantiles, below - 1), at(quantiles, below)
    gap = jnp.where(right > left, right - left, 1.0)
    share = (targets - left) / gap
    low, high = at(levels, below - 1), at(levels, below)
    inner = low + share * (high - low)
    pit = jnp.where(up_to > below, (high + at(levels, up_to - 1)) / 2, inner)
    pit = jnp.where(up_to == 0, levels[0] / 2, pit)
    pit = jnp.where(below == size, (1 + levels[-1]) / 2, pit)
    undefined = jnp.isnan(targets) | jnp.any(jnp.isnan(quantiles), axis=-1)
    return jnp.where(undefined, jnp.nan, pit)


def _check_levels(levels):
    if np.any(np.diff(levels) <= 0) or not np.all((levels > 0) & (levels < 1)):
        raise ValueError(
            f"levels must rise and lie between 0 and 1; got {levels.tolist()}."
        )


def _pairs(levels):
    _check_levels(levels)
    half = len(levels) // 2
    low, high = np.arange(half), len(levels) - 1 - np.arange(half)
    if not half or not np.allclose(levels + levels[::-1], 1.0, atol=1e-6):
        raise ValueError(
            "levels must be symmetric around 1/2, such as (0.1, 0.5, 0.9); got"
            f" {levels.tolist()}."
        )
    return low, high


def _check_shapes(quantiles, levels):
    if quantiles.ndim < 2 or levels.shape != quantiles.shape[-1:]:
        raise ValueError(
            "quantiles must be [..., batch, level] and levels [level]; got shapes"
            f" {quantiles.shape} and {levels.shape}."
        )


def _check_targets(quantiles, targets, sample_weight):
    quantiles = floating(quantiles)
    if quantiles.ndim < 2:
        raise ValueError(
            f"quantiles must be [..., batch, level]; got shape {quantiles.shape}."
        )
    rows = quantiles.shape[:-1]
    targets = broadcast_rows("targets", floating(targets), rows)
    return quantiles, targets, row_weights(sample_weight, rows, quantiles.dtype)
