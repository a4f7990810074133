"""What is known of members that never exist together, at each element.

A metric says what it needs of every member (`OfMembers`: booleans that are counted,
numbers whose moments, extremes or order are kept). Blocks of members are folded into a
`MemberState` one after the other, or on different devices, in any order. A member that
is NaN is missing: it is left out there, and counted nowhere but in a state of
`init_not_finite`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.reduce.devices import Family
from ensjax.reduce.sorted_runs import (
    SortedRuns,
    capacity,
    init_runs,
    merge_runs,
    psum_runs,
    sorted_members,
    update_runs,
)
from ensjax.reduce.values import along_members, check_values, member_mask
from ensjax.scores.rows import floating


class OfMembers(NamedTuple):
    """Arrays `[member, ...]` by name, or None, in the way in which they are kept.

    NaN where a member is missing; booleans are False there, and what is kept in order
    has a number in its place (`error_and_order`).

    Attributes:
        counts: booleans; how many are True.
        moments: numbers whose mean and variance are kept, and how many there are.
        lowest, highest: numbers whose smallest (largest) is kept.
        ordered: numbers that are kept in order, all or a summary (`SortedRuns`).
    """

    counts: dict[str, jax.Array] | None = None
    moments: dict[str, jax.Array] | None = None
    lowest: dict[str, jax.Array] | None = None
    highest: dict[str, jax.Array] | None = None
    ordered: dict[str, jax.Array] | None = None


class Running(NamedTuple):
    """How many members, their mean, and the sum of squared deviations from it."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "counts", "moments", "lowest", "highest", "ordered"],
    meta_fields=["each"],
)
@dataclasses.dataclass(frozen=True)
class MemberState:
    """What one ingredient of metrics knows of the members so far.

    Attributes:
        each: `(values [member, *truth], inputs) -> OfMembers`.
        inputs: arrays that it takes beside the values; "truth" is one.
        counts: int32 `[...]` by name.
        moments: `Running` by name.
        lowest, highest: `[...]` by name; infinite where there is no member.
        ordered: one summary of all that is kept in order, or None.
    """

    each: Callable[[jax.Array, dict[str, jax.Array]], OfMembers]
    inputs: dict[str, jax.Array]
    counts: Any
    moments: Any
    lowest: Any
    highest: Any
    ordered: SortedRuns | None
    family: ClassVar[Family]


class Found(NamedTuple):
    """What a `MemberState` comes to, by name.

    Attributes:
        counts: int32 `[...]`.
        moments: `Moments` by name.
        lowest, highest: `[...]`; NaN where there is no member.
        ordered: `(values, members at or before them)`, `[..., place]`.
        number: of members in them, the missing ones too, int32 `[]`.
        is_whole: False after more members than the order is for, `[]`.
        inputs: of the state.
    """

    counts: Any
    moments: Any
    lowest: Any
    highest: Any
    ordered: Any = None
    number: Any = None
    is_whole: Any = True
    inputs: Any = None


class Moments(NamedTuple):
    """Mean (NaN of none), unbiased variance (NaN below two), and how many."""

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def init_state(
    each: Callable[..., OfMembers],
    inputs: dict[str, jax.Array],
    *,
    max_members: int,
    rank_error: float,
) -> MemberState:
    """The state of no members; `max_members` and `rank_error` as in `init_crps`."""
    truth = floating(inputs["truth"])
    inputs = inputs | {"truth": truth}
    no_member = jax.ShapeDtypeStruct((1, *truth.shape), truth.dtype)
    of_one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        jax.eval_shape(each, no_member, inputs),
    )
    ordered = None
    if of_one.ordered:
        ordered = init_runs(
            of_one.ordered, max_members=max_members, rank_error=rank_error
        )
    return MemberState(
        each,
        inputs,
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), of_one.counts),
        jax.tree.map(_nothing, of_one.moments),
        jax.tree.map(lambda x: jnp.full(x.shape, jnp.inf, x.dtype), of_one.lowest),
        jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), of_one.highest),
        ordered,
    )


def _nothing(x):
    zeros = jnp.zeros(x.shape, x.dtype)
    return Running(jnp.zeros(x.shape, jnp.int32), zeros, zeros)


def found_of_block(of_members: OfMembers) -> Found:
    """What members that are all there come to; nothing is kept in order."""
    counts, moments, lowest, highest = _of_block(of_members)
    return _found(counts, moments, lowest, highest)


def find(state: MemberState) -> Found:
    """What the members that were folded in come to."""
    found = _found(state.counts, state.moments, state.lowest, state.highest)
    found = found._replace(inputs=state.inputs)
    if state.ordered is None:
        return found
    values, until = sorted_members(state.ordered)
    ordered = {name: (values[name], until[name]) for name in values}
    number = state.ordered.count
    is_whole = number <= capacity(state.ordered)
    return found._replace(ordered=ordered, number=number, is_whole=is_whole)


def _found(counts, moments, lowest, highest):
    def result(running):
        count = running.count
        others = jnp.where(count > 1, count - 1, jnp.nan)
        mean = jnp.where(count > 0, running.mean, jnp.nan)
        return Moments(mean, running.squares / others, count)

    def known(none):
        return lambda x: jnp.where(x == none, jnp.nan, x)

    return Found(
        counts,
        None if moments is None else {n: result(r) for n, r in moments.items()},
        jax.tree.map(known(jnp.inf), lowest),
        jax.tree.map(known(-jnp.inf), highest),
    )


def _of_block(of_members):
    counts = jax.tree.map(
        lambda x: jnp.sum(x, axis=0, dtype=jnp.int32), of_members.counts
    )
    lowest = jax.tree.map(
        lambda x: jnp.min(x, axis=0, where=~jnp.isnan(x), initial=jnp.inf),
        of_members.lowest,
    )
    highest = jax.tree.map(
        lambda x: jnp.max(x, axis=0, where=~jnp.isnan(x), initial=-jnp.inf),
        of_members.highest,
    )
    return counts, jax.tree.map(_running, of_members.moments), lowest, highest


def _running(x):
    is_there = ~jnp.isnan(x)
    count = jnp.sum(is_there, axis=0, dtype=jnp.int32)
    total = jnp.sum(jnp.where(is_there, x, 0.0), axis=0)
    mean = total / jnp.maximum(count, 1)
    away = jnp.where(is_there, x - mean[None], 0.0)
    return Running(count, mean, jnp.sum(away**2, axis=0))


def _update(state, stacked, mask):
    mask = member_mask(mask, check_values(state.inputs["truth"], stacked))
    values = jnp.where(along_members(mask, stacked), floating(stacked), jnp.nan)
    of_members = state.each(values, state.inputs)
    ordered = state.ordered
    if ordered is not None:
        ordered = update_runs(ordered, of_members.ordered, mask, _mean_of_two)
    return _together(state, *_of_block(of_members), ordered)


def _together(state, counts, moments, lowest, highest, ordered):
    merged = None
    if moments is not None:
        merged = {name: _both(state.moments[name], moments[name]) for name in moments}
    return dataclasses.replace(
        state,
        counts=jax.tree.map(jnp.add, state.counts, counts),
        moments=merged,
        lowest=jax.tree.map(jnp.minimum, state.lowest, lowest),
        highest=jax.tree.map(jnp.maximum, state.highest, highest),
        ordered=ordered,
    )


def _both(a, b):
    """Chan, Golub and LeVeque 1983, equations 2.1; see `reduce.merge_moments`."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    gap = b.mean - a.mean
    is_finite = jnp.isfinite(a.mean) & jnp.isfinite(b.mean)
    mean = jnp.where(is_finite, a.mean + gap * share, a.mean + b.mean)
    return Running(count, mean, a.squares + b.squares + gap**2 * a.count * share)


def _mean_of_two(values, merges):
    """As `reduce.crps` has it: it keeps the mean, and nearly all distances."""
    del merges
    half = 0.5 * values.reshape(*values.shape[:-1], -1, 2)
    return half[..., 0] + half[..., 1]


def merge_states(a: MemberState, b: MemberState) -> MemberState:
    """The members of both, which were made for the same truth and metrics."""
    ordered = a.ordered
    if ordered is not None:
        ordered = merge_runs(ordered, b.ordered, _mean_of_two)
    return _together(a, b.counts, b.moments, b.lowest, b.highest, ordered)


def _psum(state, axis_name):
    def moments(running):
        count = jax.lax.psum(running.count, axis_name)
        total = jax.lax.psum(running.mean * running.count, axis_name)
        mean = total / jnp.maximum(count, 1)
        between = running.count * (running.mean - mean) ** 2
        return Running(count, mean, jax.lax.psum(running.squares + between, axis_name))

    summed = state.moments
    if summed is not None:
        summed = {name: moments(running) for name, running in summed.items()}
    ordered = state.ordered
    if ordered is not None:
        ordered = psum_runs(ordered, axis_name, _mean_of_two)
    return dataclasses.replace(
        state,
        counts=jax.tree.map(lambda x: jax.lax.psum(x, axis_name), state.counts),
        moments=summed,
        lowest=jax.tree.map(lambda x: jax.lax.pmin(x, axis_name), state.lowest),
        highest=jax.tree.map(lambda x: jax.lax.pmax(x, axis_name), state.highest),
        ordered=ordered,
    )


def _empty(state):
    counts, moments, ordered = jax.tree.map(
        jnp.zeros_like, (state.counts, state.moments, state.ordered)
    )
    return dataclasses.replace(
        state,
        counts=counts,
        moments=moments,
        lowest=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), state.lowest),
        highest=jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), state.highest),
        ordered=ordered,
    )


MemberState.family = Family(_update, _psum, _empty)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NotFinite:
    """How many members are NaN or infinite at each element.

    Those of other members add: `jax.tree.map(jnp.add, a, b)`.

    Attributes:
        count: int32 `[...]`. Scores leave out those of them that are NaN.
        number: of members that were folded in, int32 `[]`.
    """

    count: jax.Array
    number: jax.Array
    family: ClassVar[Family]


def init_not_finite(like: jax.Array) -> NotFinite:
    """The state of no members, for `fold_members` and `fold_product`.

    Args:
        like: of the shape of one member's values `[...]`, such as the truth.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax.reduce import fold_members
        >>> from ensjax.verification import init_not_finite
        >>> states = {"lost": init_not_finite(jnp.zeros(2))}
        >>> members = jnp.array([[1.0, 2.0], [jnp.nan, 3.0], [jnp.inf, 4.0]])
        >>> fold_members(jnp.abs, members, states, block=1)["lost"].count.tolist()
        [2, 0]
    """
    return NotFinite(jnp.zeros(jnp.shape(like), jnp.int32), jnp.int32(0))


def _update_not_finite(state, stacked, mask):
    mask = member_mask(mask, check_values(state.count, stacked))
    is_lost = ~jnp.isfinite(stacked) & along_members(mask, stacked)
    count = state.count + jnp.sum(is_lost, axis=0, dtype=jnp.int32)
    return NotFinite(count, state.number + jnp.sum(mask, dtype=jnp.int32))


def _psum_not_finite(state, axis_name):
    return jax.tree.map(lambda x: jax.lax.psum(x, axis_name), state)


def _empty_not_finite(state):
    return jax.tree.map(jnp.zeros_like, state)


NotFinite.family = Family(_update_not_finite, _psum_not_finite, _empty_not_finite)
