"""Stacking: a small model on what the members say, fitted on rows they never saw.

A meta-model that is fitted on the members' own training rows learns to trust whichever
member fits them best. Its rows are held out, or predicted out of fold (`out_of_fold`);
`Predictions` whose provenance says otherwise are refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_points,
    check_predictions,
    check_some_count,
    check_use,
    covered_weight,
)
from ensjax.combine.learned.least_squares import CONSTRAINTS, least_squares
from ensjax.combine.learned.level_one import (
    level_one_features,
    point_features,
    unpack_points,
)
from ensjax.combine.learned.logistic import (
    LogisticWeights,
    fit_logistic,
    logistic_log_probs,
)
from ensjax.combine.rules.points import mean_points
from ensjax.combine.rules.pool import give_back
from ensjax.member_arrays import member_mask_and_weights
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows, Provenance
from ensjax.scores.rows import broadcast_rows, row_weights

_WHAT = "the meta-model"


@struct.dataclass
class Stacking:
    """A fitted logistic meta-model; a pytree. Made by `fit_stacking`.

    Attributes:
        weights: `kernel [feature, column]` and `bias [column]`.
        features: which level-1 features it takes.
        num_members: of the predictions it was fitted on.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    weights: LogisticWeights
    features: str = struct.field(pytree_node=False)
    num_members: int = struct.field(pytree_node=False)
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    def __call__(
        self,
        logits: jax.Array | Predictions,
        x: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array | Predictions:
        """Log-probabilities `[batch, class]` in nats; of `Predictions`, one member's.

        Args:
            logits: `[member, batch, class]` or `Predictions`, of the same members.
            x: inputs, if it was fitted with them.
            mask: `[member]` or `[member, batch]`; a False member's features are 0.

        Raises:
            ValueError: if the members or the features are others, or in another order.
            LeakageError: for test rows that it was fitted on.
        """
        predictions = as_predictions(logits, mask=mask)
        check_use(self.fitted_rows, logits, by_class=True)
        columns = level_one_features(predictions, self.features, x=x)
        _check_columns(self, predictions.num_members, columns, self.weights.kernel)
        values = logistic_log_probs(self.weights, columns)
        told = dict(mask=mask, weights=self._parts())
        return give_back(logits, values, self.fitted_rows, **told)

    def _parts(self):
        """Which members have a weight, `[member]`; None: all, by their sum."""
        if self.features == "sum":
            return None
        kernel = self.weights.kernel
        columns = self.num_members * (kernel.shape[0] // self.num_members)
        return jnp.any(kernel[:columns].reshape(self.num_members, -1) != 0, axis=1)


@struct.dataclass
class StackedRegression:
    """A fitted linear meta-model of real values; a pytree.

    Attributes:
        weights: `[feature]`.
        intercept: a scalar.
        num_members: of the predictions it was fitted on.
        fitted_rows: the rows it was fitted on, where they are known.
        constraint: that it was fitted with.
    """

    weights: jax.Array
    intercept: jax.Array
    num_members: int = struct.field(pytree_node=False)
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))
    constraint: str = struct.field(pytree_node=False, default="free")

    def __call__(
        self,
        points: jax.Array | Predictions,
        x: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array | Predictions:
        """Combined values `[batch]` of `points [member, batch]`.

        Of `Predictions` of points, those of one member.

        Args:
            points: `[member, batch]`, or `Predictions` of points.
            x: inputs, if it was fitted with them.
            mask: `[member]` or `[member, batch]`; None: that of `Predictions`. On the
                simplex a False member's weight goes to the others, as in
                `ConvexWeights`; NaN where no weight is left. Other weights sum to
                nothing that could be kept: without a member that has one they mean
                nothing, which raises, or gives NaN in a compiled program.
            provenance: of arrays, where it is known.
            allow_seen: of arrays, whether the fit itself is looked at. `Predictions`
                say themselves what they have seen.

        Raises:
            ValueError: if the members or the features are others, or in another order,
                or a member with a weight is masked, but on the simplex.
            LeakageError: for test rows that it was fitted on; of arrays for any.
        """
        allow_seen = allow_seen or isinstance(points, Predictions)
        values, counts, provenance = unpack_points(points, mask, provenance)
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        check_use(self.fitted_rows, points)
        columns = point_features(values, x=x)
        _check_columns(self, len(values), columns, self.weights)
        weights = self.weights[: self.num_members]
        if self.constraint == "simplex":
            combined = mean_points(values, weights, counts) + self.intercept
        else:
            is_missing = _missing(weights, values, counts)
            # A member without weight may say NaN.
            columns = jnp.where(self.weights[None] == 0, 0.0, columns)
            combined = jnp.matmul(columns, self.weights, precision="highest")
            combined = jnp.where(is_missing, jnp.nan, combined + self.intercept)
        told = dict(mask=mask, weights=weights)
        return give_back(points, combined, self.fitted_rows, **told)


def fit_stacking(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    features: str = "probs",
    l2: float = 1.0,
    x: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> Stacking:
    """Fits multinomial logistic regression on the members' outputs, to convergence.

    The same as scikit-learn's `StackingClassifier` with
    `LogisticRegression(C=1 / l2)` as its final estimator, on the same level-1 rows.

    Args:
        logits: of rows that no member was trained on: logits or log-probabilities
            `[member, batch, class]`, or `Predictions` (votes will do for "votes").
        labels: class indices `[batch]`. A label out of range gives NaN, unless its
            weight is 0.
        features: "probs", "log_probs", "logits", "votes" or "sum"; see
            `level_one_features`.
        l2: of the ridge on the weights (not on the bias), non-negative.
        x: inputs `[batch, ...]` that the meta-model sees as well.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `Stacking`, callable on predictions of other rows; in a compiled program NaN if
        all rows have the weight 0.

    Raises:
        ValueError: if a shape does not fit, no row counts, or a name is unknown.
        TypeError: if `labels` are not integers, or the predictions lack the features.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Source: Wolpert 1992 (stacked generalisation); Ting and Witten 1999 (probabilities
    as level-1 features).
    """
    predictions = as_predictions(logits, mask=mask)
    fitted_rows = check_predictions(_WHAT, predictions, row_weight=sample_weight)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers [batch]; got {labels.dtype}.")
    columns = level_one_features(predictions, features, x=x)
    _check_l2(l2)
    rows = columns.shape[:1]
    weight = row_weights(sample_weight, rows, columns.dtype)
    check_some_count(_WHAT, covered_weight(predictions, weight))
    weights = fit_logistic(
        columns,
        broadcast_rows("labels", labels, rows),
        weight,
        num_classes=predictions.num_classes,
        l2=l2,
    )
    return Stacking(weights, features, predictions.num_members, fitted_rows)


def fit_stacking_regression(
    points: jax.Array | Predictions,
    targets: jax.Array,
    *,
    constraint: str = "free",
    l2: float = 0.0,
    intercept: bool = True,
    x: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> StackedRegression:
    """Fits linear weights of the members' values by least squares, exactly.

        min  sum_n s_n (sum_m w_m f_m(x_n) + b - y_n)^2 + l2 |w|^2

    Args:
        points: values of rows that no member was trained on, `[member, batch]`, or
            `Predictions` of points.
        targets: `[batch]`.
        constraint: "free" (scikit-learn's `Ridge(alpha=l2)`), "non_negative"
            (Breiman's stacked regressions), or "simplex": non-negative and summing to
            1, a convex combination of the members.
        l2: of the ridge, non-negative. Without one, members that agree throughout share
            their weight ("free"), or one of them has it.
        intercept: whether there is a `b`.
        x: inputs `[batch, ...]` that the meta-model sees as well; not on the simplex.
        mask: `[member]`; a False member counts as removed.
        sample_weight: `[batch]`, non-negative.
        provenance: of the rows, where `points` are an array.

    Returns:
        `StackedRegression`, callable on values of other rows; in a compiled program NaN
        if no row counts.

    Raises:
        ValueError: if a shape does not fit, no row counts, or a name is unknown.
        LeakageError: if members were trained on these rows, or they are test rows.

    Source: Breiman 1996, Stacked regressions.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"constraint must be one of {', '.join(CONSTRAINTS)}; got {constraint!r}."
        )
    if constraint == "simplex" and x is not None:
        raise ValueError("x is no member: on the simplex members alone are weighed.")
    names = points.names if isinstance(points, Predictions) else ()
    points, mask, provenance = unpack_points(points, mask, provenance)
    columns = point_features(points, mask, x)
    fitted_rows = check_points(_WHAT, points, provenance, mask, names, sample_weight)
    _check_l2(l2)
    rows = columns.shape[:1]
    targets = broadcast_rows("targets", jnp.asarray(targets, columns.dtype), rows)
    weight = row_weights(sample_weight, rows, columns.dtype)
    check_some_count(_WHAT, weight)
    columns = jnp.where(weight[:, None] == 0, 0.0, columns)
    targets = jnp.where(weight == 0, 0.0, targets)
    share = weight / jnp.sum(weight)
    column_mean = jnp.sum(share[:, None] * columns, axis=0)
    target_mean = jnp.sum(share * targets)
    # Values far from 0 cost digits: on the simplex the targets' mean may always go.
    if intercept:
        columns, targets = columns - column_mean[None], targets - target_mean
    number = columns.shape[1]
    allowed = jnp.ones(number, bool)
    if mask is not None:
        allowed = allowed.at[: points.shape[0]].set(jnp.asarray(mask, bool))
    weights = least_squares(
        columns, targets, weight, l2=l2, constraint=constraint, allowed=allowed
    )
    weights = jnp.where(allowed, weights, 0.0)
    offset = jnp.zeros(())
    if intercept:
        offset = target_mean - jnp.sum(column_mean * weights)
    return StackedRegression(weights, offset, points.shape[0], fitted_rows, constraint)


def _missing(weights, values, mask):
    """Rows `[batch]` on which a member with a weight is masked; raises if it is known.

    Neither 0 nor the others' mean stands for what it would have said.
    """
    if mask is None:
        return jnp.zeros(values.shape[1], bool)
    _, mask = member_mask_and_weights(values.shape, None, mask)
    missing = ~mask.reshape(len(mask), -1) & (weights != 0)[:, None]
    if not isinstance(missing, jax.core.Tracer) and missing.any():
        raise ValueError(
            f"{_WHAT} has weights {weights.tolist()}, and of its members"
            f" {np.flatnonzero(missing.any(axis=1)).tolist()} are masked; fit it"
            ' without them, or with constraint="simplex", which shares their weight'
            " among the others."
        )
    return jnp.broadcast_to(jnp.any(missing, axis=0), values.shape[1:])


def _check_l2(l2):
    if not isinstance(l2, jax.core.Tracer) and not l2 >= 0:
        raise ValueError(f"l2 must not be negative; got {l2}.")


def _check_columns(model, num_members, columns, weights):
    if num_members != model.num_members or columns.shape[1] != weights.shape[0]:
        raise ValueError(
            f"the meta-model was fitted on {model.num_members} members and"
            f" {weights.shape[0]} features; got {num_members} members and"
            f" {columns.shape[1]} features. x is given exactly if it was for the fit."
        )
