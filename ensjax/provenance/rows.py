"""Of which rows predictions are, and which of them each member has seen."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

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
        seen = where_counts(self.seen, counts)
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


def where_counts(seen, counts):
    """`seen`, False where a member does not count; `[member, batch]`."""
    if counts is None:
        return seen
    counts = np.asarray(counts, bool)
    return seen & (counts if counts.ndim == 2 else counts[:, None])
