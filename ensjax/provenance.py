"""Which rows a prediction is of, and which rows its maker has seen.

What is fitted on predictions (a temperature, a meta-model, weights, a conformal
threshold) is only worth something on rows that the members were not trained on, and is
only tested on rows that it was not fitted on itself. Predictions that carry a
`Provenance` make the fitting functions check both.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np


class LeakageError(ValueError):
    """Rows that must not meet: of training and fitting, or of fitting and testing."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Provenance:
    """Where rows of predictions come from. NumPy, never traced.

    Attributes:
        source: names the rows' origin; row numbers of different sources never meet.
        rows: `[batch]`, the rows' numbers in the source, int64.
        part: what the rows are for: "train", "validation", "test", or another word.
            Nothing may be fitted on the part "test".
        seen: `[member, batch]`, True where what made the prediction was trained on
            this row; None: never. Out-of-fold predictions have seen none of theirs.
        test_rows: row numbers that are kept for the test; nothing may be fitted there.
    """

    source: str
    rows: np.ndarray
    part: str = "validation"
    seen: np.ndarray | None = None
    test_rows: np.ndarray | None = None

    def __post_init__(self):
        if self.part != "test" and self.part.strip().lower() == "test":
            raise ValueError(
                f'the part of the test is called "test"; got {self.part!r}.'
            )
        rows = np.asarray(self.rows)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise ValueError(
                f"rows must be row numbers, integers [batch]; got {rows.dtype} of shape"
                f" {rows.shape}."
            )
        object.__setattr__(self, "rows", rows.astype(np.int64))
        if self.seen is not None:
            seen = np.asarray(self.seen)
            if seen.ndim != 2 or seen.shape[1] != len(rows) or seen.dtype != bool:
                raise ValueError(
                    f"seen must be bools [member, batch={len(rows)}]; got {seen.dtype}"
                    f" of shape {seen.shape}."
                )
            object.__setattr__(self, "seen", seen)
        if self.test_rows is not None:
            test = np.unique(np.asarray(self.test_rows, np.int64))
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
                of one such array per member; None: no row of the source.

        Raises:
            ValueError: if `rows` are not row numbers.
        """
        if trained_on is None:
            return cls(source, rows, part, None, test_rows)
        is_list = isinstance(trained_on, (list, tuple)) and not all(
            np.ndim(rows_of_one) == 0 for rows_of_one in trained_on
        )
        trained = list(trained_on) if is_list else [trained_on]
        seen = np.stack([np.isin(rows, ids) for ids in trained])
        return cls(source, rows, part, seen, test_rows)

    def take(self, positions: np.ndarray, *, part: str | None = None) -> "Provenance":
        """Of the predictions at these positions along the batch."""
        seen = None if self.seen is None else self.seen[:, positions]
        part = self.part if part is None else part
        return Provenance(self.source, self.rows[positions], part, seen, self.test_rows)

    def of_members(self, members: np.ndarray) -> "Provenance":
        """Of the predictions of these members, by their numbers."""
        seen = self.seen
        if seen is not None and len(seen) > 1:
            seen = seen[members]
        return Provenance(self.source, self.rows, self.part, seen, self.test_rows)

    def __repr__(self):
        return f"Provenance({self.part!r} rows of {self.source!r}, {len(self.rows)})"

    def _digest(self):
        digest = self.__dict__.get("_cached_digest")
        if digest is None:
            parts = (self.rows, self.seen, self.test_rows)
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
        provenances: of each source; all None: unknown.
        counts: number of members of each.

    Raises:
        ValueError: if only some are known, or they are not of the same rows and part.
    """
    if all(provenance is None for provenance in provenances):
        return None
    if any(provenance is None for provenance in provenances):
        raise ValueError(
            "the provenance of some predictions is unknown, of others known; give it"
            " to all, or drop it with predictions.replace(provenance=None)."
        )
    first = provenances[0]
    for other in provenances[1:]:
        same = (first.source, first.part) == (other.source, other.part)
        if not same or not np.array_equal(first.rows, other.rows):
            raise ValueError(
                f"predictions must be of the same rows in the same order; got {first!r}"
                f" and {other!r}."
            )
    seen = None
    if any(provenance.seen is not None for provenance in provenances):
        shapes = [(count, len(first.rows)) for count in counts]
        seen = np.concatenate(
            [
                np.broadcast_to(False if p.seen is None else p.seen, shape)
                for p, shape in zip(provenances, shapes, strict=True)
            ]
        )
    tests = [p.test_rows for p in provenances if p.test_rows is not None]
    tests = np.concatenate(tests) if tests else None
    return Provenance(first.source, first.rows, first.part, seen, tests)


@dataclasses.dataclass(frozen=True)
class FittedRows:
    """The rows that something was fitted on; what fits keeps it, as a static field.

    Attributes:
        what: such as "the temperature".
        provenance: of the rows; None: unknown, and nothing is checked.
    """

    what: str
    provenance: Provenance | None = None

    def check_test(self, provenance: Provenance | None) -> None:
        """Raises `LeakageError` if test rows are among those that it was fitted on.

        Args:
            provenance: of the predictions it is applied to. Only the part "test" is
                checked; None: unknown.
        """
        fitted = self.provenance
        if fitted is None or provenance is None or provenance.part != "test":
            return
        if fitted.source == provenance.source:
            overlap = np.intersect1d(fitted.rows, provenance.rows)
            if overlap.size:
                raise LeakageError(
                    f"{self.what} was fitted on {_shown(overlap)} of"
                    f" {fitted.source!r}, which are test rows here. Fit it on held-out"
                    " rows and test on others."
                )


def check_fitting_rows(
    what: str,
    provenance: Provenance | None,
    *,
    names: Sequence[str] = (),
    counts: np.ndarray | None = None,
) -> FittedRows:
    """Raises unless `what` may be fitted on these rows; returns what to keep of them.

    Args:
        what: such as "the temperature", for the message.
        provenance: of the predictions; None: unknown, and nothing is checked.
        names: of the members, for the message.
        counts: `[member]` or `[member, batch]` bools, False where a member does not
            count.

    Raises:
        LeakageError: if a member that counts was trained on a row, or a row is kept for
            the test. Names the member and the rows.
    """
    if provenance is None:
        return FittedRows(what)
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
    if provenance.seen is not None:
        seen = provenance.seen
        if counts is not None:
            counts = np.asarray(counts, bool)
            seen = seen & (counts if counts.ndim == 2 else counts[:, None])
        if seen.any():
            member = int(np.flatnonzero(seen.any(axis=1))[0])
            rows = np.unique(provenance.rows[seen[member]])
            name = repr(names[member]) if len(names) == len(seen) else str(member)
            others = int(seen.any(axis=1).sum()) - 1
            more = f" (and {others} more members)" if others else ""
            raise LeakageError(
                f"{what} cannot be fitted on {_shown(rows)} of {provenance.source!r}:"
                f" member {name}{more} was trained on them. Use rows held out of"
                " training, or out-of-fold predictions."
            )
    return FittedRows(what, provenance)


def _shown(rows):
    shown = ", ".join(str(row) for row in rows[:5])
    more = f", ... ({len(rows)} in all)" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
