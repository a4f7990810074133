"""Which collectives a compiled program holds, along which mesh axes, and their bytes.

Read off the text of the compiled program, in which a collective names the devices that
it joins. Devices are numbered through the mesh, the last axis fastest.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from ensjax.mesh import AXES

OPERATIONS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_CALL = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+(\d+)(?:e\w+)?)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind along the same axes.

    Attributes:
        operation: such as "all-reduce".
        axes: mesh axes along which devices are joined, sorted.
        count: how many there are.
        result_bytes: of their results on one device, all together.
    """

    operation: str
    axes: tuple[str, ...]
    count: int
    result_bytes: int

    def times(self, factor: int) -> "Collective":
        """What a loop of so many rounds runs."""
        return dataclasses.replace(
            self, count=self.count * factor, result_bytes=self.result_bytes * factor
        )


def read_collectives(text: str, sizes: Sequence[int]) -> tuple[Collective, ...]:
    """The collectives in the text of a compiled program that join several devices.

    The body of a loop is written once, and so counted once.

    Args:
        text: of a compiled program, after all optimizations.
        sizes: devices along "member", "data" and "model".

    Returns:
        One entry for each operation and set of axes, in the order of the text.

    Raises:
        ValueError: if the groups of a collective cannot be read; shows the line.
    """
    found: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for line in text.splitlines():
        match = _CALL.search(line)
        if not match:
            continue
        result, operation, start = match.groups()
        axes = _axes_of(_groups_of(line), sizes)
        if axes:
            size = _result_bytes(result, operation, bool(start))
            found.setdefault((operation, axes), []).append(size)
    return tuple(
        Collective(operation, axes, len(each), sum(each))
        for (operation, axes), each in found.items()
    )


def _axes_of(groups, sizes) -> tuple[str, ...]:
    """The axes along which some group has more than one device."""
    groups = groups or [range(math.prod(sizes))]  # none is written: all devices
    axes = set()
    for group in groups:
        places = np.array(np.unravel_index(list(group), tuple(sizes)))
        axes |= {a for a, row in zip(AXES, places, strict=True) if len(set(row)) > 1}
    return tuple(sorted(axes))


def _groups_of(line):
    """The groups of devices that a collective joins; empty: all of them are one."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line)
    if pairs:
        return _braces(pairs.group(1))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    if listed:
        return _braces(listed.group(1))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}:]*)\}", line)
    if named:
        return _groups_of_named(*named.groups())
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    )
    if not iota:
        raise ValueError(
            "The groups of this collective cannot be read; the compiler is newer than"
            f" this version of ensjax: {line.strip()[:300]}"
        )
    shape, dims, order = (
        None if text is None else _numbers(text) for text in iota.groups()
    )
    devices = np.arange(math.prod(dims)).reshape(dims)
    devices = devices if order is None else devices.transpose(order)
    return devices.reshape(shape[0], -1).tolist()


def _groups_of_named(sizes_text, joined_text):
    """Groups in the notation `mesh['a'=4,'b'=2] {'b'}`."""
    sizes = [(name, int(n)) for name, n in re.findall(r"'(\w+)'=(\d+)", sizes_text)]
    joined = re.findall(r"'(\w+)'", joined_text)
    devices = np.arange(math.prod(n for _, n in sizes)).reshape([n for _, n in sizes])
    last = [k for k, (name, _) in enumerate(sizes) if name in joined]
    devices = np.moveaxis(devices, last, range(-len(last), 0))
    count = math.prod(devices.shape[devices.ndim - len(last) :])
    return devices.reshape(-1, count).tolist()


def _braces(text):
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text) if group]


def _numbers(text):
    return tuple(map(int, text.split(",")))


def _result_bytes(text, operation, is_start) -> int:
    """Bytes of the arrays in the type of a collective, such as `(f32[2,3], f32[])`."""
    sizes = [_array_bytes(*match.groups()) for match in _ARRAY.finditer(text)]
    if is_start and operation != "all-reduce":
        # The type of a start names operands before results; two u32[] may follow.
        if operation == "collective-permute" and len(sizes) > 2:
            sizes = sizes[:-2]
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _array_bytes(kind, bits, shape) -> int:
    bits = {"pred": 8, "bf16": 16}.get(kind) or int(bits)
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8
