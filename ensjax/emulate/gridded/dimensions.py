"""Dimensions of a gridded file as ours: names, order and labels of each.

Each function takes the dataset and gives it with one kind of dimension put right, as
`standard_dataset` wants them. Fields are not read.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ensjax.emulate.gridded.grids import largest_gap
from ensjax.emulate.gridded.layout import GriddedError, Layout, lead_durations
from ensjax.emulate.gridded.times import leads_between, read_times


def with_times(dataset: Any, layout: Layout, name: str, *, counts: bool = False) -> Any:
    """Starts as `time`, and what is counted from them as `lead`, if there are leads.

    `counts`: whether integers may be counted starts by another name than `case`.

    Raises:
        GriddedError: if there is no time, or its labels are no times.
    """
    if layout.valid_time is not None:
        dataset = _from_valid_times(dataset, layout, name)
    else:
        dataset = _expand(_rename(dataset, layout.time, "time", name), "time")
    if "time" not in dataset.dims:
        raise GriddedError(
            f"{name}: there is no time among the dimensions and coordinates"
            f" ({', '.join(map(str, [*dataset.dims, *dataset.coords]))}). Say which it"
            " is: mapping={'time': ...}."
        )
    where = f"{name}, time {layout.time or layout.valid_time!r}"
    labels = _labels(dataset, "time", where)
    # A simulator's starts are counted, and its leads have no calendar either.
    is_counted = labels.dtype.kind in "iu" and (
        layout.time == "case" or (counts and "units" not in dataset["time"].attrs)
    )
    times = labels if is_counted else read_times(labels, where=where)
    dataset = _put(dataset, "time", times, where)
    if layout.valid_time is None and layout.lead is not None:
        dataset = _with_leads(dataset, layout, name, is_counted)
    dims = ("time", "lead") if "lead" in dataset.dims else ("time",)
    return _everywhere(dataset, dims)


def _with_leads(dataset, layout, name, is_counted):
    dataset = _expand(_rename(dataset, layout.lead, "lead", name), "lead")
    where = f"{name}, lead {layout.lead!r}"
    units = layout.lead_units or dataset["lead"].attrs.get("units")
    labels = _labels(dataset, "lead", where)
    # Durations of counted starts say in a file what they were.
    is_duration = str(dataset["lead"].attrs.get("dtype", "")).startswith("timedelta")
    if is_counted and labels.dtype.kind in "iuf" and not is_duration:
        return _put(dataset, "lead", labels, where)
    return _put(dataset, "lead", lead_durations(labels, units, where=where), where)


def _from_valid_times(dataset, layout, name):
    """One forecast by valid time, or many of one lead, as starts and leads."""
    valid = layout.valid_time
    where = f"{name}, valid time {valid!r}"
    times = read_times(_labels(dataset, valid, where), where=where)
    if layout.time is None:  # many forecasts of one lead
        lead = dataset[layout.lead]
        units = layout.lead_units or lead.attrs.get("units")
        leads = lead_durations(
            np.atleast_1d(lead.values), units, where=f"{name}, lead {layout.lead!r}"
        )
        if times.dtype.kind == "M":
            starts = times - leads[0]
        else:
            step = leads[0].astype("timedelta64[us]").astype(object)
            starts = np.array([t - step for t in times], object)
        dataset = dataset.drop_vars([layout.lead, valid]).rename({valid: "time"})
        return dataset.assign_coords(time=starts).expand_dims(lead=leads)
    start = dataset[layout.time]
    if start.ndim:
        raise GriddedError(
            f"{name}: both the start {layout.time!r} and the valid time {valid!r} are"
            " dimensions; leads are wanted beside starts. Say:"
            " mapping={'valid_time': None, 'lead': ...}."
        )
    starts = read_times(np.atleast_1d(start.values), where=f"{name}, {layout.time!r}")
    if (starts.dtype.kind == "M") != (times.dtype.kind == "M"):
        raise GriddedError(f"{name}: {layout.time!r} and {valid!r} differ in calendar.")
    leads = leads_between(starts[0], times)
    extra = {layout.time, valid, layout.lead} - {None}
    dataset = dataset.drop_vars([v for v in extra if v in dataset.variables])
    dataset = dataset.rename({valid: "lead"}).assign_coords(lead=leads)
    return dataset.expand_dims(time=starts)


def with_members(dataset: Any, layout: Layout, name: str) -> Any:
    """Members by integer ids; a forecast without members has one, a truth none.

    Raises:
        GriddedError: if ids are neither integers nor names.
    """
    is_needed = "lead" in dataset.dims
    if layout.member is None:
        if not is_needed:
            return dataset
        dataset = dataset.expand_dims(member=np.zeros(1, np.int64))
        return _everywhere(dataset, ("member",))
    dataset = _expand(_rename(dataset, layout.member, "member", name), "member")
    ids = (
        dataset["member"].values
        if "member" in dataset.coords
        else np.arange(dataset.sizes["member"])
    )
    where = f"{name}, member {layout.member!r}"
    dataset = _put(dataset, "member", _member_ids(ids, where), where, sort=False)
    if not is_needed and dataset.sizes["member"] == 1:
        return dataset.squeeze("member", drop=True)
    return _everywhere(dataset, ("member",))


def _member_ids(ids, where):
    ids = np.asarray(ids)
    if ids.dtype.kind == "f" and np.all(ids == np.rint(ids)):
        return ids.astype(np.int64)
    if ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    # Names such as "p01" end in the number; r1i1p1 does not, and is counted through.
    digits = ["".join(c for c in str(v) if c.isdigit()) for v in ids]
    if all(str(v).endswith(d) and d for v, d in zip(ids, digits)):
        numbers = [int(d) for d in digits]
        if len(set(numbers)) == len(numbers):
            return np.array(numbers, np.int64)
    if ids.dtype.kind in "UOST":
        return np.arange(len(ids), dtype=np.int64)
    raise GriddedError(f"{where}: ids must be integers or names; got {ids.dtype}.")


def with_levels(dataset: Any, layout: Layout, name: str) -> Any:
    """Levels, ascending; or a number beside, where all is at one.

    Raises:
        GriddedError: if a level has no label, or comes twice.
    """
    if layout.level is None:
        return dataset.drop_vars("level", errors="ignore")
    dataset = _rename(dataset, layout.level, "level", name)
    if "level" not in dataset.dims:  # one number for all of it
        return dataset
    where = f"{name}, level {layout.level!r}"
    return _put(dataset, "level", _labels(dataset, "level", where), where)


def with_latitudes(dataset: Any, layout: Layout, name: str) -> Any:
    """Degrees north as `lat`, ascending.

    Raises:
        GriddedError: if they are none.
    """
    dataset = _rename(dataset, layout.lat, "lat", name)
    where = f"{name}, latitude {layout.lat!r}"
    lat = _labels(dataset, "lat", where).astype(np.float64)
    if not np.all(np.abs(lat) <= 90 + 1e-6):
        raise GriddedError(
            f"{where} must be within [-90, 90]; got {lat.min()} to {lat.max()}."
        )
    return _put(dataset, "lat", np.clip(lat, -90, 90), where)


def with_longitudes(
    dataset: Any, layout: Layout, name: str, report: Callable[[str], None] | None
) -> Any:
    """Degrees east as `lon`, ascending from 0 or from the western end of a region.

    Raises:
        GriddedError: if they are none.
    """
    dataset = _rename(dataset, layout.lon, "lon", name)
    where = f"{name}, longitude {layout.lon!r}"
    lon = _labels(dataset, "lon", where).astype(np.float64)
    if not np.all((lon >= -360 - 1e-6) & (lon <= 720 + 1e-6)):
        raise GriddedError(f"{where} must be degrees; got {lon.min()} to {lon.max()}.")
    turned = np.mod(lon, 360.0)
    turned[turned > 360.0 - 1e-5] = 0.0  # -1e-7 is east of Greenwich
    is_closed = len(lon) > 2 and abs(abs(lon[-1] - lon[0]) - 360) < 1e-5
    if is_closed:  # the last column is the first again
        if report is not None:
            report(f"{name}: longitude {lon[-1]:g} repeats {lon[0]:g} and is left out")
        dataset, turned = dataset.isel(lon=slice(None, -1)), turned[:-1]
    ordered = np.sort(turned)
    at, is_open = largest_gap(ordered)
    if is_open and at < len(ordered) - 1:  # the region crosses Greenwich
        turned = np.where(turned > ordered[at], turned - 360.0, turned)
    return _put(dataset, "lon", turned, where)


def _rename(dataset, old, new, name):
    if old is None or old == new:
        return dataset
    if new in dataset.dims:
        raise GriddedError(
            f"{name}: {old!r} is taken for {new}, but there is a dimension {new!r} too;"
            f" rename it, or say mapping={{{new!r}: {new!r}}}."
        )
    if new in dataset.variables:  # a coordinate beside, such as a 2-D lat
        dataset = dataset.drop_vars(new)
    return dataset.rename({old: new})


def _expand(dataset, dim):
    is_scalar = dim in dataset.coords and dataset[dim].ndim == 0
    return dataset.expand_dims(dim) if is_scalar else dataset


def _everywhere(dataset, dims):
    """Gives variables without some dimension a copy along it (a view, not memory)."""
    for dim in dims:
        for each, array in dataset.data_vars.items():
            if dim not in array.dims:
                dataset[each] = array.expand_dims({dim: dataset[dim]})
    return dataset


def _labels(dataset, dim, where):
    if dim not in dataset.coords:
        raise GriddedError(f"{where} has no coordinate, only a length.")
    return np.atleast_1d(dataset[dim].values)


def _put(dataset, dim, labels, where, sort=True):
    """Labels the dimension, in ascending order, each once."""
    attributes = {
        k: v
        for k, v in (dataset[dim].attrs if dim in dataset.coords else {}).items()
        if k in ("standard_name", "long_name", "units") and dim not in ("lead", "time")
    }
    order = np.argsort(labels, kind="stable") if sort else np.arange(len(labels))
    ordered = labels[order]
    keys = [str(v) for v in ordered]
    twice = next((k for i, k in enumerate(keys[1:]) if keys[i] == k), None)
    if len(set(keys)) < len(keys):
        twice = twice or next(k for k in keys if keys.count(k) > 1)
        raise GriddedError(f"{where} holds {twice} twice.")
    if np.any(np.diff(order) != 1):
        step = slice(None, None, -1) if np.all(np.diff(order) == -1) else order
        dataset = dataset.isel({dim: step})
    dataset = dataset.assign_coords({dim: (dim, ordered)})
    dataset[dim].attrs.update(attributes)
    return dataset
