"""The weights in a folder, or one file, of another framework: found, checked, read.

Nothing is read but headers until a tensor is asked for.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ensjax.interop.tensor_files import TensorFile, open_tensor_file
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.whole_weights import check_configs, check_names

# In the order in which they are looked for; safetensors before pickles.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "*.safetensors.index.json",
    "*.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "*.bin.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
)
# Beside the weights of a training run, and no weights.
_OTHERS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


class WeightFolder:
    """Tensors by name, read when they are asked for; made by `open_weights`.

    A context manager; after `close` nothing is read any more.

    Attributes:
        path: as it was given.
        files: of the weights, and the index where there is one.
        specs: shape and type by name, in the files' order. Tensors that are others
            under a second name are not among them.
        ties: such second names, and the names of what they are.
        metadata: strings of the files.
        layout: "torch" where a matrix is `[out, in]`, "flax" where it is `[in, out]`:
            by the metadata's `format`, and "torch" where that says nothing.
        notes: what a user should know.
    """

    def __init__(self, path: str, files: list[Path], homes: dict[str, TensorFile]):
        self.path = path
        self.files = files
        self._homes = homes
        opened = list({id(home): home for home in homes.values()}.values())
        self.specs: dict[str, TensorSpec] = {n: h.specs[n] for n, h in homes.items()}
        self.ties: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.notes: list[str] = []
        for home in opened:
            self.ties |= home.ties
            self.metadata |= home.metadata
            self.notes += home.notes
        is_flax = self.metadata.get("format") in ("flax", "ensjax")
        self.layout = "flax" if is_flax else "torch"

    def __contains__(self, name: str) -> bool:
        return name in self.specs or name in self.ties

    def spec(self, name: str) -> TensorSpec:
        """Of a tensor, by either of its names."""
        return self.specs[self.ties.get(name, name)]

    def read(self, name: str) -> np.ndarray:
        """One tensor, of its own type.

        Raises:
            WeightsError: if there is none of this name, or the file has become shorter.
        """
        spec = self._known(name)
        return self.read_entries(name, 0, spec.size).reshape(spec.shape)

    def read_entries(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` in row-major order, `[entry]`; as `read`."""
        size = self._known(name).size
        if not 0 <= start <= stop <= size:
            raise ValueError(
                f"entries {start} to {stop} of {name!r} were asked for; it has {size}."
            )
        name = self.ties.get(name, name)
        return self._homes[name].read_entries(name, start, stop)

    def close(self) -> None:
        """Lets go of the files."""
        self._homes = {}

    def __enter__(self) -> "WeightFolder":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _known(self, name):
        if name not in self:
            raise WeightsError(f"{self.path} holds no tensor {name!r}.")
        if not self._homes:
            raise WeightsError(f"{self.path} was closed; open it again.")
        return self.spec(name)


def open_weights(path: str | os.PathLike) -> WeightFolder:
    """The weights in a folder, or in one file, ready to be read tensor by tensor.

    Looked for are safetensors (one file, or shards with an index) and then files of
    PyTorch, which its safe loader must accept. Of safetensors and PyTorch's files in
    one folder the former are read.

    Args:
        path: a folder such as `save_pretrained` writes, or a file `.safetensors`,
            `.bin`, `.pt` or `.pth`, such as `ensjax export --format safetensors` or
            `torch.save(model.state_dict(), path)` write.

    Raises:
        WeightsError: if there are no weights or several, a shard is missing, files and
            index disagree, a file is damaged or unsafe, a package is missing, or
            numbers are factors of an adapter or quantized: by adapter_config.json or
            config.json in the folder or beside the file, or by a tensor's name.

    Example:
        >>> with open_weights("seed0/") as weights:
        ...     weights.read("classifier.weight").shape
        (3, 8)
    """
    given = os.fspath(path)
    place = Path(given)
    if place.is_file():
        is_index = place.name.endswith(".index.json")
        if not is_index and place.suffix not in _SUFFIXES:
            raise WeightsError(
                f"{given} must be a folder, or a file {', '.join(_SUFFIXES)}."
            )
    elif not place.is_dir():
        raise WeightsError(f"there is no folder or file {given}.")
    check_configs(given)
    if place.is_dir():
        place = _find(given, place)
    if place.name.endswith(".index.json"):
        return _open_sharded(given, place)
    file = open_tensor_file(place)
    _check_tensors(given, [*file.specs, *file.ties])
    return WeightFolder(given, [place], {name: file for name in file.specs})


def _find(given: str, folder: Path) -> Path:
    for pattern in _NAMES:
        found = sorted(
            path
            for path in folder.glob(pattern)
            if path.is_file() and not path.name.startswith((".", *_OTHERS))
        )
        if len(found) > 1:
            raise WeightsError(
                f"{given} holds several files of weights and no index:"
                f" {', '.join(path.name for path in found[:4])}. Name one of them."
            )
        if found:
            return found[0]
    raise WeightsError(
        f"{given} holds no weights; looked for were model.safetensors,"
        " model.safetensors.index.json, pytorch_model.bin and others ending in"
        f" {', '.join(_SUFFIXES)}."
    )


def _open_sharded(given: str, index: Path) -> WeightFolder:
    shards = _read_index(index)
    opened: dict[str, TensorFile] = {}
    for file in sorted(set(shards.values())):
        place = index.parent / file
        if Path(file).name != file:
            raise WeightsError(f"{index} names a file outside its folder: {file!r}.")
        if not place.is_file():
            missing = next(name for name, own in shards.items() if own == file)
            raise WeightsError(
                f"{given} lacks {file}, which {index.name} names for {missing!r} and"
                " others. Copy it again."
            )
        opened[file] = open_tensor_file(place)
    homes = {}
    for file, home in opened.items():
        for name in home.specs:
            if name not in shards:
                raise WeightsError(
                    f"{file} of {given} holds {name!r}, which {index.name} does not"
                    " name."
                )
    for name, file in shards.items():
        if name in opened[file].specs:
            homes[name] = opened[file]
        elif name not in opened[file].ties:
            raise WeightsError(
                f"{index.name} of {given} says that {file} holds {name!r}, but it does"
                " not."
            )
    _check_tensors(given, shards)
    paths = [index, *(home.path for home in opened.values())]
    return WeightFolder(given, paths, homes)


def _read_index(index: Path) -> dict[str, str]:
    try:
        shards = json.loads(index.read_text())["weight_map"]
        if not all(isinstance(file, str) for file in shards.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is no index of weights: it must be JSON with a weight_map from"
            " tensors to files."
        ) from error
    return shards


def _check_tensors(given: str, names: Collection[str]) -> None:
    if not names:
        raise WeightsError(f"{given} holds no tensor.")
    check_names(given, names)
