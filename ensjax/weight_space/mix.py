"""Mixtures of members' weights: a matrix `[mixture, member]` times the stack.

`mix` is a pure function of a stacked tree. `mix_members` makes an ensemble whose
members are the mixtures; each device sums the members that it holds, and the sums go to
the devices that take the mixtures (one reduce-scatter of each leaf).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.ensemble import Ensemble
from ensjax.mapping import mesh_program
from ensjax.members import num_members, pad_members, take_rows
from ensjax.weight_space.ensembles import ensemble_of
from ensjax.weight_space.leaves import (
    by_pattern,
    check_keep,
    is_mixed,
    leaf_names,
    wide,
)
from ensjax.weight_space.vectors import rows_of

MEMBERS_AT_ONCE = 8  # whose weights are widened together


def mix(
    stacked: Any,
    coefficients: jax.Array,
    *,
    per_leaf: Mapping[str, jax.Array] | None = None,
    keep: int = 0,
) -> Any:
    """The weights of every mixture: coefficients times members, leaf by leaf.

    Sums are taken in float32 (or wider) and cast back. Leaves that are not floating
    (counters, random keys) are those of one member. A coefficient of 0 removes a
    member, also one that is not finite; where one that is not finite is part of a
    mixture, that leaf of the mixture is NaN.

    Args:
        stacked: leaves `[member, ...]`.
        coefficients: `[mixture, member]`; they need not sum to 1.
        per_leaf: other coefficients `[mixture, member]` for the leaves in whose dotted
            name (`leaf_names`) a regular expression is found, such as `{"head": ...}`;
            the first that is found counts.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[mixture, ...]`, of the types of `stacked`.

    Raises:
        ValueError: if a shape does not fit, a pattern is found in no leaf's name, or
            `keep` is no member.
        TypeError: if it is an `Ensemble`; see `mix_members`.

    Example:
        >>> stack = {"w": jnp.array([[0.0, 2.0], [4.0, 6.0]])}
        >>> mix(stack, jnp.array([[0.5, 0.5]]))["w"]
        Array([[2., 4.]], dtype=float32)
    """
    if isinstance(stacked, Ensemble):
        raise TypeError("mix is of a tree; of an ensemble there is mix_members.")
    check_keep(keep, num_members(stacked))
    matrices, places = coefficients_of_leaves(stacked, coefficients, per_leaf)
    leaves, treedef = jax.tree.flatten(stacked)
    mixtures = matrices[0].shape[0]

    def one(leaf, place):
        if not is_mixed(leaf):
            kept = take_rows(leaf, keep)
            return jnp.broadcast_to(kept, (mixtures, *kept.shape))
        return Rows.of(leaf).mixed(matrices[place]).astype(leaf.dtype)

    return treedef.unflatten(map(one, leaves, places))


def mix_members(
    ensemble: Ensemble,
    coefficients: jax.Array,
    *,
    per_leaf: Mapping[str, jax.Array] | None = None,
    keep: int = 0,
) -> Ensemble:
    """The ensemble whose members are the mixtures, with ids 0, 1, ... (compiled).

    Batch statistics are mixed as weights are, which is not what the mixtures' own
    activations would give: `recompute_statistics` puts them right.

    Args:
        ensemble: M members on any mesh.
        coefficients, per_leaf, keep: as for `mix`.

    Returns:
        An ensemble of as many members as there are mixtures, on the same mesh.

    Raises:
        ValueError: as `mix`.
    """
    state = ensemble.state
    check_keep(keep, ensemble.num_members)
    matrices, places = coefficients_of_leaves(state, coefficients, per_leaf)
    program = mesh_program(_Mix(matrices[0].shape[0], places), ensemble.mesh)
    mixed = program(state, matrices, jnp.int32(keep))
    return ensemble_of(ensemble, mixed)


def coefficients_of_leaves(
    stacked: Any, coefficients: Any, per_leaf: Mapping[str, Any] | None
) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Matrices `[mixture, member]` in float32, and which of them each leaf has.

    Raises:
        ValueError: as `mix`.
    """
    members = num_members(stacked)
    whole = _matrix("coefficients", coefficients, members)
    names, matrices = leaf_names(stacked), [whole]
    for pattern, matrix in (per_leaf or {}).items():
        matrices.append(_matrix(f"per_leaf[{pattern!r}]", matrix, members))
        if matrices[-1].shape != whole.shape:
            raise ValueError(
                f"per_leaf[{pattern!r}] holds {matrices[-1].shape[0]} mixtures,"
                f" coefficients {whole.shape[0]}."
            )
    numbers = {pattern: i for i, pattern in enumerate(per_leaf or {}, start=1)}
    return matrices, tuple(by_pattern(names, numbers, 0))


def _matrix(name, matrix, members):
    matrix = jnp.asarray(matrix, jnp.float32)
    if matrix.ndim != 2 or matrix.shape[1] != members or not matrix.shape[0]:
        raise ValueError(
            f"{name} must be [mixture, member] with {members} members; got shape"
            f" {matrix.shape}. A single mixture is a matrix of one row."
        )
    return matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """One leaf's members, ready to be summed many times.

    They stay as they are, and are widened a few members at a time where they are
    summed: a wide copy of the stack would live as long as the loop over the mixtures.

    Attributes:
        values: `[member, ...]`, as in the stack.
        is_bad: `[member]`, whether something is not finite.
    """

    values: jax.Array
    is_bad: jax.Array

    @classmethod
    def of(cls, leaf: jax.Array) -> "Rows":
        """Of a leaf `[member, ...]`."""
        finite = jnp.isfinite(leaf)
        is_bad = ~jnp.all(finite.reshape(leaf.shape[0], -1), axis=1)
        return cls(jnp.asarray(leaf), is_bad)

    def mixed(self, matrix: jax.Array) -> jax.Array:
        """`[mixture, ...]`, for coefficients `[mixture, member]`; float32 or wider."""

        count = self.values.shape[0]
        whole = count // MEMBERS_AT_ONCE
        rest = count % MEMBERS_AT_ONCE

        def summed(start, size):
            # The barrier ties the copy to this sum: else the compiler takes it out of
            # the loop over blocks of mixtures, and keeps all leaves' copies.
            held = jax.lax.optimization_barrier((matrix.T, self.values, self.is_bad))
            own, values, is_bad = (
                jax.lax.dynamic_slice_in_dim(x, start, size) for x in held
            )
            values = jnp.where(rows_of(is_bad, values), 0, wide(values))
            return jnp.tensordot(own.T, values, axes=1, precision="highest")

        if not whole:
            total = summed(0, rest)
        elif whole == 1:
            total = summed(0, MEMBERS_AT_ONCE)
        else:

            def add(total, part):
                return total + summed(part * MEMBERS_AT_ONCE, MEMBERS_AT_ONCE), None

            dtype = jnp.result_type(matrix.dtype, self.values.dtype, jnp.float32)
            zeros = jnp.zeros((matrix.shape[0], *self.values.shape[1:]), dtype)
            total, _ = jax.lax.scan(add, zeros, jnp.arange(whole))
        if whole and rest:
            total += summed(count - rest, rest)
        spoilt = jnp.any((matrix != 0) & self.is_bad[None], axis=1)
        return jnp.where(rows_of(spoilt, total), jnp.nan, total)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What members said, ready to be summed many times.

    Other than of weights, what is not finite stays where it is: a row that is NaN
    spoils no other row, and a logit of -inf is a class that is ruled out.

    Attributes:
        values: `[member, ...]`, floating.
    """

    values: jax.Array

    def mixed(self, matrix: jax.Array) -> jax.Array:
        """`[mixture, ...]`, for coefficients `[mixture, member]`.

        A coefficient of 0 removes a member; else the sum is that of its terms, also
        where these are infinite.
        """

        def summed(coefficients, values):
            return jnp.tensordot(coefficients, values, axes=1, precision="highest")

        def plain():
            return summed(matrix, self.values)

        def with_infinities():
            finite = jnp.isfinite(self.values)
            # A product would make NaN of 0 and infinity: signs are counted instead.
            is_down, is_up = (self.values == s * jnp.inf for s in (-1, 1))
            kinds = jnp.concatenate([is_down, is_up]).astype(matrix.dtype)
            above, below = (matrix > 0).astype(matrix.dtype), matrix < 0
            below = below.astype(matrix.dtype)
            downs = summed(jnp.concatenate([above, below], axis=1), kinds)
            ups = summed(jnp.concatenate([below, above], axis=1), kinds)
            unknown = summed(above + below, jnp.isnan(self.values).astype(matrix.dtype))
            total = summed(matrix, jnp.where(finite, self.values, 0))
            total = jnp.where(downs > 0, -jnp.inf, total)
            total = jnp.where(ups > 0, total + jnp.inf, total)
            return jnp.where(unknown > 0, jnp.nan, total)

        is_finite = jnp.all(jnp.isfinite(self.values))
        return jax.lax.cond(is_finite, plain, with_infinities)


def local_rows(leaves: Sequence[Any], keep: Any) -> list[Any]:
    """Inside a `shard_map`: local members of every leaf, and what is kept of others.

    Floating leaves become `Rows` of this device's members, others the row `keep` of the
    whole stack, on every device.
    """
    return [Rows.of(x) if is_mixed(x) else _row_of_all(x, keep) for x in leaves]


def local_mixtures(
    rows: Sequence[Any],
    matrices: Sequence[jax.Array],
    *,
    places: Sequence[int],
    dtypes: Sequence[Any],
) -> list[jax.Array]:
    """Inside a `shard_map`: this device's share of some mixtures.

    Args:
        rows: from `local_rows`.
        matrices: coefficients `[mixture, member]` of all members.
        places: which of them each leaf has.
        dtypes: types of the leaves.

    Returns:
        Leaves `[mixture of this device, ...]`; mixtures divide over the devices.
    """
    devices = jax.lax.axis_size("member")

    def one(row, place, dtype):
        matrix = matrices[place]
        if not isinstance(row, Rows):
            mixtures = matrix.shape[0] // devices
            return jnp.broadcast_to(row, (mixtures, *row.shape))
        return scattered(row, matrix).astype(dtype)

    return list(map(one, rows, places, dtypes))


def scattered(rows: Rows | Outputs, matrix: jax.Array) -> jax.Array:
    """Inside a `shard_map`: this device's share of the mixtures of split members.

    Args:
        rows: of the members of this device.
        matrix: `[mixture, member]`, of all members; mixtures divide over the devices.

    Returns:
        `[mixture of this device, ...]`.
    """
    if jax.lax.axis_size("member") == 1:
        return rows.mixed(matrix)
    count = rows.values.shape[0]
    start = jax.lax.axis_index("member") * count
    own = jax.lax.dynamic_slice_in_dim(matrix, start, count, axis=1)
    return jax.lax.psum_scatter(rows.mixed(own), "member", tiled=True)


def _row_of_all(leaf, row):
    """Row `row` of a stack that is split over "member", on every device."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = jax.random.key_data(leaf) if is_key else leaf
    count = values.shape[0]
    own = row - jax.lax.axis_index("member") * count
    mine = values[jnp.clip(own, 0, count - 1)]
    if jax.lax.axis_size("member") > 1:
        is_here = (own >= 0) & (own < count)
        as_int = mine.astype(jnp.uint32) if mine.dtype == bool else mine
        total = jax.lax.psum(jnp.where(is_here, as_int, 0), "member")
        mine = total.astype(mine.dtype)
    if is_key:
        return jax.random.wrap_key_data(mine, impl=jax.random.key_impl(leaf))
    return mine


@dataclasses.dataclass(frozen=True)
class _Mix:
    """All mixtures of a stack at once: state, matrices, member kept."""

    num_mixtures: int
    places: tuple[int, ...]
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return (jax.P("member"), jax.P(), jax.P())

    def out_specs(self):
        return jax.P("member")

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, state, matrices, keep):
        devices = mesh.shape["member"]
        rows = -(-num_members(state) // devices) * devices
        mixtures = -(-self.num_mixtures // devices) * devices
        return pad_members(state, rows), pad_matrices(matrices, mixtures, rows), keep

    def local(self, state, matrices, keep):
        leaves, treedef = jax.tree.flatten(state)
        rows = local_rows(leaves, keep)
        dtypes = [leaf.dtype for leaf in leaves]
        mixed = local_mixtures(rows, matrices, places=self.places, dtypes=dtypes)
        return treedef.unflatten(mixed)

    def finish(self, outputs, *args):
        del args
        return jax.tree.map(lambda x: x[: self.num_mixtures], outputs)


def pad_matrices(
    matrices: Sequence[jax.Array], mixtures: int, members: int
) -> list[jax.Array]:
    """Coefficients for a padded stack: copies of mixture 0, padded members weigh 0."""
    return [
        jnp.pad(pad_members(m, mixtures), ((0, 0), (0, members - m.shape[1])))
        for m in matrices
    ]
