"""Noise levels: where samplers stop, what training draws, and the VE schedule.

`sigma` is the standard deviation of the noise that is added to data, in the units of
the data. Samplers go through falling levels, which are static: a tuple of numbers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


def rho_levels(
    num_levels: int, *, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> tuple[float, ...]:
    """Falling noise levels that are equally spaced in sigma^(1 / rho).

        sigma_i = (high^(1/rho) + i / (N - 1) (low^(1/rho) - high^(1/rho)))^rho

    Args:
        num_levels: N, at least 2. A sampler goes on from the last one to 0.
        low, high: the ends, above 0.
        rho: large values put more levels near `low`.

    Returns:
        N numbers, from `high` to `low`.

    Raises:
        ValueError: if the ends are not positive and in order, or N or rho too small.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_range(low, high)
    if num_levels < 2 or not rho > 0:
        raise ValueError(
            "there are at least 2 levels and rho is above 0; got num_levels ="
            f" {num_levels}, rho = {rho}."
        )
    roots = np.linspace(high ** (1 / rho), low ** (1 / rho), num_levels)
    levels = roots**rho
    levels[[0, -1]] = high, low  # without the rounding of the powers
    return tuple(levels.tolist())


def check_levels(levels: tuple[float, ...]) -> None:
    """Raises `ValueError` unless levels are falling, positive numbers in a tuple."""
    if not isinstance(levels, tuple) or not levels:
        raise ValueError(
            f"levels are a tuple of noise levels, such as rho_levels(24); got {levels}."
        )
    is_falling = all(a > b for a, b in zip(levels, levels[1:], strict=False))
    if not is_falling or not levels[-1] > 0 or not math.isfinite(levels[0]):
        raise ValueError(
            "noise levels must fall and stay above 0 (samplers add the 0 at the end);"
            f" got {levels}."
        )


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """The noise schedule of dX = g(t) dW with g(t) = base^t, t in [0, 1].

        sigma(t)^2 = (base^(2t) - 1) / (2 ln base)

    Attributes:
        base: b, above 1; sigma(1) is about b / sqrt(2 ln b).

    Source: Song et al. 2021, arXiv:2011.13456, section 3.4; with this g in Li et al.
    2024, Science Advances 10(13), eadk4489 (SEEDS), whose base is not published.
    """

    base: float = 25.0

    def __post_init__(self):
        if not self.base > 1:
            raise ValueError(f"base must be above 1; got {self.base}.")

    def sigma(self, time: jax.Array) -> jax.Array:
        """The noise level at a time; exact to rounding also near 0."""
        log_base = math.log(self.base)
        return jnp.sqrt(jnp.expm1(2 * log_base * time) / (2 * log_base))

    def time(self, sigma: jax.Array) -> jax.Array:
        """The time of a noise level: the inverse of `sigma`."""
        log_base = math.log(self.base)
        return jnp.log1p(2 * log_base * sigma**2) / (2 * log_base)

    def diffusion(self, time: jax.Array) -> jax.Array:
        """g(t)."""
        return jnp.exp(math.log(self.base) * time)

    def levels(self, num_levels: int, *, last_time: float = 1e-3) -> tuple[float, ...]:
        """Falling noise levels at equally spaced times from 1 to `last_time`."""
        if num_levels < 2 or not 0 < last_time < 1:
            raise ValueError(
                "there are at least 2 levels, and last_time lies in (0, 1); got"
                f" {num_levels} and {last_time}."
            )
        times = np.linspace(1.0, last_time, num_levels)
        log_base = math.log(self.base)
        return tuple(np.sqrt(np.expm1(2 * log_base * times) / (2 * log_base)).tolist())


@dataclasses.dataclass(frozen=True)
class LogNormalNoise:
    """Training noise with ln sigma ~ N(mean, sd^2).

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    mean: float = -1.2
    sd: float = 1.2

    def __call__(self, key: jax.Array) -> jax.Array:
        """One noise level."""
        return jnp.exp(self.mean + self.sd * jax.random.normal(key))


@dataclasses.dataclass(frozen=True)
class RhoNoise:
    """Training noise with sigma^(1 / rho) uniform between the ends.

    Source: Price et al. 2025, Nature 637 (GenCast), methods: 0.02 to 88 with rho = 7.
    """

    low: float = 0.02
    high: float = 88.0
    rho: float = 7.0

    def __post_init__(self):
        _check_range(self.low, self.high)

    def __call__(self, key: jax.Array) -> jax.Array:
        """One noise level."""
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (low + jax.random.uniform(key) * (high - low)) ** self.rho


@dataclasses.dataclass(frozen=True)
class UniformTimeNoise:
    """Training noise of a VE schedule at a uniform time, from `first_time` to 1."""

    schedule: VarianceExploding = VarianceExploding()
    first_time: float = 1e-3

    def __call__(self, key: jax.Array) -> jax.Array:
        """One noise level."""
        return self.schedule.sigma(jax.random.uniform(key, minval=self.first_time))


@dataclasses.dataclass(frozen=True)
class LevelNoise:
    """Training noise that is one of the given levels, all as likely."""

    levels: tuple[float, ...]

    def __post_init__(self):
        check_levels(self.levels)

    def __call__(self, key: jax.Array) -> jax.Array:
        """One noise level."""
        levels = jnp.asarray(self.levels, jnp.float32)
        return levels[jax.random.randint(key, (), 0, len(self.levels))]


def _check_range(low, high):
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise levels go from low > 0 to high; got {low} and {high}.")
