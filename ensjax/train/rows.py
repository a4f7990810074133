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
    if isinstance(specs, jax.P):
        specs = jax.tree.map(lambda _: specs, parts[0])
    index = padded.astype(np.int32)  # NumPy: whole on every process

    def gather(spec, *leaves):
        sharding = NamedSharding(mesh, spec)
        if spec and spec[0] and num_rows % mesh.shape["member"]:
            sharding = NamedSharding(mesh, jax.P(None, *spec[1:]))
        return _gather(sharding)(index, *leaves)

    return jax.tree.map(gather, specs, *parts, is_leaf=lambda x: isinstance(x, jax.P))


@functools.lru_cache(maxsize=32)
def _gather(sharding):
    def gather(index, *leaves):
        whole = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        return whole[index]

    return jax.jit(gather, out_shardings=sharding)
