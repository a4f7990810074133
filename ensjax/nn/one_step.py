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


class LastStates(nnx.Module):
    """An emulator of one step that starts from the last states, held side by side.

    Args:
        network: `network(noise, newest [*space, channel], earlier [*space, (num_states
            - 1) * channel]) -> [*space, channel]` one step later, such as a
            `NoiseForecaster` with `num_extra_channels`.
        num_channels: of one state.
        num_states: two or more.

    Raises:
        ValueError: for fewer; on the call, for other channels.

    Source: Lang et al. 2024, arXiv:2412.15832, whose network sees the state and that of
    six hours before.

    Example::

        network = NoiseForecaster(1, num_extra_channels=1, rngs=nnx.Rngs(0))
        model = LastStates(network, num_channels=1)
        states = model(noise, states)  # [36, 2] -> [36, 2], the oldest first
    """

    def __init__(self, network: nnx.Module, *, num_channels: int, num_states: int = 2):
        if num_states < 2:
            raise ValueError(
                f"num_states must be at least 2, or the network needs no others; got"
                f" {num_states}."
            )
        self.network = network
        self.num_channels, self.num_states = num_channels, num_states

    @property
    def flags_first_step(self) -> bool:
        """Whether the network is told of each step if it is a forecast's first."""
        return getattr(self.network, "flags_first_step", False)

    def __call__(
        self, noise: jax.Array | None, states: jax.Array, *, is_first: Any = None
    ) -> jax.Array:
        """The states one step later, `[*space, num_states * channel]`.

        Args:
            noise: of the network.
            states: the oldest first.
            is_first: of the network, where it has `flags_first_step`.
        """
        expected = self.num_states * self.num_channels
        if states.ndim < 2 or states.shape[-1] != expected:
            raise ValueError(
                f"states must be [*space, {expected}], {self.num_states} states of"
                f" {self.num_channels} channels side by side; got {states.shape}."
            )
        earlier = states[..., : -self.num_channels]
        told = {} if is_first is None else {"is_first": is_first}
        after = self.network(noise, self.newest(states), earlier, **told)
        return jnp.concatenate([states[..., self.num_channels :], after], axis=-1)

    def newest(self, states: jax.Array) -> jax.Array:
        """The last state `[..., *space, channel]` of states side by side."""
        return states[..., -self.num_channels :]


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
