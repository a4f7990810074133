"""Where the weights of one unit lie in a tensor, in PyTorch's and in Flax's layout."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Units(NamedTuple):
    """A tensor seen as `[outer, unit, inner]`, in row-major order.

    Attributes:
        outer: product of the axes before the units'.
        count: how many units.
        inner: product of the axes behind.
    """

    outer: int
    count: int
    inner: int


LAYOUTS = ("torch", "flax")


def units_of(shape: Sequence[int], scope: str | None, layout: str) -> Units:
    """How a tensor falls into vectors.

    Args:
        shape: of the tensor.
        scope: "output" or "input": vectors of one output or one input unit. Others, and
            tensors with fewer than two axes: all entries are one vector.
        layout: "torch", `[out, in, *tap]`, or "flax", `[*tap, in, out]`.
    """
    if scope not in ("output", "input") or len(shape) < 2:
        return Units(1, 1, math.prod(shape))
    axis = {"torch": 0, "flax": len(shape) - 1}[layout]
    if scope == "input":
        axis += 1 if layout == "torch" else -1
    return Units(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
