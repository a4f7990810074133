"""Mean and variance over members, in one pass and across devices.

The running mean is a sum of two numbers, the second what the first rounds away: at a
large offset the differences of means, which are a part of the variance, keep their
digits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.members import num_members
from ensjax.reduce.devices import Family, reduce_stack


class Moments(NamedTuple):
    """Running count, mean and sum of squared deviations of stacked values.

    Attributes:
        count: total weight so far, `[]`.
        mean: weighted mean so far, leaves `[...]` without the member axis.
        sum_of_squares: weighted sum of squared deviations from `mean`, like `mean`.
        mean_low: what `mean` rounds away, like `mean`.
    """

    count: jax.Array
    mean: Any
    sum_of_squares: Any
    mean_low: Any


def init_moments(like: Any) -> Moments:
    """The moments of no members at all.

    Args:
        like: one member's values (arrays or `jax.ShapeDtypeStruct`), leaves `[...]`.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _accumulator(x.dtype)), like)
    return Moments(jnp.zeros((), jnp.float32), zeros, zeros, zeros)


def _accumulator(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def update_moments(
    moments: Moments, stacked: Any, weights: jax.Array | None = None
) -> Moments:
    """`moments` with the members of `stacked` (leaves `[member, ...]`) folded in.

    Args:
        moments: the state so far.
        stacked: values of some members.
        weights: `[member]`, non-negative; 1 by default. Members of weight 0 are left
            out even where their values are not finite.

    Raises:
        ValueError: if leaves disagree on the number of members, members are of another
            shape than the state's, or `weights` of another shape.
    """
    members = num_members(stacked)
    weights = jnp.ones(members) if weights is None else jnp.asarray(weights)
    if weights.shape != (members,):
        raise ValueError(
            f"weights must be [member] = ({members},); got {weights.shape}."
        )
    # Other trees are named by JAX below.
    for (path, x), m in zip(
        jax.tree.leaves_with_path(stacked), jax.tree.leaves(moments.mean), strict=False
    ):
        if x.shape[1:] != m.shape:
            raise ValueError(
                f"the state is of members {m.shape}, but the values"
                f"{jax.tree_util.keystr(path)} are of members {x.shape[1:]}."
            )
    weights = weights.astype(jnp.float32)
    count = weights.sum()

    def spread(x):
        return weights.reshape(-1, *(1,) * (x.ndim - 1)).astype(_accumulator(x.dtype))

    def mean_of(x):
        w = spread(x)
        total = jnp.sum(jnp.where(w > 0, x, 0) * w, axis=0)
        return total / jnp.where(count > 0, count, 1).astype(w.dtype)

    def deviations(x, m):
        return jnp.where(spread(x) > 0, x - m[None], 0)

    mean = jax.tree.map(mean_of, stacked)
    # The mean of the deviations is what the mean above has rounded away.
    low = jax.tree.map(
        lambda x, m: jnp.where(jnp.isfinite(m), mean_of(deviations(x, m)), 0),
        stacked,
        mean,
    )
    squares = jax.tree.map(
        lambda x, m, rest: jnp.sum(
            spread(x) * (deviations(x, m) - rest[None]) ** 2, axis=0
        ),
        stacked,
        mean,
        low,
    )
    return merge_moments(moments, Moments(count, *_two_parts(mean, squares, low)))


def _two_parts(mean, squares, low):
    """Mean, squares and low part, with the mean the nearest to the sum of its parts."""

    def rounded(m, rest):
        return jnp.where(jnp.isfinite(m), _two_sum(m, rest)[0], m)

    def left(m, rest):
        return jnp.where(jnp.isfinite(m), _two_sum(m, rest)[1], 0)

    return jax.tree.map(rounded, mean, low), squares, jax.tree.map(left, mean, low)


def _two_sum(a, b):
    """The sum of two floats and what it rounds away (Knuth 1969, section 4.2.2)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the members of `a` and `b` together, leaves `[...]` as theirs.

    Source: Chan, Golub and LeVeque 1983, equations 2.1a and 2.1b (pairwise update),
    which keeps its digits where a difference of sums of squares would cancel. Means
    have a low part here: in blocks of 50, 5,000 members of mean 1e6 and standard
    deviation 1 had a variance that was 0.8 % too large without it.
    """
    count = a.count + b.count
    share = jnp.where(count > 0, b.count / jnp.where(count > 0, count, 1), 0.0)

    def of_both(together, only_a, only_b):
        """What is empty has no say, whatever the other one holds."""
        return jnp.where(
            b.count == 0, only_a, jnp.where(a.count == 0, only_b, together)
        )

    difference = jax.tree.map(
        lambda m_a, m_b, l_a, l_b: (m_b - m_a) + (l_b - l_a),
        *(a.mean, b.mean, a.mean_low, b.mean_low),
    )

    def mean(m_a, m_b, d):
        # An infinite value makes the mean infinite, not NaN as its difference is.
        is_finite = jnp.isfinite(m_a) & jnp.isfinite(m_b)
        stable = m_a + d * share.astype(d.dtype)
        return of_both(jnp.where(is_finite, stable, m_a + m_b), m_a, m_b)

    def low(m_a, m_b, d, l_a, l_b):
        is_finite = jnp.isfinite(m_a) & jnp.isfinite(m_b)
        rest = _two_sum(m_a, d * share.astype(d.dtype))[1] + l_a
        return of_both(jnp.where(is_finite, rest, 0), l_a, l_b)

    def squares(s_a, s_b, d):
        between = d**2 * (a.count * share).astype(s_a.dtype)
        return of_both(s_a + s_b + between, s_a, s_b)

    means = a.mean, b.mean, difference
    parts = _two_parts(
        jax.tree.map(mean, *means),
        jax.tree.map(squares, a.sum_of_squares, b.sum_of_squares, difference),
        jax.tree.map(low, *means, a.mean_low, b.mean_low),
    )
    return Moments(count, *parts)


def finish_moments(moments: Moments, *, ddof: int = 0) -> tuple[Any, Any]:
    """Mean and variance over the members folded in so far.

    Args:
        moments: the state.
        ddof: what is taken off the count in the variance's divisor: 0 for the variance
            of this ensemble, 1 for an unbiased estimate of the population's.

    Returns:
        `(mean, variance)`, leaves `[...]`; NaN where the divisor is not positive.
    """
    divisor = moments.count - ddof
    safe = jnp.where(divisor > 0, divisor, jnp.nan)
    mean = jax.tree.map(
        lambda m: jnp.where(moments.count > 0, m, jnp.nan), moments.mean
    )
    variance = jax.tree.map(lambda s: s / safe.astype(s.dtype), moments.sum_of_squares)
    return mean, variance


def psum_moments(moments: Moments, axis_name: str = "member") -> Moments:
    """The moments merged over a mesh axis, inside a `shard_map`: sums, no gather.

    Args:
        moments: of this device's members, leaves `[...]`.
        axis_name: of the mesh axis.

    Returns:
        The moments of all members, the same on every device; leaves `[...]`.
    """
    count = jax.lax.psum(moments.count, axis_name)
    share = jnp.where(count > 0, moments.count / jnp.where(count > 0, count, 1), 0.0)
    mean = jax.tree.map(
        lambda m: jax.lax.psum(m * share.astype(m.dtype), axis_name), moments.mean
    )
    away = jax.tree.map(
        lambda m, rest, whole: (m - whole) + rest, moments.mean, moments.mean_low, mean
    )
    low = jax.tree.map(
        lambda d, whole: jnp.where(
            jnp.isfinite(whole), jax.lax.psum(d * share.astype(d.dtype), axis_name), 0
        ),
        away,
        mean,
    )
    squares = jax.tree.map(
        lambda s, d, rest: jax.lax.psum(
            s + (d - rest) ** 2 * moments.count.astype(s.dtype), axis_name
        ),
        moments.sum_of_squares,
        away,
        low,
    )
    return Moments(count, *_two_parts(mean, squares, low))


MOMENTS = Family(
    update_moments, psum_moments, lambda state: jax.tree.map(jnp.zeros_like, state)
)


def reduce_moments(
    stacked: Any, weights: jax.Array | None = None, *, mesh: Mesh | None = None
) -> Moments:
    """The moments over all members of a stack that is split over devices.

    One compiled program: each device folds in its own members, then four sums cross
    the member axis. No device holds another's members.

    Args:
        stacked: leaves `[member, ...]`.
        weights: `[member]`, or None for equal weights.
        mesh: from `make_mesh`; all devices by default.

    Raises:
        ValueError: if leaves disagree on the number of members.
    """
    members = num_members(stacked)
    weights = jnp.ones(members) if weights is None else jnp.asarray(weights)
    if weights.shape != (members,):
        raise ValueError(
            f"weights must be [member] = ({members},); got {weights.shape}."
        )
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    weights = weights.astype(jnp.float32)
    return reduce_stack(MOMENTS, init_moments(one), stacked, weights, mesh)


def member_mean(
    stacked: Any, weights: jax.Array | None = None, *, mesh: Mesh | None = None
) -> Any:
    """The (weighted) mean over members, leaves `[...]`; see `reduce_moments`."""
    return finish_moments(reduce_moments(stacked, weights, mesh=mesh))[0]


def member_sum(
    stacked: Any, weights: jax.Array | None = None, *, mesh: Mesh | None = None
) -> Any:
    """The (weighted) sum over members, leaves `[...]`; see `reduce_moments`."""
    moments = reduce_moments(stacked, weights, mesh=mesh)
    return jax.tree.map(lambda m: m * moments.count.astype(m.dtype), moments.mean)


def member_variance(
    stacked: Any,
    weights: jax.Array | None = None,
    *,
    ddof: int = 0,
    mesh: Mesh | None = None,
) -> Any:
    """The (weighted) variance over members, leaves `[...]`; see `finish_moments`."""
    return finish_moments(reduce_moments(stacked, weights, mesh=mesh), ddof=ddof)[1]
