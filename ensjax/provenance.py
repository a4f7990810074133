"""Which rows a prediction is of, and which rows its maker has seen.

What is fitted on predictions (a temperature, a meta-model, weights, a conformal
threshold) is only worth something on rows that the members were not trained on, and is
only tested on rows that it was not fitted on itself. Predictions that carry a
`Provenance` make the fitting functions check both.

What was fitted and is applied to `Predictions` gives `Predictions`, and has then seen
the rows of its fit as well as those of its members: a second stage that is fitted on
them, or a score (`scores.evaluate`), is refused. What gives arrays of them, such as
conformal sets, refuses the rows of its fit itself. What is given arrays gives arrays,
which say nothing of their rows.

What is unknown is not checked, and stays unknown: predictions without a `Provenance`,
and members of which it does not say what they have seen. Merged with others and
combined they are still unknown, while what is known of the others still counts.

What is fitted also keeps in which order its members, classes and levels were, and is
applied to no other. One module, so that what is said of rows, kept and checked can be
read together: hence the length.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


class LeakageError(ValueError):
    """Rows that must not meet: of training and fitting, or of fitting and testing."""


def row_numbers(name: str, rows: Any) -> np.ndarray:
    """`rows` as row numbers `[row]`, int64, in their order.

    A mask is refused: its True and False would pass for the rows 1 and 0.

    Args:
        name: of the argument, for the message.
        rows: integers `[row]`; without any row of whatever type, but bools.

    Raises:
        TypeError: for a mask, a set, or what is no integer.
        ValueError: for another shape.
    """
    if isinstance(rows, (set, frozenset, dict)):
        raise TypeError(
            f"{name} must be row numbers, integers [row]; got a {type(rows).__name__},"
            " which has no order. Give sorted(...) of it."
        )
    array = np.asarray(rows)
    if array.dtype == bool:
        raise TypeError(
            f"{name} must be row numbers, integers [row]; got a mask, bools of shape"
            f" {array.shape}. The rows of a mask are np.flatnonzero(mask)."
        )
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{name} must be row numbers, integers [row]; got {array.dtype} of shape"
            f" {array.shape}."
        )
    if array.ndim != 1:
        raise ValueError(
            f"{name} must be row numbers, integers [row]; got shape {array.shape}."
        )
    return array.astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Provenance:
    """Where rows of predictions come from. NumPy, never traced.

    Attributes:
        source: names the rows' origin; row numbers of different sources never meet.
        rows: `[batch]`, the rows' numbers in the source, int64.
        part: what the rows are for: "train", "validation", "test", or another word.
            Nothing may be fitted on the part "test".
        seen: `[member, batch]`, True where what made the prediction was trained or
            fitted on this row; None: unknown. One member stands for all that are alike.
            Out-of-fold predictions have seen none of theirs.
        test_rows: row numbers that are kept for the test; nothing may be fitted there.
        known: `[member]`, as many as `seen` has, False for a member that may have seen
            more than that; None: `seen` is all there is.
    """

    source: str
    rows: np.ndarray
    part: str = "validation"
    seen: np.ndarray | None = None
    test_rows: np.ndarray | None = None
    known: np.ndarray | None = None

    def __post_init__(self):
        if self.part != "test" and self.part.strip().lower() == "test":
            raise ValueError(
                f'the part of the test is called "test"; got {self.part!r}.'
            )
        rows = row_numbers("rows", self.rows)
        object.__setattr__(self, "rows", rows)
        if self.seen is not None:
            seen = np.asarray(self.seen)
            if seen.ndim != 2 or seen.shape[1] != len(rows) or seen.dtype != bool:
                raise ValueError(
                    f"seen must be bools [member, batch={len(rows)}]; got {seen.dtype}"
                    f" of shape {seen.shape}."
                )
            object.__setattr__(self, "seen", seen)
        if self.known is not None:
            known = np.asarray(self.known)
            expected = None if self.seen is None else self.seen.shape[:1]
            if known.shape != expected or known.dtype != bool:
                raise ValueError(
                    f"known must be bools [member] = {expected}, as seen; got"
                    f" {known.dtype} of shape {known.shape}."
                )
            object.__setattr__(self, "known", None if known.all() else known)
        if self.test_rows is not None:
            test = np.unique(row_numbers("test_rows", self.test_rows))
            object.__setattr__(self, "test_rows", test)

    @classmethod
    def of(
        cls,
        source: str,
        rows: np.ndarray,
        *,
        part: str = "validation",
        trained_on: Sequence[np.ndarray] | np.ndarray | None = None,
        test_rows: np.ndarray | None = None,
    ) -> "Provenance":
        """Provenance of predictions by members whose training rows are known.

        Args:
            source, rows, part, test_rows: see the attributes.
            trained_on: row numbers `[row]` that every member was trained on, or a list
                of one such array per member; `[]`: on no row of the source; None: that
                is unknown, and is not checked.

        Raises:
            TypeError: if rows are a mask, a set, or no integers.
            ValueError: if rows are of another shape.
        """
        if trained_on is None:
            return cls(source, rows, part, None, test_rows)
        rows = row_numbers("rows", rows)
        is_list = isinstance(trained_on, (list, tuple)) and not all(
            np.ndim(rows_of_one) == 0 for rows_of_one in trained_on
        )
        trained = list(trained_on) if is_list else [trained_on]
        of_member = [f" of member {i}" if is_list else "" for i in range(len(trained))]
        seen = [
            np.isin(rows, row_numbers(f"trained_on{of_one}", ids))
            for of_one, ids in zip(of_member, trained)
        ]
        seen = np.stack(seen)
        return cls(source, rows, part, seen, test_rows)

    def take(self, positions: np.ndarray, *, part: str | None = None) -> "Provenance":
        """Of the predictions at these positions along the batch."""
        return dataclasses.replace(
            self,
            rows=self.rows[positions],
            part=self.part if part is None else part,
            seen=None if self.seen is None else self.seen[:, positions],
        )

    def of_members(self, members: np.ndarray) -> "Provenance":
        """Of the predictions of these members, by their numbers."""
        if self.seen is None or len(self.seen) == 1:
            return self
        known = None if self.known is None else self.known[members]
        return dataclasses.replace(self, seen=self.seen[members], known=known)

    def pooled(self, counts: np.ndarray | None = None) -> "Provenance":
        """Of one prediction that is made of those of all members, or those that count.

        Args:
            counts: `[member]` or `[member, batch]` bools; None: all count.
        """
        if self.seen is None:
            return self
        seen = _where_counts(self.seen, counts)
        known = self.known
        if known is not None:
            if counts is not None:
                counts = np.asarray(counts, bool)
                known = known | ~counts.reshape(len(counts), -1).any(axis=1)
            known = known.all(keepdims=True)
        return dataclasses.replace(
            self, seen=seen.any(axis=0, keepdims=True), known=known
        )

    def __repr__(self):
        return f"Provenance({self.part!r} rows of {self.source!r}, {len(self.rows)})"

    def _digest(self):
        digest = self.__dict__.get("_cached_digest")
        if digest is None:
            parts = (self.rows, self.seen, self.test_rows, self.known)
            text = repr((self.source, self.part, [p is None for p in parts])).encode()
            text += b"|".join(b"" if p is None else p.tobytes() for p in parts)
            digest = hashlib.sha256(text).hexdigest()
            object.__setattr__(self, "_cached_digest", digest)
        return digest

    # By content, since it is the static part of a pytree: equal ones compile once.
    def __eq__(self, other):
        return isinstance(other, Provenance) and self._digest() == other._digest()

    def __hash__(self):
        return hash(self._digest())


def merge_members(
    provenances: Sequence[Provenance | None], counts: Sequence[int]
) -> Provenance | None:
    """Provenance of predictions of the same rows by the members of several sources.

    Args:
        provenances: of each source; all None: unknown. What the members of one have
            seen may be unknown, and stays so.
        counts: number of members of each.

    Raises:
        ValueError: if only some have one, or they are not of the same rows and part.
    """
    if all(provenance is None for provenance in provenances):
        return None
    if any(provenance is None for provenance in provenances):
        raise ValueError(
            "the provenance of some predictions is unknown, of others known; give it"
            " to all (Provenance(source, rows) where only the rows are known), or drop"
            " it with predictions.replace(provenance=None)."
        )
    first = provenances[0]
    for other in provenances[1:]:
        same = (first.source, first.part) == (other.source, other.part)
        if not same or not np.array_equal(first.rows, other.rows):
            raise ValueError(
                f"predictions must be of the same rows in the same order; got {first!r}"
                f" and {other!r}."
            )
    is_one = first.seen is None or len(first.seen) == 1
    if is_one and all(other == first for other in provenances[1:]):
        return first
    seen = known = None
    if any(provenance.seen is not None for provenance in provenances):
        pairs = list(zip(provenances, counts, strict=True))
        shapes = [(count, len(first.rows)) for count in counts]
        seen = np.concatenate(
            [
                np.broadcast_to(False if p.seen is None else p.seen, shape)
                for (p, _), shape in zip(pairs, shapes)
            ]
        )
        known = np.concatenate(
            [
                np.broadcast_to(
                    p.seen is not None if p.known is None else p.known, count
                )
                for p, count in pairs
            ]
        )
    tests = [p.test_rows for p in provenances if p.test_rows is not None]
    tests = np.concatenate(tests) if tests else None
    return Provenance(first.source, first.rows, first.part, seen, tests, known)


@dataclasses.dataclass(frozen=True)
class FittedRows:
    """The rows that something was fitted on; what fits keeps it, as a static field.

    Beside the rows it keeps in which order members, classes and levels were: what has a
    number for each of them is wrong, and silently so, in another order.

    Attributes:
        what: such as "the temperature".
        provenance: of the rows; None: unknown, and nothing is checked.
        others: of further rows, such as those that chose when to stop.
        names: of the members; (): unknown.
        columns: labels of the classes; None: unknown.
        levels: of quantiles; (): unknown, or there are none.
    """

    what: str
    provenance: Provenance | None = None
    others: tuple[Provenance, ...] = ()
    names: tuple[str, ...] = ()
    columns: tuple[Any, ...] | None = None
    levels: tuple[float, ...] = ()

    def __post_init__(self):
        for about in (self.provenance, *self.others):
            if not isinstance(about, Provenance | None):
                raise TypeError(
                    f"{self.what}: the rows of a fit are a Provenance, as"
                    f" Provenance(source, rows); got {type(about).__name__}."
                )

    def check_members(self, names: Sequence[str]) -> None:
        """Raises `ValueError` unless members are those of the fit, in its order.

        Names that members got by their number ("member 0") are compared with such names
        alone, and say nothing of other members where they count from 0 on. How many
        there are is checked with the arrays.

        Args:
            names: of the predictions it is applied to.
        """
        own, names = (tuple(map(str, some)) for some in (self.names, names))
        if not own or not names or own == names:
            return
        are_numbers = _are_numbers(own)
        if are_numbers != _are_numbers(names):
            return
        if are_numbers and len(own) != len(names):
            return
        # Numbers from 0 on are those of whoever has no other: of a part of the members
        # that was taken before they were asked, too.
        counted = tuple(f"member {i}" for i in range(len(own)))
        if are_numbers and set(own) != set(names) and counted in (own, names):
            return
        hint = "if these are the same members, .replace(names=...) says so"
        if set(own) <= set(names):
            asked = repr(list(own)) if len(own) <= 8 else "fitted_rows.names"
            hint = f"take them in the order of the fit with .select({asked})"
        raise ValueError(
            f"{self.what} was fitted on the members {_named(own)}, in this order; got"
            f" predictions of {_named(names)}: {hint}."
        )

    def check_columns(self, columns: Sequence[Any] | None) -> None:
        """The same of the labels of classes, as text; None: unknown."""
        if self.columns is None or columns is None:
            return
        if tuple(map(str, self.columns)) != tuple(map(str, columns)):
            raise ValueError(
                f"{self.what} was fitted on the classes {_named(self.columns)}, in this"
                f" order; got predictions of {_named(columns)}. Make both with the same"
                " columns."
            )

    def check_levels(self, levels: Sequence[float]) -> None:
        """The same of the levels of quantiles, to 1e-6; (): unknown."""
        own, levels = self.levels, tuple(levels)
        if not own or not levels:
            return
        if len(own) != len(levels) or not np.allclose(own, levels, rtol=0, atol=1e-6):
            raise ValueError(
                f"{self.what} is of quantiles at the levels {own}; got predictions at"
                f" {levels}."
            )

    def check_test(self, provenance: Provenance | None) -> None:
        """Raises `LeakageError` if test rows are among those that it was fitted on.

        Args:
            provenance: of the predictions it is applied to. Only the part "test" is
                checked; None: unknown.
        """
        if provenance is None or provenance.part != "test":
            return
        overlap = self.overlap(provenance)
        if overlap.size:
            raise LeakageError(
                f"{self.what} was fitted on {_shown(overlap)} of"
                f" {provenance.source!r}, which are test rows here. Fit it on held-out"
                " rows and test on others."
            )

    def check_arrays(
        self, provenance: Provenance | None, *, allow_seen: bool = False
    ) -> None:
        """Raises `LeakageError` if what it gives, as arrays, is of rows of its fit.

        `Predictions` that it makes say what they have seen, and scores refuse them;
        arrays say nothing, so that rows of the fit are refused before.

        Args:
            provenance: of the predictions it is applied to; None: unknown, and nothing
                is checked.
            allow_seen: whether the fit itself is looked at. Test rows (`check_test`)
                are refused all the same.
        """
        self.check_test(provenance)
        if provenance is None or allow_seen:
            return
        overlap = self.overlap(provenance)
        if overlap.size:
            raise LeakageError(
                f"{self.what} was fitted on {_shown(overlap)} of"
                f" {provenance.source!r}: what it gives there says nothing of other"
                " rows. Apply it to others, or look at the fit with allow_seen=True."
            )

    def overlap(self, provenance: Provenance) -> np.ndarray:
        """Those of the rows, by number, that it is known to be fitted on."""
        return np.unique(provenance.rows[self._is_fitted(provenance)])

    def mark(self, provenance: Provenance | None) -> Provenance | None:
        """The provenance of what it makes of predictions: it has seen its own rows too.

        Args:
            provenance: of the predictions that it is applied to, `Provenance.pooled`
                where it makes one of all members; None: unknown.
        """
        if provenance is None:
            return None
        fitted = self._is_fitted(provenance)
        seen = np.zeros((1, len(fitted)), bool)
        known = provenance.known
        if provenance.seen is not None:
            seen = provenance.seen
        if provenance.seen is None or self.provenance is None:
            known = np.zeros(len(seen), bool)
        return dataclasses.replace(provenance, seen=seen | fitted[None], known=known)

    def _is_fitted(self, provenance):
        """`[batch]`, True for the rows that it is known to be fitted on."""
        fitted = np.zeros(len(provenance.rows), bool)
        for own in (self.provenance, *self.others):
            if own is not None and own.source == provenance.source:
                fitted |= np.isin(provenance.rows, own.rows)
        return fitted


def check_fitting_rows(
    what: str,
    provenance: Provenance | None,
    *,
    names: Sequence[str] = (),
    counts: np.ndarray | None = None,
    row_weight: np.ndarray | None = None,
) -> FittedRows:
    """Raises unless `what` may be fitted on these rows; returns what to keep of them.

    Args:
        what: such as "the temperature", for the message.
        provenance: of the predictions; None: unknown, and nothing is checked.
        names: of the members, for the message, and kept.
        counts: `[member]` or `[member, batch]` bools, False where a member does not
            count.
        row_weight: `[..., batch]`, such as the `sample_weight` of the fit. Rows of
            weight 0 count as removed: they are neither checked nor kept. Where the
            values are not known, in a compiled program, all rows count.

    Raises:
        LeakageError: if a member that counts was trained on a row, or a row is kept for
            the test. Names the member and the rows.
    """
    names = tuple(names)
    if provenance is None:
        return FittedRows(what, names=names)
    provenance, counts = _weighed(provenance, counts, row_weight)
    if provenance.part == "test":
        raise LeakageError(
            f"{what} cannot be fitted on {provenance!r}: test rows only test. Hold"
            " other rows out."
        )
    if provenance.test_rows is not None:
        overlap = np.intersect1d(provenance.rows, provenance.test_rows)
        if overlap.size:
            raise LeakageError(
                f"{what} cannot be fitted on {_shown(overlap)} of"
                f" {provenance.source!r}, which are kept for the test."
            )
    told = _told_of_seen(provenance, names, counts)
    if told:
        raise LeakageError(
            f"{what} cannot be fitted on {told}. Use rows held out of training, or"
            " out-of-fold predictions."
        )
    return FittedRows(what, provenance, names=names)


def check_scored_rows(
    provenance: Provenance | None,
    *,
    names: Sequence[str] = (),
    counts: np.ndarray | None = None,
    allow_seen: bool = False,
) -> None:
    """Raises if a score would be of rows that its members have seen.

    Args:
        provenance: of the predictions; None: unknown, and nothing is checked.
        names, counts: as for `check_fitting_rows`; rows without weight do not count.
        allow_seen: whether the fit itself is looked at, so that nothing is checked.

    Raises:
        LeakageError: if a member that counts was trained or fitted on a row. Names the
            member and the rows.
    """
    if provenance is None or allow_seen:
        return
    told = _told_of_seen(provenance, names, counts)
    if told:
        raise LeakageError(
            f"a score cannot be of {told}. Score other rows, mask members where they"
            " were trained (combine.out_of_bag_predictions), or look at the fit with"
            " allow_seen=True."
        )


def _told_of_seen(provenance, names, counts):
    """Which member has seen which rows, in words; None if none that counts has any."""
    if provenance.seen is None:
        return None
    seen = _where_counts(provenance.seen, counts)
    if not seen.any():
        return None
    member = int(np.flatnonzero(seen.any(axis=1))[0])
    rows = np.unique(provenance.rows[seen[member]])
    is_named = len(names) == len(seen) or (len(seen) == 1 and len(names) > 0)
    name = repr(names[member]) if is_named else str(member)
    others = int(seen.any(axis=1).sum())
    others = max(others, len(names) if len(seen) == 1 else 0) - 1
    more = f" (and {others} more members)" if others > 0 else ""
    return (
        f"{_shown(rows)} of {provenance.source!r}: member {name}{more} was trained on"
        " them"
    )


def _weighed(provenance, counts, weight):
    """Without the rows of weight 0, which are no part of the fit."""
    if weight is None or isinstance(weight, jax.core.Tracer):
        return provenance, counts
    weight = np.asarray(weight)
    if weight.ndim < 1 or weight.shape[-1] != len(provenance.rows):
        return provenance, counts  # its shape is refused where it is used
    kept = (weight != 0).reshape(-1, weight.shape[-1]).any(axis=0)
    if kept.all():
        return provenance, counts
    if counts is not None:
        counts = np.asarray(counts, bool)
        counts = counts[:, kept] if counts.ndim == 2 and counts.shape[1] > 1 else counts
    return provenance.take(np.flatnonzero(kept)), counts


def _where_counts(seen, counts):
    """`seen`, False where a member does not count; `[member, batch]`."""
    if counts is None:
        return seen
    counts = np.asarray(counts, bool)
    return seen & (counts if counts.ndim == 2 else counts[:, None])


def _are_numbers(names):
    return all(re.fullmatch(r"member \d+", str(name)) for name in names)


def _named(names):
    shown = ", ".join(repr(name) for name in names[:8])
    return f"({shown}{f', ... {len(names)} in all' if len(names) > 8 else ''})"


def _shown(rows):
    shown = ", ".join(str(row) for row in rows[:5])
    more = f", ... ({len(rows)} in all)" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
