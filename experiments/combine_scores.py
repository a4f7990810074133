"""What the ways of `bench_combine` share: settings, and what follows from sums."""

import numpy as np

NUM_BINS, TOP_K = 15, 5
COVERAGE, RISK = 0.8, 0.05


def bin_starts(num_rows: int) -> np.ndarray:
    """Where each of `NUM_BINS` bins of equal count starts, the surest row first.

    Row i from the least sure one is in bin floor(NUM_BINS (i + 1/2) / num_rows).
    """
    edges = np.ceil(np.arange(1, NUM_BINS) * num_rows / NUM_BINS - 0.5)
    return np.append(0, np.sort(num_rows - edges)).astype(np.int64)


def of_confusion(shares):
    """Scores from the share of rows of each class that are called each."""
    hits, true, chosen = np.diagonal(shares), shares.sum(axis=1), shares.sum(axis=0)
    chance, agree = (true * chosen).sum(), hits.sum()
    spread = (1 - (true**2).sum()) * (1 - (chosen**2).sum())
    return {
        "balanced_accuracy": (hits[true > 0] / true[true > 0]).mean(),
        "macro_f1": (2 * hits / np.maximum(true + chosen, 1e-30)).mean(),
        "matthews_correlation": (agree - chance) / np.sqrt(spread),
        "cohen_kappa": (agree - chance) / (1 - chance),
    }


def finish(systems, matrix, tables):
    """Names as ours, and what follows from sums."""
    n11, n10, n01, n00 = tables
    alike, unlike = n11 * n00, n10 * n01
    product = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    found = {name: values[-1] for name, values in systems.items()}
    found |= {f"{name}_members": values[:-1] for name, values in systems.items()}
    above = np.triu_indices(len(matrix), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = {
            "error_correlation": (alike - unlike) / np.sqrt(product),
            "q_statistic": (alike - unlike) / (alike + unlike),
        }
    return (
        found
        | pairs
        | {
            "jensen_gap": found["nll_members"].mean() - found["nll"],
            "expected_entropy": found["entropy_members"].mean(),
            "disagreement": matrix[above].mean() if len(matrix) > 1 else 0.0,
            "disagreement_matrix": matrix,
            "double_fault": n00,
        }
    )
