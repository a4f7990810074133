"""How many members exceed thresholds, in one pass and across devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.reduce.devices import Family, reduce_stack
from ensjax.reduce.values import (
    along_members,
    check_one_member,
    check_values,
    has_nan,
    member_mask,
)


class Exceedances(NamedTuple):
    """Running counts of the members above thresholds.

    Attributes:
        count: members so far, int32 `[]`.
        thresholds: leaves `[threshold, ...]`, or `[threshold, 1, ...]` where all
            elements share them.
        above: members strictly above each threshold, int32 leaves `[threshold, ...]`.
        undefined: whether a member was NaN there, leaves `[...]`.
    """

    count: jax.Array
    thresholds: Any
    above: Any
    undefined: Any


def init_exceedances(like: Any, thresholds: Any) -> Exceedances:
    """The counts of no members; 4 bytes a threshold and element whatever M is.

    Args:
        like: one member's values (arrays or `jax.ShapeDtypeStruct`), leaves `[...]`.
        thresholds: numbers `[threshold]` for every element, or a tree shaped as `like`
            with leaves `[threshold, ...]`, in the unit of the values.

    Raises:
        ValueError: if thresholds fit neither way; names the leaf.
        TypeError: if a leaf holds no real numbers.
    """
    check_one_member(like)
    if all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(thresholds)):
        thresholds = jnp.asarray(thresholds)  # a list of numbers
    if jax.tree_util.all_leaves([thresholds]) and jnp.ndim(thresholds) == 1:
        row = jnp.asarray(thresholds)
        spread = jax.tree.map(lambda x: row.reshape(-1, *(1,) * len(x.shape)), like)
    else:
        _check_thresholds(like, thresholds)
        spread = jax.tree.map(jnp.asarray, thresholds)
    above = jax.tree.map(
        lambda x, t: jnp.zeros((t.shape[0], *x.shape), jnp.int32), like, spread
    )
    undefined = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), like)
    return Exceedances(jnp.zeros((), jnp.int32), spread, above, undefined)


def _check_thresholds(like, thresholds):
    given = dict(jax.tree.leaves_with_path(thresholds))
    for path, leaf in jax.tree.leaves_with_path(like):
        name = jax.tree_util.keystr(path)
        shape = jnp.shape(given.pop(path)) if path in given else None
        if not shape or shape[1:] != leaf.shape:
            raise ValueError(
                f"thresholds{name} must be [threshold, ...] for values of shape"
                f" {leaf.shape}, or one list of numbers for all; got {shape or 'none'}."
            )
    if given:
        name = jax.tree_util.keystr(next(iter(given)))
        raise ValueError(f"thresholds{name} belongs to no values.")


def update_exceedances(
    exceedances: Exceedances, stacked: Any, mask: jax.Array | None = None
) -> Exceedances:
    """`exceedances` with the members of `stacked` (leaves `[member, ...]`) counted.

    Args:
        exceedances: the state so far.
        stacked: values of some members.
        mask: booleans `[member]`; members that are False are left out.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    mask = member_mask(mask, check_values(exceedances.undefined, stacked))

    def counted(above, thresholds, x):
        is_above = (x[:, None] > thresholds[None]) & along_members(mask, x[:, None])
        return above + is_above.sum(axis=0, dtype=jnp.int32)

    return exceedances._replace(
        count=exceedances.count + mask.sum(dtype=jnp.int32),
        above=jax.tree.map(counted, exceedances.above, exceedances.thresholds, stacked),
        undefined=jax.tree.map(
            lambda was, x: was | has_nan(x, mask), exceedances.undefined, stacked
        ),
    )


def merge_exceedances(a: Exceedances, b: Exceedances) -> Exceedances:
    """The counts of the members of `a` and `b` together, which share thresholds."""
    return a._replace(
        count=a.count + b.count,
        above=jax.tree.map(jnp.add, a.above, b.above),
        undefined=jax.tree.map(jnp.logical_or, a.undefined, b.undefined),
    )


def finish_exceedances(exceedances: Exceedances) -> Any:
    """The share of members strictly above each threshold.

    Returns:
        Leaves `[threshold, ...]`, float32 from 0 to 1. NaN for no members, and where a
        member was NaN. The counts themselves are `exceedances.above`.
    """
    count = jnp.where(exceedances.count > 0, exceedances.count, jnp.nan)
    return jax.tree.map(
        lambda above, undefined: jnp.where(undefined[None], jnp.nan, above / count),
        exceedances.above,
        exceedances.undefined,
    )


def psum_exceedances(exceedances: Exceedances, axis_name: str = "member"):
    """The counts summed over a mesh axis, inside a `shard_map`."""

    def somewhere(flag):
        return jax.lax.psum(flag.astype(jnp.int32), axis_name) > 0

    return exceedances._replace(
        count=jax.lax.psum(exceedances.count, axis_name),
        above=jax.lax.psum(exceedances.above, axis_name),
        undefined=jax.tree.map(somewhere, exceedances.undefined),
    )


def _empty(exceedances):
    count, _, above, undefined = jax.tree.map(jnp.zeros_like, exceedances)
    return Exceedances(count, exceedances.thresholds, above, undefined)


EXCEEDANCES = Family(update_exceedances, psum_exceedances, _empty)


def reduce_exceedances(
    stacked: Any,
    thresholds: Any,
    mask: jax.Array | None = None,
    *,
    mesh: Mesh | None = None,
) -> Exceedances:
    """The counts over all members of a stack that is split over devices.

    Args:
        stacked: leaves `[member, ...]`.
        thresholds: as in `init_exceedances`.
        mask: booleans `[member]`, or None for all.
        mesh: from `make_mesh`; all devices by default.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    state = init_exceedances(one, thresholds)
    return reduce_stack(EXCEEDANCES, state, stacked, mask, mesh)
