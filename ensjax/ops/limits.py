"""Maxima, minima and clipping that keep a NaN, in compiled programs too.

`jnp.maximum(NaN, 0)` is NaN, but 0 in some compiled programs on CPU (jax 0.12.0.1,
where it is fused with a sum that follows). A score would then be a number although a
member's output is broken. Comparisons and selections keep it everywhere.
"""

import jax
import jax.numpy as jnp

__all__ = ["at_least", "at_most", "between", "larger", "smaller"]


def larger(a: jax.Array | float, b: jax.Array) -> jax.Array:
    """`jnp.maximum`, NaN wherever `a` or `b` is; equal ones pass gradients to `a`."""
    return jnp.where((a >= b) | (a != a), a, b)


def smaller(a: jax.Array | float, b: jax.Array) -> jax.Array:
    """`jnp.minimum`, NaN wherever `a` or `b` is; equal ones pass gradients to `a`."""
    return jnp.where((a <= b) | (a != a), a, b)


def at_least(values: jax.Array, low: jax.Array | float) -> jax.Array:
    """`values`, `low` where they are less: a hinge, whose gradient at `low` is 0."""
    return larger(low, values)


def at_most(values: jax.Array, high: jax.Array | float) -> jax.Array:
    """`values`, `high` where they are more; the gradient at `high` is 0."""
    return smaller(high, values)


def between(
    values: jax.Array, low: jax.Array | float, high: jax.Array | float
) -> jax.Array:
    """`jnp.clip`, NaN where `values` are; the gradient at both ends is 0."""
    return at_most(at_least(values, low), high)
