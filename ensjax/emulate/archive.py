"""`Archive`: forecasts of an ensemble with their coordinates, and the truth beside.

Whatever makes an ensemble (a simulator, a package with real data, a zarr) ends in one,
and whatever trains on it, scores it or writes it starts from one.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensjax.data.downloads import WholeFile
from ensjax.data.splits import check_disjoint
from ensjax.provenance import Provenance

AXES = ("case", "member", "lead", "variable")
# Of the file: readers refuse what they do not know.
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Archive:
    """Forecasts `[case, member, lead, variable, *space]` of NumPy, never traced.

    Attributes:
        values: `[case, member, lead, variable, *space]`, float32; NaN is missing.
        case: when forecasts start, datetime64 `[case]`, or integers where time has no
            calendar (a simulator's starts).
        member: ids `[member]`, integers, each once.
        lead: timedelta64 `[lead]`, or a simulator's own time, real numbers `[lead]`.
        variable: a name for each variable.
        space: coordinates `[size]` of the axes behind, by name and in their order, such
            as `{"lat": ..., "lon": ...}`, `{"site": ...}` or none at all.
        truth: `[case, lead, variable, *space]` that came true, float32; NaN is missing.
            None: not known.
        rows: `[case]`, the cases' numbers in the source, int64; by default counted
            through. They travel along, so that two parts can be shown to be disjoint.
        units: of variables and of axes, by name; what is not there has none.
        source: where the values come from, in words.

    Raises:
        ValueError: if shapes disagree, a name or an id comes twice, a coordinate is
            missing or not finite; says which.
        TypeError: if cases are neither dates nor integers, or leads no durations.

    Example:
        >>> archive = Archive(
        ...     np.zeros((3, 2, 1, 1, 4)), case=np.arange(3), lead=[2.0],
        ...     variable=["x"], space={"site": np.arange(4)},
        ... )
        >>> archive.select(member=[1], case=slice(1, None)).sizes
        {'case': 2, 'member': 1, 'lead': 1, 'variable': 1, 'site': 4}
    """

    values: np.ndarray
    case: np.ndarray
    lead: np.ndarray
    variable: Sequence[str]
    member: np.ndarray | None = None
    space: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truth: np.ndarray | None = None
    rows: np.ndarray | None = None
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""

    def __post_init__(self):
        values = _floats("values", self.values)
        if values.ndim < 4:
            raise ValueError(
                "values must be [case, member, lead, variable, *space]; got shape"
                f" {values.shape}."
            )
        member = np.arange(values.shape[1]) if self.member is None else self.member
        rows = np.arange(values.shape[0]) if self.rows is None else self.rows
        put = {
            "values": values,
            "case": _cases(self.case),
            "member": _integers("member", member),
            "lead": _leads(self.lead),
            "variable": tuple(str(name) for name in self.variable),
            "space": {str(k): _coordinate(k, v) for k, v in self.space.items()},
            "rows": _integers("rows", rows),
            "units": {str(k): str(v) for k, v in self.units.items()},
        }
        if self.truth is not None:
            put["truth"] = _floats("truth", self.truth)
        for name, value in put.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self):
        for name in self.space:
            if name in AXES:
                raise ValueError(f"space has an axis called {name!r}, which is taken.")
        sizes = tuple(self.sizes.values())
        truth_shape = sizes[:1] + sizes[2:]
        if self.values.shape != sizes:
            raise ValueError(
                f"values have shape {self.values.shape}, but their coordinates say"
                f" {self.sizes}."
            )
        if self.truth is not None and self.truth.shape != truth_shape:
            raise ValueError(
                f"truth must be [case, lead, variable, *space] = {truth_shape}; got"
                f" shape {self.truth.shape}."
            )
        if self.rows.shape != self.case.shape:
            raise ValueError(
                f"rows must be [case] = {self.case.shape}; got {self.rows.shape}."
            )
        for name in ("member", "variable", "lead"):
            values = getattr(self, name)
            if len(set(np.asarray(values).tolist())) < len(values):
                raise ValueError(f"{name} holds a value twice: {list(values)}.")
        unknown = sorted(set(self.units) - set(self.variable) - set(self.sizes))
        if unknown:
            raise ValueError(
                f"units name {unknown}, which are neither variables"
                f" ({', '.join(self.variable)}) nor axes ({', '.join(self.sizes)})."
            )

    def __repr__(self):
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        truth = "no truth" if self.truth is None else "with truth"
        return f"Archive({sizes}; {', '.join(self.variable)}; {truth})"

    @property
    def sizes(self) -> dict[str, int]:
        """How long each axis is, by name and in the order of `values`."""
        coordinates = (self.case, self.member, self.lead, self.variable)
        named = dict(zip(AXES, coordinates)) | dict(self.space)
        return {name: len(coordinate) for name, coordinate in named.items()}

    @property
    def valid_time(self) -> np.ndarray:
        """Start plus lead, `[case, lead]`, datetime64.

        Raises:
            TypeError: if cases are no dates, or leads no timedelta64.
        """
        if self.case.dtype.kind != "M" or self.lead.dtype.kind != "m":
            raise TypeError(
                "valid times are dates plus durations, but this archive has cases of"
                f" {self.case.dtype} and leads of {self.lead.dtype}."
            )
        return self.case[:, None] + self.lead[None, :]

    def select(
        self,
        *,
        case: Any = None,
        member: Any = None,
        lead: Any = None,
        variable: Any = None,
    ) -> "Archive":
        """The chosen entries, in the order in which they are chosen.

        Args:
            case, member, lead: positions (not ids): a slice, integers, or booleans of
                the axis; None: all.
            variable: a name, names, or positions as of the others.

        Returns:
            An archive of the same axes: nothing is dropped.

        Raises:
            ValueError: if nothing is chosen, a mask has another length, or no variable
                has that name.
            TypeError: for positions that are no integers.
            IndexError: for a position beyond the axis, such as a lead.
        """
        found = self
        for axis, chosen in (
            ("case", case),
            ("member", member),
            ("lead", lead),
            ("variable", self._variable_rows(variable)),
        ):
            if chosen is None:
                continue
            rows = _positions(axis, chosen, found.sizes[axis])
            found = found._take(axis, rows)
        return found

    def _variable_rows(self, variable):
        if variable is None or isinstance(variable, slice):
            return variable
        names = [variable] if np.ndim(variable) == 0 else list(variable)
        if not any(isinstance(name, str) for name in names):
            return names
        for name in names:
            if name not in self.variable:
                raise ValueError(
                    f"no variable is called {name!r}; there are"
                    f" {', '.join(self.variable)}."
                )
        return [self.variable.index(name) for name in names]

    def _take(self, axis, rows):
        place = AXES.index(axis)
        new = {"values": np.take(self.values, rows, axis=place)}
        new[axis] = np.asarray(getattr(self, axis))[rows]
        if axis == "case":
            new["rows"] = self.rows[rows]
        if axis == "variable":
            kept = set(new["variable"].tolist()) | set(self.sizes)
            new["units"] = {k: v for k, v in self.units.items() if k in kept}
        if self.truth is not None and axis != "member":
            axis_of_truth = max(place - 1, 0)
            new["truth"] = np.take(self.truth, rows, axis=axis_of_truth)
        return dataclasses.replace(self, **new)

    def split(self, *parts: Any) -> tuple["Archive", ...]:
        """One archive for each of several sets of cases that share none.

        Cases are forecasts of a chain of days, so a random split tests on weather that
        was trained on: give parts that are whole years, such as
        `archive.split(archive.case < date, archive.case >= date)`.

        Args:
            *parts: as `case` of `select`.

        Raises:
            ValueError: if two parts share a case, or one is empty.
        """
        sizes = self.sizes["case"]
        rows = [_positions("case", part, sizes) for part in parts]
        for i, first in enumerate(rows):
            for j, second in enumerate(rows[:i]):
                check_disjoint(second, first, names=(f"part {j}", f"part {i}"))
        return tuple(self.select(case=part) for part in rows)

    def provenance(self, part: str) -> Provenance:
        """Where the cases come from, for `Predictions` made of them.

        Args:
            part: "train", "validation", "test", or another word.
        """
        return Provenance(source=self.source, rows=self.rows, part=part)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a `.npz` that holds everything; an earlier file is replaced whole.

        Raises:
            ValueError: if the name does not end in .npz.
        """
        path = pathlib.Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"an archive is saved as .npz; got {path.name}.")
        about = {
            "version": _VERSION,
            "variable": list(self.variable),
            "space": list(self.space),
            "units": dict(self.units),
            "source": self.source,
        }
        arrays = {n: getattr(self, n) for n in ("values", "case", "member", "lead")}
        arrays["rows"] = self.rows
        if self.truth is not None:
            arrays["truth"] = self.truth
        arrays |= {f"space_{i}": v for i, v in enumerate(self.space.values())}
        path.parent.mkdir(parents=True, exist_ok=True)
        with WholeFile(path) as file:
            np.savez(file, about=json.dumps(about), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Archive":
        """The archive that `save` wrote. Nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is damaged, or no archive of this version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
            if about["version"] != _VERSION:
                raise ValueError(f"it is of version {about['version']}")
            names = about["space"]
            space = {name: arrays.pop(f"space_{i}") for i, name in enumerate(names)}
            return cls(
                **arrays,
                space=space,
                variable=about["variable"],
                units=about["units"],
                source=about["source"],
            )
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is no whole archive of version {_VERSION} ({error}); make it"
                " again."
            ) from error


def _positions(axis, chosen, size):
    """Rows from 0 that are chosen of an axis, int `[selected]`."""
    if isinstance(chosen, slice):
        rows = np.arange(size)[chosen]
    else:
        rows = np.atleast_1d(np.asarray(chosen))
    if rows.ndim != 1:
        raise ValueError(
            f"positions of {axis} must be [selected]; got shape {rows.shape}."
        )
    if rows.dtype == bool:
        if rows.shape != (size,):
            raise ValueError(
                f"a mask over the axis {axis} has shape ({size},); got {rows.shape}."
            )
        rows = np.flatnonzero(rows)
    if not rows.size:
        raise ValueError(f"nothing is chosen of the axis {axis}: {chosen!r}.")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(
            f"the axis {axis} is chosen by positions, which are integers; got"
            f" {rows.dtype}."
        )
    beyond = rows[(rows < -size) | (rows >= size)]
    if beyond.size:
        raise IndexError(
            f"{axis} {beyond[0]} is beyond the {axis}s of the archive, of which there"
            f" are {size}: positions are 0 to {size - 1}."
        )
    return rows % size


def _floats(name, values):
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got {array.dtype}.")
    return array.astype(np.float32, copy=False)


def _integers(name, values):
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers [{name}]; got {array.dtype} of shape"
            f" {array.shape}."
        )
    return array.astype(np.int64, copy=False)


def _cases(case):
    array = np.asarray(case)
    if array.ndim != 1 or array.dtype.kind not in "iuM":
        raise TypeError(
            "case must be datetime64 or integers [case]; got"
            f" {array.dtype} of shape {array.shape}."
        )
    if array.dtype.kind == "M" and np.isnat(array).any():
        raise ValueError("case holds a date that is not a time.")
    return array


def _leads(lead):
    array = np.asarray(lead)
    if array.ndim != 1 or array.dtype.kind not in "iufm":
        raise TypeError(
            "lead must be timedelta64 or real numbers [lead]; got"
            f" {array.dtype} of shape {array.shape}."
        )
    is_known = ~np.isnat(array) if array.dtype.kind == "m" else np.isfinite(array)
    if not is_known.all():
        raise ValueError("lead holds a duration that is not known.")
    return array


def _coordinate(name, values):
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iufU":
        raise ValueError(
            f"the coordinate of {name!r} must be numbers or words [{name}]; got"
            f" {array.dtype} of shape {array.shape}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"the coordinate of {name!r} is not finite everywhere.")
    return array
