"""Weights of classes that are unequally frequent."""

import numpy as np

KINDS = ("inverse", "effective")


def class_weights(
    labels: np.ndarray,
    num_classes: int,
    *,
    kind: str = "inverse",
    beta: float = 0.999,
) -> np.ndarray:
    """A weight for each class, `[class]`, float32; 0 for a class without rows.

        inverse:    w_c ~ 1 / n_c
        effective:  w_c ~ (1 - beta) / (1 - beta^n_c)

    scaled so that the mean weight of a row is 1 (the papers' weights of classes sum to
    the number of classes instead; a weighted mean does not notice).
    `class_weights(labels, C)[labels]` are `loss_weights` of `fit`.

    Args:
        labels: class indices, `[example]`.
        num_classes: number of classes.
        kind: "inverse" frequency (scikit-learn's "balanced"), or "effective" number.
        beta: of the effective number, in [0, 1): 0 weighs all alike, near 1 is inverse.

    Raises:
        ValueError: for an unknown kind, a beta out of range, or a label that is no
            class.
        TypeError: if `labels` are not integers.

    Source: King and Zeng 2001 (inverse); Cui et al. 2019, arXiv:1901.05555, equation 2
    (effective).

    Example:
        >>> class_weights(np.array([0, 0, 0, 0, 1, 1]), 2).tolist()
        [0.75, 1.5]
    """
    labels = np.asarray(labels)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must lie in [0, 1); got {beta}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integers [example]; got {labels.dtype}.")
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels must be [example]; got shape {labels.shape}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}); got {labels.min()} to"
            f" {labels.max()}."
        )
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    effective = counts if kind == "inverse" else (1 - beta**counts) / (1 - beta)
    present = counts > 0
    weights = np.where(present, 1 / np.where(present, effective, 1.0), 0.0)
    return (weights * len(labels) / np.sum(weights * counts)).astype(np.float32)
