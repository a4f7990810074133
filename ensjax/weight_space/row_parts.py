"""Rows in parts, and means and (co)variances over all rows from those over parts.

A forward of one part at a time takes the memory of that part. The moments of a part are
about its own means, so that only what means differ by is squared when they are joined.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Moments(NamedTuple):
    """Of channels over rows and positions, `[..., channel]` each.

    Attributes:
        mean: their mean.
        variance: their mean squared deviation from it.
    """

    mean: jax.Array
    variance: jax.Array

    def joined(self, other: "Moments", share: jax.Array) -> "Moments":
        """Moments of both sets of rows; `share` of all rows are the other's."""
        away = other.mean - self.mean
        variance = join_products(self.variance, other.variance, away, away, share)
        return Moments(self.mean + share * away, variance)


def join_products(
    first: jax.Array,
    second: jax.Array,
    away: jax.Array,
    other_away: jax.Array,
    share: jax.Array,
) -> jax.Array:
    """The mean product of two deviations over two sets of rows together.

        (1 - s) c_1 + s c_2 + s (1 - s) d e

    Args:
        first: c_1, that of the first set, about its own means.
        second: c_2, that of the second.
        away: d, the second's mean of the one factor less the first's; of a shape that
            is multiplied to that of the products.
        other_away: e, of the other factor.
        share: s, of all rows those of the second set.

    Source: Chan et al. 1983, Algorithms for computing the sample variance, equation
    2.1b.
    """
    within = first + share * (second - first)
    return within + share * (1 - share) * (away * other_away)


def row_parts(x: Any, batch_size: int) -> list[Any]:
    """The rows of `x` in as few parts as can be, of which the last may be smaller.

    Args:
        x: leaves `[example, ...]`.
        batch_size: the most rows of a part.

    Returns:
        Parts with leaves `[row, ...]`; `x` itself where it is one.

    Raises:
        TypeError: if `batch_size` is no integer.
        ValueError: if there is no row, lengths differ, or `batch_size` is below 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise TypeError(f"batch_size must be an integer; got {batch_size!r}.")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths or batch_size < 1:
        raise ValueError(
            "x must be arrays [example, ...] of equal length with at least one row, and"
            f" batch_size at least 1; got lengths {sorted(lengths)} and {batch_size}."
        )
    ((count,),) = lengths
    number = -(-count // batch_size)
    if number == 1:
        return [x]
    size = -(-count // number)
    return [
        jax.tree.map(lambda leaf: leaf[start : start + size], x)  # noqa: B023
        for start in range(0, count, size)
    ]


def moments_of_parts(measure: Callable[[Any], Any], parts: Sequence[Any]) -> Any:
    """What `measure` gives of all rows together.

    Args:
        measure: gives of one part a list or dict of what has `joined(other, share)`,
            such as `Moments`. Every row has as many positions as any other.
        parts: from `row_parts`.
    """
    total, done = None, 0
    for part in parts:
        rows = np.shape(jax.tree.leaves(part)[0])[0]
        own, done = measure(part), done + rows
        total = own if total is None else _join(total, own, rows / done)
    return total


@jax.jit
def _join(total, other, share):
    return jax.tree.map(
        lambda a, b: a.joined(b, share),
        total,
        other,
        is_leaf=lambda node: hasattr(node, "joined"),
    )
