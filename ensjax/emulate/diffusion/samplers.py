"""Samplers: from noise to one sample, by a fixed number of calls of a denoiser.

Each is called as `sampler(denoise, key, shape)` with `denoise(x, sigma) -> x0` of one
sample, and is hashable: its settings are part of the compiled program. They compute in
float32. The last step goes to noise level 0 and is the denoiser's output itself, so
that nothing is divided by 0.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.emulate.diffusion.noise import VarianceExploding, check_levels

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that is added before each step and taken away by it.

        s' = s (1 + min(amount / N, sqrt(2) - 1)),  x' = x + sqrt(s'^2 - s^2) S Z

    Attributes:
        amount: S_churn; 0 adds nothing.
        low, high: levels between which it is added.
        inflation: S, of the standard deviation of the noise.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2; with an inflation of 1.05
    in Price et al. 2025, Nature 637 (GenCast).
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0

    def __post_init__(self):
        if self.amount < 0 or not self.inflation > 0 or self.low > self.high:
            raise ValueError(
                "amount must be at least 0, inflation above 0 and low at most high;"
                f" got {self}."
            )

    def __call__(self, key: Any, x: Any, sigma: Any, num_levels: int) -> Any:
        """The noisier sample and its level."""
        if not self.amount:
            return x, sigma
        most = min(self.amount / num_levels, math.sqrt(2) - 1)
        is_within = (sigma >= self.low) & (sigma <= self.high)
        raised = sigma * jnp.where(is_within, 1 + most, 1.0)
        # s'^2 - s^2 without cancellation.
        added = sigma * jnp.where(is_within, math.sqrt(most * (2 + most)), 0.0)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + self.inflation * added * noise, raised


@dataclasses.dataclass(frozen=True)
class _FlowSolver:
    """A solver of the probability flow: `step` between levels, last the denoiser."""

    levels: tuple[float, ...]
    churn: Churn = Churn()

    calls_per_step = 1  # of the denoiser; the last step is one call

    def __post_init__(self):
        check_levels(self.levels)

    @property
    def num_calls(self) -> int:
        """Calls of the denoiser for one sample."""
        return self.calls_per_step * (len(self.levels) - 1) + 1

    def __call__(self, denoise: Denoise, key: Any, shape: Sequence[int]) -> jax.Array:
        """One sample `[*shape]`, in float32."""
        levels = jnp.asarray(self.levels, jnp.float32)
        count = len(self.levels)

        def clean(x, sigma):
            return _denoised(denoise, x, sigma)

        def churned(x, number):
            key_of_step = jax.random.fold_in(key, number + 1)
            return self.churn(key_of_step, x, levels[number], count)

        def step(x, number):
            x, sigma = churned(x, number)
            return self.step(clean, x, sigma, levels[number + 1]), None

        x = _first(key, shape, levels[0])
        x, _ = jax.lax.scan(step, x, jnp.arange(count - 1))
        return clean(*churned(x, count - 1))


@dataclasses.dataclass(frozen=True)
class Euler(_FlowSolver):
    """First order, deterministic but for `churn`: N calls of the denoiser.

        x' = x + (s' - s) (x - D(x, s)) / s

    It is also how a denoiser is used that was distilled to few levels.

    Attributes:
        levels: N falling noise levels, such as `rho_levels(24)`.
        churn: noise that is added before each step.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its lines 6-8;
    the same as DDIM, Song et al. 2021, arXiv:2010.02502.
    """

    def step(self, denoise: Denoise, x: Any, sigma: Any, target: Any) -> jax.Array:
        """From noise level `sigma` to a smaller one above 0."""
        return x + (target - sigma) / sigma * (x - denoise(x, sigma))


@dataclasses.dataclass(frozen=True)
class Heun(_FlowSolver):
    """Second order, deterministic but for `churn`: 2 N - 1 calls of the denoiser.

    Attributes:
        levels: N falling noise levels, such as `rho_levels(24)`.
        churn: noise that is added before each step.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.
    """

    calls_per_step = 2

    def step(self, denoise: Denoise, x: Any, sigma: Any, target: Any) -> jax.Array:
        """From noise level `sigma` to a smaller one above 0."""
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (target - sigma) * slope
        slope_ahead = (ahead - denoise(ahead, target)) / target
        return x + (target - sigma) * (slope + slope_ahead) / 2


@dataclasses.dataclass(frozen=True)
class DPMSolver2S(_FlowSolver):
    """DPM-Solver++ of second order in single steps: 2 N - 1 calls of the denoiser.

    Exact for a denoiser that does not change along the step; the midpoint is the
    geometric mean of the two levels.

        u = r x + (1 - r) D(x, s),   x' = r^2 x + (1 - r^2) D(u, r s),
        r = sqrt(s' / s)

    Attributes:
        levels: N falling noise levels, such as `rho_levels(20)`.
        churn: noise that is added before each step, as GenCast does.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r_1 = 1/2 (alpha = 1).
    """

    calls_per_step = 2

    def step(self, denoise: Denoise, x: Any, sigma: Any, target: Any) -> jax.Array:
        """From noise level `sigma` to a smaller one above 0."""
        ratio = jnp.sqrt(target / sigma)
        x0 = denoise(x, sigma)
        middle = x0 + ratio * (x - x0)
        x0 = denoise(middle, ratio * sigma)
        return x0 + target / sigma * (x - x0)


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """The reverse stochastic equation of a VE schedule in equal steps of time.

        x' = x + g(t)^2 dt (D(x, s) - x) / s^2 + g(t) sqrt(dt) Z,  s = sigma(t)

    It ends at `last_time`, not at noise level 0: a sample keeps noise of standard
    deviation `schedule.sigma(last_time)`.

    Attributes:
        schedule: `VarianceExploding`.
        num_steps: also the number of calls of the denoiser.
        last_time: where it ends.

    Source: Song et al. 2021, arXiv:2011.13456, equation 6 and appendix E; with 600
    steps to 1e-3 in the demo of Li et al. 2024, eadk4489 (SEEDS).
    """

    schedule: VarianceExploding = VarianceExploding()
    num_steps: int = 600
    last_time: float = 1e-3

    def __post_init__(self):
        if self.num_steps < 1 or not 0 < self.last_time < 1:
            raise ValueError(
                "num_steps must be at least 1 and last_time in (0, 1); got"
                f" {self.num_steps} and {self.last_time}."
            )

    @property
    def num_calls(self) -> int:
        """Calls of the denoiser for one sample."""
        return self.num_steps

    def __call__(self, denoise: Denoise, key: Any, shape: Sequence[int]) -> jax.Array:
        """One sample `[*shape]`, in float32."""
        duration = (1 - self.last_time) / self.num_steps

        def step(x, number):
            time = 1 - number * duration
            sigma = self.schedule.sigma(time)
            diffusion = self.schedule.diffusion(time)
            drift = diffusion**2 * (_denoised(denoise, x, sigma) - x) / sigma**2
            noise = jax.random.normal(jax.random.fold_in(key, number + 1), x.shape)
            x = x + duration * drift + math.sqrt(duration) * diffusion * noise
            return x, None

        x = _first(key, shape, self.schedule.sigma(jnp.float32(1.0)))
        return jax.lax.scan(step, x, jnp.arange(self.num_steps))[0]


@dataclasses.dataclass(frozen=True)
class FewStep:
    """Denoise, add fresh noise of the next level, and again: N calls of the denoiser.

    For denoisers that jump to a sample from any of the levels (consistency models, or
    what `distillation` makes of a sampler); with others it gives means, not samples.

    Attributes:
        levels: N falling noise levels.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """

    levels: tuple[float, ...]

    def __post_init__(self):
        check_levels(self.levels)

    @property
    def num_calls(self) -> int:
        """Calls of the denoiser for one sample."""
        return len(self.levels)

    def __call__(self, denoise: Denoise, key: Any, shape: Sequence[int]) -> jax.Array:
        """One sample `[*shape]`, in float32."""
        levels = jnp.asarray(self.levels, jnp.float32)

        def step(x, inputs):
            number, sigma = inputs
            x0 = _denoised(denoise, x, levels[number])
            noise = jax.random.normal(jax.random.fold_in(key, number + 1), x.shape)
            return x0 + sigma * noise, None

        x = _first(key, shape, levels[0])
        numbers = jnp.arange(len(self.levels) - 1)
        x, _ = jax.lax.scan(step, x, (numbers, levels[1:]))
        return _denoised(denoise, x, levels[-1])


def _first(key, shape, sigma):
    return sigma * jax.random.normal(jax.random.fold_in(key, 0), tuple(shape))


def _denoised(denoise, x, sigma):
    return denoise(x, sigma).astype(jnp.float32)
