"""Subsets of members: with replacement, without it, or cluster by cluster.

Members of a huge ensemble are no independent draws where they share a trained model:
intervals over members alone are then too narrow, and whole checkpoints are drawn. And a
resample with replacement of all M members holds 63 % of them: what needs the extremes
is biased low, and subsets without replacement are to be preferred while they are small
beside M.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.rows import floating


def draw_members(
    key: jax.Array,
    num_members: int,
    size: int,
    *,
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> jax.Array:
    """Rows of one subset of members, int32 `[size]`.

    With clusters: as many clusters as there are, drawn with replacement, and from each
    of these in turn a member, drawn with replacement or without it. Without it, and of
    as many members as there are, clusters are drawn whole: the bootstrap of clusters.
    (Where a cluster is drawn twice its members may repeat either way.)

    Args:
        key: random key.
        num_members: M.
        size: of the subset.
        replace: whether a member may be drawn twice.
        clusters: the cluster of each member, such as its checkpoint, `[member]`, on the
            host; None: members are alone.

    Raises:
        ValueError: if a number is below 1; or, without replacement, if there are not
            enough members (of a cluster).
    """
    if num_members < 1 or size < 1:
        raise ValueError(
            f"num_members and size must be 1 or more; got {num_members} and {size}."
        )
    if clusters is None:
        if not replace and size > num_members:
            raise ValueError(
                f"{size} members cannot be drawn without replacement from"
                f" {num_members}."
            )
        if replace:
            return jax.random.randint(key, (size,), 0, num_members)
        return jax.random.permutation(key, num_members)[:size].astype(jnp.int32)
    rows, first, count = _sorted_clusters(clusters, num_members)
    number = len(count)
    turns = -(-size // number)
    if not replace and turns > count.min():
        raise ValueError(
            f"{size} members are {turns} of each of {number} clusters, but one has"
            f" {count.min()}: draw fewer, or with replacement."
        )
    which, within = (jax.random.fold_in(key, i) for i in range(2))
    drawn = jax.random.randint(which, (number,), 0, number)
    at = jnp.asarray(count)[drawn]  # members of each drawn cluster
    if replace:
        place = jax.random.randint(within, (turns, number), 0, at[None])
    else:
        # Places in a random order, those beyond a cluster's members behind all others.
        order = jax.random.uniform(within, (int(count.max()), number))
        is_there = jnp.arange(int(count.max()))[:, None] < at[None]
        place = jnp.argsort(jnp.where(is_there, order, 2.0), axis=0)[:turns]
    rows = jnp.asarray(rows)[jnp.asarray(first)[drawn][None] + place]
    return rows.reshape(-1)[:size].astype(jnp.int32)


def _sorted_clusters(clusters, num_members):
    clusters = np.asarray(clusters)
    if clusters.shape != (num_members,):
        raise ValueError(
            f"clusters must be [member] = ({num_members},); got {clusters.shape}."
        )
    rows = np.argsort(clusters, kind="stable")
    _, first, count = np.unique(clusters[rows], return_index=True, return_counts=True)
    return rows.astype(np.int32), first.astype(np.int32), count.astype(np.int32)


def of_size(
    key: jax.Array,
    forecast: jax.Array,
    size: int,
    function: Callable[[jax.Array], Any],
    *,
    num_resamples: int = 100,
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> Any:
    """`function` of subsets of a size, leaves `[resample, ...]`.

    One subset exists at a time.

    Args:
        key: random key.
        forecast: `[member, ...]`.
        size: members of a subset.
        function: of `[size, ...]`.
        num_resamples: how many subsets.
        replace, clusters: as in `draw_members`.

    Raises:
        ValueError: if a number is out of range.
    """
    _check_size(size, num_resamples)
    forecast = floating(forecast)

    def one(number):
        rows = draw_members(
            jax.random.fold_in(key, number),
            len(forecast),
            size,
            replace=replace,
            clusters=clusters,
        )
        return function(forecast[rows])

    return jax.lax.map(one, jnp.arange(num_resamples))


def resampled_means(
    key: jax.Array,
    values: jax.Array,
    size: int,
    *,
    num_resamples: int = 100,
    replace: bool = True,
    clusters: np.ndarray | None = None,
) -> jax.Array:
    """Means over the members of subsets of a size, `[resample, ...]`.

    Members are not copied: a subset is how often each of them is in it, and the means
    of all subsets are one matrix product.

    Args:
        key: random key; the subsets are those of `of_size`.
        values: `[member, ...]`; NaN: the member is missing there.
        size, num_resamples, replace, clusters: as in `of_size`.

    Returns:
        NaN where no member of a subset is there.

    Raises:
        ValueError: if a number is out of range.
    """
    _check_size(size, num_resamples)
    values = floating(values)
    draw = functools.partial(
        draw_members,
        num_members=len(values),
        size=size,
        replace=replace,
        clusters=clusters,
    )

    def times(number):
        rows = draw(jax.random.fold_in(key, number))
        return jnp.zeros(len(values), values.dtype).at[rows].add(1.0)

    times = jax.lax.map(times, jnp.arange(num_resamples))  # [resample, member]
    is_there = ~jnp.isnan(values)
    product = functools.partial(jnp.einsum, "rm,m...->r...", precision="highest")
    count = product(times, is_there.astype(values.dtype))
    total = product(times, jnp.where(is_there, values, 0.0))
    return total / jnp.where(count > 0, count, jnp.nan)


def _check_size(size, num_resamples):
    if size < 1 or num_resamples < 1:
        raise ValueError(
            f"size and num_resamples must be 1 or more; got {size}, {num_resamples}."
        )
