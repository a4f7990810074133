"""Scores of whole vectors: energy score and variogram score.

The last `vector_axes` axes of the truth are one vector (places, variables, leads). A
member that lacks one of its values is missing in that case; a case whose truth lacks
one, where it has weight, is not scored.
"""

import functools

import jax
import jax.numpy as jnp

from ensjax.verification.frozen import Frozen, freeze
from ensjax.verification.ingredients import MEMBERS, Ingredient, whole_vectors
from ensjax.verification.member_state import OfMembers
from ensjax.verification.metric import Metric


def energy_score(
    estimator: str = "standard",
    *,
    vector_axes: int = 1,
    weights: jax.Array | None = None,
    power: float = 1.0,
) -> Metric:
    """The energy score, the CRPS of vectors; less is better.

        mean_m |x_m - y|^b - sum_{i,j} |x_i - x_j|^b / (2 M^2),   fair: 2 M (M - 1)

    with the norm |z| = sqrt(sum_d w_d z_d^2). In the unit of the values for b = 1. It
    tells wrong means and variances far better than wrong correlations: report it with a
    variogram score.

    Args:
        estimator: "standard" or "fair".
        vector_axes: how many of the last axes are the vector.
        weights: w, non-negative, of a shape that broadcasts to the vector's; 1 by
            default. Where it is 0, values may be missing.
        power: b, in (0, 2).

    Raises:
        ValueError: if an argument is unknown or out of range.

    Source: Gneiting and Raftery 2007, equation 22.
    """
    _check(estimator, vector_axes)
    if not 0 < power < 2:
        raise ValueError(f"power must be in (0, 2); got {power}.")
    return _energy(estimator == "fair", vector_axes, freeze(weights), float(power))


def _check(estimator, vector_axes):
    if estimator not in ("standard", "fair"):
        raise ValueError(f'estimator must be "standard" or "fair"; got {estimator!r}.')
    if vector_axes < 1:
        raise ValueError(f"vector_axes must be 1 or more; got {vector_axes}.")


@functools.lru_cache(maxsize=64)
def _weighted_members(weights: Frozen | None) -> Ingredient:
    """All members; what has no weight in the vector cannot make one missing."""
    if weights is None:
        return MEMBERS

    def of_members(forecast, truth, mask, reference, vector_axes):
        share = weights.like(truth.shape[truth.ndim - vector_axes :])
        is_ignored = jnp.broadcast_to(share == 0, forecast.shape)
        return MEMBERS.of_members(
            jnp.where(is_ignored, 0.0, forecast),
            truth,
            mask | is_ignored,
            reference,
            vector_axes,
        )

    return Ingredient(None, of_members)


def _as_vectors(members, truth, vector_axes, weights):
    """`[member, *elements, d]`, `[*elements, d]` and the weights `[d]`."""
    elements = truth.shape[: truth.ndim - vector_axes]
    vector = truth.shape[truth.ndim - vector_axes :]
    share = jnp.ones(vector) if weights is None else weights.like(vector)
    share = share.reshape(-1)
    values = members.values.reshape(len(members.values), *elements, -1)
    truth = truth.reshape(*elements, -1)
    is_ignored = jnp.broadcast_to(share == 0, truth.shape)
    return values, jnp.where(is_ignored, 0.0, truth), share


def _weighted_sum(values, weights, axes):
    """The sum over the last axes, weighted, in full precision."""
    return jnp.einsum(f"...{axes},{axes}->...", values, weights, precision="highest")


@functools.lru_cache(maxsize=64)
def _energy(fair, vector_axes, weights, power):
    def statistics(members, truth, reference):
        del reference
        values, truth, share = _as_vectors(members, truth, vector_axes, weights)
        mask = members.mask
        count = jnp.sum(mask, axis=0).astype(values.dtype)

        def distance(a, b):
            squared = _weighted_sum((a - b) ** 2, share, "d")
            return jnp.sqrt(squared) if power == 1 else squared ** (power / 2)

        def to_all(row):
            member, is_there = row
            far = distance(values, member[None])
            return jnp.sum(jnp.where(mask & is_there[None], far, 0.0), axis=0)

        # One member against all at a time: pairs of vectors need not exist together.
        pairs = jnp.sum(jax.lax.map(to_all, (values, mask)), axis=0)
        error = jnp.sum(jnp.where(mask, distance(values, truth[None]), 0.0), axis=0)
        number = count * (count - 1) if fair else count**2
        spread = pairs / (2 * jnp.where(number > 0, number, jnp.nan))
        return {"energy": error / jnp.where(count > 0, count, jnp.nan) - spread}

    return Metric(
        _weighted_members(weights),
        statistics,
        lambda mean: mean["energy"],
        best="low",
        is_fair=fair,
        least_members=2 if fair else 1,
        vector_axes=vector_axes,
    )


def variogram_score(
    estimator: str = "standard",
    *,
    vector_axes: int = 1,
    power: float = 0.5,
    pair_weights: jax.Array | None = None,
    tile: int = 64,
) -> Metric:
    """The variogram score: whether differences between places have the right size.

        sum_{i,j} v_ij (|y_i - y_j|^p - mean_m |x_mi - x_mj|^p)^2

    over ordered pairs. The fair form takes s^2 / M off each square, s^2 being the
    unbiased variance of the members' |x_mi - x_mj|^p; it may be negative. An error that
    is the same everywhere costs nothing, so report it with a score of the values.

    Args:
        estimator: "standard" or "fair".
        vector_axes: how many of the last axes are the vector, of d values.
        power: p, above 0.
        pair_weights: v, non-negative, `[d, d]`; 1 by default. Weights that fall with
            distance keep the signal of near pairs (`inverse_distance_weights`).
        tile: rows of pairs that exist at once; memory is cases x M x tile x d. Where
            members stream, moments of all pairs are kept: cases x 3 x d x d.

    Raises:
        ValueError: if an argument is unknown or out of range.

    Source: Scheuerer and Hamill 2015, Monthly Weather Review 143, equation 10.
    """
    _check(estimator, vector_axes)
    if not power > 0 or tile < 1:
        raise ValueError(
            f"power must be above 0 and tile 1 or more; got {power}, {tile}."
        )
    pair_weights = freeze(pair_weights)
    if pair_weights is not None:
        shape = pair_weights.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"pair_weights must be [d, d]; got shape {shape}.")
    return _variogram(
        estimator == "fair", vector_axes, float(power), pair_weights, int(tile)
    )


@functools.lru_cache(maxsize=64)
def _variogram(fair, vector_axes, power, pair_weights, tile):
    def steps(x, picked):
        """Between places `picked` and all others, `[..., picked, d]`."""
        away = jnp.abs(jnp.take(x, picked, axis=-1)[..., None] - x[..., None, :])
        return jnp.sqrt(away) if power == 0.5 else away**power

    def weights(size):
        if pair_weights is None:
            return jnp.ones((size, size))
        return pair_weights.like((size, size))

    def of_members(forecast, truth, mask, reference, _):
        members = MEMBERS.of_members(forecast, truth, mask, reference, vector_axes)
        values, truth, _ = _as_vectors(members, truth, vector_axes, None)
        mask, size = members.mask, truth.shape[-1]
        count = jnp.sum(mask, axis=0).astype(values.dtype)
        number = jnp.where(count > 0, count, jnp.nan)
        rows = min(tile, size)
        blocks = -(-size // rows)
        share = jnp.pad(weights(size), ((0, blocks * rows - size), (0, 0)))

        def of_block(block):
            place = block * rows + jnp.arange(rows)
            picked = jnp.minimum(place, size - 1)  # rows behind the last weigh 0
            there = mask[..., None, None]
            ours = jnp.where(there, steps(values, picked), 0.0)
            mean = jnp.sum(ours, axis=0) / number[..., None, None]
            squared = (steps(truth, picked) - mean) ** 2
            if fair:
                away = jnp.where(there, ours - mean[None], 0.0)
                others = jnp.where(count > 1, count - 1, jnp.nan)[..., None, None]
                variance = jnp.sum(away**2, axis=0) / others
                squared = squared - variance / number[..., None, None]
            own = jax.lax.dynamic_slice_in_dim(share, block * rows, rows)
            return _weighted_sum(squared, own, "ij")

        return jnp.sum(jax.lax.map(of_block, jnp.arange(blocks)), axis=0)

    def all_steps(values):
        flat = values.reshape(*values.shape[: values.ndim - vector_axes], -1)
        return steps(flat, jnp.arange(flat.shape[-1]))

    def each(values, given):
        del given
        return OfMembers(
            moments={"steps": all_steps(whole_vectors(values, vector_axes))}
        )

    def known(found, truth, reference):
        del reference
        mean, variance, count = found.moments["steps"]
        squared = (all_steps(truth) - mean) ** 2
        if fair:
            squared = squared - variance / count
        return _weighted_sum(squared, weights(mean.shape[-1]), "ij")

    return Metric(
        Ingredient(f"steps of {vector_axes} axes, {power!r}", of_members, each, known),
        lambda score, truth, reference: {"variogram": score},
        lambda mean: mean["variogram"],
        best="low",
        is_fair=fair,
        least_members=2 if fair else 1,
        vector_axes=vector_axes,
    )


def inverse_distance_weights(
    latitudes: jax.Array, longitudes: jax.Array, *, at_least_km: float = 100.0
) -> jax.Array:
    """Weights of pairs of places that fall as 1 / distance, `[place, place]`; sum 1.

    Args:
        latitudes: in degrees, `[place]`.
        longitudes: in degrees, `[place]`.
        at_least_km: nearer pairs count as so far apart. A place with itself has 0.

    Raises:
        ValueError: if a shape does not fit.
    """
    latitudes, longitudes = (
        jnp.radians(jnp.asarray(x, jnp.float32)) for x in (latitudes, longitudes)
    )
    if latitudes.ndim != 1 or latitudes.shape != longitudes.shape:
        raise ValueError(
            "latitudes and longitudes must both be [place]; got"
            f" {latitudes.shape} and {longitudes.shape}."
        )
    points = jnp.stack(
        [
            jnp.cos(latitudes) * jnp.cos(longitudes),
            jnp.cos(latitudes) * jnp.sin(longitudes),
            jnp.sin(latitudes),
        ],
        axis=-1,
    )
    # By the chord: the arc cosine of a product loses all digits of near places.
    chord = jnp.sqrt(jnp.sum((points[:, None] - points[None]) ** 2, axis=-1))
    far = 2 * 6371.0 * jnp.arcsin(jnp.clip(chord / 2, 0, 1))
    weights = jnp.where(
        jnp.eye(len(far), dtype=bool), 0.0, 1 / jnp.maximum(far, at_least_km)
    )
    return weights / jnp.sum(weights)
