"""Members of infinite width: exact draws of trained networks, one for each id."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import member_key
from ensjax.ntk.kernels import check_finite


class InfiniteMembers(NamedTuple):
    """What members of an infinite-width ensemble are drawn from.

    Attributes:
        mean: over members, `[row, output]`.
        factor: F with F F' the covariance between rows, `[row, mode]`.
        seed: integer `[]`; with a member's id it gives its draw.
    """

    mean: jax.Array
    factor: jax.Array
    seed: jax.Array


def infinite_members(
    mean: Any, covariance: Any, *, seed: int = 0, tolerance: float = 1e-7
) -> InfiniteMembers:
    """Members of a Gaussian process, whose outputs are independent.

    The covariance is factorised once, on the host in float64, with rows scaled to like
    variances; modes that hold next to none of any row are left out. So a row of small
    variance, such as a short input, is drawn as well as one of large. Then
    `sample_member` gives any member from its id.

    Args:
        mean: over members, `[row, output]`; its dtype is that of the members.
        covariance: between rows, the same for every output, `[row, row']`.
        seed: of the ensemble.
        tolerance: the modes that are left out hold together at most this share of the
            variance of every row.

    Raises:
        ValueError: if the tolerance is not from 0 to below 1, shapes do not fit, a
            value is not finite, the covariance is not symmetric, or has an eigenvalue
            that is negative beyond rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import ntk, reduce
        >>> members = ntk.infinite_members(jnp.zeros((2, 1)), jnp.eye(2))
        >>> states = {"moments": reduce.init_moments(members.mean)}
        >>> states = reduce.fold_members(
        ...     ntk.sample_member, jnp.arange(999), states, block=100, shared=(members,)
        ... )
    """
    mean = jnp.asarray(mean)
    if not jnp.issubdtype(mean.dtype, jnp.floating):
        mean = mean.astype(jnp.result_type(float))
    matrix = np.asarray(covariance)
    rows = mean.shape[0] if mean.ndim == 2 else -1
    if rows < 1 or matrix.shape != (rows, rows):
        raise ValueError(
            "mean must be [row, output] and covariance [row, row']; got"
            f" {mean.shape} and {matrix.shape}."
        )
    check_finite(mean, "mean")
    check_finite(matrix, "covariance")
    return InfiniteMembers(
        mean,
        jnp.asarray(low_rank_factor(matrix, tolerance), mean.dtype),
        jnp.asarray(seed, jnp.uint32),
    )


def low_rank_factor(covariance: np.ndarray, tolerance: float) -> np.ndarray:
    """F of shape `[row, mode]` with F F' the covariance but for a share of each row.

    Of the whole matrix the modes of rows of small variance are its smallest, and would
    go first. So rows are scaled to variances between 1/2 and 2 before.

    Args:
        covariance: `[row, row']`; its dtype says what it is rounded to.
        tolerance: the share of the variance of a row that may be left out.

    Returns:
        float64; 0 in rows whose variance is 0, or negative by rounding.

    Raises:
        ValueError: if the tolerance is not from 0 to below 1, or the covariance is not
            symmetric or not positive semi-definite, beyond the rounding of float32.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share, from 0 to below 1; got {tolerance}.")
    covariance = np.asarray(covariance)
    is_float = np.issubdtype(covariance.dtype, np.floating)
    epsilon = np.finfo(covariance.dtype if is_float else np.float64).eps
    covariance = covariance.astype(np.float64)
    largest = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > 1e-5 * largest:
        raise ValueError("The covariance is not symmetric.")
    covariance = (covariance + covariance.T) / 2
    values = np.linalg.eigvalsh(covariance)
    # Rounding of float32 kernels leaves small negative eigenvalues.
    if values[0] < -1e-5 * max(values[-1], largest):
        raise ValueError(
            f"The covariance has an eigenvalue {values[0]:.3g} beside {values[-1]:.3g}:"
            " it is none. Compute the kernels in float64, or at matmul precision"
            ' "highest".'
        )
    variance = np.diag(covariance)
    # Where variances are no more than rounding, covariances are no more either: scaled
    # to 1 they would be of no covariance.
    floor = max(64 * epsilon * largest, -4 * values[0], np.finfo(np.float64).tiny)
    # Powers of two scale without rounding.
    scale = 2.0 ** np.round(np.log2(np.maximum(variance, floor)) / 2)
    scale = np.where(variance > 0, scale, np.inf)
    scaled = covariance / scale[:, None] / scale[None, :]
    values, vectors = np.linalg.eigh(scaled)
    rounding = len(values) * np.finfo(np.float64).eps * values[-1]
    values = np.where(values > rounding, values, 0)
    shares = np.cumsum(values * vectors**2, axis=1)
    enough = tolerance * np.maximum(shares[:, -1:], np.diag(scaled)[:, None])
    is_none = (variance <= 0)[:, None]
    dropped = np.sum((is_none | (shares <= enough)).all(axis=0))
    kept = slice(min(dropped, len(values) - 1), None)
    factor = vectors[:, kept] * np.sqrt(values[kept])
    return factor * np.where(variance > 0, scale, 0)[:, None]


def sample_member(member_id: Any, members: InfiniteMembers) -> jax.Array:
    """The predictions of one member of infinite width, `[row, output]`.

    A function of one member for `map_members` and `reduce.fold_members`, with `members`
    as a shared argument. A member's draw depends on the seed and its id alone.

    Args:
        member_id: integer `[]`.
        members: from `infinite_members`.
    """
    key = member_key(members.seed, "init", member_id)
    shape = (members.factor.shape[1], members.mean.shape[1])
    noise = jax.random.normal(key, shape, members.mean.dtype)
    return members.mean + jnp.matmul(members.factor, noise, precision="highest")
