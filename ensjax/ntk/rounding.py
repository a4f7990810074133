"""How an ensemble's mean becomes bits: a threshold for each row and output.

A bit is 1 where the mean is above its threshold. At the sign rule it is a hair above
0; at the midpoint rule half-way between what the kernel says for a 1 and for a 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ntk.kernels import check_finite
from ensjax.ntk.permutations import check_bits

# A training row's zero bits have mean 0 and variance 0: float noise must not decide.
SIGN_TOLERANCE = 1e-6


def sign_thresholds(tolerance: float = SIGN_TOLERANCE) -> np.ndarray:
    """The threshold of the sign rule, float64 `[1, 1]` for all rows and outputs.

    Raises:
        ValueError: if the tolerance is negative.

    Source: Giapitzakis et al. 2025, arXiv:2502.16763, whose code rounds at 0 exactly;
    the tolerance is ours.
    """
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is at least 0; got {tolerance}.")
    return np.full((1, 1), tolerance)


def midpoint_thresholds(
    weights: np.ndarray, inputs: np.ndarray, train_targets: np.ndarray
) -> np.ndarray:
    """Half-way between the mean of a 1 and the mean of a 0, from the kernel alone.

    With `weights` w (mean = w Y), f1 the smallest weight of a rule that matches and f0
    the largest of one that does not, a bit that r rules can set has mean f1 + (r - 1)
    f0 if one of them matches and r f0 if none does; the threshold is half-way. For a
    permutation r = 1 and the threshold (f0 + f1) / 2 depends on k and the number of
    ones. Nothing of the right answer enters.

    Args:
        weights: of the predictor, T(x, X) T(X, X)^-1, `[row, feature]`.
        inputs: zeros and ones, `[row, feature]`.
        train_targets: zeros and ones, `[feature, output]`.

    Returns:
        float64 `[row, output]`. Rows without any one have thresholds above all zeros.

    Raises:
        ValueError: if shapes do not fit, or inputs or targets are not binary.
    """
    weights, inputs = np.asarray(weights, np.float64), np.asarray(inputs)
    train_targets = np.asarray(train_targets)
    if weights.shape != inputs.shape or len(train_targets) != inputs.shape[1]:
        raise ValueError(
            "weights and inputs are [row, feature] and train_targets [feature, output];"
            f" got {weights.shape}, {inputs.shape} and {train_targets.shape}."
        )
    check_bits(inputs, "inputs")
    check_bits(train_targets, "train_targets")
    is_one = inputs > 0
    high = np.where(is_one, weights, np.inf).min(axis=1, keepdims=True)
    low = np.where(is_one, -np.inf, weights).max(axis=1, keepdims=True)
    # An input of ones alone has no zero to be told from, one of zeros alone no one.
    low = np.where(np.isfinite(low), low, 0.0)
    high = np.where(np.isfinite(high), high, 1.0)
    rules = train_targets.sum(axis=0, keepdims=True).astype(np.float64)
    return (high + (2 * rules - 1) * low) / 2


def round_bits(mean: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Bits of means, booleans `[..., row, output]`.

    Args:
        mean: `[..., row, output]`.
        thresholds: `[row or 1, output or 1]`.
    """
    mean = jnp.asarray(mean)
    thresholds = jnp.asarray(thresholds, mean.dtype)
    return mean > thresholds.reshape((1,) * (mean.ndim - 2) + thresholds.shape)


def gaps(mean: np.ndarray, targets: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How far each mean lies on the right side of its threshold, `[..., row, output]`.

    Positive where rounding the mean gives the target; float64.

    Args:
        mean: `[..., row, output]`, with axes in front for several predictors.
        targets: what is right, booleans or zeros and ones, `[row, output]`.
        thresholds: broadcast against the means.

    Raises:
        ValueError: if means and targets differ in rows or outputs, a mean is not finite
            or a threshold is NaN, or targets are no bits; names the row.
    """
    mean, targets = np.asarray(mean, np.float64), np.asarray(targets)
    if mean.shape[-2:] != targets.shape or targets.ndim != 2:
        raise ValueError(
            "mean is [..., row, output] and targets [row, output]; got"
            f" {mean.shape} and {targets.shape}."
        )
    check_bits(targets, "targets")
    if not np.isfinite(mean).all():
        check_finite(np.moveaxis(mean, -2, 0), "mean")
    if np.isnan(thresholds).any():
        raise ValueError("thresholds must be numbers; got NaN.")
    return np.where(targets > 0, 1.0, -1.0) * (mean - np.asarray(thresholds))
