"""Members of any kind: ensembles, estimators of scikit-learn, several sources."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import ensjax
from ensjax import combine, scores
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance
from ensjax.sources import (
    concatenate_predictions,
    encode_labels,
    from_ensemble,
    from_sklearn,
)

X, Y = load_iris(return_X_y=True)
NAMES = np.asarray(["setosa", "versicolor", "virginica"])


class Reversed:
    """A fitted classifier whose `classes_` run the other way, as others' may."""

    def __init__(self, inner):
        self.inner, self.classes_ = inner, inner.classes_[::-1]

    def predict_proba(self, x):
        return self.inner.predict_proba(x)[:, ::-1]

    def predict(self, x):
        return self.inner.predict(x)


def tree(y, depth=2, rows=slice(None)):
    return DecisionTreeClassifier(max_depth=depth, random_state=0).fit(X[rows], y[rows])


@pytest.mark.parametrize(
    "labels",
    [NAMES[Y], Y.astype(float), np.where(Y == 1, 1, -1)],
    ids=["text", "floats", "signs"],
)
def test_classes_in_another_order_are_put_in_order(labels):
    plain = tree(labels)
    said = from_sklearn({"a": plain, "b": Reversed(plain)}, X)
    assert said.kind == "log_probs" and said.names == ("a", "b")
    assert said.columns == tuple(np.unique(labels).tolist())
    want = plain.predict_proba(X)
    np.testing.assert_allclose(said.probs[0], want, atol=1e-6)
    np.testing.assert_array_equal(said.probs[0], said.probs[1])
    other_way = from_sklearn([plain], X, classes=said.columns[::-1])
    np.testing.assert_allclose(other_way.probs[0], want[:, ::-1], atol=1e-6)
    # The index of a label means the same for members and for the truth.
    truth = encode_labels(labels, said.columns)
    right = (np.asarray(said.votes[0]) == truth).mean()
    assert right == pytest.approx(plain.score(X, labels))


def test_a_member_that_has_not_seen_a_class_gives_it_no_probability():
    said = from_sklearn([tree(Y), tree(Y, rows=Y < 2)], X)
    assert said.probs.shape == (2, 150, 3)
    assert float(said.probs[1, :, 2].max()) < 1e-6
    np.testing.assert_allclose(said.probs.sum(-1), 1, atol=1e-6)


def test_an_unknown_label_names_the_member_and_the_label():
    members = {"good": tree(Y), "odd": tree(Y + 1)}
    with pytest.raises(ValueError, match="member 'odd': unknown 3;"):
        from_sklearn(members, X, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="several kinds"):
        from_sklearn([tree(Y), tree(NAMES[Y])], X)
    with pytest.raises(ValueError, match=r"labels: unknown '1'"):
        encode_labels(["1"], [0, 1])


def test_one_member_without_probabilities_makes_votes_of_all():
    svm = LinearSVC(random_state=0).fit(X, NAMES[Y])
    members = [tree(NAMES[Y]), svm]
    said = from_sklearn(members, X)
    assert said.kind == "votes" and said.num_classes == 3
    for votes, member in zip(np.asarray(said.votes), members):
        np.testing.assert_array_equal(NAMES[votes], member.predict(X))
    with pytest.raises(TypeError, match="1 LinearSVC' has no predict_proba"):
        from_sklearn(members, X, kind="probs")


def test_regressors_give_points_and_are_not_mixed_with_classifiers():
    line = LinearRegression().fit(X, X[:, 0])
    stump = DecisionTreeRegressor(max_depth=1).fit(X, X[:, 0])
    said = from_sklearn([line, stump], X)
    want = np.stack([line.predict(X), stump.predict(X)])
    np.testing.assert_allclose(said.points, want, rtol=1e-6)
    with pytest.raises(TypeError, match="make no ensemble"):
        from_sklearn([line, tree(Y)], X)
    with pytest.raises(TypeError, match="not votes"):
        from_sklearn([line], X, kind="votes")
    with pytest.raises(ValueError, match="not fitted"):
        from_sklearn([DecisionTreeClassifier()], X)


def test_members_of_an_ensemble_and_of_scikit_learn_make_one_ensemble():
    ensemble = ensjax.Ensemble.init(
        lambda rngs: nnx.Linear(4, 3, rngs=rngs), num_members=2, seed=0
    )
    x = X.astype(np.float32)
    provenance = Provenance.of("iris", np.arange(150), part="test")
    neural = from_ensemble(ensemble, x, provenance=provenance)
    np.testing.assert_allclose(neural.values, ensemble(x), atol=1e-6)
    trees = from_sklearn([tree(Y)], X, names=["tree"], provenance=provenance)
    both = concatenate_predictions([neural, trees.replace(columns=None)])
    assert both.names == ("member 0", "member 1", "tree") and both.kind == "logits"
    np.testing.assert_allclose(both.probs[2], trees.probs[0], atol=1e-6)
    assert both.provenance == provenance
    points = from_ensemble(ensemble, x, kind="points")
    assert points.points.shape == (2, 150, 3)
    with pytest.raises(ValueError, match="must be one of"):
        from_ensemble(ensemble, x, kind="votes")


def test_predictions_of_other_rows_kinds_or_classes_are_not_joined():
    logits = Predictions.from_logits(np.zeros((2, 4, 3)))
    known = logits.replace(provenance=Provenance.of("toy", np.arange(4)))
    others = {
        "same rows": Predictions.from_logits(np.zeros((1, 5, 3))),
        "agree in num_classes": Predictions.from_logits(np.zeros((1, 4, 2))),
        "agree in kind": Predictions.from_votes(np.zeros((1, 4), int), 3),
        "agree in columns": logits.replace(columns=("a", "b", "c")),
        "is unknown, of others known": known,
    }
    for match, other in others.items():
        with pytest.raises(ValueError, match=match):
            concatenate_predictions([logits, other])
    elsewhere = logits.replace(provenance=Provenance.of("toy", np.arange(1, 5)))
    with pytest.raises(ValueError, match="same order"):
        concatenate_predictions([known, elsewhere])


def test_joined_members_keep_their_masks_weights_and_training_rows():
    rows = np.arange(4)
    trained = Provenance.of("toy", rows, trained_on=[[0], [1, 2]])
    fresh = Provenance.of("toy", rows, test_rows=np.asarray([9]))
    first = Predictions.from_points(np.zeros((2, 4)), provenance=trained)
    mask = np.asarray([[True, False, True, True]])
    second = Predictions.from_points(np.ones((1, 4)), mask=mask, provenance=fresh)
    both = concatenate_predictions([first, second])
    np.testing.assert_array_equal(both.mask, [[1] * 4, [1] * 4, mask[0]])
    assert both.weights.tolist() == [1, 1, 1]
    want = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(both.provenance.seen, want)
    assert both.provenance.test_rows.tolist() == [9]


def test_fitted_members_labels_are_encoded_before_they_are_compared():
    """DESlib compared pre-fitted members' string labels with indices."""
    y = NAMES[Y]
    members = [tree(y, 1), tree(y, 2), LogisticRegression(max_iter=500).fit(X, y)]
    said = from_sklearn(members, X, kind="votes")
    chosen = np.asarray(jax.jit(combine.majority_vote)(said))
    chosen = np.asarray(said.columns)[chosen]
    by_hand = []
    for row in np.stack([m.predict(X) for m in members], axis=1):
        names, counts = np.unique(row, return_counts=True)
        by_hand.append(names[counts.argmax()])
    np.testing.assert_array_equal(chosen, by_hand)


def test_weighted_probabilities_are_averaged_without_a_second_softmax():
    """DESlib's weighted soft vote takes the softmax of probabilities."""
    probs = np.asarray([[[0.9, 0.1, 0.0]], [[0.2, 0.3, 0.5]]])
    said = Predictions.from_probs(probs)
    pooled = jax.jit(combine.mean_probs)(said, jnp.asarray([3.0, 1.0]))
    want = (3 * probs[0] + probs[1]) / 4
    np.testing.assert_allclose(jnp.exp(pooled), want, atol=1e-6)


@pytest.mark.slow
def test_the_ensembles_accuracy_is_of_its_predictions_not_the_mean_of_members():
    """flax's first how-to averaged the members' accuracies."""
    logits = 4 * jnp.asarray([[[1.0, 0], [1, 0], [0, 1]], [[1, 0], [0, 1], [1, 0]]])
    third = 4 * jnp.asarray([[[0.0, 1], [1, 0], [1, 0]]])
    said = jnp.concatenate([logits, third])  # each is wrong once, on its own row
    labels = jnp.asarray([0, 0, 0])
    result = scores.evaluate(said, labels, ["accuracy"])
    assert result["accuracy_mean_member"] == pytest.approx(2 / 3)
    assert result["accuracy"] == 1.0
    assert float(scores.accuracy(combine.mean_probs(said), labels)) == 1.0
