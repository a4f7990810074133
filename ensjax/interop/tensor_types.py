"""The types of tensors in files, and what is known of a tensor before it is read."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np

# Codes of the safetensors format. Numbers of fewer than 8 bits are packed, and no
# library gives them out as arrays.
_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "C64": np.complex64,
}
DTYPES = {code: np.dtype(kind) for code, kind in _TYPES.items()}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class WeightsError(ValueError):
    """Weights on disk that cannot be used, or not together; names tensor and folder."""


class TensorSpec(NamedTuple):
    """Shape and type of a tensor on disk.

    Attributes:
        shape: as in the file.
        dtype: of NumPy, with those of `ml_dtypes`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes on disk."""
        return self.size * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether it holds real floating numbers, and so is merged."""
        return is_floating(self.dtype)

    def __str__(self):
        return f"{self.dtype.name}{list(self.shape)}"


def is_floating(dtype: np.dtype) -> bool:
    """Whether a type is real and floating, those of `ml_dtypes` included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype in CODES)


def dtype_named(name: str) -> np.dtype:
    """The floating type of a name such as `bfloat16`.

    Raises:
        ValueError: if there is no such type in the format.
    """
    named = {dtype.name: dtype for dtype in CODES if is_floating(dtype)}
    if name not in named:
        raise ValueError(f"dtype is one of {', '.join(named)}; got {name!r}.")
    return named[name]


def main_dtype(specs: Iterable[TensorSpec]) -> np.dtype | None:
    """The type of most floating entries; None where there is none."""
    entries: dict[np.dtype, int] = {}
    for spec in specs:
        if spec.is_floating:
            entries[spec.dtype] = entries.get(spec.dtype, 0) + spec.size
    return max(entries, key=lambda dtype: entries[dtype], default=None)


def bytes_text(count: int) -> str:
    """A number of bytes to be read by a human, such as `584 B` or `1.25 GB` (10^9)."""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


def bytes_of(text: str | int) -> int:
    """A number of bytes from `5GB` (10^9), `200MiB` (2^20) or an integer.

    Raises:
        ValueError: if it is none, or below 1.
    """
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    units |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, factor = str(text).strip(), 1
    for unit, value in units.items():
        if number.lower().endswith(unit.lower()):
            number, factor = number[: -len(unit)].strip(), value
            break
    try:
        found = int(float(number) * factor)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise ValueError(f"a size is such as 5GB, 200MiB or 1000000; got {text!r}.")
    return found
