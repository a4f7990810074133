"""How many members of a device run at once: what may be asked for, and the fixed rule.

The rule looks at platform and shapes alone, so that a run is a function of its config.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mesh import tracing_platform

MAX_UNROLLED_MEMBERS = 16

_at_once = jax.make_user_context(default_value=1)

# A larger member fills a core's cache and both cores alone: running it beside others
# gains nothing. Smaller ones share the work of starting operations and their threads,
# up to about the shared cache. Measured on two CPU cores with MLPs of 0.1 and 4 MB
# and a ViT of 2 MB a member (`ensjax bench engine`).
_CPU_MEMBER_BYTES = 512 * 1024
_CPU_TOTAL_BYTES = 40 * 1024**2


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the local members of a device run.

    Attributes:
        block: "auto", or how many members run at once (None: all of them).
        unroll: one member after the other without a loop, for at most 16 local members.
    """

    block: int | str | None = "auto"
    unroll: bool = False

    def __post_init__(self):
        if self.block is None or self.block == "auto":
            return
        if isinstance(self.block, bool) or not isinstance(self.block, int):
            raise ValueError(
                f'block must be "auto", None (all members at once) or a positive'
                f" integer; got {self.block!r}."
            )
        if self.block < 1:
            raise ValueError(f"block must be at least 1; got {self.block}.")

    def rows(self, num_members: int, num_devices: int) -> int:
        """Rows of the padded stack: whole blocks on every device."""
        unit = num_devices
        if isinstance(self.block, int) and not self.unroll:
            unit *= self.block
        return math.ceil(num_members / unit) * unit


def check_unrolled(blocks: Blocks, local_members: int) -> None:
    """Raises `ValueError` where more members would be unrolled than is sensible."""
    if blocks.unroll and local_members > MAX_UNROLLED_MEMBERS:
        raise ValueError(
            f"unroll=True writes every local member into the program, which is refused"
            f" above {MAX_UNROLLED_MEMBERS}; there are {local_members} on each device."
            " Use block=1, which is a compiled loop."
        )


@contextlib.contextmanager
def tracing_at_once(count: int) -> Iterator[None]:
    """Says how many members the enclosed tracing maps (see `tracing_members`)."""
    with _at_once(count):
        yield


def tracing_members() -> int:
    """How many members of a stack the engine runs at once in the program being traced.

    One where it runs them one by one, and outside of it. An operation that is fast for
    one member and slow for a stack, or the other way round, may ask.
    """
    return _at_once.value


def auto_block(
    one: Callable[[Any], Any], stacks: Any, local_members: int
) -> int | None:
    """How many members run at once when `block="auto"`.

    A rule of platform and shapes alone, so that a run is a function of its config: one
    member runs without `vmap`, and accelerators run all at once. A CPU runs members
    with convolutions, or with more than 512 KiB of arguments and largest floating
    intermediate of a step, one at a time, and of smaller ones as many as fit 40 MiB.

    Args:
        one: function of the mapped arguments of one member.
        stacks: the mapped arguments, leaves `[member, ...]`.
        local_members: members on this device.

    Returns:
        A divisor of `local_members`, or None for all at once.
    """
    if local_members == 1:
        return 1  # products of a stack of one are slower than those of a member
    if tracing_platform() != "cpu":
        return None
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacks)
    footprint = _Footprint()
    footprint.visit(jax.make_jaxpr(one)(single).jaxpr, in_loop=False)
    if footprint.has_convolution:
        return 1
    arguments = sum(_bytes(x) for x in jax.tree.leaves(single))
    member_bytes = max(1, arguments + footprint.largest())
    if member_bytes > _CPU_MEMBER_BYTES:
        return 1
    limit = _CPU_TOTAL_BYTES // member_bytes
    if limit >= local_members:
        return None
    return max(k for k in range(1, limit + 1) if local_members % k == 0)


class _Footprint:
    """The largest floating intermediate of a jaxpr, and whether it convolves.

    Where there is a loop of matrix products or convolutions only its body counts: that
    is where a program spends its time. What else loops, and integers, such as the
    orders of data, do not: they are not part of a step.
    """

    def __init__(self):
        self.has_convolution = False
        self._largest = {True: 0, False: 0}

    def largest(self):
        return self._largest[True] or self._largest[False]

    def visit(self, jaxpr, in_loop):
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            self.has_convolution |= name == "conv_general_dilated"
            sizes = [_float_bytes(v.aval) for v in eqn.outvars]
            self._largest[in_loop] = max(self._largest[in_loop], *sizes, 0)
            bodies = [inner for inner, _ in inner_jaxprs(eqn)]
            is_loop = name in ("while", "scan")
            if is_loop and not any(map(_multiplies, bodies)):
                continue
            for inner in bodies:
                self.visit(inner, in_loop or is_loop)


def inner_jaxprs(eqn: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The jaxprs that one equation runs, and the constants of each."""
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner, getattr(value, "consts", ())


def _multiplies(jaxpr) -> bool:
    """Whether a matrix product or a convolution is in it, at any depth."""
    return any(
        eqn.primitive.name in ("dot_general", "conv_general_dilated")
        or any(_multiplies(inner) for inner, _ in inner_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


def _float_bytes(aval) -> int:
    is_float = jnp.issubdtype(getattr(aval, "dtype", np.int32), jnp.floating)
    return _bytes(aval) if is_float else 0


def _bytes(aval) -> int:
    if not hasattr(aval, "dtype"):
        return 0
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)
