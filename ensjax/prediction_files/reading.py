"""Reads predictions, and says in which line is what cannot be read."""

import csv
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from ensjax.member_arrays import plain_label
from ensjax.prediction_files.labels import OPTIONAL, by_number, listed
from ensjax.predictions import ABSTAIN, Predictions
from ensjax.provenance import Provenance

_COLUMNS = ("member", "row", "class", "target", "level", "value")
_SEEN = ("0", "1", "")
_SUM_TOLERANCE = 1e-3  # rounding of printed probabilities


def load_predictions(
    path: str | os.PathLike,
    *,
    rows: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
    source: str | None = None,
    part: str = "validation",
    smallest: float = 1e-7,
) -> Predictions:
    """Reads predictions from a `.csv` (see `ensjax.prediction_files`) or `.npz` file.

    Args:
        path: of the file.
        rows: of a CSV file: which rows, in this order; others are left out, and one
            that is not there is masked. None: all, as the file names them, else by
            number if all are integers, else in the order of their first line.
        columns: of a CSV file: classes (or targets) in this order; classes that are not
            among them are an error, targets are left out. None: as the file names them;
            else targets in the order of their first line, and classes sorted, integers
            by value, so that files of one system agree if they hold the same classes.
            Votes may lack some: give all where the file does not name them.
        source: names the origin of the row numbers; then the predictions of a CSV file
            carry a `Provenance`. What members have seen is unknown in a file without a
            column `seen`; one with it needs a source.
        part: of the provenance.
        smallest: see `Predictions.from_probs`.

    Returns:
        `Predictions`; members are in the order of their first line, or as the file
        names them, and `columns` holds the classes or targets: as given, else as
        integers if all are, else as text. A member that says nothing of a row is masked
        there, `[member, batch]`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for what cannot be read; it names the file and the line. If no
            member says anything of any of the `rows`.
        TypeError: if `rows` are a mask or a set.
    """
    path = epath.Path(path)
    if path.suffix == ".npz":
        if rows is not None or columns is not None or source is not None:
            raise ValueError(
                f"{path}: an .npz file knows its rows, columns and source; select with"
                " Predictions.take."
            )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _unpacked(path, dict(arrays))
    if path.suffix != ".csv":
        raise ValueError(f"predictions are read from .npz or .csv; got {path}.")
    with path.open("r") as file:
        return _Table(str(path), csv.reader(file)).predictions(
            rows, columns, source, part, smallest
        )


def _unpacked(path, arrays):
    if "facts" not in arrays:
        raise ValueError(f"{path} was not written by save_predictions.")
    facts = json.loads(str(arrays.pop("facts")))
    provenance = None
    if "source" in facts:
        provenance = Provenance(
            facts.pop("source"),
            arrays.pop("rows"),
            facts.pop("part"),
            arrays.pop("seen", None),
            arrays.pop("test_rows", None),
            arrays.pop("known", None),
        )
    for name in ("names", "columns", "levels"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    return Predictions(**arrays, **facts, provenance=provenance)


class _Table:
    """The lines of a CSV file by (member, row, column)."""

    def __init__(self, path, reader):
        self.path, self.reader = path, reader
        self.header = [name.strip() for name in next(reader, [])]
        self.kind, self.what = self._check_header()
        self.members, self.rows, self.columns = {}, {}, {}
        self.numbers, self.lines, self.first, self.seen = {}, {}, {}, {}
        self.abstains = {}
        # Of what lines of their own name: text -> line.
        self.named = {"member": {}, "row": {}, "class": {}, "target": {}}
        for cells in reader:
            if cells:
                self._add(cells)
        if not self.lines:
            raise ValueError(f"{path} holds no predictions.")

    def fail(self, line, text):
        raise ValueError(f"{self.path}, line {line}: {text}")

    def _check_header(self):
        header = self.header
        known = (*_COLUMNS, *OPTIONAL, "seen")
        odd = [name for name in header if name not in known]
        twice = [name for name in header if header.count(name) > 1]
        lacking = [name for name in ("member", "row") if name not in header]
        if odd or twice or lacking:
            self.fail(
                1,
                f"the header must hold member, row and some of {', '.join(known[2:])},"
                f" once each; got {','.join(header)}.",
            )
        what = [name for name in ("class", "target", "level") if name in header]
        kinds = {"class": "log_probs", "level": "quantiles"}
        kind = kinds.get(what[0], "points") if what else "points"
        if "value" not in header:
            kind = "votes"
        more = [name for name in header if name in OPTIONAL]
        if (
            len(what) > 1
            or (kind == "votes" and what != ["class"])
            or (more and kind != "points")
            or (("lower" in header) != ("upper" in header))
        ):
            self.fail(1, f"these columns do not go together: {','.join(header)}.")
        return kind, what[0] if what else None

    def _add(self, cells):
        line = self.reader.line_num
        if len(cells) != len(self.header):
            self.fail(
                line, f"{len(self.header)} columns are expected; got {len(cells)}."
            )
        cell = dict(zip(self.header, (text.strip() for text in cells)))
        filled = [name for name, text in cell.items() if text]
        if len(filled) == 1 and filled[0] in self.named:
            name, text = filled[0], cell[filled[0]]
            if self.named[name].setdefault(text, line) != line:
                first = self.named[name][text]
                self.fail(
                    line, f"{name} {text!r} is named twice; first on line {first}."
                )
            return
        member, row = cell["member"], cell["row"]
        column = cell[self.what] if self.what else ""
        for name in ("member", "row", *([self.what] if self.what else [])):
            if not cell[name] and (self.kind, name) != ("votes", "class"):
                self.fail(line, f"{name} is empty.")
        # A second vote on a row is a mistake, whatever its class.
        key = (member, row) if self.kind == "votes" else (member, row, column)
        if key in self.lines:
            self.fail(
                line,
                f"member {member!r} says {self.what or 'a value'} of row {row!r} twice;"
                f" first on line {self.lines[key]}.",
            )
        if self.kind == "quantiles":
            column = self._number(line, "level", column)
            if not 0 < column < 1:
                self.fail(line, f"level must lie between 0 and 1; got {column}.")
        seen = cell.get("seen", "")
        if seen not in _SEEN or self.seen.setdefault((member, row), seen) != seen:
            self.fail(
                line, f"seen must be 0, 1 or empty, once for a row; got {seen!r}."
            )
        names = [n for n in ("value", *OPTIONAL) if n in self.header]
        numbers = [self._number(line, name, cell[name]) for name in names]
        if self.kind == "log_probs" and not 0 <= numbers[0] <= 1 + _SUM_TOLERANCE:
            self.fail(line, f"value must be a probability; got {cell['value']}.")
        self.lines[key] = line
        self.first.setdefault((member, row), line)
        if self.kind == "votes" and not column:
            self.abstains[member, row] = line
        for known, name in (
            (self.members, member),
            (self.rows, row),
            (self.columns, column),
        ):
            if name or not self.what:
                known.setdefault(name, line)
        self.numbers[member, row, column] = numbers

    def _number(self, line, name, text):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(
                line,
                f"{name} must be a finite number; got {text!r}. Leave out the lines of"
                " what is missing.",
            )
        return number

    def _axes(self, rows, columns):
        """Members, rows and columns in their order."""
        members = self._named("member", self.members) or list(self.members)
        if rows is None:
            rows = self._named("row", self.rows) or by_number(self.rows, list)
        else:
            rows = [str(row) for row in listed(rows)]
            known = {*self.rows, *self.named["row"]}
            if rows and known.isdisjoint(rows):
                raise ValueError(
                    f"{self.path} says nothing of the rows {', '.join(rows[:5])}"
                    f"{', ...' if len(rows) > 5 else ''}; it holds rows such as"
                    f" {', '.join(sorted(known)[:5])}."
                )
        if self.kind == "quantiles":
            if columns is not None:
                raise ValueError(f"{self.path} holds quantiles: columns do not apply.")
            columns = sorted(self.columns)
        elif columns is None:
            named = self._named(self.what, self.columns) if self.what else None
            # Targets are in the order of the file, classes sorted.
            is_class = self.what == "class"
            columns = by_number(self.columns, sorted) if is_class else [*self.columns]
            columns = named or columns
        else:
            columns = [str(column) for column in columns]
        odd = [c for c in self.columns if c not in columns]
        if odd and self.what == "class":
            self.fail(self.columns[odd[0]], f"unknown class {odd[0]!r}; got {columns}.")
        return members, rows, columns

    def _named(self, name, found):
        """What lines of their own name, in their order; None: there are no such."""
        named = self.named[name]
        odd = [text for text in found if text not in named]
        if named and odd:
            self.fail(
                found[odd[0]],
                f"{name} {odd[0]!r} is not among those named, {list(named)}.",
            )
        return list(named) or None

    def predictions(self, rows, columns, source, part, smallest):
        labels = None if columns is None else tuple(map(plain_label, columns))
        members, rows, columns = self._axes(rows, columns)
        labels = _labels(columns) if labels is None else labels
        if self.abstains and not self.named["class"]:
            self.fail(
                next(iter(self.abstains.values())),
                "class is empty. Leave out the lines of what is missing; a vote without"
                " a class abstains where lines such as ',,yes' name the classes.",
            )
        provenance = None
        if source is not None:
            try:
                numbers = np.asarray([int(row) for row in rows], np.int64)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: provenance needs rows that are numbers; {error}."
                ) from error
            provenance = Provenance(source, numbers, part, *self._seen(members, rows))
        elif "seen" in self.header:
            self.fail(1, "seen is of rows of a source; name it with source=.")
        places = [
            {name: place for place, name in enumerate(names)}
            for names in (members, rows, columns)
        ]
        if len(places[1]) < len(rows) or len(places[2]) < len(columns):
            raise ValueError("rows and columns must each be different names.")
        width = max((len(numbers) for numbers in self.numbers.values()), default=0)
        shape = (len(members), len(rows), len(columns))
        values = np.full((*shape, max(width, 1)), np.nan)
        for (member, row, column), numbers in self.numbers.items():
            if row in places[1] and column in places[2]:  # no abstention
                index = places[0][member], places[1][row], places[2][column]
                values[index] = numbers if numbers else 1.0
        given = np.isfinite(values[..., 0])  # [member, batch, column]
        told = dict(names=members, provenance=provenance, mask=given.any(axis=2))
        if self.kind == "votes":
            votes = np.where(told["mask"], given.argmax(axis=2), ABSTAIN)
            for member, row in self.abstains:
                if row in places[1]:
                    told["mask"][places[0][member], places[1][row]] = True
            return Predictions.from_votes(votes, len(columns), columns=labels, **told)
        for member, row in np.argwhere(given.any(axis=2) & ~given.all(axis=2)):
            lacking = columns[int(np.argmin(given[member, row]))]
            name = members[member], rows[row]
            self.fail(
                self.first[name],
                f"member {name[0]!r} says nothing of {self.what} {lacking!r} of row"
                f" {name[1]!r}; a row is complete, or is left out.",
            )
        values = np.where(told["mask"][..., None, None], values, 0.0)
        if self.kind == "quantiles":
            return Predictions.from_quantiles(values[..., 0], columns, **told)
        if self.kind == "log_probs":
            told["columns"] = labels
            return self._probabilities(values[..., 0], rows, smallest, told)
        if self.what is None:
            values = values[:, :, 0]
        else:
            told["columns"] = labels
        names = [n for n in ("value", *OPTIONAL) if n in self.header]
        parts = {name: values[..., place] for place, name in enumerate(names)}
        return Predictions.from_points(parts.pop("value"), **parts, **told)

    def _seen(self, members, rows):
        """`seen`, nothing about test rows, and `known`, as in `Provenance`."""
        if "seen" not in self.header:
            return ()
        text = [[self.seen.get((member, row)) for row in rows] for member in members]
        text = np.asarray(text, object)
        return text == "1", None, (text != "").all(axis=1)

    def _probabilities(self, values, rows, smallest, told):
        mask, sums = told["mask"], values.sum(axis=2)
        wrong = np.argwhere(mask & (np.abs(sums - 1) > _SUM_TOLERANCE))
        if len(wrong):
            member, row = wrong[0]
            name = told["names"][member], rows[row]
            self.fail(
                self.first[name],
                f"member {name[0]!r} gives probabilities that sum to"
                f" {sums[member, row]:.4g}, not 1.",
            )
        values = np.where(mask[..., None], values, 1 / values.shape[2])
        values = values / values.sum(axis=2, keepdims=True)
        return Predictions.from_probs(values, smallest=smallest, **told)


def _labels(texts):
    """Integers if all are written as such; else the texts."""
    try:
        numbers = [int(text) for text in texts]
    except ValueError:
        return tuple(texts)
    return tuple(numbers if list(map(str, numbers)) == list(texts) else texts)
