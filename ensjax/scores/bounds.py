"""Scores of predicted intervals: coverage, width, and both in one number."""

import jax
import jax.numpy as jnp

from ensjax.ops.limits import at_least
from ensjax.scores.rows import (
    bin_sum,
    broadcast_rows,
    check_targets,
    equal_weight_bins,
    floating,
    same_shape,
    weigh,
    weighted_mean,
)


def interval_coverage(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    strict: bool = False,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Share of targets within their interval (0-1), `[...]`.

    Args:
        lower: `[..., batch]`.
        upper: same shape as `lower`.
        targets: `[batch]` or `[..., batch]`.
        strict: whether a target at an end of the interval is outside of it.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if a number that counts is NaN. An interval whose lower end is the
        upper one holds nothing but that number; one that is upside down nothing.

    Raises:
        ValueError: if a shape does not fit.
    """
    lower, upper, targets, weight = _check(lower, upper, targets, sample_weight)
    if strict:
        inside = (lower < targets) & (targets < upper)
    else:
        inside = (lower <= targets) & (targets <= upper)
    undefined = jnp.isnan(lower) | jnp.isnan(upper) | jnp.isnan(targets)
    return weighted_mean(jnp.where(undefined, jnp.nan, inside * 1.0), weight)


def mean_width(
    lower: jax.Array, upper: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean width of the intervals, `[...]`, in target units.

    Arguments as for `interval_coverage`.
    """
    lower, upper, _, weight = _check(lower, upper, lower, sample_weight)
    return weighted_mean(upper - lower, weight)


def interval_score(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    alpha: float,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Winkler's interval score: width, and 2 / alpha times what a target lies outside.

        S = (u - l) + (2 / alpha) (l - y)+ + (2 / alpha) (y - u)+

    In target units; lower is better. It is proper for the alpha / 2 and 1 - alpha / 2
    quantiles.

    Args:
        lower: `[..., batch]`.
        upper: same shape as `lower`.
        targets: `[batch]` or `[..., batch]`.
        alpha: one minus the nominal coverage, in (0, 1).
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `alpha` is not in (0, 1).

    Source: Gneiting and Raftery 2007, equation 43.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}.")
    lower, upper, targets, weight = _check(lower, upper, targets, sample_weight)
    outside = at_least(lower - targets, 0) + at_least(targets - upper, 0)
    return weighted_mean(upper - lower + (2 / alpha) * outside, weight)


def coverage_probability_accuracy(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    nominal: float = 0.5,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """CPA = |share of targets strictly inside - nominal| (0-1), `[...]`; 0 is best.

    Other arguments as for `interval_coverage`.

    Args:
        nominal: the coverage aimed at, in (0, 1).

    Source: Marinescu et al. 2020, arXiv:2002.03419 (the TADPOLE challenge).
    """
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
    coverage = interval_coverage(
        lower, upper, targets, strict=True, sample_weight=sample_weight
    )
    return jnp.abs(coverage - nominal)


def coverage_width_criterion(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    nominal: float = 0.9,
    strength: float = 50.0,
    target_range: float | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """CWC: relative width, steeply penalised where coverage is too low, `[...]`.

        CWC = (width / range) (1 + [coverage < nominal] exp(strength (nominal -
        coverage)))

    Lower is better. It is not proper: intervals of no width at all have CWC 0.

    Args:
        lower: `[..., batch]`.
        upper: same shape as `lower`.
        targets: `[batch]` or `[..., batch]`.
        nominal: the coverage aimed at, in (0, 1).
        strength: eta of the paper, 50 or 100.
        target_range: that widths are divided by; None: that of the targets that count.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; inf or NaN if the targets are all equal and no range is given.

    Raises:
        ValueError: if a shape does not fit or `nominal` is not in (0, 1).

    Source: Khosravi et al. 2011, "Lower upper bound estimation method", equation 7.
    """
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
    coverage = interval_coverage(lower, upper, targets, sample_weight=sample_weight)
    lower, upper, targets, weight = _check(lower, upper, targets, sample_weight)
    width = weighted_mean(upper - lower, weight)
    if target_range is None:
        largest = jnp.max(jnp.where(weight == 0, -jnp.inf, targets), axis=-1)
        smallest = jnp.min(jnp.where(weight == 0, jnp.inf, targets), axis=-1)
        target_range = largest - smallest
    penalty = jnp.where(
        coverage < nominal, jnp.exp(strength * (nominal - coverage)), 0.0
    )
    penalty = jnp.where(jnp.isnan(coverage), jnp.nan, penalty)
    return width / target_range * (1 + penalty)


def binned_coverage(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    by: jax.Array,
    *,
    num_bins: int = 5,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Coverage among rows of similar value of `by`, `[..., bin]`, rising in it.

    Intervals that cover on average may fail exactly where they are needed: where the
    spread is large, or far from the training rows.

    Args:
        lower: `[..., batch]`.
        upper: same shape as `lower`.
        targets: `[batch]` or `[..., batch]`.
        by: a number per row (a width, a distance), `[batch]` or `[..., batch]`.
        num_bins: number of bins of equal weight; equal values share a bin.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[..., bin]`; NaN for a bin without rows.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}.")
    lower, upper, targets, weight = _check(lower, upper, targets, sample_weight)
    by = broadcast_rows("by", floating(by), lower.shape)
    undefined = jnp.isnan(lower) | jnp.isnan(upper) | jnp.isnan(targets)
    inside = jnp.where(undefined, jnp.nan, (lower <= targets) & (targets <= upper))
    bins = equal_weight_bins(by, weight, num_bins)
    rows = bin_sum(weight, bins, num_bins)
    return bin_sum(weigh(inside, weight), bins, num_bins) / rows


def weighted_error_score(
    point: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    min_width: float = 0.0,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """WES: mean absolute error, weighted by how sure each interval is, `[...]`.

        WES = sum_n C_n |f_n - y_n| / sum_n C_n,   C_n = 1 / (u_n - l_n)

    In target units. One very narrow interval takes all the weight: report it beside
    `coverage_probability_accuracy`.

    Args:
        point: predicted values f, `[..., batch]`.
        lower: same shape as `point`.
        upper: same shape as `point`.
        targets: `[batch]` or `[..., batch]`.
        min_width: widths below it count as it, in target units. With 0, a width that is
            not positive makes the score NaN.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `min_width` is negative.

    Source: Marinescu et al. 2020, arXiv:2002.03419 (the TADPOLE challenge).
    """
    if min_width < 0:
        raise ValueError(f"min_width must not be negative; got {min_width}.")
    lower, upper, targets, weight = _check(lower, upper, targets, sample_weight)
    point = same_shape("point", point, "lower", lower)
    width = at_least(upper - lower, min_width)
    sureness = jnp.where(width > 0, 1 / jnp.where(width > 0, width, 1.0), jnp.nan)
    sureness = jnp.where(weight == 0, 0.0, sureness)
    return weighted_mean(jnp.abs(point - targets), sureness * weight)


def _check(lower, upper, targets, sample_weight):
    lower, targets, weight = check_targets("lower", lower, targets, sample_weight)
    return lower, same_shape("upper", upper, "lower", lower), targets, weight
