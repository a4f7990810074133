"""CRPS of what is not one place: spherical harmonics, and means or maxima of areas.

The CRPS of places does not notice if the members of one place are dealt out to others'
fields; these do.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.sphere import SphericalGrid, order_weights
from ensjax.verification.crps import crps_values, weight_of_fair
from ensjax.verification.frozen import freeze
from ensjax.verification.harmonics import to_harmonics
from ensjax.verification.ingredients import (
    CRPS,
    MEMBERS,
    Ingredient,
    error_and_order,
    known_crps,
    whole_vectors,
)
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric


def spectral_crps(
    grid: SphericalGrid, estimator: str = "standard", *, alpha: float = 0.95
) -> Metric:
    """The CRPS of the moduli of the spherical harmonics, summed; less is better.

        sum_lm w_m CRPS(|c_lm|) / (4 pi),   c_lm = a_lm / sqrt(4 pi)

    with w_m = 1 for m = 0 and 2 for m > 0. In the unit of the values. It sees whether
    each scale has the right power, not where its waves are: it is proper but not
    strictly so, a companion of the CRPS.

    Args:
        grid: of the fields `[..., lat, lon]`.
        estimator: as in `crps`.
        alpha: as in `crps`.

    Raises:
        ValueError: if an argument is unknown or out of range.

    Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), and the code that
    belongs to it, some versions of which leave out the last factor.
    """
    return _spectral(grid, weight_of_fair(estimator, alpha))


@functools.lru_cache(maxsize=64)
def _spectral(grid, fair):
    share = order_weights(grid) / np.float32(4 * np.pi)

    def moduli(field):
        return jnp.abs(to_harmonics(field, grid)) / np.float32(np.sqrt(4 * np.pi))

    def fields(values):
        return {"moduli": moduli(values)}

    def score(terms, lat_lon):
        del lat_lon
        return _weighted_sum(crps_values(terms["moduli"], fair), share)

    return _metric(f"crps of moduli, {grid}", fields, score, fair)


def _weighted_sum(values, weights):
    return jnp.einsum("...ij,ij->...", values, weights, precision="highest")


def _metric(name, fields, score, fair):
    """The metric of the CRPS of entries of `{name: [..., i, j]}` of a field.

    Args:
        name: of what is known of the members.
        fields: `(field [..., lat, lon]) -> {name: entries}`.
        score: `({name: CrpsTerms}, shape of the field) -> [...]`.
        fair: as in `crps_values`.
    """

    def of_members(forecast, truth, mask, reference, vector_axes):
        members = MEMBERS.of_members(forecast, truth, mask, reference, vector_axes)
        terms, observed = {}, fields(truth)
        for part, values in fields(members.values).items():
            there = members.mask.reshape(members.mask.shape + (1, 1))
            there = jnp.broadcast_to(there, values.shape)
            terms[part] = CRPS.of_members(values, observed[part], there, None, 0)
        return terms

    def each(values, given):
        values = whole_vectors(values, 2)
        is_there = ~jnp.isnan(values[..., :1, :1])
        kept = OfMembers(moments={}, ordered={})
        for part, found in fields(jnp.where(jnp.isnan(values), 0.0, values)).items():
            found = jnp.where(is_there, found, jnp.nan)
            own = error_and_order(found, given[part], part)
            kept.moments.update(own.moments)
            kept.ordered.update(own.ordered)
        return kept

    def known(found, truth, reference):
        del reference
        # Of the state: other programs would round what comes of the truth otherwise.
        observed = {part: found.inputs[part] for part in jax.eval_shape(fields, truth)}
        return {part: known_crps(found, x, part) for part, x in observed.items()}

    def inputs(truth, reference):
        del reference
        return fields(truth)

    def statistics(terms, truth, reference):
        del reference
        return {"crps": score(terms, truth.shape[-2:])}

    return Metric(
        Ingredient(name, of_members, each, known, inputs, is_ordered=True),
        statistics,
        lambda mean: mean["crps"],
        best="low",
        is_fair=fair == 1,
        least_members=2 if fair > 0 else 1,
        vector_axes=2,
    )


def pooled_crps(
    sizes: Sequence[int],
    *,
    pool: str = "mean",
    area_weights: jax.Array | None = None,
    estimator: str = "standard",
    alpha: float = 0.95,
) -> Metric:
    """The CRPS of area means (or maxima) at several scales, `[..., size]`.

    Fields `[..., lat, lon]` are cut into windows of `size` x `size` cells; the CRPS of
    the windows' means (maxima) is averaged with the area of the windows as weights. In
    the unit of the values; less is better.

    Args:
        sizes: of the windows, in cells; each divides both axes. 1 is the CRPS itself.
        pool: "mean" or "max".
        area_weights: of the cells, of a shape that broadcasts to `[lat, lon]`, such as
            `cell_weights(latitudes)[:, None]`.
        estimator: as in `crps`.
        alpha: as in `crps`.

    Raises:
        ValueError: if an argument is unknown or out of range; on the call, if a size
            does not divide the axes.

    Source: the pooled scores of Alet et al. 2025, arXiv:2506.10772 (FGN).
    """
    sizes = tuple(int(size) for size in sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be one or more positive integers; got {sizes}.")
    if pool not in ("mean", "max"):
        raise ValueError(f'pool must be "mean" or "max"; got {pool!r}.')
    return _pooled(sizes, pool, freeze(area_weights), weight_of_fair(estimator, alpha))


@functools.lru_cache(maxsize=64)
def _pooled(sizes, pool, weights, fair):
    def areas(lat_lon):
        """Of the cells, and of the windows of each size."""
        for size in sizes:
            if lat_lon[0] % size or lat_lon[1] % size:
                raise ValueError(
                    f"windows of {size} cells do not divide a grid of {lat_lon}."
                )
        area = jnp.ones(lat_lon) if weights is None else weights.like(lat_lon)
        return area, {
            size: jnp.sum(_windows(area, size), axis=(-3, -1)) for size in sizes
        }

    def pooled(field, size):
        if pool == "max":
            return jnp.max(_windows(field, size), axis=(-3, -1))
        area, windows = areas(field.shape[-2:])
        share = jnp.broadcast_to(area, field.shape)
        total = jnp.sum(_windows(field * share, size), axis=(-3, -1))
        divisor = jnp.broadcast_to(windows[size], total.shape)
        return total / jnp.where(divisor > 0, divisor, 1.0)

    def fields(values):
        areas(values.shape[-2:])
        return {f"size {size}": pooled(values, size) for size in sizes}

    def score(terms, lat_lon):
        windows = areas(lat_lon)[1]
        return jnp.stack(
            [
                _weighted_sum(crps_values(terms[f"size {size}"], fair), windows[size])
                / jnp.sum(windows[size])
                for size in sizes
            ],
            axis=-1,
        )

    name = f"crps of {pool} of {sizes}"
    if weights is not None and pool == "mean":
        name += f", areas {weights.digest()}"
    return _metric(name, fields, score, fair)


def _windows(field, size):
    """`[..., lat, lon]` as `[..., lat window, lat, lon window, lon]`."""
    rows, columns = field.shape[-2:]
    return field.reshape(*field.shape[:-2], rows // size, size, columns // size, size)
