"""Model stock: how far to go from the base to the mean, read off the angles."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ensjax.members import num_members
from ensjax.ops.limits import between
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.vectors import Gram, check_scope, inner, lengths, map_together


@takes_ensembles()
def model_stock(stacked: Any, base: Any, *, scope: str = "leaf") -> Any:
    """Between the base and the members' mean, nearer the mean the more they agree.

        theta = t mean_m theta_m + (1 - t) theta_0,  t = N c / (1 + (N - 1) c)

    with `c` the mean cosine of the angles between the task vectors
    `theta_m - theta_0` of all pairs of the N members.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, at least two members,
            fine-tuned from `base`.
        base: one member, a tree, module or `Ensemble` of one.
        scope: "leaf" (one angle for each leaf, as in mergekit), "output" (one for the
            weights of each unit, mergekit's `filter_wise`), "input" or "global".

    Returns:
        Leaves `[...]`; those that are not floating are the base's.

    Raises:
        ValueError: if there are fewer than two members, the base is of another shape,
            or the scope is unknown.

    Source: Jang et al. 2024, arXiv:2403.19522, for two members. For more it
    has one angle for all pairs; the mean of their cosines is how mergekit reads it
    (FusionBench takes the mean angle). A task vector of length 0 counts with cosine 0.
    A negative `c` would lead away from the members: `t` is clipped to [0, 1], which
    mergekit does not do.
    """
    check_scope(scope)
    members = num_members(stacked)
    if members < 2:
        raise ValueError(
            f"model_stock needs the angle between at least two members; got {members}."
        )

    def merged(_, rows, origin):
        taus = [x - o[None] for x, o in zip(rows, origin)]
        return [o + tau for o, tau in zip(origin, shrunken_mean(taus, scope))]

    return map_together(merged, stacked, base)


def shrunken_mean(taus: Sequence[jax.Array], scope: str | Gram) -> list[jax.Array]:
    """`t` times the mean of task vectors, leaves `[member, ...]` of two or more."""
    members = taus[0].shape[0]
    norms, has_direction = lengths(taus, scope, lead=1)
    units = [
        jnp.where(h, tau / n, 0.0) for tau, n, h in zip(taus, norms, has_direction)
    ]
    # The cosines of all pairs sum to (|sum u|^2 - sum |u|^2) / 2: no member has to
    # meet another one.
    sums = [jnp.sum(u, axis=0) for u in units]
    together = inner(sums, sums, scope, lead=0)
    alone = [jnp.sum(h, axis=0, dtype=tau.dtype) for h, tau in zip(has_direction, taus)]
    pairs = members * (members - 1)
    cosines = [(s - a) / pairs for s, a in zip(together, alone)]
    return [
        shrinkage(c, members) * jnp.mean(tau, axis=0) for c, tau in zip(cosines, taus)
    ]


def shrinkage(cosine: Any, num_members: int) -> Any:
    """`t = N c / (1 + (N - 1) c)`, clipped to [0, 1]: 0 for `c <= 0`, 1 for `c = 1`."""
    cosine = between(cosine, 0.0, 1.0)
    return num_members * cosine / (1.0 + (num_members - 1) * cosine)
