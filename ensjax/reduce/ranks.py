"""Rank histograms of observations among members, in one pass and across devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ensjax.reduce.devices import Family, reduce_stack
from ensjax.reduce.values import (
    along_members,
    check_one_member,
    check_values,
    has_nan,
    member_mask,
)


class Ranks(NamedTuple):
    """Where each observation lies among the members so far.

    Attributes:
        count: members so far, int32 `[]`.
        observations: leaves `[...]`.
        below: members strictly below the observation, int32 leaves `[...]`.
        ties: members equal to it, int32 leaves `[...]`.
        undefined: whether the observation or a member is NaN, leaves `[...]`.
    """

    count: jax.Array
    observations: Any
    below: Any
    ties: Any
    undefined: Any


def init_ranks(observations: Any) -> Ranks:
    """The ranks among no members; 9 bytes an element and the observation.

    Args:
        observations: leaves `[...]`, in the unit of the members' values. One that is
            NaN is left out of the histogram.

    Raises:
        ValueError, TypeError: if there is no array, or a leaf holds no real numbers.
    """
    check_one_member(observations)
    observations = jax.tree.map(jnp.asarray, observations)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), observations)
    undefined = jax.tree.map(jnp.isnan, observations)
    return Ranks(jnp.zeros((), jnp.int32), observations, zeros, zeros, undefined)


def update_ranks(ranks: Ranks, stacked: Any, mask: jax.Array | None = None) -> Ranks:
    """`ranks` with the members of `stacked` (leaves `[member, ...]`) counted.

    Args:
        ranks: the state so far.
        stacked: values of some members.
        mask: booleans `[member]`; members that are False are left out.

    Raises:
        ValueError: if a leaf or the mask has another shape.
        TypeError: if the mask is not boolean.
    """
    mask = member_mask(mask, check_values(ranks.observations, stacked))

    def counted(compare, so_far):
        return jax.tree.map(
            lambda n, x, y: (
                n
                + jnp.sum(
                    compare(x, y[None]) & along_members(mask, x),
                    axis=0,
                    dtype=jnp.int32,
                )
            ),
            so_far,
            stacked,
            ranks.observations,
        )

    return ranks._replace(
        count=ranks.count + mask.sum(dtype=jnp.int32),
        below=counted(jnp.less, ranks.below),
        ties=counted(jnp.equal, ranks.ties),
        undefined=jax.tree.map(
            lambda was, x: was | has_nan(x, mask), ranks.undefined, stacked
        ),
    )


def merge_ranks(a: Ranks, b: Ranks) -> Ranks:
    """The ranks among the members of `a` and `b`, for the same observations."""
    return a._replace(
        count=a.count + b.count,
        below=jax.tree.map(jnp.add, a.below, b.below),
        ties=jax.tree.map(jnp.add, a.ties, b.ties),
        undefined=jax.tree.map(jnp.logical_or, a.undefined, b.undefined),
    )


def finish_ranks(
    ranks: Ranks, *, num_members: int, key: jax.Array | None = None
) -> Any:
    """The rank histogram over all elements of each leaf.

    An observation with `below` members under it and `ties` equal to it may have any of
    the ranks `below, ..., below + ties`. Without a key each of these bins gets an equal
    share of it; with one it goes whole to one of them, drawn uniformly.

    Args:
        ranks: the state.
        num_members: M, how many members were folded in; it fixes the number of bins.
        key: breaks ties at random.

    Returns:
        float32 leaves `[M + 1]`: how many observations have each rank from 0 (below
        all members) to M. Elements where the observation or a member is NaN are left
        out. All NaN if another number of members was folded in (an error outside of
        compiled programs).

    Raises:
        ValueError: if another number of members was folded in.

    Source: Hamill 2001, Interpretation of rank histograms for verifying ensemble
    forecasts, Monthly Weather Review 129, section 2 (ties drawn at random).
    """
    counted = ranks.count
    if not isinstance(counted, jax.core.Tracer) and int(counted) != num_members:
        raise ValueError(
            f"num_members is {num_members}, but {int(counted)} members were folded in."
        )
    below, treedef = jax.tree.flatten(ranks.below)
    ties, undefined = jax.tree.leaves(ranks.ties), jax.tree.leaves(ranks.undefined)
    keys = [
        None if key is None else jax.random.fold_in(key, i) for i in range(len(below))
    ]
    histograms = [
        _histogram(*leaves, num_members + 1)
        for leaves in zip(below, ties, undefined, keys, strict=True)
    ]
    matches = counted == num_members
    return jax.tree.unflatten(
        treedef, [jnp.where(matches, h, jnp.nan) for h in histograms]
    )


def _histogram(below, ties, undefined, key, bins):
    below, ties, kept = below.reshape(-1), ties.reshape(-1), ~undefined.reshape(-1)
    if key is not None:
        below = below + jax.random.randint(key, ties.shape, 0, ties + 1)
        ties = jnp.zeros_like(ties)
    # Observations without ties are counted in integers, so that only shares round.
    is_tied = ties > 0
    counts = jnp.zeros(bins, jnp.int32).at[below].add(kept & ~is_tied)
    share = jnp.where(kept & is_tied, 1.0 / (ties + 1), 0.0)
    steps = jnp.zeros(bins + 1).at[below].add(share).at[below + ties + 1].add(-share)
    return counts + jnp.maximum(jnp.cumsum(steps)[:bins], 0.0)


def psum_ranks(ranks: Ranks, axis_name: str = "member") -> Ranks:
    """The counts summed over a mesh axis, inside a `shard_map`."""

    def somewhere(flag):
        return jax.lax.psum(flag.astype(jnp.int32), axis_name) > 0

    return ranks._replace(
        count=jax.lax.psum(ranks.count, axis_name),
        below=jax.lax.psum(ranks.below, axis_name),
        ties=jax.lax.psum(ranks.ties, axis_name),
        undefined=jax.tree.map(somewhere, ranks.undefined),
    )


RANKS = Family(update_ranks, psum_ranks, lambda state: init_ranks(state.observations))


def reduce_ranks(
    stacked: Any,
    observations: Any,
    mask: jax.Array | None = None,
    *,
    mesh: Mesh | None = None,
) -> Ranks:
    """The ranks among all members of a stack that is split over devices.

    Args:
        stacked: leaves `[member, ...]`.
        observations: leaves `[...]`.
        mask: booleans `[member]`, or None for all.
        mesh: from `make_mesh`; all devices by default.
    """
    return reduce_stack(RANKS, init_ranks(observations), stacked, mask, mesh)
