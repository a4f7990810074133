"""Reliability of event probabilities: the diagram, and the Brier score taken apart."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.verification.events import EventTable


class ReliabilityDiagram(NamedTuple):
    """Of each bin of forecast probability, `[..., threshold, bin]`.

    Attributes:
        probability: mean forecast; NaN if the bin is empty.
        frequency: share of elements where the event came; NaN if the bin is empty.
        weight: of the elements in the bin.
    """

    probability: jax.Array
    frequency: jax.Array
    weight: jax.Array


def reliability_diagram(table: EventTable) -> ReliabilityDiagram:
    """How often the event came where it was forecast with each probability.

    Bars come of a bootstrap over dates: `bootstrap_score` of the table's metric with
    `then=reliability_diagram`.

    Args:
        table: from `event_table`.
    """
    weight = table.events + table.non_events
    frequency = table.events / jnp.where(weight > 0, weight, jnp.nan)
    return ReliabilityDiagram(table.probability, frequency, weight)


class BrierDecomposition(NamedTuple):
    """Brier score = reliability - resolution + uncertainty, each `[..., threshold]`.

    Attributes:
        reliability: mean squared difference of forecast and frequency; 0 is best.
        resolution: mean squared difference of the bins' frequency and that of all;
            more is better.
        uncertainty: o (1 - o), o the frequency of all.
        brier: their sum.
    """

    reliability: jax.Array
    resolution: jax.Array
    uncertainty: jax.Array
    brier: jax.Array


def brier_decomposition(table: EventTable) -> BrierDecomposition:
    """The Brier score in three parts, of a table by forecast probability.

    Exact if forecasts within a bin are equal, as with `num_members` bins of whole
    ensembles; with bins of some width it is off by what varies within them.

    Args:
        table: from `event_table`.

    Source: Murphy 1973, Journal of Applied Meteorology 12, equation 7.
    """
    diagram = reliability_diagram(table)
    total = jnp.sum(diagram.weight, axis=-1)
    share = diagram.weight / jnp.where(total > 0, total, jnp.nan)[..., None]
    base = jnp.sum(table.events, axis=-1) / jnp.where(total > 0, total, jnp.nan)
    is_filled = diagram.weight > 0

    def mean(x):
        return jnp.sum(share * jnp.where(is_filled, x, 0.0), axis=-1)

    reliability = mean((diagram.probability - diagram.frequency) ** 2)
    resolution = mean((diagram.frequency - base[..., None]) ** 2)
    uncertainty = base * (1 - base)
    return BrierDecomposition(
        reliability, resolution, uncertainty, reliability - resolution + uncertainty
    )
