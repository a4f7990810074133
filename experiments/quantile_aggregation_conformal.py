"""Conformal steps of `quantile_aggregation.py`: bands that were wrong are moved.

Every band is the pair of quantiles of the levels a and 1 - a. Calibration rows are rows
that neither the base models nor the aggregator has seen: the fold that was held out.
"""

import numpy as np

STEPS = ("before", "cqr", "cqr_asymmetric", "cv_plus")


def threshold(scores: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score; infinite if there are too few."""
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    return np.sort(scores)[rank - 1] if rank <= len(scores) else np.inf


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
    half = len(levels) // 2
    own = fold_train[fold, np.arange(len(fold))]  # each row by the model without it
    first = fold == 0
    found = {step: ([], []) for step in STEPS}
    for k in range(half):
        alpha = 2 * levels[k]
        low, high = own[:, k], own[:, -1 - k]
        test_low, test_high = fold_test[:, :, k], fold_test[:, :, -1 - k]
        below, above = low - targets, targets - high
        both = threshold(np.maximum(below, above)[first], alpha)
        ends = {
            "before": (test_low[0], test_high[0]),
            "cqr": (test_low[0] - both, test_high[0] + both),
            "cqr_asymmetric": (
                test_low[0] - threshold(below[first], alpha / 2),
                test_high[0] + threshold(above[first], alpha / 2),
            ),
            "cv_plus": _cv_plus(
                test_low[fold], test_high[fold], np.maximum(below, above), alpha
            ),
        }
        for step, (lower, upper) in ends.items():
            # A negative threshold can turn a narrow band over.
            found[step][0].append(np.minimum(lower, upper))
            found[step][1].append(np.maximum(lower, upper))
    return {
        step: (np.stack(lower, axis=1), np.stack(upper, axis=1))
        for step, (lower, upper) in found.items()
    }


def _cv_plus(lower, upper, scores, alpha):
    """Ends from each training row's model and score, `[train, test]` to `[test]`.

    The floor(alpha (n + 1))-th smallest lower end and the ceil((1 - alpha)(n + 1))-th
    smallest upper end: Barber et al. 2021, arXiv:1905.02928, section 1.3, with the
    scores of conformalised quantile regression.
    """
    count = len(scores)
    rank = int(np.ceil((count + 1) * (1 - alpha) - 1e-9))
    if rank > count:
        infinite = np.full(lower.shape[1], np.inf)
        return -infinite, infinite
    low = np.sort(lower - scores[:, None], axis=0)[count - rank]
    high = np.sort(upper + scores[:, None], axis=0)[rank - 1]
    return low, high


def measure(ends, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and mean width of each band, `[band]`."""
    lower, upper = ends
    inside = (lower <= targets[:, None]) & (targets[:, None] <= upper)
    return inside.mean(axis=0), (upper - lower).mean(axis=0)
