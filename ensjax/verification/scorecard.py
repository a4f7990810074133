"""A scorecard: where one system scores better than another, by lead, variable, region.

Every cell holds a normalised difference that is positive where the first system is
better, and the interval of it that a paired bootstrap over blocks of dates gives. What
is off 0 with its whole interval is called significant; no account is taken of the
number of cells, of which 1 in 20 would be so by chance. Where fewer than 4 blocks of
dates were scored the interval is not known (NaN), and nothing is significant.

    best     normalised difference
    low      (S_ref - S) / S_ref
    high     (S - S_ref) / (1 - S_ref): of a score that is 1 if perfect, such as ACC
    one      |S_ref - 1| - |S - 1|: not a share, since both may be next to 0
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.verification.bootstrap import (
    LEAST_BLOCKS,
    Comparison,
    bootstrap_comparison,
)
from ensjax.verification.metric import Metric
from ensjax.verification.sums import Sums

BESTS = ("low", "high", "one")


class CardScore(NamedTuple):
    """One score of a card.

    Of ensembles of different size only what `metric.is_fair` can be compared.

    Attributes:
        metric: whose sums it is made of, averaged over all axes but [date, lead,
            variable, region].
        pick: the number, from what the metric's final function gives.
        best: "low", "high" (1 if perfect) or "one".
    """

    metric: Metric
    pick: Callable[[Any], jax.Array]
    best: str = "low"


class Scorecard(NamedTuple):
    """Two systems, cell by cell; arrays `[score, variable, lead, region]`, NumPy.

    Attributes:
        scores, best: names of the scores, and what is best of each.
        variables, leads, regions: names; leads are numbers.
        value, reference: of the first system and of the one it is compared with.
        normalised, low, high: the normalised difference and its interval, NaN where
            it is not known.
        systems: names of both.
        lead_unit: in words.
        notes: what a reader should know: alarms that fired, and how cells were found.
        costs: any numbers by name, such as seconds a forecast day of each system.
    """

    scores: tuple[str, ...]
    best: tuple[str, ...]
    variables: tuple[str, ...]
    leads: tuple[float, ...]
    regions: tuple[str, ...]
    value: np.ndarray
    reference: np.ndarray
    normalised: np.ndarray
    low: np.ndarray
    high: np.ndarray
    systems: tuple[str, str] = ("forecast", "reference")
    lead_unit: str = "days"
    notes: tuple[str, ...] = ()
    costs: Mapping[str, float] = {}

    @property
    def verdict(self) -> np.ndarray:
        """1 where significantly better, -1 where worse, else 0; integers.

        Also 0 where the interval is not known.
        """
        return (self.low > 0).astype(int) - (self.high < 0).astype(int)


def make_scorecard(
    key: jax.Array,
    scores: Mapping[str, CardScore],
    first: Mapping[str, Sums],
    second: Mapping[str, Sums],
    *,
    variables: Sequence[str],
    leads: Sequence[float],
    regions: Sequence[str],
    block_length: int,
    num_resamples: int = 1000,
    scheme: str = "moving",
    confidence: float = 0.95,
    systems: tuple[str, str] = ("forecast", "reference"),
    lead_unit: str = "days",
    notes: Sequence[str] = (),
    costs: Mapping[str, float] | None = None,
) -> Scorecard:
    """The card of two systems that were scored on the same dates.

    Args:
        key: random key; all cells see the same resamples.
        scores: by name; those of one metric and of the same sums are drawn together.
        first: by name of a score, sums `[date, lead, variable, region, ...]`.
        second: of the other system.
        variables, leads, regions: names of those axes.
        block_length: and the next three as in `draw_blocks`.
        num_resamples: how many.
        scheme: "moving" or "stationary".
        confidence: of the intervals.
        systems, lead_unit, notes, costs: of the `Scorecard`; a note on how intervals
            were found, or that there are too few dates for any, is added.

    Raises:
        ValueError: if a score has no sums, their axes are not those, a word is unknown,
            or a number is out of range.

    Source: scorecards of normalised differences as those of ECMWF; the form of scores
    that are best at 1 is ours.
    """
    shape = (len(leads), len(variables), len(regions))
    _check(scores, first, second, shape)
    columns = ("value", "reference", "normalised", "low", "high")
    found = {name: [] for name in columns}
    compared = _compare(
        key,
        scores,
        (first, second),
        dict(
            block_length=block_length,
            num_resamples=num_resamples,
            scheme=scheme,
            confidence=confidence,
        ),
    )
    for name, score in scores.items():
        values = [
            score.pick(score.metric.finish(_over_dates(of[name])))
            for of in (first, second)
        ]
        if score.best == "one":
            estimate, low, high = compared[name].difference
            cells = (-estimate, -high, -low)
        else:
            cells = compared[name].skill
        for column, array in zip(columns, (*values, *cells), strict=True):
            found[column].append(np.moveaxis(np.asarray(array, np.float64), 0, 1))
    arrays = {name: np.stack(rows) for name, rows in found.items()}
    drawn = (
        f"Intervals of {confidence:.0%} from {num_resamples} paired resamples of blocks"
        f" of {block_length} dates."
    )
    num_dates = next(iter(first.values())).total["weight"].shape[0]
    drawn = [drawn]
    if num_dates < LEAST_BLOCKS * block_length:
        drawn = [too_few_text(num_dates, block_length, "dates")]
    elif np.any(np.isfinite(arrays["normalised"]) & np.isnan(arrays["low"])):
        drawn.append(some_lack_text(block_length, "dates"))
    return Scorecard(
        scores=tuple(scores),
        best=tuple(score.best for score in scores.values()),
        variables=tuple(variables),
        leads=tuple(float(lead) for lead in leads),
        regions=tuple(regions),
        **arrays,
        systems=tuple(systems),
        lead_unit=lead_unit,
        notes=(*notes, *drawn),
        costs=dict(costs or {}),
    )


def too_few_text(number: int, block_length: int, what: str) -> str:
    """A note for cards whose intervals are not known, `what` being "dates" or so."""
    return (
        f"Too few {what} for an interval: {number} {what}, blocks of {block_length};"
        f" {LEAST_BLOCKS} blocks are the least. Nothing is marked."
    )


def some_lack_text(block_length: int, what: str) -> str:
    """A note for cards of which some cells have no interval."""
    return (
        f"No interval, and no mark, where fewer than {LEAST_BLOCKS * block_length}"
        f" {what} ({LEAST_BLOCKS} blocks) could be scored."
    )


def _compare(key, scores, systems, settings):
    """The comparison of how far each score is from perfect, by name.

    Scores of the same sums are drawn together.
    """
    groups = {}
    for name, score in scores.items():
        sums = [of[name] for of in systems]
        group = (score.metric, *map(id, sums))
        groups.setdefault(group, (sums, {}))[1][name] = score
    found = {}
    for (metric, *_), (sums, own) in groups.items():
        compared = bootstrap_comparison(
            key, metric, *sums, then=functools.partial(_deficits, own), **settings
        )
        for name in own:
            found[name] = Comparison(*(part[name] for part in compared))
    return found


def _deficits(scores, value):
    found = {}
    for name, score in scores.items():
        picked = score.pick(value)
        if score.best == "high":
            picked = 1 - picked
        elif score.best == "one":
            picked = jnp.abs(picked - 1)
        found[name] = picked
    return found


def _over_dates(sums):
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _check(scores, first, second, shape):
    if not scores:
        raise ValueError("a scorecard has at least one score.")
    for name, score in scores.items():
        if score.best not in BESTS:
            raise ValueError(
                f"scores[{name!r}].best must be one of {', '.join(BESTS)}; got"
                f" {score.best!r}. A score of which nothing is best has no place on a"
                " card."
            )
        for which, of in (("first", first), ("second", second)):
            if name not in of:
                raise ValueError(f"{which} has no sums of the score {name!r}.")
            found = of[name].total["weight"].shape
            if len(found) < 4 or found[1:4] != shape:
                raise ValueError(
                    f"{which}[{name!r}] must be sums [date, lead, variable, region] ="
                    f" [date, {', '.join(map(str, shape))}]; got {found}. Make them"
                    " with metric.over(...) of all other axes."
                )
