"""REPAIR: a merged network gets back the statistics of the networks it is merged of.

Averaged weights make activations vary less, layer after layer. Each hidden channel's
mean and deviation before the nonlinearity are set to the mean of the ends' by a factor
and a shift that go into the weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.mapping import map_members
from ensjax.mesh import fetch
from ensjax.weight_space.activation_matching import depends_on
from ensjax.weight_space.axes import groups_of
from ensjax.weight_space.inference import read_axes
from ensjax.weight_space.leaves import leaf_name
from ensjax.weight_space.mix import Rows
from ensjax.weight_space.programs import Constant
from ensjax.weight_space.row_parts import Moments, moments_of_parts, row_parts


@dataclasses.dataclass(frozen=True)
class BiasedLayer:
    """A hidden layer: where its bias is added, and the leaves that say what comes out.

    Attributes:
        value: number of the pre-activation in the program.
        channel: its channel axis.
        bias: the bias, `[channel]`, as a number of a leaf of the state.
        weight: the kernel or scale beside it, whose last axis is the channel.
    """

    value: int
    channel: int
    bias: int
    weight: int


def repair(
    merged: Ensemble,
    ends: Ensemble,
    weights: Any,
    x: Any,
    *,
    batch_size: int = 512,
) -> Ensemble:
    """Merged networks whose hidden pre-activations have the statistics of their ends.

        y <- (y - mu) / sigma * sum_m w_m sigma_m + sum_m w_m mu_m    for each channel

    with mean and standard deviation over all examples and positions of `x`. Layers are
    put right one after the other, so that each sees those before it as they will be: in
    a single forward where `batch_size` holds all examples, else in one for each layer.
    A layer is a bias with one other leaf beside it in its module (the kernel of a
    linear layer or convolution, the scale of a norm), whose channels are
    interchangeable; that leaves out the last one. Batch statistics are not touched: of
    networks with batch norm reset those instead.

    Args:
        merged: networks `[mixture]` of the ends' architecture, such as midpoints.
        ends: the networks `[member]` that they are merged of, aligned.
        weights: `[mixture, member]`, with which each was merged; rows are normalised. A
            weight of 0 removes a member, also one that is not finite.
        x: inputs, leaves `[example, ...]`.
        batch_size: rows at a time, whole on every device.

    Returns:
        `merged` with other kernels or scales and biases.

    Raises:
        ValueError: if the architectures differ, the weights have another shape or a
            row of them has the sum 0 or one not finite, there is no example, or no
            layer is found.

    Source: Jordan et al. 2023 (REPAIR), arXiv:2211.08403, for two ends; the layers are
    convolutions and linear layers there, here norms as well.
    """
    if merged.graph != ends.graph:
        raise ValueError("merged and ends are of different architecture.")
    weights = np.asarray(weights, np.float32)
    expected = (merged.num_members, ends.num_members)
    if weights.shape != expected:
        raise ValueError(
            f"weights must be [mixture, member] = {expected}; got {weights.shape}."
        )
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ends.state
    )
    parts = row_parts(x, batch_size)
    layers = biased_layers(merged.graph, state, _shapes(parts[0]))[1]
    if not layers:
        raise ValueError(
            "no hidden layer has a bias that could be put right: a bias [channel] with"
            " one other leaf in its module, whose last axis is the channel."
        )
    sums = np.sum(weights, axis=1, keepdims=True)
    is_bad = ~np.isfinite(sums[:, 0]) | (sums[:, 0] == 0)
    if is_bad.any():
        raise ValueError(
            f"row {np.argmax(is_bad)} of weights has the sum {sums[is_bad][0, 0]:g} and"
            " cannot be normalised: the weights of a mixture sum to 1."
        )
    weights = weights / sums
    measure = map_members(
        _Statistics(ends.graph), kinds=("member", "shared"), mesh=ends.mesh
    )
    moments = moments_of_parts(lambda part: measure(ends.state, part), parts)
    targets = [
        tuple(
            np.asarray(Rows.of(moment).mixed(weights))
            for moment in (mean, np.sqrt(variance))
        )
        for mean, variance in fetch(moments)  # the meshes may differ
    ]
    if len(parts) == 1:
        kinds = ("member", "shared", "member")
        find = map_members(_Changes(merged.graph), kinds=kinds, mesh=merged.mesh)
        changes = find(merged.state, x, targets)
    else:
        changes = _changes_by_layer(merged, parts, targets)
    change = map_members(
        _Changed(tuple(layers)), kinds=("member", "member"), mesh=merged.mesh
    )
    return dataclasses.replace(merged, state=change(merged.state, changes))


def biased_layers(graph: Any, state: Any, x: Any) -> tuple[Any, list[BiasedLayer]]:
    """The program of one member's forward, and its hidden layers in order.

    Args:
        graph: of an `Ensemble`.
        state: shapes of one member's state.
        x: shapes of inputs.
    """
    program, axes, _ = read_axes(Forward(graph), state, x)
    names = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(state)]
    varying = depends_on(program, set(range(len(names), program.num_inputs)))
    uses = [i for op in program.operations for i in op.inputs if isinstance(i, int)]
    once = {number for number in range(len(names)) if uses.count(number) == 1}
    vectors = _vectors(program, axes, once)
    layers = []
    for operation in program.operations:
        if operation.primitive.name != "add" or len(operation.outputs) != 1:
            continue
        numbers = [i for i in operation.inputs if not isinstance(i, Constant)]
        biases = [i for i in numbers if i in vectors]
        if len(biases) != 1 or not varying.intersection(numbers):
            continue
        bias, channel = vectors[biases[0]]
        (value,) = operation.outputs
        beside = [
            n
            for n, name in enumerate(names)
            if n != bias and _module(name) == _module(names[bias])
        ]
        if len(beside) != 1 or beside[0] not in once:
            continue
        rows, columns = axes[bias][0], axes[beside[0]][-1:]
        if groups_of(rows) and columns == (rows,) and names[bias].startswith("params"):
            layers.append(BiasedLayer(value, channel, bias, beside[0]))
    return program, layers


def _vectors(program, axes, leaves) -> dict[int, tuple[int, int]]:
    """Values that are a leaf `[channel]` in another shape: leaf and channel axis."""
    found = {n: (n, 0) for n in leaves if len(axes[n]) == 1}
    for operation in program.operations:
        source = operation.inputs[0] if operation.inputs else None
        if not isinstance(source, int) or source not in found:
            continue
        leaf, axis = found[source]
        (shape,) = operation.shapes[1][:1]
        name = operation.primitive.name
        if name == "broadcast_in_dim":
            axis = operation.params["broadcast_dimensions"][axis]
        elif name in ("reshape", "squeeze"):
            long = [i for i, size in enumerate(shape) if size > 1]
            if len(long) != 1:
                continue
            (axis,) = long
        elif name != "convert_element_type":
            continue
        found[operation.outputs[0]] = (leaf, axis)
    return found


def _module(name: str) -> str | None:
    """The module of a leaf; `None` at the top of the tree."""
    return name.rpartition(".")[0] or None


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """`Moments` `[channel]` of one member's hidden layers, `changes` made to each."""

    graph: Any

    def __call__(self, state, x, changes=None):
        program, layers = biased_layers(self.graph, _shapes(state), _shapes(x))
        found = []

        def edit(layer, change):
            def run(value):
                found.append(_moments(value, layer.channel))
                return value if change is None else _changed(value, layer, change)

            return run

        changes = [None] * len(layers) if changes is None else changes
        edits = {layer.value: edit(layer, c) for layer, c in zip(layers, changes)}
        program.run(jax.tree.leaves((state, x)), edit=edits)
        return found


@dataclasses.dataclass(frozen=True)
class _Changes:
    """Factor and shift of each layer, of all rows at once: a single forward."""

    graph: Any

    def __call__(self, state, x, targets):
        program, layers = biased_layers(self.graph, _shapes(state), _shapes(x))
        changes = []

        def edit(layer, target):
            def run(value):
                changes.append(_change(_moments(value, layer.channel), target))
                return _changed(value, layer, changes[-1])

            return run

        edits = {layer.value: edit(layer, t) for layer, t in zip(layers, targets)}
        program.run(jax.tree.leaves((state, x)), edit=edits)
        return changes


@dataclasses.dataclass(frozen=True)
class _Changed:
    """One network whose layers have factors and shifts in their weights."""

    layers: tuple[BiasedLayer, ...]

    def __call__(self, state, changes):
        leaves, structure = jax.tree.flatten(state)
        for layer, (factor, shift) in zip(self.layers, changes, strict=True):
            bias, weight = leaves[layer.bias], leaves[layer.weight]
            leaves[layer.bias] = (bias * factor + shift).astype(bias.dtype)
            factor = factor.reshape((1,) * (weight.ndim - 1) + (-1,))
            leaves[layer.weight] = (weight * factor).astype(weight.dtype)
        return jax.tree.unflatten(structure, leaves)


def _changes_by_layer(merged, parts, targets):
    """As `_Changes`, of rows in parts: all parts run once for each layer.

    The statistics of a layer are known when all parts have come to it, and what comes
    after it is to see it changed.
    """
    measure = map_members(
        _Statistics(merged.graph),
        kinds=("member", "shared", "member"),
        mesh=merged.mesh,
    )
    changes = [(jnp.ones_like(m), jnp.zeros_like(m)) for m, _ in targets]
    for number, target in enumerate(targets):
        moments = moments_of_parts(
            lambda part: [measure(merged.state, part, changes)[number]],  # noqa: B023
            parts,
        )
        changes[number] = jax.jit(_change)(moments[0], target)
    return changes


def _change(moments, target):
    """The factor and shift that give a layer's channels the target's statistics."""
    deviation, (new_mean, new_deviation) = jnp.sqrt(moments.variance), target
    # A channel that never varies stays as it is but for its mean.
    varies = deviation > 1e-6 * (jnp.abs(moments.mean) + 1e-6)
    factor = new_deviation / jnp.where(varies, deviation, 1.0)
    factor = jnp.where(varies, factor, 1.0)
    return factor, new_mean - factor * moments.mean


def _changed(value, layer, change):
    shape = [1] * value.ndim
    shape[layer.channel] = -1
    factor, shift = (x.reshape(shape) for x in change)
    return (value * factor + shift).astype(value.dtype)


def _moments(value, channel):
    """Moments of each channel, `[channel]`, in float32 or wider."""
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    others = tuple(axis for axis in range(value.ndim) if axis != channel)
    return Moments(jnp.mean(value, others), jnp.var(value, others))


def _shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), tree)
