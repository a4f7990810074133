"""Uncertainty of predictions: one number per row, larger means less certain.

Total uncertainty = aleatoric (members' mean entropy) + epistemic (mutual information),
in nats. `max_prob` and `margin` are the exceptions: confidences, larger means surer.
"""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import counting_members
from ensjax.ops.limits import at_least
from ensjax.predictions import (
    ABSTAIN,
    Predictions,
    as_predictions,
    predictive_log_probs,
    weighted_log_probs,
)
from ensjax.predictions import log_probs as normalize
from ensjax.scores.evaluation_rows import check_scored
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
    return at_least(total - expected_entropy(predictions), 0.0)


def max_prob(log_probs: jax.Array) -> jax.Array:
    """Probability of each row's first choice, `[...]`: a confidence, from 1 / C to 1.

    Args:
        log_probs: log-probabilities (or logits), `[..., class]`.

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136.
    """
    return jnp.exp(jnp.max(normalize(log_probs), axis=-1))


def margin(log_probs: jax.Array) -> jax.Array:
    """Probability of the first choice minus the second's, `[...]`: a confidence (0-1).

    Args:
        log_probs: log-probabilities (or logits), `[..., class]`, two classes or more.

    Raises:
        ValueError: if there is one class.
    """
    values = normalize(log_probs)
    if values.shape[-1] < 2:
        raise ValueError(f"a margin needs two classes; got shape {values.shape}.")
    first, second = jnp.moveaxis(jax.lax.top_k(values, 2)[0], -1, 0)
    return jnp.exp(first) - jnp.exp(second)


def energy(logits: jax.Array) -> jax.Array:
    """Energy of each row, -log sum_c exp z_c, `[...]`; large for unfamiliar rows.

    Args:
        logits: what the network gave, `[..., class]`. Log-probabilities have energy 0,
            whatever they are: normalisation takes away what this measures.

    Source: Liu et al. 2020, arXiv:2010.03759, equation 3 (temperature 1).
    """
    return -jax.nn.logsumexp(_raw(logits), axis=-1)


def dempster_shafer(logits: jax.Array) -> jax.Array:
    """Mass that no class takes, C / (C + sum_c exp z_c), `[...]` (0-1).

    Args:
        logits: what the network gave, `[..., class]`, not normalised (see `energy`).

    Source: Sensoy et al. 2018, arXiv:1806.01768, equation 1; Liu et al. 2020,
    arXiv:2006.10108, section 5.2 (from logits).
    """
    logits = _raw(logits)
    evidence = jax.nn.logsumexp(logits, axis=-1)
    return jax.nn.sigmoid(jnp.log(logits.shape[-1]) - evidence)


def variation_ratio(
    logits: jax.Array | Predictions, *, mask: jax.Array | None = None
) -> jax.Array:
    """Share of the members that do not vote for the most frequent class, `[batch]`.

        1 - f_mode / M

    Votes count equally, whatever the members' weights, except that a member of weight 0
    does not vote; those that abstain do not count.

    Args:
        logits: `[member, batch, class]`, or `Predictions` (votes will do).
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch]`, from 0; NaN in rows where nobody votes.

    Raises:
        ValueError: if a shape does not fit.

    Source: Freeman 1965; Gal 2016, section 3.3.
    """
    return 1 - jnp.max(_vote_shares(logits, mask), axis=-1)


def vote_entropy(
    logits: jax.Array | Predictions, *, mask: jax.Array | None = None
) -> jax.Array:
    """Entropy of the members' votes, `[batch]`, in nats, not divided by log M.

        - sum_c (f_c / M) log (f_c / M)

    Arguments as for `variation_ratio`.

    Source: Dagan and Engelson 1995 (query by committee).
    """
    shares = _vote_shares(logits, mask)
    entropy = -jnp.sum(shares * jnp.log(jnp.where(shares == 0, 1.0, shares)), axis=-1)
    return jnp.where(entropy == 0, 0.0, entropy)  # not -0


def _vote_shares(logits, mask):
    """Share of the votes of each class, `[batch, class]`."""
    predictions = as_predictions(logits, mask=mask)
    choices = predictions.votes
    counts = counting_members(predictions.weights, predictions.mask)
    counts = counts.reshape(len(choices), -1)
    choices = jnp.where(counts, choices, ABSTAIN)
    chosen = jax.nn.one_hot(choices, predictions.num_classes, dtype=jnp.float32)
    counts = jnp.sum(chosen, axis=0)
    return counts / jnp.sum(counts, axis=-1, keepdims=True)


def _raw(logits):
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim < 1:
        raise TypeError(
            f"logits must be floating point [..., class]; got {logits.dtype} of shape"
            f" {logits.shape}."
        )
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def jensen_gap(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    allow_seen: bool = False,
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
        allow_seen: as for `evaluate`, of `Predictions`.

    Returns:
        A scalar.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `labels` are not integers.
        LeakageError: if a member that counts was trained on a row that does.

    Source: Jensen's inequality for the log score; Abe et al. 2022, arXiv:2202.06985,
    section 4.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    check_scored(predictions, sample_weight, allow_seen)
    values, weights = weighted_log_probs(predictions)
    values, labels, row_weight = check_rows(values, labels, sample_weight)
    picked, weights = label_log_probs(values, labels), weights[..., 0]
    pooled = jax.nn.logsumexp(picked, axis=0, b=jnp.broadcast_to(weights, picked.shape))
    gap = pooled - jnp.sum(weights * picked, axis=0)
    return weighted_mean(jnp.where(gap < 0, 0.0, gap), row_weight[0])
