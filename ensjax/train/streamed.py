"""What feeds the compiled loop: batches that stream, a chunk of them at a time."""

import base64
import dataclasses
import json
import warnings
import zlib
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from ensjax.data.prefetch import prefetch_chunks, stack_steps
from ensjax.data.streams import as_batches
from ensjax.train.feeds import canonical, check_arrays, takes_missing_of


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
    def of(
        cls,
        data: Any,
        *,
        mesh: Mesh,
        max_steps: int,
        saves: bool,
        loss: Any = None,
    ):
        """Wraps an iterable and reads its first batch to know the shapes.

        Args:
            data: the iterable.
            mesh: where chunks go.
            max_steps: batches of a full chunk.
            saves: whether there will be checkpoints, which need a position.
            loss: which may leave out what is missing (`takes_missing_of`).

        Raises:
            TypeError: if `data` cannot be iterated, or a position is no JSON.
            ValueError: if there is no batch, or it does not divide over the shards.
        """
        if not hasattr(data, "__iter__") and not hasattr(data, "__next__"):
            raise TypeError(
                "data must be arrays [example, ...] or an iterable of batches; got"
                f" {type(data).__name__}."
            )
        restarts = iter(data) is not data
        batches = _Peekable(
            as_batches(data, num_epochs=None if restarts else 1), type(data).__name__
        )
        first = batches.peek()
        local = check_arrays(
            "data (its first batch)", first, takes_missing=takes_missing_of(loss, first)
        )
        shards = mesh.shape["data"]
        batch_size = local * _processes_over_data(mesh)
        if batch_size % shards:
            raise ValueError(
                f"data yields batches of {batch_size} examples, which must divide over"
                f" data={shards} devices."
            )
        _check_same_rows(batches.peek(), mesh)
        if batches.can_save_position:
            json.dumps(_to_json(batches.get_state()))
        elif saves:
            warnings.warn(
                f"a {batches.source_name} cannot save its position, so this run cannot"
                " be resumed from its checkpoints. ensjax.data.stream and grain"
                " loaders can.",
                stacklevel=3,
            )
        return cls(batches, batch_size, mesh, max_steps)

    def abstract(self) -> Any:
        """Shapes of what the compiled program takes, `[batch, step, ...]`."""
        sharding = NamedSharding(self.mesh, jax.P("data"))

        def shape(leaf):
            leaf = canonical(leaf)
            return jax.ShapeDtypeStruct(
                (self.batch_size, self.max_steps, *leaf.shape[1:]),
                leaf.dtype,
                sharding=sharding,
            )

        return jax.tree.map(shape, self.batches.peek())

    def chunks(self, position: Any, *, first_step: int, last_step: int):
        """Chunks from a saved position on (None: from the start).

        Exactly the batches of these steps are read, so that a position at the end of a
        run is the next batch's.

        Raises:
            ValueError: if there is no position to resume from.
        """
        if first_step and first_step < last_step:
            if position is None or not self.batches.can_save_position:
                raise ValueError(
                    f"data cannot be resumed at step {first_step}: a"
                    f" {self.batches.source_name} cannot save its position. Use"
                    " ensjax.data.stream or a grain loader, or start again in another"
                    " checkpoint_dir."
                )
            self.batches.set_state(_of_this_process(position))
        return _StreamedChunks(self, first_step, last_step)


def _processes_over_data(mesh) -> int:
    """Over how many processes one batch is split."""
    rows = {
        tuple(sorted({d.process_index for d in mesh.devices[:, i].flat}))
        for i in range(mesh.devices.shape[1])
    }
    return len(rows)


def _check_same_rows(batch, mesh):
    """Raises where processes that hold the same rows of a batch were fed other ones."""
    if jax.process_count() == 1:
        return
    own = jax.process_index()
    columns = [
        i
        for i in range(mesh.devices.shape[1])
        if any(d.process_index == own for d in mesh.devices[:, i].flat)
    ]
    content = 0
    for leaf in jax.tree.leaves(batch):
        content = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), content)
    held = zlib.crc32(repr(columns).encode())
    table = multihost_utils.process_allgather(np.array([held, content], np.uint32))
    for process, (theirs, their_content) in enumerate(np.asarray(table)):
        if theirs == held and their_content != content:
            raise ValueError(
                f"data differs between processes {own} and {process}, whose devices"
                " hold the same examples of every batch: the mesh splits batches over"
                f" data={mesh.shape['data']}, not over processes. Give every process"
                " the whole batch (process_count=1 in ensjax.data.stream), or a mesh"
                " with data=-1."
            )


class _Peekable:
    """An iterator of batches whose first one can be looked at."""

    def __init__(self, batches, source_name):
        self._batches, self._first, self._held = batches, None, []
        self.can_save_position = batches.can_save_position
        self.source_name = source_name

    def peek(self):
        if self._first is None:
            self._first = next(self._batches)
            self._held = [self._first]
        return self._first

    def __iter__(self):
        return self

    def __next__(self):
        return self._held.pop() if self._held else next(self._batches)

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        # The position is that of the global batch, of which another number of processes
        # reads parts of another size.
        local = jax.tree.leaves(self.peek())[0].shape[0]
        self._held = []
        self._batches.set_state({**state, "batch_size": local})


class _Limited:
    """At most `count` batches, with the position of their source."""

    def __init__(self, batches, count):
        self._batches, self._source = islice(batches, count), batches
        self.can_save_position = batches.can_save_position

    def __iter__(self):
        return self._batches

    def get_state(self):
        return self._source.get_state()


class _StreamedChunks:
    def __init__(self, feed, first_step, last_step):
        self._mesh, self._max_steps = feed.mesh, feed.max_steps
        self._saves = feed.batches.can_save_position
        # A run that goes on inside a call has a shorter first chunk.
        head = min(-first_step % feed.max_steps, last_step - first_step)
        batches = list(islice(feed.batches, head))
        self._head = self._place(stack_steps(batches)) if batches else None
        self._chunks = prefetch_chunks(
            _Limited(feed.batches, last_step - first_step - head),
            steps_per_chunk=feed.max_steps,
            place=self._place,
        )

    def _place(self, chunk):
        steps = jax.tree.leaves(chunk)[0].shape[1]
        sharding = NamedSharding(self._mesh, jax.P("data"))

        def put(leaf):
            leaf = canonical(leaf)
            missing = self._max_steps - steps
            if missing:  # one compiled shape; the number of steps says what counts
                leaf = np.concatenate([leaf, np.repeat(leaf[:, -1:], missing, 1)], 1)
            return jax.make_array_from_process_local_data(sharding, leaf)

        return jax.tree.map(put, chunk), steps

    def next(self, num_steps):
        """The next chunk, and how many steps it has (0: the data ended)."""
        if self._head is not None:
            chunk, steps = self._head
            self._head = None
        else:
            chunk, steps = next(self._chunks, (None, 0))
        return chunk, min(steps, num_steps)

    def position(self):
        """The position after the chunk handed out last, as JSON; a collective call."""
        if not self._saves:
            return None
        return _of_all_processes(_to_json(self._chunks.get_state()))

    def close(self):
        self._chunks.close()


def _to_json(value):
    """A position with bytes (grain's loaders have such) written as text."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: _to_json(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(x) for x in value]
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _from_json(value):
    if isinstance(value, dict):
        if set(value) == {"base64"}:
            return base64.b64decode(value["base64"])
        return {name: _from_json(x) for name, x in value.items()}
    return [_from_json(x) for x in value] if isinstance(value, list) else value


def _of_all_processes(position):
    """One position if all processes are at the same, else one for each."""
    if jax.process_count() == 1:
        return [position]
    text = np.frombuffer(json.dumps(position, sort_keys=True).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    texts = [
        bytes(row[:size]) for row, size in zip(np.asarray(rows), sizes, strict=True)
    ]
    positions = [json.loads(text) for text in texts]
    return positions[:1] if len(set(texts)) == 1 else positions


def _of_this_process(positions):
    if len(positions) == 1:
        return _from_json(positions[0])
    if len(positions) != jax.process_count():
        raise ValueError(
            f"data was saved at different positions by {len(positions)} processes, and"
            f" cannot be resumed by {jax.process_count()}. ensjax.data.stream has one"
            " position for any number of processes."
        )
    return _from_json(positions[jax.process_index()])
