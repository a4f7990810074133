"""Which dimension of a file is which: told by a mapping, or guessed and said.

Files of forecasts agree on little: the start is called `time`, `init_time` or
`forecast_reference_time`, members `number` or `realization`. A guess takes the
strongest sign that there is (a CF standard name, then units, an axis, a usual name),
and never chooses between two that are equally strong.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class GriddedError(ValueError):
    """A file, dataset or mapping cannot be understood; names it and what to do."""


class Layout(NamedTuple):
    """Names in a file of what we call them; None for what is not there.

    Attributes:
        time: when forecasts start; in a file without leads, the time that it is of.
        valid_time: the dimension of a file that holds one forecast by valid time.
        member, lead, level, lat, lon: as they say.
        variable: a dimension along which variables are stacked, with their names.
        space: dimensions of space where there is no lat and lon, in their order; `()`
            where there is no space. None: there are lat and lon.
        lead_units: of numbers without units, such as "hours".
    """

    time: str | None = None
    valid_time: str | None = None
    member: str | None = None
    lead: str | None = None
    level: str | None = None
    variable: str | None = None
    lat: str | None = None
    lon: str | None = None
    space: tuple[str, ...] | None = None
    lead_units: str | None = None


# An attribute of our files: names of dimensions of space, with spaces between.
SPACE_DIMS = "space_dims"
_STANDARD_NAMES = {
    "time": ("forecast_reference_time",),
    "valid_time": ("time",),
    "member": ("realization",),
    "lead": ("forecast_period",),
    "level": (
        "air_pressure",
        "altitude",
        "depth",
        "geopotential_height",
        "height",
        "model_level_number",
        "atmosphere_hybrid_sigma_pressure_coordinate",
        "atmosphere_sigma_coordinate",
    ),
    "lat": ("latitude",),
    "lon": ("longitude",),
}
_UNITS = {
    "lat": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreen"),
    "lon": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreee"),
    "level": ("hpa", "mbar", "millibar", "millibars", "mb", "pa"),
}
_AXES = {"T": "valid_time", "Z": "level", "E": "member"}
_NAMES = {
    "time": (
        "init_time",
        "forecast_reference_time",
        "reference_time",
        "initial_time",
        "initialization_time",
        "init",
        "start_time",
        "start_date",
        "case",
        "s",
    ),
    "valid_time": ("time", "valid_time", "t"),
    "member": (
        "member",
        "number",
        "realization",
        "realisation",
        "ensemble",
        "ensemble_member",
        "ens",
        "sample",
        "m",
    ),
    "lead": (
        "lead",
        "lead_time",
        "leadtime",
        "prediction_timedelta",
        "step",
        "forecast_period",
        "forecast_hour",
        "fhour",
        "l",
    ),
    "level": (
        "level",
        "pressure_level",
        "plev",
        "isobaricinhpa",
        "pressure",
        "lev",
        "height",
        "depth",
        "altitude",
    ),
    "variable": ("variable", "channel", "var", "field", "param"),
    "lat": ("lat", "latitude", "y"),
    "lon": ("lon", "longitude", "x"),
}
_KINDS = ("standard name", "units", "axis", "name")
ROLES = tuple(_NAMES)


def find_layout(
    dataset: Any,
    mapping: Mapping[str, Any] | None = None,
    *,
    name: str = "dataset",
    report: Callable[[str], None] | None = None,
) -> Layout:
    """The layout of a dataset: what `mapping` says, and guesses for the rest.

    Args:
        dataset: of xarray, as opened.
        mapping: names in the file by our words (the fields of `Layout`), such as
            `{"time": "init", "member": "ens"}`; None says that there is no such
            dimension. `space` is a tuple of dimensions or their names with commas,
            `lead_units` a word.
        name: of the file, for errors.
        report: is told each guess in a line, such as `print`.

    Returns:
        The layout. In a file with leads, `time` is the start; in one without, it is the
        time of the fields.

    Raises:
        GriddedError: if the mapping names what is not there, or two dimensions fit a
            word equally well.
    """
    given = _check_mapping(dataset, dict(mapping or {}), name)
    if "space" not in given and SPACE_DIMS in dataset.attrs:
        said = tuple(str(dataset.attrs[SPACE_DIMS]).split())
        if set(said) <= set(map(str, dataset.dims)):
            given["space"] = said
    found: dict[str, Any] = dict(given)
    taken = {v for v in given.values() if isinstance(v, str)}
    taken |= set(given.get("space") or ())
    lines = []
    for role in ROLES:
        is_elsewhere = role in ("lat", "lon") and given.get("space") is not None
        if role in given or is_elsewhere:
            continue
        best, why = _guess(dataset, role, taken, name)
        if best is not None:
            found[role] = best
            taken.add(best)
            lines.append((role, best, why))
    found, lines = _settle_times(dataset, found, given, lines)
    layout = Layout(**found)
    if report is not None:
        for role, best, why in lines:
            report(f"{name}: {_WORDS[role]} is {best!r} (by its {why})")
    return layout


_WORDS = {
    "time": "time",
    "valid_time": "valid time",
    "member": "member",
    "lead": "lead",
    "level": "level",
    "variable": "variable",
    "lat": "latitude",
    "lon": "longitude",
}


def _check_mapping(dataset, mapping, name):
    unknown = sorted(set(mapping) - set(Layout._fields))
    if unknown:
        raise GriddedError(
            f"{name}: the mapping names {', '.join(map(repr, unknown))}; it may name"
            f" {', '.join(Layout._fields)}."
        )
    there = sorted(map(str, set(dataset.dims) | set(dataset.coords)))
    if isinstance(mapping.get("space"), str):
        mapping["space"] = mapping["space"].split(",")
    if mapping.get("space") is not None:
        mapping["space"] = tuple(mapping["space"])
    for role, value in mapping.items():
        names = value if role == "space" else (value,)
        if role == "lead_units" or value is None:
            continue
        for one in names:
            if one not in there:
                raise GriddedError(
                    f"{name}: the mapping says that {role} is {one!r}, but the"
                    f" dimensions and coordinates are {', '.join(there)}."
                )
    return mapping


def _guess(dataset, role, taken, name):
    """The dimension or scalar that fits the role best, and by which sign."""
    ranked: dict[int, list[str]] = {}
    scalars = [c for c in dataset.coords if dataset.coords[c].ndim == 0]
    for each in [*dataset.dims, *scalars]:
        rank = _rank(dataset, role, str(each)) if each not in taken else None
        if rank is not None:
            ranked.setdefault(rank, []).append(str(each))
    # A dimension that varies counts before a number that stands beside.
    for rank in sorted(ranked):
        candidates = [c for c in ranked[rank] if c in dataset.dims] or ranked[rank]
        is_beside = not set(candidates) & set(dataset.dims)
        if role == "level" and is_beside and len(candidates) > 1:
            continue  # heights of two kinds of fields are no level of both
        if len(candidates) > 1:
            raise GriddedError(
                f"{name}: {_WORDS[role]} could be any of"
                f" {', '.join(map(repr, candidates))} (by their {_KINDS[rank]}). Say"
                f" which: mapping={{{role!r}: {candidates[0]!r}}}."
            )
        if candidates:
            return candidates[0], _KINDS[rank]
    return None, ""


def _rank(dataset, role, each):
    attributes = dataset[each].attrs if each in dataset.variables else {}
    if attributes.get("standard_name") in _STANDARD_NAMES.get(role, ()):
        return 0
    units = str(attributes.get("units", "")).lower()
    if units in _UNITS.get(role, ()) and each in dataset.dims:
        return 1
    axis = str(attributes.get("axis", "")).upper()
    # What is known by a standard name is no other thing by its axis.
    is_named = any(
        attributes.get("standard_name") in names for names in _STANDARD_NAMES.values()
    )
    if _AXES.get(axis) == role and not is_named:
        return 2
    if each.lower() in _NAMES[role] and not is_named:
        return 3
    return None


def _settle_times(dataset, found, given, lines):
    """Decides whether a lone `time` is the start or the time that fields are of."""
    start, valid = found.get("time"), found.get("valid_time")
    has_lead_axis = found.get("lead") in dataset.dims
    words = {role: (best, why) for role, best, why in lines}
    is_one_lead = found.get("lead") is not None and not has_lead_axis
    if start is None and is_one_lead and _is_valid_time(dataset, valid):
        return found, lines  # starts are these times less the lead
    if start is None and valid is not None and "valid_time" not in given:
        # With leads, the only time there is is the start; without, there is no start.
        found["time"], found["valid_time"] = valid, None
        if "valid_time" in words:
            words["time"] = words.pop("valid_time")
    elif start is not None and valid is not None and "valid_time" not in given:
        is_start = start in dataset.dims and valid not in dataset.dims
        if has_lead_axis or is_start:  # start + lead says it
            found["valid_time"] = None
            words.pop("valid_time", None)
    return found, [(role, *words[role]) for role in ROLES if role in words]


def _is_valid_time(dataset, name):
    return (
        name in dataset.dims
        and name in dataset.variables
        and (dataset[name].attrs.get("standard_name") == "time")
    )


def lead_durations(values: np.ndarray, units: str | None, *, where: str) -> np.ndarray:
    """Leads as timedelta64[ns], from durations or from numbers with units.

    Args:
        values: `[lead]`.
        units: such as "hours"; needed for numbers.
        where: file and dimension, for errors.

    Raises:
        GriddedError: if the units are missing or no fixed duration.
    """
    values = np.asarray(values)
    if values.dtype.kind == "m":
        return values.astype("timedelta64[ns]")
    if values.dtype.kind not in "iuf":
        raise GriddedError(
            f"{where}: leads must be durations or numbers; got {values.dtype}."
        )
    word = str(units or "").strip().lower()
    if word not in _DURATIONS:
        raise GriddedError(
            f"{where}: leads are numbers with"
            f" {f'units {units!r}' if units else 'no units'}, which is no fixed"
            " duration. Say what they count: mapping={'lead_units': 'hours'} (or days,"
            " minutes, seconds)."
        )
    nanoseconds = np.asarray(values, np.float64) * _DURATIONS[word]
    return np.rint(nanoseconds).astype(np.int64).astype("timedelta64[ns]")


_DURATIONS = {
    word: size
    for words, size in (
        (("days", "day", "d"), 86_400e9),
        (("hours", "hour", "hrs", "hr", "h"), 3_600e9),
        (("minutes", "minute", "min", "mins"), 60e9),
        (("seconds", "second", "sec", "secs", "s"), 1e9),
        (("milliseconds", "millisecond", "ms"), 1e6),
        (("microseconds", "microsecond", "us"), 1e3),
        (("nanoseconds", "nanosecond", "ns"), 1.0),
    )
    for word in words
}
