"""A penalty on quantiles that cross, or nearly do, and the margins it may keep.

A margin is a matrix `[level, level]`: how far the quantile of a higher level should lie
above that of a lower one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ops.limits import at_least
from ensjax.scores.rows import floating


def crossing_penalty(
    quantiles: jax.Array, margin: jax.Array | float = 0.0
) -> jax.Array:
    """Mean over pairs of levels of how far their quantiles are out of order, `[...]`.

        2 / (m (m - 1)) sum_{a < b} max(0, q_a - q_b + margin_ab)

    No targets are needed, so that rows without them may join.

    Args:
        quantiles: `[..., level]`, at least two levels.
        margin: a number, or `[level, level]`, of which the part above the diagonal
            counts. In target units.

    Raises:
        ValueError: if a shape does not fit.

    Source: Fakoor et al. 2023, arXiv:2103.00083, section 3.
    """
    quantiles = floating(quantiles)
    size = quantiles.shape[-1] if quantiles.ndim else 0
    if size < 2:
        raise ValueError(
            "quantiles must be [..., level] of two levels or more; got shape"
            f" {quantiles.shape}."
        )
    margin = jnp.asarray(margin, quantiles.dtype)
    if margin.shape not in ((), (size, size)):
        raise ValueError(
            f"margin must be a number or [level, level] = {(size, size)}; got shape"
            f" {margin.shape}."
        )
    margin = jnp.broadcast_to(margin, (size, size))
    fall = quantiles[..., :, None] - quantiles[..., None, :]
    fall = fall + margin.reshape((1,) * (quantiles.ndim - 1) + margin.shape)
    lower = np.triu(np.ones((size, size), np.float32), 1)
    lower = lower.reshape((1,) * (quantiles.ndim - 1) + lower.shape)
    total = jnp.sum(at_least(fall, 0.0) * lower, axis=(-2, -1))
    return total / (size * (size - 1) / 2)


def constant_margin(num_levels: int, margin: float = 1e-3) -> np.ndarray:
    """The same margin for all pairs, `[level, level]`."""
    return np.full((num_levels, num_levels), margin, np.float32)


def adaptive_margin(
    quantiles: np.ndarray,
    targets: np.ndarray,
    *,
    levels: np.ndarray,
    scale: float = 1e-2,
) -> np.ndarray:
    """Margins in proportion to the spread of the residuals, `[level, level]` ("adapt").

        margin_ab = scale max(0, d_b - d_a),   d = quantiles of y - median of medians

    Args:
        quantiles: of the base models on training rows, `[member, batch, level]`.
        targets: `[batch]`.
        levels: `[level]`.
        scale: a small number, 1e-4 to 1e-1 in the paper.

    Raises:
        ValueError: if a shape does not fit.
    """
    quantiles, targets = np.asarray(quantiles, float), np.asarray(targets, float)
    levels = np.asarray(levels, float)
    if quantiles.ndim != 3 or quantiles.shape[1:] != (len(targets), len(levels)):
        raise ValueError(
            f"quantiles must be [member, batch, level] = [., {len(targets)},"
            f" {len(levels)}]; got shape {quantiles.shape}."
        )
    medians = quantiles[:, :, np.argmin(np.abs(levels - 0.5))]
    residual = targets - np.median(medians, axis=0)
    return _differences(np.quantile(residual, levels), scale)


def proportional_margin(levels: np.ndarray, scale: float = 0.01) -> np.ndarray:
    """Margins in proportion to the distance of levels, `[level, level]` ("vec").

    margin_ab = scale (level_b - level_a) for b above a.
    """
    return _differences(np.asarray(levels, float), scale)


def _differences(d, scale):
    return (scale * np.maximum(d[None, :] - d[:, None], 0.0)).astype(np.float32)
