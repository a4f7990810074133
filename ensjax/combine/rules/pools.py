"""Opinion pools: rules that make one distribution over classes of the members'.

`[member, batch, class]` logits or `Predictions` in, log-probabilities `[batch, class]`
in nats out, as from `mean_probs` and `mean_logits`. All are computed in log-space.
Weights are normalised over the members that count, unless a rule says otherwise.
"""

import jax
import jax.numpy as jnp

from ensjax.combine.rules.location import (
    huber_mean,
    middle_pair,
    trim_members,
    winsorize_members,
)
from ensjax.combine.rules.member_values import member_log_probs
from ensjax.predictions import (
    Predictions,
    as_predictions,
    predictive_log_probs,
    weighted_log_probs,
)
from ensjax.scores.uncertainty import predictive_entropy


def product_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Normalised product of the members' probabilities: they as independent evidence.

        log p(y | x) = sum_m w_m log p_m(y | x) - log Z(x),   w_m = 1

    `mean_logits` without the division by M: members that say the same make it surer,
    so that a member that comes twice counts twice. One probability of 0 is a veto.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`: exponents, *not* normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, class]` log-probabilities in nats. NaN in rows where no member counts,
        uniform in rows where every class has a veto.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Kittler et al. 1998, equation 7, with equal priors.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    values, shares = weighted_log_probs(predictions)
    # Shares sum to 1; times the total they are the exponents again.
    total = jnp.where(_by_row(predictions.mask), _by_row(predictions.weights), 0.0)
    exponents = shares * jnp.sum(total, axis=0)[None, :, None]
    silent = exponents == 0  # 0 * -inf is NaN
    return _renormalize(jnp.sum(jnp.where(silent, 0.0, exponents * values), axis=0))


def max_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The largest probability that any member gives each class, normalised.

    Arguments and result as for `median_probs`; weights only say who counts (above 0).

    Source: Kittler et al. 1998, section 4.
    """
    return _extreme(*member_log_probs(logits, weights, mask), 1)


def min_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The smallest probability that any member gives each class, normalised.

    Arguments and result as for `median_probs`; weights only say who counts (above 0).

    Source: Kittler et al. 1998, section 4.
    """
    return _extreme(*member_log_probs(logits, weights, mask), -1)


def median_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The median over members of each class's probability, normalised.

    Medians of classes do not sum to 1. A minority of broken members, however sure, does
    little harm. With an even number of members, the mean of the two middle ones.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative: a weighted median.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.

    Returns:
        `[batch, class]` log-probabilities in nats. NaN in rows where no member counts,
        uniform in rows where every class has probability 0.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Kittler et al. 1998, section 4; Marinescu et al. 2020, arXiv:2002.03419
    (ConsensusMedian).

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> probs = jnp.array([[[0.6, 0.4]], [[0.7, 0.3]], [[0.0, 1.0]]])
        >>> pooled = jnp.exp(combine.median_probs(jnp.log(probs)))
        >>> [round(float(p), 2) for p in pooled[0]]
        [0.6, 0.4]
    """
    low, high = middle_pair(*member_log_probs(logits, weights, mask))
    return _renormalize(jnp.logaddexp(low, high))


def trimmed_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    share: float = 0.2,
) -> jax.Array:
    """Mean of each class's probabilities without its lowest and highest, normalised.

    Other arguments and result as for `median_probs`.

    Args:
        share: of the members' weight that is cut off at either end, in [0, 0.5); a
            member that the cut goes through counts in part. 0: `mean_probs`.

    Raises:
        ValueError: if `share` is out of range.

    Source: Huber 1981, section 3.3, and as for `median_probs`.
    """
    members = trim_members(*member_log_probs(logits, weights, mask), share)
    return _renormalize(_log_mean(*members))


def winsorized_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    share: float = 0.2,
) -> jax.Array:
    """Mean of each class's probabilities with the outermost drawn in, normalised.

    Other arguments and result as for `median_probs`.

    Args:
        share: of the members' weight at either end that takes the value of the next
            member inwards, in [0, 0.5). 0: `mean_probs`.

    Raises:
        ValueError: if `share` is out of range.

    Source: Huber 1981, section 3.3, and as for `median_probs`.
    """
    members = winsorize_members(*member_log_probs(logits, weights, mask), share)
    return _renormalize(_log_mean(*members))


def huber_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    threshold: float = 1.345,
) -> jax.Array:
    """Huber's mean of each class's probabilities, normalised.

    Of probabilities, not of their logarithms: those that float32 rounds to 0 are 0.
    Other arguments and result as for `median_probs`.

    Args:
        threshold: in robust standard deviations of the members; those further from the
            middle are drawn in.

    Raises:
        ValueError: if `threshold` is not positive.

    Source: Huber 1964, equation 1.7 ff., and as for `median_probs`.
    """
    values, weights = member_log_probs(logits, weights, mask)
    mean = huber_mean(jnp.exp(values), weights, threshold)
    return _renormalize(jnp.log(mean))


def entropy_weights(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    strength: float = 1.0,
) -> jax.Array:
    """Weights of members at each row, larger for those that are surer there.

        w_m(x) = w_m exp(-b H(p_m(x))) / Z(x)

    Args:
        logits, weights, mask: as for `median_probs`.
        strength: b, per nat; 0: the weights as they are. Over-confident members gain.

    Returns:
        `[member, batch]`, summing to 1 over members.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.
    """
    values, weights = member_log_probs(logits, weights, mask)
    weights = weights[..., 0]
    entropy = predictive_entropy(values)  # [member, batch]
    lowest = jnp.where(weights > 0, entropy, jnp.inf)
    lowest = jnp.min(lowest, axis=0, keepdims=True)
    tilted = jnp.where(weights == 0, 0.0, jnp.exp(-strength * (entropy - lowest)))
    tilted = weights * tilted
    return tilted / jnp.sum(tilted, axis=0, keepdims=True)


def entropy_weighted_probs(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    strength: float = 1.0,
) -> jax.Array:
    """The mixture of the members, each row's weights from `entropy_weights`.

    For members that fail in places and know it. Arguments as for `entropy_weights`,
    result as for `median_probs`.
    """
    predictions = as_predictions(logits, weights=weights, mask=mask)
    by_row = entropy_weights(predictions, strength=strength)
    return predictive_log_probs(predictions, by_row)


def rank_sum(
    logits: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean Borda points of each class: how many others a member puts below it.

        b_c = sum_m w_m (C - rank_m(c)),   rank 1 is a member's first choice

    It depends on the order of a member's classes alone, whatever its scale; classes
    that a member holds equal share their points.

    Args:
        logits, weights, mask: as for `median_probs`.

    Returns:
        Points from 0 to C - 1, `[batch, class]`; no probabilities. The largest is the
        choice: `predictions.votes`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if only votes are known.

    Source: Borda 1781; Ho et al. 1994, section 3.2.
    """
    values, weights = member_log_probs(logits, weights, mask)
    points = jax.scipy.stats.rankdata(values, axis=-1) - 1
    undefined = jnp.any(jnp.isnan(values), axis=-1, keepdims=True)
    return jnp.sum(weights * jnp.where(undefined, jnp.nan, points), axis=0)


def _extreme(values, weights, sign):
    undefined = jnp.any(jnp.isnan(values) & (weights > 0) | jnp.isnan(weights), axis=0)
    extreme = sign * jnp.max(jnp.where(weights > 0, sign * values, -jnp.inf), axis=0)
    return _renormalize(jnp.where(undefined, jnp.nan, extreme))


def _by_row(array):
    """`[member]` or `[member, batch]` as `[member, 1]` or `[member, batch]`."""
    return array.reshape(array.shape[0], -1)


def _log_mean(log_values, weights):
    """log sum_m w_m exp(log_values), `[member, ...]` to `[...]`."""
    silent = weights == 0
    peak = jnp.max(jnp.where(silent, -jnp.inf, log_values), axis=0)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    away = jnp.where(silent, 0.0, log_values - peak[None])
    return jnp.log(jnp.sum(weights * jnp.exp(away), axis=0)) + peak


def _renormalize(log_values):
    """Rows that sum to 1; uniform where every class has probability 0."""
    empty = jnp.all(log_values == -jnp.inf, axis=-1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(empty, 0.0, log_values), axis=-1)
