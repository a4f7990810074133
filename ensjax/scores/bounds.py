"""Scores of predicted intervals: coverage, width, and both in one number."""

import jax
import jax.numpy as jnp

from ensjax.scores.rows import check_targets, same_shape, weighted_mean


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
    outside = jnp.maximum(lower - targets, 0) + jnp.maximum(targets - upper, 0)
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
    width = jnp.maximum(upper - lower, min_width)
    sureness = jnp.where(width > 0, 1 / jnp.where(width > 0, width, 1.0), jnp.nan)
    sureness = jnp.where(weight == 0, 0.0, sureness)
    return weighted_mean(jnp.abs(point - targets), sureness * weight)


def _check(lower, upper, targets, sample_weight):
    lower, targets, weight = check_targets("lower", lower, targets, sample_weight)
    return lower, same_shape("upper", upper, "lower", lower), targets, weight
