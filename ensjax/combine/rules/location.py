"""The middle of the members' values: medians, trimmed, winsorised and Huber means.

Functions of arrays with the member axis first and weights that sum to 1 over it. A
member of weight 0 is as good as absent, equal weights of two like members are the
double weight of one, and the order of members decides nothing: cumulative weights are
compared with a slack of 1e-6.
"""

import jax
import jax.numpy as jnp

from ensjax.ops.limits import between, larger

_SLACK = 1e-6
_HUBER_STEPS = 30
_SD_OVER_MAD = 1.4826  # of a normal distribution


def sort_members(
    values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Members in ascending order at every place, their weights and where these end.

    Args:
        values: `[member, ...]`.
        weights: `[member, ...]`, of a shape that broadcasts to `values`; they sum to 1.

    Returns:
        Three arrays `[member, ...]`: values (0 where the weight is 0, which come last),
        weights, and cumulative weights. All NaN where a member that counts is NaN.
    """
    weights = jnp.broadcast_to(weights, values.shape)
    counts = weights > 0
    undefined = jnp.any(jnp.isnan(values) & (weights != 0), axis=0, keepdims=True)
    # Members without weight come last, so that cumulative weights never point at them.
    order = jnp.argsort(jnp.where(counts, values, jnp.inf), axis=0)
    values = jnp.where(counts, values, 0.0)
    values = jnp.take_along_axis(jnp.where(undefined, jnp.nan, values), order, axis=0)
    weights = jnp.take_along_axis(weights, order, axis=0)
    return values, weights, jnp.cumsum(weights, axis=0)


def middle_pair(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lower and the upper weighted median, `[...]`; they differ where it is a tie.

    The smallest value with at least, and with more than, half of the weight at or below
    it. With equal weights the two middle ones of an even number of members.
    """
    values, weights, ends = sort_members(values, weights)
    return _first(values, ends >= 0.5 - _SLACK), _first(values, ends > 0.5 + _SLACK)


def trim_members(
    values: jax.Array, weights: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """Sorted values, and weights without the `share` at either end, `[member, ...]`.

    A member that the cut goes through keeps the part of its weight that is within. The
    weights sum to 1 again. One that is cut off may be infinite: see `weighted_sum`.
    """
    _check_share(share)
    values, weights, ends = sort_members(values, weights)
    inside = jnp.minimum(ends, 1 - share) - jnp.maximum(ends - weights, share)
    # What rounding leaves of a member that is cut off is no part of it.
    inside = jnp.where((weights == 0) | (inside <= _SLACK), 0.0, inside)
    return values, inside / (1 - 2 * share)


def winsorize_members(
    values: jax.Array, weights: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """Sorted values, those beyond the `share` at either end drawn in, and weights.

    Values below the `share` quantile become it, values above the 1 - `share` quantile
    become that.
    """
    _check_share(share)
    values, weights, ends = sort_members(values, weights)
    starts = ends - weights
    low = _first(values, ends > share + _SLACK)
    # From the other end, so that the two cuts mirror each other.
    high = _first(values[::-1], ((starts < 1 - share - _SLACK) & (weights > 0))[::-1])
    return between(values, low[None], high[None]), weights


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over members, `[...]`; one of weight 0 may hold anything: 0 * inf is NaN."""
    return jnp.sum(jnp.where(weights == 0, 0.0, values) * weights, axis=0)


def huber_mean(values: jax.Array, weights: jax.Array, threshold: float) -> jax.Array:
    """Huber's mean, which pulls members in that lie far off, `[...]`.

        sum_m w_m psi((x_m - mu) / s) = 0,   psi(z) = max(-k, min(k, z))

    with s = 1.4826 times the median absolute deviation from the median. Where s is 0,
    as when more than half of the weight agrees, it is the median. 30 re-weighted means
    from the median. A member at infinity pulls as one that is just out of reach.
    """
    if threshold <= 0:
        raise ValueError(f"threshold must be positive; got {threshold}.")
    low, high = middle_pair(values, weights)
    center = (low + high) / 2
    low, high = middle_pair(jnp.abs(values - center[None]), weights)
    scale = _SD_OVER_MAD * (low + high) / 2
    reach = jnp.where(scale > 0, threshold * scale, 1.0)[None]
    counts = jnp.broadcast_to(weights, values.shape) != 0
    values = jnp.where(counts, values, center[None])
    lowest, highest = jnp.min(values, axis=0), jnp.max(values, axis=0)

    def step(_, mean):
        away = values - mean[None]
        size = jnp.abs(away)
        pull = weights * jnp.where(size > reach, reach / larger(size, reach), 1.0)
        # From the mean, as 0 times infinity would stand in a mean of the values.
        moved = jnp.sum(weights * between(away, -reach, reach), axis=0)
        return between(mean + moved / jnp.sum(pull, axis=0), lowest, highest)

    mean = jax.lax.fori_loop(0, _HUBER_STEPS, step, center)
    return jnp.where(scale > 0, mean, center)


def _first(values, holds):
    """The first member's value, along axis 0, where the condition holds."""
    index = jnp.argmax(holds, axis=0)[None]
    value = jnp.take_along_axis(values, index, axis=0)[0]
    return jnp.where(jnp.any(holds, axis=0), value, jnp.nan)


def _check_share(share):
    if not 0.0 <= share < 0.5:
        raise ValueError(f"share must be at least 0 and below 0.5; got {share}.")
