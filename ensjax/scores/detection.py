"""Errors of a yes-or-no decision at a threshold, as biometrics counts them.

The number of a row says how genuine it looks: larger means more genuine. A row is
accepted if its number is *above* the threshold, so that an attack at the threshold is
rejected and a genuine row at the threshold is too. A threshold is fitted on rows of one
kind (development) and then applied to others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.provenance import Provenance, check_fitting_rows
from ensjax.scores.ood import mass_above, split_rows
from ensjax.scores.rows import broadcast_rows, row_weights

RULES = ("eer", "youden", "far")
# Shares are ratios of sums in float32; equal ones may differ by rounding.
_TOLERANCE = 1e-6


class ErrorRates(NamedTuple):
    """False acceptance and false rejection rates (0-1), arrays of one shape."""

    far: jax.Array
    frr: jax.Array


class EqualErrorRate(NamedTuple):
    """The equal error rate (0-1), and the threshold at which it is reached."""

    rate: jax.Array
    threshold: jax.Array


def error_rates(
    scores: jax.Array,
    is_genuine: jax.Array,
    threshold: jax.Array | float,
    *,
    sample_weight: jax.Array | None = None,
) -> ErrorRates:
    """Shares of attacks that are accepted and of genuine rows that are rejected.

        FAR = share of attacks with score > threshold
        FRR = share of genuine rows with score <= threshold

    Args:
        scores: larger means more genuine, `[..., batch]`.
        is_genuine: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        threshold: a scalar, or `[...]` (one for each member).
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        Two arrays `[...]`; NaN where there are no such rows, or where a score that
        counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `is_genuine` is not bool or integer.
    """
    scores, genuine, attack = split_rows(scores, is_genuine, sample_weight)
    threshold = _threshold(threshold, scores)
    accepted = scores > threshold
    undefined = jnp.isnan(scores) | jnp.isnan(threshold)

    def share(chosen, weight):
        rate = jnp.sum(jnp.where(chosen, weight, 0.0), -1) / jnp.sum(weight, -1)
        return jnp.where(jnp.any(undefined & (weight != 0), -1), jnp.nan, rate)

    return ErrorRates(share(accepted, attack), share(~accepted, genuine))


def hter(
    scores: jax.Array,
    is_genuine: jax.Array,
    threshold: jax.Array | float,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Half total error rate (FAR + FRR) / 2 at a threshold fixed elsewhere, `[...]`.

    Arguments as for `error_rates`.

    Source: Bengio and Mariethoz 2004.
    """
    rates = error_rates(scores, is_genuine, threshold, sample_weight=sample_weight)
    return (rates.far + rates.frr) / 2


def equal_error_rate(
    scores: jax.Array,
    is_genuine: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> EqualErrorRate:
    """(FAR + FRR) / 2 at the score where the two differ least.

    Thresholds are the scores themselves, the lowest among equals; nothing is
    interpolated, so that the threshold can be applied to other rows. On few rows the
    rate differs from an interpolated one by up to half a row.

    Args:
        scores: larger means more genuine, `[..., batch]`.
        is_genuine: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        Two arrays `[...]`; NaN without genuine rows or without attacks, or where a
        score that counts is NaN.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `is_genuine` is not bool or integer.
    """
    threshold, far, frr = _fit(scores, is_genuine, sample_weight, "eer", None)
    return EqualErrorRate((far + frr) / 2, threshold)


def fit_threshold(
    scores: jax.Array,
    is_genuine: jax.Array,
    *,
    rule: str = "eer",
    most_far: float | None = None,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> jax.Array:
    """The threshold, one of the scores, that a rule chooses on development rows.

    Args:
        scores: larger means more genuine, `[..., batch]`.
        is_genuine: bool (or 0 and 1), `[batch]` or `[..., batch]`.
        rule: "eer": where FAR and FRR differ least; "youden": where their sum is least;
            "far": the lowest at which FAR is at most `most_far`. The lowest threshold
            among equals.
        most_far: for the rule "far", in [0, 1).
        sample_weight: `[batch]` or `[..., batch]`, non-negative.
        provenance: of the development rows; None: unknown, and nothing is checked. A
            number remembers no rows: that it is tested on others is the caller's care.

    Returns:
        `[...]`; NaN as for `equal_error_rate`.

    Raises:
        ValueError: if a shape does not fit, or for an unknown rule, or a `most_far`
            that is missing, superfluous or out of range.
        TypeError: if `is_genuine` is not bool or integer.
        LeakageError: if members were trained on rows that count, or they are test rows.
    """
    check_fitting_rows("the threshold", provenance, row_weight=sample_weight)
    if rule not in RULES:
        raise ValueError(f"rule is one of {', '.join(RULES)}; got {rule!r}.")
    if (rule == "far") != (most_far is not None):
        raise ValueError('most_far goes with rule="far", and only with that.')
    if most_far is not None and not 0.0 <= most_far < 1.0:
        raise ValueError(f"most_far must lie in [0, 1); got {most_far}.")
    return _fit(scores, is_genuine, sample_weight, rule, most_far)[0]


class AttackErrors(NamedTuple):
    """APCER, BPCER and their mean ACER (0-1), arrays of one shape."""

    apcer: jax.Array
    bpcer: jax.Array
    acer: jax.Array


def attack_errors(
    scores: jax.Array,
    attack_types: jax.Array,
    threshold: jax.Array | float,
    *,
    num_types: int,
    sample_weight: jax.Array | None = None,
) -> AttackErrors:
    """Presentation attack errors: of the attack that succeeds most, and of the genuine.

        APCER = max over types of the share of its attacks with score > threshold
        BPCER = share of genuine rows with score <= threshold
        ACER = (APCER + BPCER) / 2

    Args:
        scores: larger means more genuine, `[..., batch]`.
        attack_types: integers, `[batch]` or `[..., batch]`: 0 to num_types - 1 for
            attacks, -1 for genuine rows.
        threshold: a scalar, or `[...]`.
        num_types: number of types; one without rows does not count.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        Three arrays `[...]`; NaN without genuine rows or without attacks, or where a
        score that counts is NaN or a type is out of range.

    Raises:
        ValueError: if a shape does not fit or `num_types` is below 1.
        TypeError: if `attack_types` are not integers.

    Source: ISO/IEC 30107-3.
    """
    if num_types < 1:
        raise ValueError(f"num_types must be at least 1; got {num_types}.")
    types = jnp.asarray(attack_types)
    if not jnp.issubdtype(types.dtype, jnp.integer):
        raise TypeError(f"attack_types must be integers; got {types.dtype}.")
    scores = jnp.asarray(scores)
    types = broadcast_rows("attack_types", types, scores.shape)
    weight = row_weights(sample_weight, scores.shape)

    def accepted(kind):
        of_type = jnp.where((types == kind) | (types < 0), weight, 0.0)
        rates = error_rates(scores, types < 0, threshold, sample_weight=of_type)
        has_rows = jnp.any((types == kind) & (weight != 0), axis=-1)
        return jnp.where(has_rows, rates.far, -jnp.inf)

    apcer = jnp.max(jax.lax.map(accepted, jnp.arange(num_types)), axis=0)
    apcer = jnp.where(jnp.isneginf(apcer), jnp.nan, apcer)
    is_known = (types >= -1) & (types < num_types)
    unknown = jnp.any(~is_known & (weight != 0), axis=-1)
    apcer = jnp.where(unknown, jnp.nan, apcer)
    bpcer = error_rates(scores, types < 0, threshold, sample_weight=weight).frr
    bpcer = jnp.where(unknown, jnp.nan, bpcer)
    return AttackErrors(apcer, bpcer, (apcer + bpcer) / 2)


def _threshold(threshold, scores):
    threshold = jnp.asarray(threshold, scores.dtype)
    if threshold.shape not in ((), scores.shape[:-1]):
        raise ValueError(
            f"threshold must be a scalar or have shape {scores.shape[:-1]}, one for"
            f" each row of members; got {threshold.shape}."
        )
    return jnp.broadcast_to(threshold, scores.shape[:-1])[..., None]


def _fit(scores, is_genuine, sample_weight, rule, most_far):
    """The threshold, and FAR and FRR there, each `[...]`."""
    scores, genuine, attack = split_rows(scores, is_genuine, sample_weight)
    weight = genuine + attack
    num_genuine = jnp.sum(genuine, axis=-1, keepdims=True)
    num_attacks = jnp.sum(attack, axis=-1, keepdims=True)
    far = mass_above(scores, attack, side="left") / num_attacks
    frr = 1 - mass_above(scores, genuine, side="left") / num_genuine
    # Sums of the same weights in another order: what is 0 may come out below.
    frr = jnp.where(frr < 0, 0.0, frr)
    if rule == "eer":
        cost = jnp.abs(far - frr)
    elif rule == "youden":
        cost = far + frr
    else:
        # Above the largest score nobody is accepted, so that some score always does.
        cost = jnp.where(far <= most_far + _TOLERANCE, scores, jnp.inf)
    cost = jnp.where(weight != 0, cost, jnp.inf)
    least = jnp.min(cost, axis=-1, keepdims=True)
    is_least = (cost <= least + _TOLERANCE) & (weight != 0)
    if rule == "far":
        is_least = (cost == least) & (weight != 0)
    place = jnp.argmin(jnp.where(is_least, scores, jnp.inf), axis=-1)[..., None]
    undefined = jnp.any(jnp.isnan(scores) & (weight != 0), axis=-1)
    undefined |= (num_genuine[..., 0] == 0) | (num_attacks[..., 0] == 0)

    def there(values):
        found = jnp.take_along_axis(values, place, axis=-1)[..., 0]
        return jnp.where(undefined, jnp.nan, found)

    return there(scores), there(far), there(frr)
