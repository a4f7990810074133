"""Grids of the sphere: latitude-longitude, Gaussian, and the gnomonic cubed sphere.

A grid knows its centres, its cells and their areas (as shares of the sphere). The area
mean of a field is the sum of areas times values.
"""

import dataclasses
from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError


@dataclasses.dataclass(frozen=True, eq=False)
class LatLonGrid:
    """Cells between parallels and meridians.

    Attributes:
        lat: centres in degrees north, ascending, `[lat]`.
        lon: centres in degrees east, ascending within one turn, `[lon]`.
        lat_bounds: `[lat + 1]`, in degrees; by default half way between centres, and
            half a cell beyond the first and the last, at most at the poles.
        lon_bounds: `[lon + 1]`, in degrees; by default half way between centres.

    Raises:
        GriddedError: if coordinates are not ascending or out of range.
    """

    lat: np.ndarray
    lon: np.ndarray
    lat_bounds: np.ndarray | None = None
    lon_bounds: np.ndarray | None = None

    def __post_init__(self):
        lat = _ascending("lat", self.lat)
        lon = _ascending("lon", self.lon)
        if abs(lat[0]) > 90 or abs(lat[-1]) > 90:
            raise GriddedError(
                f"lat must be within [-90, 90]; got {lat[0]}, {lat[-1]}."
            )
        if lon[-1] - lon[0] >= 360:
            raise GriddedError(
                f"lon must be within one turn; got {lon[0]} to {lon[-1]}."
            )
        lat_bounds = self.lat_bounds
        if lat_bounds is None:
            lat_bounds = np.clip(_half_way(lat), -90.0, 90.0)
        lon_bounds = self.lon_bounds
        if lon_bounds is None:
            lon_bounds = _around(lon)
        put = dict(lat=lat, lon=lon)
        put["lat_bounds"] = _ascending("lat_bounds", lat_bounds)
        put["lon_bounds"] = _ascending("lon_bounds", lon_bounds)
        for name, value in put.items():
            object.__setattr__(self, name, value)
        sizes = len(self.lat_bounds), len(self.lon_bounds)
        if sizes != (len(lat) + 1, len(lon) + 1):
            raise GriddedError(
                f"bounds must be one more than centres, {len(lat), len(lon)}; got"
                f" {sizes}."
            )

    @property
    def dims(self) -> dict[str, np.ndarray]:
        """Coordinates of a field's axes, in order."""
        return {"lat": self.lat, "lon": self.lon}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a field, `[lat, lon]`."""
        return len(self.lat), len(self.lon)

    @property
    def is_global(self) -> bool:
        """Whether the cells cover the sphere."""
        return self.covers_circle and bool(
            self.lat_bounds[0] < -90 + 1e-6 and self.lat_bounds[-1] > 90 - 1e-6
        )

    @property
    def covers_circle(self) -> bool:
        """Whether the cells go all around."""
        return bool(abs(self.lon_bounds[-1] - self.lon_bounds[0] - 360) < 1e-6)

    @property
    def areas(self) -> np.ndarray:
        """`[lat, lon]`, as shares of the sphere."""
        heights = np.diff(np.sin(np.deg2rad(self.lat_bounds))) / 2
        widths = np.diff(self.lon_bounds) / 360
        return heights[:, None] * widths[None, :]

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of every cell, `[lat, lon]` each."""
        lat, lon = np.meshgrid(self.lat, self.lon, indexing="ij")
        return lat, lon


@dataclasses.dataclass(frozen=True, eq=False)
class CubedSphereGrid:
    """Six faces of `size` x `size` cells, bounded by great circles.

    Coordinates on a face are the angles of its tangent plane, at equal steps
    (equiangular) from -45 to 45 degrees: a point (1, tan a, tan b) of the face around
    (lat, lon) = (0, 0) is pushed onto the sphere. Faces are those around longitude 0,
    90, 180 and 270, then around the north and the south pole.

    Source: Ronchi, Iacono and Paolucci 1996, Journal of Computational Physics 124.
    """

    size: int

    def __post_init__(self):
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise TypeError(f"size must be an integer; got {self.size!r}.")
        if self.size < 1:
            raise GriddedError(f"size must be at least 1; got {self.size}.")

    @property
    def dims(self) -> dict[str, np.ndarray]:
        """Coordinates of a field's axes: face, and angles in degrees."""
        step = 90.0 / self.size
        angles = -45.0 + step * (np.arange(self.size) + 0.5)
        return {"face": np.arange(6), "y": angles, "x": angles}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a field, `[face, y, x]`."""
        return 6, self.size, self.size

    @property
    def is_global(self) -> bool:
        """Always."""
        return True

    @property
    def corners(self) -> np.ndarray:
        """Unit vectors of the corners, `[face, y, x, corner, 3]`, going around."""
        edges = np.tan(np.deg2rad(np.linspace(-45.0, 45.0, self.size + 1)))
        nodes = _on_faces(edges)
        parts = [nodes[:, :-1, :-1], nodes[:, :-1, 1:], nodes[:, 1:, 1:]]
        return np.stack([*parts, nodes[:, 1:, :-1]], axis=3)

    @property
    def areas(self) -> np.ndarray:
        """`[face, y, x]`, as shares of the sphere; exact."""
        a, b, c, d = np.moveaxis(self.corners, 3, 0)
        return (_triangle(a, b, c) + _triangle(a, c, d)) / (4 * np.pi)

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of every cell in degrees, `[face, y, x]` each."""
        points = _on_faces(np.tan(np.deg2rad(self.dims["x"])))
        lat = np.rad2deg(np.arcsin(np.clip(points[..., 2], -1, 1)))
        lon = np.mod(np.rad2deg(np.arctan2(points[..., 1], points[..., 0])), 360.0)
        return lat, lon


Grid = LatLonGrid | CubedSphereGrid


def gaussian_grid(num_lats: int, num_lons: int | None = None) -> LatLonGrid:
    """The Gaussian grid: latitudes of Gauss-Legendre quadrature.

    Cells are bounded so that their areas are the weights of the quadrature, so an area
    mean is exact for spherical harmonics up to degree `2 num_lats - 1`.

    Args:
        num_lats: how many; 32 for a spectral truncation T21.
        num_lons: by default twice as many; the first is 0.

    Raises:
        GriddedError: if there are fewer than one latitude or longitude.
    """
    num_lons = 2 * num_lats if num_lons is None else num_lons
    if num_lats < 1 or num_lons < 1:
        raise GriddedError(f"a grid of {num_lats} x {num_lons} has no cells.")
    sines, weights = np.polynomial.legendre.leggauss(num_lats)
    bounds = np.clip(np.concatenate([[-1.0], np.cumsum(weights) - 1.0]), -1.0, 1.0)
    bounds[-1] = 1.0
    return LatLonGrid(
        lat=np.rad2deg(np.arcsin(sines)),
        lon=np.arange(num_lons) * (360.0 / num_lons),
        lat_bounds=np.rad2deg(np.arcsin(bounds)),
    )


def coarse_grid(step_degrees: float, *, with_poles: bool = False) -> LatLonGrid:
    """An even grid of the whole sphere; longitudes begin at 0.

    Args:
        step_degrees: between neighbours; divides 180.
        with_poles: put the first and last latitude on the poles, as ERA5 does, else
            half a step away.

    Raises:
        GriddedError: if the step does not divide 180 degrees.
    """
    count = round(180.0 / step_degrees) if step_degrees > 0 else 0
    if count < 1 or abs(count * step_degrees - 180.0) > 1e-9:
        raise GriddedError(f"the step must divide 180 degrees; got {step_degrees!r}.")
    lat = (
        np.linspace(-90.0, 90.0, count + 1)
        if with_poles
        else -90.0 + step_degrees * (np.arange(count) + 0.5)
    )
    return LatLonGrid(lat=lat, lon=np.arange(2 * count) * step_degrees)


def grid_of(dataset: Any, *, name: str = "dataset") -> LatLonGrid:
    """The grid of a standard dataset; Gaussian where its latitudes are.

    Raises:
        GriddedError: if it has no lat and lon.
    """
    if "lat" not in dataset.dims or "lon" not in dataset.dims:
        raise GriddedError(
            f"{name} has no lat and lon; there are {', '.join(map(str, dataset.dims))}."
        )
    lat = np.asarray(dataset["lat"].values, np.float64)
    lon = np.asarray(dataset["lon"].values, np.float64)
    if len(lat) > 3:
        gaussian = gaussian_grid(len(lat), len(lon))
        if np.allclose(gaussian.lat, lat, rtol=0, atol=1e-3):
            return LatLonGrid(lat=lat, lon=lon, lat_bounds=gaussian.lat_bounds)
    return LatLonGrid(lat=lat, lon=lon)


def _ascending(name, values):
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.diff(values) > 0):
        raise GriddedError(
            f"{name} must be ascending [{name}]; got shape {values.shape}."
        )
    return values


def _half_way(centres):
    if len(centres) == 1:
        raise GriddedError("one latitude or longitude alone has no cell; give bounds.")
    inner = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - inner[0], 2 * centres[-1] - inner[-1]
    return np.concatenate([[first], inner, [last]])


def largest_gap(lon: np.ndarray) -> tuple[int, bool]:
    """Behind which of ascending longitudes the widest gap is, and whether it is open.

    It is open, so that the grid has an end there, where it is wider than 1.5 times the
    wider of the steps beside it.
    """
    steps = np.diff(np.append(lon, lon[0] + 360.0))
    # Of equal gaps, that behind the last: a grid that goes around stays as it is.
    at = len(steps) - 1 - int(np.argmax(steps[::-1] >= steps.max() - 1e-6))
    beside = max(steps[at - 1], steps[(at + 1) % len(steps)])
    return at, bool(steps[at] > 1.5 * beside)


def _around(lon):
    """Bounds of longitudes; a gap as wide as the others is closed around the sphere."""
    if len(lon) == 1:
        return _half_way(lon)
    at, is_open = largest_gap(lon)
    if is_open and at < len(lon) - 1:
        raise GriddedError(
            f"lon has a gap from {lon[at]:g} to {lon[at + 1]:g} and none around the"
            " circle: a region that crosses Greenwich is counted from its western end,"
            f" {lon[at + 1] - 360:g} to {lon[at]:g}. Order the columns so (standard_"
            "dataset does), or give lon_bounds."
        )
    if is_open:
        return _half_way(lon)
    first = lon[0] - (lon[0] + 360.0 - lon[-1]) / 2
    inner = (lon[1:] + lon[:-1]) / 2
    return np.concatenate([[first], inner, [first + 360.0]])


def _on_faces(tangents):
    """Unit vectors `[face, y, x, 3]` of a grid of tangents on every face."""
    y, x = np.meshgrid(tangents, tangents, indexing="ij")
    one = np.ones_like(x)
    faces = [
        np.stack([one, x, y], -1),
        np.stack([-x, one, y], -1),
        np.stack([-one, -x, y], -1),
        np.stack([x, -one, y], -1),
        np.stack([-y, x, one], -1),
        np.stack([y, x, -one], -1),
    ]
    points = np.stack(faces)
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def _triangle(a, b, c):
    """Solid angle of a spherical triangle (van Oosterom and Strackee 1983)."""
    volume = np.sum(a * np.cross(b, c), -1)
    below = 1 + np.sum(a * b, -1) + np.sum(b * c, -1) + np.sum(c * a, -1)
    return 2 * np.abs(np.arctan2(volume, below))
