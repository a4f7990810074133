"""Which members are lowest, highest and closest to observations, in one pass.

Beside its values a member brings an id: `(values, id)`. So a forecast that is found to
be the most extreme of thousands can be made again alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.reduce.devices import Family
from ensjax.reduce.values import (
    along_members,
    check_one_member,
    check_values,
    member_mask,
)

NOBODY = -1  # the id where there is no member


class Found(NamedTuple):
    """A value and who has it.

    Attributes:
        value: leaves `[...]`; infinite while there is nobody.
        member: int32 leaves `[...]`; of members with equal values the smallest id.
    """

    value: Any
    member: Any


class ExtremeMembers(NamedTuple):
    """Running extremes of stacked values, and their members.

    Attributes:
        lowest, highest: `Found`.
        observations: leaves `[...]`, or None.
        closest: `Found` of the distance to the observation, or None.
    """

    lowest: Found
    highest: Found
    observations: Any = None
    closest: Any = None


def init_extreme_members(like: Any, observations: Any = None) -> ExtremeMembers:
    """The extremes of no members; 8 bytes for each and element whatever M is.

    Args:
        like: one member's values (floating arrays or `jax.ShapeDtypeStruct`), leaves
            `[...]`.
        observations: of the same shapes, for the closest members; None: not kept.

    Raises:
        ValueError, TypeError: if there is no array, or a leaf holds no floats.
    """
    check_one_member(like)
    for path, leaf in jax.tree.leaves_with_path(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"values{jax.tree_util.keystr(path)} must be floats; got {leaf.dtype}."
            )

    def nobody(value):
        return Found(
            jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), like),
            jax.tree.map(lambda x: jnp.full(x.shape, NOBODY, jnp.int32), like),
        )

    if observations is None:
        return ExtremeMembers(nobody(jnp.inf), nobody(-jnp.inf))
    observations = jax.tree.map(
        lambda y, x: jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape),
        observations,
        like,
    )
    return ExtremeMembers(
        nobody(jnp.inf), nobody(-jnp.inf), observations, nobody(jnp.inf)
    )


def update_extreme_members(
    state: ExtremeMembers, stacked: tuple[Any, jax.Array], mask: jax.Array | None = None
) -> ExtremeMembers:
    """`state` with some members folded in.

    Args:
        state: so far.
        stacked: their values, leaves `[member, ...]`, and ids from 0 on, int
            `[member]`. A value that is NaN is nobody's.
        mask: booleans `[member]`; members that are False are left out.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    values, ids = stacked
    members = check_values(state.lowest.value, values)
    mask = member_mask(mask, members)
    ids = jnp.asarray(ids, jnp.int32)
    if ids.shape != (members,):
        raise ValueError(f"ids must be [member] = ({members},); got {ids.shape}.")

    def lowest(values):
        def of_leaf(x):
            usable = along_members(mask, x) & ~jnp.isnan(x)
            x = jnp.where(usable, x, jnp.inf)
            value = jnp.min(x, axis=0)
            number = jnp.where(usable & (x == value[None]), _wide(ids, x), _LAST)
            member = jnp.min(number, axis=0)
            return value, jnp.where(member == _LAST, NOBODY, member)

        pairs = jax.tree.map(of_leaf, values)
        return Found(*_split(values, pairs))

    found = lowest(jax.tree.map(jnp.negative, values))
    highest = Found(jax.tree.map(jnp.negative, found.value), found.member)
    new = ExtremeMembers(lowest(values), highest)
    if state.closest is not None:
        away = jax.tree.map(
            lambda x, y: jnp.abs(x - y[None]), values, state.observations
        )
        new = new._replace(observations=state.observations, closest=lowest(away))
    return merge_extreme_members(state, new)


_LAST = jnp.iinfo(jnp.int32).max


def _wide(ids, x):
    return jnp.broadcast_to(ids.reshape(-1, *(1,) * (x.ndim - 1)), x.shape)


def _split(like, pairs):
    treedef = jax.tree.structure(like)
    leaves = treedef.flatten_up_to(pairs)
    return [treedef.unflatten(part) for part in zip(*leaves)]


def merge_extreme_members(a: ExtremeMembers, b: ExtremeMembers) -> ExtremeMembers:
    """The extremes of the members of `a` and `b` together, in any order."""

    def better(a, b, is_less):
        def who(x, y, i, j):
            tied = jnp.where(
                i == NOBODY, j, jnp.where(j == NOBODY, i, jnp.minimum(i, j))
            )
            return jnp.where(is_less(x, y), i, jnp.where(is_less(y, x), j, tied))

        member = jax.tree.map(who, a.value, b.value, a.member, b.member)
        value = jax.tree.map(
            lambda x, y: jnp.where(is_less(y, x), y, x), a.value, b.value
        )
        return Found(value, member)

    merged = ExtremeMembers(
        better(a.lowest, b.lowest, jnp.less), better(a.highest, b.highest, jnp.greater)
    )
    if a.closest is None:
        return merged
    closest = better(a.closest, b.closest, jnp.less)
    return merged._replace(observations=a.observations, closest=closest)


def finish_extreme_members(state: ExtremeMembers) -> ExtremeMembers:
    """The same, with NaN for values of nobody (whose id is -1)."""

    def known(found):
        value = jax.tree.map(
            lambda x, i: jnp.where(i == NOBODY, jnp.nan, x), found.value, found.member
        )
        return Found(value, found.member)

    closest = None if state.closest is None else known(state.closest)
    return state._replace(
        lowest=known(state.lowest), highest=known(state.highest), closest=closest
    )


def psum_extreme_members(state: ExtremeMembers, axis_name: str = "member"):
    """The extremes merged over a mesh axis, inside a `shard_map`; no gather."""

    def over(found, sign):
        def of_leaf(x, i):
            best = jax.lax.pmin(sign * x, axis_name)
            mine = jnp.where((sign * x == best) & (i != NOBODY), i, _LAST)
            member = jax.lax.pmin(mine, axis_name)
            return sign * best, jnp.where(member == _LAST, NOBODY, member)

        pairs = jax.tree.map(of_leaf, found.value, found.member)
        return Found(*_split(found.value, pairs))

    closest = None if state.closest is None else over(state.closest, 1)
    return state._replace(
        lowest=over(state.lowest, 1), highest=over(state.highest, -1), closest=closest
    )


EXTREME_MEMBERS = Family(
    update_extreme_members,
    psum_extreme_members,
    lambda state: init_extreme_members(state.lowest.value, state.observations),
)
