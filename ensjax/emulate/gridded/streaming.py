"""Pairs of forecasts and what came true, read a block of cases at a time.

The whole is never in memory: `stream_cases` yields an `Archive` for each block, of the
size that the file is chunked in, or that is asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensjax.emulate.archive import Archive
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.standard import CHUNK, DIMS, coordinate, space_of
from ensjax.emulate.gridded.times import hours_since

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
        return {d: coordinate(self.forecast, d) for d in space_of(self.forecast)}

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
            for d in space_of(self.forecast)
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
    """Variables at their levels, named `temperature_850` or `wind_tropopause`."""
    found = []
    for name, array in dataset.data_vars.items():
        if "level" not in array.dims:
            found.append(Channel(str(name), str(name), None))
            continue
        for i, level in enumerate(dataset["level"].values):
            found.append(Channel(f"{name}_{_level_text(level)}", str(name), i))
    return tuple(found)


def _level_text(level):
    """A number as short as it is; a word, such as "surface", as it stands."""
    return f"{level:g}" if np.asarray(level).dtype.kind in "iuf" else str(level)


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
    inner = [d for d in space_of(dataset) if d not in outer]
    sizes = dataset.sizes
    shape = [sizes[d] for d in outer] + [len(channels)] + [sizes[d] for d in inner]
    values = np.empty(shape, np.float32)
    for variable in dict.fromkeys(c.variable for c in channels):
        array = dataset[variable]
        mine = [(i, c.level) for i, c in enumerate(channels) if c.variable == variable]
        levels = [level for _, level in mine]
        if "level" in array.dims:
            array = array.isel(level=levels).transpose(*outer, "level", *inner)
        else:
            array = array.transpose(*outer, *inner)
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


def _units(dataset, channel):
    return str(dataset[channel.variable].attrs.get("units", ""))


def _archive_times(dataset):
    time, lead = dataset["time"].values, dataset["lead"].values
    if time.dtype.kind in "iuM":
        return time, lead, {}
    # NumPy has no dates of this calendar: hours, and the units say since when.
    hours, units = hours_since(time)
    return hours, lead / np.timedelta64(1, "h"), {"case": units, "lead": "hours"}
