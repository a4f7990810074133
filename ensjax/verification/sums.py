"""Weighted sums of statistics over cases and space: what streams, merges and adds up.

A score of many forecasts is a function of means, and a mean is a sum over a weight. The
sums of two chunks of cases add to those of both, and those of several devices to those
of all: the order of cases, their chunks and the mesh do not matter but for rounding.
Each sum is held as two float32 numbers, itself and what rounding took from it, so that
a long stream does not drift.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import bin_sum

_ADDED_AT_ONCE = 1024  # numbers; the rounding of a sum grows with it


class Sums(NamedTuple):
    """Sums of statistics, each `[kept axes..., extra axes...]` of one metric.

    Attributes:
        total: by name; "weight" is that of the elements that were scored, "missing"
            that of the elements that could not be.
        lost: what rounding took from each, to be added at the end.
    """

    total: dict[str, jax.Array]
    lost: dict[str, jax.Array]


class InBins(NamedTuple):
    """A statistic that is summed bin by bin instead of as a whole.

    Attributes:
        values: of the elements, `[...]`.
        index: the bin of each, integers `[...]`.
        num_bins: how many there are; they become the last axis of the sum.
    """

    values: jax.Array
    index: jax.Array
    num_bins: int


def sum_statistics(
    statistics: dict[str, Any], weights: jax.Array, axes: tuple[int, ...]
) -> Sums:
    """The sums of one chunk.

    An element counts if its weight is not 0 and none of its statistics is NaN; one that
    does not count leaves no trace but in "missing".

    Args:
        statistics: by name, all `[element axes..., extra axes...]` of one shape, or
            `InBins` of such arrays.
        weights: non-negative, `[element axes...]`.
        axes: the element axes that are summed over.
    """
    first = next(iter(statistics.values()))
    shape = first.values.shape if isinstance(first, InBins) else first.shape
    num_extra = len(shape) - weights.ndim
    weights = jnp.broadcast_to(
        weights.reshape(weights.shape + (1,) * num_extra), shape
    ).astype(jnp.float32)
    is_known = jnp.ones(shape, bool)
    for statistic in statistics.values():
        values = statistic.values if isinstance(statistic, InBins) else statistic
        is_known &= ~jnp.isnan(values)
    scored = jnp.where(is_known, weights, 0.0)
    total = {
        "weight": _sum(scored, axes),
        "missing": _sum(jnp.where(is_known, 0.0, weights), axes),
    }
    for name, statistic in statistics.items():
        if isinstance(statistic, InBins):
            values = jnp.where(scored == 0, 0.0, statistic.values) * scored
            total[name] = _sum_bins(statistic._replace(values=values), axes)
        else:
            values = jnp.where(scored == 0, 0.0, statistic) * scored
            total[name] = _sum(values, axes)
    return Sums(total, jax.tree.map(jnp.zeros_like, total))


def _rows_last(x, axes):
    """`[kept..., rows]`, where a row is an element that is summed over."""
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = jnp.transpose(x, [*kept, *axes])
    number = math.prod(x.shape[a] for a in axes)  # -1 is not known of no element
    return moved.reshape(*(x.shape[a] for a in kept), number)


def _sum(x, axes):
    if not axes:
        return x
    rows = _rows_last(x, axes)
    number = rows.shape[-1]
    if number <= _ADDED_AT_ONCE:
        return jnp.sum(rows, axis=-1)
    blocks = -(-number // _ADDED_AT_ONCE)
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, blocks * _ADDED_AT_ONCE - number)]
    rows = jnp.pad(rows, padding).reshape(*rows.shape[:-1], blocks, _ADDED_AT_ONCE)
    # Without the barrier the compiler makes one long sum of the two.
    parts = jax.lax.optimization_barrier(jnp.sum(rows, axis=-1))
    return jnp.sum(parts, axis=-1)


def _sum_bins(statistic, axes):
    values, index = (
        _rows_last(x, axes) if axes else x[..., None]
        for x in (statistic.values, statistic.index)
    )
    if not values.size:
        return jnp.zeros((*values.shape[:-1], statistic.num_bins), values.dtype)
    return bin_sum(values, index, statistic.num_bins)


def merge_sums(a: Sums, b: Sums) -> Sums:
    """The sums of the elements of `a` and `b` together, which share names and shapes.

    Source: Knuth 1997, The Art of Computer Programming 2, section 4.2.2, theorem B (the
    rounding of an addition is itself a number of the same kind).
    """

    def rest(x, y):
        total = x + y
        part = total - x
        error = (x - (total - part)) + (y - part)
        return jnp.where(jnp.isfinite(total), error, 0.0)

    total = jax.tree.map(jnp.add, a.total, b.total)
    lost = jax.tree.map(
        lambda x, y, u, v: u + v + rest(x, y), a.total, b.total, a.lost, b.lost
    )
    return Sums(total, lost)


def psum_sums(sums: Sums, axis_name: Any) -> Sums:
    """The sums of all devices along mesh axes, inside a manual program; no gather."""
    return jax.lax.psum(sums, axis_name)


def means_of(sums: Sums) -> dict[str, Any]:
    """The weighted mean of every statistic, by name; NaN where none was scored.

    "total" holds the sums themselves, by name, and "weight" among them.
    """
    total = jax.tree.map(jnp.add, sums.total, sums.lost)
    weight = total["weight"]
    safe = jnp.where(weight > 0, weight, jnp.nan)

    def mean(x):
        return x / safe.reshape(safe.shape + (1,) * (x.ndim - safe.ndim))

    means = {
        name: mean(x) for name, x in total.items() if name not in ("weight", "missing")
    }
    return means | {"total": total}


def scored_share(sums: Sums) -> jax.Array:
    """The share of the weight that could be scored (0-1), `[...]`.

    Below 1 where observations, members or what a statistic needs were missing. Two
    systems compare fairly only on the same elements.
    """
    total = jax.tree.map(jnp.add, sums.total, sums.lost)
    asked = total["weight"] + total["missing"]
    return total["weight"] / jnp.where(asked > 0, asked, jnp.nan)
