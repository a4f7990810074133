"""Sums over the entries of members' kernels, which are computed strip by strip.

What drift and alignment are made of. Of symmetric kernels the entries on and below the
diagonal are enough. Blocks of rows go in turns to the devices of the mesh axis "data".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.blocks import Blocks
from ensjax.mapping import mesh_program
from ensjax.members import num_members, pad_members, trim_members
from ensjax.ntk.strips import (
    METHODS,
    Strips,
    make_strips,
    make_tangents,
    members_at_once,
)
from ensjax.ntk.tangents import check_rows, num_rows, rows_of


@dataclasses.dataclass(frozen=True)
class Strip:
    """Kernels of one block of rows and some columns, 0 in entries that do not count.

    Attributes:
        kernels: of each state, `[member, row, column]`.
        rows: places of the rows in the inputs, `[row]`.
        columns: places of the columns, `[column]`.
        counts: which entries count here, `[row, column]`: each entry on and below the
            diagonal in one strip.
        num_rows: of all inputs.
    """

    kernels: tuple[jax.Array, ...]
    rows: jax.Array
    columns: jax.Array
    counts: jax.Array
    num_rows: int

    @property
    def is_below(self) -> jax.Array:
        """Whether an entry stands for one above the diagonal, too."""
        return self.rows[:, None] > self.columns[None, :]

    @property
    def weights(self) -> jax.Array:
        """How often an entry counts, `[row, column]`."""
        return self.counts * (1.0 + self.is_below)


def sum_over_kernels(
    sums_of: Callable[[Strip, Any], dict[str, jax.Array]],
    ensembles: tuple[Any, ...],
    x: Any,
    targets: Any,
    *,
    method: str,
    params: str,
    block_rows: int | None,
    block: int | str | None,
    precision: str,
) -> dict[str, jax.Array]:
    """Sums over all strips of the kernels of some ensembles (compiled).

    Args:
        sums_of: hashable `sums_of(strip, targets)`: sums over one strip, leaves
            `[member, ...]` of the local members; collectives over "member" work in it.
        ensembles: of one graph and mesh.
        x: inputs, leaves `[row, ...]`, whole on every device.
        targets: passed on, whole on every device.
        method, params, block_rows, block, precision: as in `empirical_ntk`.

    Returns:
        Leaves `[member, ...]`.

    Raises:
        ValueError, TypeError: as `empirical_ntk`.
    """
    if method not in METHODS:
        raise ValueError(
            f"method is one of {', '.join(map(repr, METHODS))}; got {method!r}."
        )
    check_rows("x", x)
    ensemble = ensembles[0]
    strips = make_strips(
        ensemble, make_tangents(ensemble, params), x, method, False, block_rows
    )
    job = _Sums(sums_of, strips, members_at_once(ensemble, strips, block), precision)
    states = tuple(e.state for e in ensembles)
    return mesh_program(job, ensemble.mesh)(states, x, targets)


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums over the strips of the local members' kernels."""

    sums_of: Callable[..., Any]
    strips: Strips
    blocks: Blocks
    precision: str
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return jax.P("member"), jax.P(), jax.P()

    def out_specs(self):
        return jax.P("member")

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, states, x, targets):
        members = self.blocks.rows(num_members(states), mesh.shape["member"])
        return pad_members(states, members), x, targets

    def local(self, states, x, targets):
        with jax.default_matmul_precision(self.precision):
            return self._local(states, x, targets)

    def _local(self, states, x, targets):
        tiles = self.strips.rows(num_rows(x))
        columns = self.strips.columns(num_rows(x))
        kernel_of = self.strips.of_members(self.blocks)
        shards, shard = jax.lax.axis_size("data"), jax.lax.axis_index("data")

        def sums(turn, j):
            tile = turn * shards + shard
            first = tiles.start(jnp.minimum(tile, tiles.count - 1))
            start = columns.start(j)
            block = rows_of(x, first, tiles.size)
            rows = first + jnp.arange(tiles.size)
            places = start + jnp.arange(columns.size)
            # The last blocks overlap: what an earlier one had does not count again.
            is_new = (rows >= tile * tiles.size)[:, None]
            is_new &= (places >= j * columns.size)[None, :]
            counts = is_new & (places[None, :] <= rows[:, None])
            stop = first + tiles.size
            kernels = tuple(
                jnp.where(counts[None], kernel_of(state, block, x, start, stop), 0)
                for state in states
            )
            strip = Strip(kernels, rows, places, counts, num_rows(x))
            return self.sums_of(strip, targets)

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sums, 0, 0)
        )

        def of_tile(turn, totals):
            stop = jnp.minimum((turn * shards + shard + 1) * tiles.size, num_rows(x))
            count = (stop + columns.size - 1) // columns.size
            return jax.lax.fori_loop(
                0, count, lambda j, t: jax.tree.map(jnp.add, t, sums(turn, j)), totals
            )

        turns = -(-tiles.count // shards)
        totals = jax.lax.fori_loop(0, turns, of_tile, zeros)
        return jax.lax.psum(totals, "data")

    def finish(self, totals, states, x, targets):
        del x, targets
        return trim_members(totals, num_members(states))
