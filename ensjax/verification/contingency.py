"""Decisions by a probability: ROC, SEDI, frequency bias, relative economic value.

The event is forecast if the probability is above a level. All is read off an
`EventTable` of `event_table(num_members=M)`, whose levels (k - 1/2) / M, k = 1..M, lie
between the values that the share of members can take.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.limits import between
from ensjax.scores.ood import auroc
from ensjax.verification.events import EventTable

_LEAST_RATE = 1e-6


class Roc(NamedTuple):
    """The curve from (0, 0), never warned, to (1, 1), always; `[..., level + 2]`.

    Attributes:
        hit_rate: share of the events that were forecast.
        false_alarm_rate: share of the non-events that were.
    """

    hit_rate: jax.Array
    false_alarm_rate: jax.Array


def roc(table: EventTable) -> Roc:
    """Hit rate against false alarm rate of every level, the highest level first.

    Args:
        table: from `event_table`.

    Returns:
        NaN where there was no event, or nothing else.
    """
    return Roc(_rate_above(table.events), _rate_above(table.non_events))


def _rate_above(weight):
    """Share of the weight in the last 0, 1, ..., all bins, `[..., bin + 1]`."""
    above = jnp.cumsum(weight[..., ::-1], axis=-1)
    total = above[..., -1:]
    above = jnp.concatenate([jnp.zeros_like(total), above], axis=-1)
    return above / jnp.where(total > 0, total, jnp.nan)


def roc_area(table: EventTable) -> jax.Array:
    """Area under the ROC curve, `[..., threshold]` (0-1); 0.5 is no skill.

    That of trapezoids, which is the chance that an event had a higher probability than
    a non-event, ties counting half: `scores.auroc` of the table's rows.

    Args:
        table: from `event_table`.

    Source: Mason and Graham 2002, QJRMS 128.
    """
    num_bins = table.events.shape[-1]
    place = jnp.concatenate([jnp.arange(num_bins)] * 2)
    is_event = jnp.arange(2 * num_bins) < num_bins
    weight = jnp.concatenate([table.events, table.non_events], axis=-1)
    place = jnp.broadcast_to(place, weight.shape)
    return auroc(place, is_event, sample_weight=weight)


def sedi(table: EventTable) -> jax.Array:
    """Symmetric extremal dependence index of every level, `[..., threshold, level]`.

        [ln F - ln H + ln(1 - H) - ln(1 - F)] / [ln F + ln H + ln(1 - H) + ln(1 - F)]

    with hit rate H and false alarm rate F, clipped to [1e-6, 1 - 1e-6]. 1 is perfect, 0
    no skill; it does not go to a trivial limit as events become rare.

    Args:
        table: from `event_table`.

    Returns:
        The lowest level, 1 / (2 M), first.

    Source: Ferro and Stephenson 2011, Weather and Forecasting 26, equation 2.
    """
    curve = roc(table)
    hits, alarms = (
        between(x[..., -2:0:-1], _LEAST_RATE, 1 - _LEAST_RATE) for x in curve
    )
    log_h, log_f = jnp.log(hits), jnp.log(alarms)
    log_miss, log_quiet = jnp.log1p(-hits), jnp.log1p(-alarms)
    return (log_f - log_h + log_miss - log_quiet) / (
        log_f + log_h + log_miss + log_quiet
    )


def frequency_bias(table: EventTable) -> jax.Array:
    """How often each level forecasts the event over how often it comes.

        (TP + FP) / (TP + FN)

    1 is unbiased; a forecast that is too smooth is below 1 for rare events of either
    tail.

    Args:
        table: from `event_table`.

    Returns:
        `[..., threshold, level]`, the lowest level, 1 / (2 M), first; NaN where there
        was no event.
    """
    came = jnp.sum(table.events, axis=-1, keepdims=True)
    both = table.events + table.non_events
    above = jnp.cumsum(both[..., ::-1], axis=-1)[..., ::-1][..., 1:]
    return above / jnp.where(came > 0, came, jnp.nan)


def cost_loss_ratios() -> np.ndarray:
    """Fifty ratios of cost to loss from 0.005 to below 1, evenly spaced in the log."""
    return np.geomspace(0.005, 1, 51)[:-1]


class EconomicValue(NamedTuple):
    """Relative economic value: 1 that of a perfect forecast, 0 that of the climatology.

    Attributes:
        ratios: cost over loss, `[ratio]`.
        value: of every level, `[..., threshold, level, ratio]`; never warned first,
            then from the highest level to always.
        potential: of each ratio's best level, `[..., threshold, ratio]`.
    """

    ratios: jax.Array
    value: jax.Array
    potential: jax.Array


def economic_value(table: EventTable, ratios: jax.Array | None = None) -> EconomicValue:
    """Relative value to users who protect at a cost, or else risk a loss.

        V = [min(a, s) - a (TP + FP) - FN] / [min(a, s) - a s]

    with a the cost-loss ratio, s the frequency of the event, and TP, FP, FN the shares
    of all elements that were hits, false alarms and misses.

    Args:
        table: from `event_table`.
        ratios: in (0, 1), `[ratio]`; by default those of `cost_loss_ratios`.

    Raises:
        ValueError: if `ratios` is no vector.

    Source: Richardson 2000, QJRMS 126, equation 8.
    """
    ratios = jnp.asarray(cost_loss_ratios() if ratios is None else ratios, jnp.float32)
    if ratios.ndim != 1:
        raise ValueError(f"ratios must be [ratio]; got shape {ratios.shape}.")
    total = jnp.sum(table.events + table.non_events, axis=-1)
    base = jnp.sum(table.events, axis=-1) / jnp.where(total > 0, total, jnp.nan)
    base = base[..., None, None]
    curve = roc(table)
    hits = curve.hit_rate[..., None] * base
    alarms = curve.false_alarm_rate[..., None] * (1 - base)
    a = ratios.reshape((1,) * (hits.ndim - 1) + (-1,))
    without = jnp.minimum(a, base)
    gained = without - a * (hits + alarms) - (base - hits)
    possible = without - a * base
    value = gained / jnp.where(possible > 0, possible, jnp.nan)
    return EconomicValue(ratios, value, jnp.max(value, axis=-2))
