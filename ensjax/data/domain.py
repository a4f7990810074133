"""The training domain: how far a row lies from those that a model was trained on."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.scores.distances import fit_gaussians, knn_distance

METRICS = ("cosine", "euclidean", "mahalanobis")


@struct.dataclass
class TrainingDomain:
    """Standardised training rows; distances of other rows to them.

    Everything that scales is taken from the training rows: rows that are judged are
    scaled with it, however they are distributed themselves. Make it with `of`.

    Attributes:
        center: means of the training rows, `[feature]`.
        transform: `[feature, feature]`: 1 / standard deviation on the diagonal, or the
            whitening of the training rows for "mahalanobis".
        rows: transformed training rows, `[row, feature]`.
        num_neighbors: how many of them count.
        metric: of the transformed rows, "cosine" or "euclidean".
    """

    center: jax.Array
    transform: jax.Array
    rows: jax.Array
    num_neighbors: int = struct.field(pytree_node=False)
    metric: str = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls, x_train: np.ndarray, *, metric: str = "cosine", num_neighbors: int = 5
    ) -> "TrainingDomain":
        """The domain of some training rows.

        Args:
            x_train: inputs or features, `[row, feature]`.
            metric: "cosine", "euclidean" or "mahalanobis" (Euclidean between rows whose
                covariance is made the identity). For the first two a feature that is
                constant here has no scale and counts in its own units.
            num_neighbors: how many training rows the distance is a mean over.

        Raises:
            ValueError: for an unknown metric, too few rows, or another shape.

        Source: De Breuck et al. 2021, arXiv:2102.02263 (cosine, 5 neighbours).

        Example:
            >>> x = np.eye(3)
            >>> domain = TrainingDomain.of(x, metric="euclidean", num_neighbors=1)
            >>> domain.distance(x).round(3).tolist()
            [0.0, 0.0, 0.0]
        """
        if metric not in METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(METRICS)}; got {metric!r}."
            )
        rows = np.asarray(x_train, np.float32)
        if rows.ndim != 2 or not 1 <= num_neighbors < len(rows):
            raise ValueError(
                "x_train must be [row, feature] with more rows than num_neighbors="
                f"{num_neighbors}, which is at least 1; got shape {rows.shape}."
            )
        center = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        if metric == "mahalanobis":
            transform = fit_gaussians(rows).whitening
        else:
            scale = rows.std(axis=0, dtype=np.float64)
            # A feature that is constant in training is left in its own units.
            transform = jnp.diag(1 / np.where(scale == 0, 1.0, scale))
        transform = jnp.asarray(transform, jnp.float32)
        kind = "cosine" if metric == "cosine" else "euclidean"
        domain = cls(jnp.asarray(center), transform, jnp.asarray(rows), 1, kind)
        return domain.replace(rows=domain.scale(rows), num_neighbors=num_neighbors)

    def scale(self, x: np.ndarray) -> jax.Array:
        """Rows `[batch, feature]` in the domain's units."""
        away = jnp.asarray(x, jnp.float32) - self.center[None]
        return jnp.matmul(away, self.transform, precision="highest")

    def distance(self, x: np.ndarray) -> jax.Array:
        """Mean distance of each row to its nearest training rows, `[batch]`."""
        return knn_distance(
            self.scale(x),
            self.rows,
            num_neighbors=self.num_neighbors,
            metric=self.metric,
        )

    def training_distance(self) -> jax.Array:
        """That of each training row to the others, `[row]`: what is usual at home."""
        return knn_distance(
            self.rows,
            self.rows,
            num_neighbors=self.num_neighbors,
            metric=self.metric,
            exclude_self=True,
        )
