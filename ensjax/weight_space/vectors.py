"""The leaves of a tree as vectors: which entries form one, inner products and lengths.

Methods that need angles, ranks or signs over more than one leaf are written on lists
of leaves in float32, `[member, ...]` each; `map_together` makes such a list of a tree
and a tree of the result.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensjax.members import num_members, take_rows
from ensjax.weight_space.leaves import check_base, is_mixed, leaf_name, wide

SCOPES = ("leaf", "global", "output", "input")
# Shorter vectors have no direction.
SHORTEST = 1e-8


def map_together(
    fn: Callable[..., Any], stacked: Any, base: Any = None, *, keep: int = 0
) -> Any:
    """One tree from a stack, all leaves at once, computed in float32 and cast back.

    Args:
        fn: `fn(names, rows)`, or `fn(names, rows, origin)` where there is a base:
            lists over the floating leaves, of dotted names, of arrays `[member, ...]`
            and of the base's `[...]`; returns a list of `[...]`.
        stacked: leaves `[member, ...]`.
        base: one member's tree.
        keep: the member whose leaves are taken where they are not floating; with a base
            they are the base's.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if there is no member, or the base is not one member of the stack.
        TypeError: if a leaf is complex, of which there is no sign, rank or angle.
    """
    num_members(stacked)
    if base is not None:
        check_base(stacked, base)
    paths, leaves = zip(*jax.tree.leaves_with_path(stacked), strict=True)
    origin = leaves if base is None else jax.tree.leaves(base)
    mixed = [i for i, leaf in enumerate(leaves) if is_mixed(leaf)]
    for i in mixed:
        if jnp.issubdtype(leaves[i].dtype, jnp.complexfloating):
            raise TypeError(
                f"{leaf_name(paths[i])} is {leaves[i].dtype}; only real leaves have"
                " signs and angles. Merge it as two leaves, or with average."
            )
    lists = [[wide(leaves[i]) for i in mixed]]
    if base is not None:
        lists.append([wide(origin[i]) for i in mixed])
    merged = fn([leaf_name(paths[i]) for i in mixed], *lists) if mixed else []
    result = [take_rows(x, keep) if base is None else x for x in origin]
    for i, leaf in zip(mixed, merged, strict=True):
        result[i] = leaf.astype(leaves[i].dtype)
    result = [
        x if x.dtype == y.dtype else x.astype(y.dtype)
        for x, y in zip(map(jnp.asarray, result), leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(stacked), result)


def check_scope(scope: str, allowed: Sequence[str] = SCOPES) -> None:
    """Raises `ValueError` unless `scope` is one of those allowed."""
    if scope not in allowed:
        raise ValueError(f"scope must be one of {', '.join(allowed)}; got {scope!r}.")


def check_two(stacked: Any, what: str) -> None:
    """Raises `ValueError` unless the stack holds two members."""
    if num_members(stacked) != 2:
        raise ValueError(
            f"{what} is between two members; got {num_members(stacked)}. For more there"
            " are multislerp and karcher_mean."
        )


def rows_of(scalars: jax.Array, leaf: jax.Array) -> jax.Array:
    """`[member]` shaped to be multiplied with a leaf `[member, ...]`."""
    return scalars.reshape(scalars.shape + (1,) * (leaf.ndim - scalars.ndim))


def without_absent(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """A leaf `[member, ...]` in which a weight of 0 leaves nothing that is not finite.

    As 0 times NaN is NaN, such entries become 0; all others stay what they are.
    """
    is_spoilt = (rows_of(weights, rows) == 0) & ~jnp.isfinite(rows)
    return jnp.where(is_spoilt, 0, rows)


def weighted_sum(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """`sum_m w_m x_m` of one leaf `[member, ...]` by weights `[member]`.

    A weight of 0 removes a member, also one that is not finite.
    """
    rows = without_absent(rows, weights)
    return jnp.sum(rows * rows_of(weights, rows), axis=0)


class Gram(NamedTuple):
    """A scope for vectors that are not here, but whose inner products are.

    Means along great circles are sums of the members, with coefficients that depend on
    inner products alone. Where members do not fit in memory, the same functions are
    given coefficients for leaves, and this for a scope.

    Attributes:
        products: `[..., member, member]`, for each vector of a leaf `[..., member]` of
            coefficients. In float64, or small angles are lost.
    """

    products: jax.Array

    def inner(self, xs: jax.Array, ys: jax.Array) -> jax.Array:
        """`[..., 1]`, of leaves `[..., member]` of coefficients."""
        moved = jnp.einsum("...i,...ij->...j", xs, self.products, precision="highest")
        return jnp.sum(moved * ys, axis=-1, keepdims=True)


def inner(
    xs: Sequence[jax.Array], ys: Sequence[jax.Array], scope: str | Gram, *, lead: int
) -> list[jax.Array]:
    """Inner products of the vectors of two lists of leaves.

    Args:
        xs: leaves `[*lead, ...]`.
        ys: leaves of the same shapes, or with 1 in place of a leading axis.
        scope: which entries of a leaf form one vector. "leaf": all; "global": those of
            all leaves together; "output": those that lead to one index of the last
            axis, which are the weights of one unit (`[in, out]`, `[*tap, in, out]`);
            "input": those of one index of the last axis but one. A leaf with fewer than
            two axes is one vector. A `Gram`: leaves are coefficients.
        lead: how many leading axes are no part of a vector (the member axis).

    Returns:
        For each leaf an array of its rank, 1 along the axes that are summed.
    """
    if isinstance(scope, Gram):
        return [scope.inner(x, y) for x, y in zip(xs, ys, strict=True)]
    sums = [
        jnp.sum(x * y, axis=_axes(x.ndim, lead, scope), keepdims=True)
        for x, y in zip(xs, ys, strict=True)
    ]
    if scope != "global":
        return sums
    total = sum(s.reshape(s.shape[:lead]) for s in sums)
    return [total.reshape(s.shape) for s in sums]


def _axes(ndim, lead, scope):
    axes = list(range(lead, ndim))
    if scope in ("output", "input") and len(axes) >= 2:
        del axes[-1 if scope == "output" else -2]
    return tuple(axes)


def lengths(
    xs: Sequence[jax.Array], scope: str | Gram, *, lead: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Lengths of vectors, and whether they are long enough to have a direction.

    Args:
        xs: leaves `[*lead, ...]`.
        scope: as in `inner`.
        lead: as in `inner`.

    Returns:
        For each leaf, arrays shaped as those of `inner`. The length of a vector shorter
        than 1e-8 is given as 1, so that quotients and their gradients are finite.
    """
    squares = inner(xs, xs, scope, lead=lead)
    # So a member that is not finite has a direction, and shows in the result.
    has_direction = [~(s <= SHORTEST**2) for s in squares]
    roots = [jnp.sqrt(jnp.where(h, s, 1.0)) for s, h in zip(squares, has_direction)]
    return roots, has_direction
