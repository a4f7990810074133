"""Temperature scaling of an ensemble: pool the members first, then fit one number.

Averaging over-confident members lowers the ensemble's confidence, so a temperature that
fits each member is too high for their average. Hence the order.
"""

import math

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
from ensjax.predictions import log_probs as normalize
from ensjax.provenance import FittedRows
from ensjax.scores.rows import check_rows, weighted_mean

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 1e4
# Each bisection halves the range of log T: 40 leave 1e-11 of it.
_NUM_BISECTIONS = 40


@struct.dataclass
class Temperature:
    """A fitted temperature; called on logits it returns calibrated log-probabilities.

    A pytree, so it passes through `jit` and checkpoints.

    Attributes:
        temperature: a scalar; above 1 softens, below 1 sharpens.
        weights: `[member]` weights of the pool it was fitted on; None weighs members
            equally.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    temperature: jax.Array
    weights: jax.Array | None = None
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the temperature")
    )

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """Pools the members by `mean_probs`, divides by T, normalises again.

        Args:
            logits: `[member, batch, class]` logits or `Predictions`; or one predictive,
                `[batch, class]`, which is scaled only.

        Returns:
            `[batch, class]` log-probabilities in nats; of `Predictions` those of one
            member.

        Raises:
            ValueError: if the shape does not fit, or with `weights` members are in
                another order.
            LeakageError: for test rows that it was fitted on.
        """
        check_use(self.fitted_rows, logits, by_member=self.weights is not None)
        pooled = pooled_log_probs(logits, self.weights)
        scaled = normalize(pooled / self.temperature)
        return give_back_pool(logits, scaled, self.fitted_rows, self.weights)


@struct.dataclass
class MemberTemperatures:
    """One temperature per member; called on logits it scales, then pools.

    Fitted by `calibrate_members`, or given: temperatures of 1 and 1 / lambda weigh the
    logits of two members as 1 and lambda.

    Attributes:
        temperature: `[member]`.
        fitted_rows: the rows they were fitted on, where they are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> loud_and_quiet = jnp.array([[[0.0, 9.0]], [[2.0, 0.0]]])
        >>> balanced = combine.MemberTemperatures(jnp.array([9.0, 1.0]))
        >>> pooled = combine.mean_logits(loud_and_quiet)
        >>> int(pooled.argmax()), int(balanced(loud_and_quiet).argmax())
        (1, 0)
    """

    temperature: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the members' temperatures")
    )

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """Scales every member's logits, then pools them by `mean_probs`.

        Args:
            logits: `[member, batch, class]` logits or `Predictions`.

        Returns:
            `[batch, class]` log-probabilities in nats; of `Predictions` those of one
            member.

        Raises:
            ValueError: if the shape does not fit, or members are others, or in another
                order.
            LeakageError: for test rows that they were fitted on.
        """
        check_use(self.fitted_rows, logits)
        predictions = as_predictions(logits)
        scaled = self._scaled(predictions)
        pooled = mean_probs(scaled, predictions.weights, predictions.mask)
        return give_back_pool(logits, pooled, self.fitted_rows, None)

    def scale(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """Every member's log-probabilities at its own temperature, for another rule.

            combine.mean_logits(temperatures.scale(logits))

        is the average of logits whose confidence is balanced.

        Args:
            logits: as in a call.

        Returns:
            `[member, batch, class]` normalised log-probabilities in nats; of
            `Predictions` those of the same members.

        Raises:
            ValueError, LeakageError: as a call.
        """
        check_use(self.fitted_rows, logits)
        scaled = normalize(self._scaled(as_predictions(logits)))
        return give_back_members(logits, scaled, self.fitted_rows, "log_probs")

    def _scaled(self, predictions):
        if self.temperature.shape != (predictions.num_members,):
            raise ValueError(
                f"There are {self.temperature.shape[0]} temperatures for"
                f" {predictions.num_members} members."
            )
        return predictions.log_probs / self.temperature[:, None, None]


def calibrate(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    sample_weight: jax.Array | None = None,
) -> Temperature:
    """Fits the temperature of the pooled predictive that minimises the NLL.

        T = argmin - sum_n log softmax(log pbar(x_n) / T)[y_n]

    The NLL is convex in 1 / T, so its slope has one sign change, which 40 bisections of
    log T between 0.05 and 10,000 find. A result at either end says that the rows do not
    determine T (every row right, for instance). Where every row is uniform, T = 1.

    Args:
        logits: logits or log-probabilities of held-out rows, `[member, batch, class]`,
            or `Predictions`; `[batch, class]` is taken as pooled already.
        labels: class indices `[batch]`. A label out of range gives NaN, unless its
            weight is 0.
        weights: `[member]`, non-negative weights of the pool; kept for later calls.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `Temperature`, callable on logits of other rows. T is NaN if a row that counts
        holds a NaN, and in a compiled program if no row counts.

    Raises:
        ValueError: if a shape does not fit, or no row counts.
        TypeError: if `labels` are not integers.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; pooling before scaling:
    Rahaman and Thiery 2021, arXiv:2007.08792.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> logits = jnp.array([[[4.0, 0.0], [4.0, 0.0]]])  # sure, and wrong once
        >>> temperature = combine.calibrate(logits, jnp.array([0, 1]))
        >>> jnp.exp(temperature(logits)).round(1).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    fitted_rows = check_pool("the temperature", logits, weights, sample_weight)
    pooled = pooled_log_probs(logits, weights)
    said, labels, weight = _held_out(pooled, labels, sample_weight)
    weight = covered_weight(logits, weight)
    check_some_count("the temperature", weight)
    rows = said, labels, weight
    weights = None if weights is None else jnp.asarray(weights)
    return Temperature(_fit(*rows), weights, fitted_rows)


def calibrate_members(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> MemberTemperatures:
    """Fits one temperature per member, each as if it were alone.

    The average of calibrated members is under-confident as a rule: `calibrate` is the
    one to use for an ensemble, this one for comparing and for mixing members.

    Args:
        logits: `[member, batch, class]` logits of held-out rows, or `Predictions`.
        labels: class indices `[batch]`.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `MemberTemperatures`, NaN for a member none of whose rows counts.

    Raises:
        ValueError: if a shape does not fit, or no row counts.
        TypeError: if `labels` are not integers.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.
    """
    predictions = as_predictions(logits)
    fitted_rows = check_predictions(
        "the members' temperatures", predictions, row_weight=sample_weight
    )
    said, labels, weight = _held_out(predictions.log_probs, labels, sample_weight)
    mask = predictions.mask
    weight = jnp.where(mask.reshape(len(mask), -1), weight, 0.0)
    check_some_count("the members' temperatures", weight)
    rows = said, labels, weight
    return MemberTemperatures(jax.vmap(_fit)(*rows), fitted_rows)


def _held_out(log_probs, labels, sample_weight):
    if jnp.shape(log_probs)[-2:-1] == (0,):
        raise ValueError(
            "A temperature is fitted on at least one held-out row; logits of shape"
            f" {jnp.shape(log_probs)} hold none."
        )
    return check_rows(log_probs, labels, sample_weight)


def _slope(log_probs, labels, weight, log_temperature):
    """Slope of the mean NLL in 1 / T: E_T[z - z_y], which rises with 1 / T.

    The difference is taken within the mean: its sign is right where all of the
    probability is on one class and E_T[z] is z_y but for its rounding.
    """
    scaled = normalize(log_probs * jnp.exp(-log_temperature))
    known = (labels >= 0) & (labels < log_probs.shape[-1])
    picked = jnp.take_along_axis(
        log_probs, jnp.where(known, labels, 0)[..., None], axis=-1
    )
    probs = jnp.exp(scaled)
    # Never 0 * inf, which is NaN: what has no probability does not count.
    above = jnp.where(probs == 0, 0.0, log_probs - picked)
    slope = jnp.where(known, jnp.sum(probs * above, axis=-1), jnp.nan)
    return weighted_mean(slope, weight)


def _fit(log_probs, labels, weight):
    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        # A positive slope in 1 / T: less 1 / T, so more T.
        up = _slope(log_probs, labels, weight, middle) > 0
        return jnp.where(up, middle, low), jnp.where(up, high, middle)

    ends = tuple(
        jnp.asarray(math.log(t), log_probs.dtype)
        for t in (MIN_TEMPERATURE, MAX_TEMPERATURE)
    )
    low, high = jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, ends)
    log_temperature = (low + high) / 2

    width = jnp.max(log_probs, axis=-1) - jnp.min(log_probs, axis=-1)
    flat = jnp.max(jnp.where(weight == 0, 0.0, width)) < 1e-6
    temperature = jnp.where(flat, 1.0, jnp.exp(log_temperature))
    # Comparisons with NaN are False and would pass for a fit at the lower end.
    undefined = jnp.isnan(_slope(log_probs, labels, weight, log_temperature))
    return jnp.where(undefined, jnp.nan, temperature)
