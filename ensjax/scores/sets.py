"""Scores of sets of classes: how often they hold the label, and how large they are.

A set is a row of bools, True for the classes that it holds.
"""

import jax
import jax.numpy as jnp

from ensjax.member_arrays import wide_labels
from ensjax.scores.rows import broadcast_rows, row_weights, weighted_mean


def set_coverage(
    sets: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Share of rows whose set holds the label (0-1), `[...]`.

    Args:
        sets: bool, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`. A label out of range makes
            the score NaN, unless its weight is 0.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `sets` are not bool or `labels` not integers.
    """
    _, covered, _, weight = _check(sets, labels, sample_weight)
    return weighted_mean(covered, weight)


def mean_set_size(
    sets: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Mean number of classes of a set, `[...]`; empty sets count as 0.

    Arguments as for `set_coverage`.
    """
    sets = _sets(sets)
    weight = row_weights(sample_weight, sets.shape[:-1])
    return weighted_mean(jnp.sum(sets, axis=-1, dtype=jnp.float32), weight)


def class_coverage(
    sets: jax.Array, labels: jax.Array, *, sample_weight: jax.Array | None = None
) -> jax.Array:
    """Share of the rows of each class whose set holds it, `[..., class]`.

    NaN for a class without rows. Arguments as for `set_coverage`.
    """
    sets, covered, labels, weight = _check(sets, labels, sample_weight)
    is_class = jax.nn.one_hot(labels, sets.shape[-1], axis=-2)  # [..., class, batch]
    return weighted_mean(covered[..., None, :], is_class * weight[..., None, :])


def coverage_gap(
    sets: jax.Array,
    labels: jax.Array,
    *,
    nominal: float,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean over classes of |coverage of the class - nominal| (0-1), `[...]`.

    Classes without rows do not count. Other arguments as for `set_coverage`.

    Args:
        nominal: the coverage aimed at, in (0, 1).

    Source: Ding et al. 2023, arXiv:2306.09335, section 4 (CovGap, there in percent).
    """
    _check_nominal(nominal)
    coverage = class_coverage(sets, labels, sample_weight=sample_weight)
    return jnp.nanmean(jnp.abs(coverage - nominal), axis=-1)


def size_stratified_coverage(
    sets: jax.Array,
    labels: jax.Array,
    *,
    edges: tuple[int, ...] = (0, 2, 4, 11, 101),
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Coverage among the rows whose sets have some sizes, `[..., bin]`.

    How far it is from nominal, at worst, is size-stratified coverage violation.

    Args:
        sets: bool, `[..., batch, class]`.
        labels: class indices, `[batch]` or `[..., batch]`.
        edges: bin i holds sizes from edges[i] to edges[i + 1] - 1, the last one those
            from edges[-1] on; rising.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Returns:
        `[..., bin]`, as many as edges; NaN for a bin without rows.

    Raises:
        ValueError: if a shape does not fit or `edges` do not rise.
        TypeError: if `sets` are not bool or `labels` not integers.

    Source: Angelopoulos et al. 2021, arXiv:2009.14193, section 4.3.
    """
    if len(edges) < 1 or any(a >= b for a, b in zip(edges, edges[1:])):
        raise ValueError(f"edges must rise; got {edges}.")
    sets, covered, _, weight = _check(sets, labels, sample_weight)
    sizes = jnp.sum(sets, axis=-1)
    bins = jnp.searchsorted(jnp.asarray(edges), sizes, side="right") - 1
    in_bin = jax.nn.one_hot(bins, len(edges), axis=-2)
    return weighted_mean(covered[..., None, :], in_bin * weight[..., None, :])


def _sets(sets):
    sets = jnp.asarray(sets)
    if sets.dtype != jnp.bool_:
        raise TypeError(
            f"sets must be bool, True for the classes they hold; got {sets.dtype}."
        )
    if sets.ndim < 2:
        raise ValueError(f"sets must be [..., batch, class]; got shape {sets.shape}.")
    return sets


def _check(sets, labels, sample_weight):
    """Sets, whether each holds its label (NaN out of range), labels and weights."""
    sets = _sets(sets)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}.")
    rows = sets.shape[:-1]
    labels = broadcast_rows("labels", wide_labels(labels), rows)
    known = (labels >= 0) & (labels < sets.shape[-1])
    index = jnp.where(known, labels, 0)[..., None]
    covered = jnp.take_along_axis(sets, index, axis=-1)[..., 0].astype(jnp.float32)
    covered = jnp.where(known, covered, jnp.nan)
    return sets, covered, labels, row_weights(sample_weight, rows)


def _check_nominal(nominal):
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
