"""Multinomial logistic regression with a ridge, by a compiled Newton method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.combine.calibration.newton import minimize_convex
from ensjax.member_arrays import wide_labels


class LogisticWeights(NamedTuple):
    """`kernel [feature, column]` and `bias [column]`; C - 1 = 1 column for 2 classes,
    else C."""

    kernel: jax.Array
    bias: jax.Array


def logistic_log_probs(weights: LogisticWeights, features: jax.Array) -> jax.Array:
    """Log-probabilities `[batch, class]` of features `[batch, feature]`, in nats."""
    columns = jnp.matmul(features, weights.kernel, precision="highest")
    columns = columns + weights.bias[None]
    if columns.shape[-1] == 1:  # two classes: the first one's logit is 0
        columns = jnp.concatenate([jnp.zeros_like(columns), columns], axis=-1)
    return jax.nn.log_softmax(columns, axis=-1)


def fit_logistic(
    features: jax.Array,
    labels: jax.Array,
    sample_weight: jax.Array,
    *,
    num_classes: int,
    l2: jax.Array | float,
) -> LogisticWeights:
    """The weights with the least ridge-penalised NLL; from zero, without randomness.

        min  sum_n s_n nll_n + l2 / 2 |kernel|^2

    The bias is free. It is scikit-learn's `LogisticRegression(C=1 / l2)`, also in that
    two classes have one column. Newton's method, until what a step gains is rounding.

    Args:
        features: `[batch, feature]`, finite where the weight is not 0.
        labels: `[batch]`, from 0 to `num_classes` - 1.
        sample_weight: `[batch]`, non-negative.
        num_classes: at least 2.
        l2: non-negative.
    """
    columns = 1 if num_classes == 2 else num_classes
    features = jnp.where(sample_weight[:, None] == 0, 0.0, features)
    labels = wide_labels(labels)
    known = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(known, labels, 0)
    total = jnp.sum(sample_weight)
    start = LogisticWeights(
        jnp.zeros((features.shape[1], columns), features.dtype),
        jnp.zeros(columns, features.dtype),
    )

    def loss(weights):
        log_probs = logistic_log_probs(weights, features)
        picked = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
        ridge = l2 / 2 * jnp.sum(weights.kernel**2)
        return (ridge - jnp.sum(sample_weight * picked)) / total

    fitted = minimize_convex(loss, start)
    # A label out of range cannot raise in a compiled program.
    unfit = jnp.any(~known & (sample_weight != 0))
    return jax.tree.map(lambda leaf: jnp.where(unfit, jnp.nan, leaf), fitted)
