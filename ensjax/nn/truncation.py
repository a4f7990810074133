"""The large scales of a state: what a network of one step adds its change to.

A forecaster that adds to the state itself carries to the next step whatever fine scales
a step has made, its noise among them, and they pile up. One that adds to the state's
large scales has to make the fine ones anew in every step.

Source: Lang et al. 2024, arXiv:2412.15832, where the state goes down to a coarser grid
and back. That also damps what it keeps; a truncation does not, and twice is once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.sphere import SphericalGrid
from ensjax.ops.sphere_split import split_from_waves, split_to_waves


@dataclasses.dataclass(frozen=True)
class WaveTruncation:
    """The waves up to a wavenumber along every axis of a closed grid.

    Attributes:
        max_wavenumbers: the largest that is kept, in waves around the axis, one for
            each axis of space; 0 keeps the mean alone.

    Raises:
        ValueError: for a negative one; on the call, where they are not one for each
            axis, or an axis has no finer waves.

    Example:
        >>> import jax.numpy as jnp
        >>> truncation = WaveTruncation((1,))
        >>> angle = 2 * jnp.pi * jnp.arange(12) / 12
        >>> state = (3 + jnp.cos(angle) + jnp.cos(4 * angle))[:, None]  # [12, 1]
        >>> bool(jnp.allclose(truncation(state)[:, 0], 3 + jnp.cos(angle), atol=1e-6))
        True
    """

    max_wavenumbers: tuple[int, ...]

    def __post_init__(self):
        if not self.max_wavenumbers or min(self.max_wavenumbers) < 0:
            raise ValueError(
                "max_wavenumbers hold one number of 0 or above for each axis; got"
                f" {self.max_wavenumbers}."
            )

    def __call__(self, state: jax.Array) -> jax.Array:
        """The large scales `[*space, channel]` of a state of that shape."""
        space = state.shape[:-1]
        if len(space) != len(self.max_wavenumbers):
            raise ValueError(
                f"a state is [*space, channel] with {len(self.max_wavenumbers)} axes of"
                f" space, one for each of max_wavenumbers; got shape {state.shape}."
            )
        for axis, largest in enumerate(self.max_wavenumbers):
            if largest >= space[axis] // 2:
                raise ValueError(
                    f"an axis of {space[axis]} places has waves up to"
                    f" {space[axis] // 2}, of which some are to go; max_wavenumbers has"
                    f" {largest} for it."
                )
            matrix = jnp.asarray(_projection(space[axis], largest), state.dtype)
            state = jnp.moveaxis(
                jnp.tensordot(matrix, state, (1, axis), precision="highest"), 0, axis
            )
        return state


def _projection(size, largest):
    """`[place, place]` onto waves up to the largest."""
    away = np.arange(size)[:, None] - np.arange(size)
    waves = np.arange(1, largest + 1)[:, None, None]
    return (1 + 2 * np.cos(2 * np.pi * waves * away / size).sum(axis=0)) / size


@dataclasses.dataclass(frozen=True)
class HarmonicTruncation:
    """The spherical harmonics up to the truncation of a grid.

    Attributes:
        grid: of the state, with the `truncation` that is wanted.
        axis: of the mesh, over which latitudes are split, or None.

    Raises:
        ValueError: on the call, for a state on another grid.

    Example::

        HarmonicTruncation(SphericalGrid(32, 64, truncation=10))  # T10 of a T31 grid
    """

    grid: SphericalGrid
    axis: str | None = None

    def __call__(self, state: jax.Array) -> jax.Array:
        """The large scales `[lat, lon, channel]` of a state of that shape."""
        if state.ndim != 3:
            raise ValueError(
                f"a state is [lat, lon, channel]; got shape {state.shape}."
            )
        by_channel = jnp.moveaxis(state, -1, 0)
        waves = split_to_waves(by_channel, self.grid, self.axis)
        kept = split_from_waves(waves, self.grid, self.axis)
        return jnp.moveaxis(kept, 0, -1).astype(state.dtype)
