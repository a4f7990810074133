"""Convex weights of the members: how much each counts in the mean, fitted on rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_predictions,
    check_some_count,
    check_use,
)
from ensjax.combine.learned.least_squares import least_squares
from ensjax.combine.learned.mixture import mixture_weights
from ensjax.combine.rules.average import mean_probs
from ensjax.combine.rules.pool import give_back
from ensjax.mapping import whole_on_each_device
from ensjax.predictions import Predictions, as_predictions
from ensjax.predictions import log_probs as normalize
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows, label_log_probs, weigh

LOSSES = ("nll", "brier")
_WHAT = "the weights"
_MAX_STEPS, _LARGEST_RATE = 5000, 1e4


@struct.dataclass
class ConvexWeights:
    """Fitted weights; called on predictions they return the weighted mean. A pytree.

    Attributes:
        weights: `[member]`, or `[member, class]` with each class summing to 1.
        fitted_rows: the rows they were fitted on, where they are known.
    """

    weights: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    def __call__(
        self, logits: jax.Array | Predictions, *, mask: jax.Array | None = None
    ) -> jax.Array | Predictions:
        """Log-probabilities of the weighted mean, `[batch, class]` in nats.

        Of `Predictions`, those of one member, which has not seen what only members of
        weight 0 have. Weights of each class: the weighted means
        of the classes, normalised again.

        Raises:
            ValueError: if the members or classes are others, or in another order.
            LeakageError: for test rows that they were fitted on.
        """
        predictions = as_predictions(logits, mask=mask)
        check_use(self.fitted_rows, logits, by_class=self.weights.ndim > 1)
        if self.weights.ndim == 1:
            pooled = mean_probs(predictions, self.weights)
            told = dict(mask=mask, weights=self.weights)
            return give_back(logits, pooled, self.fitted_rows, **told)
        shape = (predictions.num_members, predictions.num_classes)
        if self.weights.shape != shape:
            raise ValueError(
                f"the weights are of [member, class] = {self.weights.shape}; got"
                f" predictions of {shape}."
            )
        values, counts = _values(predictions)
        pooled = _weigh_classes(self.weights, values, counts)
        told = dict(mask=mask, weights=jnp.any(self.weights != 0, axis=1))
        return give_back(logits, pooled, self.fitted_rows, **told)


def fit_convex_weights(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    loss: str = "nll",
    per_class: bool = False,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> ConvexWeights:
    """Fits weights on the simplex that make the members' mean probabilities best.

        nll:    min_w  - sum_n s_n log sum_m w_m p_m(y_n | x_n)
        brier:  min_w    sum_n s_n |sum_m w_m p_m(. | x_n) - onehot(y_n)|^2

    The NLL is minimised by quadratic programs on the simplex, the Brier score is one,
    solved by an active-set method. With masks by row or weights by class the loss is
    not convex, and what is reached from equal weights is found by exponentiated
    gradients, w <- w exp(-rate g) / Z, with a rate that grows while the loss falls,
    until the slopes leave 1e-6 nats to gain; where it ends can depend on rounding, so
    that each device does all of it, as one alone would. Real values:
    `fit_stacking_regression(constraint="simplex")`.

    Args:
        logits: of rows that no member was trained on, `[member, batch, class]`, or
            `Predictions`.
        labels: class indices `[batch]`.
        loss: "nll" or "brier".
        per_class: one simplex of weights for each class: class c has the score
            sum_m w_mc p_mc, and scores are normalised. With "nll" only.
        mask: `[member]` or (with "nll") `[member, batch]`; a False member counts as
            removed. Rows without any member do not count.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `ConvexWeights`, callable on predictions of other rows. Masked members have the
        weight 0. In a compiled program they are NaN if no row counts.

    Raises:
        ValueError: if a shape does not fit, no row counts, or a name is unknown.
        TypeError: if `labels` are not integers, or only votes are known.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Source: Kim et al. 2020, arXiv:1806.01412 (quadratic programs); Kivinen and Warmuth
    1997 (exponentiated gradient); the NLL is that of Jordan and Jacobs 1994 with
    constant gates.
    """
    predictions = as_predictions(logits, mask=mask)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}.")
    if loss == "brier" and (per_class or predictions.mask.ndim == 2):
        raise ValueError(
            'loss="brier" has one weight for each member, and takes a mask [member].'
        )
    fitted_rows = check_predictions(_WHAT, predictions, row_weight=sample_weight)
    values, counts = _values(predictions)  # [member, batch, class], [member, batch]
    _, labels, weight = check_rows(values[0], labels, sample_weight)
    weight = jnp.where(jnp.any(counts, axis=0), weight, 0.0)
    check_some_count(_WHAT, weight)
    if loss == "brier":
        weights = _fit_brier(values, predictions.mask, labels, weight)
    elif per_class:
        weights = _descend_whole(_class_fit, predictions, labels, weight)
    elif predictions.mask.ndim == 2:
        weights = _descend_whole(_masked_fit, predictions, labels, weight)
    else:
        ratio = _label_ratio(values, counts, labels)
        weights = mixture_weights(ratio, weight, _equal_weights(counts))
    return ConvexWeights(weights, fitted_rows)


def _descend_whole(fit, predictions, labels, weight):
    # Rounding chooses the way down a loss that is not convex: the same on all devices.
    values = predictions.replace(provenance=None)
    return whole_on_each_device(fit, values, labels, weight)


def _class_fit(predictions, labels, weight):
    values, counts = _values(predictions)
    start = _equal_weights(counts)[:, None]
    start = jnp.broadcast_to(start, (len(start), values.shape[-1]))
    return _descend(_class_objective(values, counts, labels, weight), start)


def _masked_fit(predictions, labels, weight):
    values, counts = _values(predictions)
    ratio = _label_ratio(values, counts, labels)
    return _descend(_masked_objective(ratio, counts, weight), _equal_weights(counts))


def _equal_weights(counts):
    """Of the members that count on any row."""
    present = jnp.any(counts, axis=1)
    return present / jnp.sum(present)


def _values(predictions):
    """Log-probabilities, 0 where a member does not count, and where it does."""
    values = predictions.log_probs
    counts = predictions.mask.reshape(predictions.num_members, -1)
    counts = jnp.broadcast_to(counts, values.shape[:2])
    return jnp.where(counts[..., None], values, 0.0), counts


def _weigh_classes(weights, values, counts):
    """Log-probabilities under weights `[member, class]`."""
    weights = jnp.where(counts[..., None], weights[:, None], 0.0)
    peak = jnp.max(values, axis=0, keepdims=True)
    scores = jnp.sum(weights * jnp.exp(values - peak), axis=0)
    total = jnp.sum(weights, axis=0)  # members that do not count on a row: less than 1
    return normalize(jnp.log(scores) - jnp.log(total) + peak[0])


def _label_ratio(values, counts, labels):
    """Of the label by each member, to the largest of its row, `[member, batch]`."""
    picked = label_log_probs(values, jnp.broadcast_to(labels, values.shape[:2]))
    picked = jnp.where(counts, picked, -jnp.inf)
    # The likeliest member's probability leaves a constant behind, and no underflow.
    peak = jnp.max(picked, axis=0, keepdims=True)
    return jnp.exp(picked - jnp.where(jnp.isneginf(peak), 0.0, peak))


def _masked_objective(ratio, counts, weight):
    # Before the gradient: a row of weight 0 may hold anything.
    ratio = jnp.where(weight[None] == 0, 1.0, ratio)
    is_said = counts | (weight[None] == 0)

    def objective(weights):
        share = jnp.sum(jnp.where(is_said, weights[:, None], 0.0), axis=0)
        mean = jnp.sum(weights[:, None] * ratio, axis=0)
        nll = jnp.log(share) - jnp.log(mean)
        return jnp.sum(weigh(nll, weight)) / jnp.sum(weight)

    return objective


def _class_objective(values, counts, labels, weight):
    values = jnp.where((weight == 0)[None, :, None], 0.0, values)

    def objective(weights):
        picked = label_log_probs(_weigh_classes(weights, values, counts), labels)
        return -jnp.sum(weigh(picked, weight)) / jnp.sum(weight)

    return objective


def _descend(objective: Callable[[jax.Array], jax.Array], start: jax.Array):
    """Exponentiated gradients along the first axis."""
    value_and_slope = jax.value_and_grad(objective)

    def gap(weights, slope):
        """How far the loss can lie above its least, for a convex one."""
        best = jnp.min(jnp.where(start > 0, slope, jnp.inf), axis=0)
        return jnp.sum(jnp.sum(weights * slope, axis=0) - best)

    def goes_on(carry):
        weights, _, slope, rate, count = carry
        return (gap(weights, slope) > 1e-6) & (count < _MAX_STEPS) & (rate > 1e-6)

    def step(carry):
        weights, value, slope, rate, count = carry
        best = jnp.min(jnp.where(start > 0, slope, jnp.inf), axis=0, keepdims=True)
        trial = weights * jnp.exp(-rate * (slope - best))
        trial = trial / jnp.sum(trial, axis=0, keepdims=True)
        new_value, new_slope = value_and_slope(trial)
        falls = new_value <= value

        def choose(a, b):
            return jnp.where(falls, a, b)

        rate = jnp.where(falls, jnp.minimum(1.3 * rate, _LARGEST_RATE), rate / 2)
        return (
            choose(trial, weights),
            choose(new_value, value),
            choose(new_slope, slope),
            rate,
            count + 1,
        )

    value, slope = value_and_slope(start)
    first = (start, value, slope, jnp.ones((), start.dtype), 0)
    weights, value, *_ = jax.lax.while_loop(goes_on, step, first)
    return jnp.where(jnp.isnan(value), jnp.nan, weights)


def _fit_brier(values, mask, labels, weight):
    members, _, classes = values.shape
    columns = jnp.exp(values).reshape(members, -1).T
    targets = jax.nn.one_hot(labels, classes, dtype=values.dtype)
    unfit = jnp.any(((labels < 0) | (labels >= classes)) & (weight != 0))
    weights = least_squares(
        columns,
        targets.reshape(-1),
        jnp.repeat(weight, classes),
        l2=0.0,
        constraint="simplex",
        allowed=mask,
    )
    return jnp.where(unfit, jnp.nan, weights)
