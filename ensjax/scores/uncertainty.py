"""Uncertainty of predictions: entropies, mutual information, the Jensen gap; in nats.

Total uncertainty = aleatoric (members' mean entropy) + epistemic (mutual information).
"""

import jax
import jax.numpy as jnp

from ensjax.predictions import (
    Predictions,
    as_predictions,
    predictive_log_probs,
    weighted_log_probs,
)
from ensjax.predictions import log_probs as normalize
from ensjax.scores.rows import check_rows, label_log_probs, weighted_mean


def predictive_entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy of each row's distribution, in nats: the total uncertainty.

        H = - sum_c p_c log p_c

    Args:
        log_probs: log-probabilities (or logits), `[..., class]`; of the ensemble, give
            `combine.mean_probs(logits)`.

    Returns:
        `[...]`, from 0 to log of the number of classes.
    """
    values = normalize(log_probs)
    # 0 log 0 = 0, where a probability underflows.
    return -jnp.sum(
        jnp.where(values == -jnp.inf, 0.0, values) * jnp.exp(values), axis=-1
    )


def expected_entropy(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Weighted mean of the members' entropies, in nats: the aleatoric uncertainty.

    Args:
        logits: `[member, batch, class]` or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch]`.

    Raises:
        ValueError: if a shape does not fit.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    values, weights = weighted_log_probs(predictions)
    return jnp.sum(weights[..., 0] * predictive_entropy(values), axis=0)


def mutual_information(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Entropy of the ensemble minus the members' mean entropy: epistemic uncertainty.

        I = H(sum_m w_m p_m) - sum_m w_m H(p_m) >= 0

    Args:
        logits: `[member, batch, class]` or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch]`, in nats; negative rounding errors (about 1e-7) are set to 0.

    Raises:
        ValueError: if a shape does not fit.

    Source: Depeweg et al. 2018, arXiv:1710.07283, section 3; Houlsby et al. 2011,
    arXiv:1112.5745, equation 2.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    total = predictive_entropy(predictive_log_probs(predictions))
    return jnp.maximum(total - expected_entropy(predictions), 0.0)


def jensen_gap(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Members' mean NLL minus the ensemble's NLL, in nats; at least 0.

        gap = mean_n [log sum_m w_m p_m(y_n) - sum_m w_m log p_m(y_n)]

    What the ensemble gains over its average member, from diversity in the probability
    of the label alone.

    Args:
        logits: `[member, batch, class]` or `Predictions`.
        labels: class indices `[batch]`; out of range gives NaN.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        A scalar.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.

    Source: Jensen's inequality for the log score; Abe et al. 2022, arXiv:2202.06985,
    section 4.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    values, weights = weighted_log_probs(predictions)
    values, labels, row_weight = check_rows(values, labels, sample_weight)
    picked, weights = label_log_probs(values, labels), weights[..., 0]
    pooled = jax.nn.logsumexp(picked, axis=0, b=jnp.broadcast_to(weights, picked.shape))
    gap = pooled - jnp.sum(weights * picked, axis=0)
    return weighted_mean(jnp.where(gap < 0, 0.0, gap), row_weight[0])
