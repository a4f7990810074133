"""Class frequencies that are other at test time than they were in training."""

import jax
import jax.numpy as jnp

from ensjax.predictions import log_probs as normalize


def adjust_prior(
    log_probs: jax.Array,
    train_prior: jax.Array,
    target_prior: jax.Array | None = None,
    *,
    scale: float = 1.0,
) -> jax.Array:
    """Log-probabilities for other class frequencies, without training again.

        log q(y | x) = log p(y | x) - scale (log train_prior_y - log target_prior_y)
                       - log Z(x)

    Exact if only the frequencies differ, and the probabilities were calibrated. With
    no target prior, classes are equally frequent: post-hoc logit adjustment. A model
    that was trained with `losses.LogitAdjustedLoss` needs none.

    Args:
        log_probs: log-probabilities (or logits), `[..., class]`; pooled already.
        train_prior: class frequencies in training, `[class]`, positive.
        target_prior: those to predict for, `[class]`; None: all alike. A class of
            frequency 0 gets probability 0.
        scale: tau of the paper.

    Returns:
        `[..., class]`, in nats.

    Raises:
        ValueError: if a shape does not fit.

    Source: Saerens et al. 2002, equation 2.4; Menon et al. 2021, arXiv:2007.07314,
    equation 9.
    """
    values = normalize(log_probs)
    shape = values.shape[-1:]
    priors = [jnp.asarray(train_prior, values.dtype)]
    if target_prior is not None:
        priors.append(jnp.asarray(target_prior, values.dtype))
    for prior in priors:
        if prior.shape != shape:
            raise ValueError(
                f"a prior must be [class] = {shape}; got shape {prior.shape}."
            )
    shift = -jnp.log(priors[0])
    if target_prior is not None:
        shift = shift + jnp.log(priors[1])
    shift = (scale * shift).reshape((1,) * (values.ndim - 1) + shape)
    return normalize(values + shift)
