"""Grids that go on beyond their edges: the circle, latitudes and longitudes, the cube.

Each function adds `width` places around the spatial axes, which come last but for the
channels; axes before them are left alone. Values are scalars: components of vectors
turn where the grid does, and are not handled here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def pad_circular(x: jax.Array, width: int, *, num_axes: int = 1) -> jax.Array:
    """`[..., *space, channel]` with every one of `num_axes` axes closed to a circle.

    Raises:
        ValueError: if an axis is shorter than `width`.
    """
    for axis in range(x.ndim - 1 - num_axes, x.ndim - 1):
        x = _wrap(x, width, axis)
    return x


def pad_lat_lon(x: jax.Array, width: int, *, has_poles: bool = False) -> jax.Array:
    """`[..., latitude, longitude, channel]` on a sphere.

    Longitudes are a circle. Beyond a pole come the rows on this side of it, half a turn
    away.

    Args:
        x: rows go from one pole to the other, either way; an even number of longitudes.
        width: rows and columns to add on each side.
        has_poles: whether the first and last rows are the poles themselves, which are
            then not repeated.

    Raises:
        ValueError: if the grid is smaller than `width`, or has an odd number of
            longitudes.
    """
    rows, columns = x.shape[-3:-1]
    if columns % 2 or width + has_poles > rows:
        raise ValueError(
            "beyond a pole is the other side of the globe: the longitudes must be even"
            f" in number, and there must be {width + has_poles} latitudes; got"
            f" {rows} x {columns}."
        )
    opposite = jnp.roll(x, columns // 2, axis=-2)
    first, last = int(has_poles), rows - int(has_poles)
    above = jnp.flip(opposite[..., first : first + width, :, :], axis=-3)
    below = jnp.flip(opposite[..., last - width : last, :, :], axis=-3)
    return _wrap(jnp.concatenate([above, x, below], axis=-3), width, x.ndim - 2)


def pad_cubed_sphere(x: jax.Array, width: int) -> jax.Array:
    """`[..., 6, row, column, channel]` with every face's neighbours around it.

    Faces 0 to 3 lie along the equator eastwards, columns to the east and rows to the
    north; face 4 is around the north pole, its rows coming from face 0, and face 5
    around the south pole, its rows going to face 0. Where three faces meet there is no
    cell on the diagonal: such places repeat the nearest cell of the face beside.

    Raises:
        ValueError: if the faces are not 6 squares, or smaller than `width`.
    """
    faces, rows, columns, channels = x.shape[-4:]
    if faces != 6 or rows != columns or width > rows:
        raise ValueError(
            f"a cubed sphere is [..., 6, n, n, channel] with n at least {width}; got"
            f" {x.shape}."
        )
    index = cube_halo(rows, width)
    flat = x.reshape(*x.shape[:-4], 6 * rows * rows, channels)
    return jnp.take(flat, index, axis=-2)


# Of each face: its normal, the direction of its columns, the direction of its rows.
_FACES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
    ]
)


@functools.cache
def cube_halo(size: int, width: int) -> np.ndarray:
    """Which cell of the cube lies at each place of the padded faces.

    Args:
        size: rows of a face.
        width: places around it.

    Returns:
        Numbers of cells, face by face and row by row, `[6, size + 2 width, size + 2
        width]`.
    """
    padded = size + 2 * width
    index = np.empty((6, padded, padded), np.int32)
    for face, (normal, east, north) in enumerate(_FACES):
        for i, j in np.ndindex(padded, padded):
            row, column = i - width, j - width
            point = normal + _place(column, size) * east + _place(row, size) * north
            over_row, over_column = (_beyond(k, size) for k in (row, column))
            if over_column:  # a corner is beyond both, and takes this side
                inside = _place(min(max(row, 0), size - 1), size)
                out = np.sign(_place(column, size)) * east
                point = out + _depth(over_column, size) * normal + inside * north
            elif over_row:
                out = np.sign(_place(row, size)) * north
                along = _place(column, size) * east
                point = out + _depth(over_row, size) * normal + along
            index[face, i, j] = _cell(point, size)
    return index


def _place(k, size):
    """The coordinate in [-1, 1] of a cell's centre."""
    return (2 * k + 1) / size - 1


def _beyond(k, size):
    """How many cells beyond the edge: 0 inside."""
    return max(-k, k - size + 1, 0)


def _depth(number, size):
    """The coordinate towards an edge of the cell that is `number` behind it."""
    return 1 - (2 * number - 1) / size


def _cell(point, size):
    """The number of the cell around a point of the cube's surface."""
    face = int(np.argmax(_FACES[:, 0] @ point))
    _, east, north = _FACES[face]
    column, row = (int((axis @ point + 1) / 2 * size) for axis in (east, north))
    return (face * size + row) * size + column


def _wrap(x, width, axis):
    size = x.shape[axis]
    if width > size:
        raise ValueError(f"cannot wrap {width} places around an axis of {size}.")
    last = jax.lax.slice_in_dim(x, size - width, size, axis=axis)
    first = jax.lax.slice_in_dim(x, 0, width, axis=axis)
    return jnp.concatenate([last, x, first], axis=axis)


PADDINGS: dict[str, Callable[..., jax.Array]] = {
    "circular": pad_circular,
    "lat_lon": pad_lat_lon,
    "cubed_sphere": pad_cubed_sphere,
}
