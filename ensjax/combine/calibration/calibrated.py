"""Any calibration map of the pooled ensemble, or of every member by itself.

An average of calibrated members is under-confident as a rule: calibrate the ensemble,
and the members only to compare or to mix them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_pool,
    check_predictions,
    check_some_count,
    check_use,
    covered_weight,
)
from ensjax.combine.rules.average import mean_probs, pooled_log_probs
from ensjax.combine.rules.pool import give_back_members, give_back_pool
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows


@struct.dataclass
class CalibratedEnsemble:
    """Pools the members, then maps; called on logits it returns log-probabilities.

    Attributes:
        map: what was fitted, such as an `AffineMap`.
        weights: `[member]` weights of the pool it was fitted on; None: as the
            predictions say, or equal ones.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    map: Any
    weights: jax.Array | None = None
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the calibration")
    )

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """`[batch, class]` log-probabilities in nats, or `Predictions` of one member.

        Args:
            logits: `[member, batch, class]` logits or `Predictions`; or one predictive,
                `[batch, class]`, which is mapped only.

        Raises:
            ValueError: if the shape does not fit, or classes (with `weights` members
                too) are others, or in another order.
            LeakageError: for test rows that it was fitted on.
        """
        by_member = self.weights is not None
        check_use(self.fitted_rows, logits, by_member=by_member, by_class=True)
        mapped = self.map(pooled_log_probs(logits, self.weights))
        return give_back_pool(logits, mapped, self.fitted_rows, self.weights)


@struct.dataclass
class CalibratedMembers:
    """Maps every member, then pools; called on logits it returns log-probabilities.

    Attributes:
        map: what was fitted, stacked: leaves `[member, ...]`.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    map: Any
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the calibration of members")
    )

    def members(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """Every member's calibrated log-probabilities, `[member, batch, class]`.

        Of `Predictions`, the same members', which have seen the rows of the fit too.

        Raises:
            ValueError: if the shape does not fit, or members or classes are others, or
                in another order.
            LeakageError: for test rows that it was fitted on.
        """
        predictions = as_predictions(logits)
        check_use(self.fitted_rows, logits, by_class=True)
        fitted = jax.tree.leaves(self.map)[0].shape[0]
        if fitted != predictions.num_members:
            raise ValueError(
                f"{fitted} members were calibrated; got predictions of"
                f" {predictions.num_members}."
            )
        mapped = jax.vmap(lambda map, said: map(said))(self.map, predictions.log_probs)
        return give_back_members(logits, mapped, self.fitted_rows, "log_probs")

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """`[batch, class]` log-probabilities of the mean of the calibrated members.

        Of `Predictions`, those of one member.
        """
        pooled = mean_probs(self.members(logits))
        return give_back_pool(logits, pooled, self.fitted_rows, None)


def calibrate_ensemble(
    fit_map: Callable[[jax.Array, jax.Array, jax.Array], Any],
    logits: jax.Array | Predictions,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    sample_weight: jax.Array | None = None,
) -> CalibratedEnsemble:
    """Pools the members by `mean_probs` and fits a map of their predictive.

    Args:
        fit_map: `fit_vector_scaling`, `fit_matrix_scaling`, `fit_platt`,
            `fit_isotonic_map` (with options: `functools.partial`), or another function
            of `(log_probs [batch, class], labels [batch], weight [batch])`.
        logits: of held-out rows, `[member, batch, class]` or `Predictions`; or one
            predictive `[batch, class]`.
        labels: class indices `[batch]`.
        weights: `[member]` weights of the pool.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `CalibratedEnsemble`; in a compiled program NaN if no row counts.

    Raises:
        ValueError: if a shape does not fit, or no row counts.
        TypeError: if `labels` are not integers.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
        >>> labels = jnp.array([0, 1, 1, 0])  # sure, and right every other time
        >>> calibrated = combine.calibrate_ensemble(
        ...     combine.fit_vector_scaling, logits, labels)
        >>> jnp.exp(calibrated(logits))[0].round(2).tolist()
        [0.5, 0.5]
    """
    fitted_rows = check_pool("the calibration", logits, weights, sample_weight)
    pooled, labels, weight = check_rows(
        pooled_log_probs(logits, weights), labels, sample_weight
    )
    _check_any(pooled)
    weight = covered_weight(logits, weight)
    check_some_count("the calibration", weight)
    return CalibratedEnsemble(fit_map(pooled, labels, weight), weights, fitted_rows)


def calibrate_each_member(
    fit_map: Callable[[jax.Array, jax.Array, jax.Array], Any],
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> CalibratedMembers:
    """Fits a map of every member as if it were alone, all at once.

    A row where a member's mask is False does not count for it.

    Args:
        fit_map: as for `calibrate_ensemble`.
        logits: of held-out rows, `[member, batch, class]` or `Predictions`.
        labels: class indices `[batch]`.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `CalibratedMembers`.

    Raises:
        ValueError, TypeError, LeakageError: as `calibrate_ensemble`.
    """
    predictions = as_predictions(logits)
    fitted_rows = check_predictions(
        "the calibration of members", predictions, row_weight=sample_weight
    )
    said, labels, weight = check_rows(predictions.log_probs, labels, sample_weight)
    _check_any(said)
    mask = predictions.mask
    weight = jnp.where(mask.reshape(len(mask), -1), weight, 0.0)
    check_some_count("the calibration of members", weight)
    return CalibratedMembers(jax.vmap(fit_map)(said, labels, weight), fitted_rows)


def _check_any(log_probs):
    if not log_probs.shape[-2]:
        raise ValueError(
            "a calibration is fitted on at least one held-out row; logits of shape"
            f" {log_probs.shape} hold none."
        )
