"""Where tensors come from: folders, files and state dicts, read by name when asked."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ensjax.interop.weight_folders import WeightFolder, open_weights
from ensjax.interop.whole_weights import check_names

Source = str | os.PathLike | Mapping[str, Any]


class Tensors(Mapping):
    """NumPy arrays by name, of a folder or a state dict.

    Attributes:
        shapes: by name, known without reading.
        ties: those names that are only second names in a file.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        ties: Mapping[str, str] | None = None,
    ):
        self.shapes, self.ties = shapes, ties or {}
        self._read = read

    def __getitem__(self, name):
        return self._read(name)

    def __contains__(self, name):
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


@contextlib.contextmanager
def open_source(source: Source) -> Iterator[Tensors]:
    """The tensors of a folder or file (as for `open_weights`) or of a mapping.

    Raises:
        TypeError: if `source` is something else.
        ValueError: if there are no weights, they are damaged, quantized, or factors
            of an adapter.
    """
    if isinstance(source, Mapping):
        check_names("the mapping", source)
        shapes = {name: tuple(np.shape(x)) for name, x in source.items()}
        yield Tensors(shapes, lambda name: _as_numpy(name, source[name]))
    elif isinstance(source, (str, os.PathLike)):
        with open_weights(source) as folder:
            yield Tensors(_folder_shapes(folder), folder.read, folder.ties)
    else:
        raise TypeError(
            "a checkpoint is a folder, a file, or a mapping from names to arrays; got"
            f" {type(source).__name__}."
        )


def _folder_shapes(folder: WeightFolder):
    names = [*folder.specs, *folder.ties]
    return {name: tuple(folder.spec(name).shape) for name in names}


def _as_numpy(name, value):
    """An array, also of a tensor of PyTorch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy's conversion has no such type
            bits = value.contiguous().view(dtype=_torch_int16(value)).numpy()
            return bits.view(jnp.bfloat16)
        return value.numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(f"{name} must be an array; got {type(value).__name__}.")
    return array


def _torch_int16(tensor):
    import torch  # there is a tensor of it

    del tensor
    return torch.int16
