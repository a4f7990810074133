"""Which rows train and which rows test: seeded splits that return row numbers.

Every function returns row numbers, never arrays, so that what a model has seen can be
written down beside its results and checked later.
"""

import numpy as np

from ensjax.provenance import row_numbers


def train_test_split(
    num_examples: int,
    *,
    test_size: int | float,
    seed: int,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a training and a test set, disjoint and together all rows.

    Args:
        num_examples: rows in the source.
        test_size: rows of the test set: a count (int), or a share in (0, 1) (float),
            rounded to the nearest count.
        seed: of the draw; the same seed gives the same rows in the same order.
        labels: `[num_examples]`; if given the split is stratified: each class has its
            share of the test set to within one row (largest remainders).

    Returns:
        `(train_ids, test_ids)`, int64, each in random order (so that a slice of either
        is a fair sample also where the source is sorted by class).

    Raises:
        ValueError: if a set would be empty, or `labels` has another length.
    """
    num_test = _num_test(num_examples, test_size)
    rng = np.random.default_rng(seed)
    if labels is None:
        order = rng.permutation(num_examples)
        return order[num_test:], order[:num_test]
    groups = _rows_by_class(num_examples, labels, rng)
    counts = _largest_remainders([len(rows) for rows in groups], num_test)
    test_ids = np.concatenate([g[:c] for g, c in zip(groups, counts, strict=True)])
    train_ids = np.concatenate([g[c:] for g, c in zip(groups, counts, strict=True)])
    return rng.permutation(train_ids), rng.permutation(test_ids)


def k_folds(
    num_examples: int,
    num_folds: int,
    *,
    seed: int,
    labels: np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of `num_folds` splits whose test sets partition all rows.

    Args:
        num_examples: rows in the source.
        num_folds: number of test sets, from 2 to `num_examples`; sizes differ by at
            most 1.
        seed: of the draw.
        labels: `[num_examples]`; if given, the folds' counts of each class differ by at
            most 1 as well.

    Returns:
        A list of `(train_ids, test_ids)`, int64; both are sorted.

    Raises:
        ValueError: if `num_folds` is out of range, or `labels` has another length.
    """
    if not 2 <= num_folds <= num_examples:
        raise ValueError(
            f"num_folds must be from 2 to num_examples={num_examples}; got {num_folds}."
        )
    rng = np.random.default_rng(seed)
    if labels is None:
        order = rng.permutation(num_examples)
    else:
        order = np.concatenate(_rows_by_class(num_examples, labels, rng))
    # Dealing like cards keeps both the folds and the classes in each fold equal to
    # within one row, because the rows of a class lie side by side in `order`.
    fold_of_row = np.empty(num_examples, np.int64)
    fold_of_row[order] = np.arange(num_examples) % num_folds
    return [
        (np.flatnonzero(fold_of_row != fold), np.flatnonzero(fold_of_row == fold))
        for fold in range(num_folds)
    ]


def check_disjoint(
    a: np.ndarray, b: np.ndarray, *, names: tuple[str, str] = ("a", "b")
) -> None:
    """Raises `ValueError`, naming the rows, if two sets of row numbers share any.

    `TypeError` if one is a mask, or no row numbers.
    """
    overlap = np.intersect1d(row_numbers(names[0], a), row_numbers(names[1], b))
    if overlap.size:
        shown = ", ".join(str(row) for row in overlap[:5])
        more = f", ... ({overlap.size} in all)" if overlap.size > 5 else ""
        raise ValueError(
            f"{names[0]} and {names[1]} must share no row; both hold {shown}{more}."
            " Scores on rows that were trained on are not test scores: split again"
            " with train_test_split or k_folds."
        )


def _num_test(num_examples, test_size):
    if isinstance(test_size, float):
        if not 0.0 < test_size < 1.0:
            raise ValueError(
                f"test_size as a float is a share in (0, 1); got {test_size}."
                " Give an int for a number of rows."
            )
        num_test = round(test_size * num_examples)
    else:
        num_test = test_size
    if not 0 < num_test < num_examples:
        raise ValueError(
            f"test_size={test_size} of {num_examples} rows gives {num_test} test rows"
            f" and {num_examples - num_test} training rows; both sets need at least 1."
        )
    return num_test


def _rows_by_class(num_examples, labels, rng):
    labels = np.asarray(labels)
    if labels.shape != (num_examples,):
        raise ValueError(
            f"labels must be [num_examples] = [{num_examples}]; got shape"
            f" {labels.shape}."
        )
    return [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]


def _largest_remainders(class_counts, total):
    quotas = total * np.asarray(class_counts) / sum(class_counts)
    counts = np.floor(quotas).astype(np.int64)
    # A stable sort gives ties to the lower class, on every platform.
    order = np.argsort(-(quotas - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts
