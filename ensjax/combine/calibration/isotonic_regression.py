"""Isotonic regression of many rows, under `jit` and `vmap`.

`ensjax.combine.isotonic` puts the few levels of one row in order, with a derivative;
here a non-decreasing function is fitted to thousands of rows.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class IsotonicFunction:
    """A non-decreasing function, linear between knots and constant beyond them.

    Attributes:
        x: knots `[..., knot]`, ascending; the last one may repeat.
        y: values `[..., knot]`.
    """

    x: jax.Array
    y: jax.Array

    def __call__(self, values: jax.Array) -> jax.Array:
        """Values of the same shape; NaN stays NaN. For a stack of functions `vmap`."""
        return jnp.interp(values, self.x, self.y)


def fit_isotonic(x: jax.Array, y: jax.Array, weight: jax.Array) -> IsotonicFunction:
    """The non-decreasing function of `x` that is nearest to `y` in weighted squares.

    Rows of equal `x` are averaged first. Neighbours that fall are pooled until none
    does, in 2 n steps of a compiled loop.

    Args:
        x: `[batch]`, finite where the weight is positive.
        y: `[batch]`.
        weight: `[batch]`, non-negative; rows of weight 0 may hold anything.

    Returns:
        `IsotonicFunction` with one knot per row; NaN if a row that counts is NaN or
        none counts.

    Source: Barlow et al. 1972, section 1.2 (pool adjacent violators); as
    `sklearn.isotonic.IsotonicRegression(out_of_bounds="clip")`.
    """
    rows = x.shape[0]
    counts = weight != 0
    undefined = ~jnp.any(counts)
    for value in (x, y, weight):
        undefined |= jnp.any(counts & jnp.isnan(value))
    order = jnp.argsort(jnp.where(counts, x, jnp.inf))
    x, weight = x[order], weight[order]
    counts = counts[order]
    y = jnp.where(counts, y[order], 0.0)
    last = jnp.maximum(jnp.sum(counts) - 1, 0)  # rows that count come first

    is_new = jnp.concatenate([jnp.zeros(1, bool), x[1:] > x[:-1]])
    knot = jnp.cumsum(is_new & counts)  # [batch], of each row
    num_knots = knot[last] + 1
    mass = jax.ops.segment_sum(weight, knot, rows)
    mean = jax.ops.segment_sum(weight * y, knot, rows) / jnp.where(mass == 0, 1.0, mass)
    place = jax.ops.segment_min(jnp.where(counts, x, jnp.inf), knot, rows)

    fitted = _pool_violators(mean, mass, num_knots)
    is_knot = jnp.arange(rows) < num_knots
    place = jnp.where(is_knot, place, place[num_knots - 1])
    fitted = jnp.where(is_knot, fitted, fitted[num_knots - 1])
    nan = jnp.where(undefined, jnp.nan, 0.0)
    return IsotonicFunction(place + nan, fitted + nan)


def _pool_violators(mean, mass, num_knots):
    """Blocks lie on a stack: two on top that fall are merged, else one is pushed."""
    rows = mean.shape[0]

    def step(_, state):
        pushed, top, value, weight, size = state
        below, above = jnp.maximum(top - 2, 0), jnp.maximum(top - 1, 0)
        falls = (top >= 2) & (value[below] >= value[above])
        both = weight[below] + weight[above]
        merged = (value[below] * weight[below] + value[above] * weight[above]) / both
        following = jnp.minimum(pushed, rows - 1)
        is_done = ~falls & (pushed >= num_knots)
        place = jnp.where(is_done, rows, jnp.where(falls, below, top))  # rows: dropped

        def put(stack, on_merge, on_push):
            return stack.at[place].set(jnp.where(falls, on_merge, on_push), mode="drop")

        return (
            pushed + (~falls & ~is_done),
            jnp.where(is_done, top, place + 1),
            put(value, merged, mean[following]),
            put(weight, both, mass[following]),
            put(size, size[below] + size[above], 1),
        )

    # A fixed number of steps: under vmap a condition would copy the stacks every time.
    zeros = jnp.zeros_like(mean)
    start = (0, 0, zeros, zeros, jnp.zeros(rows, jnp.int32))
    _, top, value, _, size = jax.lax.fori_loop(0, 2 * rows, step, start)
    ends = jnp.cumsum(jnp.where(jnp.arange(rows) < top, size, 0))
    block = jnp.searchsorted(ends, jnp.arange(rows), side="right")
    return value[jnp.clip(block, 0, jnp.maximum(top - 1, 0))]
