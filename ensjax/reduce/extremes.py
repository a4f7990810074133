"""Smallest and largest value over members, in one pass and across devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.reduce.devices import Family, reduce_stack
from ensjax.reduce.values import (
    along_members,
    check_one_member,
    check_values,
    member_mask,
)


class Extremes(NamedTuple):
    """Running minimum and maximum of stacked values.

    Attributes:
        count: members so far, int32 `[]`.
        minimum, maximum: leaves `[...]` in the dtype of the values; for no members the
            largest and smallest number of the dtype (infinities for floats). NaN where
            a member was NaN.
    """

    count: jax.Array
    minimum: Any
    maximum: Any


def init_extremes(like: Any) -> Extremes:
    """The extremes of no members at all; two numbers an element whatever M is.

    Args:
        like: one member's values (arrays or `jax.ShapeDtypeStruct`), leaves `[...]`.

    Raises:
        ValueError, TypeError: if there is no array, or a leaf holds no real numbers.
    """
    check_one_member(like)

    def filled(which):
        return jax.tree.map(
            lambda x: jnp.full(x.shape, _limit(x.dtype, which), x.dtype), like
        )

    return Extremes(jnp.zeros((), jnp.int32), filled(1), filled(-1))


def _limit(dtype, sign):
    if jnp.issubdtype(dtype, jnp.floating):
        return sign * jnp.inf
    if jnp.issubdtype(dtype, bool):
        return sign > 0
    return jnp.iinfo(dtype).max if sign > 0 else jnp.iinfo(dtype).min


def update_extremes(
    extremes: Extremes, stacked: Any, mask: jax.Array | None = None
) -> Extremes:
    """`extremes` with the members of `stacked` (leaves `[member, ...]`) folded in.

    Args:
        extremes: the state so far.
        stacked: values of some members; none at all change nothing.
        mask: booleans `[member]`; members that are False are left out, also where they
            are not finite. All count by default.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    mask = member_mask(mask, check_values(extremes.minimum, stacked))

    def reduced(reduce, sign):
        return jax.tree.map(
            lambda x: reduce(
                x, axis=0, where=along_members(mask, x), initial=_limit(x.dtype, sign)
            ),
            stacked,
        )

    count = mask.sum(dtype=jnp.int32)
    return merge_extremes(
        extremes, Extremes(count, reduced(jnp.min, 1), reduced(jnp.max, -1))
    )


def merge_extremes(a: Extremes, b: Extremes) -> Extremes:
    """The extremes of the members of `a` and `b` together."""
    return Extremes(
        a.count + b.count,
        jax.tree.map(jnp.minimum, a.minimum, b.minimum),
        jax.tree.map(jnp.maximum, a.maximum, b.maximum),
    )


def finish_extremes(extremes: Extremes) -> tuple[Any, Any]:
    """Minimum and maximum over the members folded in so far.

    Returns:
        `(minimum, maximum)`, leaves `[...]` in the dtype of the values. NaN where a
        member was NaN, and for no members; integers and booleans have no NaN and keep
        the limits of their dtype for no members.
    """

    def known(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(extremes.count > 0, x, jnp.nan)

    return jax.tree.map(known, extremes.minimum), jax.tree.map(known, extremes.maximum)


def psum_extremes(extremes: Extremes, axis_name: str = "member") -> Extremes:
    """The extremes merged over a mesh axis, inside a `shard_map`; no gather."""

    def over(reduce, x):
        if x.dtype == bool:
            return reduce(x.astype(jnp.uint8), axis_name).astype(bool)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return reduce(x, axis_name)
        # Not every backend's all-reduce hands a NaN on.
        is_nan = jax.lax.psum(jnp.isnan(x).astype(jnp.int32), axis_name) > 0
        return jnp.where(is_nan, jnp.nan, reduce(x, axis_name))

    return Extremes(
        jax.lax.psum(extremes.count, axis_name),
        jax.tree.map(lambda x: over(jax.lax.pmin, x), extremes.minimum),
        jax.tree.map(lambda x: over(jax.lax.pmax, x), extremes.maximum),
    )


EXTREMES = Family(
    update_extremes, psum_extremes, lambda state: init_extremes(state.minimum)
)


def reduce_extremes(
    stacked: Any, mask: jax.Array | None = None, *, mesh: Mesh | None = None
) -> Extremes:
    """The extremes over all members of a stack that is split over devices.

    Args:
        stacked: leaves `[member, ...]`.
        mask: booleans `[member]`, or None for all.
        mesh: from `make_mesh`; all devices by default.

    Raises:
        ValueError: if leaves disagree on the number of members.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    return reduce_stack(EXTREMES, init_extremes(one), stacked, mask, mesh)
