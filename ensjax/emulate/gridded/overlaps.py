"""How much of the sphere the cells of two grids share."""

from typing import Any

import numpy as np

from ensjax.emulate.gridded.grids import CubedSphereGrid, Grid, LatLonGrid
from ensjax.emulate.gridded.layout import GriddedError

# Nodes of quadrature over longitude between two corners of cells, where the integrand
# is smooth; four give areas to 1e-9.
_NODES = 4
# Meridians times corners that are looked at together.
_TOGETHER = 4_000_000


def cell_overlaps(first: Grid, second: Grid) -> Any:
    """Areas that each cell of one grid shares with each of the other.

    Between latitude-longitude grids they are exact. Between one and the cubed sphere
    they are exact along latitude, and integrated over longitude: a meridian meets a
    cell of great circles in one interval, which the parallels cut.

    Returns:
        A sparse matrix of SciPy, `[cells of first, cells of second]`, as shares of the
        sphere; cells are numbered as in a field that is flattened.

    Raises:
        GriddedError: between two cubed spheres.
    """
    if isinstance(first, LatLonGrid) and isinstance(second, LatLonGrid):
        return _rectangles(first, second)
    if isinstance(first, CubedSphereGrid) and isinstance(second, LatLonGrid):
        return _cube_and_rectangles(first, second)
    if isinstance(first, LatLonGrid) and isinstance(second, CubedSphereGrid):
        return _cube_and_rectangles(second, first).T.tocsr()
    raise GriddedError(
        "overlaps of two cubed spheres are not there; go by a latitude-longitude grid."
    )


def _rectangles(first, second):
    from scipy import sparse

    sines = [np.sin(np.deg2rad(g.lat_bounds)) for g in (first, second)]
    heights = _interval_overlaps(*sines) / 2
    # Longitudes of the two may be counted from anywhere.
    least = (first.lon_bounds[0] - second.lon_bounds[-1]) / 360
    most = (first.lon_bounds[-1] - second.lon_bounds[0]) / 360
    widths = sum(
        _interval_overlaps(first.lon_bounds, second.lon_bounds + 360.0 * turn)
        for turn in range(int(np.floor(least)), int(np.ceil(most)) + 1)
    )
    return sparse.kron(
        sparse.csr_matrix(heights), sparse.csr_matrix(widths / 360), format="csr"
    )


def _interval_overlaps(a, b):
    """Lengths that intervals between ascending bounds share, `[a, b]`."""
    above = np.minimum(a[1:, None], b[None, 1:])
    below = np.maximum(a[:-1, None], b[None, :-1])
    return np.maximum(above - below, 0.0)


def _cube_and_rectangles(cube, grid):
    from scipy import sparse

    shape = (6 * cube.size**2, len(grid.lat) * len(grid.lon))
    found = sparse.csr_matrix(shape)
    corners = cube.corners
    nodes = np.empty((6, cube.size + 1, cube.size + 1, 3))
    nodes[:, :-1, :-1] = corners[..., 0, :]
    nodes[:, :-1, -1] = corners[:, :, -1, 1]
    nodes[:, -1, 1:] = corners[:, -1, :, 2]
    nodes[:, -1, 0] = corners[:, -1, 0, 3]
    meridians, widths, columns = _meridians(nodes, grid)
    bounds = np.sin(np.deg2rad(grid.lat_bounds))
    together = max(1, _TOGETHER // nodes[..., 0].size)
    for start in range(0, len(meridians), together):
        rows = slice(start, start + together)
        low, high, at, cell = _crossed_cells(nodes, meridians[rows])
        band, shared, back = _cut(low, high, bounds)
        area = shared / 2 * widths[rows][at[back]]
        column = band * len(grid.lon) + columns[rows][at[back]]
        found = found + sparse.csr_matrix((area, (cell[back], column)), shape)
    found.eliminate_zeros()
    return found


def _meridians(nodes, grid):
    """Longitudes in radians, their weights as shares of a turn, and the grid's column.

    Between two neighbours among the corners' longitudes and the grid's bounds nothing
    begins or ends, so quadrature meets a smooth function.
    """
    first = grid.lon_bounds[0]
    inner = nodes[np.abs(nodes[..., 2]) < 1 - 1e-12]
    corners = np.rad2deg(np.arctan2(inner[:, 1], inner[:, 0]))
    corners = first + np.mod(corners - first, 360.0)
    breaks = np.sort(np.concatenate([corners, grid.lon_bounds]))
    breaks = breaks[(breaks >= first) & (breaks <= grid.lon_bounds[-1])]
    breaks = breaks[np.concatenate([[True], np.diff(breaks) > 1e-9])]
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    middle, half = (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks) / 2
    columns = np.searchsorted(grid.lon_bounds, middle, side="right") - 1
    columns = np.clip(columns, 0, len(grid.lon) - 1)
    meridians = middle[:, None] + half[:, None] * points
    widths = half[:, None] * weights / 360
    return (
        np.deg2rad(meridians.reshape(-1)),
        widths.reshape(-1),
        np.repeat(columns, _NODES),
    )


def _crossed_cells(nodes, meridians):
    """Sines of latitude between which each meridian lies in each cell it meets.

    Returns:
        `low, high, meridian, cell`, `[crossing]` each; the last two are numbers.
    """
    normal = np.stack([-np.sin(meridians), np.cos(meridians)], -1)
    along = np.stack([np.cos(meridians), np.sin(meridians)], -1)
    side = np.einsum("mc,fyxc->mfyx", normal, nodes[..., :2])
    ahead = np.einsum("mc,fyxc->mfyx", along, nodes[..., :2])
    low, high, count = None, None, None
    for axis in (2, 3):
        sine = _edge_crossings(side, ahead, nodes[..., 2][None], axis)
        # An edge along x bounds the cells before and behind it in y, and vice versa.
        other = 5 - axis
        parts = [np.delete(sine, end, axis=other) for end in (-1, 0)]
        for part in parts:
            is_met = np.isfinite(part)
            below, above = np.where(is_met, part, 2.0), np.where(is_met, part, -2.0)
            low = below if low is None else np.minimum(low, below)
            high = above if high is None else np.maximum(high, above)
            count = is_met * 1 if count is None else count + is_met
    meridian, *cell = np.nonzero(count)
    low, high, count = (v[(meridian, *cell)] for v in (low, high, count))
    # Where a meridian enters a cell and does not leave it, it ends there at the pole.
    is_north = low + high > 0
    high = np.where((count == 1) & is_north, 1.0, high)
    low = np.where((count == 1) & ~is_north, -1.0, low)
    number = np.ravel_multi_index(tuple(cell), (6, *(n - 1 for n in nodes.shape[1:3])))
    return low, high, meridian, number


def _edge_crossings(side, ahead, z, axis):
    """Sine of latitude where half a great circle meets an edge; NaN where it does not.

    `side` is how far corners are left of the meridian's plane, `ahead` how far they are
    on its own half; edges join neighbours along `axis`.
    """
    first = np.take(side, range(side.shape[axis] - 1), axis)
    second = np.take(side, range(1, side.shape[axis]), axis)
    a, b = np.abs(second), np.abs(first)

    def between(values):
        size = values.shape[axis]
        left = np.take(values, range(size - 1), axis)
        return a * left + b * np.take(values, range(1, size), axis)

    forward, up = between(ahead), between(z)
    is_met = ((first >= 0) != (second >= 0)) & (forward > 0)
    return np.where(is_met, up / np.maximum(np.hypot(forward, up), 1e-300), np.nan)


def _cut(low, high, bounds):
    """Intervals cut at bounds: the band, the length, and the interval of each piece."""
    last = len(bounds) - 2
    begin = np.clip(np.searchsorted(bounds, low, side="right") - 1, 0, last)
    end = np.clip(np.searchsorted(bounds, high, side="left") - 1, 0, last)
    counts = end - begin + 1
    back = np.repeat(np.arange(len(low)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    band = begin[back] + offset
    above = np.minimum(high[back], bounds[band + 1])
    below = np.maximum(low[back], bounds[band])
    return band, np.maximum(above - below, 0.0), back
