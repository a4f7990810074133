"""How far, and how fast, a model that is linear in its parameters is trained."""

import warnings
from typing import Any

import jax
import numpy as np


def check_schedule(time: Any, steps: Any, learning_rate: Any) -> None:
    """Raises `ValueError` unless at most one of time and steps is given, and is one.

    Steps are whole numbers; both are 0 or positive, and rates positive.
    """
    if time is not None and steps is not None:
        raise ValueError("Give a time of gradient flow or steps of descent, not both.")
    for name, value in (("time", time), ("steps", steps)):
        if value is not None and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be 0 or positive; got {value}.")
    if steps is not None and not np.all(np.asarray(steps) == np.round(steps)):
        raise ValueError(
            f"steps must be whole numbers; got {steps}. For what lies between, give a"
            " time of gradient flow."
        )
    rate = np.asarray(learning_rate, float)
    if not np.all(np.isfinite(rate) & (rate > 0)):
        raise ValueError(f"learning_rate must be positive; got {learning_rate}.")


def warn_above_critical(
    learning_rate: Any, eigenvalues: Any, *, labels: Any = None
) -> None:
    """Warns, with the critical value, where a learning rate is above it.

    Args:
        learning_rate: of gradient descent, a number or one for each case.
        eigenvalues: of the training rows' tangent kernel, in any order, `[..., train]`,
            with axes in front for several cases.
        labels: what to call each case, `[...]`; its place by default.
    """
    if any(isinstance(v, jax.core.Tracer) for v in (learning_rate, eigenvalues)):
        return
    # On the host: an operation of JAX would be traced along with what calls this.
    eigenvalues = np.asarray(eigenvalues, float)
    rate, smallest, largest = np.broadcast_arrays(
        np.asarray(learning_rate, float), eigenvalues.min(-1), eigenvalues.max(-1)
    )
    share = rate * (smallest + largest) / 2
    above = share > 1 + 1e-5
    if not above.any():
        return
    place = np.unravel_index(share.argmax(), share.shape)
    rate, limit = float(rate[place]), 2 / largest[place]
    then = "diverges" if rate >= limit else "is slower than there"
    of_which = ""
    if above.ndim:
        label = list(map(int, place)) if labels is None else None
        if labels is not None:
            label = np.broadcast_to(labels, above.shape)[place]
        of_which = f" for {label} ({above.sum()} of {above.size} are above theirs)"
    warnings.warn(
        f"Learning rate {rate:.6g} is above the critical {rate / share[place]:.6g}"
        f"{of_which}: gradient descent {then}; it diverges from {limit:.6g} on.",
        stacklevel=3,
    )
