"""Arrays as settings: compared by value, so that equal settings are one program."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Frozen(NamedTuple):
    """A float32 array that can be compared and hashed.

    Attributes:
        shape: of the array.
        data: its bytes.
    """

    shape: tuple[int, ...]
    data: bytes

    def array(self) -> np.ndarray:
        """The array, read-only."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape)

    def digest(self) -> str:
        """A few letters that tell it from other arrays."""
        content = repr(self.shape).encode() + self.data
        return hashlib.sha256(content).hexdigest()[:16]

    def like(self, shape: tuple[int, ...]) -> jax.Array:
        """The array broadcast to `shape`.

        Raises:
            ValueError: if it does not broadcast.
        """
        try:
            return jnp.broadcast_to(jnp.asarray(self.array()), shape)
        except ValueError as error:
            raise ValueError(
                f"weights must broadcast to {shape}; got {self.shape}."
            ) from error


def freeze(array: jax.Array | None) -> Frozen | None:
    """`array` as a setting; None stays None.

    Raises:
        ValueError: if a number is negative or NaN.
    """
    if array is None:
        return None
    values = np.ascontiguousarray(np.asarray(array), np.float32)
    if not np.all(values >= 0):
        raise ValueError("weights must be non-negative numbers; some are not.")
    return Frozen(values.shape, values.tobytes())
