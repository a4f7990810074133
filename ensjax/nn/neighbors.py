"""Nearest neighbours, as a member: training rows are its state, a call is one search.

So a vote of neighbours, networks and others lives in one compiled program. Distances
are sums of squared differences, not `a^2 - 2 a b + b^2`, which loses half of the digits
where rows are close: the neighbours are those that double precision finds.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def nearest_rows(
    x: jax.Array,
    rows: jax.Array,
    num_neighbors: int,
    *,
    mask: jax.Array | None = None,
    block: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The rows that lie nearest to each example, by Euclidean distance.

    Args:
        x: `[batch, feature]`.
        rows: `[row, feature]`.
        num_neighbors: K, at most the number of rows.
        mask: bool `[row]`; a False row is as if it were removed.
        block: examples at a time; bounds the memory, `block * row * feature` numbers.

    Returns:
        Row numbers `[batch, K]`, int32, the nearest first and the lowest number among
        equals; and the squared distances `[batch, K]`, inf for masked rows and for rows
        with a NaN, which come last. An example with a NaN has NaN to all others.

    Raises:
        ValueError: if a shape does not fit or `num_neighbors` is out of range.
    """
    x, rows = jnp.asarray(x), jnp.asarray(rows)
    if x.ndim != 2 or rows.ndim != 2 or x.shape[1] != rows.shape[1]:
        raise ValueError(
            "x and rows must be [batch, feature] and [row, feature] of the same"
            f" features; got {x.shape} and {rows.shape}."
        )
    if not 1 <= num_neighbors <= rows.shape[0]:
        raise ValueError(
            f"num_neighbors must be from 1 to the {rows.shape[0]} rows; got"
            f" {num_neighbors}."
        )
    if mask is not None and jnp.shape(mask) != rows.shape[:1]:
        raise ValueError(
            f"mask must be [row] = {rows.shape[:1]}; got shape {jnp.shape(mask)}."
        )

    def search(example):
        squared = jnp.sum((rows - example[None]) ** 2, axis=-1)
        # To top_k a NaN is more than any number: the row would be nearest of all.
        is_unknown = jnp.isnan(squared) & ~jnp.any(jnp.isnan(example))
        squared = jnp.where(is_unknown, jnp.inf, squared)
        if mask is not None:
            squared = jnp.where(jnp.asarray(mask), squared, jnp.inf)
        negative, index = jax.lax.top_k(-squared, num_neighbors)
        return index.astype(jnp.int32), -negative

    return jax.lax.map(search, x, batch_size=max(1, min(block, x.shape[0])))


class NearestNeighbors(nnx.Module):
    """K nearest neighbours: the log of the share of neighbours in each class.

    A class without a neighbour has -inf, which votes and means of probabilities take.
    The vote is scikit-learn's `KNeighborsClassifier`: the lowest class among equals.

    Args:
        x: training rows, `[row, feature]`; scale the features first.
        labels: class indices, `[row]`.
        num_classes: number of classes.
        num_neighbors: K.

    Raises:
        ValueError: if a shape does not fit, or there are fewer rows than neighbours.
        TypeError: if `labels` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import nn
        >>> rows = jnp.array([[0.0], [1.0], [5.0], [6.0]])
        >>> model = nn.NearestNeighbors(
        ...     rows, jnp.array([0, 0, 1, 1]), num_classes=2, num_neighbors=3)
        >>> [f"{share:.2f}" for share in jnp.exp(model(jnp.array([[0.4]])))[0]]
        ['0.67', '0.33']
    """

    def __init__(
        self,
        x: jax.Array,
        labels: jax.Array,
        *,
        num_classes: int,
        num_neighbors: int = 5,
    ):
        x, labels = jnp.asarray(x), jnp.asarray(labels)
        if x.ndim != 2 or labels.shape != x.shape[:1]:
            raise ValueError(
                "x and labels must be [row, feature] and [row]; got"
                f" {x.shape} and {labels.shape}."
            )
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers; got {labels.dtype}.")
        if not 1 <= num_neighbors <= x.shape[0]:
            raise ValueError(
                f"num_neighbors must be from 1 to the {x.shape[0]} rows; got"
                f" {num_neighbors}."
            )
        self.rows = nnx.Variable(x.astype(jnp.float32))
        self.labels = nnx.Variable(labels.astype(jnp.int32))
        self.num_classes, self.num_neighbors = num_classes, num_neighbors

    def __call__(self, x: jax.Array) -> jax.Array:
        """Log-probabilities `[batch, class]`, float32, of examples `[batch, feature]`.

        An example with a NaN has a row of NaN.
        """
        index, _ = nearest_rows(x, self.rows[...], self.num_neighbors)
        chosen = jax.nn.one_hot(self.labels[...][index], self.num_classes)
        share = jnp.mean(chosen, axis=1)
        undefined = jnp.any(jnp.isnan(x), axis=-1, keepdims=True)
        return jnp.where(undefined, jnp.nan, jnp.log(share))
