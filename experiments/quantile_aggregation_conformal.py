"""Conformal steps of `quantile_aggregation.py`: bands that were wrong are moved.

Every band is the pair of quantiles of the levels a and 1 - a. Calibration rows are rows
that neither the base models nor the aggregator has seen: the fold that was held out.
"""

import numpy as np

from ensjax import combine

STEPS = ("before", "cqr", "cqr_asymmetric", "cv_plus")


def bands(
    fold_train: np.ndarray,
    fold_test: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    levels: np.ndarray,
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

    Returns:
        By step, lower and upper ends `[test, band]`, the widest band first.
    """
    own = fold_train[fold, np.arange(len(fold))]  # each row by the model without it
    first = fold == 0
    found = {step: [] for step in STEPS}
    for k in range(len(levels) // 2):
        alpha = float(2 * levels[k])
        said = own[:, k], own[:, -1 - k]
        held_out = *(end[first] for end in said), targets[first]
        test = fold_test[:, :, k], fold_test[:, :, -1 - k]
        of_first = [end[0] for end in test]
        found["before"].append(of_first)
        cqr = combine.fit_conformal_band(*held_out, alpha=alpha)
        found["cqr"].append(cqr(*of_first))
        asymmetric = combine.fit_asymmetric_band(*held_out, alpha=alpha)
        found["cqr_asymmetric"].append(asymmetric(*of_first))
        cv_plus = combine.fit_cv_plus_band(*said, targets, fold)
        found["cv_plus"].append(cv_plus(*test, alpha=alpha))
    return {
        step: tuple(np.stack(ends, axis=1) for ends in zip(*pairs))
        for step, pairs in found.items()
    }


def measure(ends, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and mean width of each band, `[band]`."""
    lower, upper = ends
    inside = (lower <= targets[:, None]) & (targets[:, None] <= upper)
    return inside.mean(axis=0), (upper - lower).mean(axis=0)
