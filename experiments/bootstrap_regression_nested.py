"""Nested selection for `bootstrap_regression.py`: settings are chosen in inner folds.

Features are ranked, and settings compared, on training rows of an inner fold alone: no
test row of the outer split is looked at.
"""

import itertools

import numpy as np

from ensjax import data
from ensjax.experiment.fields import load_beside

rows = load_beside(__file__, "bootstrap_regression_rows")

FIRST_NUMBER = 10  # of the jobs of nested selection, behind the others of a seed


def presets(config) -> list[tuple[float, float, float]]:
    """Learning rate, weight decay and share of features of every combination."""
    nested = config.nested
    return list(
        itertools.product(
            nested.learning_rates, nested.weight_decays, nested.feature_shares
        )
    )


def folds_of(config, table, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inner training and validation rows, of the outer training rows of a seed."""
    train, _ = rows.split_rows(config, table, seed)
    folds = data.k_folds(
        len(train), config.nested.num_folds, seed=1000 * config.seed + seed
    )
    return [(train[inner], train[held]) for inner, held in folds]


def list_jobs(config, table) -> list:
    """One bootstrap ensemble for each seed, inner fold and preset, in that order."""
    jobs = []
    for seed in range(config.num_seeds):
        number = FIRST_NUMBER
        for fold, (inner, _) in enumerate(folds_of(config, table, seed)):
            order = np.arange(table.x.shape[1])
            if min(config.nested.feature_shares) < 1:
                order = rank_features(table.x[inner], table.y[inner])
            for preset, (rate, decay, share) in enumerate(presets(config)):
                features = np.zeros(table.x.shape[1], bool)
                features[order[: max(1, round(share * len(order)))]] = True
                jobs.append(
                    rows.Job(
                        name=f"nested-{fold}-{preset}",
                        seed=seed,
                        number=number,
                        train_rows=inner,
                        num_members=config.nested.num_members,
                        is_resampled=True,
                        learning_rate=rate,
                        weight_decay=decay,
                        features=features,
                    )
                )
                number += 1
    return jobs


def predict(config, table, jobs, points, seed) -> np.ndarray:
    """Predictions of the kept ensembles on all rows, `[row]`: the mean of all members.

    Of every inner fold the `num_kept` presets of smallest error on its validation rows
    are kept.

    Args:
        jobs: those of `list_jobs`.
        points: for each job, `[member, row]`.
    """
    kept = []
    for fold, (_, held) in enumerate(folds_of(config, table, seed)):
        own = [
            points[place]
            for place, job in enumerate(jobs)
            if job.seed == seed and job.name.startswith(f"nested-{fold}-")
        ]
        errors = [np.abs(p.mean(0)[held] - table.y[held]).mean() for p in own]
        kept += [own[i] for i in np.argsort(errors, kind="stable")[: _kept(config)]]
    return np.concatenate(kept).mean(axis=0)


def _kept(config):
    return min(config.nested.num_kept, len(presets(config)))


def rank_features(x, y) -> np.ndarray:
    """Features in order of relevance to the target and redundancy with those before.

    First the feature of largest NMI with the target; then, with S the n chosen so far,
    the feature f of largest

        min over s in S of NMI(f, y) / (NMI(f, s)^p + c),
        p = max(0.1, 4.5 - 0.4 n^0.4),   c = min(1e5, 1e-6 n^3)

    NMI(a, b) = MI(a, b) / ((H(a) + H(b)) / 2) by the nearest-neighbour estimator with
    k = 3, where H(a) = MI(a, a).

    Args:
        x: `[row, feature]`.
        y: `[row]`.

    Returns:
        `[feature]`, the most useful first.

    Source: De Breuck et al. 2021, arXiv:2102.02263, and the code of MODNet 0.1.
    """
    from sklearn.feature_selection import mutual_info_regression

    def information(columns, target):
        return mutual_info_regression(
            columns, target, n_neighbors=3, discrete_features=False, random_state=0
        )

    columns = np.concatenate([x, y[:, None]], axis=1).astype(np.float64)
    shared = np.stack([information(columns, column) for column in columns.T])
    shared = (shared + shared.T) / 2
    entropy = np.maximum(np.diag(shared), 1e-12)
    normal = np.maximum(shared, 0) / ((entropy[:, None] + entropy[None]) / 2)
    relevance, redundancy = normal[:-1, -1], normal[:-1, :-1]
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < len(relevance):
        n = len(chosen)
        power, constant = max(0.1, 4.5 - 0.4 * n**0.4), min(1e5, 1e-6 * n**3)
        score = relevance[:, None] / (redundancy[:, chosen] ** power + constant)
        score = score.min(axis=1)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
    return np.asarray(chosen)
