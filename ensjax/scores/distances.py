"""Distances from the training rows in a space of features: how far from home a row is.

Features are inputs, or what a member computes before its last layer. Larger means
farther out; `auroc` and `fpr_at_tpr` say how well a distance finds foreign rows. Scale
features with statistics of the training rows (`data.TrainingDomain` does), never with
those of the rows that are judged.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ensjax.member_arrays import wide_labels
from ensjax.nn.neighbors import nearest_rows
from ensjax.provenance import FittedRows, Provenance, check_fitting_rows
from ensjax.scores.rows import floating

METRICS = ("euclidean", "cosine")
_ROUNDING = 1e-6  # of float32: less spread than this share of the numbers is none
_WHAT = "the Gaussians of the features"


def neighbor_distances(
    features: jax.Array,
    reference: jax.Array,
    *,
    num_neighbors: int = 5,
    metric: str = "euclidean",
    exclude_self: bool = False,
) -> jax.Array:
    """Distances of every row to its nearest reference rows, nearest first.

    Args:
        features: `[..., batch, feature]`.
        reference: `[row, feature]`, or with the same leading axes (a member's own
            features).
        num_neighbors: how many.
        metric: "euclidean", or "cosine": 1 - cos of the angle, from 0 to 2; a row of
            zeros has distance 1.
        exclude_self: whether row i is left out for example i, where the examples are
            the reference rows themselves.

    Returns:
        `[..., batch, neighbor]`; reference rows with a NaN come last. Memory grows as
        batch times rows.

    Raises:
        ValueError: for an unknown metric, shapes that do not fit, or too few rows.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}.")
    features, reference = floating(features), floating(reference)
    if features.ndim < 2 or reference.ndim < 2:
        raise ValueError(
            "features must be [..., batch, feature] and reference [row, feature]; got"
            f" shapes {features.shape} and {reference.shape}."
        )
    leading = features.shape[:-2]
    if reference.ndim == 2:
        reference = jnp.broadcast_to(reference, leading + reference.shape)
    if reference.shape[:-2] != leading or reference.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"reference must be [row, {features.shape[-1]}], with or without the"
            f" leading axes {leading}; got shape {reference.shape}."
        )
    num_rows = reference.shape[-2]
    if exclude_self and features.shape != reference.shape:
        raise ValueError(
            "exclude_self needs the reference rows as examples; got shapes"
            f" {features.shape} and {reference.shape}."
        )
    if not 1 <= num_neighbors <= num_rows - exclude_self:
        raise ValueError(
            f"num_neighbors must be from 1 to {num_rows - exclude_self}, the rows there"
            f" are; got {num_neighbors}."
        )

    def one(features, reference):
        return _nearest(features, reference, num_neighbors, metric, exclude_self)

    for _ in leading:
        one = jax.vmap(one)
    return one(features, reference)


def knn_distance(
    features: jax.Array,
    reference: jax.Array,
    *,
    num_neighbors: int = 5,
    metric: str = "euclidean",
    exclude_self: bool = False,
) -> jax.Array:
    """Mean distance of every row to its nearest reference rows, `[..., batch]`.

    The mean of the `num_neighbors` smallest; some take the last of them instead, which
    is `neighbor_distances(...)[..., -1]`. Arguments as for `neighbor_distances`.

    Source: De Breuck et al. 2021, arXiv:2102.02263 (cosine, 5 neighbours); Sun et al.
    2022, arXiv:2204.06507 (the last neighbour, of normalised features).
    """
    distances = neighbor_distances(
        features,
        reference,
        num_neighbors=num_neighbors,
        metric=metric,
        exclude_self=exclude_self,
    )
    return jnp.mean(distances, axis=-1)


@struct.dataclass
class FeatureGaussians:
    """One normal distribution per class with a shared covariance.

    Attributes:
        means: `[class, feature]`, NaN for a class without rows.
        whitening: `[feature, feature]`: rows times it have unit covariance.
        fitted_rows: the rows they were fitted on, where they are known.
    """

    means: jax.Array
    whitening: jax.Array
    fitted_rows: FittedRows = struct.field(pytree_node=False, default=FittedRows(_WHAT))


def fit_gaussians(
    features: jax.Array,
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    ridge: float = 1e-6,
    provenance: Provenance | None = None,
) -> FeatureGaussians:
    """Class means and the shared covariance of training rows, for `mahalanobis`.

    The covariance is that around the rows' own class means, divided by the number of
    rows, plus `ridge` times each variance on the diagonal.

    Args:
        features: `[row, feature]` of training rows.
        labels: class indices `[row]`; None: one class.
        num_classes: number of classes; None: one more than the largest label.
        ridge: keeps the covariance invertible where features depend on each other.
        provenance: of the rows; None: unknown, and nothing is checked. Rows that the
            features' maker was trained on are the right ones here.

    Returns:
        `FeatureGaussians`; in a compiled program NaN if a label is out of range.

    Raises:
        ValueError: if a shape does not fit, a label is no class from 0 on, or
            `num_classes` is missing in a compiled program that makes the labels.
        TypeError: if `labels` are not integers.
        LeakageError: if the rows are test rows, or kept for the test.

    Source: Lee et al. 2018, arXiv:1807.03888, equation 1.
    """
    unseen = provenance
    if provenance is not None:
        unseen = dataclasses.replace(provenance, seen=None, known=None)
    check_fitting_rows(_WHAT, unseen)
    features = floating(features)
    if features.ndim != 2:
        raise ValueError(f"features must be [row, feature]; got {features.shape}.")
    rows = features.shape[:1]
    if labels is None:
        labels, num_classes = jnp.zeros(rows, jnp.int32), num_classes or 1
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}.")
    if labels.shape != rows:
        raise ValueError(f"labels must be [row] = {rows}; got {labels.shape}.")
    labels = wide_labels(labels)
    num_classes = _number_of_classes(labels, num_classes)
    is_stray = jnp.any((labels < 0) | (labels >= num_classes))
    labels = jnp.clip(labels, 0, num_classes - 1)
    is_class = jax.nn.one_hot(labels, num_classes, axis=0)  # [class, row]
    counts = jnp.sum(is_class, axis=1)[:, None]
    sums = jnp.matmul(is_class, features, precision="highest")
    means = sums / jnp.where((counts == 0) | is_stray, jnp.nan, counts)
    away = features - means[labels]
    covariance = jnp.matmul(away.T, away, precision="highest") / rows[0]
    variances = jnp.diag(covariance)
    # A constant feature is left in its own units: what rounding leaves is no variance.
    largest = jnp.max(jnp.abs(features), axis=0)
    is_constant = jnp.sqrt(variances) <= _ROUNDING * largest
    own = jnp.where(is_constant, 0.0, 1.0)
    covariance = covariance * own[:, None] * own[None]
    covariance += jnp.diag(jnp.where(is_constant, 1.0, ridge * variances))
    # Sigma = L L^T, and rows times L^-T have the identity as covariance.
    lower = jnp.linalg.cholesky(covariance)
    inverse = jax.scipy.linalg.solve_triangular(
        lower, jnp.eye(features.shape[1]), lower=True
    )
    return FeatureGaussians(means, inverse.T, FittedRows(_WHAT, provenance))


def mahalanobis(
    features: jax.Array,
    gaussians: FeatureGaussians,
    *,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> jax.Array:
    """Mahalanobis distance to the nearest class mean, `[..., batch]`.

        min_c sqrt((f - mu_c)^T Sigma^-1 (f - mu_c))

    The paper's score is minus its square.

    Args:
        features: `[..., batch, feature]`.
        gaussians: from `fit_gaussians` on training rows.
        provenance: of the features, where it is known.
        allow_seen: whether the fit itself is looked at. Without, rows of the fit are
            refused, as far as they are known.

    Raises:
        ValueError: if the number of features differs.
        LeakageError: for rows that the Gaussians were fitted on; see `allow_seen`.

    Source: Lee et al. 2018, arXiv:1807.03888, equation 2.
    """
    gaussians.fitted_rows.check_arrays(provenance, allow_seen=allow_seen)
    features = floating(features)
    num_features = gaussians.whitening.shape[0]
    if features.ndim < 2 or features.shape[-1] != num_features:
        raise ValueError(
            f"features must be [..., batch, {num_features}]; got {features.shape}."
        )

    def to_class(mean):
        away = features - mean.reshape((1,) * (features.ndim - 1) + (-1,))
        white = jnp.matmul(away, gaussians.whitening, precision="highest")
        return jnp.sqrt(jnp.sum(white**2, axis=-1))

    by_class = jax.vmap(to_class)(gaussians.means)
    is_known = ~jnp.isnan(gaussians.means[:, :1])
    is_known = is_known.reshape((-1,) + (1,) * (by_class.ndim - 1))
    return jnp.min(jnp.where(is_known, by_class, jnp.inf), axis=0)


def _number_of_classes(labels, num_classes):
    if isinstance(labels, jax.core.Tracer):
        if num_classes is None:
            raise ValueError(
                "num_classes is None, which takes their number from the labels; in a"
                " compiled program these are not known: give num_classes."
            )
        return num_classes
    known = np.asarray(labels)
    if num_classes is None:
        num_classes = int(known.max(initial=0)) + 1
    strays = (known < 0) | (known >= num_classes)
    if strays.any():
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, with num_classes="
            f"{num_classes}; got {np.unique(known[strays])[:8].tolist()}, first in row"
            f" {np.flatnonzero(strays)[0]}."
        )
    return num_classes


def _nearest(features, reference, num_neighbors, metric, exclude_self):
    if metric == "cosine":
        features, reference = _unit(features), _unit(reference)
        far = -jnp.matmul(features, reference.T, precision="highest")
        # A reference row with a NaN is far from all, not the nearest.
        is_row = ~jnp.any(jnp.isnan(features), axis=-1, keepdims=True)
        far = jnp.where(jnp.isnan(far) & is_row, jnp.inf, far)
        if exclude_self:
            far = jnp.where(jnp.eye(len(far), dtype=bool), jnp.inf, far)
        rows = jax.lax.top_k(-far, num_neighbors)[1]
        near = reference[rows]  # [batch, neighbor, feature]
        return jnp.sort(1 - jnp.sum(features[:, None] * near, axis=-1), axis=-1)
    # Not by |a|^2 - 2 a b + |b|^2, which cancels where rows lie close together.
    rows, squares = nearest_rows(features, reference, num_neighbors + exclude_self)
    if exclude_self:
        own = rows == jnp.arange(len(rows))[:, None]
        squares = jnp.sort(jnp.where(own, jnp.inf, squares), axis=-1)[:, :-1]
    return jnp.sqrt(squares)


def _unit(rows):
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norm == 0, 1.0, norm)
