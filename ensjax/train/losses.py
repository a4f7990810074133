"""Losses of one member: `loss(model, batch, key) -> scalar, metrics`.

Each is an unweighted mean over the batch, so that data shards of equal size average to
the loss of the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ensjax.data import sampling


def example_keys(key: jax.Array, num_examples: int) -> jax.Array:
    """One key per example, by its position in the global batch.

    A loss that draws random numbers for each example maps over these: the draws are
    then the same on every mesh, and data shards do not repeat each other's.

    Args:
        key: what the loss was given; the same on all data shards.
        num_examples: examples of this data shard.

    Returns:
        Keys `[batch]`.
    """
    try:
        first = jax.lax.axis_index("data") * num_examples
    except NameError:  # outside the mesh, where there is one shard
        first = 0
    return sampling.example_keys(key, first + jnp.arange(num_examples))


def cross_entropy(model: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
    """Mean negative log-likelihood of the labels, in nats; metric "accuracy".

    Args:
        model: called as `model(x)` -> logits `[batch, class]`.
        batch: `(x, labels)`, labels integers `[batch]`. A label that is no class makes
            the loss NaN, so that training reports it at once.
        key: unused.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if the logits are not `[batch, class]`.
    """
    del key
    x, labels = batch
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"cross_entropy needs integer labels [batch]; got dtype {labels.dtype}."
        )
    logits = model(x)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "cross_entropy needs logits [batch, class] and labels [batch]; got"
            f" {logits.shape} and {labels.shape}."
        )
    nll = -label_log_probs(logits, labels)
    correct = jnp.argmax(logits, axis=1) == labels
    return nll.mean(), {"accuracy": correct.astype(jnp.float32).mean()}


def label_log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability of each label, in nats; NaN where a label is no class.

    Args:
        logits: `[..., batch, class]`.
        labels: integers `[batch]`.

    Returns:
        `[..., batch]`, float32.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    # One-hot instead of a gather: the gradient of a gather is a scatter, which is slow
    # under vmap.
    chosen = labels[:, None] == jnp.arange(logits.shape[-1])[None]
    chosen = chosen.reshape((1,) * (logits.ndim - 2) + chosen.shape)
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    is_class = is_class.reshape((1,) * (logits.ndim - 2) + is_class.shape)
    return jnp.where(
        is_class, jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1), jnp.nan
    )


def mean_squared_error(model: Any, batch: Any, key: jax.Array) -> jax.Array:
    """Mean squared error over batch and outputs.

    Args:
        model: called as `model(x)` -> `[batch, ...]`, the shape of the targets.
        batch: `(x, targets)`.
        key: unused.
    """
    del key
    x, targets = batch
    outputs = model(x)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"Outputs {outputs.shape} and targets {targets.shape} must agree in shape;"
            " a missing last axis would broadcast to a wrong loss."
        )
    return jnp.mean((outputs.astype(jnp.float32) - targets) ** 2)


def gaussian_nll(
    model: Any, batch: Any, key: jax.Array, *, min_variance: float = 1e-6
) -> tuple[jax.Array, dict]:
    """Mean Gaussian negative log-likelihood of targets, in nats; metric "mse".

        (log(2 pi var) + (y - mean)^2 / var) / 2,   var = softplus(s) + min_variance

    Args:
        model: called as `model(x)` -> `[batch, 2]`: the mean and `s`.
        batch: `(x, targets)`, targets `[batch]`.
        key: unused.
        min_variance: keeps the variance away from 0.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, equation 1.
    """
    del key
    x, targets = batch
    outputs = model(x).astype(jnp.float32)
    if outputs.ndim != 2 or outputs.shape != (*targets.shape, 2):
        raise ValueError(
            "gaussian_nll needs outputs [batch, 2] (mean and pre-softplus variance) and"
            f" targets [batch]; got {outputs.shape} and {targets.shape}."
        )
    mean, variance = outputs[:, 0], jax.nn.softplus(outputs[:, 1]) + min_variance
    squared_error = (targets - mean) ** 2
    nll = 0.5 * (jnp.log(2 * jnp.pi * variance) + squared_error / variance)
    return nll.mean(), {"mse": squared_error.mean()}
