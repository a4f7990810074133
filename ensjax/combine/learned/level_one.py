"""Features of a meta-model: what the members say about a row, side by side."""

import jax
import jax.numpy as jnp

from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import Provenance

FEATURES = ("log_probs", "probs", "logits", "votes", "sum")


def level_one_features(
    logits: jax.Array | Predictions,
    features: str = "probs",
    *,
    mask: jax.Array | None = None,
    x: jax.Array | None = None,
) -> jax.Array:
    """What all members say about each row, `[batch, feature]`.

    A member that does not count gives zeros, as if it were not there.

    Args:
        logits: logits or log-probabilities `[member, batch, class]`, or `Predictions`.
        features: "probs" (for two classes the second alone, since the first is its
            complement), "log_probs", "logits" (as they came), "votes" (one-hot; zeros
            where a member abstains), each `class` columns a member; or "sum", the sum
            over members of the logits (log-probabilities where there are no logits),
            `class` columns in all.
        mask: `[member]` or `[member, batch]`; a False member counts as removed.
        x: inputs `[batch, ...]` that are passed on beside them.

    Raises:
        ValueError: if a shape does not fit or `features` is unknown.
        TypeError: if the predictions do not have what is asked for.
    """
    predictions = as_predictions(logits, mask=mask)
    if features not in FEATURES:
        raise ValueError(
            f"features must be one of {', '.join(FEATURES)}; got {features!r}."
        )
    values = _values(predictions, features)
    counts = predictions.mask
    counts = counts.reshape(counts.shape[0], -1, 1)
    values = jnp.where(counts, values, 0.0)  # [member, batch, column]
    if features == "sum":
        columns = jnp.sum(values, axis=0)
    else:
        columns = jnp.swapaxes(values, 0, 1).reshape(values.shape[1], -1)
    return columns if x is None else _beside(columns, x)


def point_features(
    points: jax.Array, mask: jax.Array | None = None, x: jax.Array | None = None
) -> jax.Array:
    """Members' values `[member, batch]` as `[batch, feature]`, zeros where masked.

    Args:
        points: real values `[member, batch]`.
        mask: `[member]`.
        x: inputs `[batch, ...]` that are passed on beside them.

    Raises:
        ValueError: if a shape does not fit.
    """
    points = jnp.asarray(points)
    points = points.astype(jnp.promote_types(points.dtype, jnp.float32))
    if points.ndim != 2:
        raise ValueError(
            f"points must be [member, batch]; got shape {points.shape}. Several targets"
            " are combined one at a time."
        )
    if mask is not None:
        mask = jnp.asarray(mask, bool)
        if mask.shape != points.shape[:1]:
            raise ValueError(
                f"mask must be [member] = {points.shape[:1]}; got shape {mask.shape}."
            )
        points = jnp.where(mask[:, None], points, 0.0)
    return points.T if x is None else _beside(points.T, x)


def unpack_points(
    points: jax.Array | Predictions,
    mask: jax.Array | None,
    provenance: Provenance | None,
) -> tuple[jax.Array, jax.Array | None, Provenance | None]:
    """Values `[member, batch]`, mask and provenance, of `Predictions` their own.

    What is given beside `Predictions` counts.

    Raises:
        TypeError: for predictions that are no points.
    """
    if not isinstance(points, Predictions):
        return jnp.asarray(points), mask, provenance
    if provenance is None:
        provenance = points.provenance
    return points.points, points.mask if mask is None else mask, provenance


def _values(predictions, features):
    if features == "votes":
        return jax.nn.one_hot(predictions.votes, predictions.num_classes)
    if features == "logits" and predictions.kind != "logits":
        raise TypeError(
            f"these predictions are {predictions.kind} and carry no logits; use"
            ' features="log_probs".'
        )
    if features == "logits" or (features == "sum" and predictions.kind == "logits"):
        return predictions.values.astype(jnp.float32)
    if features == "probs":
        probs = predictions.probs
        return probs[..., 1:] if probs.shape[-1] == 2 else probs
    return predictions.log_probs


def _beside(columns, x):
    x = jnp.asarray(x)
    if x.ndim < 1 or x.shape[0] != columns.shape[0]:
        raise ValueError(
            f"x must have one row for each of the {columns.shape[0]} rows predicted;"
            f" got shape {x.shape}."
        )
    return jnp.concatenate([columns, x.reshape(x.shape[0], -1)], axis=-1)
