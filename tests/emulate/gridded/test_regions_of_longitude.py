"""Regions of a few longitudes, wherever they are cut, keep the areas of their cells."""

import numpy as np
import pytest

xr = pytest.importorskip("xarray")

from ensjax.emulate import gridded  # noqa: E402
from ensjax.emulate.gridded import (  # noqa: E402
    GriddedError,
    LatLonGrid,
    bilinear_weights,
    coarse_grid,
    conservative_weights,
    grid_of,
    pair,
    region_weights,
    regrid,
    regrid_dataset,
    standard_dataset,
)

LAT = np.arange(60.0, 29.0, -2.5)
# The share of the sphere between the bounds of these latitudes.
BAND = np.diff(np.sin(np.deg2rad([28.75, 61.25])))[0] / 2


def truth(lon):
    lon = np.asarray(lon, np.float64)
    times = np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "D")
    values = np.ones((2, len(LAT), 1)) * np.cos(np.deg2rad(lon))
    return xr.Dataset(
        {"t": (("time", "lat", "lon"), values.astype("f4"))},
        dict(time=times, lat=LAT, lon=lon),
    )


def forecast(lon):
    ds = truth(lon).isel(time=[0])
    lead = np.array([0, 86_400_000_000_000], "timedelta64[ns]")
    return ds.expand_dims(member=[0, 1], lead=lead)


REGIONS = {
    "across Greenwich": (np.arange(-20.0, 21.0, 2.5), 17 * 2.5),
    "across Greenwich, from 340": (np.arange(340.0, 381.0, 2.5) % 360, 17 * 2.5),
    "across the date line": (np.arange(160.0, 201.0, 2.5), 17 * 2.5),
    "across the date line, from -180": (
        (np.arange(160.0, 201.0, 2.5) + 180) % 360 - 180,
        17 * 2.5,
    ),
    "all but a gap": (np.arange(30.0, 380.0, 2.5) % 360, 140 * 2.5),
    "two columns": (np.array([-5.0, 5.0]), 20.0),
    "around, from -180": (np.arange(-180.0, 180.0, 10.0), 360.0),
    "around, with its end twice": (np.arange(0.0, 361.0, 10.0), 360.0),
    "around, -180 to 180": (np.arange(-180.0, 181.0, 10.0), 360.0),
}


@pytest.mark.parametrize("name", REGIONS)
def test_cells_are_as_wide_as_the_steps(name):
    lon, width = REGIONS[name]
    grid = grid_of(standard_dataset(truth(lon)))
    np.testing.assert_allclose(grid.areas.sum(), BAND * width / 360, rtol=1e-9)
    assert grid.covers_circle == (width == 360.0)
    weights = region_weights(pair(forecast(lon), truth(lon)))["global"]
    np.testing.assert_allclose(weights, weights[:, :1] * np.ones(weights.shape[1]))
    # Fields go with their columns.
    at = standard_dataset(truth(lon))
    np.testing.assert_allclose(
        at.t.values[0, 0], np.cos(np.deg2rad(at.lon.values)), atol=1e-6
    )


def test_a_region_that_crosses_greenwich_begins_in_the_west():
    found = standard_dataset(truth(np.arange(-20.0, 21.0, 2.5)))
    np.testing.assert_array_equal(found.lon.values, np.arange(-20.0, 21.0, 2.5))
    same = standard_dataset(truth(REGIONS["across Greenwich, from 340"][0]))
    np.testing.assert_array_equal(same.lon.values, found.lon.values)
    around = standard_dataset(truth(REGIONS["around, from -180"][0]))
    np.testing.assert_array_equal(around.lon.values, np.arange(0.0, 360.0, 10.0))


@pytest.mark.parametrize("make", [conservative_weights, bilinear_weights])
@pytest.mark.parametrize("name", ["across Greenwich", "across the date line"])
def test_a_region_is_regridded_where_it_lies_and_nowhere_else(name, make):
    lon, _ = REGIONS[name]
    source = grid_of(standard_dataset(truth(lon)))
    target = coarse_grid(5.0)
    values = standard_dataset(truth(lon)).t.values[0]
    found = np.asarray(regrid(values, make(source, target)))
    away = np.abs((target.lon - lon.mean() + 180) % 360 - 180)
    row = found[np.argmin(np.abs(target.lat - 45))]
    # The source ends 1.25 degrees beyond its last centre, inside the cell around 20.
    last = 20.0 if make is bilinear_weights else 15.0
    np.testing.assert_array_equal(np.isfinite(row), away <= last)
    inside = away < 17
    exact = np.cos(np.deg2rad(target.lon[inside]))
    np.testing.assert_allclose(row[inside], exact, atol=2e-3)


def test_overlaps_know_longitudes_counted_from_anywhere():
    target = LatLonGrid(lat=[0.0, 10.0], lon=[-10.0, 0.0, 10.0])
    for turn in (-720.0, -360.0, 0.0, 360.0, 720.0):
        source = LatLonGrid(lat=[0.0, 10.0], lon=np.array([-10.0, 0.0, 10.0]) + turn)
        shared = gridded.cell_overlaps(target, source).toarray()
        np.testing.assert_allclose(shared, np.diag(target.areas.reshape(-1)), atol=1e-9)
    cube = gridded.CubedSphereGrid(2)
    shared = gridded.cell_overlaps(target, cube)
    np.testing.assert_allclose(
        np.asarray(shared.sum(axis=1)).ravel(), target.areas.ravel(), rtol=1e-6
    )


def test_a_regridded_dataset_keeps_a_constant_of_the_region():
    lon, _ = REGIONS["across Greenwich"]
    ds = truth(lon) * 0 + 3
    target = LatLonGrid(lat=[40.0, 45.0, 50.0], lon=[-10.0, 0.0, 10.0])
    found = regrid_dataset(ds, target)
    np.testing.assert_allclose(found.t.values, 3.0, rtol=1e-6)


def test_columns_that_are_out_of_order_around_a_gap_are_refused():
    lon = np.concatenate([np.arange(0.0, 21.0, 2.5), np.arange(340.0, 360.0, 2.5)])
    with pytest.raises(GriddedError, match="gap from 20 to 340.*-20 to 20"):
        LatLonGrid(lat=[0.0, 10.0], lon=lon)


def test_a_grid_that_is_stretched_still_goes_around():
    steps = np.concatenate([np.full(9, 20.0), 20 * 0.8 ** np.arange(8)])
    steps = np.concatenate([steps, steps[::-1]])
    lon = np.concatenate([[0.0], np.cumsum(steps * 360 / steps.sum())])[:-1]
    assert LatLonGrid(lat=[0.0, 10.0], lon=lon).covers_circle


def test_one_longitude_or_latitude_keeps_the_areas_of_the_other():
    """Zonal means: the cells are bands, of the sines of their bounds."""
    lat, lon = np.array([-60.0, -20.0, 20.0, 60.0]), np.array([0.0, 120.0, 200.0])
    time, lead = np.array(["2020-01-01"], "M8[ns]"), np.zeros(1, "m8[ns]")
    coords = dict(time=time, lead=lead, member=[0], lat=lat, lon=lon)
    dims = tuple(coords)
    ds = xr.Dataset({"t": (dims, np.zeros((1, 1, 1, 4, 3)))}, coords)
    column = gridded.region_weights(gridded.pair(ds.isel(lon=[1])))["global"]
    bands = np.diff(np.sin(np.deg2rad([-80, -40, 0, 40, 80])))
    np.testing.assert_allclose(column[:, 0], bands / bands.mean(), rtol=1e-12)
    np.testing.assert_allclose(bands[0] / bands.sum(), 0.17365, atol=1e-5)
    row = gridded.region_weights(gridded.pair(ds.isel(lat=[1])))["global"]
    np.testing.assert_allclose(row[0], np.array([140, 100, 120]) / 120, rtol=1e-12)
    one = gridded.region_weights(gridded.pair(ds.isel(lat=[1], lon=[0])))["global"]
    np.testing.assert_array_equal(one, [[1.0]])
