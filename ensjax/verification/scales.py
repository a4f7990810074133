"""CRPS of what is not one place: spherical harmonics, and means or maxima of areas.

The CRPS of places does not notice if the members of one place are dealt out to others'
fields; these do.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification.crps import crps_values, weight_of_fair
from ensjax.verification.frozen import freeze
from ensjax.verification.harmonics import SphericalGrid, order_weights, to_harmonics
from ensjax.verification.ingredients import CRPS, MEMBERS
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

    def statistics(members, truth, reference):
        del reference
        score = _crps_of(moduli(members.values), moduli(truth), members.mask, fair)
        return {"crps": _weighted_sum(score, share)}

    return _metric(statistics, fair)


def _weighted_sum(values, weights):
    return jnp.einsum("...ij,ij->...", values, weights, precision="highest")


def _crps_of(values, truth, mask, fair):
    """The CRPS of every entry of vectors, of which members are there or not."""
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    mask = jnp.broadcast_to(mask, values.shape)
    return crps_values(CRPS.of_members(values, truth, mask, None, 0), fair)


def _metric(statistics, fair):
    return Metric(
        MEMBERS,
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
    def statistics(members, truth, reference):
        del reference
        lat_lon = truth.shape[-2:]
        area = jnp.ones(lat_lon) if weights is None else weights.like(lat_lon)

        def of_size(size):
            if lat_lon[0] % size or lat_lon[1] % size:
                raise ValueError(
                    f"windows of {size} cells do not divide a grid of {lat_lon}."
                )
            whole = jnp.sum(_windows(area, size), axis=(-3, -1))

            def pooled(field):
                if pool == "max":
                    return jnp.max(_windows(field, size), axis=(-3, -1))
                share = jnp.broadcast_to(area, field.shape)
                total = jnp.sum(_windows(field * share, size), axis=(-3, -1))
                divisor = jnp.broadcast_to(whole, total.shape)
                return total / jnp.where(divisor > 0, divisor, 1.0)

            score = _crps_of(pooled(members.values), pooled(truth), members.mask, fair)
            return _weighted_sum(score, whole) / jnp.sum(whole)

        return {"crps": jnp.stack([of_size(size) for size in sizes], axis=-1)}

    return _metric(statistics, fair)


def _windows(field, size):
    """`[..., lat, lon]` as `[..., lat window, lat, lon window, lon]`."""
    rows, columns = field.shape[-2:]
    return field.reshape(*field.shape[:-2], rows // size, size, columns // size, size)
