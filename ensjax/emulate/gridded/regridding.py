"""Fields from one grid to another: a sparse matrix, applied by one product on a device.

Conservative: a cell's value is the mean over its area, so the area mean of the sphere
stays what it is. Bilinear: the value at a cell's centre, between the four around it.

The package xarray-regrid is not used for it: its conservative weights share cells in
degrees rather than by area, and change the area mean of a field of standard deviation 1
by 4e-6 to 1.4e-4, and by 1e-2 towards a Gaussian grid.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded.conversion import COORDINATE_ATTRIBUTES
from ensjax.emulate.gridded.grids import CubedSphereGrid, Grid, LatLonGrid, grid_of
from ensjax.emulate.gridded.layout import SPACE_DIMS, GriddedError
from ensjax.emulate.gridded.overlaps import cell_overlaps
from ensjax.emulate.gridded.packages import optional_package
from ensjax.emulate.gridded.standard import standard_dataset

# Of the axes of a target grid.
_ABOUT = COORDINATE_ATTRIBUTES | {
    "face": {"long_name": "face of the cube"},
    "y": {"long_name": "second angle on the face", "units": "degrees"},
    "x": {"long_name": "first angle on the face", "units": "degrees"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class RegridWeights:
    """What regridding multiplies by.

    Attributes:
        matrix: sparse of SciPy, `[cells of target, cells of source]`. A row sums to the
            share of the target's cell that the source covers.
        source, target: the grids.
        method: "conservative" or "bilinear".
    """

    matrix: Any
    source: Grid
    target: Grid
    method: str

    @functools.cached_property
    def on_device(self) -> Any:
        """The transposed matrix as a BCOO of JAX, `[source, target]`, float32."""
        from jax.experimental import sparse

        return sparse.BCOO.from_scipy_sparse(self.matrix.T.tocoo().astype(np.float32))


def conservative_weights(source: Grid, target: Grid) -> RegridWeights:
    """Weights of the mean over each cell of the target.

    Raises:
        GriddedError: between two cubed spheres.

    Source: Jones 1999, First- and second-order conservative remapping schemes for grids
    in spherical coordinates, Monthly Weather Review 127 (first order).
    """
    from scipy import sparse

    shared = cell_overlaps(target, source)
    each = sparse.diags(1.0 / target.areas.reshape(-1))
    return RegridWeights((each @ shared).tocsr(), source, target, "conservative")


def bilinear_weights(source: LatLonGrid, target: Grid) -> RegridWeights:
    """Weights of the value at each centre of the target, linear in both angles.

    Between the outermost latitude and the pole of a source that reaches it, the pole
    has the mean of that latitude. Elsewhere outside the source there is no value.

    Raises:
        GriddedError: if the source is a cubed sphere.
    """
    from scipy import sparse

    if isinstance(source, CubedSphereGrid):
        raise GriddedError(
            "bilinear weights are from latitude-longitude grids; from a cubed sphere"
            " take conservative_weights."
        )
    lat, lon = (c.reshape(-1) for c in target.centres)
    rows_lat, weight_lat = _lat_weights(source, lat)
    columns, weight_lon = _lon_weights(source, lon)
    num_lons = len(source.lon)
    entries = [], [], []
    points = np.arange(len(lat))
    for i in range(2):
        for j in range(2):
            weight = weight_lat[i] * weight_lon[j]
            is_ring = rows_lat[i] < 0  # a pole: the mean of the ring next to it
            row = np.where(is_ring, -rows_lat[i] - 1, rows_lat[i])
            plain = (weight > 0) & ~is_ring
            entries[0].append(weight[plain])
            entries[1].append(points[plain])
            entries[2].append(row[plain] * num_lons + columns[j][plain])
            at = np.nonzero((weight > 0) & is_ring)[0]
            ring = row[at, None] * num_lons + np.arange(num_lons)
            each = np.broadcast_to(weight[at, None] / num_lons, ring.shape)
            entries[0].append(each.reshape(-1))
            entries[1].append(np.repeat(at, num_lons))
            entries[2].append(ring.reshape(-1))
    values, point, cell = (np.concatenate(e) for e in entries)
    shape = (len(lat), len(source.lat) * num_lons)
    matrix = sparse.csr_matrix((values, (point, cell)), shape)
    return RegridWeights(matrix, source, target, "bilinear")


def _lat_weights(source, lat):
    """Two rows for each latitude and their weights; row -1 - i is the ring's mean."""
    known = source.lat
    last = len(known) - 1
    rows, at = list(range(last + 1)), list(known)
    south = source.covers_circle and source.lat_bounds[0] < -90 + 1e-6
    north = source.covers_circle and source.lat_bounds[-1] > 90 - 1e-6
    if south and known[0] > -90 + 1e-9:
        rows, at = [-1, *rows], [-90.0, *at]
    if north and known[-1] < 90 - 1e-9:
        rows, at = [*rows, -1 - last], [*at, 90.0]
    return _between(np.array(rows), np.array(at), lat)


def _lon_weights(source, lon):
    """Two columns for each longitude and their weights, around the circle."""
    first = source.lon[0]
    columns, at = np.arange(len(source.lon)), source.lon
    if source.covers_circle:
        columns, at = np.append(columns, 0), np.append(at, first + 360.0)
    turned = first + np.mod(lon - first + 1e-9, 360.0) - 1e-9
    return _between(columns, at, turned)


def _between(rows, at, wanted):
    if len(at) == 1:
        is_there = np.abs(wanted - at[0]) < 1e-6
        row = np.full(len(wanted), rows[0])
        return (row, row), (is_there * 1.0, np.zeros(len(wanted)))
    after = np.clip(np.searchsorted(at, wanted, side="right"), 1, len(at) - 1)
    share = (wanted - at[after - 1]) / (at[after] - at[after - 1])
    is_inside = (share >= -1e-6) & (share <= 1 + 1e-6)
    share = np.clip(share, 0.0, 1.0)
    weights = (1 - share) * is_inside, share * is_inside
    return (rows[after - 1], rows[after]), weights


def regrid(
    values: jax.Array, weights: RegridWeights, *, least_known: float = 1.0
) -> jax.Array:
    """Fields on the target grid, by one product with the sparse matrix.

    Args:
        values: `[..., *source]`; NaN is missing.
        weights: from `conservative_weights` or `bilinear_weights`.
        least_known: share of a cell's weight that must be known; what is known then
            stands for all of it. 1: a cell with anything missing is missing.

    Returns:
        `[..., *target]`, float32; NaN where less is known.

    Raises:
        ValueError: if values are not on the source grid, or the share is not in (0, 1].
    """
    shape = weights.source.shape
    values = jnp.asarray(values, jnp.float32)
    if values.shape[values.ndim - len(shape) :] != shape:
        raise ValueError(
            f"values must be [..., {', '.join(weights.source.dims)}] with {shape} at"
            f" the end; got shape {values.shape}."
        )
    if not 0 < least_known <= 1:
        raise ValueError(f"least_known must be in (0, 1]; got {least_known!r}.")
    outer = values.shape[: values.ndim - len(shape)]
    found = _product(
        values.reshape(-1, int(np.prod(shape))), weights.on_device, float(least_known)
    )
    return found.reshape(*outer, *weights.target.shape)


@jax.jit
def _product(values, matrix, least_known):
    is_known = jnp.isfinite(values)
    # Values and what is known of them go through one product.
    both = jnp.concatenate([jnp.where(is_known, values, 0.0), is_known * 1.0])
    total, share = jnp.split(both @ matrix, 2)
    is_enough = share >= least_known - 1e-4  # rounding of a row's sum
    return jnp.where(is_enough, total / jnp.where(is_enough, share, 1.0), jnp.nan)


def regrid_archive(
    archive: Archive, weights: RegridWeights, *, least_known: float = 1.0
) -> Archive:
    """The archive on the target grid, truth included.

    Args:
        archive: on the source grid, its space `{"lat", "lon"}` or that of the cube.
        weights, least_known: as of `regrid`.

    Raises:
        ValueError: if the archive is on another grid.
    """
    _check_space(archive.space, weights.source)
    values = np.asarray(regrid(archive.values, weights, least_known=least_known))
    truth = archive.truth
    if truth is not None:
        truth = np.asarray(regrid(truth, weights, least_known=least_known))
    units = {k: v for k, v in archive.units.items() if k not in archive.space}
    space = dict(weights.target.dims)
    return dataclasses.replace(
        archive, values=values, truth=truth, space=space, units=units
    )


def _check_space(space, grid):
    wanted = grid.dims
    is_same = list(space) == list(wanted) and all(
        len(space[d]) == len(wanted[d]) and np.allclose(space[d], wanted[d], atol=1e-4)
        for d in wanted
    )
    if not is_same:
        sizes = {name: len(values) for name, values in space.items()}
        raise GriddedError(
            f"the weights are from a grid {dict(zip(wanted, grid.shape))}, the fields"
            f" on another, {sizes}; make weights from the fields' own grid."
        )


def regrid_dataset(
    dataset: Any, target: Grid, method: str = "conservative", **options: float
) -> Any:
    """A dataset on another grid, in memory; for what is larger see `regrid_archive`.

    Args:
        dataset: of xarray with lat and lon, in any layout that can be guessed.
        target: a grid.
        method: "conservative" or "bilinear".
        **options: `least_known` of `regrid`.

    Returns:
        A standard dataset with the target's axes, whose attributes say what they are.

    Raises:
        ValueError: if the method is unknown.
        GriddedError: if the dataset has no lat and lon.
    """
    xarray = optional_package("xarray")
    methods = {"conservative": conservative_weights, "bilinear": bilinear_weights}
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}; got {method!r}.")
    dataset = standard_dataset(dataset)
    weights = methods[method](grid_of(dataset), target)
    outer = {d: dataset[d] for d in dataset.dims if d not in ("lat", "lon")}
    if "level" in dataset.coords:  # also one that stands beside
        outer["level"] = dataset["level"]
    found = xarray.Dataset(coords=outer, attrs=dataset.attrs)
    for name, array in dataset.data_vars.items():
        dims = tuple(d for d in array.dims if d not in ("lat", "lon"))
        values = array.transpose(*dims, "lat", "lon").to_numpy()
        new = np.asarray(regrid(values, weights, **options))
        found[name] = ((*dims, *target.dims), new, array.attrs)
    about = {k: (k, v, _ABOUT.get(k, {})) for k, v in target.dims.items()}
    if "lat" not in target.dims:
        found.attrs[SPACE_DIMS] = " ".join(target.dims)
    return found.assign_coords(about)
