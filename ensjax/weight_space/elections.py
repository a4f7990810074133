"""Merges in which members elect a sign for every entry: TIES and its relatives, SCE.

Entries of the minority's sign are left out of the mean, so that members do not cancel.
The task vectors, knobs and kept leaves are those of `task_vectors`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import num_members
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.leaves import check_weights
from ensjax.weight_space.pruning import (
    drop_at_random,
    keep_largest,
    kth_largest,
    member_knob,
)
from ensjax.weight_space.task_vectors import (
    RANKED_SCOPES,
    add_to_base,
    band_of,
    ids_of,
    ranked_drop_of,
)
from ensjax.weight_space.vectors import (
    check_scope,
    rows_of,
    weighted_sum,
    without_absent,
)


@takes_ensembles()
def ties(
    stacked: Any,
    base: Any,
    *,
    density: Any = 0.2,
    lam: Any = 1.0,
    weights: Any = None,
    scope: str = "global",
) -> Any:
    """Trim, elect signs, and average the entries that agree.

    Each member keeps its largest entries; every entry gets the sign of the sum over
    members; the mean is over the members whose entry has that sign.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        density: share of entries that each member keeps, a number or `[member]`. 0.2 in
            the paper.
        lam: scale of the merged task vector; 1 in the paper without validation data.
        weights: `[member]`, at least 0, in the sum that gives the sign and in the mean;
            equal by default, as in the paper. A weight of 0 removes a member, also one
            that is not finite.
        scope: "global" ranks a member's entries over the whole model, and an entry of
            sum 0 takes the majority's sign: the authors' code. "leaf" ranks them in
            each leaf and takes the positive sign: mergekit.

    Returns:
        Leaves `[...]` of the types of `stacked`. Entries equal to the smallest that is
        kept are kept.

    Raises:
        ValueError: if the base, weights or knobs are of another shape, the density is
            not from 0 to 1, or the scope is unknown.

    Example:
        >>> base = {"w": jnp.zeros(4)}
        >>> stacked = {"w": jnp.array([[4.0, 2.0, 0.0, 1.0], [2.0, -3.0, 1.0, 0.0]])}
        >>> ties(stacked, base, density=0.5)["w"]
        Array([ 3., -3.,  0.,  0.], dtype=float32)
        >>> densities = jnp.array([0.5, 1.0])
        >>> jax.vmap(lambda d: ties(stacked, base, density=d))(densities)["w"]
        Array([[ 3., -3.,  0.,  0.],
               [ 3., -3.,  1.,  1.]], dtype=float32)

    Source: Yadav et al. 2023, arXiv:2306.01708; their code, ties-merging. The count
    kept is rounded, where the authors' is 1 higher and mergekit's rounded down.
    """
    check_scope(scope, RANKED_SCOPES)
    density = member_knob("density", density, num_members(stacked))
    weights = check_weights(weights, stacked)

    def merged(_, taus):
        return elect(keep_largest(taus, density, scope=scope), weights, scope=scope)

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def dare_ties(
    stacked: Any,
    base: Any,
    key: jax.Array,
    *,
    drop: Any = 0.9,
    lam: Any = 1.0,
    weights: Any = None,
    member_ids: Any = None,
    scope: str = "global",
) -> Any:
    """DARE's thinned task vectors, merged by TIES's election and mean.

    Arguments and errors are those of `dare` and, for `lam`, `weights` and `scope`
    (which here only says the sign of a sum of 0), of `ties`.

    Source: Yu et al. 2024, arXiv:2311.03099.
    """
    check_scope(scope, RANKED_SCOPES)
    drop = member_knob("drop", drop, num_members(stacked))
    weights = check_weights(weights, stacked)
    ids = ids_of(member_ids, stacked)

    def merged(names, taus):
        taus = drop_at_random(names, taus, key, ids, drop)
        return elect(taus, weights, scope=scope)

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def della(
    stacked: Any,
    base: Any,
    key: jax.Array,
    *,
    density: Any,
    epsilon: Any = 0.15,
    lam: Any = 1.0,
    weights: Any = None,
    member_ids: Any = None,
    scope: str = "global",
) -> Any:
    """DARE with TIES, in which large entries are dropped less often than small ones.

    The probability of being kept rises with an entry's rank among the weights of its
    unit from `density - epsilon` to `density + epsilon`; what is kept is divided by
    its probability. Then signs are elected and agreeing entries averaged.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        key: as in `dare`.
        density: mean probability of being kept, a number or `[member]`. There is no
            usual value.
        epsilon: half the range of probabilities, a number or `[member]`; mergekit's
            0.15. It is narrowed where probabilities would leave 0 to 1, so that a
            density of 1 keeps all; mergekit refuses that.
        lam: scale of the merged task vector.
        weights: as in `ties`.
        member_ids: as in `dare`.
        scope: says the sign of a sum of 0, as in `ties`.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if the base, weights, ids or knobs are of another shape or range, or
            the scope is unknown.
        TypeError: if the key is none.

    Source: Deep et al. 2024, arXiv:2406.11617; mergekit, `della`. Ranks are
    those within the weights of one output unit: of `[in, out]` and `[*tap, in, out]`
    leaves, of one index of the last axis.
    """
    check_scope(scope, RANKED_SCOPES)
    weights = check_weights(weights, stacked)
    thinned = ranked_drop_of(stacked, key, density, epsilon, member_ids)

    def merged(names, taus):
        return elect(thinned(names, taus), weights, scope=scope)

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def breadcrumbs_ties(
    stacked: Any,
    base: Any,
    *,
    density: Any,
    gamma: Any = 0.01,
    lam: Any = 1.0,
    weights: Any = None,
    scope: str = "leaf",
) -> Any:
    """Breadcrumbs' task vectors, merged by TIES's election and mean.

    Arguments and errors are those of `breadcrumbs` and, for `lam` and `weights`, of
    `ties`.

    Source: mergekit, `breadcrumbs_ties`.
    """
    weights = check_weights(weights, stacked)
    band = band_of(stacked, density, gamma, scope)

    def merged(_, taus):
        return elect(band(taus), weights, scope=scope)

    return add_to_base(merged, stacked, base, lam)


@takes_ensembles()
def sce(stacked: Any, base: Any, *, density: Any = 1.0, lam: Any = 1.0) -> Any:
    """Select, calculate, erase: members weighted by how far they went, leaf by leaf.

    Of each leaf, the entries that vary most over members are selected; a member's
    weight is the mean square of what is left of its task vector; entries of the
    minority's sign are erased, and the rest is averaged with the weights.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        density: share that is selected of the entries that vary at all, a number. 1
            selects everything (mergekit's default), also what does not vary; the paper
            takes 0.1.
        lam: scale of the merged task vector; 1 in both.

    Returns:
        Leaves `[...]` of the types of `stacked`.

    Raises:
        ValueError: if the base or knobs are of another shape, or the density is not
            from 0 to 1.

    Source: Wan et al. 2024, arXiv:2408.07990; mergekit, `sce`.
    """
    if np.ndim(density):
        raise ValueError(f"density must be a number; got shape {np.shape(density)}.")
    (density,) = member_knob("density", density, 1)

    def merged(_, taus):
        selected = [_select_varying(tau, density) for tau in taus]
        squares = [
            jnp.mean(tau * tau, axis=tuple(range(1, tau.ndim))) for tau in selected
        ]
        return merge_selected(selected, [shares_of_squares(s) for s in squares])

    return add_to_base(merged, stacked, base, lam)


def _select_varying(tau, density):
    # Of no use where all is selected: a density that is known spares its sums.
    variance = jnp.where(density < 1.0, jnp.var(tau, axis=0), 0.0)
    count = varying_count(jnp.sum(variance > 0, dtype=jnp.int32), density)
    least = kth_largest([variance[None]], count[None])[0]
    return select(tau, variance, jnp.where(density < 1.0, least, 0.0))


def varying_count(varying: Any, density: Any) -> jax.Array:
    """How many entries of a leaf SCE selects of those that vary over members."""
    return jnp.round(density * jnp.asarray(varying)).astype(jnp.int32)


def select(tau: jax.Array, variance: jax.Array, least: Any) -> jax.Array:
    """`tau`, `[member, ...]`, 0 where the variance `[...]` is less than `least`."""
    return jnp.where((variance < least)[None], 0.0, tau)


def shares_of_squares(squares: jax.Array) -> jax.Array:
    """SCE's weights `[member]`, from mean squares; equal ones where all are 0."""
    total = jnp.sum(squares)
    equal = jnp.full(squares.shape, 1.0 / squares.shape[0], squares.dtype)
    return jnp.where(total > 0, squares / jnp.where(total > 0, total, 1.0), equal)


def merge_selected(
    taus: Sequence[jax.Array], weights: jax.Array | Sequence[jax.Array]
) -> list[jax.Array]:
    """The last step of SCE: signs by equal votes, means by its weights `[member]`.

    Of all leaves at once: over devices their sums are then joined.
    """
    signs = elected_signs(taus, jnp.ones(taus[0].shape[:1]), scope="leaf")
    return mean_of_sign(taus, signs, weights)


def elect(
    taus: Sequence[jax.Array],
    weights: jax.Array,
    *,
    scope: str,
    majority: jax.Array | None = None,
) -> list[jax.Array]:
    """The mean of the entries that have the sign of the sum; arguments as below."""
    signs = elected_signs(taus, weights, scope=scope, majority=majority)
    return mean_of_sign(taus, signs, weights)


def elected_signs(
    taus: Sequence[jax.Array],
    weights: jax.Array,
    *,
    scope: str,
    majority: jax.Array | None = None,
) -> list[jax.Array]:
    """The sign of `sum_m w_m tau_m` for every entry, -1 or 1.

    Where the sum is 0, scope "global" takes the sign that most entries of all leaves
    have (the TIES reference), and "leaf" takes 1 (mergekit). The first is 1 where there
    are as many of both.

    Args:
        taus: leaves `[member, ...]`.
        weights: `[member]`.
        scope: "global" or "leaf".
        majority: -1 or 1, where it is known and `taus` are a part of all leaves.
    """
    signs = [jnp.sign(weighted_sum(tau, weights)) for tau in taus]
    if majority is None:
        majority = jnp.ones((), signs[0].dtype)
        if scope == "global":
            majority = jnp.where(votes_of(signs) < 0, -majority, majority)
    return [jnp.where(s == 0, majority, s) for s in signs]


def votes_of(signs: Sequence[jax.Array]) -> jax.Array:
    """How many more entries are positive than negative; exact to 2^24."""
    return sum(jnp.sum(s.astype(jnp.int32)).astype(s.dtype) for s in signs)


def mean_of_sign(
    taus: Sequence[jax.Array], signs: Sequence[jax.Array], weights: jax.Array
) -> list[jax.Array]:
    """The weighted mean of the entries that have the elected sign; 0 where none has.

    Args:
        taus: leaves `[member, ...]`. An entry of 0 has no sign.
        signs: leaves `[...]`, -1 or 1.
        weights: `[member]`, or for each leaf its own.
    """
    weights = [weights] * len(taus) if isinstance(weights, jax.Array) else weights
    means = []
    for tau, sign, w in zip(taus, signs, weights):
        # A NaN agrees with nothing but must not be lost.
        agrees = (jnp.sign(tau) == sign[None]) | jnp.isnan(tau)
        shares = jnp.where(agrees, rows_of(w, tau), 0.0)
        tau = without_absent(jnp.where(agrees, tau, 0.0), w)
        total = jnp.sum(tau * shares, axis=0)
        share = jnp.sum(shares, axis=0)
        means.append(total / jnp.where(share > 0, share, 1.0))
    return means
