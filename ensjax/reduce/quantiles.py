"""Quantiles over members, in one pass and across devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.members import num_members
from ensjax.reduce.devices import Family, reduce_stack
from ensjax.reduce.sorted_runs import (
    SortedRuns,
    capacity,
    init_runs,
    merge_runs,
    psum_runs,
    sorted_members,
    update_runs,
)
from ensjax.reduce.values import check_one_member, check_values, has_nan, member_mask


class Quantiles(NamedTuple):
    """A summary of stacked values that knows their quantiles.

    Attributes:
        members: some of the values and what each stands for (`SortedRuns`); all of them
            while they are few.
        undefined: whether a member was NaN there, leaves `[...]`.
    """

    members: SortedRuns
    undefined: Any

    @property
    def count(self) -> jax.Array:
        """Members so far, int32 `[]`."""
        return self.members.count


def init_quantiles(
    like: Any, *, max_members: int, rank_error: float = 0.005
) -> Quantiles:
    """The quantiles of no members, of a size that members do not change.

    `levels, width = sketch_size(max_members, rank_error)`. An element takes
    `(levels + 1) * width` values in the dtype of the leaf, and one byte; with the
    default bound and float32 values, 4 kB for 1,000 members, 9.6 kB for 10,000, 25 kB
    for 100,000 and 43 kB for a million. Up to `width` members are all held and their
    quantiles exact: all of `max_members` where that costs less than twice as much.

    Args:
        like: one member's values (arrays or `jax.ShapeDtypeStruct`), leaves `[...]`.
        max_members: the most members that will be folded in and merged. The bound
            holds up to `width * 2**levels` of them; beyond, quantiles are NaN.
        rank_error: bound on the error of rank as a share of the members, which holds
            for every order of members and of merges; 0 keeps all members.

    Raises:
        ValueError: if a number is out of range or there is no array.
        TypeError: if a leaf holds no real numbers.
    """
    check_one_member(like)
    members = init_runs(like, max_members=max_members, rank_error=rank_error)
    undefined = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), like)
    return Quantiles(members, undefined)


def _one_of_two(values, merges):
    """Every second value: the first of two and the second of two in turn."""
    pairs = values.reshape(*values.shape[:-1], -1, 2)
    return jax.lax.dynamic_index_in_dim(pairs, merges & 1, axis=-1, keepdims=False)


def update_quantiles(
    quantiles: Quantiles, stacked: Any, mask: jax.Array | None = None
) -> Quantiles:
    """`quantiles` with the members of `stacked` (leaves `[member, ...]`) folded in.

    Call it inside `jit`: it holds a compiled loop.

    Args:
        quantiles: the state so far.
        stacked: values of some members, in the dtypes of the state.
        mask: booleans `[member]`; members that are False are left out.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    mask = member_mask(mask, check_values(quantiles.undefined, stacked))
    held = jax.tree.map(
        lambda x, like: x.astype(like.dtype), stacked, quantiles.members.pending
    )
    return Quantiles(
        update_runs(quantiles.members, held, mask, _one_of_two),
        jax.tree.map(
            lambda was, x: was | has_nan(x, mask), quantiles.undefined, stacked
        ),
    )


def merge_quantiles(a: Quantiles, b: Quantiles) -> Quantiles:
    """The quantiles of the members of `a` and `b`, made with the same sizes."""
    return Quantiles(
        merge_runs(a.members, b.members, _one_of_two),
        jax.tree.map(jnp.logical_or, a.undefined, b.undefined),
    )


def finish_quantiles(quantiles: Quantiles, probabilities: Any) -> Any:
    """The quantiles of the members folded in so far.

    With the members in order, x_0 <= ... <= x_(M-1), the quantile q is read at position
    q (M - 1), linearly between neighbours, as `numpy.quantile` does. Where not all
    members are held, x_i is the value that stands for it, whose rank is off by at most
    the bound times M.

    Args:
        quantiles: the state.
        probabilities: numbers from 0 to 1, `[probability]` or one number `[]`; NaN
            outside.

    Returns:
        Leaves `[probability, ...]` or `[...]`, float32 or wider. NaN for no members,
        where a member was NaN, and everywhere after more members than the state is for.

    Raises:
        ValueError: if `probabilities` have more than one axis.

    Source: Hyndman and Fan 1996, Sample quantiles in statistical packages, The American
    Statistician 50, definition 7.
    """
    q = jnp.asarray(probabilities, jnp.float32)
    if q.ndim > 1:
        raise ValueError(
            f"probabilities must be [probability] or one number; got shape {q.shape}."
        )
    count = quantiles.count
    is_known = (count > 0) & (count <= capacity(quantiles.members))
    position = jnp.atleast_1d(q) * jnp.maximum(count - 1, 0)
    below = jnp.clip(
        jnp.floor(position).astype(jnp.int32), 0, jnp.maximum(count - 1, 0)
    )
    share = position - below
    valid = is_known & (jnp.atleast_1d(q) >= 0) & (jnp.atleast_1d(q) <= 1)

    def read(values, members, undefined):
        flat = values.reshape(-1, values.shape[-1])
        until = members.reshape(flat.shape)
        at = jax.vmap(functools.partial(_places, below))
        low, high = (
            at(flat, until, jnp.full(flat.shape[:1], 0)),
            at(flat, until, jnp.full(flat.shape[:1], 1)),
        )
        dtype = jnp.promote_types(values.dtype, jnp.float32)
        low, high = low.astype(dtype), high.astype(dtype)
        weight = share.astype(dtype)[None]
        is_between = (low != high) & (weight > 0)
        between = low + jnp.where(is_between, high - low, 0) * weight
        result = jnp.where(is_between, between, low)
        result = jnp.where(valid[None] & ~undefined.reshape(-1, 1), result, jnp.nan)
        result = result.T.reshape(-1, *undefined.shape)
        return result if q.ndim else result[0]

    return jax.tree.map(read, *sorted_members(quantiles.members), quantiles.undefined)


def _places(below, values, until, step):
    """Values of the members number `below + step`, `[probability]`, of one element."""
    last = jnp.maximum(until[-1] - 1, 0)
    place = jnp.searchsorted(until, jnp.minimum(below + step, last), side="right")
    return values[jnp.minimum(place, values.shape[0] - 1)]


def psum_quantiles(quantiles: Quantiles, axis_name: str = "member") -> Quantiles:
    """The quantiles merged over a mesh axis, inside a `shard_map`; no gather."""
    flags = jax.tree.map(lambda x: x.astype(jnp.int32), quantiles.undefined)
    return Quantiles(
        psum_runs(quantiles.members, axis_name, _one_of_two),
        jax.tree.map(lambda x: x > 0, jax.lax.psum(flags, axis_name)),
    )


QUANTILES = Family(
    update_quantiles, psum_quantiles, lambda state: jax.tree.map(jnp.zeros_like, state)
)


def reduce_quantiles(
    stacked: Any,
    mask: jax.Array | None = None,
    *,
    max_members: int | None = None,
    rank_error: float = 0.005,
    mesh: Mesh | None = None,
) -> Quantiles:
    """The quantiles over all members of a stack that is split over devices.

    Args:
        stacked: leaves `[member, ...]`.
        mask: booleans `[member]`, or None for all.
        max_members: as in `init_quantiles`; by default those of the stack.
        rank_error: as in `init_quantiles`.
        mesh: from `make_mesh`; all devices by default.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    members = max(num_members(stacked), 1) if max_members is None else max_members
    state = init_quantiles(one, max_members=members, rank_error=rank_error)
    return reduce_stack(QUANTILES, state, stacked, mask, mesh)
