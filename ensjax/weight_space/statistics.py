"""Batch statistics of models whose weights were mixed: measured again on data.

The running mean and variance of batch norm belong to activations that a mixture does
not have. They are measured by one pass over data without labels, in evaluation mode but
for batch norm, so that dropout plays no part.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.mapping import map_members


def recompute_statistics(
    ensemble: Ensemble,
    x: Any,
    *,
    batch_size: int = 512,
    block: int | str | None = "auto",
) -> Ensemble:
    """The ensemble with every member's batch statistics measured on `x` (compiled).

    Mean and variance of a layer are those of all rows together, each batch having gone
    through the layers before it with its own statistics, as in training.

    Args:
        ensemble: of nnx modules with `nnx.BatchNorm`. They are measured also where the
            module says `use_running_average` in the call. A norm that the forward does
            not run in evaluation mode keeps its statistics.
        x: inputs, leaves `[example, ...]`; every member sees the same.
        batch_size: rows at a time; the largest not above it that leaves no short batch
            is taken, and up to a batch's number of rows are left out at the end.
        block: how many members of a device run at once.

    Returns:
        An ensemble with the same parameters.

    Raises:
        ValueError: if there are no rows, the model has no batch norm, it is no nnx
            module, or its batch norm is not run through `nnx.BatchNorm.__call__`.

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima,
    arXiv:1803.05407, section 3.2.
    """
    check_has_statistics(ensemble)
    batches = split_batches(x, batch_size, ensemble.mesh.shape["data"])
    program = map_members(
        _Recompute(ensemble.graph),
        kinds=("member", "batch"),
        mesh=ensemble.mesh,
        block=block,
    )
    return dataclasses.replace(ensemble, state=program(ensemble.state, batches))


def split_batches(x: Any, batch_size: int, shards: int) -> Any:
    """Rows in whole batches, `[row of a batch, batch, ...]`, for "data" to split.

    Raises:
        ValueError: if there are fewer rows than shards, or `batch_size` is below 1.
    """
    rows = {np.shape(leaf)[0] for leaf in jax.tree.leaves(x) if np.ndim(leaf)}
    if len(rows) != 1 or batch_size < 1:
        raise ValueError(
            "x must be arrays [example, ...] of equal length and batch_size at least"
            f" 1; got lengths {sorted(rows)} and {batch_size}."
        )
    (count,) = rows
    if count < shards:
        raise ValueError(f"x holds {count} rows for data={shards} devices.")
    number = -(-count // batch_size)
    size = count // number // shards * shards
    size, number = (size, number) if size else (shards, count // shards)
    used = size * number

    def split(leaf):
        leaf = jnp.asarray(leaf)[:used].reshape(number, size, *np.shape(leaf)[1:])
        return jnp.swapaxes(leaf, 0, 1)

    return jax.tree.map(split, x)


def check_has_statistics(ensemble: Ensemble) -> None:
    """Raises `ValueError` unless the members are nnx modules with batch norm."""
    graph = ensemble.graph
    if not isinstance(graph, NnxGraph):
        raise ValueError(
            "batch statistics are found in flax nnx modules; these members are a bare"
            " function."
        )
    state = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), ensemble.state)
    if not _norms(graph.merge(state, train=False)):
        raise ValueError("the members have no nnx.BatchNorm, so no batch statistics.")


def with_statistics(graph: NnxGraph, state: Any, batches: Any) -> Any:
    """One member's state with batch statistics of `batches`; in a `shard_map`.

    Args:
        graph: of the member.
        state: its arrays.
        batches: leaves `[row of this shard, batch, ...]`.
    """

    def measure(batch):
        model = graph.merge(state, train=False)
        norms = _norms(model)
        for norm in norms:
            norm.__class__ = _measuring(type(norm))
        before = [norm.mean[...] for norm in norms]
        model(batch)
        if all(norm.mean[...] is mean for norm, mean in zip(norms, before)):
            raise ValueError(
                "none of the members' nnx.BatchNorm was run, so that no statistics were"
                " measured: does a subclass normalise without super().__call__(x)?"
            )
        return [(norm.mean[...], norm.var[...]) for norm in norms]

    each = jax.lax.map(measure, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batches))
    model = graph.merge(state, train=False)
    for norm, (means, variances) in zip(_norms(model), each, strict=True):
        mean = jnp.mean(means, axis=0)
        between = jnp.mean(jnp.square(means - mean[None]), axis=0)
        norm.mean[...] = mean
        norm.var[...] = jnp.mean(variances, axis=0) + between
    return {"params": state["params"], "rest": graph.rest(model)}


class _Measuring(nnx.BatchNorm):
    """Batch norm that keeps the statistics of the batch, whatever it is told."""

    def __call__(self, x, use_running_average=None, *, mask=None):
        del use_running_average
        # Without momentum the running statistics are those of this batch. From 0 and 1,
        # as 0 times what is not finite is NaN.
        self.momentum, self.axis_name = 0.0, "data"
        # E[x^2] - E[x]^2 in float32 is wrong where the mean is large.
        self.use_fast_variance = False
        self.mean[...] = jnp.zeros_like(self.mean[...])
        self.var[...] = jnp.ones_like(self.var[...])
        return super().__call__(x, use_running_average=False, mask=mask)


@functools.lru_cache(maxsize=256)
def _measuring(kind):
    """The class of a norm, with `_Measuring` in place of `nnx.BatchNorm`.

    Between the two, so that it also sees what a subclass passes on.
    """
    bases = (_Measuring,) if kind is nnx.BatchNorm else (kind, _Measuring)
    return type(kind)(kind.__name__, bases, {})


def _norms(model):
    return [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]


@dataclasses.dataclass(frozen=True)
class _Recompute:
    graph: NnxGraph

    def __call__(self, state, batches):
        return with_statistics(self.graph, state, batches)
