"""What a climatology is at a time, and which of its rows that is."""

import numpy as np
import pytest

xr = pytest.importorskip("xarray")

from ensjax.emulate.climatology import fit_standardiser  # noqa: E402
from ensjax.emulate.gridded import climatologies, climatology_reader, pair  # noqa: E402
from ensjax.emulate.gridded.layout import GriddedError  # noqa: E402


@pytest.mark.parametrize("labels", [[0, 6, 12, 18], [12, 18, 0, 6], [18, 12, 6, 0]])
def test_hours_may_come_in_any_order(labels):
    times = np.array(["2020-03-01T00", "2020-03-01T07", "2020-03-01T23"], "M8[ns]")
    rows = climatologies._season_rows(labels, "hour", times, "climate")
    assert [labels[row] for row in rows] == [0, 6, 18]
    with pytest.raises(GriddedError, match="no hour 0; it has 6 to 18"):
        climatologies._season_rows([18, 6], "hour", times, "climate")


@pytest.mark.parametrize("space", [("lat", "lon"), ("site",)])
def test_counted_starts_have_a_constant_climatology(space):
    """Of a simulator, with a grid or without."""
    sizes, labels = [2, 3][: len(space)], ([-30.0, 30.0], [0.0, 120.0, 240.0])
    coords = dict(case=[7, 8], member=[0], lead=[0.5, 1.0, 2.0])
    coords |= dict(zip(space, labels))
    values = np.arange(6 * np.prod(sizes), dtype="f4").reshape(2, 1, 3, *sizes)
    dims = ("case", "member", "lead", *space)
    forecast = xr.Dataset({"x": (dims, values)}, coords)
    if space == ("site",):
        forecast.attrs["space_dims"] = "site"
    truth = forecast.isel(member=0, drop=True)
    pairs = pair(forecast, truth)
    climate = truth.mean(("case", "lead"), keep_attrs=False)
    read = climatology_reader(climate, pairs)
    wanted = np.broadcast_to(climate.x.values, (2, 3, *sizes))
    np.testing.assert_array_equal(read(pairs)[:, :, 0], wanted)
    part = pairs.select(case=np.array([1]), lead=np.array([0, 2]))
    np.testing.assert_array_equal(read(part)[:, :, 0], wanted[1:, :2])
    constant = fit_standardiser(values.reshape(6, 1, *sizes))
    read = climatology_reader(constant, pairs)
    np.testing.assert_allclose(read(pairs)[:, :, 0], wanted, rtol=1e-6)
    # By start and lead, as their truth is.
    read = climatology_reader(truth + 1, pairs)
    np.testing.assert_array_equal(read(part)[0, :, 0], truth.x.values[1, [0, 2]] + 1)
    months = climate.expand_dims(month=np.arange(1, 13))
    with pytest.raises(GriddedError, match="by month, but the starts of forecast are"):
        climatology_reader(months, pairs)
    with pytest.raises(GriddedError, match="no dates but the dimension 'lead' of 3"):
        climatology_reader(truth.mean("case"), pairs)
    seasonal = fit_standardiser(
        np.zeros((366, 1, *sizes)), np.datetime64("2020-01-01") + np.arange(366)
    )
    with pytest.raises(GriddedError, match="climate depends on the day of the year"):
        climatology_reader(seasonal, pairs)(pairs)


def test_a_missing_season_is_said_before_fields_are_read():
    time = np.datetime64("2020-01-30", "ns") + np.arange(3) * np.timedelta64(1, "D")
    grid = dict(lat=[-30.0, 30.0], lon=[0.0, 120.0, 240.0])
    coords = dict(time=time, member=[0], lead=[np.timedelta64(0, "ns")], **grid)
    dims = ("time", "member", "lead", "lat", "lon")
    pairs = pair(xr.Dataset({"x": (dims, np.zeros((3, 1, 1, 2, 3)))}, coords))
    climate = xr.Dataset(
        {"x": (("month", "lat", "lon"), np.zeros((1, 2, 3)))}, dict(month=[1], **grid)
    )
    with pytest.raises(GriddedError, match="climatology has no month 2; it has 1"):
        climatology_reader(climate, pairs)
