"""Quantiles of a sample ensemble: members' forecasts as equally likely values."""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import member_mask_and_weights
from ensjax.scores.rows import floating

# Shares of members are sums of floats: 0.1 of 10 members must not become the second.
_SLACK = 1e-6


def quantiles_of_ensemble(
    samples: jax.Array,
    levels: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The smallest sample that the given share of the weight does not exceed.

        q_a = min {x : sum of the weights of samples <= x is at least a}

    This inverts the members' distribution function, so that their order and copies of
    all of them change nothing; `numpy.quantile` calls it "inverted_cdf", its default
    interpolates.

    Args:
        samples: `[member, batch]`.
        levels: `[level]`, in (0, 1).
        weights: `[member]` or `[member, batch]`, non-negative; None: 1 each.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, level]`. NaN in a row without weight, or where a member that counts is
        NaN or a weight negative.

    Raises:
        ValueError: if a shape does not fit.
    """
    samples, levels = floating(samples), floating(levels)
    if samples.ndim != 2 or levels.ndim != 1:
        raise ValueError(
            "samples must be [member, batch] and levels [level]; got shapes"
            f" {samples.shape} and {levels.shape}."
        )
    weights, mask = member_mask_and_weights(samples.shape, weights, mask)
    weight = jnp.broadcast_to(weights.reshape(len(weights), -1), samples.shape)
    weight = jnp.where(mask.reshape(len(mask), -1), weight, 0.0).astype(samples.dtype)
    counts = weight != 0
    undefined = jnp.any((counts & jnp.isnan(samples)) | (weight < 0), axis=0)
    undefined |= ~jnp.any(counts, axis=0)
    known = jnp.where(counts & ~jnp.isnan(samples), samples, jnp.inf)
    order = jnp.argsort(known, axis=0)
    ascending = jnp.take_along_axis(known, order, axis=0)
    reached = jnp.cumsum(jnp.take_along_axis(weight, order, axis=0), axis=0)
    share = reached / jnp.where(undefined, 1.0, reached[-1])[None]

    def at(level):
        place = jnp.sum(share < level - _SLACK, axis=0)
        place = jnp.minimum(place, jnp.sum(counts, axis=0) - 1)
        return jnp.take_along_axis(ascending, jnp.maximum(place, 0)[None], axis=0)[0]

    found = jax.vmap(at)(levels).T
    return jnp.where(undefined[:, None], jnp.nan, found)
