"""What a metric needs to know of the members at each element.

Each ingredient comes from arrays of members, or from a `MemberState` into which members
were folded that never existed together. Either way those that are missing are left out,
and the statistics made of it are the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.decomposition import member_moments
from ensjax.scores.spread import CrpsTerms, crps_terms
from ensjax.verification.member_state import (
    Found,
    MemberState,
    OfMembers,
    find,
    found_of_block,
    init_state,
)


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """One thing to know of the members, and where it comes from.

    Attributes:
        name: of the state it can come from; None: it needs all members at once.
        of_members: `(forecast, truth, mask, reference, vector_axes) -> known`.
        each: `(values [member, *truth], inputs) -> OfMembers`, NaN: missing.
        known: `(found, truth, reference) -> known`, of what the members come to.
        inputs: `(truth, reference) -> {name: array}`, what `each` takes beside the
            members and the truth.
        is_ordered: whether members are kept in order, so that it is exact only while
            all of them are.
    """

    name: str | None
    of_members: Callable[..., Any]
    each: Callable[..., OfMembers] | None = None
    known: Callable[..., Any] | None = None
    inputs: Callable[..., dict[str, jax.Array]] = lambda truth, reference: {}
    is_ordered: bool = False

    def init_state(self, truth, reference, max_members, rank_error) -> MemberState:
        """The state of no members; see `member_states`.

        Raises:
            ValueError: if the metric needs all members at once.
        """
        if self.name is None:
            raise ValueError(_AT_ONCE)
        inputs = {"truth": truth} | self.inputs(truth, reference)
        return init_state(
            self.each, inputs, max_members=max_members, rank_error=rank_error
        )

    def of_reduced(self, reduced: dict[str, Any], truth: jax.Array, reference: Any):
        """The same of a state in `reduced`.

        Raises:
            ValueError: if there is none, or the metric needs all members at once.
        """
        if self.name is None:
            raise ValueError(_AT_ONCE)
        if self.name not in reduced:
            raise ValueError(
                f"This metric needs the state {self.name!r} of a reduction; there are"
                f" {', '.join(map(repr, reduced)) or 'none'}. `member_states` makes all"
                " that some metrics need."
            )
        return self.known(find(reduced[self.name]), truth, reference)


_AT_ONCE = (
    "This metric needs all members of a case at once (in pairs): give it the forecast"
    " itself, a few cases at a time."
)


def of_each(name: str, each, known, inputs=lambda truth, reference: {}) -> Ingredient:
    """An ingredient of statistics that add up over members, kept in no order.

    Arguments as the attributes of `Ingredient`.
    """

    def of_members(forecast, truth, mask, reference, vector_axes):
        del vector_axes
        given = {"truth": truth} | inputs(truth, reference)
        values = jnp.where(mask, forecast, jnp.nan)
        return known(found_of_block(each(values, given)), truth, reference)

    return Ingredient(name, of_members, each, known, inputs)


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


def _known_moments(found, truth, reference):
    del truth, reference
    return EnsembleMoments(*found.moments["away"])


MOMENTS = Ingredient(
    "moments",
    _moments_of_members,
    lambda values, given: OfMembers(moments={"away": values - given["truth"][None]}),
    _known_moments,
)


def _crps_of_members(forecast, truth, mask, reference, vector_axes):
    del reference, vector_axes
    rows = forecast.reshape(len(forecast), -1)
    terms = crps_terms(rows, truth.reshape(-1), mask=mask.reshape(rows.shape))
    return CrpsTerms(*(x.reshape(truth.shape) for x in terms))


def error_and_order(values: jax.Array, truth: jax.Array, name: str = "") -> OfMembers:
    """What `known_crps` needs of members `[member, ...]` and `truth` `[...]`.

    A member that is missing stands on the observation, where it can be told again.
    """
    place = jnp.broadcast_to(jnp.nan_to_num(truth), values.shape)
    return OfMembers(
        moments={f"{name} error": jnp.abs(values - truth[None])},
        ordered={f"{name} values": jnp.where(jnp.isnan(values), place, values)},
    )


def known_crps(found: Found, truth: jax.Array, name: str = "") -> CrpsTerms:
    """The terms of the CRPS of what `error_and_order` was kept of.

        sum_{m < l} |x_m - x_l| = sum_k k (M - k) (x_(k+1) - x_(k))

    with k the members at or below x_(k), less those that are missing from the
    observation on. A summary of sorted runs changes k by its error of rank; see
    `reduce.finish_crps`.
    """
    error, _, count = found.moments[f"{name} error"]
    values, until = found.ordered[f"{name} values"]
    is_behind = values[..., :-1] >= truth[..., None]
    number, missing = count[..., None], (found.number - count)[..., None]
    below = until[..., :-1] - jnp.where(is_behind, missing, 0)
    is_inside = (below > 0) & (below < number)
    gaps = jnp.where(is_inside, values[..., 1:] - values[..., :-1], 0.0)
    share = below / jnp.maximum(number, 1)
    pairs = jnp.sum(gaps * share * (1 - share), axis=-1) * count**2.0
    return CrpsTerms(jnp.where(found.is_whole, error, jnp.nan), pairs, count)


CRPS = Ingredient(
    "crps",
    _crps_of_members,
    lambda values, given: error_and_order(values, given["truth"]),
    lambda found, truth, reference: known_crps(found, truth),
    is_ordered=True,
)


class Place(NamedTuple):
    """Members below the observation and equal to it, and how many there are.

    The count is 0 where the observation is missing.
    """

    below: jax.Array
    ties: jax.Array
    count: jax.Array


def _each_place(values, given):
    truth = given["truth"][None]
    return OfMembers(
        counts={
            "below": values < truth,
            "ties": values == truth,
            "count": ~jnp.isnan(values),
        }
    )


def _known_place(found, truth, reference):
    del reference
    below, ties, count = (found.counts[name] for name in ("below", "ties", "count"))
    return Place(below, ties, jnp.where(jnp.isnan(truth), 0, count))


PLACE = of_each("ranks", _each_place, _known_place)


class Extent(NamedTuple):
    """Smallest and largest member; NaN where there is none."""

    minimum: jax.Array
    maximum: jax.Array


def _known_extent(found, truth, reference):
    del reference
    low, high = found.lowest["member"], found.highest["member"]
    return Extent(*(jnp.where(jnp.isnan(truth), jnp.nan, x) for x in (low, high)))


EXTENT = of_each(
    "extremes",
    lambda values, given: OfMembers(
        lowest={"member": values}, highest={"member": values}
    ),
    _known_extent,
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


def _event(truth, thresholds, num_below):
    undefined = jnp.isnan(truth)[..., None] | jnp.isnan(thresholds)
    wide = truth[..., None]
    came = wide > thresholds
    if num_below:
        is_lower = np.arange(thresholds.shape[-1]) < num_below
        came = jnp.where(
            jnp.broadcast_to(is_lower, came.shape), wide < thresholds, came
        )
    return jnp.where(undefined, jnp.nan, came * 1.0)


@functools.lru_cache(maxsize=256)
def shares(thresholds: tuple[float, ...] | None, num_below: int = 0) -> Ingredient:
    """The shares above thresholds, for all elements or from `reference["thresholds"]`.

    There, they are `[*truth, threshold]`. Of the first `num_below` the shares below.
    """

    def each(values, given):
        levels = given.get("thresholds")
        if levels is None:
            levels = _thresholds(thresholds, given["truth"], None)
        # A loop over thresholds: members times thresholds need not exist together.
        above = {}
        for i in range(levels.shape[-1]):
            level = levels[None, ..., i]
            above[f"above {i}"] = values < level if i < num_below else values > level
        return OfMembers(counts=above | {"count": ~jnp.isnan(values)})

    def known(found, truth, reference):
        levels = _thresholds(thresholds, truth, reference)
        number = levels.shape[-1]
        above = [found.counts[f"above {i}"] for i in range(number)]
        above = jnp.stack(above, axis=-1)
        count = jnp.broadcast_to(found.counts["count"][..., None], above.shape)
        share = above / jnp.where(count > 0, count, jnp.nan)
        return Shares(share, _event(truth, levels, num_below), count)

    def inputs(truth, reference):
        if thresholds is not None:
            return {}
        return {"thresholds": _thresholds(None, truth, reference)}

    of = "given" if thresholds is None else ", ".join(map(repr, thresholds))
    lower = f", {num_below} below" if num_below else ""
    return of_each(f"exceedances of {of}{lower}", each, known, inputs)


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


def whole_vectors(values: jax.Array, vector_axes: int) -> jax.Array:
    """`values`, NaN in all of a vector (the last axes) that lacks one of its values."""
    vector = tuple(range(values.ndim - vector_axes, values.ndim))
    lacks = jnp.any(jnp.isnan(values), axis=vector, keepdims=True)
    return jnp.where(lacks, jnp.nan, values)
