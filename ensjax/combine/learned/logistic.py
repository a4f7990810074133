"""Multinomial logistic regression with a ridge, by a compiled Newton method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

MAX_NEWTON_STEPS = 60
_MAX_CG_STEPS = 300
_SMALL_DECREMENT = 1e-12  # of the mean loss, in nats; float32 sums end near it


class LogisticWeights(NamedTuple):
    """`kernel [feature, column]` and `bias [column]`; C - 1 = 1 column for 2 classes,
    else C."""

    kernel: jax.Array
    bias: jax.Array


def logistic_log_probs(weights: LogisticWeights, features: jax.Array) -> jax.Array:
    """Log-probabilities `[batch, class]` of features `[batch, feature]`, in nats."""
    columns = features @ weights.kernel + weights.bias[None]
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
    two classes have one column. Newton's directions come from conjugate gradients, with
    steps halved until the loss falls enough, until what a step gains is rounding.

    Args:
        features: `[batch, feature]`, finite where the weight is not 0.
        labels: `[batch]`, from 0 to `num_classes` - 1.
        sample_weight: `[batch]`, non-negative.
        num_classes: at least 2.
        l2: non-negative.
    """
    columns = 1 if num_classes == 2 else num_classes
    features = jnp.where(sample_weight[:, None] == 0, 0.0, features)
    known = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(known, labels, 0)
    total = jnp.sum(sample_weight)
    start, unravel = ravel_pytree(
        LogisticWeights(
            jnp.zeros((features.shape[1], columns), features.dtype),
            jnp.zeros(columns, features.dtype),
        )
    )

    def loss(flat):
        weights = unravel(flat)
        log_probs = logistic_log_probs(weights, features)
        picked = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
        ridge = l2 / 2 * jnp.sum(weights.kernel**2)
        return (ridge - jnp.sum(sample_weight * picked)) / total

    flat = _newton(loss, start)
    # A label out of range cannot raise in a compiled program.
    unfit = jnp.any(~known & (sample_weight != 0))
    return unravel(jnp.where(unfit, jnp.nan, flat))


def _newton(loss, start):
    """Minimises a smooth convex function."""
    gradient = jax.grad(loss)

    def direction(point):
        slope = gradient(point)

        def times_hessian(vector):
            return jax.jvp(gradient, (point,), (vector,))[1]

        step, _ = cg(times_hessian, -slope, tol=1e-3, maxiter=_MAX_CG_STEPS)
        return step, -jnp.vdot(slope, step)

    def halve(point, step, decrement):
        value = loss(point)
        # Below this the loss cannot tell better from worse, but Newton's step can.
        rounding = 1e-6 * (1 + jnp.abs(value))

        def too_long(carry):
            size, count = carry
            enough = value - 1e-4 * size * decrement + rounding
            return ~(loss(point + size * step) <= enough) & (count < 30)

        size, _ = jax.lax.while_loop(
            too_long, lambda carry: (carry[0] / 2, carry[1] + 1), (jnp.ones(()), 0)
        )
        return point + size * step

    def goes_on(carry):
        _, _, decrement, before, count = carry
        # Once within rounding, a decrement that no longer falls will not.
        stalls = (decrement < 1e-6) & (decrement > 0.25 * before)
        return (decrement > _SMALL_DECREMENT) & ~stalls & (count < MAX_NEWTON_STEPS)

    def advance(carry):
        point, step, decrement, _, count = carry
        point = halve(point, step, decrement)
        return (point, *direction(point), decrement, count + 1)

    first = (start, *direction(start), jnp.asarray(jnp.inf, start.dtype), 0)
    point, _, decrement, *_ = jax.lax.while_loop(goes_on, advance, first)
    return jnp.where(jnp.isfinite(decrement), point, jnp.nan)
