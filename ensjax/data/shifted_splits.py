"""Splits whose test rows come from elsewhere: another cluster, one end of a range.

All return `(train_ids, shifted_ids)`, sorted row numbers, disjoint and together all
rows. What an error on the shifted rows means is seen beside one on random rows of the
same number.
"""

import numpy as np

ENDS = ("upper", "lower")


def split_by_feature(
    values: np.ndarray, *, share: float = 0.2, end: str = "upper"
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out one end of a feature, or of the target: the rows of extreme values.

    Args:
        values: `[example]`, one feature of every row, or the target itself.
        share: of the rows that are held out, in (0, 1), rounded to whole rows.
        end: "upper" or "lower". Rows of equal value at the border stay in order of
            their row numbers.

    Raises:
        ValueError: for an unknown end, other shapes, or an empty part.
    """
    if end not in ENDS:
        raise ValueError(f"end must be one of {', '.join(ENDS)}; got {end!r}.")
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"values must be [example]; got shape {values.shape}.")
    num_held = round(share * len(values)) if 0 < share < 1 else 0
    if not 0 < num_held < len(values):
        raise ValueError(
            f"share={share} of {len(values)} rows leaves a part without rows."
        )
    order = np.argsort(values if end == "upper" else -values, kind="stable")
    return np.sort(order[:-num_held]), np.sort(order[-num_held:])


def split_by_cluster(
    x: np.ndarray, *, num_clusters: int = 5, cluster: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out one cluster of rows (k-means on standardised features).

    Args:
        x: `[example, feature]`.
        num_clusters: number of clusters, at least 2.
        cluster: which one, by size: 0 is the smallest.
        seed: of k-means.

    Raises:
        ValueError: if `cluster` is no cluster, or there are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not 2 <= num_clusters <= len(x):
        raise ValueError(
            f"x must be [example, feature] with at least num_clusters={num_clusters}"
            f" (2 or more) rows; got shape {x.shape}."
        )
    if not 0 <= cluster < num_clusters:
        raise ValueError(
            f"cluster must be from 0 to {num_clusters - 1}; got {cluster}."
        )
    scale = x.std(axis=0)
    scaled = (x - x.mean(axis=0)) / np.where(scale == 0, 1.0, scale)
    found = KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(scaled)
    sizes = np.bincount(found, minlength=num_clusters)
    held = np.argsort(sizes, kind="stable")[cluster]
    return np.flatnonzero(found != held), np.flatnonzero(found == held)


def thin_target(
    targets: np.ndarray,
    *,
    share: float = 0.2,
    keep: float = 0.1,
    end: str = "upper",
    seed: int = 0,
) -> np.ndarray:
    """Rows of a training set in which one end of the target is rare.

    Args:
        targets: `[example]`.
        share: of the rows that count as the end, in (0, 1).
        keep: part of them that is kept, in [0, 1], drawn at random.
        end: "upper" or "lower".
        seed: of the draw.

    Returns:
        Row numbers, sorted; all rows outside the end are kept.

    Raises:
        ValueError: for an unknown end or numbers out of range.
    """
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep must lie in [0, 1]; got {keep}.")
    inside, tail = split_by_feature(targets, share=share, end=end)
    kept = np.random.default_rng(seed).permutation(tail)[: round(keep * len(tail))]
    return np.sort(np.concatenate([inside, kept]))
