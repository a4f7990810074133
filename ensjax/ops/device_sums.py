"""Values and sums that the devices of a mesh axis have in common, with derivatives.

Inside a `shard_map`, a derivative is that of the sum of all devices' losses: let every
device compute its own part of a loss, sum the parts by `sum_over`, and pass what all
devices share through `shared_by`.
"""

import functools
from typing import Any

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def shared_by(tree: Any, axis: str | None) -> Any:
    """`tree`, the same on all devices of the axis; their cotangents are summed."""
    return tree


def _shared_by_fwd(tree, axis):
    return tree, None


def _shared_by_bwd(axis, _, cotangents):
    return (cotangents if axis is None else jax.lax.psum(cotangents, axis),)


shared_by.defvjp(_shared_by_fwd, _shared_by_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_over(part: jax.Array, axis: str | None) -> jax.Array:
    """The sum of the devices' parts, on all of them; each part has derivative 1.

    (A plain psum is its own transpose where `shard_map` does not track which values
    vary: the derivative would be too large by the number of devices.)
    """
    return part if axis is None else jax.lax.psum(part, axis)


def _sum_over_fwd(part, axis):
    return sum_over(part, axis), None


def _sum_over_bwd(axis, _, cotangent):
    return (cotangent,)


sum_over.defvjp(_sum_over_fwd, _sum_over_bwd)
