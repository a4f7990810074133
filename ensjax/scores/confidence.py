"""Confidence: one number per row, larger where a prediction is surer of itself.

Only the order of the numbers matters to selective prediction, detection and cascades,
and float32 probabilities lose it: all that lie above 1 - 6e-8 are 1. So the largest
probability is given as its log-odds, of the same order, which tell such rows apart.
"""

import jax
import jax.numpy as jnp

from ensjax.predictions import log_probs as normalize


def max_log_odds(logits: jax.Array) -> jax.Array:
    """Log-odds of the largest probability: the order of max_k p_k, without its ties.

        log p_c / (1 - p_c) = z_c - logsumexp_{k != c} z_k,      c = argmax_k z_k

    `jax.nn.sigmoid` of it is the largest probability itself.

    Args:
        logits: logits or log-probabilities, `[..., class]`; of an ensemble, give
            `combine.mean_probs(logits)`.

    Returns:
        `[...]`, in nats; infinite if no other class has a probability. NaN for a row
        with a NaN.

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136 (maximum softmax probability).

    Example:
        >>> import jax.numpy as jnp
        >>> sure = jnp.array([[40.0, 0.0], [50.0, 0.0]])  # both round to 1
        >>> max_log_odds(sure).tolist()
        [40.0, 50.0]
    """
    values = normalize(logits)
    odds, _ = _odds_and_others(values)
    return _nan_with(odds, values)


def class_log_odds(logits: jax.Array, index: int | jax.Array) -> jax.Array:
    """Log-odds of one class: the order of its probability, without its ties.

        log p_c / (1 - p_c) = z_c - logsumexp_{k != c} z_k

    Args:
        logits: logits or log-probabilities, `[..., class]`.
        index: of the class c.

    Returns:
        `[...]`, in nats; infinite where the class, or no other, has a probability of 0.
        NaN for a row with a NaN.
    """
    values = normalize(logits)
    own = jnp.take(values, index, axis=-1)
    return _nan_with(own - jax.nn.logsumexp(_without(values, index), axis=-1), values)


def negative_entropy(logits: jax.Array) -> jax.Array:
    """Minus the entropy of each row's distribution, in nats; at most 0.

    As `-predictive_entropy`, but with the log-probability of the first choice taken
    from its log-odds: where it is nearly 0, a log-softmax rounds it, and the order of
    sure rows is lost.

    Args:
        logits: logits or log-probabilities, `[..., class]`; of an ensemble, give
            `combine.mean_probs(logits)`.

    Returns:
        `[...]`. NaN for a row with a NaN.
    """
    values = normalize(logits)
    odds, others = _odds_and_others(values)
    first = -jax.nn.softplus(-odds)
    # 0 log 0 = 0.
    rest = jnp.where(others == -jnp.inf, 0.0, others) * jnp.exp(others)
    return _nan_with(jnp.sum(rest, axis=-1) + first * jnp.exp(first), values)


def max_logit(logits: jax.Array) -> jax.Array:
    """The largest logit, which normalising would change: give logits, not log-probs.

    Args:
        logits: `[..., class]`.

    Returns:
        `[...]`, float32. Members of different scale are not comparable.

    Source: Hendrycks et al. 2022, arXiv:1911.11132.
    """
    logits = _floating(logits)
    return _nan_with(jnp.max(logits, axis=-1), logits)


def negative_energy(logits: jax.Array) -> jax.Array:
    """Minus the free energy, logsumexp_k z_k; of log-probabilities it is 0.

    Args:
        logits: `[..., class]`, not normalised.

    Returns:
        `[...]`, float32. Members of different scale are not comparable.

    Source: Liu et al. 2020, arXiv:2010.03759, equation 6 at temperature 1, with the
    sign that makes larger surer.
    """
    return jax.nn.logsumexp(_floating(logits), axis=-1)


def _floating(logits):
    normalize(logits)  # its checks
    logits = jnp.asarray(logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _odds_and_others(values):
    """Log-odds of the first choice, and the values with -inf in its place."""
    others = _without(values, jnp.argmax(values, axis=-1)[..., None])
    return jnp.max(values, axis=-1) - jax.nn.logsumexp(others, axis=-1), others


def _without(values, index):
    """`values` with -inf in the place of a class."""
    classes = jnp.arange(values.shape[-1]).reshape(*[1] * (values.ndim - 1), -1)
    return jnp.where(classes == index, -jnp.inf, values)


def _nan_with(score, values):
    """NaN where a row holds one, whatever a compiled maximum makes of it."""
    return jnp.where(jnp.any(jnp.isnan(values), axis=-1), jnp.nan, score)
