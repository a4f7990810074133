"""`PermutationSpec`: which axes of which leaves are permuted alike; and permuting them.

A permutation of a group is an order, int32 `[unit]`: unit i of the permuted model is
unit `order[i]` of the model. Permutations of a stack are a dict from a group's name to
`[member, unit]`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members
from ensjax.weight_space.axes import Fixed, Term, axis_index, groups_of
from ensjax.weight_space.leaves import leaf_name

Permutations = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """The permutation groups of a model: what lies on each axis of each leaf.

    Usually it is inferred (`infer_permutations`). By hand::

        hidden = Group("hidden", 64)
        spec = PermutationSpec.of({
            "linear1.kernel": (None, hidden), "linear1.bias": (hidden,),
            "linear2.kernel": (hidden, None), "linear2.bias": (None,),
        })

    Attributes:
        leaves: pairs of a leaf's dotted name and the terms of its axes (`Group`,
            `Fixed`, `Product`, `Concat`, or `None` for an axis that is not permuted).

    Raises:
        ValueError: if a group has two sizes, or a leaf is named twice; names the leaf.
    """

    leaves: tuple[tuple[str, tuple[Term | None, ...]], ...]

    def __post_init__(self):
        sizes: dict[str, int] = {}
        names = set()
        for name, axes in self.leaves:
            if name in names:
                raise ValueError(f"{name} is in the spec twice.")
            names.add(name)
            for group in (g for term in axes if term for g in groups_of(term)):
                if sizes.setdefault(group.name, group.size) != group.size:
                    raise ValueError(
                        f"{name} has group {group.name!r} of {group.size} units; an"
                        f" earlier leaf has {sizes[group.name]}."
                    )

    @classmethod
    def of(cls, axes: Mapping[str, Sequence[Term | None]]) -> "PermutationSpec":
        """A spec from a dict of leaf names and the terms of their axes."""
        return cls(tuple((name, tuple(terms)) for name, terms in axes.items()))

    @functools.cached_property
    def groups(self) -> dict[str, int]:
        """Number of units of each group, in the order in which leaves have them."""
        return {
            group.name: group.size
            for _, axes in self.leaves
            for term in axes
            if term is not None
            for group in groups_of(term)
        }

    def check(self, tree: Any, *, stacked: bool = True) -> None:
        """Raises `ValueError` unless the spec is one of `tree`; names the leaf.

        Args:
            tree: leaves `[member, ...]`, or `[...]` if not `stacked`.
            stacked: whether there is a member axis, which the spec does not count.
        """
        named = dict(self.leaves)
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = leaf_name(path)
            shape = tuple(np.shape(leaf)[1:] if stacked else np.shape(leaf))
            if name not in named:
                raise ValueError(
                    f"{name} is not in the permutation spec; an axis that is not"
                    " permuted is written as None."
                )
            axes = named.pop(name)
            fits = len(axes) == len(shape) and all(
                term is None or term.size == size for term, size in zip(axes, shape)
            )
            if not fits:
                expected = [None if term is None else term.size for term in axes]
                raise ValueError(
                    f"{name} has shape {shape} in a member, but the permutation spec"
                    f" has axes of sizes {expected} for it."
                )
        if named:
            raise ValueError(
                f"{next(iter(named))} is in the permutation spec but not in the tree."
            )

    def __str__(self):
        lines = [f"{name} ({size} units)" for name, size in self.groups.items()]
        width = max((len(name) for name, _ in self.leaves), default=0)
        for name, axes in self.leaves:
            terms = ", ".join("." if t is None else str(t) for t in axes)
            lines.append(f"  {name:{width}} [{terms}]")
        return "\n".join(lines)


def identity_permutations(spec: PermutationSpec, num_members: int) -> Permutations:
    """Permutations that move nothing, `[member, unit]`."""
    return {
        name: jnp.asarray(np.tile(np.arange(size, dtype=np.int32), (num_members, 1)))
        for name, size in spec.groups.items()
    }


def random_permutations(
    spec: PermutationSpec, key: jax.Array, num_members: int
) -> Permutations:
    """A random permutation of every group and member, `[member, unit]`."""
    found = {}
    for number, (name, size) in enumerate(spec.groups.items()):
        keys = jax.random.split(jax.random.fold_in(key, number), num_members)
        found[name] = jax.vmap(lambda k, n=size: jax.random.permutation(k, n))(
            keys
        ).astype(jnp.int32)
    return found


def inverse_permutations(permutations: Permutations) -> Permutations:
    """Permutations that undo others."""
    return jax.tree.map(
        lambda order: jnp.argsort(order, axis=-1).astype(jnp.int32), permutations
    )


def permute_leaf(
    leaf: Any,
    axes: Sequence[Term | None],
    permutations: Mapping[str, Any],
    xp: Any = jnp,
) -> Any:
    """One leaf `[...]` of one member, with permutations `[unit]` of some groups.

    `xp` is `jax.numpy` or, on the host, `numpy`.
    """
    for axis, term in enumerate(axes):
        if term is None or not {g.name for g in groups_of(term)} & set(permutations):
            continue
        index = axis_index(term, permutations, xp)
        leaf = xp.take(leaf, index, axis=axis, mode="clip")  # all are in bounds
    return leaf


def permute_member(tree: Any, spec: PermutationSpec, permutations: Any) -> Any:
    """One member's leaves `[...]`, with permutations `[unit]` of its groups."""
    named = dict(spec.leaves)
    return jax.tree.map_with_path(
        lambda path, leaf: permute_leaf(leaf, named[leaf_name(path)], permutations),
        tree,
    )


def apply_permutations(
    stacked: Any, spec: PermutationSpec, permutations: Permutations
) -> Any:
    """The members with their units in another order; each is the same function.

    Args:
        stacked: an `Ensemble`, or leaves `[member, ...]`.
        spec: of the ensemble's state, or of the leaves.
        permutations: int32 `[member, unit]` by group; absent groups stay.

    Returns:
        An ensemble or leaves, as `stacked`.

    Raises:
        ValueError: if the spec is not of this tree (names the leaf), or a group is
            unknown or of another size.
    """
    if isinstance(stacked, Ensemble):
        spec.check(stacked.state)
        _check_orders(spec, permutations, stacked.num_members)
        permute = map_members(
            _Permute(spec), kinds=("member", "member"), mesh=stacked.mesh, block=None
        )
        state = permute(stacked.state, permutations)
        return dataclasses.replace(stacked, state=state)
    spec.check(stacked)
    members = np.shape(jax.tree.leaves(stacked)[0])[0]
    _check_orders(spec, permutations, members)
    return jax.vmap(_Permute(spec))(stacked, permutations)


@dataclasses.dataclass(frozen=True)
class _Permute:
    spec: PermutationSpec

    def __call__(self, tree, permutations):
        return permute_member(tree, self.spec, permutations)


def _check_orders(spec, permutations, members):
    for name, order in permutations.items():
        if name not in spec.groups:
            raise ValueError(
                f"{name!r} is no group of the spec; there are {', '.join(spec.groups)}."
            )
        expected = (members, spec.groups[name])
        if np.shape(order) != expected:
            raise ValueError(
                f"the permutations of {name!r} have shape {np.shape(order)}; expected"
                f" [member, unit] = {expected}."
            )


def check_permutations(
    ensemble: Ensemble,
    spec: PermutationSpec,
    x: Any,
    *,
    key: jax.Array | None = None,
    tolerance: float = 1e-5,
) -> float:
    """Raises unless random permutations leave every member's outputs as they are.

    Args:
        ensemble: the members.
        spec: of `ensemble.state`.
        x: inputs, leaves `[batch, ...]`.
        key: of the permutations.
        tolerance: largest difference, relative to the largest output or to 1.

    Returns:
        The largest difference, so measured.

    Raises:
        ValueError: if outputs change by more, or the spec is not of this ensemble.
    """
    key = jax.random.key(0) if key is None else key
    orders = random_permutations(spec, key, ensemble.num_members)
    before = jax.tree.leaves(ensemble(x))
    after = jax.tree.leaves(apply_permutations(ensemble, spec, orders)(x))
    largest = 0.0
    for a, b in zip(before, after):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(1.0, float(np.abs(a).max(initial=0.0)))
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)) / scale)
    if not largest <= tolerance:
        raise ValueError(
            f"a random permutation changes the outputs by {largest:.1e} of their"
            f" largest, more than {tolerance:.1e}: the spec permutes axes that are not"
            " permuted alike, or leaves one out."
        )
    return largest


def fixed_spec(tree: Any, *, stacked: bool = True) -> PermutationSpec:
    """The spec of a tree in which nothing is permuted, to start a hand-written one."""
    return PermutationSpec.of(
        {
            leaf_name(path): tuple(
                Fixed(size) for size in np.shape(leaf)[1 if stacked else 0 :]
            )
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
    )
