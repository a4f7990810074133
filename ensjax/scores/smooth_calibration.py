"""Calibration without bins: the smooth calibration error."""

import jax
import jax.numpy as jnp

from ensjax.scores.calibration import top_label
from ensjax.scores.rows import over_rows, weigh

# Each bisection halves the range of sigma, which is 1: 30 leave 1e-9 of it.
_NUM_BISECTIONS = 30


def smooth_ece(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    num_points: int = 1024,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Smooth calibration error (SmECE) of the top label, `[...]` (0-1).

        SmECE = the sigma with E_sigma = sigma,
        E_sigma = integral over t in [0, 1] of
                  |mean_n (correct_n - f_n) K_sigma(t, f_n)|

    f is the confidence and K_sigma the Gaussian kernel reflected at 0 and 1. E falls as
    sigma grows, so there is one such sigma. Unlike an error of bins it is continuous in
    the predictions, and has no number of bins to choose.

    Args:
        log_probs: log-probabilities (or logits), `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`; out of range gives NaN.
        num_points: cells of the grid that confidences are split between, at least 2;
            the error is about 1 / num_points^2 unless sigma is as small as a cell.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[...]`.

    Raises:
        ValueError: if a shape does not fit or `num_points` is below 2.
        TypeError: if `labels` are not integers.

    Source: Blasiok and Nakkiran 2023, arXiv:2309.12248, definitions 6 and 7.
    """
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2; got {num_points}.")
    confidence, correct, weight = top_label(log_probs, labels, sample_weight)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    excess = weigh(correct - confidence, weight) / total
    confidence = jnp.where(weight == 0, 0.5, confidence)
    return over_rows(lambda f, r: _fixed_point(f, r, num_points))(confidence, excess)


def _fixed_point(confidence, excess, num_points):
    # The reflected Gaussian is the heat kernel of an insulated rod, whose modes are
    # cosines: smoothing multiplies the coefficients of a cosine transform.
    modes = jax.scipy.fft.dct(_on_grid(confidence, excess, num_points))
    decay = (jnp.pi * jnp.arange(num_points)) ** 2 / 2

    def error(sigma):
        smooth = jax.scipy.fft.idct(modes * jnp.exp(-decay * sigma**2))
        return jnp.sum(jnp.abs(smooth))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        is_above = error(middle) > middle
        return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

    ends = (jnp.zeros((), modes.dtype), jnp.ones((), modes.dtype))
    low, high = jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, ends)
    # Comparisons with NaN are False and would pass for an error of 0.
    undefined = jnp.any(jnp.isnan(excess))
    return jnp.where(undefined, jnp.nan, (low + high) / 2)


def _on_grid(confidence, excess, num_points):
    """Each row's excess, split between the two nearest of the cells' centres."""
    place = confidence * num_points - 0.5
    below = jnp.floor(place)
    share = place - below
    cells = below.astype(jnp.int32)
    grid = jnp.zeros(num_points, excess.dtype)
    # Beyond the outermost centre lies its own mirror image.
    grid = grid.at[jnp.clip(cells, 0, num_points - 1)].add((1 - share) * excess)
    return grid.at[jnp.clip(cells + 1, 0, num_points - 1)].add(share * excess)
