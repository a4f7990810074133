"""What networks have in common that advance a state on a closed grid by one step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.denoiser_net import with_condition


class OneStep(nnx.Module):
    """Checks what a network of one step is given, and adds its change.

        next = reference(state) + step_scale * change(noise, state)

    Attributes:
        num_channels: of the state.
        num_noise_channels: of the noise; 0 for a deterministic network.
        step_scale: what a change is multiplied by: a number, or one for each channel.
        reference: `reference(state) -> [*space, channel]`, which the change is added
            to; None: the state itself.
        flags_first_step: whether the network is told of each step if it is a forecast's
            first, from an analysis and not from what it made itself.
    """

    # Of the class: a network that was stored before there were these has none.
    reference: Callable[[jax.Array], jax.Array] | None = None
    flags_first_step: bool = False

    def _seen(
        self,
        state: jax.Array,
        extra: jax.Array | None = None,
        num_extra_channels: int = 0,
        is_first: Any = None,
    ) -> jax.Array:
        """The state and what else is known beside it, `[*space, channel]`."""
        if state.ndim < 2 or state.shape[-1] != self.num_channels:
            raise ValueError(
                f"state must be [*space, {self.num_channels}]; got shape {state.shape}."
            )
        if self.flags_first_step != (is_first is not None):
            raise ValueError(
                "a network with flags_first_step=True is told is_first, as"
                " RolloutLoss and emulate.NetworkStep do, and no other is; this one"
                f" has {self.flags_first_step}, and is_first is {is_first}."
            )
        seen = with_condition(state, extra, num_extra_channels)
        if not self.flags_first_step:
            return seen
        flag = jnp.asarray(is_first, seen.dtype)
        flag = jnp.broadcast_to(flag, (*seen.shape[:-1], 1))
        return jnp.concatenate([seen, flag], axis=-1)

    def _advanced(self, state: jax.Array, change: jax.Array) -> jax.Array:
        """The next state, float32, of what the last layer made."""
        change = change.astype(jnp.float32)
        start = state if self.reference is None else self.reference(state)
        if start.shape != state.shape:
            raise ValueError(
                f"reference must keep the shape {state.shape} of a state; it gave"
                f" {start.shape}."
            )
        if isinstance(self.step_scale, int | float):
            return start + self.step_scale * change
        scale = jnp.asarray(self.step_scale, jnp.float32)
        return start + change * jnp.broadcast_to(
            scale.reshape(*(1,) * (state.ndim - 1), -1), state.shape
        )


def scales_of(
    step_scale: float | Sequence[float], num_channels: int
) -> tuple[float, ...]:
    """One number for all channels, or one for each.

    Raises:
        ValueError: for another number of them.
    """
    scales = (step_scale,) if isinstance(step_scale, int | float) else step_scale
    scales = tuple(float(scale) for scale in scales)
    if len(scales) not in (1, num_channels):
        raise ValueError(
            "step_scale must be one number or one for each of the"
            f" {num_channels} channels; got {len(scales)}."
        )
    return scales
