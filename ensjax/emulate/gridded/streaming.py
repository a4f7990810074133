"""Forecasts paired with what came true, read a block of cases at a time.

The whole is never in memory: `stream_cases` yields an `Archive` for each block, of the
size that the file is chunked in, or that is asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.standard import (
    CHUNK,
    DIMS,
    is_forecast,
    standard_dataset,
)
from ensjax.emulate.gridded.times import (
    calendar_of,
    hours_since,
    positions,
    valid_times,
)

# Of one block of forecasts, if nothing else is asked for.
_BLOCK_BYTES = 256 * 2**20


class Channel(NamedTuple):
    """A row of an archive's variable axis: a variable, at a level if it has them."""

    name: str
    variable: str
    level: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Forecasts, and where the truth of each case and lead is; nothing is read yet.

    Attributes:
        forecast: a standard dataset with leads.
        truth: a standard dataset on the same grid, or None.
        channels: what the variable axis of an archive holds.
        rows: `[case, lead]`, position in the truth's times; -1: it has none.
        lead_rows: `[lead]`, position in the truth's leads where it has leads (it is
            arranged as the forecasts are); else None.
        names: of forecast and truth, for errors.
    """

    forecast: Any
    truth: Any
    channels: tuple[Channel, ...]
    rows: np.ndarray | None
    lead_rows: np.ndarray | None
    names: tuple[str, str] = ("forecast", "truth")

    @property
    def sizes(self) -> dict[str, int]:
        """Of cases, members, leads and variables, as in an archive."""
        sizes = self.forecast.sizes
        return {
            "case": sizes["time"],
            "member": sizes["member"],
            "lead": sizes["lead"],
            "variable": len(self.channels),
        }

    @property
    def space(self) -> dict[str, np.ndarray]:
        """Coordinates of the axes of space."""
        return {d: _coordinate(self.forecast, d) for d in _space_of(self.forecast)}

    def select(
        self,
        *,
        case: np.ndarray | None = None,
        lead: np.ndarray | None = None,
        channel: Sequence[int] | None = None,
    ) -> "Pairs":
        """A part, by positions; still unread."""
        every = slice(None)
        case = every if case is None else np.asarray(case)
        lead = every if lead is None else np.asarray(lead)
        rows, lead_rows = self.rows, self.lead_rows
        return dataclasses.replace(
            self,
            forecast=self.forecast.isel(time=_as_slice(case), lead=_as_slice(lead)),
            channels=self.channels
            if channel is None
            else tuple(self.channels[i] for i in channel),
            rows=None if rows is None else rows[case][:, lead],
            lead_rows=None if lead_rows is None else lead_rows[lead],
        )

    def read(self) -> Archive:
        """All of it as an archive, in memory.

        Raises:
            GriddedError: if the file cannot be read there; names it and the variable.
        """
        values = read_channels(self.forecast, self.channels, self.names[0])
        case, lead, units = _archive_times(self.forecast)
        units |= {c.name: _units(self.forecast, c) for c in self.channels}
        units |= {
            d: self.forecast[d].attrs["units"]
            for d in _space_of(self.forecast)
            if d in self.forecast.coords and "units" in self.forecast[d].attrs
        }
        return Archive(
            values,
            case=case,
            member=self.forecast["member"].values,
            lead=lead,
            variable=[c.name for c in self.channels],
            space=self.space,
            truth=None if self.truth is None else self.read_truth(),
            units={k: v for k, v in units.items() if v},
            source=self.names[0],
        )

    def read_truth(self) -> np.ndarray:
        """The truth alone, `[case, lead, variable, *space]`; NaN where there is none.

        Raises:
            GriddedError: if the file cannot be read there.
        """
        wanted, back = np.unique(self.rows[self.rows >= 0], return_inverse=True)
        space = [len(v) for v in self.space.values()]
        shape = (*self.rows.shape, len(self.channels), *space)
        truth = np.full(shape, np.nan, np.float32)
        if wanted.size == 0:
            return truth
        found = read_channels(
            self.truth.isel(time=_as_slice(wanted)), self.channels, self.names[1]
        )
        is_known = self.rows >= 0
        place = np.zeros(self.rows.shape, np.int64)
        place[is_known] = back
        if self.lead_rows is None:  # [time, variable, *space]
            truth[is_known] = found[place[is_known]]
            return truth
        is_known &= self.lead_rows[None, :] >= 0
        leads = np.broadcast_to(self.lead_rows[None, :], self.rows.shape)
        truth[is_known] = found[place[is_known], leads[is_known]]
        return truth


def pair(
    forecast: Any,
    truth: Any = None,
    *,
    variables: Sequence[str] | None = None,
    names: tuple[str, str] = ("forecast", "truth"),
) -> Pairs:
    """Forecasts with the truth at the valid time of each case and lead; reads nothing.

    Args:
        forecast: a dataset of xarray with leads, in any layout that can be guessed.
        truth: by valid time; or with leads, for the same starts; or None.
        variables: those to keep, by default all that both have.
        names: of both, for errors.

    Returns:
        The pairs. Where the truth has no such time its values will be NaN.

    Raises:
        GriddedError: if grids, levels or calendars differ, no variable is in both, or
            no valid time of the forecasts is in the truth.
    """
    forecast = standard_dataset(forecast, variables=variables, name=names[0])
    if not is_forecast(forecast):
        raise GriddedError(
            f"{names[0]} has no dimension of leads, so it is no forecast; there are"
            f" {', '.join(map(str, forecast.dims))}. Say mapping={{'lead': ...}}."
        )
    if truth is None:
        return Pairs(forecast, None, channels_of(forecast), None, None, names)
    truth = standard_dataset(truth, name=names[1])
    if "member" in truth.dims:
        if truth.sizes["member"] > 1:
            raise GriddedError(
                f"{names[1]} has {truth.sizes['member']} members; the truth is one:"
                " choose with truth.isel(member=0)."
            )
        truth = truth.squeeze("member", drop=True)
    shared = [v for v in forecast.data_vars if v in truth.data_vars]
    missing = [v for v in variables or () if v not in shared]
    if missing or not shared:
        raise GriddedError(
            f"{names[1]} has not"
            f" {', '.join(map(repr, missing or forecast.data_vars))}; it has"
            f" {', '.join(map(repr, truth.data_vars))}. Rename what is the same."
        )
    forecast, truth = forecast[shared], truth[shared]
    truth = on_same_grid(forecast, truth, names)
    rows, lead_rows = _truth_rows(forecast, truth, names)
    return Pairs(forecast, truth, channels_of(forecast), rows, lead_rows, names)


def stream_cases(pairs: Pairs, *, cases: int | None = None) -> Iterator[Archive]:
    """The pairs as archives of a few cases each, in order; one is in memory at a time.

    Args:
        pairs: from `pair`.
        cases: in each block; by default a whole number of the file's chunks, as many as
            fit into 256 MiB, at least one.

    Raises:
        ValueError: if `cases` is not positive.
    """
    block = case_block(pairs) if cases is None else cases
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"cases must be a positive integer; got {cases!r}.")
    total = pairs.sizes["case"]
    for start in range(0, total, block):
        rows = np.arange(start, min(start + block, total))
        archive = pairs.select(case=rows).read()
        yield dataclasses.replace(archive, rows=rows)


def case_block(pairs: Pairs, *, limit_bytes: int = _BLOCK_BYTES) -> int:
    """How many cases are read together: whole chunks of the file, if they fit."""
    sizes = pairs.sizes
    points = int(np.prod([len(v) for v in pairs.space.values()], initial=1))
    each = 4 * points * sizes["member"] * sizes["lead"] * max(sizes["variable"], 1)
    return whole_chunks(pairs, max(1, limit_bytes // max(each, 1)))


def whole_chunks(pairs: Pairs, cases: int) -> int:
    """At most so many cases, of whole chunks of the file if one fits."""
    chunk = int(pairs.forecast.attrs.get(CHUNK, 1))
    if chunk <= cases:
        cases -= cases % chunk
    return int(min(cases, pairs.sizes["case"]))


def channels_of(dataset: Any) -> tuple[Channel, ...]:
    """Variables at their levels, named `temperature_850`, in order."""
    found = []
    for name, array in dataset.data_vars.items():
        if "level" not in array.dims:
            found.append(Channel(str(name), str(name), None))
            continue
        for i, level in enumerate(dataset["level"].values):
            found.append(Channel(f"{name}_{level:g}", str(name), i))
    return tuple(found)


def read_channels(
    dataset: Any, channels: Sequence[Channel], name: str, outer: Sequence[str] = ()
) -> np.ndarray:
    """`[*outer, variable, *space]`, float32; a variable is read once.

    Args:
        dataset: standard.
        channels: what the variable axis is to hold.
        name: of the file, for errors.
        outer: dimensions before; by default those of time, member and lead there are.

    Raises:
        GriddedError: if the file cannot be read there.
    """
    outer = list(outer) or [d for d in DIMS[:3] if d in dataset.dims]
    inner = [d for d in _space_of(dataset) if d not in outer]
    sizes = dataset.sizes
    shape = [sizes[d] for d in outer] + [len(channels)] + [sizes[d] for d in inner]
    values = np.empty(shape, np.float32)
    for variable in dict.fromkeys(c.variable for c in channels):
        array = dataset[variable]
        mine = [(i, c.level) for i, c in enumerate(channels) if c.variable == variable]
        levels = [level for _, level in mine]
        if "level" in array.dims:
            array = array.isel(level=levels).transpose(*outer, "level", *inner)
        try:
            found = array.to_numpy()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            words = " ".join(str(error).split())[:300]
            raise GriddedError(
                f"{name}: variable {variable!r} cannot be read: {words}"
            ) from error
        at = (slice(None),) * len(outer)
        for j, (i, level) in enumerate(mine):
            values[(*at, i)] = found if level is None else found[(*at, j)]
    return values


def _as_slice(rows):
    """Rows at even steps as a slice, which files read as they lie."""
    if isinstance(rows, slice) or rows.dtype == bool or len(rows) < 2:
        return rows
    steps = np.diff(rows)
    if steps[0] < 1 or np.any(steps != steps[0]):
        return rows
    return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))


def _space_of(dataset):
    inside = [d for d in dataset.dims if d not in DIMS[:4]]
    return [d for d in ("lat", "lon") if d in inside] + [
        d for d in inside if d not in ("lat", "lon")
    ]


def _coordinate(dataset, dim):
    if dim in dataset.coords:
        return dataset[dim].values
    return np.arange(dataset.sizes[dim])


def _units(dataset, channel):
    return str(dataset[channel.variable].attrs.get("units", ""))


def _archive_times(dataset):
    time, lead = dataset["time"].values, dataset["lead"].values
    if time.dtype.kind in "iuM":
        return time, lead, {}
    # NumPy has no dates of this calendar: hours, and the units say since when.
    hours, units = hours_since(time)
    return hours, lead / np.timedelta64(1, "h"), {"case": units, "lead": "hours"}


def on_same_grid(forecast: Any, truth: Any, names: tuple[str, str]) -> Any:
    """`truth` with the levels of the forecast, if both are on one grid.

    Raises:
        GriddedError: if they are not; names both, and the dimension.
    """
    for dim in [d for d in ("level", *_space_of(forecast)) if d in forecast.dims]:
        if dim not in truth.dims:
            raise GriddedError(
                f"{names[1]} has no dimension {dim!r}, but {names[0]} has;"
                f" it has {', '.join(map(str, truth.dims))}."
            )
        ours, theirs = _coordinate(forecast, dim), _coordinate(truth, dim)
        if (
            dim == "level"
            and theirs.dtype.kind in "iuf"
            and not np.array_equal(ours, theirs)
        ):
            rows = positions_of_numbers(ours, theirs)
            if np.all(rows >= 0):
                truth, theirs = truth.isel(level=rows), theirs[rows]
        is_same = len(ours) == len(theirs) and (
            np.allclose(ours, theirs, rtol=0, atol=1e-4)
            if ours.dtype.kind in "iuf" and theirs.dtype.kind in "iuf"
            else np.array_equal(ours, theirs)
        )
        if not is_same:
            raise GriddedError(
                f"{names[0]} and {names[1]} differ in {dim}: {_describe(ours)} against"
                f" {_describe(theirs)}. Bring one to the other's grid with"
                " regrid_dataset, or select the levels that both have."
            )
    return truth


def positions_of_numbers(wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Where each number is among others, -1 where it is not."""
    is_equal = np.isclose(wanted[:, None], available[None, :], rtol=1e-6, atol=0)
    return np.where(is_equal.any(axis=1), is_equal.argmax(axis=1), -1)


def _describe(values):
    if len(values) < 4:
        return f"{values.tolist()}"
    return f"{len(values)} from {values[0]} to {values[-1]}"


def _truth_rows(forecast, truth, names):
    time, lead = forecast["time"].values, forecast["lead"].values
    times = truth["time"].values
    ours, theirs = calendar_of(time), calendar_of(times)
    if ours != theirs:
        raise GriddedError(
            f"{names[0]} counts time in the calendar {ours!r}, {names[1]} in"
            f" {theirs!r}: their valid times cannot be compared."
        )
    if not is_forecast(truth):
        rows, lead_rows = positions(valid_times(time, lead), times), None
    else:
        starts = positions(time, times)
        lead_rows = positions(lead, truth["lead"].values)
        rows = np.repeat(starts[:, None], len(lead), axis=1)
        rows[:, lead_rows < 0] = -1
    if not np.any(rows >= 0):
        raise GriddedError(
            f"no valid time of {names[0]} (starts {time[0]} to {time[-1]}, leads"
            f" {lead[0]} to {lead[-1]}) is among the times of {names[1]} ({times[0]} to"
            f" {times[-1]})."
        )
    return rows, lead_rows
