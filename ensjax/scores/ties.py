"""Equal to rounding: which rows are equally sure, and which bin a number is in.

Numbers that are equal by definition, as probabilities of a mixture whose members are
permuted, come out of compiled programs a few units in the last place apart. If that
decided what comes first, scores would depend on the order of members, on the program
and on the number of devices. So what differs by no more than `TIE_TOLERANCE` is equal
here, as it is among the classes of a row (`member_arrays.votes`). Numbers above 1 round
in proportion, and so does the tolerance: 20 and 20.001 are two log-odds.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import TIE_TOLERANCE

_MOST_COMPARED = 32
_SHARE_TOLERANCE = 1e-5  # of sums of many weights


def merge_ties(values: jax.Array, weight: jax.Array) -> jax.Array:
    """`values [..., batch]` in which rows that are equal to rounding are equal.

    Such rows lie within `TIE_TOLERANCE` of each other (times the smaller absolute value
    where that is above 1), and no other row within that of one of them: where rows lie
    so densely that chains of neighbours have no end, values stay as they are. Rows of
    weight 0 join nothing.

    Args:
        values: confidences such as log-odds, `[..., batch]`.
        weight: `[..., batch]`.
    """

    def one(values, weight):
        order = jnp.argsort(jnp.where(weight == 0, jnp.inf, values))
        ascending = jnp.where(weight == 0, jnp.inf, values)[order]
        merged = values.at[order].set(merge_sorted(ascending))
        return jnp.where(weight == 0, values, merged)

    leading, num_rows = values.shape[:-1], values.shape[-1]
    flat = (x.reshape(-1, num_rows) for x in (values, weight))
    return jax.vmap(one)(*flat).reshape(*leading, num_rows)


def merge_sorted(ascending: jax.Array) -> jax.Array:
    """`merge_ties` of rows that are sorted already, `[..., batch]`."""
    last = ascending.ndim - 1
    # A NaN, or the difference of two infinities, is not within the tolerance.
    near = _is_near(ascending[..., :-1], ascending[..., 1:])
    place = jnp.broadcast_to(jnp.arange(ascending.shape[-1]), ascending.shape)
    edge = jnp.zeros((*ascending.shape[:-1], 1), bool)
    begins = ~jnp.concatenate([edge, near], axis=-1)
    ends = ~jnp.concatenate([near, edge], axis=-1)
    first = jax.lax.cummax(jnp.where(begins, place, 0), axis=last)
    end = jax.lax.cummin(
        jnp.where(ends, place, ascending.shape[-1] - 1), axis=last, reverse=True
    )
    low = jnp.take_along_axis(ascending, first, axis=-1)
    high = jnp.take_along_axis(ascending, end, axis=-1)
    return jnp.where(_is_near(low, high), low, ascending)


def _is_near(low, high):
    # By the smaller one: what is finite is not near to infinity.
    scale = jnp.minimum(jnp.abs(low), jnp.abs(high))
    return high - low <= TIE_TOLERANCE * jnp.maximum(scale, 1.0)


def share_bin(middle: jax.Array, total: jax.Array, num_bins: int) -> jax.Array:
    """The bin of equal weight of rows with mid-rank `middle` of weight `total`, int32.

    floor(num_bins * middle / total); what is on an edge to rounding is above it.
    """
    bins = jnp.floor(num_bins * middle / total + _SHARE_TOLERANCE).astype(jnp.int32)
    return jnp.clip(bins, 0, num_bins - 1)


def equal_width_bin(probs: jax.Array, num_bins: int) -> jax.Array:
    """The bin (lo, hi] of `num_bins` equal ones between 0 and 1, int32; NaN gives 0.

    What is on an edge to rounding is below it: 3/15 is in the third of 15 bins, however
    a program computed it.
    """
    edges = inner_edges(num_bins).astype(probs.dtype)
    if num_bins > _MOST_COMPARED:
        found = jnp.searchsorted(jnp.asarray(edges), probs.reshape(-1), side="left")
        found = jnp.where(jnp.isnan(probs.reshape(-1)), 0, found)
        return found.astype(jnp.int32).reshape(probs.shape)
    # Comparisons with constants are code without memory, for many numbers at once.
    bins = jnp.zeros(probs.shape, jnp.int32)
    for edge in edges:
        bins += (probs > edge).astype(jnp.int32)
    return bins


def inner_edges(num_bins: int) -> np.ndarray:
    """The edges between `num_bins` equal bins of (0, 1), raised by `TIE_TOLERANCE`."""
    return np.arange(1, num_bins) / num_bins + TIE_TOLERANCE
