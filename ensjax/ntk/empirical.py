"""The empirical neural tangent kernel of all members of an ensemble.

    K[x, z] = J(x) J(z)^T,   J(x) = d f(theta, x) / d theta

One program for all members: rows of a kernel are split over the mesh axis "data" and
computed block by block, written where they stay, so that beyond the result memory does
not depend on how many rows there are.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.mapping import map_local, mesh_program
from ensjax.members import num_members, pad_members, trim_members
from ensjax.ntk.tangents import Tangents, check_rows, contract, num_rows, rows_of

OUTPUTS = ("trace", "full")
METHODS = ("jacobian", "vector_products")

_MOST_ROWS = 64
_FEWEST_ROWS = 16
_JACOBIAN_BYTES = 256 * 1024**2  # of all local members, where they leave enough rows
_MEMBER_JACOBIAN_BYTES = 32 * 1024**2
# The Jacobian of a block of rows is computed anew for every so many blocks of columns.
_BLOCKS_OF_A_STRIP = 16


def empirical_ntk(
    ensemble: Ensemble,
    x: Any,
    z: Any = None,
    *,
    outputs: str = "trace",
    method: str = "jacobian",
    params: str = "",
    block_rows: int | None = None,
    block: int | str | None = "auto",
    precision: str = "highest",
) -> jax.Array:
    """Every member's tangent kernel between the rows of `x` and of `z` (compiled).

        K[x, z] = sum_p (d f(x) / d theta_p) (d f(z) / d theta_p)^T

    in evaluation mode: batch norm with its running statistics, no dropout. Members that
    are not finite leave the others alone.

    Args:
        ensemble: members that return one array `[row, ...]`: nnx modules, or any
            `apply(params, x)` (`Ensemble.from_apply`). Axes behind the rows are
            flattened to one axis of outputs.
        x: inputs, leaves `[row, ...]`; split over the mesh axis "data", and padded with
            copies of the last row where they do not divide.
        z: other inputs, whole on every device; by default `x`, of which, unless it is
            split, blocks above the diagonal are copied from below.
        outputs: "trace": the mean over outputs of the kernel of one output, which is
            what closed forms of infinite width give; "full": all pairs of outputs.
        method: how it is computed, to rounding the same:
            "jacobian": Jacobians of two blocks of rows are formed and contracted;
            "vector_products": for each row of `z` and output a product with the
            transposed Jacobian and one with the Jacobian of a block of `x`. It holds
            `output` copies of the parameters instead of `2 * block_rows * output`, and
            takes less arithmetic for full outputs of dense networks.
        params: regular expression (`re.search`); only parameters in whose dotted name,
            such as `layers.0.kernel`, it is found count. All by default.
        block_rows: rows of a block, at most; by default at most 64, and as many as keep
            Jacobians small. The kernel does not depend on it.
        block: how many members of a device run at once; see `map_members`.
        precision: of matrix products, as for `jax.default_matmul_precision`. On
            accelerators anything but "highest" rounds them.

    Returns:
        `[member, row, row']`, or `[member, row, row', output, output']`, in float32 or
        the parameters' wider type.

    Raises:
        ValueError: if inputs have no or different rows, an option is unknown, a pattern
            is found in no name, or a member returns something else.
        TypeError: if a parameter that counts is not real floating point; names it.

    Source: Jacot et al. 2018, arXiv:1806.07572; both ways of computing it: Novak et al.
    2022, arXiv:2206.08720, sections 3.1 and 3.2.

    Example:
        >>> import ensjax, jax.numpy as jnp
        >>> def make_model(rngs):
        ...     return ensjax.nn.MLP(in_features=4, num_outputs=3, rngs=rngs)
        >>> ensemble = ensjax.Ensemble.init(make_model, num_members=5, seed=0)
        >>> empirical_ntk(ensemble, jnp.ones((6, 4))).shape
        (5, 6, 6)
    """
    for name, value, known in (
        ("outputs", outputs, OUTPUTS),
        ("method", method, METHODS),
    ):
        if value not in known:
            raise ValueError(
                f"{name} is one of {', '.join(map(repr, known))}; got {value!r}."
            )
    check_rows("x", x)
    if z is not None:
        check_rows("z", z, like=x)
    tangents = make_tangents(ensemble, params)
    columns = x if z is None else z
    job = _Kernel(
        make_strips(ensemble, tangents, x, method, outputs == "full", block_rows),
        Blocks(block),
        z is None and ensemble.mesh.shape["data"] == 1,
        precision,
    )
    return mesh_program(job, ensemble.mesh)(ensemble.state, x, columns)


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


def make_strips(
    ensemble: Ensemble,
    tangents: Tangents,
    x: Any,
    method: str,
    full: bool,
    block_rows: int | None,
) -> "Strips":
    """How strips of the members' kernels are computed; the rule of `block_rows`.

    Raises:
        ValueError: if `block_rows` is no positive integer, or a member does not return
            one array `[row, ...]`.
    """
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), ensemble.state
    )
    num_outputs = tangents.num_outputs(one, x)
    if block_rows is None:
        row_bytes = 4 * num_outputs * tangents.size(one["params"])
        local = -(-len(ensemble) // ensemble.mesh.shape["member"])
        alone = min(_MEMBER_JACOBIAN_BYTES // row_bytes, _FEWEST_ROWS)
        together = min(_JACOBIAN_BYTES // (row_bytes * local), _MOST_ROWS)
        block_rows = max(1, alone, together)
    elif isinstance(block_rows, bool) or not isinstance(block_rows, (int, np.integer)):
        raise ValueError(f"block_rows must be a positive integer; got {block_rows!r}.")
    elif block_rows < 1:
        raise ValueError(f"block_rows must be at least 1; got {block_rows}.")
    return Strips(tangents, method, full, num_outputs, int(block_rows))


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


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """Kernels of the local members and rows, strip by strip into their places."""

    strips: Strips
    blocks: Blocks
    is_symmetric: bool
    precision: str
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return jax.P("member"), jax.P("data"), jax.P()

    def out_specs(self):
        return jax.P("member", "data")

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, state, x, z):
        members = self.blocks.rows(num_members(state), mesh.shape["member"])
        return pad_members(state, members), pad_rows(x, mesh.shape["data"]), z

    def local(self, state, x, z):
        with jax.default_matmul_precision(self.precision):
            return self._local(state, x, z)

    def _local(self, state, x, z):
        rows = self.strips.rows(num_rows(x))
        columns = self.strips.columns(num_rows(z))
        strip = self.strips.of_members(self.blocks)
        shape = jax.eval_shape(strip, state, rows_of(x, 0, rows.size), z, 0, 0)
        kernel = jnp.zeros(
            (shape.shape[0], rows.length, columns.length, *shape.shape[3:]), shape.dtype
        )

        def of_rows(i, kernel):
            first = rows.start(i)
            block = rows_of(x, first, rows.size)
            # Below and on the diagonal is enough.
            stop = first + rows.size if self.is_symmetric else columns.length

            def of_columns(j, kernel):
                start = columns.start(j)
                place = (0, first, start, *[0] * (kernel.ndim - 3))
                part = strip(state, block, z, start, stop)
                return jax.lax.dynamic_update_slice(kernel, part, place)

            count = (stop + columns.size - 1) // columns.size
            return jax.lax.fori_loop(0, count, of_columns, kernel)

        kernel = jax.lax.fori_loop(0, rows.count, of_rows, kernel)
        return self._mirrored(kernel, rows) if self.is_symmetric else kernel

    def _mirrored(self, kernel, tiles):
        """Blocks above the diagonal from those below, in place."""
        sizes = (kernel.shape[0], tiles.size, tiles.size, *kernel.shape[3:])
        behind = [0] * (kernel.ndim - 3)

        def copy(i, j, kernel):
            low, high = tiles.start(j), tiles.start(i)
            block = jax.lax.dynamic_slice(kernel, (0, high, low, *behind), sizes)
            block = jnp.swapaxes(block, 1, 2)
            block = jnp.swapaxes(block, 3, 4) if behind else block
            return jax.lax.dynamic_update_slice(kernel, block, (0, low, high, *behind))

        def of_row(i, kernel):
            return jax.lax.fori_loop(0, i, lambda j, k: copy(i, j, k), kernel)

        return jax.lax.fori_loop(1, tiles.count, of_row, kernel)

    def finish(self, kernel, state, x, z):
        del z
        kernel = trim_members(kernel, num_members(state))
        return kernel if kernel.shape[1] == num_rows(x) else kernel[:, : num_rows(x)]


def pad_rows(x: Any, shards: int) -> Any:
    """Inputs with copies of the last row, so that they divide over `shards`."""
    missing = -num_rows(x) % shards
    if not missing:
        return x
    return jax.tree.map(
        lambda a: jnp.pad(
            jnp.asarray(a), [(0, missing)] + [(0, 0)] * (jnp.ndim(a) - 1), mode="edge"
        ),
        x,
    )
