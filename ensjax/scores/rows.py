"""The rows of a prediction: checks that every score shares, and means over rows.

A row is one example. Scores accept leading axes before it, so that the predictions of
all members `[member, batch, class]` are scored in one call, against one `[batch]` of
labels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.member_arrays import wide_labels
from ensjax.predictions import log_probs as normalize
from ensjax.predictions import votes
from ensjax.scores.ties import share_bin

_ADDED_IN_A_ROW = 128  # numbers; errors grow with it


def check_rows(
    log_probs: jax.Array,
    labels: jax.Array,
    sample_weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities, labels and weights of the same rows, checked and broadcast.

    Args:
        log_probs: log-probabilities or logits, `[..., batch, class]`. Rows are
            normalised, which leaves log-probabilities as they are.
        labels: integers, `[batch]` or with the same leading axes.
        sample_weight: non-negative, `[batch]` or with the same leading axes; a bool
            mask works too. None means 1 for every row.

    Returns:
        `log_probs [..., batch, class]` (nats, float32), `labels [..., batch]` and
        `sample_weight [..., batch]` (float32, NaN where it was negative).

    Raises:
        ValueError: if a shape does not fit, or there is no row.
        TypeError: if `labels` are not integers.
    """
    log_probs = normalize(log_probs)
    if log_probs.ndim < 2:
        raise ValueError(
            f"log_probs must be [..., batch, class]; got shape {log_probs.shape}."
            " One example becomes a batch of one with log_probs[None]."
        )
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels must be integers, one class index per row; got {labels.dtype} of"
            f" shape {labels.shape}. One-hot labels: labels.argmax(-1)."
        )
    rows = log_probs.shape[:-1]
    labels = broadcast_rows("labels", wide_labels(labels), rows)
    return log_probs, labels, row_weights(sample_weight, rows, log_probs.dtype)


def broadcast_rows(name: str, values: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    """`values`, whose axes are the last ones of `rows`, repeated over the leading axes.

    Raises:
        ValueError: if the axes of `values` are not the last axes of `rows`.
    """
    values = jnp.asarray(values)
    if values.ndim < 1 or values.shape != rows[len(rows) - values.ndim :]:
        raise ValueError(
            f"{name} must have shape {rows[-1:]} (one value per row) or {rows};"
            f" got {values.shape}."
        )
    return jnp.broadcast_to(values, rows)


def as_kinds(name: str, values: jax.Array) -> jax.Array:
    """`values`, which say of two kinds which one each row is, as bool.

    Raises:
        TypeError: if they are floats, as scores in their place would be.
        ValueError: if a number is neither 0 nor 1, where values are known.
    """
    values = jnp.asarray(values)
    if not (values.dtype == bool or jnp.issubdtype(values.dtype, jnp.integer)):
        raise TypeError(
            f"{name} must be bool or 0 and 1; got {values.dtype}. The scores come"
            " first, then the kinds."
        )
    if not isinstance(values, jax.core.Tracer):
        others = np.setdiff1d(np.asarray(values), [0, 1])
        if len(others):
            raise ValueError(
                f"{name} must be bool or 0 and 1; got {others[:5].tolist()} as well."
                f" Say which are positive, as {name} == {others[0]}."
            )
    return values.astype(bool)


def row_weights(
    sample_weight: jax.Array | None, rows: tuple[int, ...], dtype=jnp.float32
) -> jax.Array:
    """`sample_weight` as floats of shape `rows`; ones for None, NaN for negative ones.

    Raises:
        ValueError: if the shape does not fit, or there is no row.
    """
    check_any_row(rows)
    if sample_weight is None:
        return jnp.ones(rows, dtype)
    weight = broadcast_rows("sample_weight", sample_weight, rows).astype(dtype)
    return jnp.where(weight < 0, jnp.nan, weight)


def check_any_row(rows: tuple[int, ...]) -> None:
    """Raises `ValueError` if the batch axis, the last of `rows`, is empty."""
    if rows[-1] == 0:
        raise ValueError(
            f"there must be at least one row; got shape {rows}, whose batch axis is"
            " empty. Look at what chose the rows."
        )


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean over the last axis; `[..., batch]` to `[...]`.

    Rows of weight 0 are ignored even if they hold NaN. No weight at all gives NaN.
    """
    return jnp.sum(weigh(values, weight), axis=-1) / jnp.sum(weight, axis=-1)


def weigh(values: jax.Array, weight: jax.Array) -> jax.Array:
    """`values * weight`, and 0 where the weight is 0, also for NaN and inf."""
    return jnp.where(weight == 0, 0.0, values) * weight


def sort_or_nan(values: jax.Array, axis: int = -1) -> jax.Array:
    """The values in ascending order along an axis; all NaN where one of them is.

    Sorting alone puts a NaN last, and so gives the others each other's places.
    """
    broken = jnp.any(jnp.isnan(values), axis=axis, keepdims=True)
    return jnp.where(broken, jnp.nan, jnp.sort(values, axis=axis))


def centered(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values less their weighted mean, at most 1, and what they were divided by.

    Divided, so that neither squares nor their products leave the range of float32.

    Args:
        values: `[..., batch]`.
        weight: `[..., batch]`; rows of weight 0 are ignored and become 0.

    Returns:
        `[..., batch]`, and the largest absolute difference from the mean, `[...]`. Both
        are exactly 0 if the rows that count are all equal, or there is none.
    """
    counts = weight != 0
    mean = weighted_mean(values, weight)
    away = jnp.where(counts, values - mean[..., None], 0.0)
    # Of equal numbers the rounded mean may be another number: compare the numbers.
    low = jnp.min(jnp.where(counts, values, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(counts, values, -jnp.inf), axis=-1)
    is_constant = (high <= low) & ~jnp.isnan(mean)
    scale = jnp.where(is_constant, 0.0, jnp.max(jnp.abs(away), axis=-1))
    away = jnp.where(is_constant[..., None], 0.0, away)
    return away / jnp.where(scale == 0, 1.0, scale)[..., None], scale


def label_log_probs(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probability of each row's label, `[..., batch]`; NaN for one out of range.

    Compiled programs cannot raise on values, and indexing would wrap -1 to the last
    class.
    """
    labels = wide_labels(labels)
    known = (labels >= 0) & (labels < log_probs.shape[-1])
    index = jnp.where(known, labels, 0)[..., None]
    picked = jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
    return jnp.where(known, picked, jnp.nan)


def is_correct(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the first choice is the label, else 0, as floats `[..., batch]`.

    NaN where the row holds a NaN or the label is out of range, so that neither passes
    for an ordinary mistake.
    """
    correct = (votes(log_probs) == labels).astype(log_probs.dtype)
    undefined = jnp.isnan(label_log_probs(log_probs, labels))
    return jnp.where(undefined, jnp.nan, correct)


def floating(values: jax.Array) -> jax.Array:
    """`values` as floats of at least 32 bits."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def same_shape(
    name: str, values: jax.Array, like_name: str, like: jax.Array
) -> jax.Array:
    """`values` as floats of the shape of `like`; raises `ValueError` naming both."""
    values = floating(values)
    if values.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {like.shape}; got"
            f" {values.shape}."
        )
    return values


def check_targets(
    name: str,
    values: jax.Array,
    targets: jax.Array,
    sample_weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Real values, targets and weights of the same rows as floats `[..., batch]`.

    Args:
        name: of the values, for the error.
        values: `[..., batch]`.
        targets: `[batch]` or `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Raises:
        ValueError: if a shape does not fit, or there is no row.
    """
    values = floating(values)
    if values.ndim < 1:
        raise ValueError(f"{name} must be [..., batch]; got a scalar.")
    targets = broadcast_rows("targets", floating(targets), values.shape)
    return values, targets, row_weights(sample_weight, values.shape, values.dtype)


def over_rows(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`fn` of `[batch]` arrays, mapped over whatever axes stand before."""

    def mapped(*arrays):
        leading = arrays[0].shape[:-1]
        flat = [a.reshape((-1, a.shape[-1])) for a in arrays]
        out = jax.vmap(fn)(*flat)
        return out.reshape(leading + out.shape[1:])

    return mapped


def equal_weight_bins(values: jax.Array, weight: jax.Array, num_bins: int) -> jax.Array:
    """The bin of each row, `[..., batch]`, in bins of equal weight by `values`.

    A row goes to bin floor(num_bins * r), r in (0, 1) being its mid-rank (the middle of
    the weight that its ties hold), so that equal values share a bin.
    """
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return share_bin(mid_ranks(values, weight), total, num_bins)


def mid_ranks(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The middle of the weight that each row's ties hold in ascending order.

    `[..., batch]`; with weights of 1, the usual mid-rank minus 1/2.
    """
    return over_rows(_mid_rank)(values, weight)


def _mid_rank(values, weight):
    order = jnp.argsort(values)
    ends = jnp.concatenate([jnp.zeros(1, weight.dtype), jnp.cumsum(weight[order])])
    ascending = values[order]
    below = ends[jnp.searchsorted(ascending, values, side="left")]
    up_to = ends[jnp.searchsorted(ascending, values, side="right")]
    return (below + up_to) / 2


def bin_sum(values: jax.Array, bins: jax.Array, num_bins: int) -> jax.Array:
    """Sums of the rows of each bin, `[..., batch]` to `[..., bin]`.

    Many rows are added in several lanes: in float32 one long sum drifts, by 1e-4 over
    100,000 rows of weight 0.1.
    """
    num_rows = values.shape[-1]
    num_lanes = max(1, min(-(-num_rows // _ADDED_IN_A_ROW), num_rows // num_bins))

    def one(values, bins):
        if num_lanes > 1:
            bins = bins * num_lanes + jnp.arange(num_rows) % num_lanes
        sums = jax.ops.segment_sum(values, bins, num_segments=num_bins * num_lanes)
        return jnp.sum(sums.reshape(num_bins, num_lanes), axis=-1)

    return over_rows(one)(values, bins)


def inner_products(first: jax.Array, second: jax.Array) -> jax.Array:
    """`first [i, batch]` times `second [j, batch]`, summed over the batch, `[i, j]`.

    In blocks of rows, for the same reason as `bin_sum`; in full precision, since counts
    must be exact also where matrix products default to fewer bits.
    """
    num_blocks = -(-first.shape[1] // _ADDED_IN_A_ROW)
    missing = num_blocks * _ADDED_IN_A_ROW - first.shape[1]
    if num_blocks < 4:
        return jnp.einsum("in,jn->ij", first, second, precision="highest")
    first, second = (
        jnp.pad(x, ((0, 0), (0, missing))).reshape(len(x), num_blocks, -1)
        for x in (first, second)
    )
    products = jnp.einsum("ibn,jbn->bij", first, second, precision="highest")
    return jnp.sum(products, axis=0)
