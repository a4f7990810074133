"""Votes of `report_check.py` without networks: logistic models find flipped labels.

A "report" is the label of a breast-cancer row, flipped in some; a member says whether
it was. Each member knows a few features and a few rows, the "reader" is one more.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensjax import combine, data
from ensjax.predictions import Predictions


def measure(config) -> dict[str, np.ndarray]:
    """Accuracies `[seed]` of members, vote, reader, and where the reader is wrong."""
    settings = config.alone
    found = [_one_seed(config, settings, seed) for seed in range(settings.num_seeds)]
    return {name: np.asarray([f[name] for f in found]) for name in found[0]}


def _one_seed(config, settings, seed):
    x, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng([config.seed, seed, 3])
    train, test = data.train_test_split(
        len(y), test_size=settings.num_test, seed=seed, labels=y
    )
    is_flipped = rng.uniform(size=len(test)) < settings.flipped_share
    report = np.where(is_flipped, 1 - y[test], y[test])
    says = []
    for _ in range(config.num_members + 1):
        features = rng.choice(x.shape[1], settings.num_features, replace=False)
        rows = rng.choice(train, settings.num_rows)
        while len(set(y[rows])) < 2:  # a resample without one of the classes
            rows = rng.choice(train, settings.num_rows)
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(x[np.ix_(rows, features)], y[rows])
        says.append(model.predict(x[np.ix_(test, features)]) != report)
    *members, reader = np.asarray(says)
    votes = Predictions.from_votes(np.asarray(members, np.int32), 2)
    vote = np.asarray(combine.majority_vote(votes)) == is_flipped
    right, reader_right = np.asarray(members) == is_flipped, reader == is_flipped
    return {
        "member": right.mean(),
        "best": right.mean(axis=1).max(),
        "vote": vote.mean(),
        "reader": reader_right.mean(),
        "cases": (~reader_right).sum(),
        "vote_wrong": vote[~reader_right].mean(),
        "member_wrong": right[:, ~reader_right].mean(),
    }
