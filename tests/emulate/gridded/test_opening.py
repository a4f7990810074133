"""Files of many layouts open as the same dataset, or say what is wrong."""

import importlib.util
from pathlib import Path

import ml_collections
import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax.emulate.gridded import (  # noqa: E402
    GriddedError,
    open_gridded,
    standard_dataset,
)


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dialects = _load("dialects")


def check_same(found, wanted):
    """Coordinates and values of the variables of `wanted`."""
    for name, array in wanted.data_vars.items():
        assert found[name].dims == array.dims
        for dim in array.dims:
            np.testing.assert_array_equal(found[dim].values, array[dim].values)
        np.testing.assert_allclose(found[name].values, array.values, atol=2e-3)


@pytest.mark.parametrize("ending", ["zarr", "nc"])
@pytest.mark.parametrize("name", ["weatherbench", "ecmwf", "climate_forecast"])
def test_layouts_of_providers_open_as_the_same_dataset(tmp_path, name, ending):
    path = tmp_path / f"x.{ending}"
    ds = getattr(dialects, name)()
    ds.to_zarr(path) if ending == "zarr" else ds.to_netcdf(path, engine="h5netcdf")
    lines = []
    found = open_gridded(path, report=lines.append)
    # Fields are still on disk: only coordinates have been read.
    assert not any(a.variable._in_memory for a in found.data_vars.values())
    check_same(found, dialects.standard(levels=name != "climate_forecast"))
    assert any("lead is" in line for line in lines)
    assert found.t2m.attrs["units"] == "K"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_zarr_of_the_second_version_opens(tmp_path):
    dialects.weatherbench().to_zarr(tmp_path / "x.zarr", zarr_format=2)
    found = open_gridded(tmp_path / "x.zarr", report=None)
    check_same(found, dialects.standard(levels=True))


def test_netcdf_of_the_third_version_opens(tmp_path):
    dialects.ecmwf().to_netcdf(tmp_path / "x.nc", engine="scipy")
    found = open_gridded(tmp_path / "x.nc", report=None)
    check_same(found, dialects.standard(levels=True))


def test_stacked_variables_become_variables(tmp_path):
    dialects.stacked().to_zarr(tmp_path / "x.zarr")
    found = open_gridded(tmp_path / "x.zarr", report=None)
    wanted = dialects.standard(levels=True)
    check_same(found, wanted[["t2m"]])
    np.testing.assert_array_equal(found.z850.values, wanted.z.values[:, :, :, 1])


def test_one_forecast_by_valid_time_gets_leads(tmp_path):
    dialects.by_valid_time().to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    found = open_gridded(tmp_path / "x.nc", report=None)
    check_same(found, dialects.standard().isel(time=[0]))


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "gregorian"])
def test_other_calendars_open(tmp_path, calendar):
    ds = dialects.seasonal(calendar)
    ds.to_zarr(tmp_path / "x.zarr")
    found = open_gridded(tmp_path / "x.zarr", report=None)
    times = found.time.values
    if calendar == "gregorian":  # which is NumPy's
        np.testing.assert_array_equal(times, dialects.TIMES[:2])
    else:
        assert [t.day for t in times] == [27, 28] and times[0].calendar == calendar
    np.testing.assert_array_equal(found.lead.values, dialects.LEADS)


def test_a_forecast_without_members_has_one():
    found = standard_dataset(dialects.standard().isel(member=0, drop=True))
    assert found.t2m.dims == ("time", "member", "lead", "lat", "lon")
    assert found.sizes["member"] == 1


def test_forecasts_of_one_lead_by_valid_time():
    ds = dialects.standard().isel(lead=1, member=0, drop=True)
    ds = ds.assign_coords(time=ds.time + np.timedelta64(1, "D"), forecast_period=24)
    ds.time.attrs["standard_name"] = "time"
    ds.forecast_period.attrs |= dict(standard_name="forecast_period", units="hours")
    found = standard_dataset(ds)
    np.testing.assert_array_equal(found.time.values, dialects.TIMES)
    np.testing.assert_array_equal(found.lead.values, dialects.LEADS[1:2])


def test_a_closed_circle_of_longitudes_is_cut():
    ds = dialects.truth()
    closed = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=[360.0])], "lon")
    lines = []
    found = standard_dataset(closed, report=lines.append)
    check_same(found, ds)
    assert "longitude 360 repeats 0" in " ".join(lines)


def test_a_variable_in_hours_stays_numbers(tmp_path):
    ds = dialects.truth().rename(t2m="sunshine")
    ds.sunshine.attrs["units"] = "hours"
    ds.to_zarr(tmp_path / "x.zarr")
    assert open_gridded(tmp_path / "x.zarr", report=None).sunshine.dtype == np.float32


def test_a_mapping_says_what_cannot_be_guessed():
    ds = dialects.standard().rename(time="begin", lead="after", member="who")
    ds = ds.assign_coords(after=[0, 1, 2])
    with pytest.raises(GriddedError, match="mapping"):
        standard_dataset(ds, name="file.zarr")
    mapping = dict(time="begin", lead="after", member="who", lead_units="days")
    check_same(standard_dataset(ds, mapping), dialects.standard())
    from_config = ml_collections.ConfigDict(mapping)
    check_same(standard_dataset(ds, from_config), dialects.standard())


def test_a_standard_dataset_stays_as_it_is():
    found = standard_dataset(dialects.ecmwf())
    assert standard_dataset(found) is found


def _without_lat(ds):
    return ds.rename(lat="row")


def _with_two_members(ds):
    return ds.expand_dims(number=[0, 1])


def _with_another_axis(ds):
    return ds.expand_dims(band=3)


def _with_bare_leads(ds):
    return ds.assign_coords(lead=[0, 1, 2])


def _with_months(ds):
    return _with_bare_leads(ds).assign_coords(
        lead=lambda d: d.lead.assign_attrs(units="months")
    )


def _with_a_time_twice(ds):
    return ds.isel(time=[0, 1, 1])


def _with_latitudes_in_radians_times_hundred(ds):
    return ds.assign_coords(lat=ds.lat * 2)


def _with_dates_as_numbers(ds):
    return ds.assign_coords(time=[20200227, 20200228, 20200229])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_without_lat, "no latitude among the dimensions"),
        (_with_two_members, "member could be any of 'number', 'member'"),
        (_with_another_axis, "variable 't2m' has the dimension 'band' of 3"),
        (_with_bare_leads, "lead 'lead': leads are numbers with no units"),
        (_with_months, "units 'months', which is no fixed duration"),
        (_with_a_time_twice, "time 'time' holds 2020-02-28T00:00:00.000000000 twice"),
        (_with_latitudes_in_radians_times_hundred, r"latitude 'lat' must be within"),
        (_with_dates_as_numbers, "time 'time' must hold dates; got int64"),
    ],
)
def test_an_unclear_layout_names_file_and_dimension(spoil, words):
    with pytest.raises(GriddedError, match=words) as caught:
        standard_dataset(spoil(dialects.standard()), name="here.zarr")
    assert "here.zarr" in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_gridded(tmp_path / "none.zarr")
    text = tmp_path / "text.txt"
    text.write_text("not a file of fields")
    with pytest.raises(GriddedError, match="no netCDF"):
        open_gridded(text)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(GriddedError, match=r"empty\.zarr cannot be read"):
        open_gridded(tmp_path / "empty.zarr")
    broken = tmp_path / "broken.nc"
    broken.write_bytes(b"\x89HDF" + b"0" * 100)
    with pytest.raises(GriddedError, match=r"broken\.nc cannot be read"):
        open_gridded(broken)


def test_unknown_variables_and_mappings_are_refused():
    ds = dialects.standard()
    with pytest.raises(GriddedError, match="no variable 'rain'; there are t2m"):
        standard_dataset(ds, variables=["rain"])
    with pytest.raises(GriddedError, match="mapping names 'latitude'"):
        standard_dataset(ds, {"latitude": "lat"})
    with pytest.raises(GriddedError, match="time is 'init', but"):
        standard_dataset(ds, {"time": "init"})


def test_what_xarray_saved_of_a_standard_dataset_opens_as_it_was(tmp_path):
    """Its mark is in the file, where leads are numbers with units."""
    wanted = standard_dataset(dialects.ecmwf())
    wanted.to_zarr(tmp_path / "x.zarr", consolidated=False)
    wanted.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    for ending in ("zarr", "nc"):
        found = open_gridded(tmp_path / f"x.{ending}", report=None)
        assert found.lead.dtype == "timedelta64[ns]"
        check_same(found, wanted)


@pytest.mark.parametrize("lead", [np.array([0.5, 1.0]), dialects.LEADS[:2]])
def test_counted_starts_survive_what_xarray_saves(tmp_path, lead):
    ds = dialects.standard().isel(lead=[0, 1]).rename(time="case")
    wanted = standard_dataset(ds.assign_coords(case=[4, 5, 6], lead=lead))
    wanted.to_zarr(tmp_path / "x.zarr", consolidated=False)
    found = open_gridded(tmp_path / "x.zarr", report=None)
    assert found.lead.dtype == lead.dtype
    check_same(found, wanted)
    check_same(standard_dataset(found.isel(time=1)), wanted.isel(time=[1]))


@pytest.mark.parametrize(
    "change, wanted",
    [
        (lambda ds: ds.isel(member=0), dict(member=[0])),
        (lambda ds: ds.isel(time=1), dict(time=[1])),
        (lambda ds: ds.isel(lead=2), dict(lead=[2])),
        (lambda ds: ds.isel(lat=slice(None, None, -1)), {}),
        (lambda ds: ds.isel(time=[2, 0, 1]), {}),
        (lambda ds: ds.transpose("lon", "lead", ...), {}),
    ],
)
def test_what_was_changed_since_is_put_right_again(change, wanted):
    ds = standard_dataset(dialects.standard(levels=True))
    check_same(standard_dataset(change(ds)), ds.isel(wanted))
    mean = ds.mean("member", keep_attrs=True)
    found = standard_dataset(mean)
    np.testing.assert_array_equal(found.t2m.isel(member=0), mean.t2m)
    assert found.t2m.dims[:3] == ("time", "member", "lead")


def test_a_cube_that_was_selected_from_stays_one():
    dims = ("time", "member", "lead", "face", "y", "x")
    coords = dict(time=dialects.TIMES, lead=dialects.LEADS[:1], member=[0, 1])
    ds = xr.Dataset({"t": (dims, np.zeros((3, 2, 1, 6, 2, 2)))}, coords)
    found = standard_dataset(ds, {"space": ("face", "y", "x")})
    found = standard_dataset(found.isel(time=0, member=1))
    assert found.t.dims == dims and found.t.shape == (1, 1, 1, 6, 2, 2)
