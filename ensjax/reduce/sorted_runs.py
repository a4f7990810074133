"""A summary of many members by sorted runs, of a size that does not grow with them.

Members first fill a buffer of `width` places. A full buffer is sorted: a *run* of level
0, in which a value stands for one member. Two runs of a level are merged, and of each
two neighbours one value is kept: a run of the next level, in which a value stands for
twice as many members. At most one run of a level is held, so that which levels are
occupied are the binary digits of the number of runs so far; folding in a run, or
another summary, is binary addition. What happens when depends on counts alone, which
all elements share: one program serves `[...]` elements at once.

Keeping one of two neighbours changes the number of members below any value by at most
the members that a value stood for, and that only where their number is odd. A merge of
two runs handles `2 * width` values, and each member passes a level once. So for M
members in any order, folded in and merged in any way, and any value x,

    | (members <= x, by the summary) - (members <= x) | <= M (levels - 1) / (2 width)

always, without any probability. `sketch_size` chooses levels and width for a bound.

Source: Munro and Paterson 1980, Selection and sorting with limited storage, section 3;
Manku, Rajagopalan and Lindsay 1998, Approximate medians and other quantiles in one pass
and with limited memory, sections 3 and 4.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.reduce.devices import merge_over_devices

# Which of two neighbours stands for both: `(sorted [..., 2 * width], number of this
# merge) -> [..., width]`.
Compact = Callable[[jax.Array, jax.Array], jax.Array]


class SortedRuns(NamedTuple):
    """The summary: all members while they fit its buffer, else runs of some of them.

    Attributes:
        count: members so far, int32 `[]`.
        pending: the buffer, leaves `[..., width]`, in order of arrival.
        runs: leaves `[level, ..., width]`, each sorted; what an unoccupied level holds
            means nothing.
    """

    count: jax.Array
    pending: Any
    runs: Any


def sketch_size(max_members: int, rank_error: float = 0.005) -> tuple[int, int]:
    """Levels and width of the smallest summary within an error of rank.

    An element takes `(levels + 1) * width` numbers: with the default of 0.5 %, for
    10,000 members 2,400; for 100,000, 6,256; for a million, 10,747. All members are
    held, with 0 levels, where a summary would not be less than half of them.

    Args:
        max_members: the most members that will be folded in and merged.
        rank_error: bound on the error of rank as a share of the members, from 0 (all
            are held) to 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 1 <= max_members < 2**31:
        raise ValueError(
            f"max_members must be from 1 to 2,147,483,647; got {max_members}."
        )
    if not 0 <= rank_error < 1:
        raise ValueError(
            f"rank_error is a share of the members, from 0 (exact) to below 1;"
            f" got {rank_error}."
        )
    best = (0, max_members)
    for levels in range(1, 32):
        if levels > 1 and not rank_error:
            break
        least = math.ceil((levels - 1) / (2 * rank_error)) if levels > 1 else 1
        width = max(math.ceil(max_members / 2**levels), least)
        numbers = (levels + 1) * width
        if numbers < min((best[0] + 1) * best[1], max_members / 2):
            best = (levels, width)
    return best


def init_runs(like: Any, *, max_members: int, rank_error: float) -> SortedRuns:
    """The summary of no members, sized by `sketch_size`; `like` is one member's."""
    levels, width = sketch_size(max_members, rank_error)
    pending = jax.tree.map(lambda x: jnp.zeros((*x.shape, width), x.dtype), like)
    runs = jax.tree.map(lambda x: jnp.zeros((levels, *x.shape), x.dtype), pending)
    return SortedRuns(jnp.zeros((), jnp.int32), pending, runs)


def capacity(state: SortedRuns) -> int:
    """The most members that the summary can stand for."""
    levels, width = _size(state)
    return width * 2**levels


def rank_error_bound(state: SortedRuns) -> float:
    """The bound on the error of rank as a share of the members; 0: all are held."""
    levels, width = _size(state)
    return max(levels - 1, 0) / (2 * width)


def _size(state):
    return jax.tree.leaves(state.runs)[0].shape[0], _width(state.pending)


def _width(pending):
    return jax.tree.leaves(pending)[0].shape[-1]


def _num_runs(count, width):
    """Runs so far: the buffer is emptied when the next member does not fit."""
    return jnp.maximum(count - 1, 0) // width


def update_runs(
    state: SortedRuns, stacked: Any, mask: jax.Array, compact: Compact
) -> SortedRuns:
    """`state` with the members of `stacked` `[member, ...]` folded in where `mask`."""
    width = _width(state.pending)
    members = mask.shape[0]
    if members == 0:
        return state
    kept = mask.sum(dtype=jnp.int32)
    # Those that count come first; a chunk of at most `width` fits behind the buffer.
    order = jnp.argsort(~mask, stable=True)
    chunk = min(members, width)
    padding = -members % chunk

    def chunks(x):
        x = jnp.take(x, order, axis=0)
        x = jnp.concatenate([x, jnp.zeros((padding, *x.shape[1:]), x.dtype)])
        x = x.reshape(-1, chunk, *x.shape[1:])
        return jnp.moveaxis(x, 1, -1)  # [chunk number, ..., chunk]

    parts = jax.tree.map(chunks, stacked)
    number = (members + padding) // chunk

    def fold(state, xs):
        start, part = xs
        filled = jnp.clip(kept - start, 0, chunk)
        return _append(state, part, filled, compact), None

    starts = jnp.arange(number, dtype=jnp.int32) * chunk
    if number == 1:
        return fold(state, (starts[0], jax.tree.map(lambda x: x[0], parts)))[0]
    return jax.lax.scan(fold, state, (starts, parts))[0]


def _append(state, part, filled, compact):
    """Puts the first `filled` values of `part` `[..., at most width]` in the buffer."""
    width = _width(state.pending)
    runs_before = _num_runs(state.count, width)
    used = state.count - runs_before * width
    wide = _behind(state.pending, part, used)
    is_full = used + filled > width

    def with_run(runs):
        run = jax.tree.map(lambda x: jnp.sort(x[..., :width], axis=-1), wide)
        return _carry(runs, run, runs_before, compact)

    return SortedRuns(
        state.count + filled,
        jax.tree.map(
            lambda x: jnp.where(is_full, x[..., width:], x[..., :width]), wide
        ),
        jax.lax.cond(is_full, with_run, lambda runs: runs, state.runs),
    )


def _behind(pending, part, used):
    """Leaves `[..., 2 * width]`: the buffer's first `used` values, then `part`."""

    def join(buffer, values):
        wide = jnp.concatenate([buffer, jnp.zeros_like(buffer)], axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(wide, values, used, axis=-1)

    return jax.tree.map(join, pending, part)


def _carry(runs, run, runs_before, compact):
    """`runs` with one more run of level 0: binary addition of one."""
    levels = jax.tree.leaves(runs)[0].shape[0]
    if levels == 0:  # more members than the summary is for: see `sorted_members`
        return runs

    def is_occupied(carry):
        level, _ = carry
        return (level < levels) & ((runs_before >> level) & 1 == 1)

    def combine(carry):
        level, run = carry
        merges = runs_before >> (level + 1)
        run = jax.tree.map(
            lambda held, new: _merged(held[level], new, merges, compact), runs, run
        )
        return level + 1, run

    level, run = jax.lax.while_loop(is_occupied, combine, (jnp.int32(0), run))
    return jax.tree.map(
        lambda held, new: jax.lax.dynamic_update_index_in_dim(held, new, level, 0),
        runs,
        run,
    )


def _merged(a, b, merges, compact):
    return compact(jnp.sort(jnp.concatenate([a, b], axis=-1), axis=-1), merges)


def merge_runs(a: SortedRuns, b: SortedRuns, compact: Compact) -> SortedRuns:
    """The summary of the members of `a` and `b`, which are of one size.

    Raises:
        ValueError: if they are not.
    """
    levels, width = _size(a)
    if _size(b) != (levels, width):
        raise ValueError(
            "two summaries can be merged if both were made for the same number of"
            f" members; their sizes are {(levels, width)} and {_size(b)}."
        )
    runs_a, runs_b = _num_runs(a.count, width), _num_runs(b.count, width)
    used_a, used_b = a.count - runs_a * width, b.count - runs_b * width
    wide = _behind(a.pending, b.pending, used_a)
    is_full = used_a + used_b > width
    pending = jax.tree.map(
        lambda x: jnp.where(is_full, x[..., width:], x[..., :width]), wide
    )
    carried = jax.tree.map(lambda x: jnp.sort(x[..., :width], axis=-1), wide)

    def add(level, state):
        runs, carried, is_carried = state
        in_a, in_b = (runs_a >> level) & 1 == 1, (runs_b >> level) & 1 == 1
        present = in_a.astype(int) + in_b.astype(int) + is_carried.astype(int)
        merges = (runs_a >> (level + 1)) + (runs_b >> (level + 1))

        def digit(run_a, run_b, run_c):
            first = jnp.where(in_a, run_a, run_b)
            second = jnp.where(in_a & in_b, run_b, run_c)
            stays = jnp.where(
                (present == 3) | ~(in_a | in_b), run_c, jnp.where(in_a, run_a, run_b)
            )
            carry = jax.lax.cond(
                present >= 2,
                lambda: _merged(first, second, merges, compact),
                lambda: run_c,
            )
            return stays, carry

        digits = [
            digit(run_a[level], run_b[level], run_c)
            for run_a, run_b, run_c in zip(
                jax.tree.leaves(a.runs),
                jax.tree.leaves(b.runs),
                jax.tree.leaves(carried),
                strict=True,
            )
        ]
        treedef = jax.tree.structure(carried)
        runs = jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, level, 0),
            runs,
            jax.tree.unflatten(treedef, [stays for stays, _ in digits]),
        )
        carried = jax.tree.unflatten(treedef, [carry for _, carry in digits])
        return runs, carried, present >= 2

    runs = a.runs
    if levels:
        runs, _, _ = jax.lax.fori_loop(0, levels, add, (runs, carried, is_full))
    return SortedRuns(a.count + b.count, pending, runs)


def psum_runs(state: SortedRuns, axis_name: str, compact: Compact) -> SortedRuns:
    """The summary merged over a mesh axis, inside a `shard_map`."""
    merge = functools.partial(merge_runs, compact=compact)
    return merge_over_devices(merge, state, axis_name)


def sorted_members(state: SortedRuns) -> tuple[Any, Any]:
    """What the summary holds, in order, and how many members lie at or before it.

    Returns:
        `(values, members)`: leaves `[..., place]` and int32 leaves `[..., place]`, not
        decreasing. Places that hold nothing come last or repeat the number before.
    """
    levels, width = _size(state)
    runs = _num_runs(state.count, width)
    used = state.count - runs * width
    level = jnp.arange(levels)
    stands_for = jnp.where((runs >> level) & 1 == 1, 1 << level, 0)
    weights = jnp.concatenate(
        [
            (jnp.arange(width) < used).astype(jnp.int32),
            jnp.repeat(stands_for.astype(jnp.int32), width),
        ]
    )

    def ordered(pending, runs):
        runs = jnp.moveaxis(runs, 0, -2).reshape(*pending.shape[:-1], levels * width)
        values = jnp.concatenate([pending, runs], axis=-1)
        w = jnp.broadcast_to(
            weights.reshape(*(1,) * (values.ndim - 1), -1), values.shape
        )
        values = jnp.where(w > 0, values, _last(values.dtype))
        values, w = jax.lax.sort((values, w), dimension=values.ndim - 1, num_keys=1)
        return values, jnp.cumsum(w, axis=-1)

    pairs = jax.tree.map(ordered, state.pending, state.runs)
    values = jax.tree.map(lambda _, pair: pair[0], state.pending, pairs)
    members = jax.tree.map(lambda _, pair: pair[1], state.pending, pairs)
    return values, members


def _last(dtype):
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.inf
    return True if jnp.issubdtype(dtype, bool) else jnp.iinfo(dtype).max
