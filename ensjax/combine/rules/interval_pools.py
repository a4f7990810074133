"""Intervals and quantiles of several members made one.

Two ways to pool quantiles: over members at each level (Vincent), which keeps the
members' width, or over the members' distributions (a linear pool), which is as wide as
they lie apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.rules.points import mean_points, median_points
from ensjax.ops.limits import between
from ensjax.predictions import Predictions
from ensjax.scores.rows import sort_or_nan

_NUM_BISECTIONS = 40
_SLACK = 1e-6


class PooledInterval(NamedTuple):
    """Point and interval of the ensemble, arrays of one shape, in ascending order."""

    lower: jax.Array
    point: jax.Array
    upper: jax.Array


def pool_intervals(
    predictions: Predictions,
    rule: Callable[[Predictions], jax.Array] = median_points,
) -> PooledInterval:
    """A rule of points, applied to the members' points and to both ends.

    The median of lower ends may lie above the median point, so the three are sorted.

    Args:
        predictions: points with `lower` and `upper`.
        rule: `rule(predictions of points) -> [batch, ...]`, such as `mean_points`.

    Returns:
        `[batch]` or `[batch, target]` each; all three NaN where the rule gives NaN for
        one (`mask_nan` leaves members out that hold a NaN in a part).

    Raises:
        TypeError: for predictions that are no points.
        ValueError: if they state no intervals.

    Source: Marinescu et al. 2020, arXiv:2002.03419 (the TADPOLE challenge's consensus).
    """
    values = predictions.points
    if predictions.lower is None:
        raise ValueError(
            "these points state no intervals; make them with"
            " Predictions.from_points(points, lower=..., upper=...)."
        )
    parts = (predictions.lower, values, predictions.upper)
    pooled = [rule(predictions.replace(values=part)) for part in parts]
    return PooledInterval(*sort_or_nan(jnp.stack(pooled), axis=0))


def average_quantiles(
    quantiles: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    rule: Callable[..., jax.Array] = mean_points,
) -> jax.Array:
    """The members' mean at each level: Vincent's average of their quantile functions.

        q(a) = sum_m w_m q_m(a)

    Of normal distributions it has the mean standard deviation: members that lie apart
    do not make it wider. `average_cdfs` is the other way.

    Args:
        quantiles: `[member, batch, level]`, or `Predictions` of quantiles.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        rule: of points, such as `median_points`.

    Returns:
        `[batch, level]` in ascending order. NaN in rows where no member counts, or one
        that counts holds a NaN at any level (`mask_nan` leaves such members out).

    Raises:
        ValueError: if a shape does not fit.
        TypeError: for predictions that are no quantiles.

    Source: Vincent 1912; Lichtendahl et al. 2013.
    """
    if isinstance(quantiles, Predictions):
        weights = quantiles.weights if weights is None else weights
        mask = quantiles.mask if mask is None else mask
        quantiles = quantiles.quantiles
    if jnp.ndim(quantiles) != 3:
        raise ValueError(
            f"quantiles must be [member, batch, level]; got {jnp.shape(quantiles)}."
        )
    return sort_or_nan(rule(quantiles, weights, mask))


def average_cdfs(
    quantiles: jax.Array | Predictions,
    levels: Sequence[float] | None = None,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Quantiles of the mixture of the members' distributions: a linear pool.

        q(a) = inf {x: F(x) >= a},   F = sum_m w_m F_m

    Each F_m is linear between its quantiles; beyond the outermost ones its density goes
    on as in the segment beside, until the probability is used up. Found by bisection; a
    level counts as reached at 1e-6 below it, so that rounding decides no plateau.

    Args:
        quantiles: `[member, batch, level]`, or `Predictions` of quantiles; a member's
            crossing quantiles are sorted.
        levels: of arrays: at least two, strictly increasing in (0, 1); also those of
            the result.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, level]`. NaN in rows where no member counts.

    Raises:
        ValueError: if a shape or the levels do not fit.
        TypeError: for predictions that are no quantiles.

    Source: Stone 1961; Lichtendahl et al. 2013.
    """
    if not isinstance(quantiles, Predictions):
        if levels is None:
            raise ValueError("average_cdfs of an array needs levels=.")
        quantiles = Predictions.from_quantiles(quantiles, levels)
    elif levels is not None:
        raise ValueError("Predictions know their levels; leave levels= out.")
    values, levels = quantiles.quantiles, np.asarray(quantiles.levels)
    if len(levels) < 2:
        raise ValueError(f"average_cdfs needs two levels at least; got {levels}.")
    weights = quantiles.weights if weights is None else weights
    mask = quantiles.mask if mask is None else mask
    weights = Predictions.from_points(
        values, weights=weights, mask=mask
    ).normalized_weights
    weights = weights.reshape(len(weights), -1)  # [member, 1] or [member, batch]
    values = jnp.where((weights == 0)[..., None], 0.0, values)
    undefined = jnp.any(jnp.isnan(values), axis=(0, 2)) | jnp.any(
        jnp.isnan(jnp.broadcast_to(weights, values.shape[:2])), axis=0
    )
    knots = _with_tails(jnp.sort(values, axis=-1), levels)
    masses = jnp.asarray(np.diff(levels, prepend=0.0, append=1.0), values.dtype)
    silent = (weights == 0)[..., None]
    low = jnp.min(jnp.where(silent, jnp.inf, knots), axis=(0, 2))
    high = jnp.max(jnp.where(silent, -jnp.inf, knots), axis=(0, 2))

    def quantile_at(level):
        def halve(_, ends):
            low, high = ends
            middle = low + (high - low) / 2
            reached = jnp.sum(weights * _cdf(knots, masses, middle), axis=0)
            enough = reached >= level - _SLACK
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        return jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, (low, high))[1]

    found = jax.lax.map(quantile_at, jnp.asarray(levels, values.dtype))
    return jnp.where(undefined[:, None], jnp.nan, found.T)


def _with_tails(values, levels):
    """Quantiles at the levels 0 and 1 as well, `[member, batch, level + 2]`."""
    left, right = (
        values[..., 1:2] - values[..., :1],
        values[..., -1:] - values[..., -2:-1],
    )
    first = values[..., :1] - left * (levels[0] / (levels[1] - levels[0]))
    last = values[..., -1:] + right * ((1 - levels[-1]) / (levels[-1] - levels[-2]))
    return jnp.concatenate([first, values, last], axis=-1)


def _cdf(knots, masses, x):
    """Each member's distribution function at x `[batch]`, `[member, batch]`."""
    width = jnp.diff(knots, axis=-1)
    above = x[None, :, None] - knots[..., :-1]
    # A segment without width is a jump.
    share = jnp.where(width > 0, above / jnp.where(width > 0, width, 1.0), above >= 0)
    return jnp.sum(masses[None, None] * between(share, 0.0, 1.0), axis=-1)
