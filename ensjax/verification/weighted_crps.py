"""CRPS with emphasis on a tail: threshold-weighted, and outcome-weighted.

Only the first tells extremes apart without a trap: scores of the cases alone whose
observation was extreme are best for whoever always forecasts extremes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.spread import CrpsTerms
from ensjax.verification.crps import crps_values, weight_of_fair
from ensjax.verification.ingredients import (
    CRPS,
    Ingredient,
    error_and_order,
    known_crps,
    needed,
)
from ensjax.verification.metric import Metric


def threshold_weighted_crps(
    threshold: float | None = None,
    *,
    tail: str = "upper",
    estimator: str = "standard",
    alpha: float = 0.95,
) -> Metric:
    """The CRPS over thresholds in a tail only: w(z) = 1{z >= t}; in unit of the values.

    It is the CRPS of the chained values max(x, t) and max(y, t); min for the lower
    tail.

    Args:
        threshold: t for all elements; None: `reference["threshold"]`, `[*truth]`, such
            as a quantile of the climatology by place and season.
        tail: "upper" or "lower".
        estimator: as in `crps`.
        alpha: as in `crps`.

    Raises:
        ValueError: if an argument is unknown or out of range.

    Source: Gneiting and Ranjan 2011, JBES 29; Allen, Ginsbourger and Ziegel 2023,
    SIAM/ASA JUQ 11 (chaining function).
    """
    if tail not in ("upper", "lower"):
        raise ValueError(f'tail must be "upper" or "lower"; got {tail!r}.')
    return _threshold_weighted(
        None if threshold is None else float(threshold),
        tail,
        weight_of_fair(estimator, alpha),
    )


def _level(threshold, truth, reference):
    if threshold is None:
        return needed(reference, "threshold", truth.shape)
    return jnp.full(truth.shape, threshold, truth.dtype)


def _inputs(threshold):
    """What each member is compared with, beside the truth."""

    def inputs(truth, reference):
        if threshold is not None:
            return {}
        return {"threshold": needed(reference, "threshold", truth.shape)}

    return inputs


@functools.lru_cache(maxsize=256)
def _threshold_weighted(threshold, tail, fair):
    chain = jnp.maximum if tail == "upper" else jnp.minimum

    def of_members(forecast, truth, mask, reference, vector_axes):
        level = _level(threshold, truth, reference)
        return CRPS.of_members(
            chain(forecast, level[None]), chain(truth, level), mask, None, vector_axes
        )

    def each(values, given):
        level = _level(threshold, given["truth"], given)
        # The maximum of NaN and a number is NaN: who is missing stays so.
        return error_and_order(chain(values, level[None]), chain(given["truth"], level))

    def known(found, truth, reference):
        return known_crps(found, chain(truth, _level(threshold, truth, reference)))

    def statistics(terms, truth, reference):
        del truth, reference
        return {"crps": crps_values(terms, fair)}

    of = "given" if threshold is None else repr(threshold)
    ingredient = Ingredient(
        f"crps of {tail} tail, {of}",
        of_members,
        each,
        known,
        _inputs(threshold),
        is_ordered=True,
    )
    return Metric(
        ingredient,
        statistics,
        lambda mean: mean["crps"],
        best="low",
        is_fair=fair == 1,
        least_members=2 if fair > 0 else 1,
    )


class OutcomeWeighted(NamedTuple):
    """The outcome-weighted CRPS, and what it must not be read without.

    Attributes:
        crps: mean over the events that have one, in the unit of the values.
        brier: Brier score of the event over all elements (0-1).
        event_rate: share of elements that were events.
    """

    crps: jax.Array
    brier: jax.Array
    event_rate: jax.Array


def outcome_weighted_crps(
    threshold: float | None = None, *, estimator: str = "standard", alpha: float = 0.95
) -> Metric:
    """The CRPS of the members above t, averaged over events y > t: `OutcomeWeighted`.

    Proper, but not strictly: it does not ask how probable the event was, so it comes
    with the Brier score of the event. Where no member exceeds t, the error of the
    largest takes its place, |max_m x_m - y|.

    Args:
        threshold: t for all elements; None: `reference["threshold"]`, `[*truth]`.
        estimator: as in `crps`; the fair forms have no CRPS of an event with one member
            above. `crps` leaves it out, `brier` and `event_rate` do not, and neither
            does `scored_share`.
        alpha: as in `crps`.

    Raises:
        ValueError: if an argument is unknown or out of range.

    Source: Holzmann and Klar 2017, Annals of Applied Statistics 11, section 2. The mean
    is over events, not over all cases as in some packages.
    """
    return _outcome_weighted(
        None if threshold is None else float(threshold),
        weight_of_fair(estimator, alpha),
    )


class _MembersAbove(NamedTuple):
    """Terms of the members above t, how many members there are, and the largest."""

    terms: CrpsTerms
    count: jax.Array
    largest: jax.Array


@functools.lru_cache(maxsize=256)
def _above(threshold):
    def of_members(forecast, truth, mask, reference, vector_axes):
        del vector_axes
        level = _level(threshold, truth, reference)
        above = mask & (forecast > level[None])
        terms = CRPS.of_members(forecast, truth, above, None, 0)
        largest = jnp.max(forecast, axis=0, where=mask, initial=-jnp.inf)
        return _MembersAbove(terms, jnp.sum(mask, axis=0), largest)

    def each(values, given):
        level = _level(threshold, given["truth"], given)
        above = jnp.where(values > level[None], values, jnp.nan)
        kept = error_and_order(above, given["truth"])
        return kept._replace(
            counts={"count": ~jnp.isnan(values)}, highest={"member": values}
        )

    def known(found, truth, reference):
        del reference
        # After too many members nothing is scored, also where none is above.
        count = jnp.where(found.is_whole, found.counts["count"], 0)
        return _MembersAbove(known_crps(found, truth), count, found.highest["member"])

    of = "given" if threshold is None else repr(threshold)
    return Ingredient(
        f"crps of members above {of}",
        of_members,
        each,
        known,
        _inputs(threshold),
        is_ordered=True,
    )


@functools.lru_cache(maxsize=256)
def _outcome_weighted(threshold, fair):
    def statistics(members, truth, reference):
        level = _level(threshold, truth, reference)
        terms, count, largest = members
        above = terms.num_members
        score = crps_values(terms, fair)
        score = jnp.where(above == 0, jnp.abs(largest - truth), score)
        share = above / jnp.where(count > 0, count, jnp.nan)
        undefined = jnp.isnan(truth) | jnp.isnan(level)
        event = jnp.where(undefined, jnp.nan, (truth > level) * 1.0)
        # An event without a CRPS still has a Brier score: its own weight, not NaN.
        has_crps = event * ((above != 1) | (fair == 0))
        return {
            "crps": jnp.where(has_crps == 0, 0.0, score),
            "has_crps": has_crps,
            "event": event,
            "brier": (share - event) ** 2,
        }

    def final(mean):
        rate, scored = mean["event"], mean["has_crps"]
        score = mean["crps"] / jnp.where(scored > 0, scored, jnp.nan)
        return OutcomeWeighted(score, mean["brier"], rate)

    return Metric(
        _above(threshold),
        statistics,
        final,
        best="low",
        is_fair=False,
        least_members=2 if fair > 0 else 1,
    )
