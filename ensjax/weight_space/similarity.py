"""How alike the units of two models are: the scores that weight matching assigns by.

Functions take `xp`, which is `jax.numpy` inside programs and `numpy` on the host.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.weight_space.axes import Group, Product, Term, groups_of, positions
from ensjax.weight_space.leaves import leaf_name, wide
from ensjax.weight_space.permutations import PermutationSpec, permute_leaf


@dataclasses.dataclass(frozen=True)
class Layout:
    """The leaves that are compared, and what lies on their axes.

    Attributes:
        names: of the leaves.
        axes: their terms, without the member axis.
    """

    names: tuple[str, ...]
    axes: tuple[tuple[Term | None, ...], ...]

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of these leaves, in order."""
        found = [
            group
            for terms in self.axes
            for term in terms
            if term is not None
            for group in groups_of(term)
        ]
        return tuple(dict.fromkeys(found))

    def leaves_of(self, group: Group) -> list[int]:
        """Numbers of the leaves that hold a group."""
        return [
            number
            for number, terms in enumerate(self.axes)
            if any(group in groups_of(term) for term in terms if term is not None)
        ]

    def is_linear(self, group: Group) -> bool:
        """Whether the agreement is linear in the group's permutation.

        It is not where a leaf has the group on two axes, such as a weight from a
        residual stream to itself.
        """
        return all(
            sum(_factors(term, group) for term in terms if term is not None) <= 1
            for terms in self.axes
        )

    def neighbors(self, group: Group) -> set[Group]:
        """The groups that share a leaf with it, itself where it is not linear."""
        found = {
            other
            for number in self.leaves_of(group)
            for term in self.axes[number]
            if term is not None
            for other in groups_of(term)
        }
        return found - {group} if self.is_linear(group) else found


def layout_of(tree: Any, spec: PermutationSpec, prefix: str = "") -> Layout:
    """The layout of the floating leaves with groups whose name begins with `prefix`."""
    named = dict(spec.leaves)
    chosen = [
        (name, named[name])
        for path, leaf in jax.tree.leaves_with_path(tree)
        if (name := leaf_name(path)).startswith(prefix)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and any(term is not None and groups_of(term) for term in named[name])
    ]
    return Layout(tuple(n for n, _ in chosen), tuple(a for _, a in chosen))


def leaves_in(layout: Layout, tree: Any) -> list[jax.Array]:
    """The leaves of a layout, in float32 or wider."""
    named = {leaf_name(path): x for path, x in jax.tree.leaves_with_path(tree)}
    return [wide(named[name]) for name in layout.names]


def permute_leaves(
    layout: Layout, leaves: Sequence[Any], orders: Mapping[str, Any], xp: Any = jnp
) -> list[Any]:
    """One member's leaves of a layout with its units in another order."""
    return [permute_leaf(x, a, orders, xp) for x, a in zip(leaves, layout.axes)]


def similarity(
    layout: Layout,
    group: Group,
    target: Sequence[Any],
    leaves: Sequence[Any],
    orders: Mapping[str, Any],
    xp: Any = jnp,
) -> Any:
    """Inner products of the units' weights: rows are the target's, columns a member's.

    The sum of all weights of a unit, in and out, biases and scales, with all other
    groups of the member in their present order.

    Args:
        layout: of the leaves.
        group: whose units are compared.
        target: one model's leaves.
        leaves: one member's leaves.
        orders: int32 `[unit]` by group: the member's present order.

    Returns:
        `[unit of the target, unit of the member]`.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, section 3.2.
    """
    total = xp.zeros((group.size, group.size), xp.float32)
    for number in layout.leaves_of(group):
        mine = permute_leaf(leaves[number], layout.axes[number], orders, xp)
        for axis, term in enumerate(layout.axes[number]):
            for index in positions(term, group.name) if term is not None else ():
                theirs, ours = (
                    _rows(x, axis, index, xp) for x in (target[number], mine)
                )
                total += theirs @ ours.T
    return total


def agreement(
    layout: Layout,
    target: Sequence[Any],
    leaves: Sequence[Any],
    orders: Mapping[str, Any],
    group: Group | None = None,
    xp: Any = jnp,
) -> Any:
    """Inner product `[]` of a target and a permuted member: what matching increases.

    With a group, over the leaves that hold it alone.
    """
    numbers = range(len(leaves)) if group is None else layout.leaves_of(group)
    total = xp.zeros((), xp.float32)
    for number in numbers:
        mine = permute_leaf(leaves[number], layout.axes[number], orders, xp)
        total += xp.sum(target[number] * mine)
    return total


def gain(
    layout: Layout,
    group: Group,
    target: Sequence[Any],
    leaves: Sequence[Any],
    orders: Mapping[str, Any],
    scores: Any,
    assignment: Any,
    xp: Any = jnp,
) -> tuple[Any, Any]:
    """What a new assignment of one group adds to the agreement, and what is rounding.

    Returns:
        The gain `[]` and the smallest one that counts, 1e-6 of the sum of absolute
        scores.
    """
    chosen = xp.take_along_axis(scores, assignment[:, None], axis=1)[:, 0]
    now = xp.diagonal(scores)
    if layout.is_linear(group):
        added = xp.sum(chosen - now)
    else:
        moved = {**orders, group.name: orders[group.name][assignment]}
        after, before = (
            agreement(layout, target, leaves, o, group, xp) for o in (moved, orders)
        )
        added = after - before
    return added, 1e-6 * xp.sum(xp.abs(chosen) + xp.abs(now))


def _rows(leaf, axis, index, xp):
    """The weights of every unit, `[unit, weight]`."""
    leaf = xp.moveaxis(leaf, axis, 0)
    if index.size < leaf.shape[0] or index.shape[1] > 1:
        leaf = xp.take(leaf, index, axis=0, mode="clip")
    return leaf.reshape(len(index), -1)


def _factors(term: Term, group: Group) -> int:
    """How many factors of one product hold the group at most."""
    if isinstance(term, Product):
        return sum(_factors(part, group) for part in term.parts)
    if isinstance(term, Group):
        return int(term == group)
    parts = getattr(term, "parts", ())
    return max((_factors(part, group) for part in parts), default=0)
