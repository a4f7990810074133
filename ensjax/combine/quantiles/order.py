"""Order among values that must not decrease, such as the quantiles of one row.

Predicted quantiles of rising levels may cross. Sorting and isotonic projection put them
in order, and neither ever raises the sum of the pinball losses of a row, whatever the
target is.
"""

import functools

import jax
import jax.numpy as jnp

from ensjax.scores.rows import floating, sort_or_nan

ORDERS = ("sort", "isotonic", "cummax", "none")

# Means of all runs of a row are held at once: at most so many numbers at a time.
_MAX_MEANS = 2**22


def isotonic(
    values: jax.Array,
    weights: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The nearest non-decreasing values along the last axis, in weighted squares.

        q*_i = max_{a <= i} min_{b >= i} mean(q_a ... q_b)

    Values in order stay as they are, others become means of neighbours. The derivative
    is that of these means: a cotangent is averaged over each block of equal results.
    Means of m^2 runs are formed for a row of m values, of as many rows at a time as
    4 million means allow.

    Args:
        values: `[..., level]`.
        weights: `[level]` or `[..., level]`, non-negative; None: 1 each. They have no
            derivative here.
        mask: `[level]` or `[..., level]`; a False entry counts as removed, and its
            result is some value between its neighbours'.

    Returns:
        `[..., level]`, never decreasing. A row is NaN if a value that counts is NaN, a
        weight is negative, or no weight is left.

    Raises:
        ValueError: if a shape does not fit.

    Source: the min-max form of isotonic regression, Barlow et al. 1972, section 1.4;
    for quantiles Fakoor et al. 2023, arXiv:2103.00083, section 3.
    """
    values = floating(values)
    if values.ndim < 1 or not values.shape[-1]:
        raise ValueError(f"values must be [..., level]; got shape {values.shape}.")
    weights = 1.0 if weights is None else _same_rows("weights", weights, values)
    weight = jnp.broadcast_to(jnp.asarray(weights, values.dtype), values.shape)
    if mask is not None:
        weight = jnp.where(_same_rows("mask", mask, values).astype(bool), weight, 0.0)
    weight = jax.lax.stop_gradient(weight)
    undefined = jnp.any((weight != 0) & jnp.isnan(values), axis=-1)
    undefined |= jnp.any(weight < 0, axis=-1) | (jnp.sum(weight, axis=-1) == 0)
    known = jnp.where((weight == 0) | undefined[..., None], 0.0, values)
    safe = jnp.where(undefined[..., None], 1.0, weight)
    return jnp.where(undefined[..., None], jnp.nan, _project(known, safe))


def order_quantiles(
    quantiles: jax.Array,
    order: str = "sort",
    *,
    levels: jax.Array | None = None,
) -> jax.Array:
    """Quantiles of rising levels that do not cross, each row by itself.

    Args:
        quantiles: `[..., level]`.
        order: "sort"; "isotonic" (see `isotonic`); "cummax": a running maximum upwards
            and a running minimum downwards from the median, which alone may raise the
            pinball loss; or "none", which changes nothing.
        levels: `[level]`, rising; only "cummax" looks for the median among them.
            None: the middle one is the median.

    Returns:
        `[..., level]`. A row with a NaN is NaN, but for "none".

    Raises:
        ValueError: for an unknown order or a shape that does not fit.

    Source: Fakoor et al. 2023, arXiv:2103.00083, section 3. Their public code sorts
    softly, which shrinks the outer quantiles; this sorts.
    """
    quantiles = floating(quantiles)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}.")
    if order == "sort":
        return sort_or_nan(quantiles)
    if order == "isotonic":
        return isotonic(quantiles)
    if order == "none":
        return quantiles
    broken = jnp.any(jnp.isnan(quantiles), axis=-1, keepdims=True)
    return jnp.where(broken, jnp.nan, _from_median(quantiles, levels))


def _from_median(quantiles, levels):
    size = quantiles.shape[-1]
    if levels is None:
        median = jnp.asarray(size // 2)
    else:
        levels = floating(levels)
        if levels.shape != (size,):
            raise ValueError(
                f"levels must be [level] = [{size}]; got shape {levels.shape}."
            )
        median = jnp.argmin(jnp.abs(levels - 0.5))
    place = jnp.arange(size).reshape((1,) * (quantiles.ndim - 1) + (size,))
    axis = quantiles.ndim - 1
    above = jax.lax.cummax(jnp.where(place >= median, quantiles, -jnp.inf), axis=axis)
    below = jax.lax.cummin(
        jnp.where(place <= median, quantiles, jnp.inf), axis=axis, reverse=True
    )
    return jnp.where(place >= median, above, below)


def _same_rows(name, values, like):
    values = jnp.asarray(values)
    if values.shape not in (like.shape[-1:], like.shape):
        raise ValueError(
            f"{name} must be [level] = {like.shape[-1:]} or of the shape of values,"
            f" {like.shape}; got {values.shape}."
        )
    return jnp.broadcast_to(
        values.reshape((1,) * (like.ndim - values.ndim) + values.shape), like.shape
    )


@jax.custom_vjp
def _project(values, weight):
    return _over_rows(_project_row, values, weight)


def _forward(values, weight):
    result = _project(values, weight)
    return result, (result, weight)


def _backward(kept, cotangent):
    result, weight = kept
    return _over_rows(_average_row, cotangent, result, weight), jnp.zeros_like(weight)


_project.defvjp(_forward, _backward)


def _over_rows(one_row, *arrays):
    """`one_row` of `[level]` arrays, over all rows, a block of them at a time."""
    shape = arrays[0].shape
    size = shape[-1]
    flat = [array.reshape(-1, size) for array in arrays]
    rows = max(1, _MAX_MEANS // size**2)
    if len(flat[0]) <= rows:
        return jax.vmap(one_row)(*flat).reshape(shape)
    in_blocks = functools.partial(jax.lax.map, batch_size=rows)
    return in_blocks(lambda row: one_row(*row), tuple(flat)).reshape(shape)


def _project_row(values, weight):
    place = jnp.arange(len(values))
    runs = place[None] >= place[:, None]  # [first, last] of a run
    # Sums begin at each first entry: differences of one running sum would cancel, and
    # the mean of a single value would not be the value.
    weights = jnp.where(runs, weight[None], 0.0)
    total = jnp.cumsum(weights, axis=1)
    sums = jnp.cumsum(weights * values[None], axis=1)
    means = jnp.where(total > 0, sums / jnp.where(total > 0, total, 1.0), jnp.inf)
    least = jax.lax.cummin(means, axis=1, reverse=True)
    least = jnp.where(runs & (least < jnp.inf), least, -jnp.inf)
    return jnp.max(least, axis=0)


def _average_row(cotangent, result, weight):
    starts = jnp.concatenate([jnp.zeros(1, bool), result[1:] > result[:-1]])
    block = jnp.cumsum(starts)
    same = (block[:, None] == block[None]).astype(result.dtype)
    total = jnp.matmul(same, weight, precision="highest")
    share = weight / jnp.where(total > 0, total, 1.0)
    return share * jnp.matmul(same, cotangent, precision="highest")
