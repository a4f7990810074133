"""safetensors written piece by piece, in shards with an index.

The library writes a shard from tensors that are all in memory; here the header is
written first, from shapes, and entries follow as they are made.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensjax.interop.tensor_types import CODES, TensorSpec, WeightsError, bytes_of

MAX_SHARD_SIZE = "5GB"


class WrittenFile(NamedTuple):
    """A file with its size and SHA-256."""

    name: str
    size: int
    sha256: str


class Shard(NamedTuple):
    """A file to be written and the tensors in it, in its order."""

    name: str
    tensors: list[str]


class WeightWriter:
    """Tensors written in the order of `order`, each a piece at a time.

    A context manager: shards are closed when it ends, and the index is written if
    nothing went wrong.

    Attributes:
        order: names in the order in which they must be written.
        shards: the files.
        files: those that are whole, with their hashes.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, TensorSpec],
        *,
        stem: str = "model",
        max_shard_size: str | int = MAX_SHARD_SIZE,
        metadata: Mapping[str, str] | None = None,
        ties: Mapping[str, str] | None = None,
    ):
        """Plans the shards; writes nothing.

        Args:
            folder: that exists.
            specs: of every tensor.
            stem: `model` for files such as `model.safetensors`.
            max_shard_size: such as `5GB`; a tensor that is larger has a shard alone.
            metadata: strings for every shard; by default `{"format": "pt"}`, without
                which `transformers` reads no file.
            ties: second names of tensors, noted in the metadata as
                `safetensors.torch.save_model` notes them.

        Raises:
            WeightsError: if a type has no code in the format.
        """
        for name, spec in specs.items():
            if spec.dtype not in CODES:
                raise WeightsError(
                    f"tensor {name!r} has type {spec.dtype}, which safetensors cannot"
                    f" hold; it holds {', '.join(d.name for d in CODES)}."
                )
        self._folder, self._specs, self._stem = folder, dict(specs), stem
        self._metadata = {"format": "pt"} if metadata is None else dict(metadata)
        self._ties = dict(ties or {})
        self.shards = _shards(self._specs, stem, bytes_of(max_shard_size))
        self.order = [name for shard in self.shards for name in shard.tensors]
        self.files: list[WrittenFile] = []
        self._place = 0  # in `order`
        self._left = 0  # bytes of the tensor that is being written
        self._file: Any = None
        self._hash: Any = None
        self._size = 0

    @property
    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self._specs.values())

    def write(self, name: str, values: np.ndarray) -> None:
        """Appends entries of a tensor, in row-major order.

        Raises:
            OSError: if the disk is full.
        """
        if self._left == 0:
            self._begin(name)
        assert name == self.order[self._place], (name, self.order[self._place])
        assert values.dtype == self._specs[name].dtype, (values.dtype, name)
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._put(flat)
        self._left -= flat.size
        assert self._left >= 0, name
        if self._left == 0:
            self._place += 1
            self._end_if_whole()

    def __enter__(self) -> "WeightWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            assert self._place == len(self.order), self.order[self._place]
            if len(self.shards) > 1:
                self._write_index()

    def _begin(self, name):
        self._left = self._specs[name].nbytes
        shard = next(s for s in self.shards if name in s.tensors)
        if self._file is None:
            self._open(shard)

    def _open(self, shard):
        header: dict[str, Any] = {}
        kept = {a: k for a, k in self._ties.items() if k in shard.tensors}
        if self._metadata or kept:
            header["__metadata__"] = self._metadata | kept
        offset = 0
        for name in shard.tensors:
            spec = self._specs[name]
            header[name] = {
                "dtype": CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.nbytes],
            }
            offset += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        self._file = open(self._folder / shard.name, "xb")  # noqa: SIM115
        self._hash, self._size = hashlib.sha256(), 0
        self._put(len(text).to_bytes(8, "little") + text)

    def _put(self, data):
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def _end_if_whole(self):
        shard = self.shards[len(self.files)]
        if self.order[self._place - 1] != shard.tensors[-1]:
            return
        sync(self._file)
        self._file.close()
        self._file = None
        found = WrittenFile(shard.name, self._size, self._hash.hexdigest())
        self.files.append(found)

    def _write_index(self):
        index = {
            "metadata": {"total_size": self.total_size},
            "weight_map": {
                name: shard.name for shard in self.shards for name in shard.tensors
            },
        }
        index["weight_map"] = dict(sorted(index["weight_map"].items()))
        text = json.dumps(index, indent=2) + "\n"
        name = f"{self._stem}.safetensors.index.json"
        self.files.append(write_text(self._folder / name, text))


def _shards(specs, stem, most):
    """Tensors in their order, in as many files as are needed."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.nbytes
    names = [f"{stem}.safetensors"]
    if len(groups) > 1:
        count = len(groups)
        names = [
            f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
        ]
    # Wide types first, so that every tensor lies at a multiple of its entry's size.
    return [
        Shard(name, sorted(group, key=lambda n: -specs[n].dtype.itemsize))
        for name, group in zip(names, groups)
    ]


def sync(file: Any) -> None:
    """Has the file's bytes on disk, so that a rename never comes before them."""
    file.flush()
    os.fsync(file.fileno())


def write_text(path: Path, text: str) -> WrittenFile:
    """Writes a small file, to the disk itself."""
    data = text.encode()
    with open(path, "xb") as file:
        file.write(data)
        sync(file)
    return WrittenFile(path.name, len(data), hashlib.sha256(data).hexdigest())


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
