"""Where two models and their ensemble are right: eight cells, and what the gain is.

A cell is named by three letters, T or F, for the first model, the second, and the
ensemble: FFT (False-False-True) are the rows that both models get wrong and the
ensemble right.

    right = jnp.argmax(logits, -1) == labels  # [model, batch]
    table = agreement_table(right[0], right[1], jnp.argmax(mean, -1) == labels)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ensjax.ops.limits import larger
from ensjax.scores.rows import floating, row_weights, same_shape, weigh


class GainParts(NamedTuple):
    """The ensemble's accuracy above that of the better of its two models, in parts.

        gain = false_false_true - true_true_false + followed - misled

    Attributes:
        gain: accuracy of the ensemble minus that of the better model.
        false_false_true: rows that both models get wrong and the ensemble right.
        true_true_false: rows that both get right and the ensemble wrong.
        followed: rows that only the worse model gets right, and the ensemble too.
        misled: rows that only the better model gets right, and the ensemble does not.
    """

    gain: jax.Array
    false_false_true: jax.Array
    true_true_false: jax.Array
    followed: jax.Array
    misled: jax.Array


def agreement_table(
    first: jax.Array,
    second: jax.Array,
    combined: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Shares of the rows in the eight cells of being right.

    Args:
        first, second: whether each model is right, `[..., batch]`, booleans or 0 and 1.
        combined: whether their ensemble (of outputs or weights) is right, same shape.
        sample_weight: `[batch]` or `[..., batch]`, non-negative; a bool mask works too.

    Returns:
        `[..., 2, 2, 2]`, indexed by whether the first, the second and the ensemble are
        right: `table[..., 0, 0, 1]` is FFT. They sum to 1. A NaN in a row that counts
        makes all of them NaN, and so does no weight at all.

    Raises:
        ValueError: if a shape does not fit.

    Source: Lin et al. 2024, arXiv:2309.17230, section 3 (FalseFalseTrue).
    """
    first = floating(first)
    if first.ndim < 1:
        raise ValueError("first must be [..., batch]; got a scalar.")
    second = same_shape("second", second, "first", first)
    combined = same_shape("combined", combined, "first", first)
    weight = row_weights(sample_weight, first.shape, first.dtype)
    cells = [
        a * b * c
        for a in (1 - first, first)
        for b in (1 - second, second)
        for c in (1 - combined, combined)
    ]
    shares = jnp.sum(weigh(jnp.stack(cells), weight[None]), axis=-1)
    shares = jnp.moveaxis(shares / jnp.sum(weight, axis=-1)[None], 0, -1)
    return shares.reshape(*shares.shape[:-1], 2, 2, 2)


def false_false_true(table: jax.Array) -> jax.Array:
    """Share of the rows that both models get wrong and their ensemble right, `[...]`.

    Args:
        table: `[..., 2, 2, 2]`, from `agreement_table`.
    """
    return _checked(table)[..., 0, 0, 1]


def true_true_false(table: jax.Array) -> jax.Array:
    """Share of the rows that both models get right and their ensemble wrong, `[...]`.

    Args:
        table: `[..., 2, 2, 2]`, from `agreement_table`.
    """
    return _checked(table)[..., 1, 1, 0]


def gain_parts(table: jax.Array) -> GainParts:
    """What the gain over the better of the two models is made of.

    Args:
        table: `[..., 2, 2, 2]`, from `agreement_table`.

    Returns:
        `GainParts` with fields `[...]`, shares of the rows. Of two equally accurate
        models the first counts as the better.

    Raises:
        ValueError: if `table` is not of this shape.
    """
    table = _checked(table)
    accuracy = [
        jnp.sum(jnp.take(table, 1, axis=axis), axis=(-2, -1)) for axis in (-3, -2, -1)
    ]
    second_better = (accuracy[1] > accuracy[0])[..., None]
    # Of the rows that one model alone gets right, `[..., wrong or right together]`.
    only_better = jnp.where(second_better, table[..., 0, 1, :], table[..., 1, 0, :])
    only_worse = jnp.where(second_better, table[..., 1, 0, :], table[..., 0, 1, :])
    return GainParts(
        gain=accuracy[2] - larger(accuracy[0], accuracy[1]),
        false_false_true=table[..., 0, 0, 1],
        true_true_false=table[..., 1, 1, 0],
        followed=only_worse[..., 1],
        misled=only_better[..., 0],
    )


def _checked(table):
    table = jnp.asarray(table)
    if table.shape[-3:] != (2, 2, 2):
        raise ValueError(
            "table must be [..., 2, 2, 2], from agreement_table; got shape"
            f" {table.shape}."
        )
    return table
