"""`standard_dataset`: any layout of a gridded file as one, without reading the fields.

The result is a dataset of xarray that still reads lazily. Its dimensions are those of
`DIMS`, as far as they are there, then other dimensions of space:

    time     start of the forecast (dates, or the integers of a simulator's `case`); in
             a dataset without leads, what the fields are of
    member   ids, integers
    lead     timedelta64[ns], or a simulator's own time
    level    ascending; or a number beside, where all is at one
    lat      degrees north, ascending
    lon      degrees east in [0, 360), ascending; those of a region that crosses
             Greenwich begin at its western end, as -20 to 20
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ensjax.emulate.gridded.grids import largest_gap
from ensjax.emulate.gridded.layout import (
    GriddedError,
    find_layout,
    lead_durations,
)
from ensjax.emulate.gridded.times import leads_between, read_times

DIMS = ("time", "member", "lead", "level", "lat", "lon")
# The attribute by which a dataset is known to be one of ours already.
_MARK = "ensjax_layout"
# The attribute that says how many starts a chunk of the file holds.
CHUNK = "ensjax_time_chunk"
OWN_ATTRIBUTES = (_MARK, CHUNK)


def standard_dataset(
    dataset: Any,
    mapping: Mapping[str, Any] | None = None,
    *,
    variables: Sequence[str] | None = None,
    seasons: Sequence[str] = (),
    name: str = "dataset",
    report: Callable[[str], None] | None = None,
) -> Any:
    """The dataset with our names, orders and units; fields stay unread.

    Args:
        dataset: of xarray, as opened or made.
        mapping: as in `find_layout`.
        variables: those to keep; by default all that lie on the grid.
        seasons: dimensions of a climatology, which stand in the place of time.
        name: of the file, for errors.
        report: is told each guess, and what was left out, in a line.

    Returns:
        A dataset whose variables are `[time, member, lead, level, lat, lon]`, or what
        they have of it; a forecast always has time, member and lead, a truth time.

    Raises:
        GriddedError: if the layout is unclear, a variable has a dimension that is
            none of these, a coordinate is missing, or one comes twice.
    """
    if not hasattr(dataset, "data_vars"):
        raise GriddedError(
            f"{name}: expected a Dataset of xarray, got {type(dataset).__name__}; a"
            " DataArray becomes one with .to_dataset(name=...)."
        )
    if dataset.attrs.get(_MARK) == "standard" and not mapping:
        return _keep(dataset, variables, name) if variables else dataset
    layout = find_layout(dataset, mapping, name=name, report=report)
    chunk = _chunk_of(dataset, layout.time)
    dataset = _unstack_variables(dataset, layout, name)
    dataset = _on_the_grid(dataset, layout, variables, name, report)
    if not seasons:
        dataset = _with_times(dataset, layout, name)
    dataset = _with_members(dataset, layout, name)
    dataset = _with_levels(dataset, layout, name)
    if layout.lat is not None:
        dataset = _with_latitudes(dataset, layout, name)
        dataset = _with_longitudes(dataset, layout, name, report)
    space = [d for d in layout.space or () if d in dataset.dims]
    _check_dims(dataset, [*seasons, *space], name)
    order = [d for d in (*seasons, *DIMS, *space) if d in dataset.dims]
    dataset = dataset.transpose(*order)
    extra = [c for c in dataset.coords if c not in (*order, "level")]
    dataset = dataset.drop_vars(extra)
    return dataset.assign_attrs({_MARK: "standard", CHUNK: chunk})


def is_forecast(dataset: Any) -> bool:
    """Whether a standard dataset has leads."""
    return "lead" in dataset.dims


def space_of(dataset: Any) -> list[str]:
    """Dimensions of space of a standard dataset, in the order of its fields."""
    inside = [d for d in dataset.dims if d not in DIMS[:4]]
    return [d for d in ("lat", "lon") if d in inside] + [
        d for d in inside if d not in ("lat", "lon")
    ]


def coordinate(dataset: Any, dim: str) -> np.ndarray:
    """Labels of a dimension; positions where it has none."""
    if dim in dataset.coords:
        return dataset[dim].values
    return np.arange(dataset.sizes[dim])


def _chunk_of(dataset, dim):
    chunks = [a.encoding.get("preferred_chunks") for a in dataset.data_vars.values()]
    return max((int(c.get(dim, 1)) for c in chunks if c), default=1)


def _unstack_variables(dataset, layout, name):
    """Variables that are rows of one array as variables of their own."""
    dim = layout.variable
    if dim is None:
        return dataset
    if dim not in dataset.dims:
        return dataset.drop_vars(dim)
    labels = [str(v) for v in dataset[dim].values] if dim in dataset.coords else None
    if labels is None or len(set(labels)) < len(labels):
        raise GriddedError(
            f"{name}: the dimension {dim!r} of variables needs their names as its"
            f" coordinate, each once; got {labels}."
        )
    arrays = {v: a for v, a in dataset.data_vars.items() if dim in a.dims}
    if len(arrays) != 1:
        raise GriddedError(
            f"{name}: {len(arrays)} variables have the dimension {dim!r}"
            f" ({', '.join(map(str, arrays))}); expected one."
        )
    (stacked, array), *_ = arrays.items()
    rest = dataset.drop_vars([stacked, dim])
    clash = sorted(set(labels) & set(map(str, rest.variables)))
    if clash:
        raise GriddedError(f"{name}: {', '.join(clash)} of {dim!r} are there already.")
    rows = {v: array.isel({dim: i}).drop_vars(dim) for i, v in enumerate(labels)}
    units = array.attrs.get("units_of_variables")
    for each, row in rows.items():
        row.attrs = dict(array.attrs)
        if units is not None:
            row.attrs["units"] = dict(zip(labels, np.atleast_1d(units)))[each]
            row.attrs.pop("units_of_variables")
    return rest.assign(rows)


def _keep(dataset, variables, name):
    missing = [v for v in variables if v not in dataset.data_vars]
    if missing:
        raise GriddedError(
            f"{name}: there is no variable {', '.join(map(repr, missing))}; there are"
            f" {', '.join(map(str, dataset.data_vars))}."
        )
    return dataset[list(variables)]


def _on_the_grid(dataset, layout, variables, name, report):
    """The variables that have all dimensions of space."""
    space = (
        [layout.lat, layout.lon] if layout.lat is not None else list(layout.space or ())
    )
    if layout.lat is None and layout.space is None:
        raise GriddedError(
            f"{name}: there is no latitude among the dimensions"
            f" ({', '.join(map(str, dataset.dims))}). Say what they are:"
            " mapping={'lat': ..., 'lon': ...}, or mapping={'space': ('site',)} for"
            " other grids."
        )
    if layout.lat is not None and layout.lon is None:
        raise GriddedError(
            f"{name}: there is a latitude ({layout.lat!r}) but no longitude among"
            f" {', '.join(map(str, dataset.dims))}. Say: mapping={{'lon': ...}}."
        )
    for role in (layout.lat, layout.lon):
        if role is not None and role not in dataset.dims:
            raise GriddedError(
                f"{name}: {role!r} is a coordinate, not a dimension; one column needs"
                f" dataset.expand_dims({role!r}) first."
            )
    if variables:
        dataset = _keep(dataset, variables, name)
    inside = [v for v, a in dataset.data_vars.items() if set(space) <= set(a.dims)]
    if variables and len(inside) < len(variables):
        outside = [v for v in variables if v not in inside]
        raise GriddedError(
            f"{name}: {', '.join(map(repr, outside))} has not the dimensions"
            f" {', '.join(map(str, space))} of the grid."
        )
    numeric = [v for v in inside if dataset[v].dtype.kind in "iuf"]
    if not numeric:
        raise GriddedError(
            f"{name}: no variable of numbers has the dimensions"
            f" {', '.join(map(str, space))}; there are"
            f" {', '.join(map(str, dataset.data_vars)) or 'none'}."
        )
    varying = {layout.time, layout.valid_time, layout.lead} & set(dataset.dims)
    moving = [v for v in numeric if varying & set(dataset[v].dims)]
    if moving and not variables:
        numeric = moving
    left_out = [str(v) for v in dataset.data_vars if v not in numeric]
    if left_out and report is not None:
        report(
            f"{name}: left out, not on the grid or not in time: {', '.join(left_out)}"
        )
    # Indexing by coordinates keeps those that a subset of variables would lose.
    return dataset[numeric].assign_coords(dataset.coords)


def _with_times(dataset, layout, name):
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
    is_counted = layout.time == "case" and labels.dtype.kind in "iu"
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
    if is_counted and labels.dtype.kind in "iuf":
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


def _with_members(dataset, layout, name):
    is_needed = is_forecast(dataset)
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


def _with_levels(dataset, layout, name):
    if layout.level is None:
        return dataset.drop_vars("level", errors="ignore")
    dataset = _rename(dataset, layout.level, "level", name)
    if "level" not in dataset.dims:  # one number for all of it
        return dataset
    where = f"{name}, level {layout.level!r}"
    return _put(dataset, "level", _labels(dataset, "level", where), where)


def _with_latitudes(dataset, layout, name):
    dataset = _rename(dataset, layout.lat, "lat", name)
    where = f"{name}, latitude {layout.lat!r}"
    lat = _labels(dataset, "lat", where).astype(np.float64)
    if not np.all(np.abs(lat) <= 90 + 1e-6):
        raise GriddedError(
            f"{where} must be within [-90, 90]; got {lat.min()} to {lat.max()}."
        )
    return _put(dataset, "lat", np.clip(lat, -90, 90), where)


def _with_longitudes(dataset, layout, name, report):
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


def _check_dims(dataset, space, name):
    known = {*DIMS, *space}
    for each, array in dataset.data_vars.items():
        for dim in array.dims:
            if dim not in known:
                raise GriddedError(
                    f"{name}: variable {each!r} has the dimension {dim!r} of"
                    f" {array.sizes[dim]}, which is none of {', '.join(DIMS)}. Choose"
                    f" one with dataset.isel({dim}=0), leave the variable out with"
                    f" variables=..., or say what it is with mapping={{...: {dim!r}}}."
                )
