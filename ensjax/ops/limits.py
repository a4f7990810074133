"""Maxima, minima and clipping that keep a NaN, in compiled programs too.

`jnp.maximum(NaN, 0)` is NaN, but 0 in some compiled programs on CPU (jax 0.12.0.1,
where it is fused with a sum that follows). A score would then be a number although a
member's output is broken. Comparisons and selections keep it everywhere.
"""

import jax
import jax.numpy as jnp

__all__ = ["at_least", "at_most", "between", "larger", "smaller"]


def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.maximum`, NaN wherever `a` or `b` is; equal ones pass gradients to `a`."""
    return jnp.where((a >= b) | (a != a), a, b)


def smaller(a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.minimum`, NaN wherever `a` or `b` is; equal ones pass gradients to `a`."""
    return jnp.where((a <= b) | (a != a), a, b)


def at_least(values: jax.Array, low: jax.Array | float) -> jax.Array:
    """`values`, `low` where they are less: a hinge, whose gradient at `low` is 0."""
    return larger(jnp.asarray(low, values.dtype), values)


def at_most(values: jax.Array, high: jax.Array | float) -> jax.Array:
    """`values`, `high` where they are more; the gradient at `high` is 0."""
    return smaller(jnp.asarray(high, values.dtype), values)


def between(
    values: jax.Array, low: jax.Array | float, high: jax.Array | float
) -> jax.Array:
    """`jnp.clip`, NaN where `values` are."""
    return at_most(at_least(values, low), high)
