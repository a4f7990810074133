"""The rows that `evaluate` and its like score: weights, groups, who has seen them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.provenance import check_scored_rows
from ensjax.scores.rows import check_any_row


def check_seen(predictions, counts, rows, allow_seen):
    """Raises `LeakageError` if a member that counts has seen a row that does."""
    counts = counts & (np.asarray(rows.weight) != 0)
    check_told(predictions.provenance, predictions.names, counts, allow_seen)


def check_scored(predictions, sample_weight, allow_seen, *, is_split=False):
    """As `check_seen`, of one score; what is not known in a compiled program counts.

    Args:
        predictions: of the rows.
        sample_weight: `[batch]`; None: all rows count.
        allow_seen: whether the fit itself is looked at, so that nothing is checked.
        is_split: whether the provenance is of all rows and these are a part, on one
            device.
    """
    about = predictions.provenance
    if about is None or allow_seen:
        return
    shape = (predictions.num_members, len(about.rows))
    counts = np.ones(shape, bool)
    parts = [predictions.mask, predictions.weights]
    if not is_split:
        counts = np.ones(predictions.values.shape[:2], bool)
        parts.append(sample_weight)
    for part, leading in zip(parts, (shape[0], shape[0], 1)):
        if part is None or isinstance(part, jax.core.Tracer):
            continue
        part = np.asarray(part).reshape(leading, -1) != 0
        if part.shape[1] in (1, counts.shape[1]):  # others are refused where used
            counts = counts & part
    check_told(about, predictions.names, counts, allow_seen)


def check_told(provenance, names, counts, allow_seen):
    """The same of what a provenance tells, of rows `[member, batch]` that count."""
    if provenance is not None and len(provenance.rows) != counts.shape[1]:
        raise ValueError(
            f"the provenance is of {len(provenance.rows)} rows, and"
            f" {counts.shape[1]} are scored; choose rows with Predictions.take."
        )
    check_scored_rows(provenance, names=names, counts=counts, allow_seen=allow_seen)


class Bootstrap(NamedTuple):
    """How rows are drawn again, and what of it is told."""

    num_resamples: int
    confidence: float
    seed: int

    def check(self):
        if self.num_resamples < 0:
            raise ValueError(
                f"bootstrap must not be negative; got {self.num_resamples}."
            )
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(
                f"confidence must lie between 0 and 1; got {self.confidence}."
            )


class Rows(NamedTuple):
    """The weight of each row, and the group that it is drawn with."""

    weight: jax.Array
    groups: np.ndarray | None
    num_groups: int | None

    @classmethod
    def of(cls, num_rows, sample_weight, groups):
        check_any_row((num_rows,))
        weight = jnp.ones(num_rows)
        weight = weight if sample_weight is None else jnp.asarray(sample_weight)
        if weight.shape != (num_rows,):
            raise ValueError(f"sample_weight must be [{num_rows}]; got {weight.shape}.")
        if groups is None:
            return cls(weight, None, None)
        groups = np.asarray(groups)
        if groups.shape != (num_rows,):
            raise ValueError(f"groups must be [{num_rows}]; got {groups.shape}.")
        names, groups = np.unique(groups, return_inverse=True)
        return cls(weight, groups, len(names))
