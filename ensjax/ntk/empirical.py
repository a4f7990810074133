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

from ensjax.blocks import Blocks
from ensjax.ensemble import Ensemble
from ensjax.mapping import MeshProgram, mesh_program
from ensjax.members import num_members, pad_members, trim_members
from ensjax.ntk.strips import (
    METHODS,
    Strips,
    make_strips,
    make_tangents,
    members_at_once,
    pad_rows,
)
from ensjax.ntk.tangents import check_rows, num_rows, rows_of

OUTPUTS = ("trace", "full")


def empirical_ntk(
    ensemble: Ensemble,
    x: Any,
    z: Any = None,
    *,
    outputs: str = "trace",
    method: str = "auto",
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
        x: inputs, leaves `[row, ...]`; split over the mesh axis "data". Where they do
            not divide they are padded with copies of the last row, and devices exchange
            parts of the result when these are cut off.
        z: other inputs, whole on every device; by default `x`; unless rows are split,
            what is above the diagonal is then copied from below.
        outputs: "trace": the mean over outputs of the kernel of one output, which is
            what closed forms of infinite width give; "full": all pairs of outputs.
        method: how it is computed, to rounding the same:
            "jacobian": Jacobians of two blocks of rows are formed and contracted;
            "vector_products": for each row of `z` and output a product with the
            transposed Jacobian and one with the Jacobian of a block of `x`. It holds
            `output` copies of the parameters instead of `2 * block_rows * output`;
            "auto": products for dense networks, which use a weight once for a row
            (there they took .11 to .4 of the Jacobians' time on two CPU cores; 1.6
            times it for networks of width 16 with one output), else Jacobians.
        params: regular expression (`re.search`); only parameters in whose dotted name,
            such as `layers.0.kernel`, it is found count. All by default.
        block_rows: rows of a block, at most; by default at most 256, and as many as
            keep Jacobians small. The kernel does not depend on it.
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
    program, arguments = kernel_program(
        ensemble,
        x,
        z,
        outputs=outputs,
        method=method,
        params=params,
        block_rows=block_rows,
        block=block,
        precision=precision,
    )
    return program(*arguments)


def kernel_program(
    ensemble: Ensemble,
    x: Any,
    z: Any = None,
    *,
    outputs: str = "trace",
    method: str = "auto",
    params: str = "",
    block_rows: int | None = None,
    block: int | str | None = "auto",
    precision: str = "highest",
) -> tuple[MeshProgram, tuple[Any, ...]]:
    """The program of `empirical_ntk` and its arguments, before anything runs.

    `program.lower(*arguments).compile()` says memory and collectives; inputs may be
    `jax.ShapeDtypeStruct`s then.

    Args:
        ensemble, x, z, outputs, method, params, block_rows, block, precision: as in
            `empirical_ntk`.

    Raises:
        ValueError, TypeError: as `empirical_ntk`.
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
    strips = make_strips(ensemble, tangents, x, method, outputs == "full", block_rows)
    job = _Kernel(
        strips,
        members_at_once(ensemble, strips, block),
        z is None and ensemble.mesh.shape["data"] == 1,
        num_rows(x),
        precision,
    )
    # Padded here: a program that has `x` whole as well would gather it.
    padded = pad_rows(x, ensemble.mesh.shape["data"])
    return mesh_program(job, ensemble.mesh), (ensemble.state, padded, columns)


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """Kernels of the local members and rows, strip by strip into their places."""

    strips: Strips
    blocks: Blocks
    is_symmetric: bool
    num_rows: int
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
        return pad_members(state, members), x, z

    def local(self, state, x, z):
        with jax.default_matmul_precision(self.precision):
            return self._local(state, x, z)

    def _local(self, state, x, z):
        rows = self.strips.rows(num_rows(x))
        columns = self.strips.columns(num_rows(z))
        is_whole = self.is_symmetric and rows.count == 1
        strips = dataclasses.replace(self.strips, is_whole=is_whole)
        strip = strips.of_members(self.blocks)
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
        """What is above the diagonal from what is below, in place."""
        sizes = (kernel.shape[0], tiles.size, tiles.size, *kernel.shape[3:])
        behind = [0] * (kernel.ndim - 3)

        def flipped(block):
            block = jnp.swapaxes(block, 1, 2)
            return jnp.swapaxes(block, 3, 4) if behind else block

        # Products of a block with itself are symmetric to rounding alone.
        place = jnp.arange(tiles.size)[:, None]
        if behind:
            outputs = self.strips.num_outputs
            place = place * outputs + jnp.arange(outputs)[None]
            is_below = place[:, None, :, None] >= place[None, :, None, :]
        else:
            is_below = place >= place.T

        def of_row(i, kernel):
            start = tiles.start(i)
            here = (0, start, start, *behind)
            block = jax.lax.dynamic_slice(kernel, here, sizes)
            block = jnp.where(is_below[None], block, flipped(block))
            kernel = jax.lax.dynamic_update_slice(kernel, block, here)

            def copy(j, kernel):
                other = tiles.start(j)
                block = jax.lax.dynamic_slice(kernel, (0, start, other, *behind), sizes)
                there = (0, other, start, *behind)
                return jax.lax.dynamic_update_slice(kernel, flipped(block), there)

            return jax.lax.fori_loop(0, i, copy, kernel)

        return jax.lax.fori_loop(0, tiles.count, of_row, kernel)

    def finish(self, kernel, state, x, z):
        kernel = trim_members(kernel, num_members(state))
        return kernel if num_rows(x) == self.num_rows else kernel[:, : self.num_rows]
