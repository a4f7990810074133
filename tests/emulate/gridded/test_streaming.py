"""Forecasts meet their truth by valid time, a few cases in memory at once."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax.emulate import gridded  # noqa: E402
from ensjax.emulate.archive import Archive  # noqa: E402
from ensjax.emulate.gridded import GriddedError, pair, stream_cases  # noqa: E402


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dialects = _load("dialects")
# Truth is known from 27 February on for five days: [case, lead].
VALID_DAYS = np.arange(3)[:, None] + np.arange(3)


def wanted_truth(level=None):
    fields = dialects.field(np.arange(5.0), dialects.LAT, dialects.LON, level or 0)
    return fields[VALID_DAYS].astype("f4")


@pytest.mark.parametrize("name", ["weatherbench", "ecmwf", "stacked"])
def test_the_truth_is_that_of_the_valid_time(tmp_path, name):
    getattr(dialects, name)().to_zarr(tmp_path / "f.zarr")
    truth = dialects.truth(levels=True)
    if name == "stacked":
        truth = truth[["t2m"]]
    truth.isel(lat=slice(None, None, -1)).to_zarr(tmp_path / "t.zarr")
    pairs = pair(
        gridded.open_gridded(tmp_path / "f.zarr", report=None),
        gridded.open_gridded(tmp_path / "t.zarr", report=None),
    )
    archive = pairs.read()
    np.testing.assert_allclose(archive.truth[:, :, 0], wanted_truth(), atol=1e-4)
    if name != "stacked":
        assert archive.variable == ("t2m", "z_500", "z_850")
        np.testing.assert_allclose(archive.truth[:, :, 2], wanted_truth(850), atol=1e-4)
        z = dialects.standard(levels=True).z.values
        np.testing.assert_array_equal(archive.values[:, :, :, 1], z[:, :, :, 0])
    # Member m of case i at lead j is the truth of its valid day plus 1000 m.
    error = archive.values[:, :, :, 0] - archive.truth[:, None, :, 0]
    bias = 1000 * dialects.MEMBERS[None, :, None, None, None]
    np.testing.assert_allclose(error, np.broadcast_to(bias, error.shape), atol=1e-3)


def test_what_the_truth_lacks_is_missing():
    truth = dialects.truth().isel(time=[0, 1, 3])
    archive = pair(dialects.standard(), truth).read()
    is_known = np.isin(VALID_DAYS, [0, 1, 3])
    np.testing.assert_array_equal(
        np.isfinite(archive.truth[:, :, 0]).all(axis=(-1, -2)), is_known
    )
    wanted = wanted_truth()
    np.testing.assert_array_equal(archive.truth[:, :, 0][is_known], wanted[is_known])


@pytest.mark.parametrize("calendar, day", [("noleap", 28), ("360_day", 30)])
def test_valid_times_follow_the_calendar(calendar, day):
    import cftime

    # The day after 28 February is 1 March where years have 365 days, and the 29th
    # where months have 30.
    ds = dialects.seasonal(calendar)
    times = [cftime.datetime(2020, 2, 27 + i, calendar=calendar) for i in range(2)]
    times += [cftime.datetime(2020, 3, 1, calendar=calendar)]
    truth = dialects.truth().isel(time=[0, 1, 2]).assign_coords(time=times)
    archive = pair(ds, truth).read()
    found = np.isfinite(archive.truth[:, :, 0, 0, 0])
    if calendar == "noleap":  # starts 27, 28; days 27, 28, 1 March | 28, 1 March, 2
        np.testing.assert_array_equal(found, [[1, 1, 1], [1, 1, 0]])
    else:
        np.testing.assert_array_equal(found, [[1, 1, 0], [1, 0, 0]])
    assert day in (28, 30)
    assert archive.case.tolist() == [0, 24]
    assert archive.units["case"].endswith(f"calendar {calendar}")
    back, _ = gridded.archive_to_datasets(archive)
    np.testing.assert_array_equal(back.time.values, ds.S.values)
    np.testing.assert_array_equal(back.lead.values, dialects.LEADS)


def test_blocks_of_cases_are_the_whole_and_keep_their_rows():
    pairs = pair(dialects.standard(levels=True), dialects.truth(levels=True))
    whole = pairs.read()
    for size in (1, 2, 3):
        blocks = list(stream_cases(pairs, cases=size))
        assert max(b.sizes["case"] for b in blocks) == size
        np.testing.assert_array_equal(
            np.concatenate([b.values for b in blocks]), whole.values
        )
        np.testing.assert_array_equal(
            np.concatenate([b.truth for b in blocks]), whole.truth
        )
        assert [r for b in blocks for r in b.rows] == [0, 1, 2]
    with pytest.raises(ValueError, match="cases must be a positive integer"):
        next(stream_cases(pairs, cases=0))


def test_a_stream_reads_a_block_when_it_is_asked_for(tmp_path, monkeypatch):
    """Chunks of other cases are not touched: they may even be gone."""
    import shutil

    ds = dialects.standard()
    ds.to_zarr(tmp_path / "f.zarr", encoding={"t2m": {"chunks": (1, 2, 3, 4, 5)}})
    pairs = pair(gridded.open_gridded(tmp_path / "f.zarr", report=None))
    assert gridded.case_block(pairs) == 3  # it fits as a whole
    assert gridded.case_block(pairs, limit_bytes=500) == 1
    stream = stream_cases(pairs, cases=1)
    first = next(stream)
    np.testing.assert_array_equal(first.values[:, :, :, 0], ds.t2m.values[:1])
    shutil.rmtree(tmp_path / "f.zarr" / "t2m" / "c" / "1")
    assert np.isnan(next(stream).values).all()  # a chunk that is not there is missing
    np.testing.assert_array_equal(next(stream).values[0, :, :, 0], ds.t2m.values[2])


def test_blocks_are_whole_chunks_where_they_fit(tmp_path):
    ds = dialects.standard()
    ds.to_zarr(tmp_path / "f.zarr", encoding={"t2m": {"chunks": (2, 2, 3, 4, 5)}})
    pairs = pair(gridded.open_gridded(tmp_path / "f.zarr", report=None))
    case = 4 * 2 * 3 * 20
    assert gridded.case_block(pairs, limit_bytes=2 * case) == 2
    assert gridded.case_block(pairs, limit_bytes=case) == 1


@pytest.mark.parametrize("counted", [False, True])
def test_an_archive_survives_the_way_to_datasets_and_back(tmp_path, counted):
    rng = np.random.default_rng(0)
    case, lead = dialects.TIMES, dialects.LEADS[1:]
    space = {"lat": dialects.LAT, "lon": dialects.LON}
    if counted:
        case, lead, space = np.arange(3) + 7, np.array([0.5, 2.0]), {}
        space = {"site": np.arange(20)}
    shape = [len(v) for v in space.values()]
    archive = Archive(
        rng.normal(size=(3, 2, 2, 2, *shape)),
        case=case,
        lead=lead,
        member=[4, 9],
        variable=["u", "v"],
        space=space,
        truth=rng.normal(size=(3, 2, 2, *shape)),
        units={"u": "m s-1"},
        source="a test",
    )
    forecast, truth = gridded.archive_to_datasets(archive)
    gridded.write_dataset(tmp_path / "f.zarr", forecast)
    gridded.write_dataset(tmp_path / "t.nc", truth)
    # What is no grid of latitudes says so in the file.
    back = pair(
        gridded.open_gridded(tmp_path / "f.zarr", report=None),
        gridded.open_gridded(tmp_path / "t.nc", report=None),
        names=("a test", "truth"),
    ).read()
    for name in ("values", "case", "lead", "member", "truth", "rows"):
        np.testing.assert_array_equal(getattr(back, name), getattr(archive, name))
    assert back.variable == archive.variable and back.source == archive.source
    assert back.units["u"] == "m s-1"
    for name, values in space.items():
        np.testing.assert_array_equal(back.space[name], values)


def _on_another_grid(ds):
    return ds.assign_coords(lat=ds.lat + 1.0)


def _of_other_variables(ds):
    return ds.rename(t2m="rain")


def _of_another_year(ds):
    return ds.assign_coords(time=ds.time + np.timedelta64(365, "D"))


def _with_members(ds):
    return ds.expand_dims(member=[0, 1])


def _in_another_calendar(ds):
    import cftime

    days = [cftime.datetime(2020, 1, 1 + i, calendar="noleap") for i in range(5)]
    return ds.assign_coords(time=days)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_on_another_grid, "differ in lat: 4 from -60.0 to 60.0 against 4 from -59.0"),
        (_of_other_variables, "truth has not 't2m'; it has 'rain'"),
        (_of_another_year, "no valid time of forecast"),
        (_with_members, "truth has 2 members"),
        (_in_another_calendar, "calendar 'standard', truth in 'noleap'"),
    ],
)
def test_what_cannot_be_paired_says_why(spoil, words):
    with pytest.raises(GriddedError, match=words):
        pair(dialects.standard(), spoil(dialects.truth()))


def test_a_forecast_needs_leads():
    with pytest.raises(GriddedError, match="no dimension of leads"):
        pair(dialects.truth(), dialects.truth())


def test_analyses_with_one_lead_of_zero_are_by_valid_time():
    """As cfgrib writes them: a scalar `step` beside `time`."""
    truth = dialects.truth()
    valid = ("time", truth.time.values)
    truth = truth.assign_coords(step=np.timedelta64(0, "ns"), valid_time=valid)
    truth.step.attrs["standard_name"] = "forecast_period"
    truth.time.attrs["standard_name"] = "forecast_reference_time"
    for known in (truth, gridded.standard_dataset(truth)):
        archive = pair(dialects.standard(), known).read()
        np.testing.assert_array_equal(archive.truth[:, :, 0], wanted_truth())
    # With another lead it is a forecast of the same starts.
    later = truth.assign_coords(step=np.timedelta64(24, "h"))
    found = np.isfinite(pair(dialects.standard(), later).read().truth[0, :, 0, 0, 0])
    np.testing.assert_array_equal(found, [False, True, False])


def test_fields_are_read_by_the_names_of_their_dimensions():
    ds = gridded.standard_dataset(dialects.standard().isel(lon=slice(0, 4)))
    pairs = pair(ds)
    turned = ds.transpose("time", "member", "lead", "lon", "lat")  # a square
    pairs = dataclasses.replace(pairs, forecast=turned)
    np.testing.assert_array_equal(pairs.read().values[:, :, :, 0], ds.t2m)
