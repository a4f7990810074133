"""The member axis of a pytree, and the keys that belong to a member.

A *stacked* pytree has one more axis in front of every leaf: `[member, ...]`. A member's
randomness depends on (seed, purpose, member id) and on what is folded in afterwards
(step, example), never on its position or on how many members there are.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Every purpose has its own stream: folding in the purpose first keeps, say, the data
# order of member 3 apart from its initial weights. Append; never renumber.
PURPOSES = {
    "init": 0,
    "order": 1,
    "bootstrap": 2,
    "augment": 3,
    "loss": 4,
    "sample": 5,
    "weighted": 6,
    "noise": 7,
    "evaluation": 8,
    "shared_order": 9,
    "reseed": 10,
    "subspace": 11,
}


def num_members(tree: Any) -> int:
    """Number of rows that all leaves of a stacked pytree have in common.

    Raises:
        ValueError: if `tree` has no leaves, or its leaves disagree or are scalars.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError("A stacked pytree needs at least one array; got none.")
    path, first = leaves[0]
    if not np.shape(first):
        raise ValueError(
            f"{jax.tree_util.keystr(path) or 'The tree'} is a scalar, but every leaf"
            " of a stacked pytree is [member, ...]."
        )
    rows = np.shape(first)[0]
    check_stacked(tree, rows)
    return rows


def check_stacked(tree: Any, num_members: int) -> None:
    """Raises `ValueError` unless every leaf of `tree` has `num_members` rows."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if np.shape(leaf)[:1] != (num_members,):
            raise ValueError(
                f"{jax.tree_util.keystr(path) or 'The tree'} has shape"
                f" {np.shape(leaf)}, but its first axis must hold {num_members}"
                " members. A single model becomes an ensemble of one with"
                " jax.tree.map(lambda x: x[None], params)."
            )


def check_same_structure(trees: Sequence[Any]) -> None:
    """Raises `ValueError` naming the first leaf in which `trees` differ.

    Structure, shapes (with a leading member axis, if there is one) and dtypes are
    compared.
    """
    first = jax.tree.leaves_with_path(trees[0])
    for number, tree in enumerate(trees[1:], start=1):
        other = dict(jax.tree.leaves_with_path(tree))
        for path, leaf in first:
            name = jax.tree_util.keystr(path) or "The tree"
            if path not in other:
                raise ValueError(f"{name} is in tree 0 but not in tree {number}.")
            match = other.pop(path)
            if np.shape(match) != np.shape(leaf) or _dtype(match) != _dtype(leaf):
                raise ValueError(
                    f"{name} is {_describe(leaf)} in tree 0 but {_describe(match)} in"
                    f" tree {number}; members of one stack have equal shapes and"
                    " dtypes. Members of different architecture form a Group."
                )
        if other:
            name = jax.tree_util.keystr(next(iter(other)))
            raise ValueError(f"{name} is in tree {number} but not in tree 0.")
        if jax.tree.structure(tree) != jax.tree.structure(trees[0]):
            raise ValueError(
                f"Trees 0 and {number} have the same leaves in containers of different"
                f" structure: {jax.tree.structure(trees[0])} and"
                f" {jax.tree.structure(tree)}."
            )


def _dtype(leaf):
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _describe(leaf):
    return f"{_dtype(leaf)}{list(np.shape(leaf))}"


def stack_members(trees: Sequence[Any]) -> Any:
    """One stacked pytree `[member, ...]` of several pytrees of equal structure.

    Raises:
        ValueError: if there is no tree, or two differ in structure, shape or dtype; the
            leaf is named.
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack_members needs at least one tree; got none.")
    check_same_structure(trees)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack_members(tree: Any) -> list[Any]:
    """The members of a stacked pytree `[member, ...]`, one by one: leaves `[...]`.

    Raises:
        ValueError: if leaves disagree on the number of members.
    """
    return [
        jax.tree.map(lambda leaf: take_rows(leaf, i), tree)  # noqa: B023
        for i in range(num_members(tree))
    ]


def select_members(tree: Any, indices: Any) -> Any:
    """The chosen rows of a stacked pytree, in the order of `indices`.

    Args:
        tree: leaves `[member, ...]`.
        indices: a slice, integers `[selected]` (negative ones count from the end), or
            booleans `[member]`.

    Returns:
        Leaves `[selected, ...]`.

    Raises:
        ValueError: if nothing is selected or a mask has another length.
        IndexError: if an index is out of range.
    """
    rows = member_rows(indices, num_members(tree))
    return jax.tree.map(lambda leaf: take_rows(leaf, rows), tree)


def take_rows(leaf: Any, rows: Any) -> Any:
    """`leaf[rows]` to the last bit, also where `leaf` is split over devices."""
    return _keeping_bits(lambda x: x[rows], leaf)


def _keeping_bits(fn, leaf):
    """`fn(leaf)`, where `fn` moves rows about.

    Rows of an array that is split over devices travel as sums with zeros, and -0.0 + 0
    is 0.0: they travel as integers instead. Not while tracing, since integers have no
    gradient; there a minus before a zero may be lost.
    """
    is_split = (
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and not leaf.is_fully_replicated
    )
    integers = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
    if not is_split or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return fn(leaf)
    bits = jax.lax.bitcast_convert_type(leaf, integers[leaf.dtype.itemsize])
    return jax.lax.bitcast_convert_type(fn(bits), leaf.dtype)


def member_rows(indices: Any, num_members: int) -> np.ndarray:
    """Non-negative row numbers `[selected]` that `indices` chooses of `num_members`.

    Raises:
        TypeError: if indices are neither integers nor booleans.
        ValueError: if nothing is selected, a mask has another length, or the indices
            are not one-dimensional.
        IndexError: if an index is out of range.
    """
    if isinstance(indices, slice):
        rows = np.arange(num_members)[indices]
    else:
        rows = np.atleast_1d(np.asarray(indices))
        if rows.dtype == bool:
            if rows.shape != (num_members,):
                raise ValueError(
                    f"A mask over members has shape ({num_members},); got {rows.shape}."
                )
            rows = np.flatnonzero(rows)
        elif rows.size and not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(f"Members are chosen by integers; got dtype {rows.dtype}.")
        if rows.ndim != 1:
            raise ValueError(
                f"Members are chosen by integers [selected]; got shape {rows.shape}."
            )
    if not rows.size:
        raise ValueError(
            f"The selection {indices!r} holds no member; an ensemble has at least one."
        )
    if rows.min() < -num_members or rows.max() >= num_members:
        raise IndexError(
            f"Members are numbered 0 to {num_members - 1}; got {indices!r}."
        )
    return rows % num_members


def concatenate_members(trees: Sequence[Any]) -> Any:
    """One stacked pytree of the members of several, in order.

    Args:
        trees: leaves `[member, ...]`; the numbers of members may differ.

    Returns:
        Leaves `[all members, ...]`.

    Raises:
        ValueError: if the trees differ in anything but the number of members.
    """
    trees = list(trees)
    if not trees:
        raise ValueError("concatenate_members needs at least one tree; got none.")
    for tree in trees:
        num_members(tree)
    check_same_structure(
        [
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
            for tree in trees
        ]
    )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def pad_members(tree: Any, num_rows: int) -> Any:
    """A stacked pytree grown to `num_rows` by copies of member 0.

    Copies (not zeros) keep padded members finite in any computation.

    Raises:
        ValueError: if there are more members than `num_rows`.
    """
    if not jax.tree.leaves(tree):
        return tree
    rows = num_members(tree)
    if rows > num_rows:
        raise ValueError(f"{rows} members do not fit in {num_rows} rows.")
    if rows == num_rows:
        return tree

    def pad(leaf):
        copies = jnp.broadcast_to(leaf[:1], (num_rows - rows, *leaf.shape[1:]))
        return jnp.concatenate([leaf, copies])

    return jax.tree.map(lambda leaf: _keeping_bits(pad, leaf), tree)


def trim_members(tree: Any, num_members: int) -> Any:
    """The first `num_members` rows of leaves `[row, ...]`: undoes `pad_members`."""
    return jax.tree.map(
        lambda leaf: leaf if leaf.shape[0] == num_members else leaf[:num_members], tree
    )


def member_key(seed: Any, purpose: str, member_id: Any) -> jax.Array:
    """The key of one member for one purpose.

    Args:
        seed: integer of the run; may be traced.
        purpose: a name in `PURPOSES`.
        member_id: integer; may be traced.

    Returns:
        A threefry key `[]`. Fold the step in next, then the example's position.
        Threefry is fixed because other implementations draw different numbers under
        `vmap`.

    Raises:
        ValueError: if the purpose is unknown.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"Unknown purpose {purpose!r}; known: {', '.join(PURPOSES)}.")
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, PURPOSES[purpose]), member_id)


def member_keys(seed: Any, purpose: str, member_ids: jax.Array) -> jax.Array:
    """`member_key` of every id: keys `[member]`."""
    return jax.vmap(lambda i: member_key(seed, purpose, i))(jnp.asarray(member_ids))
