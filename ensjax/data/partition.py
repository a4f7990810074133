"""`Split` and `Folds`: parts of one source that share no row, and no group.

They know the source's name, so that predictions made on a part carry a `Provenance`,
and what is fitted on them can refuse rows that its members have seen.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ensjax.data.splits import (
    _largest_remainders,
    _rows_by_class,
    check_disjoint,
    k_folds,
)
from ensjax.provenance import LeakageError, Provenance, row_numbers

REST = -1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Named parts of the rows of one source; no row, and no group, is in two.

    Attributes:
        source: names the rows' origin, as in `Provenance`.
        num_examples: rows of the source.
        parts: row numbers by name, such as "train", "validation" and "test". Rows may
            be in no part.
        groups: `[example]`, the patient, site or subject of each row; None: rows are
            independent.

    Raises:
        TypeError: if a part is a mask, or no row numbers.
        ValueError: if a row is no row of the source, or comes twice in a part.
        LeakageError: if two parts share a row or a group; names both.
    """

    source: str
    num_examples: int
    parts: Mapping[str, np.ndarray]
    groups: np.ndarray | None = None

    def __post_init__(self):
        parts = {}
        for name, rows in self.parts.items():
            rows = row_numbers(f"the part {name!r}", rows)
            if rows.size and (rows.min() < 0 or rows.max() >= self.num_examples):
                raise ValueError(
                    f"the part {name!r} has rows from {rows.min()} to {rows.max()}, but"
                    f" {self.source!r} has {self.num_examples}."
                )
            if len(np.unique(rows)) < len(rows):
                raise ValueError(f"a row comes twice in the part {name!r}.")
            parts[name] = rows
        object.__setattr__(self, "parts", parts)
        if self.groups is not None:
            groups = _check_length("groups", self.groups, self.num_examples)
            object.__setattr__(self, "groups", groups)
        for a, b in itertools.combinations(parts, 2):
            self._check_apart(a, b)

    def _check_apart(self, a, b):
        try:
            check_disjoint(self.parts[a], self.parts[b], names=(a, b))
        except ValueError as error:
            raise LeakageError(str(error)) from None
        if self.groups is None:
            return
        shared = np.intersect1d(self.groups[self.parts[a]], self.groups[self.parts[b]])
        if shared.size:
            shown = ", ".join(map(str, shared[:5]))
            raise LeakageError(
                f"{a} and {b} must share no group; both hold rows of {shown}"
                + (f", ... ({shared.size} in all)." if shared.size > 5 else ".")
            )

    def __getitem__(self, part: str) -> np.ndarray:
        """Row numbers of a part; raises `KeyError` that lists the parts."""
        if part not in self.parts:
            raise KeyError(f"{part!r} is no part; there are {', '.join(self.parts)}.")
        return self.parts[part]

    def mask(self, part: str) -> np.ndarray:
        """`[example]` bools, True for the rows of a part, to index arrays with.

        What takes row numbers, such as `Provenance.of`, takes `self[part]`.
        """
        mask = np.zeros(self.num_examples, bool)
        mask[self[part]] = True
        return mask

    def provenance(
        self, part: str, *, trained_on: str | Sequence[str] | None = "train"
    ) -> Provenance:
        """Of predictions on a part by members that were trained on other parts.

        The rows of "test", if there is such a part, stay kept for the test.

        Args:
            part: whose rows were predicted, in the order of `self[part]`.
            trained_on: the part, or parts, that every member was trained on; None: on
                no row of the source.
        """
        names = (trained_on,) if isinstance(trained_on, str) else trained_on or ()
        trained = [self[name] for name in names]
        return Provenance.of(
            self.source,
            self[part],
            part=part,
            trained_on=np.concatenate(trained) if trained else [],
            test_rows=self.parts.get("test"),
        )

    def folds(
        self,
        part: str,
        num_folds: int,
        *,
        seed: int,
        labels: np.ndarray | None = None,
    ) -> "Folds":
        """Folds of one part's rows, by the split's groups; the test rows stay kept.

        Args:
            part: the part that is cut into folds.
            num_folds, seed: as in `make_folds`.
            labels: `[example]` of the whole source.
        """
        rows = self[part]
        inner = make_folds(
            self.source,
            len(rows),
            num_folds,
            seed=seed,
            labels=None if labels is None else np.asarray(labels)[rows],
            groups=None if self.groups is None else self.groups[rows],
        )
        fold_of_row = np.full(self.num_examples, -1)
        fold_of_row[rows] = inner.fold_of_row
        test = None if part == "test" else self.parts.get("test")
        return Folds(self.source, fold_of_row, self.groups, test)

    def __repr__(self):
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.parts.items())
        return f"Split({self.source!r}, {sizes} of {self.num_examples} rows)"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Folds:
    """A part of the rows of one source in folds; each fold is held out once.

    Attributes:
        source: names the rows' origin.
        fold_of_row: `[example]`, the fold that holds the row out; -1: in none, neither
            trained on nor predicted.
        groups: `[example]`; no group is in two folds.
        test_rows: rows of the source that are kept for the test; in no fold.

    Raises:
        TypeError: if `fold_of_row` or `test_rows` are no integers.
        ValueError: if there are fewer than two folds, or one is empty.
        LeakageError: if a group is in two folds, or a fold holds test rows.
    """

    source: str
    fold_of_row: np.ndarray
    groups: np.ndarray | None = None
    test_rows: np.ndarray | None = None

    def __post_init__(self):
        fold_of_row = np.asarray(self.fold_of_row)
        if not np.issubdtype(fold_of_row.dtype, np.integer):
            raise TypeError(
                "fold_of_row must be the number of each row's fold, integers [example];"
                f" got {fold_of_row.dtype} of shape {fold_of_row.shape}."
            )
        fold_of_row = fold_of_row.astype(np.int64)
        object.__setattr__(self, "fold_of_row", fold_of_row)
        counts = np.bincount(fold_of_row[fold_of_row >= 0])
        if len(counts) < 2 or (counts == 0).any():
            raise ValueError(
                "there are at least two folds and each holds a row; got rows by fold"
                f" {counts.tolist()}."
            )
        held = {
            str(fold): np.flatnonzero(fold_of_row == fold)
            for fold in range(self.num_folds)
        }
        if self.test_rows is not None:
            held["test"] = self.test_rows
        Split(self.source, len(fold_of_row), held, self.groups)  # checks them all

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return int(self.fold_of_row.max()) + 1

    def split(
        self,
        fold: int,
        *,
        held_out: str = "test",
        validation_size: int | float | None = None,
        seed: int = 0,
        labels: np.ndarray | None = None,
    ) -> Split:
        """One fold: "train", the held-out part and, if asked for, "validation".

        Args:
            fold: the fold that is held out.
            held_out: the name of its part.
            validation_size: a count, or a share of the rows that are not held out.
            seed: of the draw of the validation rows.
            labels: `[example]` of the whole source; the draw is stratified by them.
        """
        if not 0 <= fold < self.num_folds:
            raise ValueError(
                f"fold must be from 0 to {self.num_folds - 1}; got {fold}."
            )
        rest = np.flatnonzero((self.fold_of_row >= 0) & (self.fold_of_row != fold))
        parts = {"train": rest}
        if validation_size is not None:
            inner = split_rows(
                self.source,
                len(rest),
                {"validation": validation_size, "train": REST},
                seed=seed + fold,
                labels=None if labels is None else np.asarray(labels)[rest],
                groups=None if self.groups is None else self.groups[rest],
            )
            parts = {
                name: np.sort(rest[inner[name]]) for name in ("train", "validation")
            }
        parts[held_out] = np.flatnonzero(self.fold_of_row == fold)
        return Split(self.source, len(self.fold_of_row), parts, self.groups)

    def __iter__(self) -> Iterator[Split]:
        """The folds as splits into "train" and "test"."""
        return (self.split(fold) for fold in range(self.num_folds))

    def __len__(self) -> int:
        return self.num_folds

    def provenance(
        self, *, rows: np.ndarray | None = None, part: str = "validation"
    ) -> Provenance:
        """Of out-of-fold predictions of the rows that are in folds.

        Each row is predicted by the members of its own fold, which have not seen it,
        so that a meta-model or a calibrator may be fitted on them.

        Args:
            rows: `[batch]`, which rows were predicted, in the order of the predictions:
                `split["train"]`, where these are of `x[split["train"]]`, which is no
                ascending order. None: all that are in folds, ascending.
            part: see `Provenance.part`.

        Raises:
            TypeError: if `rows` are a mask, or no row numbers.
            ValueError: if a row is in no fold, or comes twice.
        """
        in_folds = np.flatnonzero(self.fold_of_row >= 0)
        rows = in_folds if rows is None else row_numbers("rows", rows)
        odd = np.setdiff1d(rows, in_folds)
        if odd.size or len(np.unique(rows)) < len(rows):
            raise ValueError(
                f"rows must be different rows of {self.source!r} that are in folds; "
                + (f"row {odd[0]} is in none." if odd.size else "one comes twice.")
            )
        return Provenance.of(
            self.source, rows, part=part, trained_on=[], test_rows=self.test_rows
        )

    def __repr__(self):
        sizes = np.bincount(self.fold_of_row[self.fold_of_row >= 0])
        return f"Folds({self.source!r}, rows by fold {sizes.tolist()})"


def split_rows(
    source: str,
    num_examples: int,
    sizes: Mapping[str, int | float],
    *,
    seed: int,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Split:
    """A random split into named parts.

    Args:
        source: names the rows' origin.
        num_examples: rows of the source.
        sizes: of each part a count (int), a share in (0, 1) (float), or -1: all that is
            left, for at most one. Rows that are left over are in no part.
        seed: of the draw; the same seed gives the same rows in the same order.
        labels: `[example]`; if given, each class has its share of every part, to within
            one row of what was left when the part was drawn. With groups: as nearly as
            whole groups allow.
        groups: `[example]`; if given, no group is in two parts. Sizes are then met as
            nearly as a greedy deal of the groups, largest first, meets them.

    Returns:
        A `Split`; rows of a part are in random order.

    Raises:
        ValueError: if a part would be empty, or the sizes are more than there is.
    """
    counts = _part_counts(sizes, num_examples)
    rng = np.random.default_rng(seed)
    if groups is not None:
        groups = _check_length("groups", groups, num_examples)
        part_of_row = _deal_groups(
            groups, labels, np.asarray(list(counts.values())), rng
        )
        parts = {
            name: rng.permutation(np.flatnonzero(part_of_row == i))
            for i, name in enumerate(counts)
        }
        for name, rows in parts.items():
            if not rows.size:
                raise ValueError(
                    f"the part {name!r} of {counts[name]} rows got no group of the"
                    f" {len(np.unique(groups))} there are; ask for fewer parts."
                )
        return Split(source, num_examples, parts, groups)
    if labels is None:
        rows_of_class = [rng.permutation(num_examples)]
    else:
        rows_of_class = _rows_by_class(num_examples, labels, rng)
    parts = {}
    for name, count in counts.items():
        taken = _largest_remainders([len(rows) for rows in rows_of_class], count)
        drawn = [rows[:n] for rows, n in zip(rows_of_class, taken, strict=True)]
        parts[name] = rng.permutation(np.concatenate(drawn))
        rows_of_class = [rows[n:] for rows, n in zip(rows_of_class, taken, strict=True)]
    return Split(source, num_examples, parts)


def make_folds(
    source: str,
    num_examples: int,
    num_folds: int,
    *,
    seed: int,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Folds:
    """Folds of all rows, random, stratified by `labels` and whole in `groups`.

    Without groups the folds' sizes, and their counts of each class, differ by at most
    one row (`k_folds`). With groups they are as equal as a greedy deal of the groups,
    largest first, makes them.

    Raises:
        ValueError: if there are fewer rows, or groups, than folds.
    """
    if groups is None:
        fold_of_row = np.empty(num_examples, np.int64)
        pairs = k_folds(num_examples, num_folds, seed=seed, labels=labels)
        for fold, (_, held_out) in enumerate(pairs):
            fold_of_row[held_out] = fold
        return Folds(source, fold_of_row)
    groups = _check_length("groups", groups, num_examples)
    num_groups = len(np.unique(groups))
    if not 2 <= num_folds <= num_groups:
        raise ValueError(
            f"num_folds must be from 2 to the number of groups, {num_groups}; got"
            f" {num_folds}."
        )
    counts = np.full(num_folds, num_examples / num_folds)
    rng = np.random.default_rng(seed)
    return Folds(source, _deal_groups(groups, labels, counts, rng), groups)


def leave_one_group_out(source: str, groups: np.ndarray) -> Folds:
    """One fold for each group, in the order of `np.unique(groups)`.

    Args:
        source: names the rows' origin.
        groups: `[example]`, such as the site of each subject.
    """
    groups = np.asarray(groups)
    return Folds(source, np.unique(groups, return_inverse=True)[1], groups)


def _part_counts(sizes, num_examples):
    """Rows of each part; shares are rounded so that their sums are."""
    if list(sizes.values()).count(REST) > 1 or not sizes:
        raise ValueError(f"sizes need a part, and -1 for at most one; got {sizes}.")
    total, counts = 0.0, {}
    for name, size in sizes.items():
        if size == REST:
            continue
        is_share = isinstance(size, float)
        if (is_share and not 0 < size < 1) or (not is_share and size < 1):
            raise ValueError(
                f"the size of {name!r} is a share in (0, 1), a count, or -1 for the"
                f" rest; got {size}."
            )
        before, total = total, total + (size * num_examples if is_share else size)
        counts[name] = round(total) - round(before)
    left = num_examples - sum(counts.values())
    counts = {name: counts.get(name, left) for name in sizes}
    if left < 0 or min(counts.values()) < 1:
        raise ValueError(
            f"sizes {dict(sizes)} of {num_examples} rows give {counts}; every part"
            " needs a row, and there are no more rows."
        )
    return counts


def _deal_groups(groups, labels, counts, rng):
    """The part of each row, -1 for none; whole groups, largest first, greedily.

    A group goes where the squared distance to the wanted counts of classes falls most.
    Rows beyond the wanted total are dealt to a part "none" of their own.
    """
    _, group_of_row = np.unique(groups, return_inverse=True)
    labels = np.zeros(len(groups)) if labels is None else labels
    classes, class_of_row = np.unique(
        _check_length("labels", labels, len(groups)), return_inverse=True
    )
    table = np.zeros((group_of_row.max() + 1, len(classes)))  # [group, class]
    np.add.at(table, (group_of_row, class_of_row), 1)
    spare = len(groups) - counts.sum()
    wanted = np.append(counts, spare) if spare > 0.5 else np.asarray(counts, float)
    wanted = np.outer(wanted, table.sum(axis=0) / len(groups))  # [part, class]
    order = rng.permutation(len(table))
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    have, part_of_group = np.zeros_like(wanted), np.empty(len(table), np.int64)
    for group in order:
        change = (table[group] * (table[group] + 2 * (have - wanted))).sum(axis=1)
        part = int(np.argmin(change))
        part_of_group[group] = part
        have[part] += table[group]
    part_of_row = part_of_group[group_of_row]
    return np.where(part_of_row < len(counts), part_of_row, -1)


def _check_length(name, values, num_examples):
    values = np.asarray(values)
    if values.shape != (num_examples,):
        raise ValueError(
            f"{name} must be [example] = [{num_examples}]; got shape {values.shape}."
        )
    return values
