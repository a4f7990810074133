"""What feeds the compiled loop: arrays that stay on the devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.mesh import place
from ensjax.train.numbers import integer


def is_resident(data: Any) -> bool:
    """True for arrays with a leading example axis, False for iterables of batches.

    A dict, an array, or a tuple or list of arrays are arrays; a list of tuples or dicts
    is a list of batches.
    """
    if hasattr(data, "shape") or isinstance(data, dict):
        return True
    if isinstance(data, list) and not all(hasattr(x, "shape") for x in data):
        return False
    return isinstance(data, (tuple, list)) and all(
        hasattr(leaf, "shape") for leaf in jax.tree.leaves(data)
    )


def check_arrays(name: str, tree: Any, *, takes_missing: Any = False) -> int:
    """The common length of arrays `[example, ...]`.

    Args:
        name: of the tree in messages.
        tree: the arrays.
        takes_missing: whether NaN may stand for what is missing, see
            `takes_missing_of`: one word for all leaves, or a tree that begins as `tree`
            does.

    Raises:
        TypeError: for what is not an array of numbers; names the leaf.
        ValueError: for no array, unequal lengths or values that are not finite.
    """
    counts = {}
    spread = jax.tree.map(
        lambda word, part: jax.tree.map(lambda _: word, part), takes_missing, tree
    )
    words = jax.tree.leaves(spread)
    for (path, leaf), may_miss in zip(
        jax.tree.leaves_with_path(tree), words, strict=True
    ):
        label = name + jax.tree_util.keystr(path)
        if not np.shape(leaf) or not np.shape(leaf)[0]:
            raise ValueError(
                f"{label} must be [example, ...] with at least one example; got shape"
                f" {np.shape(leaf)}."
            )
        counts[label] = np.shape(leaf)[0]
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if array.dtype.kind in "OSUMm":
            raise TypeError(
                f"{label} must hold numbers; got dtype {array.dtype}. Number the"
                " classes, for instance with np.unique(labels, return_inverse=True)."
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            continue
        values = np.asarray(array)
        if may_miss and np.isinf(values).any():
            raise ValueError(f"{label} holds infinite values.")
        if not may_miss and not np.isfinite(values).all():
            raise ValueError(
                f"{label} holds NaN or infinite values, which this loss cannot leave"
                " out. (NoiseCrps leaves out targets that are NaN, RolloutLoss and"
                " VariationalLoss states; so does a loss with takes_missing = True.)"
            )
    if not counts:
        raise ValueError(f"{name} holds no array.")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{k}: {v}" for k, v in counts.items())
        raise ValueError(f"{name} needs the same number of examples in all; {listed}.")
    return next(iter(counts.values()))


def takes_missing_of(loss: Any, data: Any) -> Any:
    """Where a loss leaves NaN out itself: its attribute `takes_missing`.

    True or False for all of the data, or for each of its parts in a tuple of them, such
    as `(False, True)` for pairs of inputs and targets.
    """
    words = getattr(loss, "takes_missing", False)
    if not isinstance(words, tuple):
        return words
    if not isinstance(data, (tuple, list)) or len(data) != len(words):
        return False
    parts = jax.tree.structure(data, is_leaf=lambda x: x is not data)
    return jax.tree.unflatten(parts, words)


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
    def of(
        cls,
        data,
        *,
        batch_size: int | None,
        mesh: Mesh,
        name: str = "data",
        takes_missing: Any = False,
    ):
        """Checks arrays and puts them on the devices.

        Raises:
            TypeError, ValueError: as `check_arrays`, or a batch does not fit.
        """
        num_examples = check_arrays(name, data, takes_missing=takes_missing)
        batch_size = (
            num_examples if batch_size is None else integer("batch_size", batch_size)
        )
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
        arrays = jax.tree.map(canonical, data)
        if name == "data":
            arrays = place(arrays, mesh, jax.P())
        return cls(arrays, batch_size, num_examples)

    def abstract(self) -> Any:
        """What the compiled program takes."""
        return self.arrays

    def chunks(self, position: Any, *, first_step: int, last_step: int):
        """The same arrays for every call."""
        del position, first_step, last_step
        return _Same(self.arrays)


def canonical(leaf):
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
