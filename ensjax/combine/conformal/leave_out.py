"""Intervals from members that left a row out: CV+ and jackknife+-after-bootstrap.

No row has to be held out of training: each row's error is that of the members which did
not see it, and a new row's interval uses the same members.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.conformal.intervals import conformal_quantile
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.rows import broadcast_rows, floating


@struct.dataclass
class JackknifeAfterBootstrap:
    """Errors of all training rows, each by the members that left it out.

    Attributes:
        left_out: `[member, example]`, weights of the members that did not see a row;
            each column sums to 1, or to 0 where every member has seen it.
        errors: `[example]`, |y - mean of those members|.
        fitted_rows: the training rows, where they are known.
    """

    left_out: jax.Array
    errors: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the jackknife+-after-bootstrap")
    )

    def __call__(
        self,
        points: jax.Array,
        *,
        alpha: float,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
        rows_at_once: int = 1024,
    ) -> tuple[jax.Array, jax.Array]:
        """Lower and upper ends `[batch]`.

            [q-{mu_-i(x) - R_i}, q+{mu_-i(x) + R_i}]

        where mu_-i is the mean of the members that did not see row i and q+ the
        conformal quantile over i. Covers at least 1 - 2 alpha, about 1 - alpha as a
        rule. Rows that all members saw do not count.

        Args:
            points: `[member, batch]`, predictions of the same members for new rows. A
                NaN of a member that counts makes the row NaN.
            alpha: in (0, 0.5).
            provenance: of the points.
            allow_seen: whether rows of the fit are looked at. Without, they
                are refused, as far as they are known.
            rows_at_once: new rows that are handled together; each needs a number per
                training row.

        Raises:
            ValueError: if a shape does not fit or `alpha` is out of range.
            LeakageError: for rows that it was fitted on; see `allow_seen`.

        Source: Kim et al. 2020, arXiv:2002.09025, algorithm 1.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        points = _check_points(points, len(self.left_out), "member")
        is_usable = jnp.sum(self.left_out, axis=0) > 0
        counts = jnp.any(self.left_out > 0, axis=1)
        points = jnp.where(counts[:, None], points, 0.0)

        def one(said):
            left_out = jnp.matmul(said, self.left_out, precision="highest")
            return left_out_ends(left_out, left_out, self.errors, is_usable, alpha)

        _check_alpha(alpha)
        return jax.lax.map(one, points.T, batch_size=rows_at_once)


def fit_jackknife_after_bootstrap(
    points: jax.Array,
    inbag: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    provenance: Provenance | None = None,
) -> JackknifeAfterBootstrap:
    """Jackknife+-after-bootstrap from the rows that bagged members did not draw.

    Args:
        points: predictions of the training rows, `[member, example]`; those of members
            that drew the row do not matter.
        inbag: `[member, example]`, how often a member drew a row, as from
            `data.bootstrap_counts`; 0: it is out of the bag.
        targets: `[example]`.
        mask: `[member]`; a False member counts as removed.
        provenance: of the predictions. That members saw rows is fine, but not rows
            that `inbag` says they left out: in a compiled program, where `inbag` is not
            known and nothing can raise, such a row's error is NaN.

    Returns:
        `JackknifeAfterBootstrap`.

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: if `provenance` and `inbag` disagree, or rows are test rows.

    Source: Kim et al. 2020, arXiv:2002.09025.
    """
    points, inbag = floating(points), jnp.asarray(inbag)
    if points.ndim != 2 or inbag.shape != points.shape:
        raise ValueError(
            "points and inbag must be [member, example]; got shapes"
            f" {points.shape} and {inbag.shape}."
        )
    targets = floating(targets)
    if targets.shape != points.shape[1:]:
        raise ValueError(
            f"targets must be [example] = {points.shape[1:]}; got {targets.shape}."
        )
    is_out = inbag == 0
    if mask is not None:
        mask = jnp.asarray(mask, bool)
        is_out &= broadcast_rows("mask", mask, points.shape[:1])[:, None]
    what = "the jackknife+-after-bootstrap"
    is_leak = jnp.zeros(targets.shape, bool)
    if provenance is not None and isinstance(is_out, jax.core.Tracer):
        unseen = dataclasses.replace(provenance, seen=None, known=None)
        check_fitting_rows(what, unseen)
        if provenance.seen is not None:
            is_leak = jnp.any(is_out & provenance.seen, axis=0)
        fitted_rows = FittedRows(what, provenance)
    else:
        fitted_rows = check_fitting_rows(what, provenance, counts=is_out)
    count = jnp.sum(is_out, axis=0)
    left_out = jnp.where(is_out, 1 / jnp.maximum(count, 1)[None], 0.0)
    left_out = left_out.astype(points.dtype)
    means = jnp.sum(jnp.where(is_out, points, 0.0) * left_out, axis=0)
    errors = jnp.where(is_leak, jnp.nan, jnp.abs(targets - means))
    return JackknifeAfterBootstrap(left_out, errors, fitted_rows)


@struct.dataclass
class CvPlus:
    """Errors of all rows in folds, each by the model of the fold that held it out.

    Attributes:
        errors: `[example]`.
        fold_of_row: `[example]`; -1: the row does not count.
        fitted_rows: the rows, where they are known.
    """

    errors: jax.Array
    fold_of_row: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows("CV+"))

    def __call__(
        self,
        points: jax.Array,
        *,
        alpha: float,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
        rows_at_once: int = 1024,
    ) -> tuple[jax.Array, jax.Array]:
        """Lower and upper ends `[batch]`; see `JackknifeAfterBootstrap`.

        Args:
            points: `[fold, batch]`, predictions of every fold's model for new rows.
            alpha, provenance, allow_seen, rows_at_once: as for
                `JackknifeAfterBootstrap`.

        Raises:
            ValueError: if a shape does not fit, a fold that held rows out is missing
                (in a compiled program: ends of NaN), or `alpha` is out of range.
            LeakageError: for rows that it was fitted on; see `allow_seen`.

        Source: Barber et al. 2021, arXiv:1905.02928, equation 8.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        points = _check_points(points, None, "fold")
        _check_alpha(alpha)
        rows = self.errors, self.fold_of_row
        return cv_plus_ends(points, points, *rows, alpha, rows_at_once)


def fit_cv_plus(
    points: jax.Array,
    targets: jax.Array,
    fold_of_row: jax.Array,
    *,
    provenance: Provenance | None = None,
) -> CvPlus:
    """CV+ intervals from out-of-fold predictions of all rows.

    Args:
        points: `[example]`, each by the model of the fold that held the row out.
        targets: `[example]`.
        fold_of_row: `[example]`, the fold that holds the row out, as in `data.Folds`;
            -1: the row does not count.
        provenance: of the predictions.

    Returns:
        `CvPlus`.

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: if a row was trained on by what predicted it, or is a test row.

    Source: Barber et al. 2021, arXiv:1905.02928, section 1.3.
    """
    fitted_rows = check_fitting_rows("CV+", provenance)
    points, fold_of_row = floating(points), jnp.asarray(fold_of_row)
    if points.ndim != 1 or fold_of_row.shape != points.shape:
        raise ValueError(
            "points and fold_of_row must be [example]; got shapes"
            f" {points.shape} and {fold_of_row.shape}."
        )
    targets = broadcast_rows("targets", floating(targets), points.shape)
    return CvPlus(jnp.abs(targets - points), fold_of_row, fitted_rows)


def cv_plus_ends(
    lower: jax.Array,
    upper: jax.Array,
    errors: jax.Array,
    fold_of_row: jax.Array,
    alpha: float,
    rows_at_once: int,
) -> tuple[jax.Array, jax.Array]:
    """Ends `[batch]` from what the model of every fold says, `[fold, batch]`.

    Args:
        lower, upper: ends of its intervals; the same array twice for points.
        errors, fold_of_row: of the rows in folds, `[example]`; -1: it does not count.
        alpha: in (0, 1).
        rows_at_once: new rows that are handled together.

    Raises:
        ValueError: if a fold that held rows out is missing, where that is known; in a
            compiled program the ends are NaN.
    """
    is_usable, fold = fold_of_row >= 0, jnp.maximum(fold_of_row, 0)
    if not isinstance(fold, jax.core.Tracer) and fold.max(initial=0) >= len(lower):
        raise ValueError(
            f"{len(lower)} folds say something of the new rows, and rows were held out"
            f" by folds up to number {int(fold.max())}; give what every fold's model"
            " says, in the order of the folds."
        )

    def one(said):
        low, high = (end.at[fold].get(mode="fill", fill_value=jnp.nan) for end in said)
        return left_out_ends(low, high, errors, is_usable, alpha)

    return jax.lax.map(one, (lower.T, upper.T), batch_size=rows_at_once)


def left_out_ends(
    lower: jax.Array,
    upper: jax.Array,
    errors: jax.Array,
    is_usable: jax.Array,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Ends of one interval from what the models without each row say, `[example]`.

        [q-{l_-i - R_i}, q+{u_-i + R_i}]

    Source: Barber et al. 2021, arXiv:1905.02928, equations 4 to 6.
    """
    # The floor(alpha (n + 1))-th smallest is minus the conformal quantile of minus.
    low = -conformal_quantile(errors - lower, alpha, row_mask=is_usable)
    return low, conformal_quantile(upper + errors, alpha, row_mask=is_usable)


def _check_alpha(alpha):
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5; got {alpha}.")


def _check_points(points, count, axis):
    points = floating(points)
    if points.ndim != 2 or (count is not None and len(points) != count):
        size = axis if count is None else f"{axis}={count}"
        raise ValueError(f"points must be [{size}, batch]; got shape {points.shape}.")
    return points
