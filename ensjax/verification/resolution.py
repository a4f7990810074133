"""What scales a forecast still has: effective resolution, and power at small scales."""

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating

HALF = 0.5


def effective_resolution(
    power: jax.Array,
    reference_power: jax.Array,
    *,
    level: float = HALF,
    first: int = 1,
) -> jax.Array:
    """The first wavenumber at which the forecast has too little power, `[...]`.

    That is the lowest from `first` on at which power over that of the reference is
    below `level`; infinite where it nowhere is.

    Args:
        power: of the forecast, averaged over cases before, `[..., wavenumber]`.
        reference_power: of the truth, of the same shape.
        level: of the ratio, positive.
        first: the first wavenumber that counts; 1 leaves the mean out.

    Returns:
        Float32 numbers of wavenumbers. NaN where a ratio is needed that is undefined.

    Raises:
        ValueError: if the shapes differ, no wavenumber is left, or the level is not
            positive.

    Source: Ben Bouallegue et al. 2024, BAMS 105, who compare spectra of forecast and
    analysis; that the ratio is taken at one half is a convention.
    """
    ratio = _ratio(power, reference_power, first)
    if not level > 0:
        raise ValueError(f"level must be positive; got {level}.")
    number = jnp.arange(first, first + ratio.shape[-1], dtype=jnp.float32)
    is_low = ~(ratio >= level)  # a NaN too
    at = jnp.argmax(is_low, axis=-1)
    found = jnp.where(jnp.any(is_low, axis=-1), number[at], jnp.inf)
    there = jnp.take_along_axis(ratio, at[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isnan(there), jnp.nan, found)


def small_scale_power(
    power: jax.Array, reference_power: jax.Array, *, first: int | None = None
) -> jax.Array:
    """Power of the wavenumbers from `first` on, over that of the reference, `[...]`.

    Args:
        power: of the forecast, averaged over cases before, `[..., wavenumber]`.
        reference_power: of the truth, of the same shape.
        first: by default the upper half of the wavenumbers.

    Returns:
        1: as much as the truth; NaN where the reference has none.

    Raises:
        ValueError: if the shapes differ or no wavenumber is left.
    """
    power, reference_power = floating(power), floating(reference_power)
    if first is None:
        first = (power.shape[-1] + 1) // 2 if power.ndim else 0
    _check(power, reference_power, first)
    total, needed = (jnp.sum(x[..., first:], axis=-1) for x in (power, reference_power))
    return total / jnp.where(needed > 0, needed, jnp.nan)


def _ratio(power, reference_power, first):
    power, reference_power = floating(power), floating(reference_power)
    _check(power, reference_power, first)
    needed = jnp.where(reference_power > 0, reference_power, jnp.nan)
    return (power / needed)[..., first:]


def _check(power, reference_power, first):
    if (
        power.ndim < 1
        or power.shape != reference_power.shape
        or not 0 <= first < power.shape[-1]
    ):
        raise ValueError(
            "power and reference_power must be of one shape [..., wavenumber] with"
            f" more than {first}; got {power.shape} and {reference_power.shape}."
        )
