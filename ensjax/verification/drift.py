"""Drift: how the bias grows with lead time, of areas, zones and places.

Signed biases cancel: a forecast that warms the poles and cools the tropics drifts, and
its area mean need not. So three absolute biases are followed, and since each of them is
above 0 in any finite sample, what sampling alone makes of it can be taken away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating
from ensjax.verification.errors import bias_drift


class AbsoluteBias(NamedTuple):
    """By lead and on how large an area errors are averaged before the absolute value.

    Attributes:
        area: of the mean over all of space, `[lead, ...]`.
        zonal: of the means of zones, averaged over zones, `[lead, ...]`.
        local: of every place, averaged over places, `[lead, ...]`.
    """

    area: jax.Array
    zonal: jax.Array
    local: jax.Array


def absolute_bias(bias: jax.Array, weights: jax.Array | None = None) -> AbsoluteBias:
    """Area mean, zonal mean and local absolute bias of maps.

        area |<b>|,   zonal <|b of the zone|>,   local <|b|>

    On a latitude-longitude grid a zone is a circle of latitude. On a ring, which is one
    such circle, sectors may stand for zones: reshape sites to `[sector, site]`.

    Args:
        bias: of each place, such as of `bias().over(0)`, `[lead, ..., zone, place]`.
        weights: non-negative, of a shape that broadcasts to `[zone, place]`, such as
            `cell_weights(latitudes)[:, None]`.

    Returns:
        `[lead, ...]`; a place whose bias is NaN does not count.

    Raises:
        ValueError: if a shape does not fit.

    Source: the tables of mean and zonal mean bias in Ben Bouallegue et al. 2024, BAMS
    105 (arXiv:2307.10128).
    """
    bias, share = _shares(bias, weights)
    values = jnp.where(share > 0, bias, 0.0)
    of_zone = jnp.sum(share, axis=-1)
    total = jnp.sum(of_zone, axis=-1)
    total = jnp.where(total > 0, total, jnp.nan)
    zone_sum = jnp.sum(share * values, axis=-1)
    return AbsoluteBias(
        jnp.abs(jnp.sum(zone_sum, axis=-1)) / total,
        # A zone's mean times its weight is its sum.
        jnp.sum(jnp.abs(zone_sum), axis=-1) / total,
        jnp.sum(share * jnp.abs(values), axis=(-2, -1)) / total,
    )


def bias_growth(
    bias: jax.Array, lead_days: jax.Array, weights: jax.Array | None = None
) -> AbsoluteBias:
    """Slopes of the three absolute biases with lead, in their unit a day, `[...]`.

    Args:
        bias: as in `absolute_bias`, `[lead, ..., zone, place]`.
        lead_days: lead times in days, `[lead]`, two or more that differ.
        weights: as in `absolute_bias`.

    Raises:
        ValueError: if a shape does not fit or there are fewer than two leads.
    """
    found = absolute_bias(bias, weights)
    return AbsoluteBias(*(bias_drift(part, lead_days).slope for part in found))


def squared_bias(errors: jax.Array, *, by_halves: bool = False) -> jax.Array:
    """The square of the mean error, less what sampling adds to it, `[...]`.

        [(sum_i e_i)^2 - sum_i e_i^2] / [n (n - 1)]

    The expectation is the square of the true bias, 0 where there is none, so that a
    mean of it over leads or zones is too; single ones may be negative. Where there is
    no bias it is skewed, a chi-square of one degree less 1, so that Student's interval
    of a few repeats lies below 0 too often (of five in one of six). By halves it is

        mean_(even cases) e * mean_(odd cases) e

    which is as likely above 0 as below and has the same expectation, but a deviation
    that is larger by the root of two.

    Args:
        errors: of cases that are independent of each other, such as means over zones,
            `[case, ...]`; NaN is missing.
        by_halves: the product of the means of both halves.

    Returns:
        NaN where fewer than two cases, or none of a half, are known.

    Raises:
        ValueError: if there is no axis of cases.
    """
    errors = floating(errors)
    if errors.ndim < 1:
        raise ValueError("errors must be [case, ...]; got one number.")
    if by_halves:
        even, odd = (_mean_of_known(errors[first::2]) for first in (0, 1))
        return even * odd
    known = ~jnp.isnan(errors)
    count = jnp.sum(known, axis=0)
    values = jnp.where(known, errors, 0.0)
    # About the mean, where (sum e)^2 and sum e^2 would cancel.
    mean = jnp.sum(values, axis=0) / jnp.maximum(count, 1)
    away = jnp.sum(jnp.where(known, (values - mean[None]) ** 2, 0.0), axis=0)
    pairs = jnp.where(count > 1, count * (count - 1.0), jnp.nan)
    return mean**2 - away / pairs


def _mean_of_known(errors):
    known = ~jnp.isnan(errors)
    count = jnp.sum(known, axis=0)
    total = jnp.sum(jnp.where(known, errors, 0.0), axis=0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _shares(bias, weights):
    bias = floating(bias)
    if bias.ndim < 3:
        raise ValueError(
            f"bias must be [lead, ..., zone, place]; got shape {bias.shape}. Sites of a"
            " ring are reshaped to sectors."
        )
    weights = jnp.ones(bias.shape[-2:]) if weights is None else jnp.asarray(weights)
    try:
        weights = jnp.broadcast_to(weights, bias.shape[-2:]).astype(bias.dtype)
    except ValueError as error:
        raise ValueError(
            f"weights must broadcast to [zone, place] = {bias.shape[-2:]}; got"
            f" {weights.shape}."
        ) from error
    wide = weights.reshape((1,) * (bias.ndim - 2) + weights.shape)
    return bias, jnp.where(jnp.isnan(bias), 0.0, wide)
