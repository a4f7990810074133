"""A forecast of any length, whose compiled program does not know how many steps it has.

A rollout is of one member: `step(model, key, state) -> state` in a loop whose numbers
of steps are data. 60 and 600 steps are one program, compiled once; only how many leads
are kept is part of it. What is seen of a state (`diagnose`) is computed before anything
is kept, or reduced over members that never exist together (`product.fold_product`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.trajectories import System, advance
from ensjax.ops.side_by_side import missing_places


class Step(Protocol):
    """One step of one member; hashable and compared by value.

    A step that remembers more than the state, such as noise that is a process in time,
    has two more methods: `begin(key, state) -> carried`, with the key of the member,
    and `state_of(carried) -> state`. It is then called with what is carried, and
    returns it. A step with a method `numbered(model, key, carried, number)` is called
    by it, with the number of steps since the start. One with a true `takes_missing` may
    begin at a state that holds NaN.
    """

    def __call__(self, model: Any, key: jax.Array, state: Any) -> Any:
        """The next state, of the parameters, a key of its own, and the state."""


class Carried(NamedTuple):
    """What a `NetworkStep` carries that remembers more than the state.

    Attributes:
        state: `[*space, channel]`.
        process: of the noise, or None.
        is_missing: where the start is NaN, `[*space, channel]`, or None.
    """

    state: Any
    process: Any = None
    is_missing: Any = None


@dataclasses.dataclass(frozen=True)
class NetworkStep:
    """A step by a network, `network(noise, state) -> next state`.

    A network with a true `flags_first_step` is told `is_first`; a step on its own, as
    in a cycle of breeding, is one from an analysis.

    Attributes:
        graph: of the ensemble that it is of; the model is then a row of its `state`.
        noise: `noise(key, shape of the state) -> array`, such as `train.WhiteNoise(4)`,
            drawn anew in every step; or a process in time, such as `SphericalNoise`,
            with `init(key)`, `step(process, key)` and `to_grid(process)`, which a
            member remembers: the i-th step has what its `of_steps` gives as the i-th.
            None where the network has no noise.
        fill: what a missing value of the start is taken for, as `RolloutLoss` and
            `VariationalLoss` have it: where the start is NaN, the network is given
            `fill` at every step. What it says at such a place is left as it is, though
            no training has taught it to say anything there. None: a start has no NaN.

    Raises:
        TypeError: for noise with `of_steps` that is no such process: a forecast could
            not go on with it.
        ValueError: if `fill` is not finite.
    """

    graph: Any
    noise: Callable[[jax.Array, tuple[int, ...]], Any] | None = None
    fill: float | None = None

    def __post_init__(self):
        lacking = [x for x in ("init", "step", "to_grid") if not hasattr(self.noise, x)]
        if self._remembers and lacking:
            raise TypeError(
                f"{type(self.noise).__name__} has of_steps, so that it is a process in"
                f" time, and a forecast goes on with its {', '.join(lacking)}, which it"
                " lacks."
            )
        if self.fill is not None and not math.isfinite(self.fill):
            raise ValueError(f"fill must be finite, or None; got {self.fill}.")

    def __call__(self, model: Any, key: jax.Array, state: Any) -> Any:
        return self.numbered(model, key, state, 0)

    def numbered(self, model: Any, key: jax.Array, carried: Any, number: Any) -> Any:
        """The next state, or what is carried, of one so many steps after the start."""
        network = self.graph.merge(model, train=False)
        is_first = {}
        if getattr(network, "flags_first_step", False):
            is_first = {"is_first": number == 0}
        if not self._carries_more:
            noise = None if self.noise is None else self.noise(key, carried.shape)
            return network(noise, carried, **is_first)
        state, process, is_missing = carried
        if self._remembers:
            process = jnp.where(number > 0, self.noise.step(process, key), process)
            noise = self.noise.to_grid(process)
        else:
            noise = None if self.noise is None else self.noise(key, state.shape)
        if self.fill is not None:
            places = missing_places(is_missing, getattr(network, "num_states", 1))
            state = jnp.where(places, self.fill, state)
        return Carried(network(noise, state, **is_first), process, is_missing)

    def begin(self, key: jax.Array, state: Any) -> Any:
        """What is carried from step to step; the key is of the member."""
        if not self._carries_more:
            return state
        process = None
        if self._remembers:
            process = self.noise.init(jax.random.fold_in(key, 0))
        is_missing = None if self.fill is None else jnp.isnan(state)
        return Carried(state, process, is_missing)

    def state_of(self, carried: Any) -> Any:
        """The state `[*space, channel]` of what is carried."""
        return carried.state if self._carries_more else carried

    @property
    def takes_missing(self) -> bool:
        """Whether a start may hold NaN."""
        return self.fill is not None

    @property
    def _carries_more(self):
        return self._remembers or self.fill is not None

    @property
    def _remembers(self):
        return hasattr(self.noise, "of_steps")


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

    def begin(self, key: jax.Array, state: Any) -> Any:
        """What the step carries at the start: the state, or more (see `Step`)."""
        return self.step.begin(key, state) if hasattr(self.step, "begin") else state

    def see(self, carried: Any) -> Any:
        """What is seen of the state in what the step carries."""
        remembers = hasattr(self.step, "state_of")
        return self.diagnose(self.step.state_of(carried) if remembers else carried)

    def onward(
        self, model: Any, key: jax.Array, carried: Any, first: Any, num_steps: Any
    ) -> Any:
        """What is carried `num_steps` later.

        Args:
            model: of the step.
            key: of the member. Step i has `fold_in(key, i)`, i from 0 at the start.
            carried: of `begin`, or after `first` steps.
            first, num_steps: integers, may be traced.
        """

        def step(number, carried):
            own = jax.random.fold_in(key, number)
            if hasattr(self.step, "numbered"):
                return self.step.numbered(model, own, carried, number)
            return self.step(model, own, carried)

        return jax.lax.fori_loop(first, first + num_steps, step, carried)

    def __call__(
        self, model: Any, key: jax.Array, state: Any, lead_steps: jax.Array
    ) -> Any:
        """What is seen of one member at each lead, leaves `[lead, ...]`.

        Args:
            model: of the step.
            key: of the member.
            state: where it starts.
            lead_steps: rising numbers of steps from there, int `[lead]`; 0 is the start
                itself. They may be traced, and are then not checked.

        Raises:
            ValueError, TypeError: as `checked_leads`.
        """
        if not isinstance(lead_steps, jax.core.Tracer):
            lead_steps = checked_leads(lead_steps)

        def to_next(carry, length):
            number, carried = carry
            carried = self.onward(model, key, carried, number, length)
            return (number + length, carried), self.see(carried)

        begin = (jnp.int32(0), self.begin(key, state))
        return jax.lax.scan(to_next, begin, lead_lengths(lead_steps))[1]


def one_step(step: Step, model: Any, key: jax.Array, state: Any) -> Any:
    """The state one step after `state`, whatever the step carries."""
    rollout = Rollout(step)
    return rollout.see(step(model, key, rollout.begin(key, state)))


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
