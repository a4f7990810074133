"""Sums of task vectors, what members have added to a base: whole, or thinned first.

    theta = theta_0 + lam * merged(tau),  tau_m = theta_m - theta_0

Knobs (`lam`, `density`, `drop`, ...) may be traced, so that `vmap` over arrays of them
makes a grid. Published values are for other models: choose `lam` and densities on
validation rows, never on test rows. Leaves that are not floating are the base's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import num_members
from ensjax.ops.limits import between
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.pruning import (
    drop_at_random,
    drop_by_rank,
    keep_band,
    member_knob,
)
from ensjax.weight_space.vectors import (
    check_scope,
    check_two,
    map_together,
    weighted_sum,
)

RANKED_SCOPES = ("leaf", "global")


@takes_ensembles()
def task_arithmetic(
    stacked: Any, base: Any, *, lam: Any = 0.3, weights: Any = None
) -> Any:
    """The base plus the scaled sum of what the members have added.

        theta = theta_0 + lam * sum_m w_m tau_m

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        lam: scale of the sum. 0.3 to 0.4 is usual for eight vision tasks; `1 / M` gives
            the mean; below 0 the tasks are forgotten.
        weights: `[member]`, of either sign; 1 each by default. Not normalised (mergekit
            does not either unless told to). A weight of 0 removes a member, also one
            that is not finite.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if the base is of another shape, or weights or `lam` are of another
            or not finite.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    weights = _signed_weights(weights, stacked)

    def merged(_, taus):
        return [weighted_sum(tau, weights) for tau in taus]

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def dare(
    stacked: Any,
    base: Any,
    key: jax.Array,
    *,
    drop: Any = 0.9,
    lam: Any = 0.3,
    weights: Any = None,
    member_ids: Any = None,
) -> Any:
    """Task arithmetic of task vectors thinned at random and scaled up.

        theta = theta_0 + lam * sum_m w_m tau_m z_m / (1 - p),  z ~ Bernoulli(1 - p)

    Its expectation over keys is `task_arithmetic` of the same `lam` and weights.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        key: from `jax.random.key`. Draws depend on it, the member's id, the leaf's name
            and the entry alone.
        drop: the probability p that an entry is dropped, a number or `[member]`. 0.9 in
            the paper.
        lam: as in `task_arithmetic`.
        weights: as in `task_arithmetic`.
        member_ids: integers `[member]`; 0, 1, ... by default.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if the base, weights, ids or knobs are of another shape, or the
            probability is not from 0 to 1.
        TypeError: if the key is none.

    Source: Yu et al. 2024, arXiv:2311.03099. mergekit scales to the L1 norm
    before the draw instead of by 1 / (1 - p).
    """
    drop = member_knob("drop", drop, num_members(stacked))
    weights = _signed_weights(weights, stacked)
    ids = ids_of(member_ids, stacked)

    def merged(names, taus):
        taus = drop_at_random(names, taus, key, ids, drop)
        return [weighted_sum(tau, weights) for tau in taus]

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def della_linear(
    stacked: Any,
    base: Any,
    key: jax.Array,
    *,
    density: Any,
    epsilon: Any = 0.15,
    lam: Any = 0.3,
    weights: Any = None,
    member_ids: Any = None,
) -> Any:
    """DELLA's thinned task vectors, summed as by `task_arithmetic`.

    Arguments and errors are those of `della` and, for `lam` and `weights`, of
    `task_arithmetic`, which is its expectation over keys where no probability is 0.
    """
    weights = _signed_weights(weights, stacked)
    thinned = ranked_drop_of(stacked, key, density, epsilon, member_ids)

    def merged(names, taus):
        return [weighted_sum(tau, weights) for tau in thinned(names, taus)]

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def breadcrumbs(
    stacked: Any,
    base: Any,
    *,
    density: Any,
    gamma: Any = 0.01,
    lam: Any = 0.3,
    weights: Any = None,
    scope: str = "leaf",
) -> Any:
    """Task arithmetic without each member's largest and smallest entries.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        density: share of entries that is kept, a number or `[member]`. There is no
            usual value.
        gamma: share of the largest that is dropped, a number or `[member]`; mergekit's
            0.01. Less is dropped where `density + gamma` exceeds 1. Where it rounds to
            no entry, none is dropped at the top (there mergekit drops all).
        lam: as in `task_arithmetic`.
        weights: as in `task_arithmetic`.
        scope: "leaf" ranks entries in each leaf, as the paper and mergekit do; "global"
            over the whole model.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if the base, weights or knobs are of another shape or range, or the
            scope is unknown.

    Source: Davari and Belilovsky 2024, arXiv:2312.06795; mergekit, `breadcrumbs`.
    """
    weights = _signed_weights(weights, stacked)
    band = band_of(stacked, density, gamma, scope)

    def merged(_, taus):
        return [weighted_sum(tau, weights) for tau in band(taus)]

    return add_to_base(merged, stacked, base, lam)


def _of_the_first(arguments, members):
    del arguments
    return jnp.arange(members) == 0


@takes_ensembles(_of_the_first)
def nearswap(stacked: Any, *, t: Any, keep: int = 0) -> Any:
    """Member 0 moved towards member 1 by at most `t` in every entry.

        a + clip(t / |b - a|, 0, 1) (b - a) = a + clip(b - a, -t, t)

    Args:
        stacked: leaves `[2, ...]` or an `Ensemble`.
        t: the largest step, at least 0; may be traced. Its scale is that of the
            weights: 1e-4 in the model for which it was made. No default, as in
            mergekit.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]`: member 0 for `t = 0`, member 1 to rounding for large `t`.

    Raises:
        ValueError: if there are not two members, or `t` is no number of at least 0.

    Source: alchemonaut, QuartetAnemoi-70B-t0.0001; mergekit, `nearswap`.
    """
    check_two(stacked, "nearswap")
    if np.ndim(t):
        raise ValueError(f"t must be a number; got shape {np.shape(t)}.")
    (step,) = member_knob("t", t, 1, high=np.inf)

    def moved(_, rows):
        return [x[0] + between(x[1] - x[0], -step, step) for x in rows]

    return map_together(moved, stacked, keep=keep)


def add_to_base(
    merged: Callable[[Sequence[str], list[jax.Array]], list[jax.Array]],
    stacked: Any,
    base: Any,
    lam: Any,
) -> Any:
    """`theta_0 + lam * merged(names, taus)`, cast back."""
    if np.ndim(lam):
        raise ValueError(
            f"lam must be a number; got shape {np.shape(lam)}. A grid is"
            " jax.vmap(lambda lam: ...)(lams)."
        )
    _check_finite_knob("lam", lam)
    scale = jnp.asarray(lam, jnp.float32)

    def add(names, rows, origin):
        taus = [x - o[None] for x, o in zip(rows, origin)]
        moved = merged(names, taus)
        return [o + scale * tau for o, tau in zip(origin, moved)]

    return map_together(add, stacked, base)


def band_of(
    stacked: Any, density: Any, gamma: Any, scope: str
) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """`keep_band` of task vectors by checked knobs."""
    check_scope(scope, RANKED_SCOPES)
    members = num_members(stacked)
    density = member_knob("density", density, members)
    gamma = member_knob("gamma", gamma, members)
    return lambda taus: keep_band(taus, density, gamma, scope=scope)


def ranked_drop_of(
    stacked: Any, key: jax.Array, density: Any, epsilon: Any, member_ids: Any
) -> Callable[[Sequence[str], list[jax.Array]], list[jax.Array]]:
    """`drop_by_rank` of named task vectors by checked knobs."""
    members = num_members(stacked)
    density = member_knob("density", density, members)
    epsilon = member_knob("epsilon", epsilon, members, high=0.5)
    ids = ids_of(member_ids, stacked)
    return lambda names, taus: drop_by_rank(names, taus, key, ids, density, epsilon)


def _signed_weights(weights, stacked):
    members = num_members(stacked)
    if weights is None:
        return jnp.ones((members,), jnp.float32)
    if np.shape(weights) != (members,):
        raise ValueError(
            f"weights must be [member] with {members} members; got shape"
            f" {np.shape(weights)}."
        )
    _check_finite_knob("weights", weights)
    return jnp.asarray(weights, jnp.float32)


def _check_finite_knob(name, value):
    """Raises `ValueError` for a knob that is known here and not finite."""
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(value, np.float64)
    if not np.isfinite(known).all():
        raise ValueError(f"{name} must be finite; got {known.tolist()}.")


def ids_of(member_ids: Any, stacked: Any) -> jax.Array:
    """Ids `[member]`, 0, 1, ... by default.

    Raises:
        ValueError: if they are not one integer for each member.
    """
    members = num_members(stacked)
    ids = jnp.arange(members) if member_ids is None else jnp.asarray(member_ids)
    if ids.shape != (members,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"member_ids must be integers [member] with {members} members; got"
            f" {ids.dtype}{list(ids.shape)}."
        )
    return ids
