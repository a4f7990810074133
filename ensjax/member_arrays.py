"""Arrays with the member axis first: log-probabilities, votes, masks and weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ABSTAIN = -1
# Log-probabilities that differ by no more than this, in nats, are equal: rounding makes
# those of a mixture differ by about 1e-6.
TIE_TOLERANCE = 4e-6


def log_probs(logits: jax.Array) -> jax.Array:
    """Log-probabilities of every row, in float32 also when the logits are bfloat16.

    Rows that are normalised already stay as they are, so this is safe on
    log-probabilities too. It is never right on probabilities.

    Args:
        logits: unnormalised log-probabilities, `[..., class]`.

    Returns:
        `[..., class]`, in nats. A row that holds a NaN or a +inf is all NaN.

    Raises:
        ValueError: if `logits` has no class axis.
        TypeError: if `logits` holds integers (votes or labels).
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 1:
        raise ValueError("logits must be [..., class]; got a scalar.")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"logits must be floating point; got {logits.dtype}. Votes go through"
            " Predictions.from_votes."
        )
    # Cast before the softmax: bfloat16 has 8 bits, too few for a sum over classes.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.log_softmax(logits, axis=-1)


def votes(logits: jax.Array) -> jax.Array:
    """The class each row puts first; the lowest index among equals.

    Classes within `TIE_TOLERANCE` of the largest are equal to it, so that the order in
    which a program adds up members decides nothing.

    Args:
        logits: logits or log-probabilities, `[..., class]`.

    Returns:
        `[...]`, int32. A row with a NaN votes for nothing: -1.
    """
    logits = jnp.asarray(logits)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    choice = jnp.argmax(logits >= peak - TIE_TOLERANCE, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), ABSTAIN, choice)


def wide_labels(labels: jax.Array) -> jax.Array:
    """Class indices of at least 32 bits; what is no integer stays as it is.

    JAX turns the number it compares with into the array's type: `labels < 300` is
    `labels < 44` of uint8. Labels of a narrow type go through this first.

    Args:
        labels: integers of any shape, `[...]`.

    Returns:
        `[...]`; int8, int16, uint8 and uint16 become int32.
    """
    labels = jnp.asarray(labels)
    is_narrow = jnp.issubdtype(labels.dtype, jnp.integer) and labels.dtype.itemsize < 4
    return labels.astype(jnp.int32) if is_narrow else labels


def plain_label(label: Any) -> Any:
    """A NumPy scalar as Python's value, so that equal labels have equal hashes."""
    return label.item() if isinstance(label, np.generic) else label


def member_mask_and_weights(
    shape: tuple[int, int], weights: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Weights (floats) and mask (bools) of members; ones and True for None.

    Args:
        shape: `[member, batch]` of the predictions.
        weights: `[member]` or `[member, batch]`.
        mask: `[member]` or `[member, batch]`.

    Raises:
        ValueError: if a shape does not fit, or there is no member.
    """
    if shape[0] == 0:
        raise ValueError(
            f"there must be at least one member; got [member, batch] = {shape}. Members"
            " that do not count are masked."
        )
    weights = jnp.ones(shape[:1]) if weights is None else jnp.asarray(weights)
    mask = jnp.ones(shape[:1], bool) if mask is None else jnp.asarray(mask)
    for name, value in (("weights", weights), ("mask", mask)):
        if value.shape not in (shape[:1], shape):
            raise ValueError(
                f"{name} must be [member] = {shape[:1]} or [member, batch] = {shape};"
                f" got shape {value.shape}."
            )
    weights = weights.astype(jnp.promote_types(weights.dtype, np.float32))
    return weights, mask.astype(bool)


def counting_members(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """Which members count: those that are not masked and have a weight.

    Args:
        weights: `[member]` or `[member, batch]`.
        mask: `[member]` or `[member, batch]`, bools.

    Returns:
        Bools `[member]`, or `[member, batch]` if one of both is.
    """
    if weights.ndim < mask.ndim:
        weights = weights[:, None]
    if mask.ndim < weights.ndim:
        mask = mask[:, None]
    return mask & (weights != 0)


def normalize_weights(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights that sum to 1 over the members that count.

    Args:
        weights: `[member]` or `[member, batch]`.
        mask: `[member]` or `[member, batch]`, bools.

    Returns:
        `[member]`, or `[member, batch]` if one of both is. A masked member has weight
        0. NaN where no weight is left, and where a weight is negative (values cannot
        raise in a compiled program).
    """
    if weights.ndim < mask.ndim:
        weights = weights[:, None]
    if mask.ndim < weights.ndim:
        mask = mask[:, None]
    weights = jnp.where(weights < 0, jnp.nan, weights)
    weights = jnp.where(mask, weights, 0.0)
    return weights / jnp.sum(weights, axis=0, keepdims=True)
