"""Mixtures of experts at decision level: members' probabilities under a row's gates."""

import jax
import jax.numpy as jnp

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
            normalised over the members that count. Without one the transpose of
            `entropy_weights` will do, which is `entropy_weighted_probs`.
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
