"""The continuous ranked probability score (CRPS) of an ensemble, in all its forms.

With A = mean_m |x_m - y| and D = sum_{i,j} |x_i - x_j| over all ordered pairs,

    standard      A - D / (2 M^2)            the score of these M members as they are
    fair          A - D / (2 M (M - 1))      unbiased for what they are drawn from
    almost fair   A - (1 - e) D / (2 M (M - 1)),   e = (1 - alpha) / M

The almost fair one is alpha times the fair plus 1 - alpha times the standard one. M is
the number of members that are there at each element. Ensembles of different size are
compared by the fair score, of members that are exchangeable draws; by the standard
score at equal M where members depend on each other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.regression import crps_gaussian as mean_crps_gaussian
from ensjax.scores.rows import floating
from ensjax.scores.spread import CrpsTerms
from ensjax.verification.ingredients import CRPS, MEMBERS
from ensjax.verification.metric import Metric

ESTIMATORS = ("standard", "fair", "almost_fair")


class CrpsParts(NamedTuple):
    """`crps` = `skill` - `spread` / 2, each averaged; in the unit of the values."""

    crps: jax.Array
    skill: jax.Array
    spread: jax.Array


def crps(estimator: str = "standard", *, alpha: float = 0.95) -> Metric:
    """The mean CRPS, in the unit of the values; less is better.

    Args:
        estimator: "standard", "fair" (may be negative) or "almost_fair".
        alpha: of the almost fair form, from 0 (standard) to 1 (fair).

    Raises:
        ValueError: if the estimator is unknown or alpha is out of range.

    Source: Gneiting and Raftery 2007, equation 20; Ferro 2014, QJRMS 140, equation 5;
    Lang et al. 2024, arXiv:2412.15832, equation 4 (almost fair).

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import verification
        >>> forecast = jnp.array([[0.1], [0.4], [0.9], [1.6], [2.5]])  # [member, case]
        >>> score = verification.crps("fair")(forecast, jnp.array([0.7]))
        >>> round(float(score), 4)
        0.16
    """
    return _crps(weight_of_fair(estimator, alpha), False)


def crps_parts(estimator: str = "standard", *, alpha: float = 0.95) -> Metric:
    """The CRPS with its two parts, `CrpsParts`; arguments as for `crps`.

    The skill is the members' mean absolute error and the spread their mean distance:
    D / (M (M - 1)) for the fair form, D / M^2 for the standard one.
    """
    return _crps(weight_of_fair(estimator, alpha), True)


def weight_of_fair(estimator: str, alpha: float) -> float:
    """How much of the fair estimator is in a form: 0, 1, or `alpha`.

    Raises:
        ValueError: if the estimator is unknown or alpha is out of range.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1; got {alpha}.")
    return {"standard": 0.0, "fair": 1.0}.get(estimator, float(alpha))


def mean_distance(pairs: jax.Array, count: jax.Array, fair: float) -> jax.Array:
    """The mean distance of two members, from its sum over m < l, in the form of `fair`.

    NaN where there are fewer members than the form needs.
    """
    count = count.astype(pairs.dtype)
    if fair == 0:
        return 2 * pairs / jnp.where(count > 0, count, jnp.nan) ** 2
    number = count * (count - 1)
    kept = 1 - (1 - fair) / jnp.maximum(count, 1)
    return 2 * kept * pairs / jnp.where(number > 0, number, jnp.nan)


def crps_values(terms: CrpsTerms, fair: float) -> jax.Array:
    """The CRPS of every element, `[...]`, in the form of `fair`."""
    spread = mean_distance(terms.pairs, terms.num_members, fair)
    return terms.error - spread / 2


@functools.lru_cache(maxsize=64)
def _crps(fair, parts):
    def statistics(terms, truth, reference):
        del truth, reference
        spread = mean_distance(terms.pairs, terms.num_members, fair)
        if parts:
            return {"skill": terms.error, "spread": spread}
        return {"crps": terms.error - spread / 2}

    def final(mean):
        if not parts:
            return mean["crps"]
        skill, spread = mean["skill"], mean["spread"]
        return CrpsParts(skill - spread / 2, skill, spread)

    return Metric(
        CRPS,
        statistics,
        final,
        best="low",
        is_fair=fair == 1,
        least_members=2 if fair > 0 else 1,
    )


@functools.lru_cache(maxsize=1)
def crps_gaussian() -> Metric:
    """The mean CRPS of normal distributions, in the unit of the values.

    Its forecast is `[2, *truth]`: the means, then the standard deviations, which are
    positive (else the element is not scored). See `scores.crps_gaussian`.
    """

    def statistics(members, truth, reference):
        del reference
        if len(members.values) != 2:
            raise ValueError(
                "the forecast must be [2, *truth], means and standard deviations; got"
                f" {len(members.values)} rows."
            )
        mean, std = members.values
        is_known = jnp.all(members.mask, axis=0) & (std > 0)
        score = mean_crps_gaussian(
            mean[..., None],
            jnp.where(is_known, std, jnp.nan)[..., None],
            truth[..., None],
        )
        return {"crps": score}

    return Metric(MEMBERS, statistics, lambda mean: mean["crps"], best="low")


def crps_pwm(forecast: jax.Array, truth: jax.Array) -> jax.Array:
    """The CRPS of every element by probability-weighted moments, `[...]`.

        A + b0 - 2 b1,   b0 = mean x,   b1 = sum_m (m - 1) x_(m) / (M (M - 1))

    It equals the fair form exactly, and is here to check it.

    Args:
        forecast: `[member, ...]`, none missing.
        truth: `[...]`.

    Source: Zamo and Naveau 2018, Mathematical Geosciences 50, equation 30.
    """
    away = floating(forecast) - floating(truth)[None]
    number = len(away)
    if number < 2:
        return jnp.full(away.shape[1:], jnp.nan)
    place = jnp.arange(number).reshape(-1, *(1,) * (away.ndim - 1))
    second = jnp.sum(place * jnp.sort(away, axis=0), axis=0) / (number * (number - 1))
    return jnp.mean(jnp.abs(away), axis=0) + jnp.mean(away, axis=0) - 2 * second


def crps_integral(
    forecast: jax.Array,
    truth: jax.Array,
    *,
    member_weights: jax.Array | None = None,
) -> jax.Array:
    """The CRPS of every element as the integral over thresholds, `[...]`.

        integral (F(z) - 1{z >= y})^2 dz,   F(z) = sum_{m: x_m <= z} w_m / sum_m w_m

    With equal weights it is the standard form; here members may have their own.

    Args:
        forecast: `[member, ...]`; members that are NaN have weight 0.
        truth: `[...]`.
        member_weights: non-negative, `[member]` or `[member, ...]`.

    Returns:
        In the unit of the values; NaN where no member has weight.

    Raises:
        ValueError: if a shape does not fit.

    Source: Hersbach 2000, Weather and Forecasting 15, equation 1.
    """
    away = floating(forecast) - floating(truth)[None]
    if member_weights is None:
        weights = jnp.ones(away.shape)
    else:
        weights = floating(member_weights)
        if weights.shape == away.shape[:1]:
            weights = weights.reshape(-1, *(1,) * (away.ndim - 1))
        elif weights.shape != away.shape:
            raise ValueError(
                f"member_weights must be [member] = {away.shape[:1]} or {away.shape};"
                f" got {weights.shape}."
            )
        weights = jnp.broadcast_to(weights, away.shape)
    is_missing = jnp.isnan(away) & ~jnp.isnan(floating(truth))[None]
    weights = jnp.where(is_missing, 0.0, weights)
    counts = weights > 0
    # What has no weight lies on the observation, where it changes nothing.
    away = jnp.where(counts, away, 0.0)
    away, weights = jax.lax.sort((away, weights), dimension=0, num_keys=1)
    total = jnp.sum(weights, axis=0)
    reached = jnp.cumsum(weights, axis=0) / jnp.where(total > 0, total, jnp.nan)[None]
    low, high, share = away[:-1], away[1:], reached[:-1]
    below = jnp.minimum(high, 0.0) - jnp.minimum(low, 0.0)
    above = jnp.maximum(high, 0.0) - jnp.maximum(low, 0.0)
    inner = jnp.sum(share**2 * below + (1 - share) ** 2 * above, axis=0)
    # Before the first member F is 0, and behind the last it is 1.
    outer = jnp.maximum(away[0], 0.0) + jnp.maximum(-away[-1], 0.0)
    score = inner + outer
    undefined = ~(total > 0) | jnp.isnan(floating(truth))
    return jnp.where(undefined, jnp.nan, score)
