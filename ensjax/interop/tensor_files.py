"""One file of tensors, read a range of entries at a time.

safetensors files are checked by the library and then read at their offsets: so nothing
is mapped into memory, and the 8-bit types are read that the library has no NumPy arrays
for. PyTorch's files are read by its safe loader, which runs no code of the file, and
mapped.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ensjax.interop.tensor_types import DTYPES, TensorSpec, WeightsError


class TensorFile(Protocol):
    """A file of named tensors.

    Attributes:
        path: of the file.
        specs: by name, in the file's order.
        ties: names of tensors that are others under a second name, and those names.
        metadata: strings kept in the file.
        notes: what the user should know of the file.
    """

    path: Path
    specs: dict[str, TensorSpec]
    ties: dict[str, str]
    metadata: dict[str, str]
    notes: list[str]

    def read_entries(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` of a tensor in row-major order, `[entry]`."""


def open_tensor_file(path: Path) -> TensorFile:
    """Opens a file by its suffix.

    Raises:
        WeightsError: if it is damaged or unsafe, or a package is missing.
    """
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return TorchFile(path)


class SafetensorsFile:
    """A safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise WeightsError(
                f"{path} needs a package: pip install 'ensjax[safetensors]'"
            ) from error
        try:
            # The library finds headers that are torn, overlap or leave the file.
            with safe_open(path, framework="np") as opened:
                names = opened.offset_keys()
                self.metadata = dict(opened.metadata() or {})
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is damaged or truncated: {error}. Copy it again."
            ) from error
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        self._start = 8 + length
        self._offsets, specs = {}, {}
        for name in names:
            entry = header[name]
            if entry["dtype"] not in DTYPES:
                raise WeightsError(
                    f"tensor {name!r} of {path} has type {entry['dtype']}, which is"
                    f" packed; types that are read are {', '.join(DTYPES)}."
                )
            specs[name] = TensorSpec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            self._offsets[name] = entry["data_offsets"][0]
        self.specs: dict[str, TensorSpec] = specs
        # As `safetensors.torch.save_model` notes tensors that it leaves out.
        self.ties = {
            alias: kept
            for alias, kept in self.metadata.items()
            if kept in specs and alias not in specs and alias != "format"
        }

    def read_entries(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` of a tensor in row-major order, `[entry]`."""
        dtype = self.specs[name].dtype
        values = np.empty(stop - start, dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + self._offsets[name] + start * dtype.itemsize)
            view = memoryview(values.view(np.uint8))
            while view:
                count = file.readinto(view)
                if not count:
                    raise WeightsError(
                        f"{self.path} ends within tensor {name!r}; it was cut short"
                        " while it was read."
                    )
                view = view[count:]
        return values


class TorchFile:
    """A file of `torch.save` that holds a dict of tensors."""

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self.metadata: dict[str, str] = {}
        tensors = self._load(path)
        if not isinstance(tensors, Mapping):
            raise WeightsError(
                f"{path} must hold a dict of tensors; got {type(tensors).__name__}."
            )
        self._tensors, self.specs, self.ties, seen = {}, {}, {}, {}
        for name, tensor in tensors.items():
            self._check(name, tensor)
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            place += (tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if tensor.numel() and place in seen:
                self.ties[name] = seen[place]
                continue
            seen[place] = name
            self._tensors[name] = tensor.detach()
            dtype = _numpy_dtype(tensor.dtype)
            self.specs[name] = TensorSpec(tuple(tensor.shape), dtype)

    def _check(self, name: Any, tensor: Any) -> None:
        import torch

        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"{self.path} must hold a dict of tensors; its entry {name!r} is"
                f" {type(tensor).__name__}. Save the model's state_dict() alone."
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsError(
                f"tensor {name!r} of {self.path} is sparse or quantized; only plain"
                " ones are read."
            )
        if _numpy_dtype(tensor.dtype) is None:
            raise WeightsError(
                f"tensor {name!r} of {self.path} has type {tensor.dtype}; types that"
                f" are read are {', '.join(d.name for d in DTYPES.values())}."
            )

    def _load(self, path):
        try:
            import torch
        except ImportError as error:
            raise WeightsError(
                f"{path} needs PyTorch: pip install 'ensjax[interop]', or save the"
                " weights as safetensors."
            ) from error
        options = {"map_location": "cpu", "weights_only": True}
        try:
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                self.notes.append(
                    f"{path} is in PyTorch's format before 1.6 and is held in memory"
                    " whole; save it again to have it read piece by piece"
                )
                return torch.load(path, **options)
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{path} is not read: it holds more than tensors, and a pickle can run"
                " any code. Save the model's state_dict() alone, as safetensors if"
                " possible."
            ) from error
        except (RuntimeError, EOFError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise WeightsError(
                f"{path} is damaged, or no file of torch.save: {reason}"
            ) from error

    def read_entries(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` of a tensor in row-major order, `[entry]`."""
        import torch

        tensor = self._tensors[name]
        if tensor.is_contiguous():
            part = tensor.view(-1)[start:stop]
        else:  # only what is asked for is laid out anew
            index = np.unravel_index(np.arange(start, stop), tuple(tensor.shape))
            part = tensor[tuple(map(torch.from_numpy, index))]
        dtype = self.specs[name].dtype
        return part.contiguous().view(torch.uint8).numpy().view(dtype).copy()


def _numpy_dtype(dtype: Any) -> np.dtype | None:
    """NumPy's type of one of PyTorch; None if the format has none."""
    name = str(dtype).removeprefix("torch.")
    return next((d for d in DTYPES.values() if d.name == name), None)
