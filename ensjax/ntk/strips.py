"""Pieces of members' tangent kernels: a block of rows and a range of columns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.mapping import map_local
from ensjax.mesh import platform
from ensjax.ntk.multiplications import multiplications
from ensjax.ntk.tangents import Tangents, contract, num_rows, rows_of

METHODS = ("auto", "jacobian", "vector_products")
# Multiplications for each parameter that counts, of one row's forward pass, up to which
# "auto" takes products: dense layers use a weight once.
_MOST_USES = 2

# Larger blocks compute fewer Jacobians again, which is what convolutions spend on.
_MOST_ROWS = 256
_FEWEST_ROWS = 16
_JACOBIAN_BYTES = 512 * 1024**2  # of all local members, where they leave enough rows
_MEMBER_JACOBIAN_BYTES = 64 * 1024**2
# The Jacobian of a block of rows is computed anew for every so many blocks of columns.
_BLOCKS_OF_A_STRIP = 16


def make_tangents(ensemble: Ensemble, params: str) -> Tangents:
    """The parameters of an ensemble that count, checked; raises as `empirical_ntk`."""
    if not isinstance(ensemble, Ensemble):
        raise TypeError(
            f"expected an ensjax.Ensemble; got {type(ensemble).__name__}. A function"
            " apply(params, x) becomes one with Ensemble.from_apply(apply, params)."
        )
    tangents = Tangents(ensemble.graph, params)
    tangents.check(ensemble.params)
    return tangents


def check_block_rows(block_rows: int) -> None:
    """Raises `ValueError` unless `block_rows` is an integer of 1 or more."""
    if isinstance(block_rows, bool) or not isinstance(block_rows, (int, np.integer)):
        raise ValueError(f"block_rows must be a positive integer; got {block_rows!r}.")
    if block_rows < 1:
        raise ValueError(f"block_rows must be at least 1; got {block_rows}.")


def make_strips(
    ensemble: Ensemble,
    tangents: Tangents,
    x: Any,
    method: str,
    full: bool,
    block_rows: int | None,
) -> "Strips":
    """How strips of the members' kernels are computed; the rules of "auto".

    Raises:
        ValueError: if `block_rows` is no positive integer, or a member does not return
            one array `[row, ...]`.
    """
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), ensemble.state
    )
    num_outputs = tangents.num_outputs(one, x)
    size = tangents.size(one["params"])
    if method == "auto":
        # A weight that is used at many places is summed over once in a Jacobian, and
        # met at each of them by every product.
        uses = multiplications(tangents.outputs_of_a_row, one, x) / size
        method = "vector_products" if uses <= _MOST_USES else "jacobian"
    row_bytes = 4 * num_outputs * size
    if block_rows is None:
        local = -(-len(ensemble) // ensemble.mesh.shape["member"])
        alone = min(_MEMBER_JACOBIAN_BYTES // row_bytes, _FEWEST_ROWS)
        together = min(_JACOBIAN_BYTES // (row_bytes * local), _MOST_ROWS)
        block_rows = max(1, alone, together)
    else:
        check_block_rows(block_rows)
    return Strips(tangents, method, full, num_outputs, int(block_rows))


def members_at_once(
    ensemble: Ensemble, strips: "Strips", block: int | str | None
) -> Blocks:
    """How the local members run, so that all their Jacobians fit.

    "auto" is one of `map_members` on a CPU, where a member's intermediates bound the
    block. Elsewhere that is all local members, whatever their Jacobians take: here as
    many as hold 512 MiB of them together, a divisor of their number, at least one.

    Args:
        ensemble: the members.
        strips: from `make_strips`.
        block: "auto", or a choice that is kept.
    """
    mesh = ensemble.mesh
    if block != "auto" or platform(mesh) == "cpu" or strips.method != "jacobian":
        return Blocks(block)
    local = -(-len(ensemble) // mesh.shape["member"])
    values = strips.num_outputs * strips.tangents.size(ensemble.params) // len(ensemble)
    most = max(1, _JACOBIAN_BYTES // (4 * values * strips.block_rows))
    size = max(n for n in range(1, local + 1) if local % n == 0 and n <= most)
    return Blocks(None if size == local else size)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How one axis is cut into pieces of equal size, of which the last two overlap.

    Attributes:
        length: of the axis.
        size: of a piece.
        count: of pieces.
    """

    length: int
    size: int
    count: int

    @classmethod
    def of(cls, length: int, at_most: int) -> "Tiles":
        """As few pieces as there can be, as small as they can be then."""
        count = -(-length // at_most)
        return cls(length, -(-length // count), count)

    def start(self, index: Any) -> Any:
        """The first place of a piece (traced)."""
        return jnp.minimum(index * self.size, self.length - self.size)


@dataclasses.dataclass(frozen=True)
class Strips:
    """A member's kernel between one block of rows and a range of columns."""

    tangents: Tangents
    method: str
    full: bool
    num_outputs: int
    block_rows: int
    is_whole: bool = False  # whether the block of rows is all the columns, too

    def rows(self, length: int) -> Tiles:
        """How rows are cut."""
        return Tiles.of(length, self.block_rows)

    def columns(self, length: int) -> Tiles:
        """How columns are cut: a strip is several blocks wide."""
        return Tiles.of(length, self.block_rows * _BLOCKS_OF_A_STRIP)

    def __call__(self, state, x, z, start, stop):
        """One member's kernel of the rows `x` and a strip of the rows `z`.

        Args:
            state: of the member.
            x: a block of rows.
            z: all columns' inputs.
            start: the strip's first column (traced).
            stop: columns from here on are not needed (traced); they may be 0.

        Returns:
            `[row, column]`, or `[row, column, output, output']`.
        """
        if self.is_whole and self.method == "jacobian":
            both = self.tangents.jacobian(state, x)
            return contract(both, both, full=self.full)
        strip = self.columns(num_rows(z))
        tiles = self.rows(strip.size)
        behind = (self.num_outputs,) * 2 if self.full else ()
        block = self._prepared(state, x)

        def body(j, kernel):
            place = tiles.start(j)
            part = block(rows_of(z, start + place, tiles.size))
            return jax.lax.dynamic_update_slice_in_dim(kernel, part, place, axis=1)

        shape = jax.eval_shape(lambda: block(rows_of(z, 0, tiles.size)))
        empty = jnp.zeros((num_rows(x), strip.size, *behind), shape.dtype)
        needed = (jnp.clip(stop - start, 0, strip.size) + tiles.size - 1) // tiles.size
        return jax.lax.fori_loop(0, needed, body, empty)

    def _prepared(self, state, x):
        """`block(z)`: the kernel of the rows `x` and a block of the others."""
        if self.method == "jacobian":
            left = self.tangents.jacobian(state, x)
            return lambda z: contract(
                left, self.tangents.jacobian(state, z), full=self.full
            )
        push = self.tangents.push_forward(state, x)

        def of_row(row):
            fn, values = self.tangents.function(
                state, jax.tree.map(lambda a: a[None], row)
            )
            out, pull_back = jax.vjp(fn, values)
            basis = jnp.eye(out.shape[1], dtype=out.dtype)
            (rows,) = jax.vmap(lambda u: pull_back(u[None]))(basis)
            kernel = jax.vmap(push)(rows)  # [output', row, output]
            if self.full:
                return jnp.moveaxis(kernel, 0, -1)
            return jnp.einsum("pap->a", kernel) / out.shape[1]

        return lambda z: jnp.moveaxis(jax.lax.map(of_row, z), 0, 1)

    def of_members(self, blocks: Blocks):
        """This function over local stacks."""
        kinds = ("member", "shared", "shared", "shared", "shared")
        return map_local(self, kinds=kinds, blocks=blocks)


def pad_rows(x: Any, shards: int) -> Any:
    """Inputs with copies of the last row, so that they divide over `shards`."""
    missing = -num_rows(x) % shards
    if not missing:
        return x

    def pad(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(pad, leaf)
        widths = [(0, missing)] + [(0, 0)] * (jnp.ndim(leaf) - 1)
        return jnp.pad(jnp.asarray(leaf), widths, mode="edge")

    return jax.tree.map(pad, x)
