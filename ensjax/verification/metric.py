"""`Metric`: a score as statistics of every element, which add up, and a final function.

An element is one place of one case. Its statistics are computed from what the metric
needs to know of the members there (its *ingredient*: their moments, their order, how
many exceed a threshold), summed with weights, and only at the end made into a score:
roots and ratios are of aggregated sums, never averages of roots and ratios.

A value that is NaN is missing: a member's, and it is left out there, so that
coefficients use the local number of members; an observation's, and the element is not
scored. What is not scored is counted (`scored_share`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating
from ensjax.verification.ingredients import Ingredient
from ensjax.verification.sums import Sums, means_of, merge_sums, sum_statistics


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a score is computed: by `metric(forecast, truth)`, or chunk by chunk.

        state = metric.init(forecast, truth)
        state = metric.update(state, forecast, truth)     # any number of times
        score = metric.finish(state)

    Everything is pure and may be compiled. Metrics are made by the functions of this
    room (`crps`, `spread_skill`), which return the same object for the same settings.

    Attributes:
        ingredient: what is needed to know of the members.
        statistics: `(what is known of the members, truth, reference) -> {name: array}`.
        final: `(means by name, and the sums as "total") -> score`; see `means_of`.
        best: what is best: "low" (negatively oriented), "high", "one", or "none" where
            the result is no score.
        is_fair: whether the expectation does not depend on the number of members.
        least_members: fewer give NaN.
        vector_axes: how many of the last axes of `truth` a statistic takes as one
            vector; an element is then what is left.
        axis: the element axes that are averaged over; None: all.
    """

    ingredient: Ingredient
    statistics: Callable[[Any, jax.Array, Any], dict[str, Any]]
    final: Callable[[dict[str, Any]], Any]
    best: str
    is_fair: bool = False
    least_members: int = 1
    vector_axes: int = 0
    axis: tuple[int, ...] | None = None

    def over(self, *axis: int) -> "Metric":
        """The same metric, averaged over these element axes only; none: a map."""
        return dataclasses.replace(self, axis=tuple(axis))

    def element_statistics(
        self,
        forecast: jax.Array,
        truth: jax.Array,
        *,
        member_mask: jax.Array | None = None,
        reference: Any = None,
    ) -> dict[str, Any]:
        """The statistics of every element, `[element axes..., extra axes...]`.

        Arguments as for `sums`.
        """
        forecast, truth, mask = check_forecast(forecast, truth, member_mask)
        known = self.ingredient.of_members(
            forecast, truth, mask, reference, self.vector_axes
        )
        return self.statistics(known, truth, reference)

    def sums(
        self,
        forecast: jax.Array,
        truth: jax.Array,
        *,
        weights: jax.Array | None = None,
        member_mask: jax.Array | None = None,
        reference: Any = None,
    ) -> Sums:
        """The sums of these cases, which add to those of others.

        Args:
            forecast: `[member, *truth]`.
            truth: observations, `[case..., space...]`; NaN where there is none.
            weights: non-negative, of a shape that broadcasts to the elements', such as
                `[lat, 1]` for `[case, lat, lon]`.
            member_mask: booleans `[member]` or `[member, *truth]`; a False member
                counts as removed there.
            reference: what the metric compares with beside the truth, where it says so
                (a climatology, thresholds): a dict of arrays, of cases as the truth.

        Raises:
            ValueError: if a shape does not fit, or the metric's reference is missing.
            TypeError: if the mask is not boolean.
        """
        statistics = self.element_statistics(
            forecast, truth, member_mask=member_mask, reference=reference
        )
        return self._summed(statistics, jnp.shape(truth), weights)

    def sums_of_reduced(
        self,
        reduced: dict[str, Any],
        truth: jax.Array,
        *,
        weights: jax.Array | None = None,
        reference: Any = None,
    ) -> Sums:
        """The sums of cases whose members were folded in by `reduce.fold_members`.

        The members never exist together; see `member_states`. As in `sums`, members
        that are missing are left out at each element.

        Args:
            reduced: states by name, with all members folded in.
            truth: as in `sums`; the rest likewise.

        Raises:
            ValueError: if a state is missing, or the metric needs all members at once.
        """
        truth = floating(truth)
        known = self.ingredient.of_reduced(reduced, truth, reference)
        statistics = self.statistics(known, truth, reference)
        return self._summed(statistics, truth.shape, weights)

    def _summed(self, statistics, shape, weights):
        elements = shape[: len(shape) - self.vector_axes]
        weights = element_weights(weights, elements)
        return sum_statistics(statistics, weights, self._axes(len(elements)))

    def _axes(self, ndim):
        if self.axis is None:
            return tuple(range(ndim))
        axes = tuple(a + ndim if a < 0 else a for a in self.axis)
        if len(set(axes)) != len(axes) or any(not 0 <= a < ndim for a in axes):
            raise ValueError(
                f"axis {self.axis} must name different axes of the {ndim} element axes"
                " (those of the truth without vector axes)."
            )
        return axes

    def init(
        self,
        forecast: Any,
        truth: Any,
        *,
        member_mask: Any = None,
        reference: Any = None,
    ) -> Sums:
        """The sums of nothing, for chunks shaped like these (arrays, or shapes).

        Kept axes must be of the same size in all chunks; those averaged over need not.
        """
        shapes = jax.eval_shape(
            lambda forecast, truth, mask, reference: self.sums(
                forecast, truth, member_mask=mask, reference=reference
            ),
            forecast,
            truth,
            member_mask,
            reference,
        )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def update(
        self,
        state: Sums,
        forecast: jax.Array,
        truth: jax.Array,
        *,
        weights: jax.Array | None = None,
        member_mask: jax.Array | None = None,
        reference: Any = None,
    ) -> Sums:
        """`state` with these cases added; arguments as for `sums`."""
        new = self.sums(
            forecast,
            truth,
            weights=weights,
            member_mask=member_mask,
            reference=reference,
        )
        return merge_sums(state, new)

    def merge(self, a: Sums, b: Sums) -> Sums:
        """The sums of the elements of both."""
        return merge_sums(a, b)

    def finish(self, state: Sums) -> Any:
        """The score; NaN where nothing could be scored."""
        return self.final(means_of(state))

    def __call__(
        self,
        forecast: jax.Array,
        truth: jax.Array,
        *,
        weights: jax.Array | None = None,
        member_mask: jax.Array | None = None,
        reference: Any = None,
    ) -> Any:
        """The score of these cases alone; arguments as for `sums`."""
        return self.finish(
            self.sums(
                forecast,
                truth,
                weights=weights,
                member_mask=member_mask,
                reference=reference,
            )
        )


def check_forecast(
    forecast: jax.Array, truth: jax.Array, member_mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Floats `[member, *truth]`, `truth`, and which members are there, `[member, ...]`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the mask is not boolean.
    """
    forecast, truth = floating(forecast), floating(truth)
    if forecast.ndim < 1 or forecast.shape[1:] != truth.shape or not len(forecast):
        raise ValueError(
            f"forecast must be [member, *truth] with truth {truth.shape}; got shape"
            f" {forecast.shape}. A single forecast becomes an ensemble of one with"
            " forecast[None]."
        )
    mask = ~jnp.isnan(forecast)
    if member_mask is not None:
        member_mask = jnp.asarray(member_mask)
        if member_mask.dtype != bool:
            raise TypeError(f"member_mask must be booleans; got {member_mask.dtype}.")
        if member_mask.shape == forecast.shape[:1]:
            wide = forecast.shape[:1] + (1,) * truth.ndim
            mask &= member_mask.reshape(wide)
        elif member_mask.shape == forecast.shape:
            mask &= member_mask
        else:
            raise ValueError(
                f"member_mask must be [member] = {forecast.shape[:1]} or"
                f" {forecast.shape}; got {member_mask.shape}."
            )
    return forecast, truth, mask


def element_weights(weights: jax.Array | None, elements: tuple[int, ...]) -> jax.Array:
    """Float32 weights of the shape of the elements; NaN where they were negative.

    Raises:
        ValueError: if the shape does not broadcast to `elements`.
    """
    if weights is None:
        return jnp.ones(elements, jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    try:
        weights = jnp.broadcast_to(weights, elements)
    except ValueError as error:
        raise ValueError(
            f"weights must broadcast to the elements, {elements}; got {weights.shape}."
        ) from error
    return jnp.where(weights < 0, jnp.nan, weights)
