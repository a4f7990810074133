"""Regions as weights of the cells of a grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensjax.emulate.gridded.grids import grid_of
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.streaming import Pairs

# Boxes in degrees; longitudes go east from the first to the second.
REGIONS = {
    "global": {},
    "northern_extratropics": {"lat": (20.0, 90.0)},
    "tropics": {"lat": (-20.0, 20.0)},
    "southern_extratropics": {"lat": (-90.0, -20.0)},
    "arctic": {"lat": (60.0, 90.0)},
    "antarctic": {"lat": (-90.0, -60.0)},
    "europe": {"lat": (35.0, 75.0), "lon": (347.5, 42.5)},
}


def region_weights(
    pairs: Pairs,
    regions: Mapping[str, Any] | None = None,
    *,
    areas: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Weights `[*space]` of every region, of mean 1 where they are not 0.

    Args:
        pairs: on a grid.
        regions: by name a box `{"lat": (south, north), "lon": (west, east)}`, either of
            them or none, a cell belonging to it if its centre does; or an array
            `[*space]` of shares or booleans. None: `{"global": {}}`.
        areas: of the cells `[*space]`, in any unit; by default those of the cells of a
            latitude-longitude or Gaussian grid, and equal ones elsewhere.

    Raises:
        GriddedError: if a region is none of these, or holds no cell.
    """
    shape = tuple(len(v) for v in pairs.space.values())
    areas = _areas(pairs, shape) if areas is None else np.asarray(areas, np.float64)
    if areas.shape != shape or not np.all(areas >= 0):
        raise GriddedError(
            f"areas must be [{', '.join(pairs.space)}] = {shape} and not negative; got"
            f" shape {areas.shape}."
        )
    found = {}
    for name, region in ({"global": {}} if regions is None else regions).items():
        weights = areas * _share(pairs, name, region, shape)
        if not np.any(weights > 0):
            raise GriddedError(f"region {name!r} holds no cell of the grid.")
        found[str(name)] = weights / weights[weights > 0].mean()
    if not found:
        raise GriddedError("there must be a region; None is the whole grid.")
    return found


def _areas(pairs, shape):
    if list(pairs.space) != ["lat", "lon"]:
        return np.ones(shape)
    # One longitude (a zonal mean) or latitude alone has no bounds: it is taken for one
    # of two that halve the circle, so that the other dimension keeps its areas.
    halves = {"lat": [-45.0, 45.0], "lon": [0.0, 180.0]}
    alone = {d: v for d, v in halves.items() if pairs.forecast.sizes[d] == 1}
    grid = pairs.forecast[list(pairs.space)].drop_vars(list(alone))
    areas = grid_of(grid.assign_coords(alone), name=pairs.names[0]).areas
    return areas[: shape[0], : shape[1]]


def _share(pairs, name, region, shape):
    if not isinstance(region, Mapping):
        share = np.asarray(region, np.float64)
        if share.shape != shape or not np.all(share >= 0):
            raise GriddedError(
                f"region {name!r} must be a box or shares [{', '.join(pairs.space)}] ="
                f" {shape}, not negative; got shape {share.shape}."
            )
        return share
    if set(region) - {"lat", "lon"}:
        raise GriddedError(
            f"region {name!r} must be a box of lat and lon; got {', '.join(region)}."
        )
    share = np.ones(shape, bool)
    for dim, (low, high) in region.items():
        if dim not in pairs.space:
            raise GriddedError(
                f"region {name!r} is of {dim}, but the grid has"
                f" {', '.join(pairs.space)}."
            )
        at = np.asarray(pairs.space[dim], np.float64)
        if dim == "lat":
            if low > high:
                raise GriddedError(
                    f"region {name!r}: lat goes from south to north; got {low}, {high}."
                )
            inside = (at >= low) & (at <= high)
        else:  # all the way around if the span is a turn
            span = high - low if 0 <= high - low <= 360 else (high - low) % 360
            inside = (at - low) % 360 <= span
        wide = [1] * len(shape)
        wide[list(pairs.space).index(dim)] = -1
        share &= inside.reshape(wide)
    return share
