"""An `Archive` as datasets of xarray with the attributes of CF, and back."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded.layout import SPACE_DIMS
from ensjax.emulate.gridded.packages import optional_package
from ensjax.emulate.gridded.pairing import pair
from ensjax.emulate.gridded.times import from_hours_since

# What CF says of coordinates, by our names.
COORDINATE_ATTRIBUTES = {
    "time": {
        "standard_name": "forecast_reference_time",
        "long_name": "start of the forecast",
    },
    "case": {"long_name": "number of the start"},
    "lead": {
        "standard_name": "forecast_period",
        "long_name": "time since the start of the forecast",
    },
    "member": {
        "standard_name": "realization",
        "long_name": "id of the member",
        "units": "1",
    },
    "lat": {
        "standard_name": "latitude",
        "long_name": "latitude",
        "units": "degrees_north",
        "axis": "Y",
    },
    "lon": {
        "standard_name": "longitude",
        "long_name": "longitude",
        "units": "degrees_east",
        "axis": "X",
    },
    "valid_time": {"standard_name": "time", "long_name": "time of validity"},
}


def forecast_coordinates(
    *,
    case: np.ndarray,
    member: np.ndarray,
    lead: np.ndarray,
    space: Mapping[str, np.ndarray],
    units: Mapping[str, str] | None = None,
) -> Any:
    """A dataset of coordinates alone, with the attributes of CF.

    Args:
        case, member, lead, space, units: as of an `Archive`.

    Returns:
        Coordinates `time` (or `case`, where starts are counted), `member`, `lead`,
        those of space, and `valid_time` `[time, lead]` where there are dates.
    """
    xarray = optional_package("xarray")
    units = dict(units or {})
    case, lead = np.asarray(case), np.asarray(lead)
    calendar = units.pop("case", "")
    if re.fullmatch(r"hours since \S+ calendar \w+", calendar):
        case = from_hours_since(case, calendar)
        lead = np.rint(lead * 3600).astype("timedelta64[s]")
        units.pop("lead", None)
    elif case.dtype.kind == "M":
        case = case.astype("datetime64[ns]")
    start = "case" if case.dtype.kind in "iu" else "time"
    if lead.dtype.kind == "m":
        lead = lead.astype("timedelta64[ns]")
    coordinates = {start: case, "member": np.asarray(member), "lead": lead}
    coordinates |= {name: np.asarray(values) for name, values in space.items()}
    dataset = xarray.Dataset(coords={k: (k, v) for k, v in coordinates.items()})
    for name in dataset.coords:
        dataset[name].attrs.update(COORDINATE_ATTRIBUTES.get(name, {}))
        if name in units:
            dataset[name].attrs["units"] = units[name]
    if list(space) != ["lat", "lon"]:
        dataset.attrs[SPACE_DIMS] = " ".join(space)
    if case.dtype.kind == "M" and lead.dtype.kind == "m":
        valid = case[:, None] + lead[None, :]
        dataset = dataset.assign_coords(valid_time=(("time", "lead"), valid))
        dataset["valid_time"].attrs.update(COORDINATE_ATTRIBUTES["valid_time"])
    return dataset


def archive_to_datasets(archive: Archive) -> tuple[Any, Any]:
    """The forecasts and the truth of an archive, as datasets of xarray.

    Args:
        archive: any. Where its cases are integers, they are called `case`.

    Returns:
        Forecasts, variables `[time, member, lead, *space]`; and the truth, variables
        `[time, lead, *space]`, or None. Both share memory with the archive.
    """
    parts = dict(case=archive.case, lead=archive.lead, space=archive.space)
    named = {k: v for k, v in archive.units.items() if k not in archive.variable}
    forecast = forecast_coordinates(**parts, member=archive.member, units=named)
    start = "case" if "case" in forecast.dims else "time"
    dims = (start, "member", "lead", *archive.space)
    truth = None
    if archive.truth is not None:
        truth = forecast.drop_vars("member")
    for i, name in enumerate(archive.variable):
        unit = archive.units.get(name)
        attributes = {"long_name": name} | ({"units": unit} if unit else {})
        forecast[name] = (dims, archive.values[:, :, :, i], attributes)
        if truth is not None:
            without = tuple(d for d in dims if d != "member")
            truth[name] = (without, archive.truth[:, :, i], attributes)
    if archive.source:
        forecast.attrs["source"] = archive.source
    return forecast, truth


def archive_from_dataset(
    forecast: Any, truth: Any = None, *, source: str | None = None
) -> Archive:
    """An archive in memory of forecasts and what came true.

    Args:
        forecast: a dataset of xarray with leads, in any layout that can be guessed.
        truth: by valid time, or with leads for the same starts; or None.
        source: where it comes from, in words; by default what the forecast's attribute
            `source` says.

    Returns:
        The archive. Levels of a variable are variables: `z_500`. Where the calendar is
        not NumPy's, cases are hours, and `units["case"]` says since when.

    Raises:
        GriddedError: as `pair` does.
    """
    said = forecast.attrs.get("source", "dataset") if source is None else source
    return pair(forecast, truth, names=(str(said), "truth")).read()
