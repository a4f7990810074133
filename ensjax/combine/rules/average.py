"""Averages of the members' predictions: of probabilities, or of logits."""

import jax
import jax.numpy as jnp

from ensjax.combine.rules.member_values import member_log_probs
from ensjax.predictions import Predictions, log_probs, predictive_log_probs


def mean_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Log of the members' mean probability: the ensemble's predictive, a linear pool.

        log p(y | x) = log sum_m w_m p_m(y | x)

    Its NLL is never above the (weighted) mean of the members' NLL.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
            None weighs members equally, or as `Predictions` say.
        mask: `[member]` or `[member, batch]`. A False member counts as removed: its
            weight goes to the others, and its NaN do no harm.

    Returns:
        `[batch, class]` log-probabilities in nats, float32 or wider. NaN in rows where
        no member counts.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> sure_and_unsure = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
        >>> probs = jnp.exp(combine.mean_probs(sure_and_unsure))
        >>> [round(float(p), 3) for p in probs[0]]
        [0.7, 0.3]
    """
    return predictive_log_probs(logits, weights, mask)


def pooled_log_probs(
    logits: jax.Array | Predictions, weights: jax.Array | None = None
) -> jax.Array:
    """`mean_probs` of members, or the log-probabilities of one `[batch, class]`.

    What is fitted on a predictive takes it either way.
    """
    if not isinstance(logits, Predictions) and jnp.ndim(logits) == 2:
        return log_probs(logits)
    return mean_probs(logits, weights)


def mean_logits(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Log of the members' normalised geometric mean: a log-linear pool.

        log p(y | x) = sum_m w_m log p_m(y | x) - log Z(x)

    The same as the mean of the logits, normalised. It is sharper than `mean_probs`, it
    is not the ensemble's predictive, and a member that gives a class probability 0
    vetoes it (`Predictions.from_probs` clips).

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, class]` log-probabilities in nats, float32 or wider. NaN in rows where
        no member counts.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Genest and Zidek 1986, section 3 (logarithmic opinion pool).
    """
    values, weights = member_log_probs(logits, weights, mask)
    return jax.nn.log_softmax(jnp.sum(weights * values, axis=0), axis=-1)
