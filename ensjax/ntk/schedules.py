"""How far, and how fast, a model that is linear in its parameters is trained."""

import warnings
from typing import Any

import jax
import numpy as np


def check_schedule(time: Any, steps: Any, learning_rate: Any) -> None:
    """Raises `ValueError` unless at most one of time and steps is given, and is one."""
    if time is not None and steps is not None:
        raise ValueError("Give a time of gradient flow or steps of descent, not both.")
    for name, value in (("time", time), ("steps", steps)):
        if value is not None and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be 0 or positive; got {value}.")
    rate = np.asarray(learning_rate, float)
    if not np.all(np.isfinite(rate) & (rate > 0)):
        raise ValueError(f"learning_rate must be positive; got {learning_rate}.")


def warn_above_critical(learning_rate: Any, eigenvalues: Any) -> None:
    """Warns, with the critical value, where a learning rate is above it.

    Args:
        learning_rate: of gradient descent.
        eigenvalues: of the training rows' tangent kernel, ascending, `[train]`.
    """
    if any(isinstance(v, jax.core.Tracer) for v in (learning_rate, eigenvalues)):
        return
    # On the host: an operation of JAX would be traced along with what calls this.
    eigenvalues = np.asarray(eigenvalues, float)
    critical = 2 / (eigenvalues[0] + eigenvalues[-1])
    if float(learning_rate) <= critical * (1 + 1e-5):
        return
    largest = 2 / eigenvalues[-1]
    then = "diverges" if float(learning_rate) >= largest else "is slower than there"
    warnings.warn(
        f"Learning rate {float(learning_rate):.6g} is above the critical"
        f" {critical:.6g}: gradient descent {then}; it diverges from {largest:.6g} on.",
        stacklevel=3,
    )
