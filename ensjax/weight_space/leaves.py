"""Which leaves of a stack are mixed, what they are called, and how they are summed.

Everything in this room goes through here: floating leaves are computed in float32 (or
wider) and cast back at the end; what is not floating (counters, masks, random keys) is
taken from one member and never averaged. Batch statistics are no weights: they belong
to the activations of one member, and a merge takes their mean, whatever it does with
weights.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import num_members, take_rows
from ensjax.mesh import fetch


def leaf_name(path: Sequence[Any]) -> str:
    """The dotted name of a leaf, such as `blocks.0.conv.kernel`.

    Args:
        path: a key path of `jax.tree.leaves_with_path`.

    Returns:
        The name, without the `.value` of an nnx variable.
    """
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def leaf_names(tree: Any) -> list[str]:
    """The dotted names of all leaves, in order."""
    return [leaf_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def is_mixed(leaf: Any) -> bool:
    """Whether a leaf is averaged: it holds floating or complex numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


# PyTorch's batch norm.
_STATISTICS = re.compile(r"(^|[./])(running_mean|running_var|num_batches_tracked)$")
# Beside a collection "params": that of flax linen, and what is no parameter of our
# members. Elsewhere these are modules that somebody calls so.
_COLLECTIONS = re.compile(r"((?:params[./])?)(batch_stats|rest|params)[./]")


def statistics_among(names: Iterable[str]) -> frozenset[str]:
    """Those of the names of a tree's leaves that hold batch statistics, no weights.

    Names of PyTorch (`bn.running_var`), of flax linen (`batch_stats.bn.var` beside
    `params.bn.scale`) and of the states of ensjax (`rest.bn.var` beside `params.`) are
    known.
    """
    names = list(names)
    found = {name: _COLLECTIONS.match(name) for name in names}
    kinds = {match.groups() for match in found.values() if match}
    beside = {prefix for prefix, kind in kinds if kind == "params"}

    def is_apart(name):
        match = found[name]
        return match and match[2] != "params" and match[1] in beside

    return frozenset(n for n in names if _STATISTICS.search(n) or is_apart(n))


def wide(leaf: Any) -> jax.Array:
    """The leaf in float32, or in its own type where that is wider."""
    return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


@jax.jit
def _finite_rows(leaves):
    checks = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves
    ]
    return functools.reduce(jnp.logical_and, checks)


def finite_members(stacked: Any) -> np.ndarray:
    """Which members are finite in all leaves that are mixed, `[member]` on the host."""
    leaves = [leaf for leaf in jax.tree.leaves(stacked) if is_mixed(leaf)]
    if not leaves:
        return np.ones(num_members(stacked), bool)
    return np.asarray(fetch(_finite_rows(leaves)))


def map_leaves(
    fn: Callable[..., Any], stacked: Any, *others: Any, keep: int = 0
) -> Any:
    """One tree from a stack, leaf by leaf, computed in float32 and cast back.

    Args:
        fn: `fn(rows, *leaves)` of one leaf `[member, ...]` and the same leaf `[...]` of
            each of `others`, all in float32 or wider; returns `[...]`.
        stacked: leaves `[member, ...]`.
        others: trees of the same structure without the member axis, such as a base.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]` of the types of `stacked`.
    """
    return map_named_leaves(
        lambda name, rows, *rest: fn(rows, *rest), stacked, *others, keep=keep
    )


def map_named_leaves(
    fn: Callable[..., Any], stacked: Any, *others: Any, keep: int = 0
) -> Any:
    """As `map_leaves`, of functions whose first argument is the leaf's name."""

    def one(path, rows, *rest):
        if not is_mixed(rows):
            return take_rows(rows, keep)
        return fn(leaf_name(path), wide(rows), *map(wide, rest)).astype(rows.dtype)

    return jax.tree.map_with_path(one, stacked, *others)


def check_base(stacked: Any, base: Any) -> None:
    """Raises `ValueError` unless `base` is one member of the stack's shapes.

    The leaf is named.
    """
    rows = dict(jax.tree.leaves_with_path(stacked))
    for path, leaf in jax.tree.leaves_with_path(base):
        if path not in rows:
            raise ValueError(f"{leaf_name(path)} is in the base but not in the stack.")
        expected = np.shape(rows.pop(path))[1:]
        if np.shape(leaf) != expected:
            raise ValueError(
                f"{leaf_name(path)} of the base has shape {np.shape(leaf)}; the"
                f" members have {expected}. The base is one member, without a member"
                " axis."
            )
    if rows:
        raise ValueError(
            f"{leaf_name(next(iter(rows)))} is in the stack but not in the base."
        )


def check_keep(keep: int, members: int) -> None:
    """Raises `ValueError` for a member, known here, that there is not."""
    if not isinstance(keep, jax.core.Tracer) and not 0 <= keep < members:
        raise ValueError(f"keep is a member, 0 to {members - 1}; got {keep}.")


def check_weights(weights: Any, stacked: Any) -> jax.Array:
    """Weights `[member]` in float32; equal ones for `None`.

    Raises:
        ValueError: if there is not one for each member of the stack, or they are known
            here and negative, not finite, or all 0.
    """
    members = num_members(stacked)
    if weights is None:
        return jnp.full((members,), 1.0, jnp.float32)
    if np.shape(weights) != (members,):
        raise ValueError(
            f"weights must be [member] with {members} members; got shape"
            f" {np.shape(weights)}."
        )
    if not isinstance(weights, jax.core.Tracer):
        known = np.asarray(weights, np.float64)
        if not np.isfinite(known).all() or known.min() < 0 or not known.sum() > 0:
            raise ValueError(
                "weights must be finite and at least 0, and one of them above; got"
                f" {known.tolist()}."
            )
    return jnp.asarray(weights, jnp.float32)


def by_pattern(names: Sequence[str], patterns: Mapping[str, Any], default: Any) -> list:
    """What belongs to each leaf: the value of the first pattern found in its name.

    Args:
        names: dotted names of leaves.
        patterns: regular expressions (`re.search`) and their values, in order.
        default: for leaves in whose name none is found.

    Raises:
        ValueError: if a pattern is no regular expression or is found in no name.
    """
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is no regular expression: {error}."
            ) from error
        if not any(map(found[-1].search, names)):
            raise ValueError(
                f"{pattern!r} is found in the name of no leaf; there are"
                f" {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
            )
    return [
        next((v for r, v in zip(found, patterns.values()) if r.search(name)), default)
        for name in names
    ]
