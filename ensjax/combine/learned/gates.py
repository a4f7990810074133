"""Weights of members from scores: simplex, sigmoid and top-k gates, with masks.

Scores and weights have the member axis last, `[..., member]`, as a gating network
gives them. A masked member has the score -inf: zeros as its features alone would leave
it a share.
"""

import jax
import jax.numpy as jnp


def softmax_gate(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Weights that sum to 1 over the members that count; 0 for the others.

    Args:
        scores: `[..., member]`, already divided by a temperature.
        mask: bools of the same shape, or `[member]`. Where no member counts all weights
            are 0.
    """
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    mask = jnp.broadcast_to(mask, scores.shape)
    shown = jnp.where(mask, scores, -jnp.inf)
    peak = jnp.max(shown, axis=-1, keepdims=True)
    # Finite in both branches, for the gradient's sake.
    safe = jnp.where(mask, scores - jnp.where(jnp.isfinite(peak), peak, 0.0), 0.0)
    parts = jnp.where(mask, jnp.exp(safe), 0.0)
    total = jnp.sum(parts, axis=-1, keepdims=True)
    return parts / jnp.where(total > 0, total, 1.0)


def sigmoid_gate(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Weights in (0, 1), each member for itself; 0 for one that does not count.

    With an L1 penalty (the sum of the weights) members that do not help close.
    """
    weights = jax.nn.sigmoid(scores)
    if mask is None:
        return weights
    return jnp.where(jnp.broadcast_to(mask, scores.shape), weights, 0.0)


def top_k_gate(
    scores: jax.Array, number: int, mask: jax.Array | None = None
) -> jax.Array:
    """The softmax of the `number` largest scores alone; its gradient is of all.

    Forward, the other members have no weight; backward, the weights are those of
    `softmax_gate` (straight through), so that a member that is out can come in again.
    Of equal scores the first counts.

    Raises:
        ValueError: if `number` is not from 1 to the number of members.

    Source: Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator); Shazeer et
    al. 2017, arXiv:1701.06538 (top-k gates).
    """
    members = scores.shape[-1]
    if not 1 <= number <= members:
        raise ValueError(
            f"number must be from 1 to the {members} members; got {number}."
        )
    counts = jnp.ones(scores.shape, bool) if mask is None else mask
    counts = jnp.broadcast_to(counts, scores.shape)
    order = jnp.argsort(jnp.where(counts, -scores, jnp.inf), axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1)
    soft = softmax_gate(scores, counts)
    hard = softmax_gate(scores, counts & (ranks < number))
    return soft + jax.lax.stop_gradient(hard - soft)


def load_imbalance(weights: jax.Array) -> jax.Array:
    """KL divergence of the mean weights from equal ones, in nats; 0 when balanced.

        KL(mean_n w_n || 1 / M)

    A term of a loss that keeps gates from choosing one member always.

    Args:
        weights: `[batch, member]`, each row summing to 1.
    """
    mean = jnp.mean(weights, axis=0)
    log = jnp.log(jnp.where(mean > 0, mean, 1.0))
    return jnp.sum(mean * (log + jnp.log(float(mean.shape[0]))))


def gate_entropy(weights: jax.Array) -> jax.Array:
    """Mean entropy of the weights of a row, in nats: 0 if one member has all.

    Args:
        weights: `[batch, member]`, each row summing to 1.
    """
    log = jnp.log(jnp.where(weights > 0, weights, 1.0))
    return -jnp.mean(jnp.sum(weights * log, axis=-1))
