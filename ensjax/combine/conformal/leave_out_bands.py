"""CV+ of intervals that are predicted: conformal quantiles without held-out rows.

The folds of stacking serve twice: every row has been predicted without it, and so says
how wrong intervals are.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.conformal.leave_out import cv_plus_ends
from ensjax.ops.limits import larger, smaller
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.rows import broadcast_rows, floating, same_shape

_WHAT = "the CV+ of the band"


@struct.dataclass
class CvPlusBand:
    """How far rows lie outside the intervals of the models that did not see them.

    Attributes:
        errors: `[example]`, max(l - y, y - u); negative inside.
        fold_of_row: `[example]`; -1: the row does not count.
        fitted_rows: the rows, where they are known.
    """

    errors: jax.Array
    fold_of_row: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))

    def __call__(
        self,
        lower: jax.Array,
        upper: jax.Array,
        *,
        alpha: float,
        provenance: Provenance | None = None,
        allow_seen: bool = False,
        rows_at_once: int = 1024,
    ) -> tuple[jax.Array, jax.Array]:
        """Ends `[batch]` in order: those that cross when moved change places.

            [q-{l_-i(x) - E_i}, q+{u_-i(x) + E_i}]

        where l_-i and u_-i are said by the model that did not see row i, and q+ is the
        conformal quantile over i. Covers at least 1 - 2 alpha, about 1 - alpha as a
        rule.

        Args:
            lower: `[fold, batch]`, what every fold's model says of new rows.
            upper: same shape.
            alpha: share of targets that may lie outside, in (0, 1). Another than that
                of the intervals widens or narrows them.
            provenance: of the new rows.
            allow_seen: whether the fit itself is looked at. Without, rows of the fit
                are refused, as far as they are known.
            rows_at_once: new rows that are handled together; each needs two numbers for
                every row of the fit.

        Raises:
            ValueError: if a shape does not fit, a fold that held rows out is missing
                (in a compiled program: ends of NaN), or `alpha` is out of range.
            LeakageError: for rows that it was fitted on; see `allow_seen`.

        Source: Barber et al. 2021, arXiv:1905.02928, equation 8, with the errors of
        Romano et al. 2019, arXiv:1905.03222, equation 6.
        """
        self.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
        lower = floating(lower)
        upper = same_shape("upper", upper, "lower", lower)
        if lower.ndim != 2:
            raise ValueError(f"lower must be [fold, batch]; got shape {lower.shape}.")
        low, high = cv_plus_ends(
            lower, upper, self.errors, self.fold_of_row, alpha, rows_at_once
        )
        return smaller(low, high), larger(low, high)


def fit_cv_plus_band(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    fold_of_row: jax.Array,
    *,
    provenance: Provenance | None = None,
) -> CvPlusBand:
    """CV+ of conformalised quantile regression, from out-of-fold intervals of all rows.

    Args:
        lower: `[example]`, each by the model of the fold that held the row out, such as
            a predicted quantile.
        upper: same shape.
        targets: `[example]`.
        fold_of_row: `[example]`, the fold that holds the row out, as in `data.Folds`;
            -1: the row does not count.
        provenance: of the predictions.

    Returns:
        `CvPlusBand`; with both ends equal it is `fit_cv_plus` of the points.

    Raises:
        ValueError: if a shape does not fit.
        LeakageError: if a row was trained on by what predicted it, or is a test row.

    Source: Romano et al. 2019, arXiv:1905.03222, equation 6; Barber et al. 2021,
    arXiv:1905.02928, section 1.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> errors = jnp.array([1.5, 0.5, -1.2, 0.9])  # of intervals from -1 to 1
        >>> band = combine.fit_cv_plus_band(
        ...     -jnp.ones(4), jnp.ones(4), errors, jnp.array([0, 0, 1, 1]))
        >>> low, high = band(-jnp.ones((2, 3)), jnp.ones((2, 3)), alpha=0.2)
        >>> low.tolist(), high.tolist()
        ([-1.5, -1.5, -1.5], [1.5, 1.5, 1.5])
    """
    fitted_rows = check_fitting_rows(_WHAT, provenance)
    lower, fold_of_row = floating(lower), jnp.asarray(fold_of_row)
    if lower.ndim != 1 or fold_of_row.shape != lower.shape:
        raise ValueError(
            "lower and fold_of_row must be [example]; got shapes"
            f" {lower.shape} and {fold_of_row.shape}."
        )
    upper = same_shape("upper", upper, "lower", lower)
    targets = broadcast_rows("targets", floating(targets), lower.shape)
    errors = larger(lower - targets, targets - upper)
    return CvPlusBand(errors, fold_of_row, fitted_rows)
