"""Means over rows of data of what one member computes for them, a block at a time.

Fisher information and input Gram matrices are such means: small sums that every block
of rows adds to, of all members in one program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import map_members


def mean_over_rows(
    ensemble: Ensemble,
    block_sums: Callable[..., Any],
    inputs: Any,
    *,
    weights: Any,
    own_rows: bool,
    rows_at_once: int,
    seed: int = 0,
    block: int | str | None = "auto",
) -> Any:
    """Every member's weighted mean over rows of a statistic (compiled).

    Args:
        ensemble: the members.
        block_sums: hashable `block_sums(state, member_id, seed, inputs, weights,
            positions)` of one member: the weighted sum of its statistic over a block
            of rows. Rows of weight 0 may hold anything, and their positions repeat.
        inputs: leaves `[example, ...]`, or `[member, example, ...]` if `own_rows`.
        weights: `[example]` or `[member, example]` alike, at least 0; `None`: 1 each.
        own_rows: whether each member has rows of its own.
        rows_at_once: rows of a block. Rows are split over the mesh's "data" axis first.
        seed: passed on.
        block: how many members of a device run at once; see `map_members`.

    Returns:
        What `block_sums` returns divided by the sum of the weights, leaves
        `[member, ...]`.

    Raises:
        ValueError: if there is no row, leaves or weights differ in length, or all
            weights of a member are 0.
    """
    lead = (ensemble.num_members,) if own_rows else ()
    axis = len(lead)
    shapes = {np.shape(leaf)[: axis + 1] for leaf in jax.tree.leaves(inputs)}
    is_one = len(shapes) == 1 and len(min(shapes)) == axis + 1
    if not is_one or min(shapes)[:axis] != lead or 0 in min(shapes):
        expected = (
            f"[{lead[0]} members, example, ...]" if own_rows else "[example, ...]"
        )
        raise ValueError(
            f"inputs must be {expected}, all leaves of the same length and at least one"
            f" example; got {sorted(shapes)}."
        )
    (shape,) = shapes
    if weights is None:
        weights = np.ones(shape, np.float32)
    if np.shape(weights) != shape:
        raise ValueError(
            f"weights must have shape {shape}, one for each row; got"
            f" {np.shape(weights)}."
        )
    if not isinstance(weights, jax.core.Tracer):
        known = np.asarray(weights, np.float64)
        totals = np.sum(known, axis=-1)
        if not np.isfinite(known).all() or known.min() < 0 or not totals.min() > 0:
            raise ValueError(
                "weights must be finite and at least 0, and some of each member's above"
                f" 0; their sums are {totals.tolist()}."
            )
    if rows_at_once < 1:
        raise ValueError(f"rows_at_once must be at least 1; got {rows_at_once}.")
    shards = ensemble.mesh.shape["data"]
    rows_at_once = min(rows_at_once, -(-shape[-1] // shards))
    missing = -shape[-1] % (shards * rows_at_once)

    def pad(leaf, **options):
        widths = [(0, 0)] * jnp.ndim(leaf)
        widths[axis] = (0, missing)
        return jnp.pad(leaf, widths, **options) if missing else jnp.asarray(leaf)

    # Copies of the last row are finite in any model; they weigh nothing.
    inputs = jax.tree.map(lambda x: pad(x, mode="edge"), inputs)
    weights = pad(jnp.asarray(weights, jnp.float32))
    positions = jnp.minimum(jnp.arange(shape[-1] + missing), shape[-1] - 1)
    kind = "member_batch" if own_rows else "batch"
    run = map_members(
        _MeanOverRows(block_sums, rows_at_once),
        kinds=("member", "member", "shared", kind, kind, "batch"),
        mesh=ensemble.mesh,
        block=block,
    )
    return run(
        ensemble.state,
        ensemble.member_ids,
        jnp.int32(seed),
        inputs,
        weights,
        positions,
    )


@dataclasses.dataclass(frozen=True)
class _MeanOverRows:
    """One member's mean over its rows on all "data" devices."""

    block_sums: Callable[..., Any]
    rows_at_once: int

    def __call__(self, state, member_id, seed, inputs, weights, positions):
        rows = (inputs, weights, positions)
        blocks = jax.tree.map(
            lambda x: x.reshape(-1, self.rows_at_once, *x.shape[1:]), rows
        )

        def sums(block):
            return self.block_sums(state, member_id, seed, *block)

        shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], blocks))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, block):
            return jax.tree.map(jnp.add, total, sums(block)), None

        total, _ = jax.lax.scan(add, zeros, blocks)
        total, weight = jax.lax.psum((total, jnp.sum(weights)), "data")
        return jax.tree.map(lambda x: x / weight, total)
