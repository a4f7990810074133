"""Intervals for measured numbers: proportions, seeds, paired bootstraps over rows."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.limits import at_least, at_most


class Interval(NamedTuple):
    """An estimate and the ends of its interval, arrays of one shape."""

    estimate: jax.Array
    low: jax.Array
    high: jax.Array


def wilson_interval(
    successes: jax.Array, trials: jax.Array, *, confidence: float = 0.95
) -> Interval:
    """Wilson score interval of a proportion, such as an accuracy over n test rows.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It covers the sampling of test rows, not of seeds.

    Args:
        successes: number of successes, any shape.
        trials: number of trials, same shape or a scalar.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `Interval` with the plain proportion as estimate; within [0, 1].

    Raises:
        ValueError: if `confidence` is not in (0, 1).

    Source: Wilson 1927.
    """
    _check_confidence(confidence)
    z = _normal_quantile(0.5 + confidence / 2)
    successes, trials = jnp.asarray(successes, float), jnp.asarray(trials, float)
    share = successes / trials
    center = share + z**2 / (2 * trials)
    half = z * jnp.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z**2 / trials
    low = at_least((center - half) / scale, 0.0)
    return Interval(share, low, at_most((center + half) / scale, 1.0))


def exact_interval(
    successes: np.ndarray, trials: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """Clopper-Pearson interval of a proportion: covers at least as often as it says.

        low = B(a / 2; k, n - k + 1),   high = B(1 - a / 2; k + 1, n - k)

    with quantiles B of the beta distribution and a = 1 - confidence. Wider than
    `wilson_interval`, whose coverage is right on average only. In float64 on the host,
    not under `jit`.

    Args:
        successes: number of successes, any shape.
        trials: number of trials, same shape or a scalar.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `Interval` of NumPy arrays with the plain proportion as estimate. Without trials
        that is NaN, and the interval (0, 1).

    Raises:
        ValueError: if `confidence` is not in (0, 1), or successes are not between 0 and
            the trials.

    Source: Clopper and Pearson 1934.
    """
    from scipy.special import betaincinv

    _check_confidence(confidence)
    k, n = np.broadcast_arrays(np.float64(successes), np.float64(trials))
    if not ((k >= 0) & (k <= n)).all():
        raise ValueError(
            f"successes must lie between 0 and the trials; got {k} of {n}."
        )
    tail = (1 - confidence) / 2
    low = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), n - k + 1, tail))
    high = betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail)
    with np.errstate(invalid="ignore"):
        return Interval(k / n, low, np.where(k == n, 1.0, high))


def t_interval(
    values: jax.Array, *, confidence: float = 0.95, axis: int = 0
) -> Interval:
    """Student t interval of the mean over independent repetitions, such as seeds.

        mean +- t_{n-1} sd / sqrt(n),   sd with n - 1

    Args:
        values: one value per seed along `axis`, any shape.
        confidence: coverage of the interval, in (0, 1).
        axis: the axis of the seeds.

    Returns:
        `Interval` of the shape without `axis`. One seed says nothing about the spread:
        its interval is (-inf, inf).

    Raises:
        ValueError: if `confidence` is not in (0, 1) or there is no value.

    Source: Student 1908.
    """
    _check_confidence(confidence)
    values = jnp.asarray(values, float)
    num_values = values.shape[axis] if values.ndim else 0
    if num_values < 1:
        raise ValueError("t_interval needs at least one value along the axis of seeds.")
    mean = jnp.mean(values, axis=axis)
    if num_values == 1:
        return Interval(mean, jnp.full_like(mean, -np.inf), jnp.full_like(mean, np.inf))
    half = _student_quantile(0.5 + confidence / 2, num_values - 1) / math.sqrt(
        num_values
    )
    half = half * jnp.std(values, axis=axis, ddof=1)
    return Interval(mean, mean - half, mean + half)


def paired_bootstrap(
    key: jax.Array,
    metric: Callable[[jax.Array], jax.Array],
    num_rows: int,
    *,
    groups: jax.Array | None = None,
    num_groups: int | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    block: int = 64,
) -> Interval:
    """Percentile bootstrap interval of any weighted metric, over rows or groups.

    `metric` is evaluated on resamples written as weights: a row that was drawn twice
    has weight 2. All systems that `metric` returns see the same resamples, so a
    difference is compared in pairs by returning it.

    Args:
        key: random key.
        metric: `metric(sample_weight [batch]) -> [...]`, for instance a closure over
            one of our scores.
        num_rows: number of rows.
        groups: `[batch]` integers in 0..num_groups-1: rows of one group (a patient, a
            scene) are drawn together.
        num_groups: number of groups, required with `groups`.
        num_resamples: number of resamples.
        confidence: coverage of the interval, in (0, 1).
        block: resamples evaluated at once; bounds the memory.

    Returns:
        `Interval` of arrays shaped as `metric` returns; the estimate is that of the
        rows as they are. Resamples on which the metric is NaN (a class that was not
        drawn) are left out.

    Raises:
        ValueError: if a number is below 1, a shape does not fit, `groups` comes
            without `num_groups`, or a group is out of their range. Where groups are not
            known, in a compiled program, the weights of such rows are NaN.

    Source: Efron and Tibshirani 1993, chapter 13.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ensjax import scores
        >>> a, b, labels = jnp.zeros((20, 2)), jnp.zeros((20, 2)), jnp.arange(20) % 2
        >>> def gain(w):
        ...     single = scores.nll(a, labels, sample_weight=w)
        ...     return single - scores.nll(b, labels, sample_weight=w)
        >>> result = scores.paired_bootstrap(jax.random.key(0), gain, len(labels))
    """
    _check_confidence(confidence)
    estimate, draws = draw_metric(
        key, metric, num_rows, groups, num_groups, num_resamples, block
    )
    tail = (1 - confidence) / 2
    ends = jnp.nanquantile(draws, jnp.asarray([tail, 1 - tail]), axis=0)
    return Interval(estimate, ends[0], ends[1])


def probability_better(
    key: jax.Array,
    difference: Callable[[jax.Array], jax.Array],
    num_rows: int,
    *,
    groups: jax.Array | None = None,
    num_groups: int | None = None,
    num_resamples: int = 1000,
    block: int = 64,
) -> jax.Array:
    """Share of bootstrap resamples on which a difference is above 0; a tie is half.

    P(A better than B) with `difference` = A minus B of a metric where more is better.
    It covers the sampling of test rows, not of seeds, and is no p-value.

    Args:
        difference: `difference(sample_weight [batch]) -> [...]`.

    The other arguments are those of `paired_bootstrap`.

    Returns:
        `[...]` (0-1); resamples on which the difference is NaN are left out.
    """
    _, draws = draw_metric(
        key, difference, num_rows, groups, num_groups, num_resamples, block
    )
    return jnp.nanmean(jnp.where(jnp.isnan(draws), jnp.nan, _wins(draws)), axis=0)


def probability_of_improvement(first: jax.Array, second: jax.Array) -> jax.Array:
    """Chance that a run of the first beats one of the second, ties counting half.

        mean over pairs (i, j) of [a_i > b_j] + [a_i = b_j] / 2

    Over independent seeds, where `probability_better` is over test rows. 0.5 says
    nothing about how large the difference is.

    Args:
        first: one value per seed along the first axis, `[seed, ...]`, more is better.
        second: the same of the other system; it may have other seeds.

    Returns:
        `[...]` (0-1).

    Raises:
        ValueError: if a system has no value, or the other axes differ.

    Source: Mann and Whitney 1947; Agarwal et al. 2021, arXiv:2108.13264, section 4.3.
    """
    first, second = jnp.asarray(first, float), jnp.asarray(second, float)
    if min(first.ndim, second.ndim) < 1 or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            "both systems are [seed, ...] with the same axes behind; got shapes"
            f" {first.shape} and {second.shape}."
        )
    if not first.shape[0] or not second.shape[0]:
        raise ValueError("both systems need at least one value.")
    away = first[:, None] - second[None]
    wins = jnp.where(jnp.isnan(away), jnp.nan, _wins(away))
    return jnp.mean(wins, axis=(0, 1))


def _wins(differences):
    return (differences > 0) + 0.5 * (differences == 0)


def draw_metric(key, metric, num_rows, groups, num_groups, num_resamples, block):
    """The metric of the rows as they are, and on every resample `[resample, ...]`."""
    for name, value in (("num_rows", num_rows), ("num_resamples", num_resamples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    if (groups is None) != (num_groups is None):
        raise ValueError("groups and num_groups go together; got one of them.")
    if groups is not None and np.shape(groups) != (num_rows,):
        raise ValueError(f"groups must be [{num_rows}]; got {np.shape(groups)}.")
    num_units = num_rows if groups is None else num_groups
    if groups is not None:
        groups, is_known = _known_groups(groups, num_groups)

    def resampled(number):
        drawn = jax.random.randint(keys[number], (num_units,), 0, num_units)
        counts = jax.ops.segment_sum(jnp.ones(num_units), drawn, num_segments=num_units)
        weight = jnp.where(number == num_resamples, 1.0, counts)
        if groups is not None:
            weight = jnp.where(is_known, weight[groups], jnp.nan)
        return metric(weight)

    # The rows as they are come last, so that `metric` is in one program; blocks of one
    # size leave no rest, which would be another one.
    keys = jax.random.split(key, num_resamples)
    num_blocks = -(-(num_resamples + 1) // block)
    size = -(-(num_resamples + 1) // num_blocks)
    numbers = jnp.minimum(jnp.arange(num_blocks * size), num_resamples)
    found = jax.lax.map(resampled, numbers, batch_size=size)
    return (
        jax.tree.map(lambda x: x[num_resamples], found),
        jax.tree.map(lambda x: x[:num_resamples], found),
    )


def _known_groups(groups, num_groups):
    """Groups in range, and which were, bools `[batch]`: all, where they are known."""
    groups = jnp.asarray(groups)
    if not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(f"groups must be integers; got {groups.dtype}.")
    is_known = (groups >= 0) & (groups < num_groups)
    if not isinstance(is_known, jax.core.Tracer) and not is_known.all():
        raise ValueError(
            f"groups must be from 0 to num_groups - 1 = {num_groups - 1}; got"
            f" {int(groups.min())} to {int(groups.max())}. Other labels become such"
            " numbers with np.unique(groups, return_inverse=True)."
        )
    return jnp.where(is_known, groups, 0), is_known


def _check_confidence(confidence):
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}.")


def _normal_quantile(probability):
    from scipy.special import ndtri  # in double precision, on the host

    return float(ndtri(probability))


def _student_quantile(probability, degrees):
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
