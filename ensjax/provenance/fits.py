"""What a fit keeps of its rows, and the checks before a fit, a use and a score."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ensjax.provenance.rows import LeakageError, Provenance, where_counts


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
    seen = where_counts(provenance.seen, counts)
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


def _are_numbers(names):
    return all(re.fullmatch(r"member \d+", str(name)) for name in names)


def _named(names):
    shown = ", ".join(repr(name) for name in names[:8])
    return f"({shown}{f', ... {len(names)} in all' if len(names) > 8 else ''})"


def _shown(rows):
    shown = ", ".join(str(row) for row in rows[:5])
    more = f", ... ({len(rows)} in all)" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
