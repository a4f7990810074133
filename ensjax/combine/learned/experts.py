"""Mixtures of experts at decision level: members' probabilities under a row's gates."""

import jax
import jax.numpy as jnp

from ensjax.combine.learned.gates import softmax_gate
from ensjax.predictions import Predictions, as_predictions, predictive_log_probs


def mix_experts(
    logits: jax.Array | Predictions,
    gates: jax.Array,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Log-probabilities of the gated mixture, `[batch, class]` in nats.

        p(y | x) = sum_m g_m(x) p_m(y | x)

    Differentiable in the gates: a gating network is trained on `-log p(y | x)` while
    the experts stay as they are.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        gates: `[batch, member]`, non-negative, as a gating network gives them; they are
            normalised over the members that count.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Jacobs et al. 1991, Adaptive mixtures of local experts, equation 1.4.
    """
    predictions = as_predictions(logits, mask=mask)
    shape = (predictions.values.shape[1], predictions.num_members)
    gates = jnp.asarray(gates)
    if gates.shape != shape:
        raise ValueError(f"gates must be [batch, member] = {shape}; got {gates.shape}.")
    return predictive_log_probs(predictions, gates.T)


def confidence_gates(
    logits: jax.Array | Predictions,
    *,
    sharpness: float = 2.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Gates from how sure each member is, `[batch, member]`, without any fitting.

        g_m(x) proportional to exp(-sharpness H(p_m(. | x)))

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        sharpness: 0 weighs members equally.
        mask: `[member]` or `[member, batch]`; a False member has the gate 0.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.
    """
    predictions = as_predictions(logits, mask=mask)
    values = predictions.log_probs
    entropy = -jnp.sum(
        jnp.exp(values) * jnp.where(jnp.isneginf(values), 0.0, values), -1
    )
    counts = predictions.mask.reshape(predictions.num_members, -1)
    counts = jnp.broadcast_to(counts, entropy.shape)
    return softmax_gate(-sharpness * entropy.T, counts.T)
