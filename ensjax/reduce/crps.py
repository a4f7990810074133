"""The CRPS of an ensemble against observations, in one pass and across devices.

    CRPS = E|X - y| - 1/2 E|X - X'|

The first term is a running mean. The second needs every pair of members, or the members
in order: it is the integral of F (1 - F) over the members' distribution F, and is taken
over a summary by sorted runs (`sorted_runs`). There two neighbours are replaced by
their mean: that keeps the members' mean and, but for what lies between the two, every
distance to others, where picking one of two would move the tails.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.members import num_members
from ensjax.reduce.devices import Family, reduce_stack
from ensjax.reduce.moments import (
    Moments,
    finish_moments,
    init_moments,
    merge_moments,
    psum_moments,
    update_moments,
)
from ensjax.reduce.sorted_runs import (
    SortedRuns,
    capacity,
    init_runs,
    merge_runs,
    psum_runs,
    sorted_members,
    update_runs,
)
from ensjax.reduce.values import check_one_member, check_values, member_mask


class Crps(NamedTuple):
    """What the CRPS needs of the members so far.

    Attributes:
        observations: leaves `[...]`.
        error: moments of |member - observation|.
        members: a summary of the members in float32; all of them while they are few.
    """

    observations: Any
    error: Moments
    members: SortedRuns

    @property
    def count(self) -> jax.Array:
        """Members so far, int32 `[]`."""
        return self.members.count


def init_crps(
    observations: Any, *, max_members: int, rank_error: float = 0.005
) -> Crps:
    """The CRPS of no members, of a size that members do not change.

    `levels, width = sketch_size(max_members, rank_error)`. An element takes
    `4 * (levels + 1) * width + 12` bytes, as `init_quantiles`; up to `width` members
    are all held and the score exact, with all of `max_members` where that costs less
    than twice as much.

    Args:
        observations: leaves `[...]`, in the unit of the members' values.
        max_members: the most members that will be folded in and merged.
        rank_error: bound on the error of the summary's ranks; it bounds the error of
            the score as `finish_crps` says. 0 keeps all members: exact.

    Raises:
        ValueError: if a number is out of range or there is no array.
        TypeError: if a leaf holds no real numbers.
    """
    check_one_member(observations)
    observations = jax.tree.map(_floating, observations)
    members = init_runs(observations, max_members=max_members, rank_error=rank_error)
    return Crps(observations, init_moments(observations), members)


def _floating(x):
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mean_of_two(values, merges):
    del merges
    half = 0.5 * values.reshape(*values.shape[:-1], -1, 2)
    return half[..., 0] + half[..., 1]


def update_crps(crps: Crps, stacked: Any, mask: jax.Array | None = None) -> Crps:
    """`crps` with the members of `stacked` (leaves `[member, ...]`) folded in.

    Call it inside `jit`: it holds a compiled loop.

    Args:
        crps: the state so far.
        stacked: values of some members.
        mask: booleans `[member]`; members that are False are left out.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    mask = member_mask(mask, check_values(crps.observations, stacked))
    values = jax.tree.map(lambda x, y: x.astype(y.dtype), stacked, crps.observations)
    errors = jax.tree.map(lambda x, y: jnp.abs(x - y[None]), values, crps.observations)
    return Crps(
        crps.observations,
        update_moments(crps.error, errors, mask.astype(jnp.float32)),
        update_runs(crps.members, values, mask, _mean_of_two),
    )


def merge_crps(a: Crps, b: Crps) -> Crps:
    """The CRPS of the members of `a` and `b`, made for the same observations."""
    return Crps(
        a.observations,
        merge_moments(a.error, b.error),
        merge_runs(a.members, b.members, _mean_of_two),
    )


def finish_crps(crps: Crps, *, fair: bool = False) -> Any:
    """The CRPS of the members folded in so far, one value an observation.

        standard:  1/M sum_i |x_i - y|  -  1/(2 M^2)      sum_ij |x_i - x_j|
        fair:      1/M sum_i |x_i - y|  -  1/(2 M (M-1))  sum_ij |x_i - x_j|

    The standard form scores these M members as the forecast; the fair one is unbiased
    for the distribution that they are drawn from, and may be negative. The fair form
    equals the estimate by probability-weighted moments.

    While all members are held both are exact. Beyond, the score is never below the
    exact one, and above it by at most

        rank_error * (max_i x_i - min_i x_i)          (fair: times M / (M - 1))

    in any order: the integral of F (1 - F) changes by at most the largest change of F
    times the members' range, and replacing two members by their mean only lowers it.
    As a rule it is far less, since neighbours lie close together: with 100,000 members
    and the default bound 2e-5 of the score for a Gaussian, 6e-3 for a Cauchy
    distribution, whose farthest members decide; such tails want `rank_error=0`.

    Args:
        crps: the state.
        fair: which form.

    Returns:
        Leaves `[...]` in the unit of the values; less is better. NaN for no members
        (fair: fewer than two), where the observation or a member is NaN, and everywhere
        after more members than the state is for.

    Source: Hersbach 2000, Decomposition of the continuous ranked probability score for
    ensemble prediction systems, Weather and Forecasting 15; Gneiting and Raftery 2007,
    equation 21 (its negative); Ferro 2014, Fair scores for ensemble forecasts, QJRMS
    140; Taillardat et al. 2016, Monthly Weather Review 144 (weighted moments).
    """
    count = crps.count
    least = 2 if fair else 1
    is_known = (count >= least) & (count <= capacity(crps.members))
    pairs = count / jnp.maximum(count - 1, 1) if fair else 1.0

    def score(values, until, error):
        share = until[..., :-1] / jnp.maximum(count, 1)
        is_inside = (until[..., :-1] > 0) & (until[..., :-1] < count)
        gaps = jnp.where(is_inside, values[..., 1:] - values[..., :-1], 0.0)
        spread = jnp.sum(gaps * share * (1 - share), axis=-1) * pairs
        return jnp.where(is_known, error - spread, jnp.nan)

    mean_error, _ = finish_moments(crps.error)
    return jax.tree.map(score, *sorted_members(crps.members), mean_error)


def psum_crps(crps: Crps, axis_name: str = "member") -> Crps:
    """The CRPS merged over a mesh axis, inside a `shard_map`; no gather."""
    return Crps(
        crps.observations,
        psum_moments(crps.error, axis_name),
        psum_runs(crps.members, axis_name, _mean_of_two),
    )


def _empty(crps):
    error, members = jax.tree.map(jnp.zeros_like, (crps.error, crps.members))
    return Crps(crps.observations, error, members)


CRPS = Family(update_crps, psum_crps, _empty)


def reduce_crps(
    stacked: Any,
    observations: Any,
    mask: jax.Array | None = None,
    *,
    max_members: int | None = None,
    rank_error: float = 0.005,
    mesh: Mesh | None = None,
) -> Crps:
    """The CRPS of all members of a stack that is split over devices.

    Args:
        stacked: leaves `[member, ...]`.
        observations: leaves `[...]`.
        mask: booleans `[member]`, or None for all.
        max_members: as in `init_crps`; by default those of the stack.
        rank_error: as in `init_crps`.
        mesh: from `make_mesh`; all devices by default.
    """
    members = max(num_members(stacked), 1) if max_members is None else max_members
    state = init_crps(observations, max_members=members, rank_error=rank_error)
    return reduce_stack(CRPS, state, stacked, mask, mesh)
