"""The same small forecasts in the layouts that providers use."""

import numpy as np
import xarray as xr

TIMES = np.array(["2020-02-27", "2020-02-28", "2020-02-29"], "datetime64[ns]")
LEADS = np.array([0, 24, 48], "timedelta64[h]").astype("timedelta64[ns]")
MEMBERS = np.array([1, 2])
LAT = np.array([-60.0, -20.0, 20.0, 60.0])
LON = np.array([0.0, 72.0, 144.0, 216.0, 288.0])
LEVELS = np.array([500.0, 850.0])


def field(day, lat, lon, level=0.0):
    """A value for each day since 2020-02-27, place and level, told from all others."""
    return (
        100 * day[..., None, None]
        + 0.1 * lat[:, None]
        + 0.001 * lon
        + 0.5 * level / 100
    )


DAYS = np.arange(3)[:, None, None] + 10 * MEMBERS[None, :, None] + np.arange(3)
DAYS = DAYS.astype(np.float64)  # [time, member, lead]
# What the truth is on the day on which a forecast is valid.
TRUTH_TIMES = TIMES[0] + np.arange(5) * np.timedelta64(1, "D")
TRUTH_DAYS = np.arange(5.0)


def standard(levels=False):
    """As `standard_dataset` gives it: t2m, and z on two levels if asked."""
    dims = ("time", "member", "lead", "lat", "lon")
    data = {"t2m": (dims, field(DAYS, LAT, LON).astype("f4"), {"units": "K"})}
    coords = dict(time=TIMES, member=MEMBERS, lead=LEADS, lat=LAT, lon=LON)
    if levels:
        z = np.stack([field(DAYS, LAT, LON, level) for level in LEVELS], axis=3)
        order = ("time", "member", "lead", "level", "lat", "lon")
        data["z"] = (order, z.astype("f4"), {"units": "m2 s-2"})
        coords["level"] = LEVELS
    return xr.Dataset(data, coords)


def truth(levels=False):
    values = field(TRUTH_DAYS, LAT, LON).astype("f4")
    data = {"t2m": (("time", "lat", "lon"), values, {"units": "K"})}
    coords = dict(time=TRUTH_TIMES, lat=LAT, lon=LON)
    if levels:
        z = np.stack([field(TRUTH_DAYS, LAT, LON, level) for level in LEVELS], axis=1)
        data["z"] = (("time", "level", "lat", "lon"), z.astype("f4"))
        coords["level"] = LEVELS
    return xr.Dataset(data, coords)


def weatherbench():
    """prediction_timedelta and number; longitude before latitude."""
    ds = standard(levels=True).rename(
        lead="prediction_timedelta", member="number", lat="latitude", lon="longitude"
    )
    order = ("number", "time", "prediction_timedelta", "level", "longitude", "latitude")
    return ds.transpose(*order, missing_dims="ignore")


def ecmwf():
    """Descending latitudes, longitudes from -180, step in hours, valid_time beside."""
    ds = standard(levels=True).rename(
        lead="step",
        member="number",
        lat="latitude",
        lon="longitude",
        level="isobaricInhPa",
    )
    ds = ds.isel(latitude=slice(None, None, -1), isobaricInhPa=[1, 0])
    ds = ds.assign_coords(longitude=(ds.longitude + 180) % 360 - 180)
    ds = ds.sortby("longitude")
    valid = ds.time.values[:, None] + ds.step.values
    ds = ds.assign_coords(valid_time=(("time", "step"), valid), surface=0.0)
    ds.time.attrs["standard_name"] = "forecast_reference_time"
    ds.step.attrs["standard_name"] = "forecast_period"
    ds.valid_time.attrs["standard_name"] = "time"
    return ds.assign_coords(step=ds.step / np.timedelta64(1, "h")).assign_coords(
        step=lambda d: d.step.assign_attrs(units="hours")
    )


def climate_forecast():
    """Names that say nothing, standard names that say all; packed in 16 bits."""
    ds = standard().rename(time="a", lead="b", member="c", lat="d", lon="e")
    names = dict(
        a="forecast_reference_time",
        b="forecast_period",
        c="realization",
        d="latitude",
        e="longitude",
    )
    for dim, name in names.items():
        ds[dim].attrs["standard_name"] = name
    ds["crs"] = ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"})
    ds["d_bnds"] = (("d", "nv"), np.zeros((4, 2)))
    packing = dict(dtype="int32", scale_factor=1e-3, _FillValue=-(2**31))
    ds.t2m.encoding.update(packing)
    return ds


def stacked():
    """Variables as rows of one array, `init_time` and `lead_time`."""
    ds = standard(levels=True)
    rows = [ds.t2m, ds.z.isel(level=0, drop=True), ds.z.isel(level=1, drop=True)]
    names = np.array(["t2m", "z500", "z850"])
    array = xr.concat(rows, "variable").assign_coords(variable=names)
    order = ("time", "member", "lead", "variable", "lat", "lon")
    ds = array.transpose(*order).to_dataset(name="fields")
    return ds.rename(time="init_time", lead="lead_time")


def by_valid_time():
    """One forecast: valid times, and the start as a number beside."""
    ds = standard().isel(time=0)
    start = ds.time.values
    ds = ds.drop_vars("time").rename(lead="time").assign_coords(time=start + LEADS)
    ds = ds.assign_coords(forecast_reference_time=start)
    ds.forecast_reference_time.attrs["standard_name"] = "forecast_reference_time"
    ds.time.attrs["standard_name"] = "time"
    return ds.rename(member="realization")


def seasonal(calendar="noleap"):
    """Letters as names, leads in days, a calendar that NumPy has not."""
    import cftime

    days = [cftime.datetime(2020, 2, 27 + i, calendar=calendar) for i in range(2)]
    ds = standard().isel(time=slice(0, 2))
    ds = ds.assign_coords(time=days, lead=np.arange(3.0))
    ds = ds.rename(time="S", lead="L", member="M", lat="Y", lon="X")
    ds.L.attrs["units"] = "days"
    return ds
