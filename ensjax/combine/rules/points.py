"""Rules that make one number of the members' numbers, and one distribution.

Points are `[member, batch]` or `[member, batch, target]`, or `Predictions` of them; a
result has no member axis. Weights are normalised over the members that count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.combine.rules.location import (
    huber_mean,
    middle_pair,
    trim_members,
    weighted_sum,
    winsorize_members,
)
from ensjax.combine.rules.member_values import member_points
from ensjax.predictions import Predictions, as_points
from ensjax.scores.regression import mixture_moments


class Gaussian(NamedTuple):
    """Mean and standard deviation, arrays of one shape."""

    mean: jax.Array
    std: jax.Array


def mean_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The weighted mean of the members' points.

    Args:
        points: `[member, batch]` or `[member, batch, target]`, or `Predictions`.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed, and its
            NaN do no harm.

    Returns:
        `[batch]` or `[batch, target]`. NaN in rows where no member counts, and where
        one that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: for predictions that are no points.
    """
    values, weights = member_points(points, weights, mask)
    return jnp.sum(weights * values, axis=0)


def median_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The weighted median of the members' points.

    Broken members do little harm while they are a minority. Of an even number of
    members it is the mean of the two in the middle. Arguments and result as for
    `mean_points`.

    Source: Marinescu et al. 2020, arXiv:2002.03419 (ConsensusMedian).

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> combine.median_points(jnp.array([[1.0], [2.0], [1000.0]])).tolist()
        [2.0]
    """
    low, high = middle_pair(*member_points(points, weights, mask))
    return (low + high) / 2


def trimmed_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    share: float = 0.2,
) -> jax.Array:
    """The mean without the lowest and the highest members at each place.

    Other arguments and result as for `mean_points`.

    Args:
        share: of the members' weight that is cut off at either end, in [0, 0.5). A
            member that the cut goes through counts in part (`scipy.stats.trim_mean`
            rounds down instead). 0: the mean.

    Raises:
        ValueError: if `share` is out of range.

    Source: Huber 1981, section 3.3.
    """
    return weighted_sum(*trim_members(*member_points(points, weights, mask), share))


def winsorized_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    share: float = 0.2,
) -> jax.Array:
    """The mean with the outermost members drawn in to the next ones.

    Other arguments and result as for `mean_points`.

    Args:
        share: of the members' weight at either end that takes the value of the next
            member inwards, in [0, 0.5). 0: the mean.

    Raises:
        ValueError: if `share` is out of range.

    Source: Huber 1981, section 3.3.
    """
    members = winsorize_members(*member_points(points, weights, mask), share)
    return weighted_sum(*members)


def huber_points(
    points: jax.Array | Predictions,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    threshold: float = 1.345,
) -> jax.Array:
    """Huber's mean: members far from the middle pull no more than nearer ones.

    See `location.huber_mean`. Other arguments and result as for `mean_points`.

    Args:
        threshold: in robust standard deviations of the members (1.4826 MAD); 1.345 has
            95 % efficiency for a normal distribution.

    Raises:
        ValueError: if `threshold` is not positive.

    Source: Huber 1964, equation 1.7 ff.
    """
    return huber_mean(*member_points(points, weights, mask), threshold)


def inverse_variance_points(
    points: jax.Array | Predictions,
    scale: jax.Array | None = None,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The mean, weighted at each place by how sure the members are there.

        sum_m w_m s_m^-2 f_m / sum_m w_m s_m^-2

    Worth what the stated standard deviations are: a member that states too small ones
    takes over.

    Args:
        points, weights, mask: as for `mean_points`.
        scale: positive standard deviations of the members, in the shape of the points;
            None: those of the `Predictions`.

    Returns:
        As `mean_points`; NaN where a standard deviation that counts is not positive.

    Raises:
        ValueError: if a shape does not fit, or no scale is known.
        TypeError: for predictions that are no points.

    Source: Cochran 1937.
    """
    predictions = _with_scale(points, scale, weights, mask)
    values, weights = member_points(predictions)
    scale = jnp.where(weights == 0, jnp.inf, predictions.scale)
    scale = jnp.where(scale > 0, scale, jnp.nan)
    # Over the smallest, since squares of small numbers are none in float32.
    smallest = jnp.min(scale, axis=0, keepdims=True)
    sureness = weights * (smallest / scale) ** 2
    return jnp.sum(sureness * values, axis=0) / jnp.sum(sureness, axis=0)


def gaussian_mixture(
    points: jax.Array | Predictions,
    scale: jax.Array | None = None,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Gaussian:
    """Mean and standard deviation of the mixture of the members' normal distributions.

    `scores.mixture_moments`, with masks and weights by row. Arguments as for
    `inverse_variance_points`.

    Returns:
        `Gaussian`; of one member its own. NaN where no member counts, and where a
        standard deviation that counts is negative.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4.
    """
    predictions = _with_scale(points, scale, weights, mask)
    values, weights = member_points(predictions)
    scale = jnp.where(predictions.scale < 0, jnp.nan, predictions.scale)
    rows = jnp.broadcast_to(weights.reshape(len(weights), -1), values.shape[:2])

    def one_row(mean, variance, weights):
        return mixture_moments(mean, variance, weights=weights)

    mean, variance = jax.vmap(one_row, in_axes=1)(values, scale**2, rows)
    return Gaussian(mean, jnp.sqrt(variance))


def mean_ranks(
    values: jax.Array,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean over members of each row's rank among the rows, from 0 to 1.

        r_n = sum_m w_m (rows below n + half of those equal to it, n included) / N

    For ordering rows (AUROC) by members whose scores are on different scales.

    Args:
        values: scores `[member, batch]`; larger ranks higher.
        weights: `[member]` or `[member, batch]`, non-negative; they are normalised.
        mask: `[member]` or `[member, batch]`; a member's masked rows are neither ranked
            nor counted.

    Returns:
        `[batch]`; NaN in rows where no member counts.

    Raises:
        ValueError: if a shape does not fit.
    """
    values, weights = member_points(values, weights, mask)
    if values.ndim != 2:
        raise ValueError(f"values must be [member, batch]; got shape {values.shape}.")
    weights = jnp.broadcast_to(weights, values.shape)

    def ranks(values, counts):
        ascending = jnp.sort(jnp.where(counts, values, jnp.inf))
        below = jnp.searchsorted(ascending, values, side="left")
        # What is masked stands behind, as equals of a score of infinity.
        number = jnp.sum(counts)
        up_to = jnp.searchsorted(ascending, values, side="right")
        rank = (below + jnp.minimum(up_to, number)) / (2 * number)
        return jnp.where(jnp.isnan(values), jnp.nan, rank)

    ranked = jax.vmap(ranks)(values, weights > 0)
    return jnp.sum(weights * jnp.where(weights == 0, 0.0, ranked), axis=0)


def _with_scale(points, scale, weights, mask):
    predictions = as_points(points, weights=weights, mask=mask)
    if scale is not None:
        scale = jnp.asarray(scale, jnp.promote_types(jnp.result_type(scale), "float32"))
        if scale.shape != predictions.values.shape:
            raise ValueError(
                "scale must have the shape of the points,"
                f" {predictions.values.shape}; got {scale.shape}."
            )
        predictions = predictions.replace(scale=scale)
    if predictions.scale is None:
        raise ValueError(
            "these points state no standard deviation; give scale=, or make them with"
            " Predictions.from_points(points, scale=...)."
        )
    return predictions
