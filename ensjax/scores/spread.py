"""Whether predicted spreads are honest: scores of standard deviations and of samples.

Predictions are a `mean` and a standard deviation `std` for each row; or samples, what
members forecast, `[member, batch]`, as equally likely values.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ops.sorting import in_column_blocks, is_worth_a_network, sort_network
from ensjax.scores.decomposition import member_moments
from ensjax.scores.rows import (
    bin_sum,
    broadcast_rows,
    check_targets,
    equal_weight_bins,
    floating,
    row_weights,
    same_shape,
    weigh,
    weighted_mean,
)
from ensjax.scores.selective import curve_area, error_curve


def pit_gaussian(mean: jax.Array, std: jax.Array, targets: jax.Array) -> jax.Array:
    """Probability integral transform Phi((y - mu) / s), `[..., batch]` (0-1).

    Uniform over the rows if the normal distributions are right.

    Args:
        mean: `[..., batch]`.
        std: positive, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.

    Returns:
        NaN where a standard deviation is not positive.

    Raises:
        ValueError: if a shape does not fit.

    Source: Dawid 1984.
    """
    mean, std, targets, _ = _check(mean, std, targets)
    z = (targets - mean) / jnp.where(std > 0, std, jnp.nan)
    return jax.scipy.special.ndtr(z)


def miscalibration_area(
    mean: jax.Array,
    std: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Area between observed and nominal coverage of central intervals (0-0.5), `[...]`.

        integral over p of |share of rows with |y - mu| <= z_p s - p|,
        z_p = Phi^-1((1 + p) / 2)

    The integral is exact: coverage is a step function of p.

    Args:
        mean: `[..., batch]`.
        std: positive, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if a standard deviation that counts is not positive.

    Raises:
        ValueError: if a shape does not fit.

    Source: Kuleshov et al. 2018, arXiv:1807.00263; Tran et al. 2020.
    """
    pit = pit_gaussian(mean, std, targets)
    weight = row_weights(sample_weight, pit.shape)
    # The smallest central interval that holds the target has this probability.
    level = jnp.where(weight == 0, 1.0, jnp.abs(2 * pit - 1))
    order = jnp.argsort(level, axis=-1)
    level = jnp.take_along_axis(level, order, axis=-1)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    reached = jnp.cumsum(jnp.take_along_axis(weight, order, axis=-1), -1) / total
    # Between two levels coverage is constant: the integral of |c - p| is of triangles.
    first = jnp.zeros_like(level[..., :1])
    ends = jnp.concatenate([first, level, jnp.ones_like(first)], axis=-1)
    coverage = jnp.concatenate([first, reached], axis=-1)
    low, high = ends[..., :-1] - coverage, ends[..., 1:] - coverage
    areas = (high * jnp.abs(high) - low * jnp.abs(low)) / 2
    return jnp.sum(areas, axis=-1)


def ence(
    mean: jax.Array,
    std: jax.Array,
    targets: jax.Array,
    *,
    num_bins: int = 10,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Expected normalised calibration error of standard deviations, `[...]`.

        ENCE = mean_b |RMV_b - RMSE_b| / RMV_b

    where bins hold equal weights of rows in the order of `std`, RMV is the root of the
    mean variance of a bin and RMSE that of its squared errors.

    Args:
        mean: `[..., batch]`.
        std: positive, same shape as `mean`.
        targets: `[batch]` or `[..., batch]`.
        num_bins: number of bins; those without rows do not count. Rows of equal `std`
            lie in one bin, so that their order does not matter.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; it grows with the number of bins, since each holds fewer rows.

    Raises:
        ValueError: if a shape does not fit or `num_bins` is below 1.

    Source: Levi et al. 2022, arXiv:1905.11659, equation 8.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}.")
    mean, std, targets, weight = _check(mean, std, targets, sample_weight)

    bins = equal_weight_bins(std, weight, num_bins)
    rows = bin_sum(weight, bins, num_bins)

    def root_mean(squares):
        return jnp.sqrt(bin_sum(weigh(squares, weight), bins, num_bins) / rows)

    spread, skill = root_mean(std**2), root_mean((mean - targets) ** 2)
    error = jnp.where(rows > 0, jnp.abs(spread - skill) / spread, 0.0)
    return jnp.sum(error, axis=-1) / jnp.sum(rows > 0, axis=-1)


def sparsification_error(
    mean: jax.Array,
    std: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Area between two sparsification curves (AUSE) of absolute errors, `[...]`.

        AUSE = mean_k [mean |error| of the n - k + 1 rows of smallest std
                       - that of the n - k + 1 rows of smallest error] / MAE,   k = 1..n

    0 if the order of `std` is that of the errors. Rows of equal `std` take the mean
    error of their ties, so that no result depends on the order of rows.

    Args:
        mean: `[..., batch]`.
        std: same shape as `mean`; only its order counts.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`; NaN if all errors are 0.

    Raises:
        ValueError: if a shape does not fit.

    Source: Ilg et al. 2018, arXiv:1802.07095, section 4.
    """
    mean, std, targets, weight = _check(mean, std, targets, sample_weight)

    error = jnp.abs(mean - targets)
    total = weighted_mean(error, weight)

    def area(order):
        return curve_area(error_curve(error, -order, weight))

    undefined = jnp.any(jnp.isnan(std) & (weight != 0), axis=-1) | (total == 0)
    excess = (area(std) - area(error)) / jnp.where(total == 0, 1.0, total)
    return jnp.where(undefined, jnp.nan, excess)


def crps_samples(
    samples: jax.Array,
    targets: jax.Array,
    *,
    fair: bool = False,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean CRPS of the distribution of equally likely samples; in target units.

        CRPS = mean_m |x_m - y| - sum_{m, l} |x_m - x_l| / (2 M^2)

    Args:
        samples: `[member, batch]`.
        targets: `[batch]`.
        fair: divide by 2 M (M - 1): unbiased for the distribution that the members are
            drawn from; NaN for a single member.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        A scalar. One sample has the absolute error; a row without members is NaN.

    Raises:
        ValueError: if a shape does not fit.

    Source: Gneiting and Raftery 2007, equation 20; Ferro 2014 (fair).
    """
    terms = crps_terms(samples, targets, mask=mask)
    weight = row_weights(sample_weight, terms.error.shape, terms.error.dtype)
    members = terms.num_members
    number = members * (members - 1) if fair else members**2
    spread = terms.pairs / jnp.where(number == 0, jnp.nan, number)
    return weighted_mean(terms.error - spread, weight)


class CrpsTerms(NamedTuple):
    """What every form of the CRPS of samples is made of, each `[batch]`.

    Attributes:
        error: mean_m |x_m - y|; NaN where no member counts, or one that does is NaN.
        pairs: sum over m < l of |x_m - x_l|.
        num_members: how many members count.
    """

    error: jax.Array
    pairs: jax.Array
    num_members: jax.Array


def crps_terms(
    samples: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> CrpsTerms:
    """Mean error and distances of the samples of each row, by one sort.

        sum_{m < l} |x_m - x_l| = sum_m (2 m - M - 1) x_(m),   m = 1..M in order

    Args:
        samples: `[member, batch]`.
        targets: `[batch]`.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Raises:
        ValueError: if a shape does not fit.
    """
    samples = floating(samples)
    if samples.ndim != 2:
        raise ValueError(f"samples must be [member, batch]; got shape {samples.shape}.")
    targets = broadcast_rows(
        "targets", jnp.asarray(targets, samples.dtype), samples.shape[1:]
    )
    mask = _member_mask(mask, samples.shape)
    if is_worth_a_network(samples.shape):
        terms = functools.partial(_crps_terms, sort=sort_network)
        return in_column_blocks(terms, samples, targets, mask, members=len(samples))
    return _crps_terms(samples, targets, mask, sort=functools.partial(jnp.sort, axis=0))


def _crps_terms(samples, targets, mask, *, sort):
    count = jnp.sum(mask, axis=0)
    undefined = jnp.any(jnp.isnan(samples) & mask, axis=0) | jnp.isnan(targets)
    # Differences from the target: sums of large values would cancel.
    away = jnp.where(mask & ~undefined[None], samples - targets[None], 0.0)
    error = jnp.sum(jnp.abs(away), axis=0) / count
    ordered = sort(jnp.where(mask, away, jnp.inf))
    place = jnp.arange(1, len(samples) + 1)[:, None]
    factor = 2 * place - count[None] - 1
    ordered = jnp.where(place <= count[None], ordered, 0.0)
    pairs = jnp.sum(factor * ordered, axis=0)
    error, pairs = (jnp.where(undefined, jnp.nan, x) for x in (error, pairs))
    return CrpsTerms(error, pairs, count)


def spread_skill(
    samples: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Spread over skill of an ensemble, 1 if members and truth are exchangeable.

        sqrt(mean_n (M_n + 1) / M_n var_m x_mn) / sqrt(mean_n (xbar_n - y_n)^2)

    with the variance over the M_n members that count divided by M_n - 1.

    Args:
        samples: `[member, batch]`, at least two members.
        targets: `[batch]`.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        A scalar; inf if the mean has no error, NaN if fewer than two members count in a
        row that does.

    Raises:
        ValueError: if a shape does not fit, or there is one member.

    Source: Fortin et al. 2014, equation 15; there M is the same in all rows.
    """
    samples = floating(samples)
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(
            "samples must be [member, batch] of two members or more; got shape"
            f" {samples.shape}."
        )
    targets = broadcast_rows(
        "targets", jnp.asarray(targets, samples.dtype), samples.shape[1:]
    )
    weight = row_weights(sample_weight, samples.shape[1:], samples.dtype)
    away, spread, members = member_moments(samples - targets[None], ddof=1, mask=mask)
    inflated = (members + 1) / members * spread**2
    return jnp.sqrt(weighted_mean(inflated, weight) / weighted_mean(away**2, weight))


def _member_mask(mask, shape):
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask).astype(bool)
    if mask.shape not in (shape[:1], shape):
        raise ValueError(
            f"mask must be [member] = {shape[:1]} or [member, batch] = {shape}; got"
            f" shape {mask.shape}."
        )
    return jnp.broadcast_to(mask.reshape(len(mask), -1), shape)


def _check(mean, std, targets, sample_weight=None):
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    return mean, same_shape("std", std, "mean", mean), targets, weight
