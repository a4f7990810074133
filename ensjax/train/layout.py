"""`shard_state`: the state of each member split over data shards, leaf by leaf.

A split leaf is gathered where it is used and only this shard's part is kept, so that a
member's weights and optimizer state rest in `1 / data` of the memory. Updates are made
on whole leaves, so every optimizer (norms, clipping, factored moments) is exact.
"""

import dataclasses
from typing import Any

import jax

# A smaller leaf is not worth a collective.
_MIN_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axis of every leaf of one stack's state is split over "data".

    Attributes:
        axes: the axis, counted without the member axis, or None; by `jax.tree.leaves`.
        treedef: of the state.
    """

    axes: tuple[int | None, ...]
    treedef: Any

    @classmethod
    def of(cls, state: Any, data_shards: int) -> "Layout":
        """Splits the longest axis that divides of every leaf that is large enough.

        Args:
            state: leaves `[member, ...]`; shapes are enough.
            data_shards: devices on the axis "data".
        """
        axes = []
        for leaf in jax.tree.leaves(state):
            shape = leaf.shape[1:]
            fits = [i for i, n in enumerate(shape) if n % data_shards == 0]
            small = leaf.size // max(1, leaf.shape[0]) < _MIN_SIZE
            longest = max(fits, key=lambda i: shape[i]) if fits else None
            axes.append(None if small else longest)
        return cls(tuple(axes), jax.tree.structure(state))

    @property
    def specs(self) -> Any:
        """`jax.P` of every leaf `[member, ...]`."""
        specs = [
            jax.P("member") if axis is None else jax.P("member", *[None] * axis, "data")
            for axis in self.axes
        ]
        return jax.tree.unflatten(self.treedef, specs)

    def gather(self, state: Any) -> Any:
        """One member's whole state from this shard's part: an all-gather a leaf."""

        def whole(leaf, axis):
            if axis is None:
                return leaf
            return jax.lax.all_gather(leaf, "data", axis=axis, tiled=True)

        return self._map(whole, state)

    def split(self, state: Any) -> Any:
        """This shard's part of one member's whole state."""
        shard, shards = jax.lax.axis_index("data"), jax.lax.axis_size("data")

        def part(leaf, axis):
            if axis is None:
                return leaf
            size = leaf.shape[axis] // shards
            return jax.lax.dynamic_slice_in_dim(leaf, shard * size, size, axis)

        return self._map(part, state)

    def _map(self, fn, state):
        leaves = [
            fn(leaf, axis)
            for leaf, axis in zip(jax.tree.leaves(state), self.axes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)
