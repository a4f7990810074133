"""Losses of one member: `loss(model, batch, key) -> scalar, metrics`.

Each is a mean over the batch, so that data shards of equal size average to the loss of
the whole batch. With `fit(loss_weights=...)` they are called with a fourth argument,
the weights of the rows, and the mean is a weighted one; metrics are not weighted.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.data import sampling
from ensjax.member_arrays import wide_labels
from ensjax.ops.limits import at_least


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


def weighted_mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Mean over the batch, weighted: sum_n w_n v_n / sum_n w_n over all data shards.

    The sum of the weights is that of the whole global batch, so that the mean of the
    shards' results is the weighted mean of the batch. A row of weight 0 does not count,
    even if its loss is NaN. A batch without any weight has mean 0 and no gradient.

    Args:
        values: one loss per row of this data shard, `[batch]`.
        weight: `[batch]`, not negative; None weighs rows equally.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    if weight is None:
        return values.mean()
    if values.shape != weight.shape:
        raise ValueError(
            "a weighted loss has one value and one weight per row; got values"
            f" {values.shape} and weight {weight.shape}."
        )
    total = jnp.sum(weight)
    with contextlib.suppress(NameError):  # outside the mesh there is one shard
        total = jax.lax.pmean(total, "data")
    weighted = jnp.sum(jnp.where(weight == 0, 0.0, values) * weight)
    return weighted / jnp.where(total == 0, 1.0, total)


def cross_entropy(
    model: Any, batch: Any, key: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, dict]:
    """Mean negative log-likelihood of the labels, in nats; metric "accuracy".

    Args:
        model: called as `model(x)` -> logits `[batch, class]`.
        batch: `(x, labels)`, labels integers `[batch]`. A label that is no class makes
            the loss NaN, so that training reports it at once.
        key: unused.
        weight: of the rows, `[batch]`; see `weighted_mean`.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if the logits are not `[batch, class]`.
    """
    del key
    x, labels = batch
    logits = model(x)
    _check_logits("cross_entropy", logits, labels)
    nll = -label_log_probs(logits, labels)
    correct = jnp.argmax(logits, axis=1) == labels
    return weighted_mean(nll, weight), {"accuracy": correct.astype(jnp.float32).mean()}


@dataclasses.dataclass(frozen=True)
class FocalLoss:
    """Cross-entropy that turns to the rows that are still wrong, in nats.

        L = - mean_n (1 - p_n)^gamma log p_n,      p_n the probability of the label

    gamma = 0 is `cross_entropy`. It is no proper score: probabilities come out too
    flat. Called as a loss; metrics "nll" and "accuracy".

    Attributes:
        gamma: how strongly sure rows are discounted, at least 0; 2 in the paper.

    Source: Lin et al. 2017, arXiv:1708.02002, equation 4 (without its alpha, which
    `fit(loss_weights=...)` gives as `data.class_weights` of the rows).
    """

    gamma: float = 2.0

    def __post_init__(self):
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0; got {self.gamma}.")

    def __call__(self, model, batch, key, weight=None):
        """The loss and its metrics; arguments as for `cross_entropy`."""
        del key
        x, labels = batch
        logits = model(x)
        _check_logits("FocalLoss", logits, labels)
        log_probs = label_log_probs(logits, labels)
        # 1 - p = -expm1(log p), which keeps its digits where p is near 1. The power of
        # 0 has no gradient in floating point for gamma below 1.
        missing = at_least(-jnp.expm1(log_probs), jnp.finfo(jnp.float32).tiny)
        losses = -(missing**self.gamma) * log_probs
        correct = jnp.argmax(logits, axis=1) == labels
        return weighted_mean(losses, weight), {
            "nll": -log_probs.mean(),
            "accuracy": correct.astype(jnp.float32).mean(),
        }


@dataclasses.dataclass(frozen=True)
class LogitAdjustedLoss:
    """Cross-entropy of logits plus `scale` times the log of the classes' frequencies.

        L = - mean_n log softmax(z_n + scale log prior)[y_n]

    What is trained so and used without the adjustment predicts for classes that are
    equally frequent. Called as a loss; metric "accuracy", of the unadjusted logits.

    Attributes:
        prior: frequency of each class among the training rows, positive.
        scale: tau of the paper; 1 is consistent for the balanced error.

    Source: Menon et al. 2021, arXiv:2007.07314, equation 10.
    """

    prior: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self):
        if not all(p > 0 for p in self.prior):
            raise ValueError(f"prior must be positive; got {self.prior}.")

    def __call__(self, model, batch, key, weight=None):
        """The loss and its metrics; arguments as for `cross_entropy`."""
        del key
        x, labels = batch
        logits = model(x)
        _check_logits("LogitAdjustedLoss", logits, labels)
        if logits.shape[1] != len(self.prior):
            raise ValueError(
                f"prior has {len(self.prior)} classes and the logits {logits.shape[1]}."
            )
        shift = self.scale * jnp.log(jnp.asarray(self.prior, jnp.float32))
        nll = -label_log_probs(logits.astype(jnp.float32) + shift[None], labels)
        correct = jnp.argmax(logits, axis=1) == labels
        metrics = {"accuracy": correct.astype(jnp.float32).mean()}
        return weighted_mean(nll, weight), metrics


def _check_logits(name, logits, labels):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name} needs integer labels [batch]; got dtype {labels.dtype}."
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{name} needs logits [batch, class] and labels [batch]; got"
            f" {logits.shape} and {labels.shape}."
        )


def label_log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability of each label, in nats; NaN where a label is no class.

    Args:
        logits: `[..., batch, class]`.
        labels: integers `[batch]`.

    Returns:
        `[..., batch]`, float32.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    labels = wide_labels(labels)
    # One-hot instead of a gather: the gradient of a gather is a scatter, which is slow
    # under vmap.
    chosen = labels[:, None] == jnp.arange(logits.shape[-1])[None]
    chosen = chosen.reshape((1,) * (logits.ndim - 2) + chosen.shape)
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    is_class = is_class.reshape((1,) * (logits.ndim - 2) + is_class.shape)
    return jnp.where(
        is_class, jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1), jnp.nan
    )


def mean_squared_error(
    model: Any, batch: Any, key: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Mean squared error over batch and outputs.

    Args:
        model: called as `model(x)` -> `[batch, ...]`, the shape of the targets.
        batch: `(x, targets)`.
        key: unused.
        weight: of the rows, `[batch]`; see `weighted_mean`.
    """
    del key
    errors = _errors(model, batch) ** 2
    return weighted_mean(errors.reshape(len(errors), -1).mean(axis=1), weight)


def mean_absolute_error(
    model: Any, batch: Any, key: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Mean absolute error over batch and outputs; arguments as `mean_squared_error`."""
    del key
    errors = jnp.abs(_errors(model, batch))
    return weighted_mean(errors.reshape(len(errors), -1).mean(axis=1), weight)


def _errors(model, batch):
    x, targets = batch
    outputs = model(x)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"Outputs {outputs.shape} and targets {targets.shape} must agree in shape;"
            " a missing last axis would broadcast to a wrong loss."
        )
    return outputs.astype(jnp.float32) - targets


def gaussian_nll(
    model: Any,
    batch: Any,
    key: jax.Array,
    weight: jax.Array | None = None,
    *,
    min_variance: float = 1e-6,
) -> tuple[jax.Array, dict]:
    """Mean Gaussian negative log-likelihood of targets, in nats; metric "mse".

        (log(2 pi var) + (y - mean)^2 / var) / 2,   var = softplus(s) + min_variance

    Args:
        model: called as `model(x)` -> `[batch, 2]`: the mean and `s`.
        batch: `(x, targets)`, targets `[batch]`.
        key: unused.
        weight: of the rows, `[batch]`; see `weighted_mean`.
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
    return weighted_mean(nll, weight), {"mse": squared_error.mean()}
