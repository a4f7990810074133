"""What a metric needs to know of the members at each element.

Each ingredient comes from arrays of members, with those that are missing left out, or
from a reduction of `ensjax.reduce` into which members were folded that never existed
together. Either way the statistics made of it are the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax import reduce
from ensjax.scores.decomposition import member_moments
from ensjax.scores.spread import CrpsTerms, crps_terms


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """One thing to know of the members, and where it comes from.

    Attributes:
        name: of the reduction it can come from; None: it needs all members at once.
        of_members: `(forecast, truth, mask, reference, vector_axes) -> known`.
        of_state: `(state of the reduction, truth, reference) -> known`.
        init_state: `(truth, reference, max_members, rank_error) -> state` of no member.
    """

    name: str | None
    of_members: Callable[..., Any]
    of_state: Callable[..., Any] | None = None
    init_state: Callable[..., Any] | None = None

    def of_reduced(self, reduced: dict[str, Any], truth: jax.Array, reference: Any):
        """The same of a state in `reduced`.

        Raises:
            ValueError: if there is none, or the metric needs all members at once.
        """
        if self.name is None:
            raise ValueError(
                "This metric needs all members of a case at once (in order, or in"
                " pairs): give it the forecast itself, a few cases at a time."
            )
        if self.name not in reduced:
            raise ValueError(
                f"This metric needs the state {self.name!r} of a reduction; there are"
                f" {', '.join(map(repr, reduced)) or 'none'}. `member_states` makes all"
                " that some metrics need."
            )
        return self.of_state(reduced[self.name], truth, reference)


def needed(reference: Any, name: str, shape: tuple[int, ...]) -> jax.Array:
    """`reference[name]` as floats of `shape`.

    Raises:
        ValueError: if it is missing, or of a shape that does not broadcast.
    """
    if not isinstance(reference, dict) or name not in reference:
        raise ValueError(
            f"This metric compares with a {name}: give reference={{{name!r}: array}}"
            f" that broadcasts to {shape}."
        )
    values = jnp.asarray(reference[name], jnp.float32)
    if values.ndim > len(shape):
        raise ValueError(
            f"reference[{name!r}] must broadcast to {shape}; got {values.shape}."
        )
    return jnp.broadcast_to(values, shape)


class EnsembleMoments(NamedTuple):
    """Error of the mean, unbiased variance (NaN below two members), and the count."""

    error: jax.Array
    variance: jax.Array
    count: jax.Array


def _moments_of_members(forecast, truth, mask, reference, vector_axes):
    del reference, vector_axes
    # Deviations from the truth: squares of large values would cancel.
    away = jnp.where(mask, forecast - truth[None], 0.0).reshape(len(forecast), -1)
    found = member_moments(away, ddof=1, mask=mask.reshape(away.shape))
    shaped = [x.reshape(truth.shape) for x in found]
    return EnsembleMoments(shaped[0], shaped[1] ** 2, shaped[2])


def _moments_of_state(state, truth, reference):
    del reference
    mean, _ = reduce.finish_moments(state)
    _, variance = reduce.finish_moments(state, ddof=1)
    return EnsembleMoments(mean - truth, variance, _everywhere(state.count, truth))


def _everywhere(count, truth):
    return jnp.broadcast_to(count, truth.shape)


MOMENTS = Ingredient(
    "moments",
    _moments_of_members,
    _moments_of_state,
    lambda truth, reference, max_members, rank_error: reduce.init_moments(truth),
)


def _crps_of_members(forecast, truth, mask, reference, vector_axes):
    del reference, vector_axes
    rows = forecast.reshape(len(forecast), -1)
    terms = crps_terms(rows, truth.reshape(-1), mask=mask.reshape(rows.shape))
    return CrpsTerms(*(x.reshape(truth.shape) for x in terms))


def _crps_of_state(state, truth, reference):
    del reference
    error, _ = reduce.finish_moments(state.error)
    standard = reduce.finish_crps(state)
    count = _everywhere(state.count, truth)
    return CrpsTerms(error, (error - standard) * count**2.0, count)


CRPS = Ingredient(
    "crps",
    _crps_of_members,
    _crps_of_state,
    lambda truth, reference, max_members, rank_error: reduce.init_crps(
        truth, max_members=max_members, rank_error=rank_error
    ),
)


class Place(NamedTuple):
    """Members below the observation and equal to it, and how many there are.

    The count is 0 where the observation is missing.
    """

    below: jax.Array
    ties: jax.Array
    count: jax.Array


def _place_of_members(forecast, truth, mask, reference, vector_axes):
    del reference, vector_axes
    is_below, is_equal = forecast < truth[None], forecast == truth[None]
    counts = (jnp.sum(x & mask, axis=0) for x in (is_below, is_equal, mask))
    below, ties, count = counts
    return Place(below, ties, jnp.where(jnp.isnan(truth), 0, count))


def _place_of_state(state, truth, reference):
    del reference
    count = jnp.where(state.undefined, 0, _everywhere(state.count, truth))
    return Place(state.below, state.ties, count)


PLACE = Ingredient(
    "ranks",
    _place_of_members,
    _place_of_state,
    lambda truth, reference, max_members, rank_error: reduce.init_ranks(truth),
)


class Extent(NamedTuple):
    """Smallest and largest member; NaN where there is none."""

    minimum: jax.Array
    maximum: jax.Array


def _extent_of_members(forecast, truth, mask, reference, vector_axes):
    del reference, vector_axes
    is_any = jnp.any(mask, axis=0) & ~jnp.isnan(truth)
    low = jnp.min(forecast, axis=0, where=mask, initial=jnp.inf)
    high = jnp.max(forecast, axis=0, where=mask, initial=-jnp.inf)
    return Extent(jnp.where(is_any, low, jnp.nan), jnp.where(is_any, high, jnp.nan))


EXTENT = Ingredient(
    "extremes",
    _extent_of_members,
    lambda state, truth, reference: Extent(*reduce.finish_extremes(state)),
    lambda truth, reference, max_members, rank_error: reduce.init_extremes(truth),
)


class Shares(NamedTuple):
    """Of events "above a threshold": what members and the observation say.

    Attributes:
        share: of the members that exceed, `[..., threshold]`; NaN without members.
        event: 1 where the observation does, else 0; NaN where it is missing.
        count: members, `[..., threshold]`.
    """

    share: jax.Array
    event: jax.Array
    count: jax.Array


def _thresholds(thresholds, truth, reference):
    """`[*truth, threshold]`."""
    if thresholds is not None:
        return jnp.broadcast_to(
            jnp.asarray(thresholds, truth.dtype), (*truth.shape, len(thresholds))
        )
    given = jnp.asarray((reference or {}).get("thresholds", jnp.zeros(())))
    number = given.shape[-1] if given.ndim else 1
    return needed(reference, "thresholds", (*truth.shape, number))


def _event(truth, thresholds):
    undefined = jnp.isnan(truth)[..., None] | jnp.isnan(thresholds)
    return jnp.where(undefined, jnp.nan, (truth[..., None] > thresholds) * 1.0)


@functools.lru_cache(maxsize=256)
def shares(thresholds: tuple[float, ...] | None) -> Ingredient:
    """The shares above thresholds, for all elements or from `reference["thresholds"]`.

    There, they are `[*truth, threshold]`.
    """

    def of_members(forecast, truth, mask, reference, vector_axes):
        del vector_axes
        levels = _thresholds(thresholds, truth, reference)
        # A loop over thresholds: members times thresholds need not exist together.
        above = [
            jnp.sum((forecast > levels[None, ..., i]) & mask, axis=0)
            for i in range(levels.shape[-1])
        ]
        above = jnp.stack(above, axis=-1)
        count = jnp.broadcast_to(jnp.sum(mask, axis=0)[..., None], above.shape)
        share = above / jnp.where(count > 0, count, jnp.nan)
        return Shares(share, _event(truth, levels), count)

    def of_state(state, truth, reference):
        levels = _thresholds(thresholds, truth, reference)
        share = jnp.moveaxis(reduce.finish_exceedances(state), 0, -1)
        count = jnp.broadcast_to(state.count, share.shape)
        return Shares(share, _event(truth, levels), count)

    def init_state(truth, reference, max_members, rank_error):
        del max_members, rank_error
        if thresholds is not None:
            return reduce.init_exceedances(truth, jnp.asarray(thresholds))
        levels = _thresholds(None, truth, reference)
        return reduce.init_exceedances(truth, jnp.moveaxis(levels, -1, 0))

    of = "given" if thresholds is None else ", ".join(f"{t:g}" for t in thresholds)
    return Ingredient(f"exceedances of {of}", of_members, of_state, init_state)


class Members(NamedTuple):
    """The members themselves, and which of them count.

    Attributes:
        values: `[member, *truth]`; 0 where a member is missing.
        mask: `[member, *elements]`: a member whose vector lacks a value is missing.
    """

    values: jax.Array
    mask: jax.Array


def _all_members(forecast, truth, mask, reference, vector_axes):
    del reference
    vector = tuple(range(truth.ndim + 1 - vector_axes, truth.ndim + 1))
    whole = jnp.all(mask, axis=vector) if vector else mask
    wide = whole.reshape(whole.shape + (1,) * vector_axes)
    return Members(jnp.where(wide, forecast, 0.0), whole)


MEMBERS = Ingredient(None, _all_members)


def member_states(
    metrics: Any,
    truth: jax.Array,
    *,
    reference: Any = None,
    max_members: int,
    rank_error: float = 0.005,
) -> dict[str, Any]:
    """Empty reductions over members that these metrics need, by name.

    For `ensjax.reduce.fold_members`, which runs a function of one member, or a stack,
    block by block over devices; then `Metric.sums_of_reduced` of the folded states.
    Members must be whole: a state counts them once for all elements, so that one where
    a folded member is NaN is not scored (`scored_share` tells). The forecast itself is
    scored there by the members that it has.

    Args:
        metrics: an iterable of `Metric`.
        truth: observations of the cases, `[...]`.
        reference: as in `Metric.sums`.
        max_members: the most members that will be folded in.
        rank_error: of the CRPS's summary; 0 keeps all members (`reduce.init_crps`).

    Raises:
        ValueError: if a metric needs all members at once.
    """
    states = {}
    for metric in metrics:
        ingredient = metric.ingredient
        if ingredient.name is None:
            ingredient.of_reduced({}, truth, reference)
        if ingredient.name not in states:
            states[ingredient.name] = ingredient.init_state(
                truth, reference, max_members, rank_error
            )
    return states
