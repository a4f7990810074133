"""Forecasts on disk: whole or not at all, and as CF says."""

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax.emulate import gridded  # noqa: E402
from ensjax.emulate.archive import Archive  # noqa: E402
from ensjax.emulate.gridded import GriddedError  # noqa: E402

LAT, LON = np.array([-45.0, 0.0, 45.0]), np.array([0.0, 120.0, 240.0])


def archive(offset=0.0):
    values = np.arange(2 * 3 * 2 * 2 * 9.0).reshape(2, 3, 2, 2, 3, 3) + offset
    return Archive(
        values,
        case=np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
        member=[5, 6, 11],
        lead=np.array([6, 12], "timedelta64[h]"),
        variable=["t2m", "z_500"],
        space={"lat": LAT, "lon": LON},
        units={"t2m": "K", "z_500": "m2 s-2"},
    )


@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_a_file_holds_coordinates_ids_and_the_attributes_of_cf(tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    gridded.write_forecast(path, archive(), attributes={"title": "a test"})
    with xr.open_dataset(path, decode_timedelta=True) as ds:
        names = {c: ds[c].attrs.get("standard_name") for c in ds.coords}
        assert names == {
            "time": "forecast_reference_time",
            "lead": "forecast_period",
            "member": "realization",
            "lat": "latitude",
            "lon": "longitude",
            "valid_time": "time",
        }
        assert ds.lat.attrs["units"] == "degrees_north"
        assert ds.member.values.tolist() == [5, 6, 11]
        assert ds.t2m.attrs["units"] == "K" and ds.title == "a test"
        assert ds.Conventions.startswith("CF-") and "ensjax" in ds.history
        np.testing.assert_array_equal(
            ds.valid_time.values[1], ds.time.values[1] + ds.lead.values
        )
        np.testing.assert_array_equal(ds.z_500.values, archive().values[:, :, :, 1])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = gridded.archive_from_dataset(gridded.open_gridded(path, report=None))
    np.testing.assert_array_equal(back.values, archive().values)


@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_nothing_is_replaced_without_being_told(tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    gridded.write_forecast(path, archive())
    with pytest.raises(GriddedError, match="is there already"):
        gridded.write_forecast(path, archive(offset=1))
    read = gridded.open_gridded(path, report=None)
    np.testing.assert_array_equal(read.t2m.values, archive().values[:, :, :, 0])
    gridded.write_forecast(path, archive(offset=1), overwrite=True)
    read = gridded.open_gridded(path, report=None)
    np.testing.assert_array_equal(read.t2m.values, archive(1).values[:, :, :, 0])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_no_zarr_is_never_replaced(tmp_path):
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr" / "one.jpg").write_bytes(b"x")
    (tmp_path / "folder.nc").mkdir()
    for name in ("photos.zarr", "folder.nc"):
        with pytest.raises(GriddedError, match="is not overwritten: it is no"):
            gridded.write_forecast(tmp_path / name, archive(), overwrite=True)
    assert (tmp_path / "photos.zarr" / "one.jpg").exists()
    with pytest.raises(GriddedError, match=r"must end in \.zarr or \.nc"):
        gridded.write_forecast(tmp_path / "out.txt", archive())


@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_a_failure_leaves_what_was_there(tmp_path, ending, monkeypatch):
    path = tmp_path / f"out.{ending}"
    gridded.write_forecast(path, archive())
    method = "to_zarr" if ending == "zarr" else "to_netcdf"
    write = getattr(xr.Dataset, method)

    def fails_late(self, *args, **options):
        write(self, *args, **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.Dataset, method, fails_late)
    for target in (path, tmp_path / f"new.{ending}"):
        with pytest.raises(OSError, match="No space left"):
            gridded.write_forecast(target, archive(offset=1), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = gridded.open_gridded(path, report=None)
    np.testing.assert_array_equal(read.t2m.values, archive().values[:, :, :, 0])


def writer(path, **options):
    one = archive()
    names = ("case", "member", "lead", "variable", "space", "units")
    return gridded.forecast_writer(
        path, **{name: getattr(one, name) for name in names}, **options
    )


def test_members_are_written_block_by_block(tmp_path):
    whole = archive().values
    with writer(tmp_path / "out.zarr", member_chunk=2) as write:
        write(whole[:, :2], member=slice(0, 2))
        assert not (tmp_path / "out.zarr").exists()
        write(whole[:1, 2:], case=slice(0, 1), member=slice(2, 3))
    read = gridded.archive_from_dataset(
        gridded.open_gridded(tmp_path / "out.zarr", report=None)
    )
    np.testing.assert_array_equal(read.values[:, :2], whole[:, :2])
    np.testing.assert_array_equal(read.values[0], whole[0])
    assert np.isnan(read.values[1, 2]).all()  # never written
    np.testing.assert_array_equal(read.member, [5, 6, 11])
    assert read.units["t2m"] == "K"


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "out.zarr") as write:
        write(archive().values)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_another_shape_is_refused(tmp_path):
    words = r"= \(2, 1, 2, 2, 3, 3\); got"
    with (
        pytest.raises(GriddedError, match=words),
        writer(tmp_path / "out.zarr") as write,
    ):
        write(archive().values[:, :2], member=slice(0, 1))


def test_blocks_go_into_netcdf_as_into_zarr(tmp_path, monkeypatch):
    whole = archive().values
    for ending in ("zarr", "nc"):
        with writer(tmp_path / f"out.{ending}", member_chunk=2) as write:
            write(whole[:, :2], member=slice(0, 2))
            assert not (tmp_path / f"out.{ending}").exists()
            write(whole[:1, 2:], case=slice(0, 1), member=slice(2, 3))
    found = []
    for ending in ("zarr", "nc"):
        with xr.open_dataset(tmp_path / f"out.{ending}", decode_timedelta=True) as ds:
            found.append(ds.load().drop_attrs(deep=False))
    xr.testing.assert_identical(*found)
    assert np.isnan(found[1].t2m.values[1, 2]).all()  # never written
    # A disk that is too full is refused before anything is written.
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(
        "ensjax.emulate.gridded.writing.shutil.disk_usage", lambda place: full
    )
    with pytest.raises(OSError, match="No space left"), writer(tmp_path / "b.nc"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"out.zarr", "out.nc"}
