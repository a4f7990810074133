"""Calibration of regression: a factor for standard deviations, or a map of CDFs."""

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import check_some_count
from ensjax.combine.calibration.isotonic_regression import (
    IsotonicFunction,
    fit_isotonic,
)
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.rows import check_targets, floating, same_shape, weighted_mean


@struct.dataclass
class SigmaScale:
    """A fitted factor; called on standard deviations it returns calibrated ones.

    Attributes:
        scale: `[...]`: a scalar for one predictive, `[member]` for each member's own.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    scale: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the scale of sigma")
    )

    def __call__(
        self,
        sd: jax.Array,
        *,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array:
        """`[..., batch]` standard deviations, times the factor.

        Args:
            sd: `[..., batch]`.
            provenance: of the rows, where it is known.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.

        Raises:
            ValueError: if the leading axes are others than when it was fitted.
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        sd = floating(sd)
        if sd.shape[:-1] != self.scale.shape:
            raise ValueError(
                f"sd must be [..., batch] with leading axes {self.scale.shape}, as when"
                f" the scale was fitted; got {sd.shape}."
            )
        return sd * self.scale[..., None]


def fit_sigma_scale(
    mean: jax.Array,
    sd: jax.Array,
    targets: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> SigmaScale:
    """The factor of the standard deviations that minimises the Gaussian NLL.

        tau = sqrt(mean_n (y_n - f_n)^2 / s_n^2)

    For the ensemble give the mean and deviation of its predictive, `[batch]`; with
    those of members, `[member, batch]`, each has a factor of its own.

    Args:
        mean: f of held-out rows, `[..., batch]`.
        sd: s, positive, same shape.
        targets: y, `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative; a bool mask works too.
        provenance: of the predictions.

    Returns:
        `SigmaScale`; NaN where a deviation that counts is not positive, or no row
        counts.

    Raises:
        ValueError: if a shape does not fit, or no row counts.
        LeakageError: if members were trained on the rows, or they are test rows.

    Source: Laves et al. 2020, arXiv:2006.15452, equation 9.
    """
    fitted_rows = check_fitting_rows(
        "the scale of sigma", provenance, row_weight=sample_weight
    )
    mean, targets, weight = check_targets("mean", mean, targets, sample_weight)
    check_some_count("the scale of sigma", weight)
    sd = same_shape("sd", sd, "mean", mean)
    error = (targets - mean) / jnp.where(sd > 0, sd, jnp.nan)
    return SigmaScale(jnp.sqrt(weighted_mean(error**2, weight)), fitted_rows)


@struct.dataclass
class PitMap:
    """How often targets lie below each level; called on CDF values F(y).

    Attributes:
        function: from predicted to observed levels.
        fitted_rows: the rows it was fitted on, where they are known.
    """

    function: IsotonicFunction
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the map of the PIT")
    )

    def __call__(
        self,
        cdf: jax.Array,
        *,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
    ) -> jax.Array:
        """Calibrated CDF values of predicted ones, same shape.

        Args:
            cdf: values in [0, 1].
            provenance, allow_seen: as for `SigmaScale`.

        Raises:
            LeakageError: for rows that it was fitted on; see `allow_seen`.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        return self.function(floating(cdf))

    def predicted_level(self, level: jax.Array) -> jax.Array:
        """The predicted level whose calibrated one is `level`, same shape.

        The calibrated 0.9 quantile is the predicted quantile of this level. Where the
        map is flat it is some level of the flat part.
        """
        return jnp.interp(floating(level), self.function.y, self.function.x)


def fit_pit_map(
    pit: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> PitMap:
    """Isotonic regression of the observed share of targets below each level.

    Args:
        pit: F_n(y_n) of held-out rows in [0, 1], `[batch]`: of the ensemble, or of one
            member.
        sample_weight: `[batch]`, non-negative; a bool mask works too.
        provenance: of the predictions.

    Returns:
        `PitMap`, from (0, 0) to (1, 1).

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: if members were trained on the rows, or they are test rows.

    Source: Kuleshov et al. 2018, arXiv:1807.00263, algorithm 1.
    """
    fitted_rows = check_fitting_rows(
        "the map of the PIT", provenance, row_weight=sample_weight
    )
    pit, _, weight = check_targets("pit", pit, pit, sample_weight)
    if pit.ndim != 1:
        raise ValueError(f"pit must be [batch]; got shape {pit.shape}.")
    kept = jnp.where(weight == 0, jnp.inf, pit)
    order = jnp.argsort(kept)
    cumulated = jnp.cumsum(weight[order]) / jnp.sum(weight)
    up_to = jnp.searchsorted(kept[order], kept, side="right") - 1
    share = cumulated[up_to]
    ends = jnp.array([0.0, 1.0], pit.dtype)
    # The ends weigh little: a target may lie exactly there.
    function = fit_isotonic(
        jnp.concatenate([pit, ends]),
        jnp.concatenate([share, ends]),
        jnp.concatenate([weight, jnp.full(2, 1e-6) * jnp.mean(weight)]),
    )
    return PitMap(function, fitted_rows)
