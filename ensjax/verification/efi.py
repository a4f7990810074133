"""The extreme forecast index: how far the ensemble lies out in its own climate.

    EFI = (2 / pi) integral_0^1 (p - F(p)) / sqrt(p (1 - p)) dp

with F(p) the share of members at or below the climate's quantile Q(p). It is 1 where
all members are above the climate and -1 where all are below. The climate is that of the
*model*, of reforecasts at the same lead, so that the model's bias cancels.

With p = sin^2(theta) the integrand has no singularity, and since F rises by 1 / M at
the climate's probability p_m of each member, the integral is a mean over members:

    EFI = (4 / pi) mean_m arcsin(sqrt(p_m)) - 1

Nothing is integrated numerically; a trapezoid over p = 0.01..0.99 saturates at 0.875.
Source: Lalaurie 2003 and Zsoter 2006 (the index); the closed form is derived here.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.limits import between
from ensjax.scores.rows import floating
from ensjax.verification.ingredients import needed, of_each
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric


def extreme_forecast_index(
    forecast: jax.Array,
    quantiles: jax.Array,
    levels: np.ndarray,
    *,
    member_mask: jax.Array | None = None,
) -> jax.Array:
    """The EFI of every element, `[...]` (-1 to 1).

    Args:
        forecast: `[member, ...]`; NaN: the member is missing.
        quantiles: the climate's, `[level, ...]`, not falling along levels.
        levels: their probabilities, rising, in [0, 1], `[level]`. Beyond the first and
            last quantile a member counts as outside of the climate: p = 0 or 1.
        member_mask: booleans `[member]` or `[member, ...]`.

    Returns:
        NaN where no member is there or a quantile is NaN.

    Raises:
        ValueError: if a shape does not fit or the levels do not rise in [0, 1].
    """
    forecast = floating(forecast)
    share = member_efi(forecast, quantiles, levels)
    mask = ~jnp.isnan(forecast)
    if member_mask is not None:
        given = jnp.asarray(member_mask)
        if given.shape == forecast.shape[:1]:
            given = given.reshape(-1, *(1,) * (forecast.ndim - 1))
        elif given.shape != forecast.shape:
            raise ValueError(
                f"member_mask must be [member] or {forecast.shape}; got {given.shape}."
            )
        mask &= given.astype(bool)
    count = jnp.sum(mask, axis=0)
    total = jnp.sum(jnp.where(mask, share, 0.0), axis=0)
    return total / jnp.where(count > 0, count, jnp.nan)


def mean_efi(levels: Sequence[float]) -> Metric:
    """The mean `extreme_forecast_index` of the elements; `.over()` is its map.

    A property of the members, which stream, and of the model's climate,
    `reference["quantiles"]`, `[*truth, level]`, not falling along levels. The truth
    only says how elements are laid out. Elements without members or with a quantile
    that is NaN are not scored.

    Args:
        levels: as in `extreme_forecast_index`.

    Raises:
        ValueError: if the levels do not rise in [0, 1]; on the call, if the quantiles
            are missing or of another shape.

    Source: as in `ensjax.verification.efi`.
    """
    levels = tuple(float(level) for level in levels)
    _check_levels(np.asarray(levels))
    return _mean_efi(levels)


@functools.lru_cache(maxsize=16)
def _mean_efi(levels):
    def each(values, given):
        own = member_efi(values, given["quantiles"], np.asarray(levels))
        return OfMembers(moments={"efi": own})

    def inputs(truth, reference):
        found = needed(reference, "quantiles", (*truth.shape, len(levels)))
        return {"quantiles": jnp.moveaxis(found, -1, 0)}

    ingredient = of_each(
        f"efi {levels}",
        each,
        lambda found, truth, reference: found.moments["efi"].mean,
        inputs,
    )
    return Metric(
        ingredient,
        lambda efi, truth, reference: {"efi": efi},
        lambda mean: mean["efi"],
        best="none",
    )


def member_efi(
    forecast: jax.Array, quantiles: jax.Array, levels: np.ndarray
) -> jax.Array:
    """What each member adds: its own index, whose mean over members is the EFI.

    `mean_efi` streams over members with it. Arguments as for `extreme_forecast_index`.

    Returns:
        `[member, ...]`, NaN where a member is missing.
    """
    probability = climate_probability(forecast, quantiles, levels)
    return 4 / np.pi * jnp.arcsin(jnp.sqrt(probability)) - 1


def climate_probability(
    forecast: jax.Array, quantiles: jax.Array, levels: np.ndarray
) -> jax.Array:
    """The smallest p whose climate quantile is at least the value, `[member, ...]`.

    Quantiles between levels are interpolated linearly. A value equal to several
    quantiles, as no rain, has the lowest of their levels, by the definition of F.

    Raises:
        ValueError: if a shape does not fit or the levels do not rise in [0, 1].
    """
    forecast, quantiles = floating(forecast), floating(quantiles)
    levels = np.asarray(levels, np.float64)
    _check_levels(levels)
    if quantiles.shape != (len(levels), *forecast.shape[1:]):
        raise ValueError(
            f"quantiles must be [level, ...] = {(len(levels), *forecast.shape[1:])};"
            f" got {quantiles.shape}."
        )
    undefined = jnp.any(jnp.isnan(quantiles), axis=0)
    # A search in the quantiles of each element: members times levels never exist.
    search = jax.vmap(jnp.searchsorted, in_axes=1, out_axes=1)
    found = search(
        quantiles.reshape(len(levels), math.prod(forecast.shape[1:])),
        forecast.reshape(len(forecast), math.prod(forecast.shape[1:])),
    ).reshape(forecast.shape)  # the first quantile at or above the value
    upper = jnp.clip(found, 1, len(levels) - 1)
    low = jnp.take_along_axis(quantiles, upper - 1, axis=0)
    high = jnp.take_along_axis(quantiles, upper, axis=0)
    place = (forecast - low) / jnp.where(high > low, high - low, 1.0)
    starts = jnp.asarray(levels, forecast.dtype)[upper - 1]
    steps = jnp.asarray(np.diff(levels), forecast.dtype)[upper - 1]
    probability = starts + steps * between(place, 0.0, 1.0)
    probability = jnp.where(found == 0, 0.0, probability)
    probability = jnp.where(found == len(levels), 1.0, probability)
    missing = jnp.isnan(forecast) | undefined[None]
    return jnp.where(missing, jnp.nan, probability)


def _check_levels(levels):
    if levels.ndim != 1 or len(levels) < 2 or not np.all(np.diff(levels) > 0):
        raise ValueError("levels must be two or more numbers that rise, [level].")
    if levels[0] < 0 or levels[-1] > 1:
        raise ValueError(f"levels are probabilities; got {levels[0]} to {levels[-1]}.")
