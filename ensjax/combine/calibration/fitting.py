"""The rows that something is fitted on: may it be?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import Predictions
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows


def check_predictions(what: str, predictions: Predictions) -> FittedRows:
    """What is to be kept of the rows; raises if `what` may not be fitted on them.

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
    return check_fitting_rows(
        what,
        predictions.provenance,
        names=predictions.names,
        counts=known_mask(predictions.mask),
    )


def check_points(
    what: str,
    points: jax.Array,
    provenance: Provenance | None,
    mask: jax.Array | None,
    names: Sequence[str] = (),
) -> FittedRows:
    """The same of real values `[member, batch]`."""
    if not points.shape[1]:
        raise ValueError(f"{what} needs at least one held-out row; got none.")
    counts = known_mask(mask)
    return check_fitting_rows(what, provenance, names=names, counts=counts)


def check_any(what: str, logits: jax.Array | Predictions) -> FittedRows:
    """As `check_predictions`; of arrays, which say nothing of their rows, no check."""
    if not isinstance(logits, Predictions):
        return FittedRows(what)
    return check_predictions(what, logits)


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
