"""Bytes on a device: of arrays by their shapes, of programs as they are compiled."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ensjax.mesh import platform

# How a TPU compiler says it; the second is of temporaries alone.
_OUT_OF_MEMORY = (
    r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm",
    r"required for .*? \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
)


class DoesNotFit(Exception):
    """The compiler itself says that a program does not fit its device.

    Attributes:
        needed_bytes: what it would need on a device at least, as the compiler says;
            None if it does not.
        limit_bytes: what a device has for programs; None if unknown.
    """

    def __init__(self, message: str):
        super().__init__(message)
        found = [m for pattern in _OUT_OF_MEMORY if (m := re.search(pattern, message))]
        sizes = [_compiler_bytes(text) for text in found[0].groups()] if found else []
        self.needed_bytes, self.limit_bytes = sizes or (None, None)


def _compiler_bytes(text) -> int:
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", text).groups()
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Bytes of one compiled program on one device.

    Attributes:
        name: "training", "evaluation" or "initial state".
        argument_bytes: what it is given.
        output_bytes: what it returns.
        temporary_bytes: what it needs in between.
        aliased_bytes: of the outputs, in the place of arguments.
        program_peak_bytes: the most it takes at a time, arguments and outputs included:
            the compiler's own peak for a TPU; elsewhere arguments + outputs +
            temporaries - aliased, which is what is allocated (the peak that XLA states
            for a CPU leaves temporaries out).
        beside_bytes: of arrays that are no arguments and stay on the device meanwhile,
            such as the members before training, and the evaluation's data.
        lower_seconds: to trace and lower it, on this machine.
        compile_seconds: to compile it, on this machine.
    """

    name: str
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    aliased_bytes: int
    program_peak_bytes: int
    beside_bytes: int
    lower_seconds: float
    compile_seconds: float

    @property
    def peak_bytes(self) -> int:
        """The most that is on the device while it runs."""
        return self.program_peak_bytes + self.beside_bytes


def compile_lowered(
    lowered: jax.stages.Lowered, options: dict[str, Any] | None = None
) -> tuple[Any, float]:
    """The compiled program, and the seconds that it took.

    `options` are the compiler's own.

    Raises:
        DoesNotFit: if the compiler finds that it does not fit its device.
    """
    start = time.perf_counter()
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text or "Ran out of memory" in text:
            raise DoesNotFit(text) from error
        raise
    return program, time.perf_counter() - start


def program_memory(
    name: str,
    program: Any,
    mesh: jax.sharding.Mesh,
    *,
    beside_bytes: int = 0,
    lower_seconds: float = 0.0,
    compile_seconds: float = 0.0,
) -> ProgramMemory:
    """What a compiled program takes on each device of its mesh."""
    stats = program.memory_analysis()
    peak = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )
    if platform(mesh) == "tpu":
        peak = stats.peak_memory_in_bytes
    return ProgramMemory(
        name=name,
        argument_bytes=stats.argument_size_in_bytes,
        output_bytes=stats.output_size_in_bytes,
        temporary_bytes=stats.temp_size_in_bytes,
        aliased_bytes=stats.alias_size_in_bytes,
        program_peak_bytes=peak,
        beside_bytes=beside_bytes,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
    )


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """What can still be taken on each device of a mesh that is here; None if unknown.

    The devices of a CPU share its memory in equal parts.
    """
    if platform(mesh) == "cpu":
        if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
            return None
        pages, size = (os.sysconf(n) for n in ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE"))
        return pages * size // mesh.devices.size
    free = []
    for device in mesh.devices.flat:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(free)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, by their shapes."""
    return sum(_bytes(x.shape, x.dtype) for x in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of all arrays of a tree, by shapes and shardings."""
    return sum(
        _bytes(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)
    )


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    itemsize = getattr(dtype, "itemsize", None) or np.dtype(dtype).itemsize
    return math.prod(shape) * itemsize
