"""Confidence intervals from blocks of dates, of scores and of their differences.

Forecasts of near dates err together, so whole blocks of successive dates are drawn. All
systems see the same blocks, so that their differences are compared in pairs. What is
resampled are the sums of each date: ratios and roots are taken of the resampled sums,
never averaged over dates.

Resamples of few blocks are nearly all the same: with one block there is one, and its
interval has no width. So where fewer than `LEAST_BLOCKS` blocks of dates were scored
the interval is not known (NaN).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.scores.intervals import Interval
from ensjax.verification.metric import Metric
from ensjax.verification.sums import Sums

SCHEMES = ("moving", "stationary")
LEAST_BLOCKS = 4


def draw_blocks(
    key: jax.Array,
    num_dates: int,
    *,
    block_length: int,
    num_resamples: int = 1000,
    scheme: str = "moving",
) -> jax.Array:
    """How often each date is in each resample, float32 `[resample, date]`.

    Every resample has `num_dates` dates. "moving": blocks of one length that begin
    anywhere but too late, the last one cut. "stationary": blocks of random length,
    geometric with mean `block_length`, around the end to the beginning. Intervals of
    fewer than 4 blocks are far too narrow; here nothing stops that.

    Args:
        key: random key.
        num_dates: dates in order, evenly spaced.
        block_length: in dates; at least the forecast's length over their spacing.
        num_resamples: how many.
        scheme: which.

    Raises:
        ValueError: if a number is out of range or the scheme unknown.

    Source: Kuensch 1989, Annals of Statistics 17; Politis and Romano 1994, JASA 89.
    """
    _check_draws(num_dates, block_length, num_resamples, scheme)
    return _counts(
        key,
        num_dates=num_dates,
        block_length=block_length,
        num_resamples=num_resamples,
        scheme=scheme,
    )


# A loop of a new function compiles anew at every call; here one program is for all.
@functools.partial(
    jax.jit, static_argnames=("num_dates", "block_length", "num_resamples", "scheme")
)
def _counts(key, *, num_dates, block_length, num_resamples, scheme):
    def one(number):
        drawn = jax.random.fold_in(key, number)
        draw = _moving if scheme == "moving" else _stationary
        dates = draw(drawn, num_dates, block_length)
        return jnp.zeros(num_dates, jnp.float32).at[dates].add(1.0)

    return jax.lax.map(one, jnp.arange(num_resamples), batch_size=64)


def _check_draws(num_dates, block_length, num_resamples, scheme):
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}.")
    if not 1 <= block_length <= num_dates or num_resamples < 1:
        raise ValueError(
            f"block_length must be from 1 to the {num_dates} dates and num_resamples"
            f" 1 or more; got {block_length} and {num_resamples}."
        )


def _moving(key, num_dates, length):
    blocks = -(-num_dates // length)
    starts = jax.random.randint(key, (blocks,), 0, num_dates - length + 1)
    dates = starts[:, None] + jnp.arange(length)[None]
    return dates.reshape(-1)[:num_dates]


def _stationary(key, num_dates, length):
    begins, places = (jax.random.fold_in(key, i) for i in range(2))
    is_new = jax.random.uniform(begins, (num_dates,)) < 1 / length
    is_new = is_new.at[0].set(True)
    place = jnp.arange(num_dates)
    start = jax.random.randint(places, (num_dates,), 0, num_dates)
    first = jax.lax.cummax(jnp.where(is_new, place, 0))  # of the date's block
    return (start[first] + place - first) % num_dates


def bootstrap_score(
    key: jax.Array,
    metric: Metric,
    sums: Sums,
    *,
    block_length: int,
    num_resamples: int = 1000,
    scheme: str = "moving",
    confidence: float = 0.95,
    then: Callable[[Any], Any] | None = None,
) -> Any:
    """A score and the percentile interval of its resamples, an `Interval` a leaf.

    Its ends are NaN where fewer than 4 blocks of dates were scored: not known.

    Args:
        key: random key.
        metric: whose sums they are.
        sums: with dates as the first axis: of `metric.over(...)` all axes but 0. Kept
            axes stay the first axes of the score.
        block_length: as in `draw_blocks`, as the next two.
        num_resamples: how many.
        scheme: "moving" or "stationary".
        confidence: of the interval, in (0, 1).
        then: a function of the score to take the interval of, such as `roc_area`.

    Raises:
        ValueError: if a number is out of range or there is no axis of dates.
    """
    return _bootstrap(
        key,
        (sums,),
        _Score((metric,), then),
        dict(block_length=block_length, num_resamples=num_resamples, scheme=scheme),
        confidence,
    )


class Comparison(NamedTuple):
    """Two systems on the same dates; each an `Interval`, or one a leaf of the score.

    Attributes:
        first, second: their scores.
        difference: first less second, in pairs.
        skill: 1 - first / second: how much better the first is, of the second's score.
    """

    first: Any
    second: Any
    difference: Any
    skill: Any


def bootstrap_comparison(
    key: jax.Array,
    metric: Metric,
    first: Sums,
    second: Sums,
    *,
    block_length: int,
    num_resamples: int = 1000,
    scheme: str = "moving",
    confidence: float = 0.95,
    then: Callable[[Any], Any] | None = None,
) -> Comparison:
    """Whether one system scores better than another on the same dates.

    The interval of `difference` that does not hold 0 says so; it is NaN where fewer
    than 4 blocks of dates were scored. Skill is the ratio of the aggregated scores.

    Args:
        key: random key.
        metric: whose sums they are.
        first: with dates as the first axis, as in `bootstrap_score`.
        second: of the other system on the same dates; an element that one of them could
            not score should have no weight in either.
        block_length: and the rest as in `bootstrap_score`.

    Raises:
        ValueError: if a number is out of range, or the two have not the same dates.
    """
    if first.total["weight"].shape != second.total["weight"].shape:
        raise ValueError(
            "both systems must have the same dates and kept axes; got"
            f" {first.total['weight'].shape} and {second.total['weight'].shape}."
        )

    return _bootstrap(
        key,
        (first, second),
        _Compared((metric, metric), then),
        dict(block_length=block_length, num_resamples=num_resamples, scheme=scheme),
        confidence,
    )


@dataclasses.dataclass(frozen=True)
class _Score:
    """What is made of the score of one system; equal where its functions are."""

    metrics: tuple[Metric, ...]
    then: Callable[[Any], Any] | None

    def __call__(self, score):
        return score if self.then is None else self.then(score)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """What is made of the scores of two systems."""

    metrics: tuple[Metric, ...]
    then: Callable[[Any], Any] | None

    def __call__(self, one, other):
        if self.then is not None:
            one, other = self.then(one), self.then(other)
        difference = jax.tree.map(jnp.subtract, one, other)
        skill = jax.tree.map(lambda a, b: 1 - a / b, one, other)
        return Comparison(one, other, difference, skill)


@dataclasses.dataclass(frozen=True, eq=False)
class _Alone:
    """A function that cannot be compared by value: a program of its own."""

    of: _Score | _Compared

    @property
    def metrics(self):
        return self.of.metrics

    def __call__(self, *scores):
        return self.of(*scores)


def _comparable(function):
    try:
        hash(function)
    except TypeError:
        return _Alone(function)
    return function


def _bootstrap(key, sums, function, settings, confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}.")
    weight = sums[0].total["weight"]
    if weight.ndim < 1:
        raise ValueError(
            "the sums have no axis of dates: make them with metric.over(...) of all"
            " axes but the first."
        )
    # Of few dates all intervals are unknown, which the program finds by itself.
    counts = draw_blocks(key, weight.shape[0], **settings)
    least = LEAST_BLOCKS * settings["block_length"]
    totals = [jax.tree.map(jnp.add, s.total, s.lost) for s in sums]
    tail = (1 - confidence) / 2
    ends = jnp.asarray([tail, 1 - tail])
    return _intervals(counts, totals, ends, least, function=_comparable(function))


@functools.partial(jax.jit, static_argnames="function")
def _intervals(counts, totals, ends, least, *, function):
    def score(count):
        """The function of the scores where each date counts so often."""

        def summed(x):
            return jnp.einsum("d,d...->...", count, x, precision="highest")

        of = [jax.tree.map(summed, total) for total in totals]
        zeros = [jax.tree.map(jnp.zeros_like, total) for total in of]
        scores = [
            metric.finish(Sums(total, lost))
            for metric, total, lost in zip(function.metrics, of, zeros, strict=True)
        ]
        return function(*scores)

    estimate = score(jnp.ones(counts.shape[1], jnp.float32))
    draws = jax.lax.map(score, counts, batch_size=32)
    scored = functools.reduce(jnp.minimum, [_dates_scored(t) for t in totals])

    def interval(value, drawn):
        is_known = _like(scored, value) >= least
        found = jnp.nanquantile(drawn.astype(jnp.float32), ends, axis=0)
        low, high = jnp.where(is_known, found, jnp.nan)
        return Interval(value, low, high)

    return jax.tree.map(interval, estimate, draws)


def _dates_scored(total):
    """How many dates have any weight, `[kept axes..., extra axes...]`."""
    return jnp.sum(total["weight"] > 0, axis=0)


def _like(number, value):
    """The least `number` of every element of `value`, by the first axes they share."""
    shape, shared = jnp.shape(value), 0
    for a, b in zip(number.shape, shape):
        if a != b:
            break
        shared += 1
    number = jnp.min(number, axis=tuple(range(shared, number.ndim)))
    return number.reshape(number.shape + (1,) * (len(shape) - shared))
