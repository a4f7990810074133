"""Rows of padded stacks: taken apart and put together on the devices."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding


def gather_rows(
    parts: Sequence[Any], rows: Any, num_rows: int, mesh: Mesh, specs: Any
) -> Any:
    """Rows of several stacks of one architecture as one padded stack.

    Args:
        parts: stacks, leaves `[row, ...]`.
        rows: indices into the rows of all parts, one after the other.
        num_rows: of the result; what `rows` does not fill are copies of its first.
        mesh: the devices.
        specs: `jax.P` of the leaves, or one for all.

    Returns:
        Leaves `[num_rows, ...]`.
    """
    rows = np.asarray(rows)
    padded = np.concatenate([rows, np.repeat(rows[:1], num_rows - len(rows))])
    index = padded.astype(np.int32)  # NumPy: whole on every process

    def sharding(spec):
        if spec and spec[0] and num_rows % mesh.shape["member"]:
            spec = jax.P(None, *spec[1:])
        return NamedSharding(mesh, spec)

    leaves, treedef = jax.tree.flatten(parts[0])
    if isinstance(specs, jax.P):
        specs = [specs] * len(leaves)
    else:
        specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.P))
    shardings = tuple(map(sharding, specs))
    stacks = [jax.tree.leaves(part) for part in parts]
    # One program, and waited for: on CPU devices many programs that exchange rows, all
    # under way at once, can wait for each other for ever.
    gathered = jax.block_until_ready(_gather(shardings)(index, *stacks))
    return jax.tree.unflatten(treedef, gathered)


@functools.lru_cache(maxsize=32)
def _gather(shardings):
    def gather(index, *stacks):
        return tuple(
            (parts[0] if len(parts) == 1 else jnp.concatenate(parts))[index]
            for parts in zip(*stacks, strict=True)
        )

    return jax.jit(gather, out_shardings=shardings)
