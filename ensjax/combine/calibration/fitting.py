"""The rows that something is fitted on: may it be?"""

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
    if not predictions.values.shape[1]:
        raise ValueError(f"{what} needs at least one held-out row; got none.")
    return check_fitting_rows(
        what,
        predictions.provenance,
        names=predictions.names,
        counts=_known(predictions.mask),
    )


def check_points(
    what: str,
    points: jax.Array,
    provenance: Provenance | None,
    mask: jax.Array | None,
) -> FittedRows:
    """The same of real values `[member, batch]`."""
    if not points.shape[1]:
        raise ValueError(f"{what} needs at least one held-out row; got none.")
    return check_fitting_rows(what, provenance, counts=_known(mask))


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


def _known(mask):
    """In a compiled program the mask's values are not known: all members count."""
    return None if isinstance(mask, jax.core.Tracer) else mask
