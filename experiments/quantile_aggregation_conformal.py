"""Conformal steps of `quantile_aggregation.py`: bands that were wrong are moved.

Every band is the pair of quantiles of the levels a and 1 - a. Calibration rows are rows
that neither the base models nor the aggregator has seen: the fold that was held out.
"""

import dataclasses

import numpy as np

from ensjax import combine
from ensjax.provenance import Provenance

STEPS = ("before", "cqr", "cqr_asymmetric", "cv_plus")


def bands(
    fold_train: np.ndarray,
    fold_test: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    levels: np.ndarray,
    *,
    provenance: Provenance | None = None,
    test_provenance: Provenance | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Central bands of the test rows, before and after each conformal step.

    Split steps take the aggregator that holds fold 0 out, and these rows alone; CV+
    takes every row with the aggregator of its fold.

    Args:
        fold_train: ordered quantiles of the training rows by the aggregators of each
            fold, `[fold, batch, level]`; only those of the held-out fold are used.
        fold_test: the same of the test rows.
        targets: of the training rows, `[batch]`.
        fold: `[batch]`.
        levels: `[level]`, symmetric.
        provenance: of the training rows; what the aggregators have seen is added.
        test_provenance: of the test rows.

    Returns:
        By step, lower and upper ends `[test, band]`, the widest band first.

    Raises:
        LeakageError: if calibration rows were seen by what speaks of them, or are
            tested on.
    """
    speaker = fold  # each row by the model without it
    own = fold_train[speaker, np.arange(len(fold))]
    first = fold == 0
    about_own = about_first = None
    if provenance is not None:
        # An aggregator has seen the rows of all folds but its own.
        about_own = dataclasses.replace(provenance, seen=(fold != speaker)[None])
        about_first = about_own.take(np.flatnonzero(first))
    found = {step: [] for step in STEPS}
    tested = dict(provenance=test_provenance)
    for k in range(len(levels) // 2):
        alpha = float(2 * levels[k])
        said = own[:, k], own[:, -1 - k]
        held_out = *(end[first] for end in said), targets[first]
        test = fold_test[:, :, k], fold_test[:, :, -1 - k]
        of_first = [end[0] for end in test]
        found["before"].append(of_first)
        cqr = combine.fit_conformal_band(*held_out, alpha=alpha, provenance=about_first)
        found["cqr"].append(cqr(*of_first, **tested))
        asymmetric = combine.fit_asymmetric_band(
            *held_out, alpha=alpha, provenance=about_first
        )
        found["cqr_asymmetric"].append(asymmetric(*of_first, **tested))
        cv_plus = combine.fit_cv_plus_band(*said, targets, fold, provenance=about_own)
        found["cv_plus"].append(cv_plus(*test, alpha=alpha, **tested))
    return {
        step: tuple(np.stack(ends, axis=1) for ends in zip(*pairs))
        for step, pairs in found.items()
    }


def measure(ends, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and mean width of each band, `[band]`."""
    lower, upper = ends
    inside = (lower <= targets[:, None]) & (targets[:, None] <= upper)
    return inside.mean(axis=0), (upper - lower).mean(axis=0)
