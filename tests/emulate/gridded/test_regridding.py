"""Regridding keeps the area mean, constants and what is linear."""

import jax
import numpy as np
import pytest

from ensjax.emulate import gridded
from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded import (
    CubedSphereGrid,
    GriddedError,
    LatLonGrid,
    bilinear_weights,
    coarse_grid,
    conservative_weights,
    gaussian_grid,
    regrid,
)

FINE = coarse_grid(15.0)  # 12 x 24
WITH_POLES = coarse_grid(15.0, with_poles=True)
SHIFTED = LatLonGrid(lat=FINE.lat, lon=FINE.lon + 7.5)
TARGETS = {
    "twice as wide": coarse_grid(30.0),
    "not nested": coarse_grid(22.5),
    "with poles": coarse_grid(36.0, with_poles=True),
    "finer": coarse_grid(9.0),
    "gaussian": gaussian_grid(8),
    "cube": CubedSphereGrid(3),
    "even cube": CubedSphereGrid(4),
}


def noise(grid, *outer):
    return np.random.default_rng(0).normal(size=(*outer, *grid.shape))


def area_mean(grid, values):
    return np.sum(grid.areas * np.asarray(values, np.float64), axis=(-1, -2))


@pytest.mark.parametrize("grid", [FINE, WITH_POLES, *TARGETS.values()])
def test_areas_cover_the_sphere(grid):
    assert grid.is_global
    np.testing.assert_allclose(grid.areas.sum(), 1.0, rtol=1e-12)
    lat, lon = grid.centres
    assert lat.shape == lon.shape == grid.shape


def test_cells_of_the_cube_are_known():
    # One cell a face: a sixth each. Faces: four around, then both poles.
    one = CubedSphereGrid(1)
    np.testing.assert_allclose(one.areas, 1 / 6)
    lat, lon = one.centres
    np.testing.assert_allclose(lat.ravel(), [0, 0, 0, 0, 90, -90], atol=1e-12)
    np.testing.assert_allclose(lon.ravel()[:4], [0, 90, 180, 270], atol=1e-12)
    # Equal angles: a cell's area goes as (1 + X^2) (1 + Y^2) / (1 + X^2 + Y^2)^1.5 of
    # its tangents: 1 in the middle, 1 / sqrt 2 in the middle of an edge.
    areas = CubedSphereGrid(48).areas
    x = np.tan(np.deg2rad(CubedSphereGrid(48).dims["x"]))
    density = (1 + x**2) * (1 + x[:, None] ** 2) / (1 + x**2 + x[:, None] ** 2) ** 1.5
    shares = density / density.sum() / 6
    np.testing.assert_allclose(areas, np.broadcast_to(shares, areas.shape), rtol=2e-3)


def test_gaussian_weights_integrate_polynomials():
    grid = gaussian_grid(6, 4)
    np.testing.assert_allclose(np.sin(np.deg2rad(grid.lat)).sum(), 0, atol=1e-12)
    for degree in range(12):  # exact up to 11
        mean = np.sum(grid.areas * np.sin(np.deg2rad(grid.lat))[:, None] ** degree)
        exact = 0.0 if degree % 2 else 1 / (degree + 1)
        np.testing.assert_allclose(mean, exact, atol=1e-12)


@pytest.mark.parametrize("source", [FINE, WITH_POLES, SHIFTED])
@pytest.mark.parametrize("name", TARGETS)
def test_conservative_keeps_constants_and_the_area_mean(source, name):
    target = TARGETS[name]
    weights = conservative_weights(source, target)
    sums = np.asarray(weights.matrix.sum(axis=1)).ravel()
    np.testing.assert_allclose(sums, 1.0, atol=1e-8)
    shared = weights.matrix.T @ target.areas.ravel()
    np.testing.assert_allclose(shared, source.areas.ravel(), rtol=1e-8)
    values = noise(source)
    mean = np.sum(target.areas.ravel() * (weights.matrix @ values.ravel()))
    np.testing.assert_allclose(mean, np.sum(source.areas * values), atol=1e-9)


def test_overlaps_with_the_cube_are_those_of_many_points():
    cube, grid = CubedSphereGrid(3), LatLonGrid(lat=[-60, 0, 60], lon=[10, 130, 250])
    shared = gridded.cell_overlaps(cube, grid).toarray()
    # Points at equal shares of the sphere, told to the cell whose four sides hold them.
    z, lon = np.meshgrid((np.arange(400) + 0.5) / 200 - 1, np.arange(800) * 0.45 + 0.1)
    along = np.sqrt(1 - z**2)
    angle = np.deg2rad(lon)
    points = np.stack([along * np.cos(angle), along * np.sin(angle), z], -1)
    points = points.reshape(-1, 3)
    corners = cube.corners.reshape(-1, 4, 3)
    normals = np.cross(corners, np.roll(corners, -1, axis=1))
    side = np.einsum("cks,ps->pck", normals, points)
    same = np.sign(np.einsum("cks,cs->ck", normals, corners.mean(1)))
    cell = np.argmax((side * same).min(-1), axis=1)
    turned = (lon.ravel() - grid.lon_bounds[0]) % 360 + grid.lon_bounds[0]
    column = np.searchsorted(grid.lon_bounds, turned) - 1
    band = np.searchsorted(np.sin(np.deg2rad(grid.lat_bounds)), z.ravel()) - 1
    counted = np.zeros_like(shared)
    np.add.at(counted, (cell, band * 3 + column), 1 / len(points))
    np.testing.assert_allclose(shared, counted, atol=2e-4)


def test_there_and_back_between_cube_and_rectangles_conserves():
    cube = CubedSphereGrid(4)
    values = np.random.default_rng(1).normal(size=cube.shape)
    weights = conservative_weights(cube, FINE)
    mean = np.sum(FINE.areas.ravel() * (weights.matrix @ values.ravel()))
    np.testing.assert_allclose(mean, np.sum(cube.areas * values), atol=1e-9)


def test_on_the_device_one_product_is_the_matrix():
    weights = conservative_weights(FINE, TARGETS["even cube"])
    values = noise(FINE, 2, 3)
    found = regrid(values, weights)
    assert found.shape == (2, 3, 6, 4, 4)
    exact = (weights.matrix @ values.reshape(6, -1).T).T.reshape(found.shape)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    program = jax.jit(lambda v: regrid(v, weights)).lower(values).as_text()
    assert "while" not in program


def test_missing_values_stay_missing_or_are_left_out():
    weights = conservative_weights(FINE, TARGETS["twice as wide"])
    values = noise(FINE)
    values[0, 0] = np.nan
    strict, lax = regrid(values, weights), regrid(values, weights, least_known=0.5)
    assert np.isnan(strict[0, 0]) and np.isnan(strict).sum() == 1
    # A cell 30 degrees wide around longitude 0: one column, and half of both beside it.
    parts = {(0, -1): 0.5, (0, 1): 0.5, (1, -1): 0.5, (1, 0): 1.0, (1, 1): 0.5}
    known = [(part * FINE.areas[at], values[at]) for at, part in parts.items()]
    wanted = sum(a * v for a, v in known) / sum(a for a, _ in known)
    np.testing.assert_allclose(lax[0, 0], wanted, rtol=1e-5)
    np.testing.assert_array_equal(strict[1:], lax[1:])


@pytest.mark.parametrize("name", TARGETS)
def test_bilinear_is_exact_for_what_is_linear(name):
    target = TARGETS[name]
    weights = bilinear_weights(FINE, target)
    np.testing.assert_allclose(np.asarray(weights.matrix.sum(axis=1)), 1.0)
    field = np.broadcast_to(FINE.lat[:, None], FINE.shape)
    lat, _ = target.centres
    inside = np.abs(lat) <= FINE.lat[-1]
    np.testing.assert_allclose(regrid(field, weights)[inside], lat[inside], atol=1e-4)
    # Around the circle: the value half way across the seam is the mean of both sides.
    row = np.broadcast_to(np.arange(24.0), FINE.shape)
    at = LatLonGrid(lat=[-7.5, 7.5], lon=[-7.5, 0.0, 7.5])
    found = regrid(row, bilinear_weights(FINE, at))
    np.testing.assert_allclose(found, [[11.5, 0.0, 0.5]] * 2, atol=1e-5)


def test_bilinear_at_the_pole_is_the_mean_of_the_last_ring():
    values = noise(FINE)
    at = LatLonGrid(lat=[-90, 0, 90], lon=[0.0, 100.0])
    found = regrid(values, bilinear_weights(FINE, at))
    np.testing.assert_allclose(found[2], values[-1].mean(), rtol=1e-5)
    np.testing.assert_allclose(found[0], values[0].mean(), rtol=1e-5)


def test_outside_a_region_there_is_nothing():
    region = LatLonGrid(lat=np.arange(0.0, 50, 10), lon=np.arange(0.0, 60, 10))
    target = coarse_grid(30.0)
    found = regrid(np.ones(region.shape), bilinear_weights(region, target))
    assert np.isfinite(found).sum() == 2  # (15, 0) and (15, 30)
    found = regrid(np.ones(region.shape), conservative_weights(region, target))
    np.testing.assert_allclose(found[3, 1], 1.0, rtol=1e-6)  # 0-30 N, 15-45 E
    assert np.isnan(found[0]).all()


def test_an_archive_is_regridded_with_its_truth():
    values, truth = noise(FINE, 2, 3, 1, 1), noise(FINE, 2, 1, 1)
    archive = Archive(
        values,
        case=np.arange(2),
        lead=[1.0],
        variable=["x"],
        space={"lat": FINE.lat, "lon": FINE.lon},
        truth=truth,
        units={"lat": "degrees_north"},
    )
    target = gaussian_grid(4)
    found = gridded.regrid_archive(archive, conservative_weights(FINE, target))
    assert found.sizes["lat"] == 4 and found.truth.shape == (2, 1, 1, 4, 8)
    for new, old in ((found.values, values), (found.truth, truth)):
        np.testing.assert_allclose(
            area_mean(target, new), area_mean(FINE, old), atol=1e-6
        )
    with pytest.raises(GriddedError, match="on another"):
        gridded.regrid_archive(found, conservative_weights(FINE, target))


def test_a_dataset_is_regridded_whatever_its_order():
    xr = pytest.importorskip("xarray")
    values = noise(FINE)
    ds = xr.Dataset(
        {"t": (("longitude", "time", "latitude"), values.T[:, None, ::-1])},
        {
            "latitude": FINE.lat[::-1],
            "longitude": FINE.lon,
            "time": np.array(["2020-01-01"], "datetime64[ns]"),
        },
    )
    found = gridded.regrid_dataset(ds, CubedSphereGrid(2))
    assert found.t.dims == ("time", "face", "y", "x")
    exact = regrid(values, conservative_weights(FINE, CubedSphereGrid(2)))
    np.testing.assert_allclose(found.t.values[0], exact, atol=1e-6)
    with pytest.raises(ValueError, match="method must be one of"):
        gridded.regrid_dataset(ds, FINE, "cubic")


def test_xarray_regrid_agrees_where_grids_nest():
    xr = pytest.importorskip("xarray")
    pytest.importorskip("xarray_regrid")
    source, target = coarse_grid(5.0), coarse_grid(15.0)
    lat, lon = (np.deg2rad(c) for c in source.centres)
    # Smooth along latitude, since it takes a cell's area at its middle.
    field = np.sin(lat) + np.cos(lat) * np.cos(lon)
    ds = xr.Dataset({"f": (("lat", "lon"), field)}, dict(source.dims))
    theirs = ds.regrid.conservative(
        xr.Dataset(coords=dict(target.dims)), latitude_coord="lat"
    )
    ours = conservative_weights(source, target).matrix @ field.ravel()
    # It puts rows of its own at the poles, which moves the outermost ones.
    inner = slice(1, -1)
    np.testing.assert_allclose(
        theirs.f.values[inner], ours.reshape(target.shape)[inner], atol=1e-6
    )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LatLonGrid(lat=[1.0, 0.0], lon=[0.0, 1.0]), "lat must be ascending"),
        (lambda: LatLonGrid(lat=[0.0, 99.0], lon=[0.0, 1.0]), r"within \[-90, 90\]"),
        (lambda: LatLonGrid(lat=[0.0, 9.0], lon=[0.0, 360.0]), "within one turn"),
        (lambda: coarse_grid(7.0), "must divide 180"),
        (lambda: CubedSphereGrid(0), "at least 1"),
        (
            lambda: conservative_weights(CubedSphereGrid(2), CubedSphereGrid(3)),
            "two cubed spheres",
        ),
        (lambda: bilinear_weights(CubedSphereGrid(2), FINE), "take conservative"),
    ],
)
def test_grids_that_are_none_are_refused(make, words):
    with pytest.raises(GriddedError, match=words):
        make()


def test_fields_on_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"must be \[\.\.\., lat, lon\]"):
        regrid(
            np.zeros((3, 5, 5)), conservative_weights(FINE, TARGETS["twice as wide"])
        )


@pytest.mark.parametrize("target", [CubedSphereGrid(4), gaussian_grid(4)])
@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_a_regridded_dataset_comes_back_from_a_file(tmp_path, target, ending):
    xr = pytest.importorskip("xarray")
    time = np.array(["2020-01-01", "2020-01-02"], "M8[ns]")
    coords = dict(time=time, member=[0], lead=np.zeros(1, "m8[ns]"), **FINE.dims)
    ds = xr.Dataset({"t": (tuple(coords), noise(FINE, 2, 1, 1))}, coords)
    made = gridded.regrid_dataset(ds, target)
    path = tmp_path / f"x.{ending}"
    gridded.write_dataset(path, made)
    found = gridded.open_gridded(path, report=None)
    assert found.t.dims == made.t.dims
    np.testing.assert_array_equal(found.t, made.t)
    for dim, labels in target.dims.items():
        np.testing.assert_allclose(found[dim], labels)
    if isinstance(target, LatLonGrid):
        with xr.open_dataset(path, decode_timedelta=False) as raw:
            assert raw.lat.attrs["units"] == "degrees_north"
            assert raw.lon.attrs["standard_name"] == "longitude"
        np.testing.assert_allclose(gridded.grid_of(found).areas, target.areas)
