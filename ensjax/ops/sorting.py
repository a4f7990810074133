"""Sorting over members, which come first, as it is fast on a CPU.

XLA's sort for CPUs takes one column after the other through a comparison of two
numbers. A bitonic network compares rows with rows, by minima and maxima of whole
vectors: n (log2 n)^2 / 4 of them, but 6 to 13 times as fast for 50 and 1,024 members on
two cores. It takes seconds to compile, so that few numbers are left to XLA.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.mesh import tracing_platform

_WORTH_A_NETWORK = 2**20  # numbers; fewer are sorted sooner than it is compiled
_IN_CACHE = 2**17  # numbers of a block of columns


def is_worth_a_network(shape: tuple[int, ...]) -> bool:
    """Whether members `[member, column]` of this shape are sorted by `sort_network`."""
    return tracing_platform() == "cpu" and shape[0] * shape[1] >= _WORTH_A_NETWORK


def sort_network(values: jax.Array) -> jax.Array:
    """Every column in ascending order, `[member, column]`; columns hold no NaN.

    Source: Batcher 1968, Sorting networks and their applications.
    """
    members, columns = values.shape
    size = 1 << (members - 1).bit_length()
    largest = jnp.asarray(jnp.inf, values.dtype)
    values = jnp.pad(values, ((0, size - members), (0, 0)), constant_values=largest)
    width = 2
    while width <= size:
        # Two sorted halves, the second one backwards, are one bitonic sequence.
        pairs = values.reshape(-1, 2, width // 2, columns)
        low, high = pairs[:, 0], jnp.flip(pairs[:, 1], axis=1)
        halves = [jnp.minimum(low, high), jnp.flip(jnp.maximum(low, high), axis=1)]
        values = jnp.stack(halves, axis=1).reshape(size, columns)
        step = width // 4
        while step:
            pairs = values.reshape(-1, 2, step, columns)
            low, high = pairs[:, 0], pairs[:, 1]
            halves = [jnp.minimum(low, high), jnp.maximum(low, high)]
            values = jnp.stack(halves, axis=1).reshape(size, columns)
            step //= 2
        width *= 2
    return values[:members]


def in_column_blocks(
    function: Callable[..., Any], *arrays: jax.Array, members: int
) -> Any:
    """A function of columns, applied to blocks of them that stay in a cache.

    Args:
        function: of arrays `[..., column]`; gives arrays `[column]`, each from its own
            column alone.
        *arrays: `[..., column]`, all of as many columns.
        members: rows of what is sorted: they say how many columns a block has.
    """
    columns = arrays[0].shape[-1]
    size = 1 << (members - 1).bit_length()
    block = min(columns, max(_IN_CACHE // size, 1))
    number = -(-columns // block)

    def of_block(index):
        # The last one begins sooner, so that it is whole.
        start = jnp.minimum(index * block, columns - block)
        return function(
            *(jax.lax.dynamic_slice_in_dim(x, start, block, axis=-1) for x in arrays)
        )

    found = jax.lax.map(of_block, jnp.arange(number))
    rest = columns - (number - 1) * block

    def whole(parts):
        return jnp.concatenate([parts[:-1].reshape(-1), parts[-1, block - rest :]])

    return jax.tree.map(whole, found)
