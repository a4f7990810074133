"""Blocks of tensors of many checkpoints, of which little is in memory at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.interop.weight_folders import WeightFolder

# Smaller blocks cost more in calls than they save in memory.
_LEAST_BYTES = 16 * 2**20
# Larger ones are not faster.
_MOST_BYTES = 256 * 2**20
# Arrays of the size of a block of all members in float32 that are alive together: what
# is read, what is compared with the base, copies and temporaries of the program.
_COPIES = 16


def memory_for_blocks(largest: int) -> int:
    """Bytes that blocks may take: two tensors of `largest` bytes, 16 to 256 MiB.

    The rest of three tensors is for counts, hashes and the programs.
    """
    return min(max(2 * largest, _LEAST_BYTES), _MOST_BYTES)


class Blocks:
    """Entries of one tensor of all members, and of the base, in float32.

    Attributes:
        members: their weights.
        base: or None.
        size: entries of a block, a power of two.
    """

    def __init__(
        self,
        members: Sequence[WeightFolder],
        base: WeightFolder | None,
        *,
        memory: int,
        allow_non_finite: bool = False,
        left_out: Mapping[str, Sequence[int]] | None = None,
        report: Callable[[int], None] = lambda count: None,
    ):
        """Reads nothing yet.

        Args:
            members: their weights.
            base: or None.
            memory: bytes that a block and what is made of it may take.
            allow_non_finite: whether NaN and infinity are let through.
            left_out: by name, places of members of weight 0. What is not finite there
                is let through, and read as 0: 0 times NaN would be NaN.
            report: called with the number of bytes read.
        """
        self.members, self.base = list(members), base
        self._left_out = left_out or {}
        self._allow, self._report = allow_non_finite, report
        entries = memory // (4 * _COPIES * (len(self.members) + 1))
        self.size = 2 ** max(int(math.log2(max(entries, 1))), 10)

    def ranges(self, spec: TensorSpec, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Starts and ends of a tensor's blocks, each a multiple of some entries."""
        step = max(self.size // multiple, 1) * multiple
        for start in range(0, spec.size, step):
            yield start, min(start + step, spec.size)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` of all members, `[member, entry]`.

        Raises:
            WeightsError: if one is not finite, of a member that is not left out; names
                the tensor and the folder.
        """
        rows = np.empty((len(self.members), stop - start), np.float32)
        left_out = self._left_out.get(name, ())
        for place, (row, folder) in enumerate(zip(rows, self.members)):
            self._read(row, folder, name, start, stop)
            if place in left_out:
                row[~np.isfinite(row)] = 0.0
            else:
                self._check(row, folder, name)
        return rows

    def origin(self, name: str, start: int, stop: int) -> np.ndarray | None:
        """The same entries of the base, `[entry]`; None where there is none."""
        if self.base is None:
            return None
        row = np.empty(stop - start, np.float32)
        self._read(row, self.base, name, start, stop)
        self._check(row, self.base, name)
        return row

    def moved(self, name: str, start: int, stop: int) -> np.ndarray:
        """What members have added to the base, `[member, entry]`; without one, rows."""
        rows = self.rows(name, start, stop)
        origin = self.origin(name, start, stop)
        if origin is not None:
            rows -= origin
        return rows

    def _read(self, row, folder, name, start, stop):
        values = folder.read_entries(name, start, stop)
        self._report(values.nbytes)
        with np.errstate(over="ignore"):  # float64 beyond float32 is found below
            row[:] = values

    def _check(self, row, folder, name):
        if not self._allow and not np.isfinite(row).all():
            raise WeightsError(
                f"tensor {name!r} of {folder.path} holds NaN or infinity; leave that"
                " folder out, or let it through (allow_non_finite)."
            )


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """`[..., entry]` with zeros up to a power of two, so that few programs compile.

    At least 1024 and, where there are not more, at most `size` entries.
    """
    count = rows.shape[-1]
    wanted = max(1 << max(count - 1, 0).bit_length(), 1024)
    wanted = count if count >= size else min(wanted, size)
    if wanted == count:
        return rows
    full = np.zeros((*rows.shape[:-1], wanted), rows.dtype)
    full[..., :count] = rows
    return full


def finite_blocks(blocks: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The blocks of a merge of finite numbers, whose results must be so.

    Raises:
        WeightsError: if one is not; names the tensor.
    """
    for block in blocks:
        if not np.isfinite(block).all():
            raise WeightsError(
                f"tensor {name!r} is not finite once merged, although what is merged"
                " is; choose smaller knobs (weights, lam), or let it through"
                " (allow_non_finite)."
            )
        yield block


def cast_block(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A merged block in the type that is written.

    Raises:
        WeightsError: if a finite number is beyond that type; names the tensor.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    wide = cast.astype(np.float32)
    if not np.isfinite(wide).all() and np.isfinite(values).all():
        raise WeightsError(
            f"tensor {name!r} is beyond {dtype.name} once merged; write it in a wider"
            " type (dtype)."
        )
    return cast
