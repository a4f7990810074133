"""Blocks that are computed again for the gradient, equal ones in a loop.

Written out, a compiler may see that a block is computed twice and keep the first result
after all, as that for CPU does. Between the turns of a loop it cannot: of each block
only the input stays in memory. The time to compile does not grow with the depth either.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def again_for_gradient(blocks: Sequence[nnx.Module], x: Any, *beside: Any) -> Any:
    """What `x = block(x, *beside)` makes of `x`, block after block.

    Neighbours of one structure run as a `lax.scan` over their parameters, which are
    stacked for it (a copy of them, and one of their gradients).

    Args:
        blocks: without state that a call changes; they may be mapped over members that
            share them.
        x: what the first block is given; all blocks keep its shape and type.
        beside: what every block is given.
    """
    split = [nnx.split(block) for block in blocks]
    for graph, run in itertools.groupby(split, key=lambda pair: pair[0]):
        states = [state for _, state in run]

        def call(x, state, graph=graph):
            return nnx.merge(graph, state)(x, *beside)

        again = jax.checkpoint(call)
        if len(states) == 1:
            x = again(x, states[0])
            continue
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        x, _ = jax.lax.scan(lambda x, row, fn=again: (fn(x, row), None), x, rows)
    return x
