"""Forecast and truth are compared in one unit, at one level and at one time."""

import numpy as np
import pytest

xr = pytest.importorskip("xarray")

from ensjax.emulate import gridded  # noqa: E402
from ensjax.emulate.gridded import (  # noqa: E402
    GriddedError,
    climatology_reader,
    is_same_unit,
    pair,
    standard_dataset,
)
from ensjax.emulate.gridded.times import positions, valid_times  # noqa: E402

LAT, LON = np.array([-30.0, 30.0]), np.array([0.0, 120.0, 240.0])
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")
TIME = np.datetime64("2020-01-01", "ns") + np.arange(3) * DAY
LEVELS = np.array([500.0, 850.0])


def truth(units="m2 s-2"):
    """A field `z` that is the day plus its level."""
    values = np.arange(3.0)[:, None] + LEVELS
    values = np.broadcast_to(values[:, :, None, None], (3, 2, 2, 3)).astype("f4")
    dims = ("time", "level", "lat", "lon")
    coords = dict(time=TIME, level=LEVELS, lat=LAT, lon=LON)
    return xr.Dataset({"z": (dims, values, {"units": units})}, coords)


def forecast(units="m2 s-2"):
    ds = truth(units).isel(time=[0, 1])
    return ds.expand_dims(member=[0, 1], lead=np.array([0, 1]) * DAY)


@pytest.mark.parametrize(
    "first, second",
    [
        ("m2 s-2", "m**2 s**-2"),
        ("m2 s-2", "m2/s2"),
        ("m2 s-2", "J kg-1"),
        ("m s-1", "m/s"),
        ("m.s-1", "m s^-1"),
        ("kg m-2 s-1", "kg/m2/s"),
        ("K", "kelvin"),
        ("degC", "celsius"),
        ("degC", "°C"),
        ("kg kg-1", "1"),
        ("(0 - 1)", "1"),
        ("hPa", "millibar"),
        ("K", ""),
        ("~", "m"),
    ],
)
def test_one_unit_has_many_spellings(first, second):
    assert is_same_unit(first, second) and is_same_unit(second, first)


@pytest.mark.parametrize(
    "first, second",
    [
        ("K", "degC"),
        ("hPa", "Pa"),
        ("m", "mm"),
        ("%", "1"),
        ("m s-1", "m s-2"),
        ("1e-3 kg", "kg"),
        ("W m-2", "J m-2"),
        ("m of water equivalent", "m"),
    ],
)
def test_units_of_other_size_are_others(first, second):
    assert not is_same_unit(first, second)


def test_other_units_are_refused_and_can_be_allowed():
    with pytest.raises(GriddedError, match="'z' in 'K', truth in 'degC'"):
        pair(forecast("K"), truth("degC"))
    assert pair(forecast("K"), truth("degC"), check_units=False).read() is not None
    pair(forecast("K"), truth("kelvin"))


def test_units_of_climatology_and_of_another_forecast_count_too():
    pairs = pair(forecast("K"), truth(""))
    by_time = truth("degC")
    for climate in (by_time, by_time.isel(time=0, drop=True)):
        with pytest.raises(GriddedError, match="'K', climatology in 'degC'"):
            climatology_reader(climate, pairs)
        climatology_reader(climate, pairs, check_units=False)
    with pytest.raises(GriddedError, match="'K', compare_to in 'degC'"):
        gridded.verify(forecast("K"), truth(""), compare_to=forecast("degC"))


def test_a_level_that_stands_beside_is_looked_for_in_the_other():
    for level in LEVELS:
        alone = pair(forecast().sel(level=level), truth()).read()
        np.testing.assert_array_equal(alone.truth[0, :, 0, 0, 0], level + np.arange(2))
        both = pair(forecast().sel(level=level), truth().sel(level=level)).read()
        np.testing.assert_array_equal(both.truth, alone.truth)
        listed = pair(forecast().sel(level=[level]), truth().sel(level=level)).read()
        np.testing.assert_array_equal(listed.truth, alone.truth)
        assert listed.variable == (f"z_{level:g}",)
    with pytest.raises(GriddedError, match="at level 500, truth at level 850"):
        pair(forecast().sel(level=500), truth().sel(level=850))
    with pytest.raises(GriddedError, match=r"'z' at level 500, truth at \[850.0\]"):
        pair(forecast().sel(level=500), truth().sel(level=[850]))
    with pytest.raises(GriddedError, match=r"differ in level: .* against \[500.0\]"):
        pair(forecast(), truth().sel(level=500))


def test_levels_of_two_forecasts_are_compared():
    ours, theirs = (forecast().sel(level=level) for level in LEVELS)
    with pytest.raises(GriddedError, match="level 500, compare_to at level 850"):
        gridded.verify(ours, truth(), compare_to=theirs)


def test_without_a_level_the_error_says_what_to_do():
    flat = forecast().isel(level=0, drop=True)
    words = r"truth has 'z' at levels \[500.0, 850.0\], but forecast has it without"
    with pytest.raises(GriddedError, match=words + r".*\.sel\(level=\.\.\.\)"):
        pair(flat, truth())
    pair(flat.assign_coords(level=850.0), truth())
    with pytest.raises(GriddedError, match="forecast has 'z' at levels"):
        pair(forecast(), truth().isel(level=0, drop=True))


def test_a_level_beside_counts_for_the_climatology_and_survives_a_file(tmp_path):
    pairs = pair(forecast().sel(level=850), truth())
    climate = truth().isel(time=0, drop=True)
    found = climatology_reader(climate, pairs)(pairs)
    np.testing.assert_array_equal(found, 850.0)
    target = gridded.coarse_grid(90.0)
    again = gridded.regrid_dataset(truth().sel(level=850), target, "bilinear")
    assert again.level == 850
    gridded.write_dataset(tmp_path / "t.nc", standard_dataset(truth().sel(level=850)))
    assert gridded.open_gridded(tmp_path / "t.nc", report=None).level == 850


def test_times_that_were_rounded_are_the_same():
    late = truth().assign_coords(time=TIME + np.timedelta64(1, "us"))
    early = truth().assign_coords(time=TIME - np.timedelta64(500, "ms"))
    wanted = pair(forecast(), truth())
    for ds in (late, early):
        np.testing.assert_array_equal(pair(forecast(), ds).rows, wanted.rows)
    other = truth().assign_coords(time=TIME + np.timedelta64(2, "s"))
    with pytest.raises(GriddedError, match="no valid time"):
        pair(forecast(), other)
    # The last microsecond of a year is its next one.
    early = forecast().assign_coords(time=TIME[:2] - np.timedelta64(1, "us"))
    months = truth().isel(time=[0] * 12).drop_vars("time").rename(time="month")
    months = months.assign_coords(month=np.arange(1, 13))
    months["z"] = months.z * 0 + months.month.astype("f4")
    pairs = pair(early, truth())
    np.testing.assert_array_equal(climatology_reader(months, pairs)(pairs), 1.0)


def test_positions_of_dates_of_any_calendar_and_of_numbers():
    import datetime

    import cftime

    days = [cftime.datetime(2020, 2, d, calendar="360_day") for d in (28, 29, 30)]
    some = np.array([days[2] + datetime.timedelta(microseconds=7), days[0]], object)
    available = np.array(days[::-1], object)
    np.testing.assert_array_equal(positions(some, available), [0, 2])
    other = np.array([cftime.datetime(2020, 2, 28, calendar="noleap")], object)
    assert positions(TIME[:1], other[:0]).tolist() == [-1]
    counted = np.array([5, 3, 9])
    assert positions(np.array([[3, 4]]), counted).tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "dim, words", [("time", "no times"), ("member", "no members"), ("lead", "no leads")]
)
def test_nothing_along_a_dimension_is_said(dim, words):
    with pytest.raises(GriddedError, match=f"a.zarr has {words}"):
        pair(forecast().isel({dim: []}), truth(), names=("a.zarr", "t.nc"))
    with pytest.raises(GriddedError, match="t.nc has no times"):
        pair(forecast(), truth().isel(time=[]), names=("a.zarr", "t.nc"))


def test_nothing_scored_is_an_error():
    with pytest.raises(GriddedError, match="nothing of forecast could be scored"):
        gridded.verify(forecast() * np.nan, truth())


def test_levels_may_be_words():
    words = np.array(["surface", "tropopause"])
    ds, known = (x.assign_coords(level=words) for x in (forecast(), truth()))
    known = known.isel(level=[1, 0])
    archive = pair(ds, known).read()
    assert archive.variable == ("z_surface", "z_tropopause")
    days = np.arange(2.0)[:, None, None, None]  # from the start to the lead
    np.testing.assert_array_equal(archive.truth, archive.values[:, 0] + days)
    more = xr.concat([known, known.isel(level=[0]).assign_coords(level=["a"])], "level")
    np.testing.assert_array_equal(pair(ds, more).read().truth, archive.truth)
    with pytest.raises(GriddedError, match=r"differ in level: \['surface', 'trop"):
        pair(ds, truth())


def test_integer_leads_beside_dates_have_no_valid_times():
    with pytest.raises(GriddedError, match="must be durations; got int64, such as"):
        valid_times(TIME, np.array([0, 1]))
