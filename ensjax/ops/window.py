"""The window of a convolution or a pooling: what it reads of a channels-last array."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes of `[batch, *space, channel]`.

    Args:
        shape: taps along each spatial axis.
        strides: steps between outputs.
        padding: `(low, high)` along each spatial axis; negative crops.
        dilation: steps between taps.
        groups: channel groups of a convolution (`feature_group_count`).
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def extent(self) -> tuple[int, ...]:
        """Input positions from the first to the last tap, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.shape, self.dilation))

    def outputs(self, space: Sequence[int]) -> tuple[int, ...]:
        """Number of outputs along each spatial axis of an input of size `space`."""
        return tuple(
            (size + low + high - extent) // stride + 1
            for size, (low, high), extent, stride in zip(
                space, self.padding, self.extent, self.strides
            )
        )

    def transposed_padding(self, space: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Padding of the stride-dilated outputs that gives each input its readers.

        Sliding the flipped window with stride 1 over outputs padded like this yields
        exactly `space` positions. Inputs past the last strided window have no reader,
        hence `high` differs from `low`.
        """
        pairs = []
        for size, outputs, stride, extent, (low, _) in zip(
            space, self.outputs(space), self.strides, self.extent, self.padding
        ):
            before = extent - 1 - low
            dilated = (outputs - 1) * stride + 1
            pairs.append((before, size + extent - 1 - dilated - before))
        return tuple(pairs)


def explicit_padding(
    padding: str | Sequence[tuple[int, int]],
    space: Sequence[int],
    extent: Sequence[int],
    strides: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """`(low, high)` pairs of "SAME", "SAME_LOWER", "VALID", or of pairs as given."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(space, extent, strides, padding)
    return tuple((int(low), int(high)) for low, high in padding)


def pad_space(
    x: jax.Array,
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int] | None = None,
) -> jax.Array:
    """`x` `[batch, *space, channel]`, padded with zeros or cropped along space.

    `strides` first dilates it: neighbours come to lie that many positions apart.
    """
    strides = (1,) * len(padding) if strides is None else strides
    config = [(low, high, stride - 1) for (low, high), stride in zip(padding, strides)]
    if not any(any(entry) for entry in config):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def taps(x: jax.Array, window: Window) -> list[jax.Array]:
    """What each tap of `window` reads: a list of `[batch, *outputs, channel]`.

    Tap `(i, j)` of a `[a, b]` window is entry `i * b + j`, the order in which a
    kernel `[a, b, ...]` is flattened.
    """
    outputs = window.outputs(x.shape[1:-1])
    x = pad_space(x, window.padding)
    slices = []
    for index in itertools.product(*(range(k) for k in window.shape)):
        start = [i * d for i, d in zip(index, window.dilation)]
        limit = [
            s + (n - 1) * stride + 1
            for s, n, stride in zip(start, outputs, window.strides)
        ]
        slices.append(
            jax.lax.slice(
                x,
                (0, *start, 0),
                (x.shape[0], *limit, x.shape[-1]),
                (1, *window.strides, 1),
            )
        )
    assert len(slices) == math.prod(window.shape)
    return slices


def sum_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """Sums `cotangent` over the mesh axes on which `primal` does not vary.

    A `jax.custom_vjp` has to do this itself. Inside `shard_map` with its checks on,
    the cotangent of a weight that all "data" shards share is the sum of the shards'
    cotangents. With the checks off no type varies and nothing is summed.
    """
    varying = jax.typeof(cotangent).manual_axis_type.varying
    axes = varying - jax.typeof(primal).manual_axis_type.varying
    return jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent
