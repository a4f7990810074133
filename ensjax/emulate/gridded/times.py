"""Dates of any calendar: starts plus leads, and where a valid time is in an archive."""

import datetime
from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.packages import optional_package

_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")
# The standard calendar is the Gregorian one from this day on.
_REFORM = (1582, 10, 15)
# Times that are less than a second apart are the same.
_SAME_NANOSECONDS = 10**9


def read_times(values: Any, *, where: str) -> np.ndarray:
    """Dates as datetime64[ns], or as objects of cftime in a calendar of their own.

    Args:
        values: datetime64, or objects of cftime, any shape.
        where: file and dimension, for errors.

    Raises:
        GriddedError: if they are no dates, or one is missing.
    """
    values = np.asarray(values)
    if values.dtype.kind == "M":
        if np.isnat(values).any():
            raise GriddedError(f"{where} holds a date that is missing.")
        return values.astype("datetime64[ns]")
    first = values.flat[0] if values.size else None
    if not hasattr(first, "calendar"):
        raise GriddedError(
            f"{where} must hold dates; got {values.dtype}, such as {first!r}. Units"
            " such as 'hours since 2000-01-01' would make them dates."
        )
    is_gregorian = first.calendar in _GREGORIAN and all(
        (t.year, t.month, t.day) >= _REFORM and 1678 <= t.year <= 2261
        for t in values.flat
    )
    if not is_gregorian:
        return values
    dates = [np.datetime64(t.isoformat(), "ns") for t in values.flat]
    return np.array(dates, "datetime64[ns]").reshape(values.shape)


def calendar_of(times: np.ndarray) -> str:
    """The calendar's name; "standard" for datetime64, "none" for counted starts."""
    if times.dtype.kind in "iu":
        return "none"
    return "standard" if times.dtype.kind == "M" else times.flat[0].calendar


def valid_times(time: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Start plus lead in the calendar of the starts, `[case, lead]`.

    Raises:
        GriddedError: if starts are counted, or leads are no durations.
    """
    if time.dtype.kind in "iu":
        raise GriddedError(
            "starts that are counted have no valid times; their truth needs leads too."
        )
    if lead.dtype.kind != "m":
        raise GriddedError(
            f"leads beside dated starts must be durations; got {lead.dtype}, such as"
            f" {lead[:1].tolist()}. Say what they count: mapping={{'lead_units':"
            " 'hours'}."
        )
    if time.dtype.kind == "M":
        return time[:, None] + lead[None, :]
    steps = lead.astype("timedelta64[us]").astype(object)
    return np.array([[t + step for step in steps] for t in time], object)


def leads_between(time: Any, valid: np.ndarray) -> np.ndarray:
    """Valid times less one start, timedelta64[ns] `[lead]`."""
    if valid.dtype.kind == "M":
        return valid - time
    steps = [t - time for t in valid]
    return np.array([_nanoseconds(step) for step in steps], "timedelta64[ns]")


def _nanoseconds(step: datetime.timedelta) -> np.timedelta64:
    return np.timedelta64(step // datetime.timedelta(microseconds=1) * 1000, "ns")


def positions(wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Where each wanted time (or lead) is among the available, -1 where it is not.

    Times less than a second apart are the same: hours or days in floating point do not
    come back to the microsecond. Counted starts and a simulator's own leads must be
    equal.

    Args:
        wanted: of any shape.
        available: `[time]`, of the same calendar.
    """
    if not len(available) or not wanted.size:
        return np.full(wanted.shape, -1, np.int64)
    flat = wanted.reshape(-1)
    ours, theirs = _in_nanoseconds(flat, flat[0]), _in_nanoseconds(available, flat[0])
    if ours is None or theirs is None:
        place = {_key(t): i for i, t in enumerate(available)}
        found = np.array([place.get(_key(t), -1) for t in flat], np.int64)
        return found.reshape(wanted.shape)
    order = np.argsort(theirs, kind="stable")
    ascending = theirs[order]
    after = np.clip(np.searchsorted(ascending, ours), 0, len(order) - 1)
    before = np.maximum(after - 1, 0)
    is_nearer = np.abs(ours - ascending[before]) < np.abs(ascending[after] - ours)
    nearest = np.where(is_nearer, before, after)
    is_there = np.abs(ours - ascending[nearest]) < _SAME_NANOSECONDS
    return np.where(is_there, order[nearest], -1).reshape(wanted.shape)


def whole_seconds(times: np.ndarray) -> np.ndarray:
    """Dates at the nearest second, of which the hour and day can be told."""
    if times.dtype.kind == "M":
        return (times + np.timedelta64(500, "ms")).astype("datetime64[s]")
    half = datetime.timedelta(milliseconds=500)
    return np.array([t + half for t in times.flat], object).reshape(times.shape)


def _in_nanoseconds(times, first):
    """Dates of cftime since `first`; None for what is counted, or another kind."""
    if times.dtype.kind in "mM":
        is_same_kind = getattr(first, "dtype", np.dtype("O")).kind == times.dtype.kind
        unit = f"{'timedelta64' if times.dtype.kind == 'm' else 'datetime64'}[ns]"
        return times.astype(unit).astype(np.int64) if is_same_kind else None
    calendar = getattr(first, "calendar", None)
    if calendar is None or any(getattr(t, "calendar", "") != calendar for t in times):
        return None
    steps = [t - first for t in times]
    return np.array([_nanoseconds(s).astype(np.int64) for s in steps], np.int64)


def _key(time):
    if isinstance(time, np.timedelta64):
        return time.astype("timedelta64[ns]").astype(np.int64).item()
    if isinstance(time, np.datetime64):
        return time.astype("datetime64[ns]").astype(np.int64).item()
    return time.isoformat() if hasattr(time, "isoformat") else time.item()


def from_hours_since(hours: np.ndarray, units: str) -> np.ndarray:
    """The dates that `hours_since` counted."""
    cftime = optional_package("cftime")
    since, calendar = units.split(" calendar ")
    return np.asarray(cftime.num2date(hours, since, calendar=calendar))


def hours_since(times: np.ndarray) -> tuple[np.ndarray, str]:
    """Whole hours since the first date, and the words of CF for that.

    For calendars of which NumPy has no dates.

    Raises:
        GriddedError: if a date is no whole number of hours after the first.
    """
    first = min(times)
    seconds = np.array([(t - first).total_seconds() for t in times])
    if np.any(seconds % 3600):
        raise GriddedError(
            f"starts in the calendar {first.calendar!r} must be whole hours apart to be"
            " an Archive, whose cases are integers there."
        )
    units = f"hours since {first.isoformat()} calendar {first.calendar}"
    return (seconds // 3600).astype(np.int64), units
