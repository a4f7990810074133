"""Gram matrices of what enters each linear map of a model, for every member."""

import dataclasses
import math
import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.ops.window import Window, explicit_padding, taps
from ensjax.weight_space.leaves import leaf_names, wide
from ensjax.weight_space.row_statistics import mean_over_rows


def input_grams(
    ensemble: Ensemble,
    inputs: Any,
    *,
    weights: Any = None,
    own_rows: bool = False,
    rows_at_once: int = 64,
    layers: str = "",
    block: int | str | None = "auto",
) -> dict[str, jax.Array]:
    """The mean of `x x^T` over what enters every `nnx.Linear` and `nnx.Conv`.

    The vectors `x` are those that a layer's weights are multiplied with, in the
    member's own network, with a 1 for the bias appended: inputs of a linear layer at
    every position, patches (im2col) of a convolution at every output.

    Args:
        ensemble: members that are flax nnx modules.
        inputs: leaves `[example, ...]`, or `[member, example, ...]` if `own_rows`.
        weights: of the rows in the mean, `[example]` or `[member, example]`; equal by
            default. A row of weight 0 leaves no trace.
        own_rows: whether each member has rows of its own, as for members fine-tuned on
            different tasks.
        rows_at_once: rows whose inputs and patches are held together.
        layers: regular expression (`re.search`); layers in whose name, such as
            `blocks.0.linear.kernel`, it is not found are left out.
        block: how many members of a device run at once; see `map_members`.

    Returns:
        For the name of each layer's kernel `[member, group, entry + 1, entry + 1]`,
        float32; entries are in the order in which the kernel `[*tap, in, out]` is
        flattened, and the last is the 1. A group is one of a convolution's
        (`feature_group_count`), else there is one. A layer that is called several times
        has the mean over its calls, one that is never called has zeros.

    Raises:
        TypeError: if the members are no nnx modules.
        ValueError: if no layer is found, a layer runs inside a compiled loop (a
            recurrent cell), or inputs or weights differ in length.

    Source: Jin et al. 2023, arXiv:2212.09849 (RegMean), of linear layers; the 1 and
    the patches are ours.
    """
    if not isinstance(ensemble.graph, NnxGraph):
        raise TypeError(
            "input_grams looks into flax nnx modules; this ensemble was made of a bare"
            " function. Stack modules with Ensemble.init or Ensemble.stack."
        )
    try:
        re.compile(layers)
    except re.error as error:
        raise ValueError(f"{layers!r} is no regular expression: {error}.") from error
    return mean_over_rows(
        ensemble,
        _BlockGrams(ensemble.graph, layers),
        inputs,
        weights=weights,
        own_rows=own_rows,
        rows_at_once=rows_at_once,
        block=block,
    )


@dataclasses.dataclass(frozen=True)
class _BlockGrams:
    """The weighted sum over a block of rows of each layer's `x x^T`."""

    graph: NnxGraph
    layers: str

    def __call__(self, state, member_id, seed, inputs, weights, positions):
        del member_id, seed, positions
        model = self.graph.merge(state, train=False)
        recorders = {}
        known = set(leaf_names(state["params"]))
        for path, module in nnx.iter_modules(model):
            name = ".".join(map(str, (*path, "kernel")))
            if not re.search(self.layers, name):
                continue
            if isinstance(module, nnx.Linear):
                product, vectors, groups = "dot_general", _linear_vectors, 1
            elif isinstance(module, nnx.Conv):
                product, vectors = "conv_general_dilated", _conv_vectors
                groups = module.feature_group_count
            else:
                continue
            assert name in known, (name, known)
            entries = math.prod(module.kernel.shape[:-1])
            recorder = _Recorder(
                name,
                getattr(module, product),
                vectors,
                weights,
                (groups, entries + 1, entries + 1),
            )
            setattr(module, product, nnx.data(recorder))
            recorders[name] = recorder
        if not recorders:
            raise ValueError(
                f"no nnx.Linear or nnx.Conv has a name in which {self.layers!r} is"
                " found."
            )
        model(inputs)
        return {name: recorder.mean() for name, recorder in recorders.items()}


class _Recorder(nnx.Module):
    """A layer's product, which adds up the Gram matrix of what it multiplies.

    The sum is a variable, so that it comes out of `nnx.remat`.
    """

    def __init__(self, name, product, vectors, weights, shape):
        self.name, self.product, self.vectors = name, product, vectors
        self.weights = nnx.Intermediate(weights)
        self.total = nnx.Intermediate(jnp.zeros(shape, jnp.float32))
        self.calls = nnx.Intermediate(jnp.zeros((), jnp.float32))

    def __call__(self, inputs, kernel, *args, **options):
        vectors = self.vectors(inputs, kernel, *args, **options)
        rows = self.weights.shape[0]
        if vectors.shape[0] != rows:
            raise ValueError(
                f"what enters {self.name} has {vectors.shape[0]} rows where the batch"
                f" has {rows}; its leading axis must be the batch. Leave the layer out"
                " with layers=..."
            )
        weights = self.weights[...].reshape(rows, 1, 1, 1)
        vectors = jnp.where(weights > 0, wide(vectors), 0.0)
        ones = jnp.ones((*vectors.shape[:-1], 1), vectors.dtype)
        vectors = jnp.concatenate([vectors, ones], axis=-1)
        # [row, position, group, entry]
        gram = jnp.einsum(
            "rpgi,rpgj->gij", vectors * weights, vectors, precision="highest"
        )
        try:
            self.total[...] += (gram / vectors.shape[1]).astype(jnp.float32)
            self.calls[...] += 1.0
        except flax.errors.TraceContextError as error:
            raise ValueError(
                f"{self.name} runs inside a compiled loop, where its inputs cannot be"
                " collected; leave it out with layers=..., and its leaves are averaged."
            ) from error
        return self.product(inputs, kernel, *args, **options)

    def mean(self):
        return self.total[...] / jnp.maximum(self.calls[...], 1.0)


def _linear_vectors(inputs, kernel, dimensions, **options):
    """`[row, position, 1, in]` of the inputs `[row, ..., in]` of a linear layer."""
    del kernel, dimensions, options
    return inputs.reshape(inputs.shape[0], -1, 1, inputs.shape[-1])


def _conv_vectors(
    inputs,
    kernel,
    strides,
    padding,
    *,
    lhs_dilation,
    rhs_dilation,
    feature_group_count,
    **options,
):
    """`[row, position, group, tap * in]` of the inputs `[row, *space, in]`."""
    del options
    if any(d != 1 for d in lhs_dilation or ()):
        raise ValueError("patches of a dilated input are not collected.")
    shape = kernel.shape[:-2]
    window = Window(shape, tuple(strides), (), tuple(rhs_dilation), feature_group_count)
    space = inputs.shape[1:-1]
    window = dataclasses.replace(
        window,
        padding=explicit_padding(padding, space, window.extent, window.strides),
    )
    patches = jnp.stack(taps(inputs, window), axis=-2)  # [row, *output, tap, in]
    rows, (num_taps, channels) = patches.shape[0], patches.shape[-2:]
    groups = feature_group_count
    patches = patches.reshape(rows, -1, num_taps, groups, channels // groups)
    patches = jnp.swapaxes(patches, 2, 3)  # [row, position, group, tap, in]
    return patches.reshape(rows, patches.shape[1], groups, -1)
