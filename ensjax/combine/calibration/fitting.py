"""The rows that something is fitted on, or applied to: may it be?"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import counting_members
from ensjax.predictions import Predictions
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows


def check_predictions(
    what: str,
    predictions: Predictions,
    *,
    row_weight: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> FittedRows:
    """What is to be kept of the rows; raises if `what` may not be fitted on them.

    Args:
        what: as for `check_fitting_rows`.
        predictions: of the rows; masked members do not count.
        row_weight: `[batch]`; rows of weight 0 do not count.
        weights: `[member]` or `[member, batch]` of the pool it is fitted on, where
            there is one: members of weight 0 do not count.

    Raises:
        ValueError: if there is no row.
        LeakageError: if a member that counts was trained on a row, or a row is kept for
            the test.
    """
    rows = predictions.values.shape[1]
    if not rows:
        raise ValueError(f"{what} needs at least one held-out row; got none.")
    about = predictions.provenance
    if about is not None and len(about.rows) != rows:
        raise ValueError(
            f"{what}: the provenance is of {len(about.rows)} rows, the predictions of"
            f" {rows}; choose rows with Predictions.take."
        )
    fitted_rows = check_fitting_rows(
        what,
        predictions.provenance,
        names=predictions.names,
        counts=known_counts(predictions, weights),
        row_weight=row_weight,
    )
    return dataclasses.replace(
        fitted_rows, columns=predictions.columns, levels=predictions.levels
    )


def check_use(
    fitted_rows: FittedRows,
    given: jax.Array | Predictions,
    *,
    by_member: bool = True,
    by_class: bool = False,
    allow_seen: bool = True,
) -> None:
    """Raises if what was fitted may not be applied to these predictions.

    Args:
        fitted_rows: of the fit.
        given: `Predictions`, or arrays, of which nothing is known.
        by_member: whether it has something for each member, so that these must be in
            the order of the fit.
        by_class: whether it has something for each class.
        allow_seen: as for `FittedRows.check_arrays`.

    Raises:
        ValueError: if members or classes are others, or in another order.
        LeakageError: for test rows that it was fitted on; for any unless `allow_seen`.
    """
    if not isinstance(given, Predictions):
        return
    fitted_rows.check_arrays(given.provenance, allow_seen=allow_seen)
    if by_member:
        fitted_rows.check_members(given.names)
    if by_class:
        fitted_rows.check_columns(given.columns)
    fitted_rows.check_levels(given.levels)


def check_points(
    what: str,
    points: jax.Array,
    provenance: Provenance | None,
    mask: jax.Array | None,
    names: Sequence[str] = (),
    row_weight: jax.Array | None = None,
) -> FittedRows:
    """The same of real values `[member, batch]`."""
    if not points.shape[1]:
        raise ValueError(f"{what} needs at least one held-out row; got none.")
    counts = known_mask(mask)
    return check_fitting_rows(
        what, provenance, names=names, counts=counts, row_weight=row_weight
    )


def check_pool(
    what: str,
    logits: jax.Array | Predictions,
    weights: jax.Array | None,
    row_weight: jax.Array | None,
) -> FittedRows:
    """As `check_predictions`, of what is fitted on `mean_probs` of the members.

    `weights` are those of the pool; None: those of `Predictions`. Of arrays, which say
    nothing of their rows, no check.
    """
    if not isinstance(logits, Predictions):
        return FittedRows(what)
    weights = logits.weights if weights is None else weights
    return check_predictions(what, logits, row_weight=row_weight, weights=weights)


def check_some_count(what: str, weight: jax.Array) -> None:
    """Raises `ValueError` where weights of rows are known and none is positive.

    In a compiled program they are not known: what is fitted there is NaN.
    """
    if isinstance(weight, jax.core.Tracer):
        return
    if not (np.asarray(weight) > 0).any():
        raise ValueError(
            f"{what} needs at least one row that counts; all rows of the fit are masked"
            " or have the weight 0."
        )


def covered_weight(logits: jax.Array | Predictions, weight: jax.Array) -> jax.Array:
    """Weights `[batch]` of rows, 0 where no member counts: nothing is said of them."""
    if not isinstance(logits, Predictions):
        return weight
    mask, weights = logits.mask, logits.weights
    counts = mask.reshape(len(mask), -1) & (weights.reshape(len(weights), -1) != 0)
    return jnp.where(jnp.any(counts, axis=0), weight, 0.0)


def known_mask(mask: jax.Array | None) -> jax.Array | None:
    """The mask where its values are known; None, all count, in a compiled program."""
    return None if isinstance(mask, jax.core.Tracer) else mask


def known_counts(
    predictions: Predictions, weights: jax.Array | None = None
) -> jax.Array | None:
    """Which members count, `[member]` or `[member, batch]`, as far as it is known.

    Masked members do not, nor, where `weights` of a pool are given, those of weight 0.
    """
    mask = known_mask(predictions.mask)
    if mask is None or weights is None or isinstance(weights, jax.core.Tracer):
        return mask
    weights = jnp.asarray(weights)
    if weights.shape not in (mask.shape[:1], predictions.values.shape[:2]):
        return mask  # their shape is refused where they are used
    return counting_members(weights, mask)
