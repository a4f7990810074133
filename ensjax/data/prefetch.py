"""Chunks of batches for the compiled loop, made ready on a background thread.

batches = as_batches(stream((x, y), batch_size=64, seed=0))
with prefetch_chunks(batches, steps_per_chunk=50) as chunks:
    for chunk in chunks:  # leaves [batch, step, ...]
        state = advance(state, chunk)
        position = chunks.get_state()  # after this chunk, whatever is read ahead
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def stack_steps(batches: list[Any]) -> Any:
    """Batches of leaves `[batch, ...]` as one chunk of leaves `[batch, step, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)


class PrefetchedChunks:
    """Iterator over chunks that a thread prepares; made by `prefetch_chunks`."""

    def __init__(self, batches, steps_per_chunk, num_ahead, place):
        self._batches = batches
        self._steps_per_chunk = steps_per_chunk
        self._place = place
        self._saves = getattr(
            batches, "can_save_position", hasattr(batches, "get_state")
        )
        self._state = batches.get_state() if self._saves else None
        self._finished = False
        self._stop = threading.Event()
        self._queue = queue.Queue(maxsize=num_ahead)
        self._thread = threading.Thread(
            target=self._work, name="ensjax-prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._finished:
            raise StopIteration
        kind, value, state = self._queue.get()
        if kind == "chunk":
            self._state = state
            return value
        self.close()
        if kind == "error":
            raise value
        raise StopIteration

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def get_state(self) -> dict[str, Any]:
        """The source's position after the last chunk handed out, not the last read.

        Raises:
            TypeError: if the source cannot save its position.
        """
        if not self._saves:
            raise TypeError(
                f"a {type(self._batches).__name__} cannot save its position; use"
                " ensjax.data.stream, or a grain loader."
            )
        return self._state

    def close(self) -> None:
        """Stops the thread and waits for it; chunks that were not taken are lost.

        It waits for the batch that is being read, since a read cannot be broken off.
        """
        self._finished = True
        self._stop.set()
        self._thread.join()

    def _work(self):
        try:
            for chunk, state in self._chunks():
                if not self._put(("chunk", chunk, state)):
                    return
            self._put(("end", None, None))
        except BaseException as error:  # handed to the caller, whatever it is
            self._put(("error", error, None))

    def _chunks(self):
        steps = []
        for batch in self._batches:
            if self._stop.is_set():
                return
            steps.append(batch)
            if len(steps) == self._steps_per_chunk:
                yield self._finish(steps)
                steps = []
        if steps:
            yield self._finish(steps)

    def _finish(self, steps):
        state = self._batches.get_state() if self._saves else None
        return self._place(stack_steps(steps)), state

    def _put(self, item):
        # Waiting without end would keep the thread alive after `close`.
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def prefetch_chunks(
    batches: Iterator[Any],
    *,
    steps_per_chunk: int,
    num_ahead: int = 2,
    place: Callable[[Any], Any] = lambda chunk: chunk,
) -> PrefetchedChunks:
    """Chunks of `steps_per_chunk` batches, made ready on a background thread.

    An exception in the loader is raised by the `next` that would have returned the
    failed chunk, after all chunks before it. Use it as a context manager: leaving it
    stops the thread, also while the loader is still full.

    Args:
        batches: iterator of equal batches, `[batch, ...]` (see `as_batches`). Nobody
            else may advance it from here on.
        steps_per_chunk: batches per chunk. If they end inside a chunk, the last chunk
            has fewer steps.
        num_ahead: chunks that may wait ready; that many, one in the making and one in
            use are in memory.
        place: called on each chunk on the thread, such as a `device_put`.

    Returns:
        An iterator over chunks with leaves `[batch, step, ...]`; `get_state()` is the
        position after the last chunk handed out, for `batches.set_state`.

    Raises:
        ValueError: if `steps_per_chunk` or `num_ahead` is below 1.
    """
    if steps_per_chunk < 1 or num_ahead < 1:
        raise ValueError(
            "steps_per_chunk and num_ahead must be at least 1; got"
            f" {steps_per_chunk} and {num_ahead}."
        )
    return PrefetchedChunks(batches, steps_per_chunk, num_ahead, place)
