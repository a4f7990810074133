"""A simulator that is imperfect in a known way: Lorenz-96 with its fast scale fitted.

What the fast variables of the two-scale system do to the slow ones is replaced by a
line in the slow variable and red noise about it, both fitted to the system. It is to
the two-scale system what a physical ensemble with stochastic physics is to the air.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.lorenz96 import (
    TwoScaleLorenz96,
    lorenz96_tendency,
    runge_kutta,
)
from ensjax.emulate.trajectories import climate_states, forecast, run_trajectories
from ensjax.mesh import fetch

# Folded into the key of a forecast.
_FIRST_NOISE, _STEPS = 0, 1


@dataclasses.dataclass(frozen=True)
class ClosureLorenz96:
    """The slow scale alone, with a fitted line and red noise for the fast one.

        dx_k/dt = (x_{k+1} - x_{k-2}) x_{k-1} - x_k + F - (offset + slope x_k) + e_k
        e_k(t + dt) = memory e_k(t) + sqrt(1 - memory^2) noise_sd z,   z ~ N(0, 1)

    A state is `(x [site], e [site], key, number of the step)`; the noise of a step
    depends on the key and on that number. `begin` makes one of `x`.

    Attributes:
        num_sites: on the ring, at least 4.
        forcing: `F`.
        offset, slope: of the line, as `fit_closure` finds them.
        noise_sd: of `e`, in units of the tendency; 0 for a deterministic simulator.
        memory: of `e` from one step to the next, in [0, 1).
        step_length: in time units.

    Source: Wilks 2005, QJRMS 131, equations 3 to 5; Arnold et al. 2013, Phil. Trans. R.
    Soc. A 371, section 3.
    """

    num_sites: int = 36
    forcing: float = 10.0
    offset: float = 0.0
    slope: float = 0.0
    noise_sd: float = 0.0
    memory: float = 0.0
    step_length: float = 0.05
    variable: tuple[str, ...] = ("x",)

    def __post_init__(self):
        if self.num_sites < 4:
            raise ValueError(
                f"num_sites must be at least 4, since a site meets three others; got"
                f" {self.num_sites}."
            )
        if not self.step_length > 0:
            raise ValueError(f"step_length must be positive; got {self.step_length}.")
        if not self.noise_sd >= 0:
            raise ValueError(f"noise_sd must not be negative; got {self.noise_sd}.")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory must be in [0, 1); got {self.memory}.")

    @property
    def name(self) -> str:
        return (
            f"Lorenz-96 with a closure, {self.num_sites} sites, F = {self.forcing:g},"
            f" line {self.offset:.3g} + {self.slope:.3g} x, noise {self.noise_sd:.3g}"
        )

    @property
    def space(self) -> dict[str, np.ndarray]:
        return {"site": np.arange(self.num_sites)}

    def start(self, key: jax.Array) -> Any:
        own, noise = jax.random.split(key)
        return self.begin(2.3 + 3.6 * jax.random.normal(own, (self.num_sites,)), noise)

    def begin(self, x: jax.Array, key: jax.Array) -> Any:
        """The state of a forecast from `x [site]`; its noise is that of its climate."""
        first = jax.random.fold_in(key, _FIRST_NOISE)
        e = self.noise_sd * jax.random.normal(first, (self.num_sites,))
        return x, e, jax.random.fold_in(key, _STEPS), jnp.int32(0)

    def step(self, state: Any) -> Any:
        x, e, key, number = state
        closed = self.forcing - self.offset
        x = runge_kutta(
            lambda x: lorenz96_tendency(x, closed) - self.slope * x + e,
            x,
            self.step_length,
        )
        draw = jax.random.normal(jax.random.fold_in(key, number), e.shape)
        e = self.memory * e + jnp.sqrt(1 - self.memory**2) * self.noise_sd * draw
        return x, e, key, number + 1

    def perturb(self, state: Any, key: jax.Array, scale: Any) -> Any:
        x, *rest = state
        return x + scale * jax.random.normal(key, x.shape), *rest

    def observe(self, state: Any) -> jax.Array:
        return state[0][None]


def fit_closure(
    system: TwoScaleLorenz96,
    *,
    step_length: float = 0.05,
    num_trajectories: int = 16,
    num_states: int = 200,
    spin_up_steps: int = 2_000,
    seed: int = 0,
    mesh: Any = None,
) -> ClosureLorenz96:
    """The closure of a two-scale system, by least squares on its own states.

    The pull of the fast variables on a site, `(h c / b) sum_j y_j`, is regressed on the
    site's x; what is left gives the noise's deviation and its memory over one step.

    Args:
        system: whose fast scale is replaced.
        step_length: of the closure, a whole number of the system's steps.
        num_trajectories, num_states: independent runs, and states of each, a step of
            the closure apart.
        spin_up_steps: of the system, to its climate.
        seed: of the runs.
        mesh: as in `map_members`.

    Raises:
        ValueError: if the step is no whole number of the system's, or there are fewer
            than 3 states.

    Source: Wilks 2005, QJRMS 131, section 2.
    """
    gap = round(step_length / system.step_length)
    if gap < 1 or abs(gap * system.step_length - step_length) > 1e-9 * step_length:
        raise ValueError(
            f"step_length must be a whole number of the system's {system.step_length};"
            f" got {step_length}."
        )
    if num_states < 3:
        raise ValueError(f"num_states must be at least 3; got {num_states}.")
    states = climate_states(
        system,
        np.arange(num_trajectories),
        spin_up_steps=spin_up_steps,
        seed=seed,
        num_states=num_states,
        gap_steps=gap,
        mesh=mesh,
    )
    x, y = (np.asarray(part, np.float64) for part in fetch(states))
    strength = system.coupling * system.time_ratio / system.amplitude_ratio
    pull = strength * y.reshape(*x.shape, system.num_fast).sum(axis=-1)
    slope, offset = np.polyfit(x.ravel(), pull.ravel(), 1)
    left = pull - offset - slope * x  # [run, state, site]
    variance = np.mean(left**2)
    memory = np.mean(left[:, 1:] * left[:, :-1]) / variance
    return ClosureLorenz96(
        num_sites=system.num_sites,
        forcing=system.forcing,
        offset=float(offset),
        slope=float(slope),
        noise_sd=float(np.sqrt(variance)),
        memory=float(np.clip(memory, 0.0, 1 - 1e-6)),
        step_length=step_length,
    )


def closure_forecasts(
    system: ClosureLorenz96,
    analyses: Any,
    *,
    lead_steps: Any,
    seed: int,
    mesh: Any = None,
    block: int | str | None = "auto",
) -> np.ndarray:
    """Forecasts of every row of analyses, `[row, lead, site]`, NumPy.

    Args:
        system: the simulator.
        analyses: `[row, site]`, such as all members of all cases.
        lead_steps: rising numbers of steps at which values are kept.
        seed: of the noise; that of a row follows its number.
        mesh, block: as in `map_members`.
    """
    run = _FromAnalysis(system, tuple(int(lead) for lead in lead_steps))
    rows = np.arange(len(analyses))
    found = run_trajectories(
        run, rows, seed=seed, stacked=(jnp.asarray(analyses),), mesh=mesh, block=block
    )
    return fetch(found)


@dataclasses.dataclass(frozen=True)
class _FromAnalysis:
    system: ClosureLorenz96
    lead_steps: tuple[int, ...]

    def __call__(self, key, x):
        return forecast(self.system, self.system.begin(x, key), self.lead_steps)[:, 0]
