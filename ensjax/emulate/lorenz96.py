"""The Lorenz-96 systems of one and of two scales, and the archive of the SEEDS tests.

Lorenz, E. N., 1996: Predictability - a problem partly solved, Proc. ECMWF Seminar on
Predictability; equations (1) and (2)-(3).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.archive import Archive
from ensjax.emulate.trajectories import twin_archive


def lorenz96_tendency(x: jax.Array, forcing: Any) -> jax.Array:
    """`dx_k/dt = (x_{k+1} - x_{k-2}) x_{k-1} - x_k + F` on a ring, `[..., site]`."""
    advection = (jnp.roll(x, -1, -1) - jnp.roll(x, 2, -1)) * jnp.roll(x, 1, -1)
    return advection - x + forcing


def two_scale_tendency(
    x: jax.Array,
    y: jax.Array,
    *,
    forcing: Any,
    coupling: Any = 1.0,
    amplitude_ratio: Any = 10.0,
    time_ratio: Any = 10.0,
) -> tuple[jax.Array, jax.Array]:
    """Tendencies of slow `x [..., site]` and of fast `y [..., site * fast]`.

        dx_k/dt = (x_{k+1} - x_{k-2}) x_{k-1} - x_k + F - (h c / b) sum_j y_{j,k}
        dy_j/dt = c b (y_{j-1} - y_{j+2}) y_{j+1} - c y_j + (h c / b) x_k

    with `h` the coupling, `b` the ratio of amplitudes and `c` that of time scales. The
    fast variables of all sites are one ring, those of a site side by side.
    """
    fast = y.shape[-1] // x.shape[-1]
    strength = coupling * time_ratio / amplitude_ratio
    pull = y.reshape(*x.shape, fast).sum(axis=-1)
    dx = lorenz96_tendency(x, forcing) - strength * pull
    advection = (jnp.roll(y, 1, -1) - jnp.roll(y, -2, -1)) * jnp.roll(y, -1, -1)
    dy = time_ratio * (amplitude_ratio * advection - y)
    return dx, dy + strength * jnp.repeat(x, fast, axis=-1)


def runge_kutta(tendency: Callable[[Any], Any], state: Any, length: Any) -> Any:
    """One step of the classical fourth-order Runge-Kutta method, for any pytree."""

    def moved(slope, part):
        return jax.tree.map(lambda x, dx: x + part * length * dx, state, slope)

    first = tendency(state)
    second = tendency(moved(first, 0.5))
    third = tendency(moved(second, 0.5))
    fourth = tendency(moved(third, 1.0))
    return jax.tree.map(
        lambda x, a, b, c, d: x + (length / 6) * (a + 2 * b + 2 * c + d),
        state,
        first,
        second,
        third,
        fourth,
    )


@dataclasses.dataclass(frozen=True)
class Lorenz96:
    """One scale; a state is `x [site]`. A time unit is about 5 days of weather.

    Attributes:
        num_sites: on the ring, at least 4.
        forcing: `F`; chaotic from about 4.5 on, 8 as usual.
        step_length: in time units.
    """

    num_sites: int = 40
    forcing: float = 8.0
    step_length: float = 0.05
    variable: tuple[str, ...] = ("x",)

    def __post_init__(self):
        _check_ring(self.num_sites, self.step_length)

    @property
    def name(self) -> str:
        return f"Lorenz-96, {self.num_sites} sites, F = {self.forcing:g}"

    @property
    def space(self) -> dict[str, np.ndarray]:
        return {"site": np.arange(self.num_sites)}

    def start(self, key: jax.Array) -> jax.Array:
        """About the climate of F = 8 (mean 2.3, deviation 3.6), without its waves."""
        return 2.3 + 3.6 * jax.random.normal(key, (self.num_sites,))

    def step(self, state: jax.Array) -> jax.Array:
        return runge_kutta(
            lambda x: lorenz96_tendency(x, self.forcing), state, self.step_length
        )

    def perturb(self, state: jax.Array, key: jax.Array, scale: Any) -> jax.Array:
        return state + scale * jax.random.normal(key, state.shape)

    def observe(self, state: jax.Array) -> jax.Array:
        return state[None]


@dataclasses.dataclass(frozen=True)
class TwoScaleLorenz96:
    """Two scales, of which archives hold the slow one; a state is `(x, y)`.

    To whoever sees `x [site]` alone, `y [site * fast]` is noise that a model of the
    slow scale must draw.

    Attributes:
        num_sites: on the slow ring, at least 4.
        num_fast: fast variables of each site.
        forcing, coupling: `F` and `h`.
        amplitude_ratio, time_ratio: `b` and `c`.
        step_length: in time units; the fast scale needs one that is short.
    """

    num_sites: int = 36
    num_fast: int = 10
    forcing: float = 10.0
    coupling: float = 1.0
    amplitude_ratio: float = 10.0
    time_ratio: float = 10.0
    step_length: float = 0.005
    variable: tuple[str, ...] = ("x",)

    def __post_init__(self):
        _check_ring(self.num_sites, self.step_length)
        if self.num_fast < 1:
            raise ValueError(f"num_fast must be at least 1; got {self.num_fast}.")

    @property
    def name(self) -> str:
        return (
            f"two-scale Lorenz-96, {self.num_sites} sites x {self.num_fast}, F ="
            f" {self.forcing:g}, h = {self.coupling:g}, b = {self.amplitude_ratio:g},"
            f" c = {self.time_ratio:g}"
        )

    @property
    def space(self) -> dict[str, np.ndarray]:
        return {"site": np.arange(self.num_sites)}

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        slow, fast = (jax.random.fold_in(key, i) for i in range(2))
        x = 2.3 + 3.6 * jax.random.normal(slow, (self.num_sites,))
        y = jax.random.normal(fast, (self.num_sites * self.num_fast,))
        return x, y / self.amplitude_ratio

    def step(self, state):
        def tendency(state):
            return two_scale_tendency(
                *state,
                forcing=self.forcing,
                coupling=self.coupling,
                amplitude_ratio=self.amplitude_ratio,
                time_ratio=self.time_ratio,
            )

        return runge_kutta(tendency, state, self.step_length)

    def perturb(self, state, key, scale):
        """Noise of `scale` on the slow variables, of `scale / b` on the fast ones."""
        x, y = state
        slow, fast = (jax.random.fold_in(key, i) for i in range(2))
        return (
            x + scale * jax.random.normal(slow, x.shape),
            y + scale / self.amplitude_ratio * jax.random.normal(fast, y.shape),
        )

    def observe(self, state):
        return state[0][None]


def _check_ring(num_sites, step_length):
    if num_sites < 4:
        raise ValueError(
            f"num_sites must be at least 4, since a site meets three others; got"
            f" {num_sites}."
        )
    if not step_length > 0:
        raise ValueError(f"step_length must be positive; got {step_length}.")


def lorenz96_archive(
    *,
    num_cases: int = 10_000,
    num_members: int = 5,
    first_case: int = 0,
    seed: int = 0,
    system: Lorenz96 | TwoScaleLorenz96 | None = None,
    lead_steps: Sequence[int] = (40,),
    spin_up_steps: int = 400,
    analysis_noise: float = 0.3,
    member_noise: float = 0.3,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> Archive:
    """Ensembles of Lorenz-96 two time units ahead; see `twin_archive`.

    The defaults are the training archive of the SEEDS tests; `num_cases=200,
    num_members=31, first_case=10_000` is the one to test on, which shares no case.

    Args:
        num_cases, num_members, first_case, seed: as in `twin_archive`.
        system: by default `Lorenz96()`, 40 sites and F = 8.
        lead_steps: of 0.05 time units in `Lorenz96()`, and of 0.005 in two scales.
        spin_up_steps: 20 time units; from noise the climate is reached in about 5.
        analysis_noise, member_noise: a twelfth of the climate's deviation.
        mesh, block: as in `map_members`.

    Returns:
        Values `[case, member, lead, 1, site]`, truth `[case, lead, 1, site]`.

    Example:
        >>> lorenz96_archive(num_cases=3, num_members=2, spin_up_steps=10)
        Archive(case: 3, member: 2, lead: 1, variable: 1, site: 40; x; with truth)
    """
    return twin_archive(
        Lorenz96() if system is None else system,
        num_cases=num_cases,
        num_members=num_members,
        first_case=first_case,
        lead_steps=lead_steps,
        spin_up_steps=spin_up_steps,
        analysis_noise=analysis_noise,
        member_noise=member_noise,
        seed=seed,
        mesh=mesh,
        block=block,
    )
