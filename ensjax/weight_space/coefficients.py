"""Matrices of mixtures: paths between two members, grids and draws on the simplex.

A mixture is a row of a matrix `[mixture, member]`; its weights are the members' summed
with these coefficients.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_GRID_MIXTURES = 1_000_000


def alpha_path(
    alphas: jax.Array | Sequence[float] | int = 11,
    *,
    num_members: int = 2,
    ends: tuple[int, int] = (0, 1),
) -> jax.Array:
    """Mixtures on the line between two members: (1 - alpha) of one, alpha of the other.

    Args:
        alphas: `[mixture]`, or how many, equally spaced from 0 to 1.
        num_members: columns of the matrix.
        ends: the members at alpha = 0 and alpha = 1.

    Returns:
        `[mixture, member]`, float32.

    Raises:
        ValueError: if the ends are not two of the members, or fewer than two alphas are
            asked for.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models,
    arXiv:2109.01903, equation 1.
    """
    alphas = jnp.asarray(alphas_of(alphas), jnp.float32)
    if alphas.ndim != 1:
        raise ValueError(f"alphas must be [mixture]; got shape {alphas.shape}.")
    first, second = _ends(ends, num_members)
    rows = jnp.zeros((alphas.shape[0], num_members), jnp.float32)
    return rows.at[:, first].set(1 - alphas).at[:, second].set(alphas)


def alphas_of(alphas: jax.Array | Sequence[float] | int) -> Any:
    """Alphas as they are given or, of their number, equally spaced from 0 to 1.

    Raises:
        ValueError: if they are fewer than two.
    """
    try:
        number = operator.index(alphas)  # also an integer of NumPy
    except TypeError:
        return alphas
    if number < 2:
        raise ValueError(f"a path has at least its two ends; got {number} alphas.")
    return np.linspace(0.0, 1.0, number, dtype=np.float32)


def pair_paths(
    num_members: int, alphas: jax.Array | Sequence[float] | int = 11
) -> tuple[np.ndarray, jax.Array]:
    """The paths between all pairs of members.

    Args:
        num_members: at least 2.
        alphas: as for `alpha_path`.

    Returns:
        The pairs `[pair, 2]`, first member below the second, and the coefficients
        `[pair, alpha, member]`.

    Raises:
        ValueError: if there are fewer than two members.
    """
    if num_members < 2:
        raise ValueError(f"pairs need two members; got {num_members}.")
    pairs = np.array(list(itertools.combinations(range(num_members), 2)))
    path = alpha_path(alphas)
    ends = jnp.asarray(np.eye(num_members, dtype=np.float32)[pairs])
    return pairs, jnp.einsum("ae,pem->pam", path, ends, precision="highest")


def simplex_grid(num_members: int, num_parts: int) -> jax.Array:
    """All mixtures whose coefficients are multiples of 1 / `num_parts` and sum to 1.

    Args:
        num_members: M.
        num_parts: n; there are (n + M - 1)! / (n! (M - 1)!) mixtures.

    Returns:
        `[mixture, member]`, float32, with the members alone among them.

    Raises:
        ValueError: if a number is below 1 or there are more than a million mixtures.
    """
    if num_members < 1 or num_parts < 1:
        raise ValueError(
            "num_members and num_parts must be at least 1; got"
            f" {num_members} and {num_parts}."
        )
    count = math.comb(num_parts + num_members - 1, num_parts)
    if count > MAX_GRID_MIXTURES:
        raise ValueError(
            f"a grid of {num_parts} parts over {num_members} members has {count:,}"
            f" mixtures; at most {MAX_GRID_MIXTURES:,} are made. Use simplex_draws."
        )
    # Bars among stars: the gaps between the bars are the parts of the members.
    places = itertools.combinations(range(num_parts + num_members - 1), num_members - 1)
    bars = np.array(list(places), np.int64).reshape(count, num_members - 1)
    edge = np.full((count, 1), -1), np.full((count, 1), num_parts + num_members - 1)
    parts = np.diff(np.concatenate([edge[0], bars, edge[1]], axis=1), axis=1) - 1
    return jnp.asarray(parts / num_parts, jnp.float32)


def simplex_draws(
    key: jax.Array, num_mixtures: int, num_members: int, *, concentration: float = 1.0
) -> jax.Array:
    """Mixtures drawn from a symmetric Dirichlet distribution, `[mixture, member]`.

    Args:
        key: a random key.
        num_mixtures: how many.
        num_members: M.
        concentration: 1 is uniform on the simplex; below, a few members prevail.

    Raises:
        ValueError: if a number is below 1 or `concentration` is not positive.
    """
    if num_mixtures < 1 or num_members < 1 or not concentration > 0:
        raise ValueError(
            "num_mixtures and num_members must be at least 1 and concentration above"
            f" 0; got {num_mixtures}, {num_members} and {concentration}."
        )
    alpha = jnp.full((num_members,), concentration, jnp.float32)
    return jax.random.dirichlet(key, alpha, (num_mixtures,), jnp.float32)


def _ends(ends, num_members):
    first, second = ends
    if first == second or not all(0 <= end < num_members for end in ends):
        raise ValueError(
            f"ends are two of the members 0 to {num_members - 1}; got {tuple(ends)}."
        )
    return first, second
