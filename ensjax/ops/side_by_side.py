"""Several states of a system in the channels of one array, the oldest first.

What a step knows of the past, `[*space, num_states * channel]`: emulators that start
from more than one state carry it so, and so do their losses.
"""

import jax
import jax.numpy as jnp


def side_by_side(history: jax.Array) -> jax.Array:
    """States one after the other, `[time, *space, channel]`, as `[*space, time *
    channel]`, the oldest first."""
    together = jnp.moveaxis(history, 0, -2)
    return together.reshape(*together.shape[:-2], -1)


def missing_places(is_missing: jax.Array, num_states: int) -> jax.Array:
    """Missing at one of several states side by side is missing at all of them.

    Args:
        is_missing: `[..., num_states * channel]`; so is what is returned.
        num_states: in the channels.
    """
    if num_states == 1:
        return is_missing
    apart = is_missing.reshape(*is_missing.shape[:-1], num_states, -1)
    return jnp.tile(apart.any(axis=-2), num_states)
