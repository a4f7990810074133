"""Conformal intervals: held-out errors say how wide an interval has to be.

If calibration rows and new rows are exchangeable, an interval of level 1 - alpha holds
a new target with probability at least 1 - alpha, whatever the model. Fitting takes the
predictions themselves, made once, and never a model.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.ops.limits import larger, smaller
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.rows import (
    broadcast_rows,
    check_targets,
    floating,
    same_shape,
    sort_or_nan,
)


def conformal_quantile(
    scores: jax.Array, alpha: float, *, row_mask: jax.Array | None = None
) -> jax.Array:
    """The ceil((n + 1)(1 - alpha))-th smallest score; infinite if n is too small.

    A new score, exchangeable with these, is at most this with probability at least
    1 - alpha. (The plain 1 - alpha quantile of n scores covers less.)

    Args:
        scores: `[..., batch]`.
        alpha: share of new scores that may be larger, in (0, 1).
        row_mask: `[batch]` or `[..., batch]`; a False row counts as removed.

    Returns:
        `[...]`; NaN if a score that counts is NaN.

    Raises:
        ValueError: if a shape does not fit or `alpha` is not in (0, 1).

    Source: Vovk et al. 2005; Angelopoulos and Bates 2023, arXiv:2107.07511, section 1.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}.")
    scores = floating(scores)
    if scores.ndim < 1:
        raise ValueError("scores must be [..., batch]; got a scalar.")
    rows = scores.shape[-1]
    if row_mask is None:
        count = jnp.full(scores.shape[:-1], rows)
        counted = scores
    else:
        row_mask = broadcast_rows("row_mask", row_mask, scores.shape).astype(bool)
        count = jnp.sum(row_mask, axis=-1)
        counted = jnp.where(row_mask, scores, jnp.inf)
    undefined = jnp.any(jnp.isnan(counted), axis=-1)
    # The rank for every possible n, in float64: in float32 (n + 1)(1 - alpha) may land
    # on the wrong side of a whole number.
    possible = np.arange(rows + 1) + 1
    ranks = possible - np.floor(possible * alpha + 1e-9).astype(np.int64)
    rank = jnp.asarray(ranks, jnp.int32)[count]
    ascending = jnp.concatenate(
        [jnp.sort(counted), jnp.full((*scores.shape[:-1], 1), jnp.inf, scores.dtype)],
        axis=-1,
    )
    place = jnp.where(rank > count, rows, rank - 1)
    value = jnp.take_along_axis(ascending, place[..., None], axis=-1)[..., 0]
    return jnp.where(undefined, jnp.nan, value)


def conformal_quantile_by_group(
    scores: jax.Array,
    groups: jax.Array,
    num_groups: int,
    alpha: float,
    *,
    row_mask: jax.Array | None = None,
) -> jax.Array:
    """One conformal quantile for each group of rows: Mondrian, `[group]`.

    Each group is covered by itself; one with few rows gets infinity.

    Args:
        scores: `[batch]`.
        groups: `[batch]`, integers in `[0, num_groups)`; rows of others do not count.
        num_groups: number of groups.
        alpha, row_mask: as for `conformal_quantile`.

    Source: Vovk et al. 2005, section 4.5.
    """
    scores = floating(scores)
    groups = _check_groups(groups, scores.shape)
    in_group = groups[None] == jnp.arange(num_groups)[:, None]  # [group, batch]
    if row_mask is not None:
        in_group &= jnp.asarray(row_mask, bool)[None]
    every = jnp.broadcast_to(scores[None], in_group.shape)
    return conformal_quantile(every, alpha, row_mask=in_group)


@struct.dataclass
class ConformalInterval:
    """Point +- radius (times a scale); called on points it returns intervals.

    Attributes:
        radius: a scalar, or `[group]`; infinite where there were too few rows.
        is_scaled: whether `radius` is in units of the scale that it was fitted with.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    radius: jax.Array
    is_scaled: bool = struct.field(pytree_node=False, default=False)
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the conformal interval")
    )

    def __call__(
        self,
        points: jax.Array,
        scale: jax.Array | None = None,
        *,
        groups: jax.Array | None = None,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Lower and upper ends `[batch]`.

        Args:
            points: `[batch]`, made as those that it was fitted on.
            scale: `[batch]`, positive, if it was fitted with one; where it is not, both
                ends are NaN.
            groups: `[batch]`, if it was fitted with groups; an unknown one gives NaN.
            provenance: of the points.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.

        Raises:
            ValueError: if a shape does not fit, or `scale` or `groups` are missing or
                too much.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        points = floating(points)
        if (scale is not None) != self.is_scaled:
            word = "needs" if self.is_scaled else "takes no"
            raise ValueError(f"this interval {word} scale, as when it was fitted.")
        radius = _of_groups(self.radius, groups, points.shape)
        if scale is not None:
            scale = same_shape("scale", scale, "points", points)
            radius = radius * jnp.where(scale > 0, scale, jnp.nan)
        return points - radius, points + radius


def fit_conformal_interval(
    points: jax.Array,
    targets: jax.Array,
    *,
    alpha: float,
    scale: jax.Array | None = None,
    row_mask: jax.Array | None = None,
    groups: jax.Array | None = None,
    num_groups: int | None = None,
    provenance: Provenance | None = None,
) -> ConformalInterval:
    """Split conformal intervals for a point, of the errors |y - f| or |y - f| / s.

    Args:
        points: predictions f of held-out rows, `[batch]`, such as the ensemble's mean.
        targets: `[batch]`.
        alpha: share of targets that may lie outside, in (0, 1).
        scale: `[batch]`, positive, such as the ensemble's standard deviation plus a
            constant; intervals are then wide where it is large.
        row_mask: `[batch]`; a False row counts as removed.
        groups: `[batch]` integers; a radius is then fitted for each (Mondrian).
        num_groups: number of groups.
        provenance: of the predictions; rows that members were trained on are refused.

    Returns:
        `ConformalInterval`.

    Raises:
        ValueError: if a shape does not fit or `alpha` is not in (0, 1).
        LeakageError: if members were trained on the rows, or they are test rows.

    Source: Lei et al. 2018, arXiv:1604.04173, algorithm 2 and section 5.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> errors = jnp.array([0.3, -0.1, 0.4, 0.2])
        >>> interval = combine.fit_conformal_interval(jnp.zeros(4), errors, alpha=0.2)
        >>> [round(float(end[0]), 1) for end in interval(jnp.array([2.0]))]
        [1.6, 2.4]
    """
    fitted_rows = check_fitting_rows(
        "the conformal interval", provenance, row_weight=row_mask
    )
    points, targets, _ = check_targets("points", points, targets)
    scores = jnp.abs(targets - points)
    if scale is not None:
        scale = same_shape("scale", scale, "points", points)
        # An error in units of nothing: no finite radius covers it.
        scores = scores / jnp.where(scale > 0, scale, jnp.nan)
    radius = _threshold(scores, alpha, row_mask, groups, num_groups)
    return ConformalInterval(radius, scale is not None, fitted_rows)


@struct.dataclass
class ConformalBand:
    """Moves the ends of predicted intervals; called on ends it returns ends.

    Attributes:
        below, above: how far the lower end goes down and the upper one up; scalars or
            `[group]`. Negative: the intervals were too wide.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    below: jax.Array
    above: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the conformal band")
    )

    def __call__(
        self,
        lower: jax.Array,
        upper: jax.Array,
        *,
        groups: jax.Array | None = None,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Ends `[..., batch]` in order: those that cross when moved change places.

        An interval that was empty so becomes one that is not, and covers no less.

        Args:
            lower, upper: made as those that it was fitted on.
            groups, provenance, allow_seen: as for `ConformalInterval`.

        Raises:
            ValueError: if a shape does not fit, or `groups` are missing or too much.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        lower = floating(lower)
        upper = same_shape("upper", upper, "lower", lower)
        low = lower - _of_groups(self.below, groups, lower.shape)
        high = upper + _of_groups(self.above, groups, lower.shape)
        return smaller(low, high), larger(low, high)


def fit_conformal_band(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    alpha: float,
    row_mask: jax.Array | None = None,
    groups: jax.Array | None = None,
    num_groups: int | None = None,
    provenance: Provenance | None = None,
) -> ConformalBand:
    """Conformalised quantile regression (CQR): both ends move by one number.

        d = conformal quantile of max(l - y, y - u);   [l - d, u + d]

    Args:
        lower: lower ends of held-out rows, `[batch]`, such as a predicted quantile.
        upper: same shape.
        targets: `[batch]`.
        alpha: share of targets that may lie outside, in (0, 1).
        row_mask, groups, num_groups, provenance: as for `fit_conformal_interval`.

    Returns:
        `ConformalBand`.

    Source: Romano et al. 2019, arXiv:1905.03222, equations 6 to 8.
    """
    fitted_rows = check_fitting_rows(
        "the conformal band", provenance, row_weight=row_mask
    )
    lower, targets, _ = check_targets("lower", lower, targets)
    upper = same_shape("upper", upper, "lower", lower)
    scores = larger(lower - targets, targets - upper)
    moved = _threshold(scores, alpha, row_mask, groups, num_groups)
    return ConformalBand(moved, moved, fitted_rows)


def fit_asymmetric_band(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    alpha: float,
    row_mask: jax.Array | None = None,
    groups: jax.Array | None = None,
    num_groups: int | None = None,
    provenance: Provenance | None = None,
) -> ConformalBand:
    """CQR whose ends move by themselves, each missed by at most alpha / 2.

    Wider than `fit_conformal_band` as a rule, and right at either end. Arguments and
    the result are those of `fit_conformal_band`.

    Source: Romano et al. 2019, arXiv:1905.03222, theorem 2.
    """
    fitted_rows = check_fitting_rows(
        "the conformal band", provenance, row_weight=row_mask
    )
    lower, targets, _ = check_targets("lower", lower, targets)
    upper = same_shape("upper", upper, "lower", lower)
    below, above = (
        _threshold(scores, alpha / 2, row_mask, groups, num_groups)
        for scores in (lower - targets, targets - upper)
    )
    return ConformalBand(below, above, fitted_rows)


@struct.dataclass
class ConformalQuantiles:
    """Moves predicted quantiles; called on `[batch, level]` it returns them in order.

    Attributes:
        shift: `[level]`.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    shift: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the conformal quantiles")
    )

    def __call__(
        self,
        quantiles: jax.Array,
        *,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array:
        """Quantiles `[batch, level]`, shifted and sorted along the levels.

        A row with a NaN is NaN.

        Args:
            quantiles: made as those that it was fitted on.
            provenance, allow_seen: as for `ConformalInterval`.

        Raises:
            ValueError: if the number of levels is another.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        quantiles = floating(quantiles)
        if quantiles.ndim != 2 or quantiles.shape[1:] != self.shift.shape:
            raise ValueError(
                f"quantiles must be [batch, level={len(self.shift)}]; got shape"
                f" {quantiles.shape}."
            )
        return sort_or_nan(quantiles + self.shift[None])


def fit_conformal_quantiles(
    quantiles: jax.Array,
    levels: tuple[float, ...],
    targets: jax.Array,
    *,
    row_mask: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> ConformalQuantiles:
    """CQR of every symmetric pair of quantiles; a median stays where it is.

    Args:
        quantiles: of held-out rows, `[batch, level]`.
        levels: rising and symmetric around 0.5, such as (0.1, 0.5, 0.9).
        targets: `[batch]`.
        row_mask: `[batch]`; a False row counts as removed.
        provenance: of the predictions.

    Returns:
        `ConformalQuantiles`; with fewer rows than 1 / (2 level) the outer quantiles
        become infinite.

    Raises:
        ValueError: if a shape does not fit, or the levels are not symmetric.
        LeakageError: if members were trained on the rows, or they are test rows.
    """
    fitted_rows = check_fitting_rows(
        "the conformal quantiles", provenance, row_weight=row_mask
    )
    quantiles = floating(quantiles)
    levels = [float(level) for level in levels]
    if quantiles.ndim != 2 or quantiles.shape[1] != len(levels):
        raise ValueError(
            f"quantiles must be [batch, level={len(levels)}]; got {quantiles.shape}."
        )
    pairs = list(zip(levels, reversed(levels)))
    is_symmetric = all(math.isclose(a + b, 1.0, abs_tol=1e-6) for a, b in pairs)
    if not is_symmetric or sorted(set(levels)) != levels:
        raise ValueError(f"levels must rise and be symmetric around 0.5; got {levels}.")
    targets = floating(targets)
    shift = [jnp.zeros((), quantiles.dtype)] * len(levels)
    for i in range(len(levels) // 2):
        band = fit_conformal_band(
            quantiles[:, i],
            quantiles[:, -1 - i],
            targets,
            alpha=2 * levels[i],
            row_mask=row_mask,
        )
        shift[i], shift[-1 - i] = -band.below, band.above
    return ConformalQuantiles(jnp.stack(shift), fitted_rows)


def _threshold(scores, alpha, row_mask, groups, num_groups):
    if (groups is None) != (num_groups is None):
        raise ValueError("groups and num_groups come together.")
    if groups is None:
        return conformal_quantile(scores, alpha, row_mask=row_mask)
    return conformal_quantile_by_group(
        scores, groups, num_groups, alpha, row_mask=row_mask
    )


def _of_groups(threshold, groups, shape):
    """The threshold of each row; `[group]` and `[batch]` to `[batch]`."""
    if (groups is not None) != (threshold.ndim == 1):
        word = "needs" if threshold.ndim else "takes no"
        raise ValueError(f"what was fitted {word} groups, as when it was fitted.")
    if groups is None:
        return threshold
    groups = _check_groups(groups, shape)
    is_known = (groups >= 0) & (groups < len(threshold))
    return jnp.where(is_known, threshold[jnp.where(is_known, groups, 0)], jnp.nan)


def _check_groups(groups, shape):
    groups = jnp.asarray(groups)
    if groups.shape != shape or not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(
            f"groups must be integers [batch] = {shape}; got {groups.dtype} of shape"
            f" {groups.shape}."
        )
    return groups
