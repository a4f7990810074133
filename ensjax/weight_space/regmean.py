"""RegMean: weights whose outputs are nearest to every member's on its own inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.members import num_members
from ensjax.weight_space.ensembles import takes_ensembles
from ensjax.weight_space.leaves import check_weights
from ensjax.weight_space.vectors import (
    map_together,
    rows_of,
    weighted_sum,
    without_absent,
)


@takes_ensembles()
def regmean(
    stacked: Any,
    grams: Mapping[str, Any],
    *,
    alpha: Any = 0.9,
    weights: Any = None,
    joint_bias: bool = True,
    ridge: Any = 1e-6,
    keep: int = 0,
) -> Any:
    """The linear maps that best reproduce the members' on their own inputs.

        W = (sum_m w_m H_m)^-1 sum_m w_m H_m W_m
        H_m = alpha G_m + (1 - alpha) diag(G_m) + ridge I

    with `G_m` the mean of `x x^T` over what enters the layer in member m. Leaves
    without a Gram matrix are averaged.

    Args:
        stacked: leaves `[member, ...]` or an `Ensemble`, such as `ensemble.params`.
        grams: of `input_grams`: by the dotted name of each kernel,
            `[member, group, entry + 1, entry + 1]`.
        alpha: how much of the correlations between inputs is kept: 1 is the least
            squares solution, 0 weighs each input by itself. 0.9 in the paper. May be
            traced.
        weights: `[member]`, at least 0; equal by default. A weight of 0 removes a
            member, also one that is not finite.
        joint_bias: whether a layer's bias is solved for with its kernel, as the weight
            of a constant input; else it is averaged, as in the paper.
        ridge: added to the diagonal of every member's matrix, on both sides, so that
            what never has an input is averaged. FusionBench adds it on one side, which
            shrinks such weights to 0. May be traced.
        keep: the member whose leaves are taken where they are not floating.

    Returns:
        Leaves `[...]` of the types of `stacked`. The equations are solved in float32
        for the difference to the mean, which is exact where members or matrices are
        equal.

    Raises:
        ValueError: if a Gram matrix belongs to no kernel or has another shape; names
            it.

    Source: Jin et al. 2023, arXiv:2212.09849 (RegMean).
    """
    weights = check_weights(weights, stacked)
    weights = weights / jnp.sum(weights)
    members = num_members(stacked)

    def merged(names, rows):
        leaves = dict(zip(names, rows))
        means = {name: weighted_sum(x, weights) for name, x in leaves.items()}
        for name, gram in grams.items():
            if name not in leaves:
                raise ValueError(
                    f"there is a Gram matrix of {name}, which is no leaf of the stack;"
                    f" it has {', '.join(names[:8])}."
                )
            kernel = leaves[name]
            bias_name = name[: -len("kernel")] + "bias"
            has_bias = joint_bias and name.endswith("kernel") and bias_name in leaves
            groups = _groups(name, kernel, gram, members)
            maps = _as_matrices(kernel, groups)
            gram = jnp.asarray(gram, kernel.dtype)
            if has_bias:
                bias = leaves[bias_name][:, None, :]  # [member, 1, out]
                maps = jnp.concatenate([maps, _as_matrices(bias, groups)], axis=2)
            else:
                gram = gram[..., :-1, :-1]
            solved = _solve(maps, gram, weights, alpha, ridge)
            if has_bias:
                means[bias_name] = solved[:, -1].reshape(means[bias_name].shape)
                solved = solved[:, :-1]
            solved = jnp.moveaxis(solved, 0, 1)  # [entry, group, out / group]
            means[name] = solved.reshape(kernel.shape[1:])
        return [means[name] for name in names]

    return map_together(merged, stacked, keep=keep)


def _groups(name, kernel, gram, members):
    """How many groups a Gram matrix has, once it is known to fit the kernel."""
    entries = int(np.prod(kernel.shape[1:-1]))
    shape = np.shape(gram)
    fits = len(shape) == 4 and shape[0] == members
    if not fits or shape[2:] != (entries + 1,) * 2 or kernel.shape[-1] % shape[1]:
        raise ValueError(
            f"the Gram matrix of {name} must be [member, group, {entries + 1},"
            f" {entries + 1}] with {members} members; got shape {shape}."
        )
    return shape[1]


def _as_matrices(kernel, groups):
    """A kernel `[member, *tap, in, out]` as `[member, group, tap * in, out / group]`.

    Output channels lie group by group.
    """
    members, outputs = kernel.shape[0], kernel.shape[-1]
    matrices = kernel.reshape(members, -1, groups, outputs // groups)
    return jnp.swapaxes(matrices, 1, 2)


def _solve(maps, gram, weights, alpha, ridge):
    """The merged maps `[group, entry, out]` of `[member, group, entry, out]`."""
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    kept = alpha + (1.0 - alpha) * identity  # 1 on the diagonal, alpha beside it
    maps, gram = without_absent(maps, weights), without_absent(gram, weights)
    matrices = gram * kept[None, None] + ridge * identity[None, None]
    matrices = matrices * rows_of(weights, matrices)
    mean = weighted_sum(maps, weights)
    right = jnp.einsum(
        "mgij,mgjk->gik", matrices, maps - mean[None], precision="highest"
    )
    return mean + _solve_symmetric(jnp.sum(matrices, axis=0), right)


def _solve_symmetric(matrices, right):
    """Solutions `[group, entry, out]` of symmetric systems, on a CPU one by one.

    There a batched factorisation (jaxlib 0.10) waits for the threads of the pool that
    it runs in. As many at once as there are threads wait forever: seen with a grid by
    `vmap` over three layers on two cores.
    """

    def product(x):
        return jnp.einsum("gij,gjk->gik", matrices, x, precision="highest")

    def solve(_, b):
        return jax.lax.platform_dependent(
            matrices, b, cpu=_in_turn, default=jnp.linalg.solve
        )

    return jax.lax.custom_linear_solve(product, right, solve, symmetric=True)


def _in_turn(matrices, right):
    return jax.lax.map(lambda pair: _solve_one(*pair), (matrices, right))


@jax.custom_batching.sequential_vmap
def _solve_one(matrix, right):
    return jnp.linalg.solve(matrix, right)
