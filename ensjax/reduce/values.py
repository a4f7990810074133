"""What enters a reduction: members' values, and which members count."""

from typing import Any

import jax
import jax.numpy as jnp

from ensjax.members import num_members


def check_one_member(like: Any) -> None:
    """Raises unless `like` is one member's values: at least one array of real numbers.

    Raises:
        ValueError: if there is no array.
        TypeError: if a leaf has no order (complex numbers, keys); names it.
    """
    leaves = jax.tree.leaves_with_path(like)
    if not leaves:
        raise ValueError("A reduction needs at least one array; got none.")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        is_real = any(
            jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, bool)
        )
        if not is_real:
            raise TypeError(
                f"{jax.tree_util.keystr(path) or 'The values'}: a reduction takes real"
                f" numbers; got {dtype}."
            )


def check_values(like: Any, stacked: Any) -> int:
    """The number of members in `stacked`, whose members must be shaped as `like`.

    Args:
        like: one member's values, leaves `[...]`.
        stacked: leaves `[member, ...]`; there may be no member at all.

    Raises:
        ValueError: if a leaf is missing or has another shape; names it.
    """
    members = num_members(stacked)
    expected = dict(jax.tree.leaves_with_path(like))
    for path, leaf in jax.tree.leaves_with_path(stacked):
        name = jax.tree_util.keystr(path) or "The values"
        if path not in expected:
            raise ValueError(f"{name} is not part of what this reduction was made for.")
        shape = jnp.shape(expected.pop(path))
        if jnp.shape(leaf)[1:] != shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(leaf)}, but this reduction was made for"
                f" members of shape {shape}, which come stacked: [member, ...]."
            )
    if expected:
        name = jax.tree_util.keystr(next(iter(expected)))
        raise ValueError(f"{name} is missing in the values.")
    return members


def member_mask(mask: jax.Array | None, members: int) -> jax.Array:
    """`mask` as booleans `[member]`; all members for None.

    Raises:
        TypeError: if it is not boolean: counts have no fractions of members.
        ValueError: if it has another shape.
    """
    if mask is None:
        return jnp.ones(members, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(
            f"mask must be booleans [member]; got {mask.dtype}. Of weights, use"
            " `weights > 0`; only moments take weights of any size."
        )
    if mask.shape != (members,):
        raise ValueError(f"mask must be [member] = ({members},); got {mask.shape}.")
    return mask


def along_members(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """`mask` `[member]` as `[member, 1, ...]`, which broadcasts against `leaf`."""
    return mask.reshape(-1, *(1,) * (leaf.ndim - 1))


def has_nan(leaf: jax.Array, mask: jax.Array) -> jax.Array:
    """Where a member that counts is NaN; `[member, ...]` to booleans `[...]`."""
    return jnp.any(jnp.isnan(leaf) & along_members(mask, leaf), axis=0)
