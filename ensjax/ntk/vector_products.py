"""Products of members' tangent kernels with vectors, without the kernels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members
from ensjax.ntk.strips import check_block_rows, make_tangents, pad_rows
from ensjax.ntk.tangents import Tangents, check_rows, num_rows


def ntk_vector_product(
    ensemble: Ensemble,
    x: Any,
    z: Any,
    vectors: Any,
    *,
    params: str = "",
    block_rows: int = 64,
    block: int | str | None = "auto",
    precision: str = "highest",
) -> jax.Array:
    """`K[x, z] v` of every member (compiled): what solvers need of a large kernel.

        K[x, z] v = J(x) (J(z)^T v)

    Two passes over rows, block by block, and one sum over the mesh axis "data". Memory
    is a few copies of the parameters, whatever the number of rows.

    Args:
        ensemble: as in `empirical_ntk`.
        x: inputs, leaves `[row, ...]`.
        z: inputs, leaves `[row', ...]`.
        vectors: `[member, row', output]`.
        params: parameters that count, as in `empirical_ntk`.
        block_rows: rows of a block, at most.
        block: how many members of a device run at once; see `map_members`.
        precision: of matrix products, as in `empirical_ntk`.

    Returns:
        `[member, row, output]`: the full kernel times the vectors, summed over rows of
        `z` and their outputs.

    Raises:
        ValueError: if vectors are of another shape, and as `empirical_ntk`.
        TypeError: if a parameter that counts is not real floating point.
    """
    check_rows("x", x)
    check_rows("z", z, like=x)
    tangents = make_tangents(ensemble, params)
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), ensemble.state
    )
    expected = (len(ensemble), num_rows(z), tangents.num_outputs(one, x))
    if np.shape(vectors) != expected:
        raise ValueError(
            f"vectors must be [member, row', output], here {expected}; got"
            f" {np.shape(vectors)}."
        )
    check_block_rows(block_rows)
    shards = ensemble.mesh.shape["data"]
    count = num_rows(x)
    sizes = [min(block_rows, -(-num_rows(rows) // shards)) for rows in (x, z)]
    x, z = (pad_rows(rows, shards * size) for rows, size in zip((x, z), sizes))
    missing = num_rows(z) - expected[1]
    # Rows that pad have vectors of 0.
    vectors = jnp.pad(jnp.asarray(vectors), ((0, 0), (0, missing), (0, 0)))
    run = map_members(
        _Product(tangents, *sizes, precision),
        kinds=("member", "batch", "batch", "member_batch"),
        out="member_batch",
        mesh=ensemble.mesh,
        block=block,
    )
    return run(ensemble.state, x, z, vectors)[:, :count]


@dataclasses.dataclass(frozen=True)
class _Product:
    """One member's product on its shard of the rows."""

    tangents: Tangents
    rows: int
    columns: int
    precision: str

    def __call__(self, state, x, z, vectors):
        with jax.default_matmul_precision(self.precision):
            return self._product(state, x, z, vectors)

    def _product(self, state, x, z, vectors):
        def blocks(tree, size):
            return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)

        def add(total, block):
            rows, own = block
            fn, values = self.tangents.function(state, rows)
            out, pull_back = jax.vjp(fn, values)
            (found,) = pull_back(own.astype(out.dtype))
            return jax.tree.map(jnp.add, total, found), None

        zeros = jax.tree.map(jnp.zeros_like, self.tangents.chosen(state["params"]))
        direction, _ = jax.lax.scan(add, zeros, blocks((z, vectors), self.columns))
        direction = jax.lax.psum(direction, "data")
        found = jax.lax.map(
            lambda rows: self.tangents.push_forward(state, rows)(direction),
            blocks(x, self.rows),
        )
        return found.reshape(-1, found.shape[-1])
