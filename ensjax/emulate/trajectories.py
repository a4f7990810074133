"""Many trajectories of a simulator as one program, and twin ensembles made of them.

A simulator is a `System`: how one state starts, moves by a step, and is seen. All that
is done with thousands of them goes through `run_trajectories`, which maps a function of
one trajectory and gives it the key of its id.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.archive import Archive
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import fetch

# Folded into a case's key, one for each thing that is drawn.
_START, _ANALYSIS, _MEMBER = 0, 1, 2


class System(Protocol):
    """A simulator; hashable and compared by value, such as a frozen dataclass.

    Attributes:
        name: in words, for the archive's `source`.
        step_length: of a step, in the system's own time.
        variable: names of what `observe` returns.
    """

    name: str
    step_length: float
    variable: Sequence[str]

    @property
    def space(self) -> Mapping[str, np.ndarray]:
        """Coordinates of the axes behind the variable, by name."""

    def start(self, key: jax.Array) -> Any:
        """A random state, any pytree, from which a spin-up reaches the climate."""

    def step(self, state: Any) -> Any:
        """The state one step later."""

    def perturb(self, state: Any, key: jax.Array, scale: Any) -> Any:
        """The state with noise of a standard deviation `scale`, in its own units."""

    def observe(self, state: Any) -> jax.Array:
        """What an archive holds of a state, `[variable, *space]`."""


def advance(system: System, state: Any, num_steps: Any) -> Any:
    """The state `num_steps` later; the number may be traced."""
    return jax.lax.fori_loop(0, num_steps, lambda _, x: system.step(x), state)


def forecast(system: System, state: Any, lead_steps: Sequence[int]) -> jax.Array:
    """What is seen of one trajectory at each lead, `[lead, variable, *space]`.

    Args:
        system: the simulator.
        state: where the trajectory starts.
        lead_steps: rising numbers of steps from there; 0 is the start itself.
    """
    lengths = np.diff(np.asarray(lead_steps), prepend=0)

    def to_next(state, length):
        state = advance(system, state, length)
        return state, system.observe(state)

    return jax.lax.scan(to_next, state, jnp.asarray(lengths))[1]


def run_trajectories(
    fn: Callable[..., Any],
    ids: Any,
    *,
    seed: int,
    stacked: tuple[Any, ...] = (),
    shared: tuple[Any, ...] = (),
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> Any:
    """`fn` of every trajectory, in one compiled program, split over the devices.

    Args:
        fn: of one trajectory, `fn(key, *rows, *shared) -> pytree`, where a row is one
            of `stacked`. It must be hashable; define it once and reuse it, since every
            new function object compiles again.
        ids: integers `[trajectory]`. A trajectory's key depends on its id and on the
            seed alone, never on the others or on the devices.
        seed: of the run.
        stacked: further arguments of their own, leaves `[trajectory, ...]`.
        shared: arguments that all have in common.
        mesh, block: as in `map_members`.

    Returns:
        The outputs, leaves `[trajectory, ...]`, on the devices.

    Raises:
        ValueError: if stacks disagree on the number of trajectories.
    """
    kinds = ("member",) * (1 + len(stacked)) + ("shared",) * (1 + len(shared))
    run = map_members(
        _Keyed(fn, len(stacked)), kinds=kinds, out="member", mesh=mesh, block=block
    )
    return run(jnp.asarray(ids), *stacked, jnp.asarray(seed), *shared)


@dataclasses.dataclass(frozen=True)
class _Keyed:
    fn: Callable[..., Any]
    num_stacked: int

    def __call__(self, member_id, *args):
        rows, (seed, *shared) = args[: self.num_stacked], args[self.num_stacked :]
        return self.fn(member_key(seed, "sample", member_id), *rows, *shared)


def run_climate(
    system: System,
    *,
    num_trajectories: int,
    num_outputs: int,
    steps_per_output: int,
    spin_up_steps: int,
    seed: int,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> np.ndarray:
    """Long free runs, `[trajectory, output, variable, *space]`.

    Raises:
        ValueError: if a number is not positive.
    """
    _check_positive(
        num_trajectories=num_trajectories,
        num_outputs=num_outputs,
        steps_per_output=steps_per_output,
    )
    leads = steps_per_output * np.arange(1, num_outputs + 1)
    free = _FreeRun(system, spin_up_steps, tuple(leads.tolist()))
    ids = np.arange(num_trajectories)
    return fetch(run_trajectories(free, ids, seed=seed, mesh=mesh, block=block))


@dataclasses.dataclass(frozen=True)
class _FreeRun:
    system: System
    spin_up_steps: int
    lead_steps: tuple[int, ...]

    def __call__(self, key):
        state = self.system.start(jax.random.fold_in(key, _START))
        leads = [self.spin_up_steps + lead for lead in self.lead_steps]
        return forecast(self.system, state, leads)


def climate_states(
    system: System,
    runs: Any,
    *,
    spin_up_steps: int,
    seed: int,
    num_states: int = 1,
    gap_steps: int = 0,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> Any:
    """States of the climate, from free runs: leaves `[run, state, ...]`.

    Args:
        system: the simulator.
        runs: ids `[run]`; each starts from noise of its own.
        spin_up_steps: from `system.start` to the first state.
        seed: of the run.
        num_states, gap_steps: states of each run, and steps from one to the next.
        mesh, block: as in `map_members`.
    """
    run = _Climate(system, spin_up_steps, num_states, gap_steps)
    return run_trajectories(run, runs, seed=seed, mesh=mesh, block=block)


@dataclasses.dataclass(frozen=True)
class _Climate:
    system: System
    spin_up_steps: int
    num_states: int
    gap_steps: int

    def __call__(self, key):
        state = self.system.start(jax.random.fold_in(key, _START))
        # One loop, for a step may be costly to compile.
        lengths = [self.spin_up_steps] + [self.gap_steps] * (self.num_states - 1)

        def to_next(state, length):
            state = advance(self.system, state, length)
            return state, state

        return jax.lax.scan(to_next, state, jnp.asarray(lengths))[1]


def twin_archive(
    system: System,
    *,
    num_cases: int,
    num_members: int,
    lead_steps: Sequence[int],
    spin_up_steps: int,
    analysis_noise: float,
    member_noise: float,
    seed: int,
    first_case: int = 0,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> Archive:
    """A perfect-model ensemble: members start near an analysis, near the truth.

    For each case the truth is a state of the climate, reached by a spin-up of its own;
    analysis = truth + analysis noise, and each member = analysis + member noise. With
    equal noise the truth is as far from the analysis as the members are.

    Args:
        system: the simulator.
        num_cases, num_members: how many starts, and members of each.
        lead_steps: rising numbers of steps from the start at which values are kept.
        spin_up_steps: from `system.start` to the truth's state.
        analysis_noise, member_noise: standard deviations, in units of the state.
        seed: of the run.
        first_case: number of the first case. What a case and its members draw depends
            on seed and number alone, so parts whose numbers differ are independent. (A
            chaotic system makes another state of rounding: bits are the same only where
            the program is, or with a fixed block.)
        mesh, block: as in `map_members`.

    Returns:
        An archive whose cases are their numbers and whose leads are in the system's
        time, with the truth.

    Raises:
        ValueError: if a number is not positive, a noise is negative, or leads do not
            rise.
    """
    _check_positive(num_cases=num_cases, num_members=num_members)
    check_twins(lead_steps, analysis_noise, member_noise)
    cases = first_case + np.arange(num_cases)
    states = climate_states(
        system, cases, spin_up_steps=spin_up_steps, seed=seed, mesh=mesh, block=block
    )
    values, truth = forecast_twins(
        system,
        jax.tree.map(lambda x: x[:, 0], fetch(states)),
        cases,
        num_members=num_members,
        lead_steps=lead_steps,
        analysis_noise=analysis_noise,
        member_noise=member_noise,
        seed=seed,
        mesh=mesh,
        block=block,
    )
    return Archive(
        values,
        case=cases,
        lead=np.asarray(lead_steps) * system.step_length,
        variable=system.variable,
        space=system.space,
        truth=truth,
        rows=cases,
        source=f"{system.name}, seed {seed}",
    )


def check_twins(
    lead_steps: Sequence[int], analysis_noise: float, member_noise: float
) -> None:
    """Raises `ValueError` for leads or noises that `forecast_twins` cannot use."""
    leads = tuple(lead_steps)
    if not leads or leads[0] < 0 or any(a >= b for a, b in zip(leads, leads[1:])):
        raise ValueError(f"lead_steps must rise from 0 or above; got {leads}.")
    for name, value in (("analysis", analysis_noise), ("member", member_noise)):
        if value < 0:
            raise ValueError(f"{name}_noise must not be negative; got {value}.")


def forecast_twins(
    system: System,
    states: Any,
    cases: np.ndarray,
    *,
    num_members: int,
    lead_steps: Sequence[int],
    analysis_noise: float,
    member_noise: float,
    seed: int,
    settle_steps: int = 0,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of members near given states, and what comes of the states themselves.

    Args:
        system: the simulator.
        states: the truth when noise is added, leaves `[case, ...]`.
        cases: numbers `[case]`, from which the noise is drawn.
        num_members, lead_steps, analysis_noise, member_noise, seed, mesh, block: as in
            `twin_archive`.
        settle_steps: the forecast starts so many steps after noise was added, when the
            system has adjusted to it.

    Returns:
        Members `[case, member, lead, variable, *space]` and truth `[case, lead,
        variable, *space]`, NumPy.
    """
    leads = tuple(settle_steps + int(lead) for lead in lead_steps)
    rows = 1 + num_members  # of a case: the truth, then its members
    found = run_trajectories(
        _Twin(system, leads),
        np.repeat(cases, rows),
        seed=seed,
        stacked=(
            jnp.tile(jnp.arange(rows) - 1, len(cases)),
            jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), states),
        ),
        shared=(jnp.float32(analysis_noise), jnp.float32(member_noise)),
        mesh=mesh,
        block=block,
    )
    found = fetch(found)
    found = found.reshape(len(cases), rows, *found.shape[1:])
    return found[:, 1:], found[:, 0]


@dataclasses.dataclass(frozen=True)
class _Twin:
    """What one member of one case forecasts, or what comes true where its id is -1.

    One function of both, since a step of the system may be costly to compile.
    """

    system: System
    lead_steps: tuple[int, ...]  # from where the noise is added

    def __call__(self, key, member_id, truth, analysis_noise, member_noise):
        own = jax.random.fold_in(key, _ANALYSIS)
        analysis = self.system.perturb(truth, own, analysis_noise)
        own = jax.random.fold_in(jax.random.fold_in(key, _MEMBER), member_id)
        member = self.system.perturb(analysis, own, member_noise)
        state = jax.tree.map(lambda x, y: jnp.where(member_id < 0, x, y), truth, member)
        return forecast(self.system, state, self.lead_steps)


def _check_positive(**numbers):
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
