"""How many members make the rounded mean right: for one input, and for all at once.

For Gaussian members the mean of N is mu + Z / sqrt(N), Z a deviation with the members'
covariance. For one input, whose outputs are independent, the chance that all bits are
right is a product of normal distribution functions, and N follows by solving it. For
all inputs at once a draw of Z is right from N*(Z) on, a number that needs no loop over
N: its quantiles are the N that give a chance. Any mean and covariance will do; where
the covariance of all inputs is too large to be held, a function that draws Z.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import log_ndtr, logsumexp, ndtri

from ensjax.mapping import map_members
from ensjax.ntk.infinite_members import infinite_members, sample_member
from ensjax.ntk.kernels import check_finite
from ensjax.ntk.permutations import check_count
from ensjax.ntk.rounding import gaps

# N is looked for between these; what needs more is not needed by anything real.
_LOG_RANGE = (np.log(1e-6), np.log(1e18))


def log_probability(
    mean: np.ndarray,
    variance: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    num_members: np.ndarray | float,
    *,
    counts: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Log of the chance that all bits of each row are right, float64 `[row]`, nats.

        sum_j count_j log Phi(sqrt(N) gap_j / sd)

    Args:
        mean: of one member, `[row, output]`.
        variance: of one member, `[row]`, or `[row, output]`; outputs are independent.
        targets: what is right, `[row, output]`.
        thresholds: of the rounding rule, `[row or 1, output or 1]`.
        num_members: N, a positive real number or one for each row.
        counts: how many bits alike each output stands for, `[row or 1, output]`; 0 for
            one that a row lacks.

    Raises:
        ValueError: if shapes do not fit, a mean is not finite, targets are no bits, a
            variance is negative or not finite, or a number of members is not positive
            and finite.
    """
    margin = _standardised(mean, variance, targets, thresholds)
    numbers = np.asarray(num_members, np.float64)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"num_members must be positive and finite; got {num_members}.")
    root = np.sqrt(np.broadcast_to(numbers, margin.shape[:1]))[:, None]
    return _sum_of_logs(root * margin, np.broadcast_to(counts, margin.shape))


def _sum_of_logs(margin, counts):
    logs = log_ndtr(np.where(counts > 0, margin, 0.0))
    return np.sum(counts * logs, axis=1)


def members_for_input(
    mean: np.ndarray,
    variance: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    delta: float,
    counts: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The N from which a row is right with chance 1 - delta, exactly, float64 `[row]`.

    The real number that solves prod_j Phi(sqrt(N) gap_j / sd) = 1 - delta; that many
    members, rounded up, are enough. It is infinite where a mean lies on the wrong side,
    and 0 where even no member would do (a delta above what guessing reaches).

    Args:
        mean, variance, targets, thresholds: as for `log_probability`.
        delta: the chance of an error, between 0 and 1.
        counts: as for `log_probability`.

    Raises:
        ValueError: for a delta that is no such chance, and as `log_probability`.
    """
    _check_delta(delta)
    margin = _standardised(mean, variance, targets, thresholds)
    counts = np.broadcast_to(counts, margin.shape)
    # The least margin decides whether there is any solution.
    possible = np.where(counts > 0, margin, np.inf).min(axis=1) > 0
    safe = np.where(possible[:, None], margin, 1.0)

    def enough(log_members):
        root = np.exp(log_members / 2)[:, None]
        return _sum_of_logs(root * safe, counts) >= np.log1p(-delta)

    return np.where(possible, _solve(enough, len(margin)), np.inf)


def union_bound(
    mean: np.ndarray,
    variance: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    delta: float,
    log_counts: np.ndarray | float = 0.0,
) -> float:
    """The N at which the errors of all bits of all rows add up to delta.

        sum_rows count sum_j Phi(-sqrt(N) gap_j / sd) = delta

    It is never below the N at which all rows are right at once with chance 1 - delta,
    whatever their covariance. Rows may stand for many alike, such as the inputs of a
    cube with as many ones, so that k is not limited by what can be listed.

    Args:
        mean, variance, targets, thresholds: as for `log_probability`.
        delta: the chance of an error, between 0 and 1.
        log_counts: log of how many bits alike each entry stands for, `[row or 1, output
            or 1]` or one for all; -inf for none.

    Raises:
        ValueError: if all counts are none, and as `members_for_input`.
    """
    _check_delta(delta)
    margin = _standardised(mean, variance, targets, thresholds)
    log_counts = np.broadcast_to(log_counts, margin.shape)
    there = log_counts > -np.inf
    if not there.any():
        raise ValueError(
            "log_counts is -inf for every bit of every row: there is nothing to be"
            " right about. Use log(count), which is 0 for one bit."
        )
    if margin[there].min() <= 0:
        return float(np.inf)
    margin, log_counts = margin[there], log_counts[there]

    def enough(log_members):
        errors = log_ndtr(-np.exp(log_members / 2) * margin) + log_counts
        return np.atleast_1d(logsumexp(errors) <= np.log(delta))

    return float(_solve(enough, 1)[0])


def members_by_worst_bit(
    gap: np.ndarray, variance: np.ndarray, num_events: np.ndarray, *, delta: float
) -> np.ndarray:
    """The textbook bound N = (variance / gap^2) z^2, z = Phi^-1(1 - delta / events).

    It is infinite where the gap is not positive, and 0 where guessing would do (z is
    not positive, delta being half of the events or more).

    Args:
        gap: least distance of a mean from its threshold, on its right side; any shape.
        variance: of one member, alike.
        num_events: bits that must be right, such as k, or k (2^k - 1) for the cube;
            floats may be large.
        delta: the chance of an error, between 0 and 1.

    Raises:
        ValueError: for a delta that is no such chance, no event, a negative variance,
            or a gap that is NaN.
    """
    _check_delta(delta)
    gap, variance, events = (
        np.asarray(x, np.float64) for x in (gap, variance, num_events)
    )
    if not (events >= 1).all():
        raise ValueError(f"num_events must be at least 1; got {events.min()}.")
    if not (variance >= 0).all():
        raise ValueError(f"a variance is at least 0; got {np.nanmin(variance)}.")
    if np.isnan(gap).any():
        raise ValueError("a gap is NaN: the mean that it is of is not finite.")
    z = np.maximum(-ndtri(delta / events), 0.0)
    needed = variance / np.where(gap > 0, gap, 1.0) ** 2 * z**2
    return np.where(gap > 0, needed, np.inf)


def members_for_deviation(
    deviation: jax.Array, gap: jax.Array, sign: jax.Array
) -> jax.Array:
    """N*: the least real N at which mu + Z / sqrt(N) rounds to what is right.

        N* = max over rows and bits of (wrong-side part of Z / gap)^2

    Args:
        deviation: Z, one draw of the members' deviation from their mean,
            `[..., row, output]`, with axes in front for several predictors or rules.
        gap: distance of the mean from its threshold on the right side, as
            `rounding.gaps` has it; broadcasts against the deviation.
        sign: 1 where the target is 1 and -1 where it is 0, `[row, output]`.

    Returns:
        `[...]`; infinite if a mean itself lies on the wrong side.
    """
    ndim = max(deviation.ndim, gap.ndim)
    deviation, gap, sign = (
        x.reshape((1,) * (ndim - x.ndim) + x.shape) for x in (deviation, gap, sign)
    )
    wrong = jnp.maximum(-sign * deviation, 0.0)
    needed = jnp.where(gap > 0, (wrong / jnp.where(gap > 0, gap, 1.0)) ** 2, jnp.inf)
    return jnp.max(needed, axis=(-2, -1))


@dataclasses.dataclass(frozen=True)
class _NeededBy:
    draw: Callable[..., jax.Array]

    def __call__(self, draw_id, gap, sign, *shared):
        return members_for_deviation(self.draw(draw_id, *shared), gap, sign)


def members_for_all(
    mean: np.ndarray,
    covariance: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    num_draws: int,
    seed: int = 0,
    tolerance: float = 1e-7,
    block: int | str | None = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """N* of draws of the members' deviation: all rows right at once; float32 `[draw]`.

    The share of draws below N is the chance that an ensemble of N is right on all rows,
    so that their median is N50. The covariance is taken at its word: where rows do not
    vary, such as training rows, compute it in float64, so that rounding is not taken
    for a spread.

    Args:
        mean: of one member, `[row, output]`.
        covariance: between rows, the same for every output, `[row, row']`; outputs are
            independent.
        targets: what is right, `[row, output]`.
        thresholds: of the rounding rule; broadcast against the mean.
        num_draws: how many.
        seed: of the draws.
        tolerance: share of the variance of any row that may be left out, as in
            `infinite_members`: no N is too small by more than about that share.
        block: draws of a device that are made at once.
        mesh: from `make_mesh`; all devices by default.

    Raises:
        ValueError: if shapes do not fit, a mean is not finite, targets are no bits, and
            as `infinite_members`.

    Example:
        >>> import numpy as np
        >>> from ensjax import ntk
        >>> needed = ntk.members_for_all(
        ...     np.array([[0.5], [-0.5]]), np.eye(2), np.array([[1], [0]]),
        ...     ntk.sign_thresholds(), num_draws=8)
        >>> needed.shape
        (8,)
    """
    check_count(num_draws, "num_draws")
    members = infinite_members(
        np.zeros(np.shape(mean), np.float32),
        covariance,
        seed=seed,
        tolerance=tolerance,
    )
    ids = np.arange(num_draws, dtype=np.int32)
    options = dict(shared=(members,), block=block, mesh=mesh)
    return members_for_draws(sample_member, ids, mean, targets, thresholds, **options)


def members_for_draws(
    draw: Callable[..., jax.Array],
    draw_ids: jax.Array,
    mean: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    shared: tuple[Any, ...] = (),
    block: int | str | None = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """As `members_for_all`, from a function that draws; float32 `[draw, ...]`.

    For covariances that are too large to be held, several predictors or several rules
    at once. Draws are mapped as members are, by their ids.

    Args:
        draw: `draw(draw_id, *shared) -> [..., row, output]`, a deviation, with axes in
            front for several predictors. It must be hashable; define it once.
        draw_ids: integers `[draw]`.
        mean: of one member, `[..., row, output]`.
        targets: what is right, `[row, output]`.
        thresholds: of the rounding rule; broadcast against the means.
        shared: more arguments of `draw`, whole on every device.
        block: draws of a device that are made at once.
        mesh: from `make_mesh`; all devices by default.

    Raises:
        ValueError: if shapes do not fit, a mean is not finite, or targets are no bits.
    """
    gap = gaps(mean, targets, thresholds)
    sign = np.where(np.asarray(targets) > 0, 1.0, -1.0)
    kinds = ("member", *("shared",) * (2 + len(shared)))
    run = map_members(_NeededBy(draw), kinds=kinds, mesh=mesh, block=block)
    return run(jnp.asarray(draw_ids), np.float32(gap), np.float32(sign), *shared)


def _standardised(mean, variance, targets, thresholds):
    """Gaps in standard deviations, `[row, output]`; infinite where nothing varies.

    What does not vary and is its threshold rounds to 0, as it is not above it.
    """
    gap, variance = gaps(mean, targets, thresholds), np.asarray(variance, np.float64)
    if gap.ndim != 2:
        raise ValueError(f"mean must be [row, output]; got shape {np.shape(mean)}.")
    if variance.shape not in (gap.shape, gap.shape[:1]):
        raise ValueError(
            f"variance is [row] or [row, output], of means {gap.shape}; got"
            f" {variance.shape}."
        )
    if variance.ndim == 1:
        variance = np.broadcast_to(variance[:, None], gap.shape)
    if not np.isfinite(variance).all():
        check_finite(variance, "variance")
    if not (variance >= 0).all():
        raise ValueError(
            f"a variance is at least 0; got {np.nanmin(variance)}. Of covariances that"
            " rounding has made slightly negative, take np.maximum(variance, 0)."
        )
    sd = np.sqrt(variance)
    is_right = (gap > 0) | ((gap == 0) & (np.asarray(targets) <= 0))
    sure = np.where(is_right, np.inf, -np.inf)
    return np.where(sd > 0, gap / np.where(sd > 0, sd, 1.0), sure)


def _solve(enough, rows):
    """The least N by bisection of log N, `[row]`, to a relative 1e-12."""
    low, high = (np.full(rows, value) for value in _LOG_RANGE)
    for _ in range(64):
        middle = (low + high) / 2
        is_enough = enough(middle)
        high = np.where(is_enough, middle, high)
        low = np.where(is_enough, low, middle)
    found = np.exp(high)
    found = np.where(high >= _LOG_RANGE[1], np.inf, found)
    return np.where(low <= _LOG_RANGE[0], 0.0, found)


def _check_delta(delta):
    if not 0 < delta < 1:
        raise ValueError(f"delta is a chance between 0 and 1; got {delta}.")
