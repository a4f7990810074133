"""Weighted means of members' weights: of a stack, and of members that come in turn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import num_members
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.leaves import (
    check_base,
    check_keep,
    check_weights,
    is_mixed,
    leaf_name,
    map_leaves,
    wide,
)
from ensjax.weight_space.vectors import weighted_sum


@takes_ensembles()
def average(
    stacked: Any, *, weights: Any = None, normalize: bool = True, keep: int = 0
) -> Any:
    """The mean of members' weights, weighted if asked: a uniform or linear soup.

        theta = sum_m w_m theta_m / sum_m w_m

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`.
        weights: `[member]`, at least 0; equal by default. A weight of 0 removes a
            member, also one that is not finite.
        normalize: whether to divide by the sum of the weights. mergekit's `linear` does
            so by default; without it, weights of sum 1 give the same.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]` of the types of `stacked`; summed in float32.

    Raises:
        ValueError: if there is not one weight for each member, they are negative, or
            `keep` is no member.

    Example:
        >>> stacked = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
        >>> average(stacked, weights=[1.0, 3.0])["w"]
        Array([2.5, 3.5], dtype=float32)

    Source: Wortsman et al. 2022, arXiv:2203.05482 (uniform soup).
    """
    weights = check_weights(weights, stacked)
    check_keep(keep, num_members(stacked))
    scale = 1.0 / jnp.sum(weights) if normalize else jnp.float32(1.0)

    def mean(rows):
        return weighted_sum(rows, weights * scale)

    return map_leaves(mean, stacked, keep=keep)


class RunningAverage(NamedTuple):
    """A weighted mean of members that are added one at a time.

    For more members than fit in memory: only sums are held. After the last member
    `mean()` equals `average` of the stack; with weights that are trees it equals
    `fisher_merge`.

    Attributes:
        total: `sum_m w_m theta_m`, float32 where leaves are floating; the first
            member's leaves where they are not.
        weight: `sum_m w_m`, for each leaf.

    Example:
        >>> running = RunningAverage.of({"w": jnp.array([1.0, 2.0])})
        >>> running = running.add({"w": jnp.array([3.0, 4.0])}, weight=3.0)
        >>> running.mean(like={"w": jnp.zeros(2)})["w"]
        Array([2.5, 3.5], dtype=float32)
    """

    total: Any
    weight: Any

    @classmethod
    def of(cls, member: Any, weight: Any = 1.0) -> "RunningAverage":
        """The mean of a first member.

        Args:
            member: leaves `[...]`.
            weight: a number, or a tree of the member's structure with a weight for
                each entry. A weight of 0 removes what it weighs, also what is not
                finite.
        """
        weights = _weights_like(member, weight)
        total = jax.tree.map(
            lambda x, w: _times(x, w) if is_mixed(x) else jnp.asarray(x),
            member,
            weights,
        )
        return cls(total, weights)

    def add(self, member: Any, weight: Any = 1.0) -> "RunningAverage":
        """The mean with one more member; arguments as of `of`.

        Raises:
            ValueError: if the member's shapes are not those of the first; names the
                leaf.
        """
        check_base(jax.tree.map(lambda x: x[None], self.total), member)
        weights = _weights_like(member, weight)
        total = jax.tree.map(
            lambda t, x, w: t + _times(x, w) if is_mixed(x) else t,
            self.total,
            member,
            weights,
        )
        return type(self)(total, jax.tree.map(jnp.add, self.weight, weights))

    def mean(self, like: Any) -> Any:
        """The mean of all members so far, in the types of the tree `like`."""
        return jax.tree.map(
            lambda t, w, x: (t / w).astype(x.dtype) if is_mixed(x) else t,
            self.total,
            self.weight,
            like,
        )


def _times(leaf, weight):
    leaf = wide(leaf)
    return jnp.where((weight == 0) & ~jnp.isfinite(leaf), 0, leaf) * weight


def _weights_like(member, weight):
    """A float32 weight for each leaf: scalar, or of its shape."""
    if jax.tree.structure(weight) != jax.tree.structure(member):
        if np.shape(weight) != ():
            raise ValueError(
                "weight must be a number or a tree of the member's structure; got shape"
                f" {np.shape(weight)}."
            )
        scalar = jnp.asarray(weight, jnp.float32)
        return jax.tree.map(lambda x: scalar, member)
    for (path, w), x in zip(jax.tree.leaves_with_path(weight), jax.tree.leaves(member)):
        if np.shape(w) not in ((), np.shape(x)):
            raise ValueError(
                f"the weight of {leaf_name(path)} must be a number or of shape"
                f" {np.shape(x)}; got {np.shape(w)}."
            )
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weight)
