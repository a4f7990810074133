"""Maps of log-probabilities to better ones, each fitted on one model's held-out rows.

A `fit_...` function takes `log_probs [batch, class]`, `labels [batch]` and `weight
[batch]` and returns a pytree that is called on log-probabilities. `calibrate_ensemble`
and `calibrate_each_member` say of what: of the pooled ensemble, or of every member.
`calibrate` (one temperature) is the map with the least to learn: start there.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.isotonic_regression import (
    IsotonicFunction,
    fit_isotonic,
)
from ensjax.combine.calibration.newton import minimize_convex
from ensjax.member_arrays import wide_labels
from ensjax.ops.limits import at_least, at_most, between
from ensjax.predictions import log_probs as normalize
from ensjax.scores.rows import label_log_probs, weigh, weighted_mean

_SMALLEST_LOG_PROB = -1e4  # stands for -inf, whose product with 0 is NaN
_LARGEST_LOG_ODDS = 16.0  # float32 cannot tell probabilities nearer to 1
_SMALLEST_PROB = 1e-7  # as in Predictions.from_probs


@struct.dataclass
class AffineMap:
    """softmax(W log p + b): vector scaling if W is a diagonal, else matrix scaling.

    On log-probabilities, which makes the matrix form Dirichlet calibration.

    Attributes:
        kernel: the diagonal of W `[class]`, or W `[class out, class in]`.
        bias: `[class]`.
    """

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, log_probs: jax.Array) -> jax.Array:
        """`[batch, class]` log-probabilities of `[batch, class]`."""
        log_probs = at_least(normalize(log_probs), _SMALLEST_LOG_PROB)
        if self.kernel.ndim == 1:
            scaled = log_probs * self.kernel[None]
        else:
            scaled = jnp.matmul(log_probs, self.kernel.T, precision="highest")
        return normalize(scaled + self.bias[None])


def fit_vector_scaling(
    log_probs: jax.Array, labels: jax.Array, weight: jax.Array, *, l2: float = 1e-6
) -> AffineMap:
    """A factor and a bias for every class, by the least NLL.

        min  mean_n nll_n + l2 / 2 (|k - 1|^2 + |b|^2)

    Args:
        log_probs: `[batch, class]`.
        labels: class indices `[batch]`; one out of range that counts makes all NaN.
        weight: `[batch]`, non-negative.
        l2: pulls towards no change. It keeps the fit finite where all rows are right.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (without a penalty).
    """
    classes = log_probs.shape[-1]
    start = AffineMap(jnp.ones(classes), jnp.zeros(classes))

    def penalty(it):
        return l2 / 2 * (jnp.sum((it.kernel - 1) ** 2) + jnp.sum(it.bias**2))

    return _fit_affine(start, penalty, log_probs, labels, weight)


def fit_matrix_scaling(
    log_probs: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    *,
    l2: float = 1e-6,
    off_diagonal: float = 0.0,
    bias: float = 0.0,
) -> AffineMap:
    """A full matrix and a bias, by the least NLL: Dirichlet calibration.

        min  mean_n nll_n + l2 / 2 |W|^2
             + off_diagonal / (C (C - 1)) sum_{i != j} W_ij^2 + bias / C sum_i b_i^2

    C^2 + C numbers: few rows overfit them. With `off_diagonal` and `bias` (ODIR) they
    are pulled towards vector scaling.

    Args:
        log_probs: `[batch, class]`.
        labels: class indices `[batch]`; one out of range that counts makes all NaN.
        weight: `[batch]`, non-negative.
        l2: pulls the matrix towards 0, as in logistic regression with C = 1 / (n l2).
        off_diagonal: pulls the entries off the diagonal towards 0.
        bias: pulls the bias towards 0.

    Source: Kull et al. 2019, arXiv:1910.12656, section 3.
    """
    classes = log_probs.shape[-1]
    start = AffineMap(jnp.eye(classes), jnp.zeros(classes))
    off = 1 - jnp.eye(classes)

    def penalty(it):
        squares = it.kernel**2
        return (
            l2 / 2 * jnp.sum(squares)
            + off_diagonal / (classes * (classes - 1)) * jnp.sum(off * squares)
            + bias / classes * jnp.sum(it.bias**2)
        )

    return _fit_affine(start, penalty, log_probs, labels, weight)


def _fit_affine(start, penalty, log_probs, labels, weight):
    log_probs = jnp.where((weight == 0)[:, None], 0.0, log_probs)

    def loss(it):
        nll = -label_log_probs(it(log_probs), labels)
        return weighted_mean(nll, weight) + penalty(it)

    return minimize_convex(loss, start)


@struct.dataclass
class PlattMap:
    """A sigmoid of each class's log-odds, normalised over classes.

        p'_c proportional to sigmoid(slope_c log(p_c / (1 - p_c)) + offset_c)

    Attributes:
        slope: `[class]`.
        offset: `[class]`.
    """

    slope: jax.Array
    offset: jax.Array

    def __call__(self, log_probs: jax.Array) -> jax.Array:
        """`[batch, class]` log-probabilities of `[batch, class]`."""
        odds = _log_odds(log_probs)
        return normalize(
            jax.nn.log_sigmoid(odds * self.slope[None] + self.offset[None])
        )


def fit_platt(log_probs: jax.Array, labels: jax.Array, weight: jax.Array) -> PlattMap:
    """Platt scaling of every class against the rest.

    The targets are not 0 and 1 but 1 / (n- + 2) and (n+ + 1) / (n+ + 2), n+ being the
    weight of the class: that keeps the fit finite. Log-odds are cut off at +-16.

    Args:
        log_probs: `[batch, class]`.
        labels: class indices `[batch]`; one out of range that counts makes all NaN.
        weight: `[batch]`, non-negative.

    Source: Platt 1999, section 2.2; as scikit-learn's
    `CalibratedClassifierCV(method="sigmoid")` on log-odds.
    """
    odds = jnp.where((weight == 0)[:, None], 0.0, _log_odds(log_probs))
    is_class, weight = _one_vs_rest(log_probs, labels, weight)

    def fit(odds, is_class):
        positive = jnp.sum(weight * is_class)
        negative = jnp.sum(weight) - positive
        high, low = (positive + 1) / (positive + 2), 1 / (negative + 2)
        target = jnp.where(is_class > 0, high, low)

        def loss(line):
            z = line[0] * odds + line[1]
            nll = target * jax.nn.softplus(-z) + (1 - target) * jax.nn.softplus(z)
            return weighted_mean(nll, weight)

        prior = jnp.log((positive + 1) / (negative + 1))
        return minimize_convex(loss, jnp.stack([jnp.ones_like(prior), prior]))

    lines = jax.vmap(fit)(odds.T, is_class.T)
    return PlattMap(lines[:, 0], lines[:, 1])


@struct.dataclass
class IsotonicMap:
    """A non-decreasing function of each class's probability, normalised over classes.

    Probabilities below 1e-7 are raised to it, as in `Predictions.from_probs`.

    Attributes:
        functions: stacked, `[class, knot]`.
    """

    functions: IsotonicFunction

    def __call__(self, log_probs: jax.Array) -> jax.Array:
        """`[batch, class]` log-probabilities of `[batch, class]`."""
        probs = jnp.exp(normalize(log_probs))
        mapped = jax.vmap(lambda fn, p: fn(p), in_axes=(0, 1), out_axes=1)(
            self.functions, probs
        )
        total = jnp.sum(mapped, axis=-1, keepdims=True)
        # Every class may be mapped to 0: then nothing is known.
        mapped = jnp.where(total == 0, 1 / probs.shape[-1], mapped / total)
        return normalize(jnp.log(at_least(mapped, _SMALLEST_PROB)))


def fit_isotonic_map(
    log_probs: jax.Array, labels: jax.Array, weight: jax.Array
) -> IsotonicMap:
    """Isotonic regression of every class against the rest; needs a thousand rows or so.

    Args:
        log_probs: `[batch, class]`.
        labels: class indices `[batch]`; one out of range that counts makes all NaN.
        weight: `[batch]`, non-negative.

    Source: Zadrozny and Elkan 2002; as scikit-learn's
    `CalibratedClassifierCV(method="isotonic")`.
    """
    probs = jnp.exp(normalize(log_probs))
    is_class, weight = _one_vs_rest(log_probs, labels, weight)
    fit = jax.vmap(fit_isotonic, in_axes=(1, 1, None))
    return IsotonicMap(fit(probs, is_class, weight))


def _one_vs_rest(log_probs, labels, weight):
    """`[batch, class]` 0 or 1, and the weights, NaN where a label is out of range."""
    labels, classes = wide_labels(labels), log_probs.shape[-1]
    known = (labels >= 0) & (labels < classes)
    weight = weigh(jnp.where(known, 1.0, jnp.nan), weight)
    return jax.nn.one_hot(labels, classes), weight


def _log_odds(log_probs):
    log_probs = normalize(log_probs)
    rest = jnp.log(-jnp.expm1(at_most(log_probs, -1e-8)))
    return between(log_probs - rest, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS)
