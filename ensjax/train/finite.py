"""Whether values are finite: of one member's trees, and of stacked rows."""

from typing import Any

import jax
import jax.numpy as jnp

from ensjax.mesh import tracing_platform


def all_finite(tree: Any) -> jax.Array:
    """True if every floating value of the tree is finite, `[]`."""
    values = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    if tracing_platform() != "cpu":
        return jnp.stack([jnp.isfinite(x).all() for x in values]).all()
    return jnp.isfinite(_scaled_sum(values))


def still_finite(before: Any, after: Any) -> jax.Array:
    """True if every floating leaf is finite, or was not before either, `[]`."""
    leaves = [
        (old, new)
        for old, new in zip(
            jax.tree.leaves(before), jax.tree.leaves(after), strict=True
        )
        if jnp.issubdtype(new.dtype, jnp.floating)
    ]
    finite = [all_finite(new) | ~all_finite(old) for old, new in leaves]
    return jnp.stack(finite).all() if finite else jnp.bool_(True)


def finite_as_at_start(start: Any, now: Any) -> jax.Array:
    """True if every floating value of `now` is finite, or is not in `start`, `[]`.

    A leaf that has another shape in `start` is compared as a whole.
    """
    finite = []
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(now), strict=True):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            continue
        here, there = jnp.isfinite(new), jnp.isfinite(jnp.asarray(old))
        if here.shape != there.shape:
            here, there = here.all(), there.all()
        finite.append((here | ~there).all())
    return jnp.stack(finite).all() if finite else jnp.bool_(True)


# A sum is finite only if its terms are, and the scale keeps a sum of finite terms from
# overflowing. On CPU a reduction over all entries runs one by one, a matrix-vector
# product does not; and a loop of many small kernels is slow.
_SCALE = 2.0**-40


@jax.custom_batching.custom_vmap
def _scaled_sum(values):
    """2^-40 times the sum of all entries of a list of arrays, `[]`."""
    sums = []
    for x in map(_wide, values):
        if x.ndim > 1 and x.size:
            rows = x.reshape(-1, x.shape[-1])
            sums.append(rows @ jnp.full(rows.shape[1], _SCALE, x.dtype))
        else:
            sums.append(_SCALE * x.reshape(-1))
    sums = jnp.concatenate(sums)
    return sums @ jnp.ones_like(sums)


@_scaled_sum.def_vmap
def _scaled_sums(num_rows, in_batched, values):
    """`[row]`: one long dot product for each array and row beats many short ones."""
    values = jax.tree.map(
        lambda x, batched: x if batched else jnp.broadcast_to(x, (num_rows, *x.shape)),
        list(values),
        list(in_batched[0]),
    )
    rows = [_wide(x).reshape(num_rows, -1) for x in values]
    return sum(x @ jnp.full(x.shape[1], _SCALE, x.dtype) for x in rows), True


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def finite_rows(tree: Any) -> jax.Array:
    """True for every row `[row]` of stacked values whose floating values are finite."""
    checks = [
        jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return jnp.stack(checks).all(axis=0)
