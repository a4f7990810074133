"""The three classifiers of `hybrid_voting.py`, their votes, and scikit-learn's.

The members are those that a `VotingClassifier` has fitted, so that both vote with the
same models. What is scaled or projected is fitted on the training rows of each split.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from ensjax import combine, data, nn
from ensjax.predictions import Predictions

MEMBERS = ("KNN", "RF", "DT")
# Mean probabilities that differ by less are equal: scikit-learn adds in float64.
SOFT_TIE = 1e-6


class Said(NamedTuple):
    """What members and votes said of the test rows of one split.

    Attributes:
        members: classes, `[member, batch]`.
        hard, soft: classes that our votes chose, `[batch]`.
        differ: rows on which our hard or soft vote is not scikit-learn's.
        ties: rows on which several classes have most votes.
        seconds: to fit the members.
    """

    members: np.ndarray
    hard: np.ndarray
    soft: np.ndarray
    differ: int
    ties: int
    seconds: float


def make_members(config, seed: int) -> list[tuple[str, object]]:
    """KNN, random forest and decision tree, unfitted."""
    knn = KNeighborsClassifier(config.num_neighbors)
    forest = RandomForestClassifier(config.num_trees, random_state=seed)
    tree = DecisionTreeClassifier(random_state=seed)
    return list(zip(MEMBERS, (knn, forest, tree)))


def vote(members, x_train, y_train, x_test) -> Said:
    """Fits members, and votes in both ways, on features that are scaled already.

    Classes must be 0, 1, ...; members, as for `VotingClassifier`.
    """
    start = time.perf_counter()
    peer = VotingClassifier(members, voting="hard").fit(x_train, y_train)
    seconds = time.perf_counter() - start
    fitted = list(peer.named_estimators_.values())
    says = np.stack([m.predict(x_test) for m in fitted]).astype(np.int32)
    probs = np.stack([m.predict_proba(x_test) for m in fitted])
    votes = Predictions.from_votes(says, probs.shape[-1])
    hard = np.asarray(combine.majority_vote(votes))
    soft = soft_vote(probs)
    differ = hard != peer.predict(x_test)
    peer.voting = "soft"
    differ |= soft != peer.predict(x_test)
    counts = (says[..., None] == np.arange(probs.shape[-1])).sum(axis=0)
    ties = (counts == counts.max(axis=-1, keepdims=True)).sum(axis=-1) > 1
    return Said(says, hard, soft, int(differ.sum()), int(ties.sum()), seconds)


def soft_vote(probs) -> np.ndarray:
    """The class of the largest mean probability, the lowest among equals."""
    pooled = np.exp(combine.mean_probs(Predictions.from_probs(probs)))
    return np.argmax(pooled >= pooled.max(axis=-1, keepdims=True) - SOFT_TIE, axis=-1)


def split(labels, test_share: float, seed: int):
    """Row numbers of a stratified split, training and test."""
    return data.train_test_split(
        len(labels), test_size=float(test_share), seed=seed, labels=labels
    )


def scale(x_train, x_test):
    """Standardised by the mean and spread of the training rows."""
    scaler = StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test)


def project(x_train, x_test, num_components: int):
    """Scaled, then the first principal components of the training rows."""
    x_train, x_test = scale(x_train, x_test)
    pca = PCA(num_components, svd_solver="full").fit(x_train)
    return pca.transform(x_train), pca.transform(x_test)


@jax.jit
def vote_in_one_program(
    neighbors: nn.NearestNeighbors, others: jax.Array, x: jax.Array
):
    """The hard vote with neighbours that are searched here: one compiled program.

    Args:
        neighbors: the member.
        others: classes that the other members chose, `[member, batch]`.
        x: `[batch, feature]`.

    Returns:
        The neighbours' classes and the vote, both `[batch]`.
    """
    own = jnp.argmax(neighbors(x), axis=-1).astype(jnp.int32)
    says = jnp.concatenate([own[None], others])
    votes = Predictions.from_votes(says, neighbors.num_classes)
    return own, combine.majority_vote(votes)


def measure_table(config) -> dict[str, np.ndarray]:
    """Accuracies on breast-cancer rows, `[split]` and `[split, member]`.

    "rows" are the test rows of each split, "all_rows" those of the data set.
    """
    x, y = load_breast_cancer(return_X_y=True)
    found = []
    for seed in range(config.num_table_splits):
        train, test = split(y, config.test_share, config.seed + seed)
        x_train, x_test = scale(x[train], x[test])
        said = vote(make_members(config, config.seed + seed), x_train, y[train], x_test)
        model = nn.NearestNeighbors(
            x_train, y[train], num_classes=2, num_neighbors=config.num_neighbors
        )
        own, together = vote_in_one_program(model, said.members[1:], x_test)
        found.append(
            accuracies(said, y[test])
            | {
                "differ": said.differ,
                "neighbors_differ": int((np.asarray(own) != said.members[0]).sum()),
                "program_differs": int((np.asarray(together) != said.hard).sum()),
                "rows": len(test),
            }
        )
    arrays = {name: np.asarray([f[name] for f in found]) for name in found[0]}
    return arrays | {"all_rows": np.asarray(len(y))}


def measure_ties(config) -> dict[str, np.ndarray]:
    """Four members on the digits 0 to 3, where votes can tie: differences and ties."""
    x, y = load_digits(n_class=4, return_X_y=True)
    differ, ties = [], []
    for seed in range(config.num_table_splits):
        train, test = split(y, config.test_share, config.seed + seed)
        # So few rows that the members often disagree.
        train = train[:24]
        logistic = make_pipeline(StandardScaler(), LogisticRegression())
        members = [*make_members(config, config.seed + seed), ("LR", logistic)]
        said = vote(members, x[train], y[train], x[test])
        differ.append(said.differ)
        ties.append(said.ties)
    return {"differ": np.asarray(differ), "ties": np.asarray(ties)}


def accuracies(said: Said, labels) -> dict[str, np.ndarray]:
    """Of members `[member]`, and of the hard and the soft vote."""
    return {
        "members": (said.members == labels).mean(axis=1),
        "hard": (said.hard == labels).mean(),
        "soft": (said.soft == labels).mean(),
    }
