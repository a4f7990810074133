"""Values of knobs that no streamed merge can use, refused before anything is read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Knobs that are one number, and from where to where it lies.
_NUMBERS = {
    "lam": (-np.inf, np.inf),
    "t": (0.0, 1.0),
    "parallel": (0.0, 1.0),
    "floor": (0.0, np.inf),
    "tolerance": (0.0, np.inf),
    "num_iterations": (1, np.inf),
}
# Those that are one number, or one for each member.
_RANGES = {
    "density": (0.0, 1.0),
    "drop": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "epsilon": (0.0, 0.5),
}
# Sums and quotients of weights within stay within float32.
_SMALLEST, _LARGEST = 1e-30, 1e30


def check_knobs(method: str, knobs: Mapping[str, Any]) -> None:
    """Raises `ValueError` for numbers that are not finite or out of range; names them.

    Shapes `[member]` are left to the method.
    """
    for name, value in knobs.items():
        if value is None or name not in (*_NUMBERS, *_RANGES, "weights"):
            continue
        try:
            known = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be a number; got {value!r}.") from error
        if name in _NUMBERS and known.ndim:
            raise ValueError(f"{name} must be one number; got {known.tolist()}.")
        if not np.isfinite(known).all():
            raise ValueError(f"{name} must be finite; got {known.tolist()}.")
        if name == "weights":
            _check_sizes(known)
            continue
        low, high = (_NUMBERS | _RANGES)[name]
        if name == "t" and method == "nearswap":  # the largest step, no place
            high = np.inf
        if not ((known >= low) & (known <= high)).all():
            upper = f"lie from {low:g} to {high:g}"
            limits = upper if np.isfinite(high) else f"be at least {low:g}"
            raise ValueError(f"{name} must {limits}; got {known.tolist()}.")
        if (np.abs(known) > np.finfo(np.float32).max).any():
            raise ValueError(f"{name} must fit float32; got {known.tolist()}.")


def _check_sizes(weights):
    sizes = np.abs(weights[weights != 0])
    if ((sizes < _SMALLEST) | (sizes > _LARGEST)).any():
        raise ValueError(
            f"weights must be 0 or of a size from {_SMALLEST:g} to {_LARGEST:g}, so"
            f" that their sum fits float32; got {weights.tolist()}."
        )
