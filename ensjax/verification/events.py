"""Probabilities of an event "above a threshold": Brier score, its fair form, log score.

The probability is the share of members strictly above the threshold. Results have a
last axis `[threshold]`. Thresholds are numbers for all elements, or by element in
`reference["thresholds"]`, `[*truth, threshold]`. A table may also be of events below.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ops.limits import at_least
from ensjax.verification.ingredients import needed, shares
from ensjax.verification.metric import Metric
from ensjax.verification.sums import InBins


def brier_score(
    thresholds: Sequence[float] | None = None, *, fair: bool = False
) -> Metric:
    """The Brier score of each threshold, `[..., threshold]` (0-1); less is better.

        mean (p - o)^2      fair: mean [(p - o)^2 - p (1 - p) / (M - 1)]

    The fair form is unbiased for the probability that the members are drawn with; it
    may be negative, and needs two members. Of two classes, `scores.brier` is twice it.

    Args:
        thresholds: for all elements; None: `reference["thresholds"]`.
        fair: which form.

    Raises:
        ValueError: if there is no threshold.

    Source: Brier 1950; Ferro 2014, QJRMS 140, equation 2.
    """
    return _brier(_levels(thresholds), bool(fair), None)


def brier_skill_score(
    thresholds: Sequence[float] | None = None,
    *,
    fair: bool = False,
    climatology: str = "observed",
) -> Metric:
    """The Brier score relative to that of a climatology, `[..., threshold]`.

        1 - BS / BS_climatology

    1 is perfect, 0 no better than the climatology. Both are averaged before the ratio.

    Args:
        thresholds: for all elements; None: `reference["thresholds"]`.
        fair: which form of the Brier score; the climatology has no members.
        climatology: "observed": always the share of these very observations that are
            events, o (1 - o), which no forecast could have known; "given": the
            probabilities `reference["climatology"]`, `[*truth, threshold]`, such as by
            day of the year.

    Raises:
        ValueError: if an argument is unknown, or there is no threshold.
    """
    if climatology not in ("observed", "given"):
        raise ValueError(
            f'climatology must be "observed" or "given"; got {climatology!r}.'
        )
    return _brier(_levels(thresholds), bool(fair), climatology)


def _levels(thresholds):
    if thresholds is None:
        return None
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds:
        raise ValueError("thresholds must be one or more numbers; got none.")
    return thresholds


@functools.lru_cache(maxsize=256)
def _brier(thresholds, fair, climatology):
    def statistics(known, truth, reference):
        del truth
        share, event, count = known
        score = (share - event) ** 2
        if fair:
            others = jnp.where(count > 1, count - 1.0, jnp.nan)
            score = score - share * (1 - share) / others
        found = {"brier": score}
        if climatology == "observed":
            found["event"] = event
        elif climatology == "given":
            usual = needed(reference, "climatology", event.shape)
            found["climatology"] = (usual - event) ** 2
        return found

    def final(mean):
        if climatology is None:
            return mean["brier"]
        if climatology == "observed":
            usual = mean["event"] * (1 - mean["event"])
        else:
            usual = mean["climatology"]
        return 1 - mean["brier"] / jnp.where(usual > 0, usual, jnp.nan)

    return Metric(
        shares(thresholds),
        statistics,
        final,
        best="low" if climatology is None else "high",
        is_fair=fair and climatology is None,
        least_members=2 if fair else 1,
    )


def log_score(
    thresholds: Sequence[float] | None = None, *, clip: float | None = None
) -> Metric:
    """The mean negative log of the probability of what happened, `[..., threshold]`.

    A share of 0 or 1 would cost infinitely much when it is wrong. So the probability is
    (k + 1/2) / (M + 1) with k members above, or the share clipped.

    Args:
        thresholds: for all elements; None: `reference["thresholds"]`.
        clip: shares are clipped to [clip, 1 - clip] instead.

    Returns:
        The metric, in nats; less is better.

    Raises:
        ValueError: if `clip` is not in (0, 1/2), or there is no threshold.
    """
    if clip is not None and not 0 < clip < 0.5:
        raise ValueError(f"clip must be in (0, 1/2); got {clip}.")
    return _log(_levels(thresholds), None if clip is None else float(clip))


@functools.lru_cache(maxsize=256)
def _log(thresholds, clip):
    def statistics(known, truth, reference):
        del truth, reference
        share, event, count = known
        if clip is None:
            share = (share * count + 0.5) / (count + 1)
            yes, no = share, 1 - share
        else:
            # The clip may be less than the distance of 1 to the next number below.
            yes, no = at_least(share, clip), at_least(1 - share, clip)
        score = -jnp.log(jnp.where(event == 1, yes, no))
        return {"log": jnp.where(jnp.isnan(event), jnp.nan, score)}

    return Metric(shares(thresholds), statistics, lambda mean: mean["log"], best="low")


class EventTable(NamedTuple):
    """How often the event came and did not, by what was forecast; all that follows.

    Attributes:
        probability: mean forecast of the bin, `[..., threshold, bin]`; NaN if empty.
        events: weight of the elements of the bin where the event came, likewise.
        non_events: of those where it did not.
    """

    probability: jax.Array
    events: jax.Array
    non_events: jax.Array


def event_table(
    thresholds: Sequence[float] | None = None,
    *,
    num_members: int | None = None,
    num_bins: int | None = None,
    num_below: int = 0,
) -> Metric:
    """Events and non-events by forecast probability, `EventTable`.

    `reliability` and `contingency` read it: decomposition, reliability diagram, ROC,
    SEDI, frequency bias, economic value.

    Args:
        thresholds: for all elements; None: `reference["thresholds"]`.
        num_members: bins of the M + 1 values k / M, which lose nothing; where members
            are missing, the nearest one.
        num_bins: bins of equal width instead, an edge belonging to the bin above it.
        num_below: of so many thresholds, the first ones, the event is to be below: the
            lower tail, such as 2 of the climate's 2, 5, 95 and 98 %.

    Raises:
        ValueError: unless exactly one of the two numbers is given, at least 1; or if
            `num_below` is negative, or more than there are.
    """
    if (num_members is None) == (num_bins is None):
        raise ValueError("give one of num_members and num_bins.")
    number = num_members if num_bins is None else num_bins
    if number < 1:
        raise ValueError(f"num_members and num_bins must be 1 or more; got {number}.")
    levels = _levels(thresholds)
    most = num_below if levels is None else len(levels)
    if not 0 <= num_below <= most:
        raise ValueError(
            f"num_below must be from 0 to the number of thresholds; got {num_below}."
        )
    return _table(levels, int(number), num_bins is None, int(num_below))


@functools.lru_cache(maxsize=256)
def _table(thresholds, number, by_members, num_below):
    num_bins = number + 1 if by_members else number

    def statistics(known, truth, reference):
        del truth, reference
        share, event, _ = known
        place = jnp.nan_to_num(share) * number
        if by_members:
            index = jnp.round(place)
        else:
            # 3 of 10 members are at the edge of 0.3 whichever way it is rounded.
            index = jnp.minimum(jnp.floor(place + 1e-5), number - 1)
        index = index.astype(jnp.int32)
        undefined = jnp.isnan(share) | jnp.isnan(event)
        event = jnp.where(undefined, jnp.nan, event)
        return {
            "events": InBins(event, index, num_bins),
            "non_events": InBins(1 - event, index, num_bins),
            "probability": InBins(share, index, num_bins),
        }

    def final(mean):
        total = mean["total"]
        weight = total["events"] + total["non_events"]
        probability = total["probability"] / jnp.where(weight > 0, weight, jnp.nan)
        return EventTable(probability, total["events"], total["non_events"])

    return Metric(shares(thresholds, num_below), statistics, final, best="none")
