"""Data that does not fit on the device: batches that stream, with a saved position.

`stream` reads arrays or a data source through grain; `as_batches` takes any iterable of
batches, such as a PyTorch loader, and checks that they agree. `prefetch.py` makes
chunks for the compiled loop out of either.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def stream(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 0,
):
    """A grain dataset of NumPy batches, whose iterators save and restore their place.

    Each epoch has its own order, keyed by (seed, epoch). The global batch of each step
    is split in order over the processes: concatenated over processes it is the batch of
    a single process, so a saved position fits any number of processes. An epoch has
    `num_examples // batch_size` steps; the rest of its order is dropped.

    Args:
        source: arrays with a leading example axis (a tuple, list or dict of them, also
            memory-mapped ones), or a grain data source: `len(source)` and
            `source[int]`, which gives one example.
        batch_size: examples of the global batch.
        seed: of the orders, from 0 to 2^32 - 1.
        shuffle: otherwise examples come in the source's order in every epoch.
        num_epochs: None: without end.
        process_index, process_count: which part of every batch this process reads.
        num_threads: batches that are read at the same time; 0 is right for arrays in
            memory, more for slow sources.

    Returns:
        A `grain.IterDataset`; its batches have the source's structure, leaves
        `[batch_size // process_count, ...]`. `iter()` of it has `get_state` (a small
        JSON-able dict) and `set_state`.

    Raises:
        ValueError: if the source is empty, its arrays differ in length, or the batch
            does not fit the data or the processes.
    """
    import grain

    num_examples, read = _reader(source)
    if not 0 < batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be from 1 to the {num_examples} examples of the source;"
            f" got {batch_size}."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size must divide over process_count={process_count}; got"
            f" {batch_size}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be from 0 to {process_count - 1}; got {process_index}."
        )
    local_size = batch_size // process_count
    part = slice(process_index * local_size, (process_index + 1) * local_size)
    # Row numbers travel through grain and examples are read at the end, so a process
    # never reads the others' part and arrays are gathered a batch at a time.
    rows = grain.MapDataset.range(num_examples)
    if shuffle:
        rows = rows.shuffle(seed=seed)
    rows = rows.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    batches = rows.repeat(num_epochs).map(lambda batch_rows: read(batch_rows[part]))
    return batches.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    )


_END = object()


class Batches:
    """Iterator over checked NumPy batches; made by `as_batches`."""

    def __init__(self, iterable, num_epochs):
        if num_epochs is not None and num_epochs < 1:
            raise ValueError(
                f"num_epochs must be at least 1 or None; got {num_epochs}."
            )
        self._iterable = iterable
        self._num_epochs = num_epochs
        self._iterator = iter(iterable)
        if self._iterator is iterable and num_epochs != 1:
            raise ValueError(
                f"num_epochs={num_epochs} needs something that can be started again;"
                f" a {type(iterable).__name__} is used up after one pass. Pass the"
                " loader itself (not iter(loader)), or num_epochs=1."
            )
        self._epoch = 0
        self._has_batch = False  # in this epoch
        self._first_size = None
        self._signature = None
        self._warned = False

    def __iter__(self):
        return self

    def __next__(self):
        while True:
            batch = next(self._iterator, _END)
            if batch is _END:
                self._start_next_epoch()
                continue
            batch = jax.tree.map(np.asarray, batch)
            if self._is_whole(batch):
                self._has_batch = True
                return batch
            self._drop_last(batch)

    @property
    def can_save_position(self) -> bool:
        """True if the source's iterator has `get_state` and `set_state`, as grain's."""
        return hasattr(self._iterator, "get_state") and hasattr(
            self._iterator, "set_state"
        )

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was handed out.

        Raises:
            TypeError: if the source cannot say its position.
        """
        self._check_can_save_position()
        return {
            "epoch": self._epoch,
            "batch_size": self._first_size,
            "source": self._iterator.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after a position that `get_state` gave, here or in another run."""
        self._check_can_save_position()
        self._iterator = iter(self._iterable)
        self._iterator.set_state(state["source"])
        self._epoch, self._first_size = state["epoch"], state["batch_size"]
        # A position at an epoch's end is not an epoch without batches.
        self._has_batch = True

    def _start_next_epoch(self):
        if not self._has_batch:
            raise ValueError(
                f"the iterable of batches gave none in epoch {self._epoch}; check that"
                " the loader is not empty or already used up."
            )
        if self._num_epochs is not None and self._epoch + 1 >= self._num_epochs:
            raise StopIteration
        self._epoch += 1
        self._has_batch = False
        self._iterator = iter(self._iterable)

    def _is_whole(self, batch):
        """Checks one batch; False if it is shorter than the first."""
        size = _check_batch(batch)
        shapes = [
            (jax.tree_util.keystr(path), leaf.shape[1:], leaf.dtype)
            for path, leaf in jax.tree.leaves_with_path(batch)
        ]
        structure = jax.tree.structure(batch)
        if self._first_size is None:
            self._first_size = size
        if self._signature is None:
            self._signature = structure, shapes
        first_size = self._first_size
        first_structure, first_shapes = self._signature
        if structure != first_structure:
            raise ValueError(
                f"every batch must have the structure of the first, {first_structure};"
                f" one has {structure}."
            )
        for first, (name, shape, dtype) in zip(first_shapes, shapes, strict=True):
            if first[1:] != (shape, dtype):
                raise ValueError(
                    f"{_batch_leaf(name)} changed from {first[2]} of shape [batch,"
                    f" *{first[1]}] to {dtype} of shape [batch, *{shape}]; one compiled"
                    " program needs equal batches. Pad or cast in the loader."
                )
        if size > first_size:
            raise ValueError(
                f"every batch must have the {first_size} examples of the first; one has"
                f" {size}."
            )
        return size == first_size

    def _drop_last(self, batch):
        size, first_size = len(jax.tree.leaves(batch)[0]), self._first_size
        if next(self._iterator, _END) is not _END:
            name = jax.tree_util.keystr(jax.tree.leaves_with_path(batch)[0][0])
            raise ValueError(
                f"{_batch_leaf(name)} has {size} examples and the first batch had"
                f" {first_size}; only the last batch of an epoch may be short."
            )
        if not self._warned:
            warnings.warn(
                f"the last batch of an epoch has {size} examples instead of"
                f" {first_size} and is dropped, here and in later epochs.",
                stacklevel=3,
            )
        self._warned = True

    def _check_can_save_position(self):
        if not self.can_save_position:
            raise TypeError(
                f"a {type(self._iterator).__name__} cannot save its position: it has no"
                " get_state and set_state. Use ensjax.data.stream, or a grain loader."
            )


def as_batches(iterable: Iterable[Any], *, num_epochs: int | None = 1) -> Batches:
    """Any iterable of batches as an iterator of equal NumPy batches.

    PyTorch loaders, Hugging Face iterators, generators and grain datasets are such:
    every leaf is converted by `np.asarray`. All batches must agree in structure, leaf
    shapes and dtypes. A last batch of an epoch that is shorter is dropped with one
    warning: one compiled program takes one size.

    Args:
        iterable: of tuples, lists or dicts of arrays `[batch, ...]`.
        num_epochs: passes over it; None: without end. An iterator that cannot be
            started again allows 1 only.

    Returns:
        An iterator with `get_state`, `set_state` and `can_save_position`.

    Raises:
        ValueError: while iterating, if an epoch is empty or a batch differs from the
            first; the message names the leaf.
    """
    return Batches(iterable, num_epochs)


def _reader(source):
    """The number of examples, and a function of row numbers that reads a batch."""
    if isinstance(source, (tuple, list, dict)) or hasattr(source, "shape"):
        num_examples = _check_batch(source, of="the source")
        # Device arrays come to the host once; memory maps stay where they are.
        source = jax.tree.map(
            lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, source
        )
        return num_examples, lambda rows: jax.tree.map(
            lambda x: np.asarray(x[rows]), source
        )
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            "source must be arrays (a tuple or dict of them) or have __len__ and"
            f" __getitem__; got {type(source).__name__}. For an iterator: as_batches."
        )
    if len(source) == 0:
        raise ValueError("the source must hold at least one example; its length is 0.")

    def read(rows):
        examples = [source[int(row)] for row in rows]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)

    return len(source), read


def _check_batch(batch, of="the batch"):
    """The common length of all leaves; raises if there is none."""
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(batch)
    ]
    if not leaves:
        raise ValueError(f"{of} must hold at least one array; it is {batch!r}.")
    first_name, first = leaves[0]
    for name, leaf in leaves:
        if np.ndim(leaf) == 0 or leaf.shape[0] == 0:
            raise ValueError(
                f"leaf{name} of {of} must have a leading example axis with at least one"
                f" example; got shape {np.shape(leaf)}."
            )
        if leaf.shape[0] != first.shape[0]:
            raise ValueError(
                f"all arrays of {of} must have one row per example; leaf{first_name}"
                f" has {first.shape[0]} and leaf{name} has {leaf.shape[0]}."
            )
    return first.shape[0]


def _batch_leaf(name):
    return f"batch{name}"
