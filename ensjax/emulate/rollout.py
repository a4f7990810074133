"""A forecast of any length, whose compiled program does not know how many steps it has.

A rollout is of one member: `step(model, key, state) -> state` in a loop whose numbers
of steps are data. 60 and 600 steps are one program, compiled once; only how many leads
are kept is part of it. What is seen of a state (`diagnose`) is computed before anything
is kept, or reduced over members that never exist together (`product.fold_product`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.trajectories import System, advance


class Step(Protocol):
    """One step of one member; hashable and compared by value.

    Noise that remembers, such as a process in time, is part of the state, any pytree.
    A step that also has a method `numbered(model, key, state, number)` is called by it,
    with the number of steps since the start.
    """

    def __call__(self, model: Any, key: jax.Array, state: Any) -> Any:
        """The next state, of the parameters, a key of its own, and the state."""


@dataclasses.dataclass(frozen=True)
class NetworkStep:
    """A step by a network, `network(noise, state) -> next state`.

    A network with a true `flags_first_step` is told `is_first`; a step on its own, as
    in a cycle of breeding, is one from an analysis.

    Attributes:
        graph: of the ensemble that it is of; the model is then a row of its `state`.
        noise: `noise(key, shape of the state) -> array`, such as `train.WhiteNoise(4)`,
            drawn anew in every step; None where the network has no noise.
    """

    graph: Any
    noise: Callable[[jax.Array, tuple[int, ...]], Any] | None = None

    def __call__(self, model: Any, key: jax.Array, state: jax.Array) -> jax.Array:
        return self.numbered(model, key, state, 0)

    def numbered(
        self, model: Any, key: jax.Array, state: jax.Array, number: Any
    ) -> jax.Array:
        """The next state of one that is so many steps after the start."""
        network = self.graph.merge(model, train=False)
        noise = None if self.noise is None else self.noise(key, state.shape)
        if getattr(network, "flags_first_step", False):
            return network(noise, state, is_first=number == 0)
        return network(noise, state)


@dataclasses.dataclass(frozen=True)
class SystemStep:
    """Some steps of a simulator as one of a forecast; it has no parameters.

    Attributes:
        system: which.
        num_steps: of the system in one step.
    """

    system: System
    num_steps: int = 1

    def __call__(self, model: Any, key: jax.Array, state: Any) -> Any:
        del model, key
        return advance(self.system, state, self.num_steps)


@dataclasses.dataclass(frozen=True)
class FieldsStep:
    """Some steps of a simulator whose states are seen as fields on a grid.

    Perturbations and networks have fields `[*space, channel]`, where a simulator may
    have waves; this is its step for `BredVectors` and `Rollout` of those.

    Attributes:
        system: with `fields(state)` and `from_fields(fields)`, such as `HeldSuarez`.
        num_steps: of the system in one step.
    """

    system: Any
    num_steps: int = 1

    def __call__(self, model: Any, key: jax.Array, state: jax.Array) -> jax.Array:
        del model, key
        state = advance(self.system, self.system.from_fields(state), self.num_steps)
        return self.system.fields(state)


def _as_it_is(state: Any) -> Any:
    return state


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How one member goes from lead to lead, and what is seen of it there.

    Attributes:
        step: such as `NetworkStep(ensemble.graph)`.
        diagnose: `diagnose(state) -> values`, any pytree; by default the state itself.
            A dict names several diagnostics. Define it once: another function compiles
            anew.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def decay(rate, key, state):
        ...     return rate * state
        >>> rollout = Rollout(decay)
        >>> leads = jnp.array([1, 2, 10])
        >>> [float(x) for x in rollout(0.5, jax.random.key(0), jnp.ones(()), leads)]
        [0.5, 0.25, 0.0009765625]
    """

    step: Step
    diagnose: Callable[[Any], Any] = _as_it_is

    def onward(
        self, model: Any, key: jax.Array, state: Any, first: Any, num_steps: Any
    ) -> Any:
        """The state `num_steps` later.

        Args:
            model: of the step.
            key: of the member. Step i has `fold_in(key, i)`, i from 0 at the start.
            state: after `first` steps.
            first, num_steps: integers, may be traced.
        """

        def step(number, state):
            own = jax.random.fold_in(key, number)
            if hasattr(self.step, "numbered"):
                return self.step.numbered(model, own, state, number)
            return self.step(model, own, state)

        return jax.lax.fori_loop(first, first + num_steps, step, state)

    def __call__(
        self, model: Any, key: jax.Array, state: Any, lead_steps: jax.Array
    ) -> Any:
        """What is seen of one member at each lead, leaves `[lead, ...]`.

        Args:
            model: of the step.
            key: of the member.
            state: where it starts.
            lead_steps: rising numbers of steps from there, int `[lead]`; 0 is the start
                itself. They may be traced; see `checked_leads`.
        """

        def to_next(carry, length):
            number, state = carry
            state = self.onward(model, key, state, number, length)
            return (number + length, state), self.diagnose(state)

        begin = (jnp.int32(0), state)
        return jax.lax.scan(to_next, begin, lead_lengths(lead_steps))[1]


def lead_lengths(lead_steps: jax.Array) -> jax.Array:
    """Steps from each lead to the next, int32 `[lead]`; the first from the start."""
    return jnp.diff(jnp.asarray(lead_steps, jnp.int32), prepend=jnp.int32(0))


def checked_leads(lead_steps: Sequence[int]) -> np.ndarray:
    """Leads as int32 `[lead]`.

    Raises:
        ValueError: if there are none, or they do not rise from 0 or above.
        TypeError: if they are no integers.
    """
    leads = np.asarray(lead_steps)
    if leads.ndim != 1 or not leads.size:
        raise ValueError(
            f"lead_steps must be [lead], one or more; got shape {leads.shape}."
        )
    if not np.issubdtype(leads.dtype, np.integer):
        raise TypeError(f"lead_steps must be integers; got {leads.dtype}.")
    if leads[0] < 0 or np.any(np.diff(leads) <= 0):
        raise ValueError(
            f"lead_steps must rise from 0 or above; got {tuple(leads.tolist())}."
        )
    return leads.astype(np.int32)
