"""What feeds the compiled loop: arrays that stay on the devices, or streamed chunks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ensjax.data.prefetch import prefetch_chunks
from ensjax.data.streams import as_batches
from ensjax.mesh import place


def is_resident(data: Any) -> bool:
    """True for arrays with a leading example axis, False for iterables of batches."""
    if hasattr(data, "shape") or isinstance(data, dict):
        return True
    return isinstance(data, (tuple, list)) and all(
        hasattr(leaf, "shape") for leaf in jax.tree.leaves(data)
    )


@dataclasses.dataclass(frozen=True)
class ResidentData:
    """Arrays that lie whole on every device and are read by index.

    Attributes:
        arrays: leaves `[example, ...]`.
        batch_size: of the global batch.
        num_examples: rows.
    """

    arrays: Any
    batch_size: int
    num_examples: int
    kind = "shared"

    @classmethod
    def of(cls, data, *, batch_size: int | None, mesh: Mesh, name: str = "data"):
        """Checks arrays and puts them on the devices.

        Raises:
            ValueError: for empty arrays, unequal lengths, non-finite values or a batch
                that does not fit; names the leaf.
        """
        leaves = jax.tree.leaves_with_path(data)
        if not leaves:
            raise ValueError(f"{name} holds no array.")
        counts = {}
        for path, leaf in leaves:
            label = name + jax.tree_util.keystr(path)
            shape = np.shape(leaf)
            if not shape or not shape[0]:
                raise ValueError(f"{label} must be [example, ...]; got shape {shape}.")
            counts[label] = shape[0]
            if isinstance(leaf, np.ndarray) and leaf.dtype == object:
                raise ValueError(f"{label} has dtype object; pass numbers.")
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            if floating and not bool(np.isfinite(np.asarray(leaf)).all()):
                raise ValueError(f"{label} holds NaN or infinite values.")
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{k}: {v}" for k, v in counts.items())
            raise ValueError(f"All arrays need the same number of examples; {listed}.")
        num_examples = next(iter(counts.values()))
        batch_size = num_examples if batch_size is None else batch_size
        if not 1 <= batch_size <= num_examples:
            raise ValueError(
                f"batch_size must be from 1 to the {num_examples} examples of {name};"
                f" got {batch_size}."
            )
        if name == "data" and batch_size % mesh.shape["data"]:
            raise ValueError(
                f"batch_size={batch_size} must divide over data={mesh.shape['data']}"
                " devices."
            )
        arrays = jax.tree.map(_canonical, data)
        if name == "data":
            arrays = place(arrays, mesh, jax.P())
        return cls(arrays, batch_size, num_examples)

    def chunks(self, position: Any):
        """The same arrays for every call."""
        del position
        return _Same(self.arrays)


def _canonical(leaf):
    """float64 and int64 become what JAX computes with."""
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))


class _Same:
    def __init__(self, arrays):
        self._arrays = arrays

    def next(self, num_steps):
        return self._arrays, num_steps

    def position(self):
        return None

    def close(self):
        pass


@dataclasses.dataclass(frozen=True)
class StreamedData:
    """Batches from an iterable; a chunk of them enters the program at a time.

    Attributes:
        batches: checked iterator of NumPy batches.
        batch_size: of the global batch.
        mesh: where chunks go.
        max_steps: batches of a full chunk.
    """

    batches: Any
    batch_size: int
    mesh: Mesh
    max_steps: int
    num_examples = 0
    kind = "batch"

    @classmethod
    def of(cls, data, *, mesh: Mesh, max_steps: int):
        """Wraps an iterable and reads its first batch to know the shapes."""
        restarts = iter(data) is not data
        batches = _Peekable(as_batches(data, num_epochs=None if restarts else 1))
        first = batches.peek()
        local = jax.tree.leaves(first)[0].shape[0]
        shards = mesh.shape["data"]
        batch_size = local * _processes_over_data(mesh)
        if batch_size % shards:
            raise ValueError(
                f"Batches of {batch_size} examples must divide over data={shards}"
                " devices."
            )
        return cls(batches, batch_size, mesh, max_steps)

    def chunks(self, position: Any):
        """Chunks from a saved position on (None: from the start)."""
        if position is not None:
            self.batches.set_state(position)
        return _StreamedChunks(self)


def _processes_over_data(mesh) -> int:
    """Over how many processes one batch is split."""
    rows = {
        tuple(sorted({d.process_index for d in mesh.devices[:, i].flat}))
        for i in range(mesh.devices.shape[1])
    }
    return len(rows)


class _Peekable:
    """An iterator of batches whose first one can be looked at."""

    def __init__(self, batches):
        self._batches, self._held = batches, []
        self.can_save_position = batches.can_save_position

    def peek(self):
        if not self._held:
            self._held = [next(self._batches)]
        return self._held[0]

    def __iter__(self):
        return self

    def __next__(self):
        return self._held.pop() if self._held else next(self._batches)

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._held = []
        self._batches.set_state(state)


class _StreamedChunks:
    def __init__(self, feed):
        self._mesh, self._max_steps = feed.mesh, feed.max_steps
        self._chunks = prefetch_chunks(
            feed.batches, steps_per_chunk=feed.max_steps, place=self._place
        )
        self._saves = feed.batches.can_save_position

    def _place(self, chunk):
        steps = jax.tree.leaves(chunk)[0].shape[1]
        sharding = NamedSharding(self._mesh, jax.P("data"))

        def put(leaf):
            leaf = _canonical(leaf)
            missing = self._max_steps - steps
            if missing:  # one compiled shape; the number of steps says what counts
                leaf = np.concatenate([leaf, np.repeat(leaf[:, -1:], missing, 1)], 1)
            return jax.make_array_from_process_local_data(sharding, leaf)

        return jax.tree.map(put, chunk), steps

    def next(self, num_steps):
        chunk, steps = next(self._chunks, (None, 0))
        return chunk, min(steps, num_steps)

    def position(self):
        return self._chunks.get_state() if self._saves else None

    def close(self):
        self._chunks.close()
