"""The challenge's metrics again, as loops from its definitions, in double precision.

A check of every run: on random forecasts, with ties and with unknown truths, they equal
those of `ensjax.scores` to 1e-12.
"""

import jax
import numpy as np
from scipy.stats import rankdata

from ensjax import scores


def mauc(probs, labels) -> float:
    """Hand and Till: the mean of A(i|j) over ordered pairs of classes."""
    total, num_classes = 0.0, probs.shape[1]
    for i in range(num_classes):
        for j in range(num_classes):
            if i == j:
                continue
            rows = (labels == i) | (labels == j)
            ranks = rankdata(probs[rows, i])
            of_class = labels[rows] == i
            n_i, n_j = of_class.sum(), (~of_class).sum()
            area = ranks[of_class].sum() - n_i * (n_i + 1) / 2
            total += area / (n_i * n_j)
    return total / (num_classes * (num_classes - 1))


def bca(probs, labels) -> float:
    """The mean over classes of half of sensitivity plus specificity."""
    chosen, parts = probs.argmax(axis=1), []
    for c in range(probs.shape[1]):
        is_class, is_chosen = labels == c, chosen == c
        tp, fn = (is_chosen & is_class).sum(), (~is_chosen & is_class).sum()
        tn, fp = (~is_chosen & ~is_class).sum(), (is_chosen & ~is_class).sum()
        parts.append((tp / (tp + fn) + tn / (tn + fp)) / 2)
    return float(np.mean(parts))


def point_metrics(point, lower, upper, truth) -> dict[str, float]:
    """MAE, WES and CPA over the rows whose truth is known."""
    rows = [row for row in zip(point, lower, upper, truth) if not np.isnan(row[3])]
    certainty = [1 / (high - low) for _, low, high, _ in rows]
    errors = [abs(y - guess) for guess, _, _, y in rows]
    inside = [low < y < high for _, low, high, y in rows]
    return {
        "mae": sum(errors) / len(rows),
        "wes": sum(c * e for c, e in zip(certainty, errors)) / sum(certainty),
        "cpa": abs(sum(inside) / len(rows) - 0.5),
    }


@jax.jit
def _metrics(log_probs, labels, point, lower, upper, truth, weight):
    told = dict(sample_weight=weight)
    return {
        "mauc": scores.hand_till_auroc(log_probs, labels, **told),
        "bca": scores.balanced_classification_accuracy(log_probs, labels, **told),
        "mae": scores.mae(point, truth, **told),
        "wes": scores.weighted_error_score(point, lower, upper, truth, **told),
        "cpa": scores.coverage_probability_accuracy(lower, upper, truth, **told),
    }


def distances(seed: int, *, ties: bool, num_rows: int = 60) -> dict[str, float]:
    """How far each metric is from its loop, on random forecasts of three classes.

    A fifth of the truths is unknown (NaN). With ties, rows of probabilities come
    several times, and points and truths are whole.
    """
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1, 1, 1], size=num_rows)
    if ties:
        # Equal rows; equal numbers in other rows differ once they are normalised.
        probs = probs[rng.integers(0, 8, num_rows)]
    labels = rng.integers(0, 3, num_rows)
    point, truth = rng.normal(size=(2, num_rows))
    half = rng.uniform(0.1, 1, num_rows)
    if ties:
        point, truth = np.round(point), np.round(truth)
    known = rng.uniform(size=num_rows) >= 0.2
    truth = np.where(known, truth, np.nan)
    ends = point - half, point + half
    with jax.enable_x64(True):
        weight = known.astype(float)
        found = _metrics(np.log(probs), labels, point, *ends, truth, weight)
        found = {name: float(value) for name, value in found.items()}
    want = {"mauc": mauc(probs[known], labels[known])}
    want["bca"] = bca(probs[known], labels[known])
    want |= point_metrics(point, *ends, truth)
    return {name: abs(found[name] - value) for name, value in want.items()}
