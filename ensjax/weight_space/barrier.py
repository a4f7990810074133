"""Loss along paths and planes in weight space: barriers, and which members connect."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.members import num_members
from ensjax.weight_space.coefficients import alphas_of, pair_paths
from ensjax.weight_space.leaves import is_mixed, wide
from ensjax.weight_space.row_scores import RowScore, check_loss
from ensjax.weight_space.sweep import sweep


def barrier(losses: jax.Array, alphas: jax.Array | None = None) -> jax.Array:
    """How far the loss on a path rises above the line between its ends.

        max_a [ L(a) - ((1 - a) L(0) + a L(1)) ]

    Args:
        losses: `[..., alpha]`, from one end to the other.
        alphas: `[alpha]`, from 0 to 1; equally spaced by default.

    Returns:
        `[...]`, at least 0, in the unit of the losses.

    Raises:
        ValueError: if there are fewer than two alphas or they do not go from 0 to 1.

    Source: Frankle et al. 2020, Linear mode connectivity, arXiv:1912.05671; with the
    line instead of the mean of the ends as in Entezari et al. 2022, arXiv:2110.06296,
    definition 1.
    """
    losses = jnp.asarray(losses)
    if losses.ndim < 1 or losses.shape[-1] < 2:
        raise ValueError(f"losses must be [..., alpha]; got shape {losses.shape}.")
    if alphas is None:
        alphas = np.linspace(0, 1, losses.shape[-1], dtype=np.float32)
    if np.shape(alphas) != losses.shape[-1:]:
        raise ValueError(
            f"alphas must be [alpha], {losses.shape[-1]} of them; got shape"
            f" {np.shape(alphas)}."
        )
    if not isinstance(alphas, jax.core.Tracer) and (alphas[0] != 0 or alphas[-1] != 1):
        raise ValueError(
            f"alphas must go from 0 to 1; got {alphas[0]} to {alphas[-1]}."
        )
    alphas = jnp.asarray(alphas, losses.dtype)
    ends = jnp.stack([losses[..., 0], losses[..., -1]], axis=-1)
    line = jnp.tensordot(ends, jnp.stack([1 - alphas, alphas]), axes=1)
    return jnp.max(losses - line, axis=-1)


@dataclasses.dataclass(frozen=True)
class Connectivity:
    """Losses on the paths between all pairs of members.

    Attributes:
        pairs: `[pair, 2]`, the first member below the second.
        alphas: `[alpha]`.
        losses: by dataset, `[pair, alpha]`.
        matrix: by dataset, `[member, member]`, the barrier of each pair; symmetric,
            0 on the diagonal.
    """

    pairs: np.ndarray
    alphas: np.ndarray
    losses: dict[str, np.ndarray]
    matrix: dict[str, np.ndarray]


def connectivity(
    ensemble: Ensemble,
    datasets: dict[str, tuple[Any, Any]],
    *,
    score: str | RowScore = "nll",
    alphas: Sequence[float] | int = 25,
    statistics: Any = None,
    batch_size: int = 512,
    block: int | str = "auto",
) -> Connectivity:
    """Barriers between all pairs of members, in one compiled program.

    Args:
        ensemble: at least two members.
        datasets, statistics, batch_size, block: as for `sweep`.
        score: what is to be small: "nll", "error", "brier" or "squared_error", or a
            function of rows.
        alphas: `[alpha]` from 0 to 1, or how many.

    Raises:
        ValueError: as `sweep` and `barrier`, or if the score is to be large.

    Source: Ainsworth et al. 2023, Git Re-Basin, arXiv:2209.04836 (25 points on a path).
    """
    check_loss(score)
    alphas = np.asarray(alphas_of(alphas), np.float32)
    pairs, rows = pair_paths(ensemble.num_members, alphas)
    found = sweep(
        ensemble,
        rows.reshape(-1, rows.shape[-1]),
        datasets,
        scores={"loss": score} if callable(score) else (score,),
        statistics=statistics,
        batch_size=batch_size,
        block=block,
    ).values["weights"]
    losses = {
        name: next(iter(own.values())).reshape(rows.shape[:2])
        for name, own in found.items()
    }
    matrix = {}
    for name, own in losses.items():
        matrix[name] = np.zeros((ensemble.num_members,) * 2, np.float32)
        matrix[name][pairs[:, 0], pairs[:, 1]] = barrier(own, alphas)
        matrix[name] += matrix[name].T
    return Connectivity(pairs, alphas, losses, matrix)


@dataclasses.dataclass(frozen=True)
class Plane:
    """A grid on the plane through three members.

    Attributes:
        coefficients: `[vertical * horizontal, member]`, of each point of the grid; for
            `sweep`.
        horizontal: `[horizontal]`, distance in weight space from the first member in
            the direction of the second.
        vertical: `[vertical]`, distance from the line through these two, towards the
            third.
        corners: `[3, 2]`, the three members' places.
    """

    coefficients: jax.Array
    horizontal: np.ndarray
    vertical: np.ndarray
    corners: np.ndarray


def plane(
    stacked: Any,
    members: tuple[int, int, int] = (0, 1, 2),
    *,
    size: int = 21,
    margin: float = 0.2,
) -> Plane:
    """The plane through three members, with distances as in weight space.

    Args:
        stacked: leaves `[member, ...]`; only floating ones count.
        members: three different ones, not on one line.
        size: points along each side.
        margin: how far the grid goes beyond the members, as a share of their extent.

    Raises:
        ValueError: if these are not three members, or they lie on one line.

    Source: Garipov et al. 2018, Loss surfaces and mode connectivity, arXiv:1802.10026,
    figure 1 and appendix A.
    """
    count = num_members(stacked)
    if len(set(members)) != 3 or not all(0 <= m < count for m in members):
        raise ValueError(f"members are three of 0 to {count - 1}; got {members}.")
    if size < 2 or not margin >= 0:
        raise ValueError(
            f"size must be at least 2 and margin at least 0; got {size}, {margin}."
        )
    gram = np.zeros((2, 2))
    for leaf in jax.tree.leaves(stacked):
        if is_mixed(leaf):
            three = np.asarray(wide(jnp.stack([leaf[m] for m in members])), np.float64)
            edges = (three[1:] - three[:1]).reshape(2, -1)
            gram += edges @ edges.T
    base = np.sqrt(gram[0, 0])
    along = gram[0, 1] / base if base else 0.0
    height = np.sqrt(max(gram[1, 1] - along**2, 0.0))
    if not base or height <= 1e-6 * base:
        raise ValueError(f"members {members} lie on one line and span no plane.")
    corners = np.array([[0.0, 0.0], [base, 0.0], [along, height]])

    def side(values):
        low, high = values.min(), values.max()
        gap = margin * (high - low)
        return np.linspace(low - gap, high + gap, size)

    horizontal, vertical = side(corners[:, 0]), side(corners[:, 1])
    x, y = np.meshgrid(horizontal, vertical)
    third = y / height
    second = (x - along * third) / base
    rows = np.zeros((size * size, count))
    rows[:, members[0]] = (1 - second - third).ravel()
    rows[:, members[1]] = second.ravel()
    rows[:, members[2]] = third.ravel()
    return Plane(jnp.asarray(rows, jnp.float32), horizontal, vertical, corners)
