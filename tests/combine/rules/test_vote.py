"""Votes: counts by hand, tie policies, scikit-learn's voting, weights of Kuncheva."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import combine
from ensjax.predictions import Predictions


def said(votes, num_classes=3, **kwargs):
    return Predictions.from_votes(jnp.asarray(votes), num_classes, **kwargs)


def test_majority_equals_a_count_of_each_row():
    votes = np.random.default_rng(0).integers(0, 4, size=(7, 50))
    counts = np.stack([np.bincount(column, minlength=4) for column in votes.T])
    actual = combine.majority_vote(said(votes, 4))
    assert (np.asarray(actual) == counts.argmax(-1)).all()
    unsure = np.sort(counts, axis=-1)
    unsure = unsure[:, -1] == unsure[:, -2]
    actual = np.asarray(combine.majority_vote(said(votes, 4), ties="abstain"))
    assert (actual == np.where(unsure, -1, counts.argmax(-1))).all() and unsure.any()


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_votes_equal_scikit_learn(weights):
    from sklearn.datasets import load_iris
    from sklearn.ensemble import VotingClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    x, y = load_iris(return_X_y=True)
    x = x[:, :2]  # two features: members disagree
    models = [
        GaussianNB(),
        KNeighborsClassifier(1),
        DecisionTreeClassifier(max_depth=1),
    ]
    named = [(str(i), m) for i, m in enumerate(models)]
    theirs = VotingClassifier(named, voting="hard", weights=weights).fit(x, y)
    probs = np.stack([m.predict_proba(x) for m in theirs.estimators_])
    ours = Predictions.from_probs(probs)
    actual = (
        combine.majority_vote(ours)
        if weights is None
        else combine.weighted_vote(ours, jnp.asarray(weights))
    )
    assert (np.asarray(actual) == theirs.predict(x)).all()
    assert len({tuple(v) for v in np.asarray(ours.votes)}) == 3


def test_ties_go_to_the_lowest_or_the_most_probable_or_to_nobody():
    probs = np.array([[[0.5, 0.1, 0.4]], [[0.0, 0.1, 0.9]]])
    for ties, winner in [("lowest", 0), ("probability", 2), ("abstain", -1)]:
        logits = np.log(probs + 1e-9)
        assert combine.majority_vote(logits, ties=ties).tolist() == [winner]


def test_probability_breaks_ties_only_among_the_tied():
    # Class 1 has the largest mean probability but no vote.
    probs = np.array([[[0.51, 0.49, 0.0]], [[0.0, 0.49, 0.51]]])
    logits = np.log(probs + 1e-9)
    assert combine.majority_vote(logits, ties="probability").tolist() == [0]


def test_sums_that_differ_by_rounding_are_ties():
    weights = jnp.array([0.1, 0.2, 0.3])
    assert combine.weighted_vote(said([[1], [1], [0]]), weights).tolist() == [0]
    out = combine.weighted_vote(said([[1], [1], [0]]), weights, ties="abstain")
    assert out.tolist() == [-1]


@pytest.mark.parametrize(
    "ties",
    ["lowest", "abstain", pytest.param("probability", marks=pytest.mark.slow)],
)
def test_properties_of_members(ties):
    logits = np.random.default_rng(1).normal(size=(6, 40, 3))
    plain = combine.majority_vote(logits, ties=ties)
    rule = jax.jit(lambda x, m: combine.majority_vote(x, ties=ties, mask=m))
    everyone = np.ones(6, bool)
    assert (rule(logits[::-1], everyone) == plain).all()
    doubled = combine.majority_vote(np.tile(logits, (2, 1, 1)), ties=ties)
    assert (doubled == plain).all()
    mask = np.array([True, False, True, True, True, False])
    broken = np.where(mask[:, None, None], logits, np.nan)
    removed = combine.majority_vote(logits[mask], ties=ties)
    assert (rule(broken, mask) == removed).all()
    alone = combine.majority_vote(logits[:1], ties=ties)
    assert (np.asarray(alone) == logits[0].argmax(-1)).all()
    assert np.isfinite(rule(1e4 * logits, everyone)).all()


def test_equal_weights_are_a_majority_and_one_heavy_member_decides():
    logits = np.random.default_rng(2).normal(size=(5, 30, 3))
    equal = combine.weighted_vote(logits, jnp.full(5, 0.7))
    assert (equal == combine.majority_vote(logits)).all()
    heavy = combine.weighted_vote(logits, jnp.array([1.0, 1, 9, 1, 1]))
    assert (np.asarray(heavy) == logits[2].argmax(-1)).all()


def test_members_that_abstain_do_not_count():
    votes = [[-1, -1], [2, -1]]
    assert combine.majority_vote(said(votes)).tolist() == [2, -1]
    broken = np.array([[[np.nan, 1.0]], [[0.0, 3.0]]])
    assert combine.majority_vote(broken, ties="probability").tolist() == [1]


def test_a_member_worse_than_chance_counts_against_its_class():
    out = combine.weighted_vote(said([[0]], 2), jnp.array([-1.0]))
    assert out.tolist() == [1]


def test_accuracy_weights_by_hand():
    weights = combine.accuracy_weights(jnp.array([0.5, 0.9, 0.1, 1 / 3]), 3)
    expected = np.log([2 * 0.5 / 0.5, 2 * 9, 2 / 9, 1.0])
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
    ends = combine.accuracy_weights(jnp.array([0.0, 1.0]), 2, clip=0.01)
    np.testing.assert_allclose(ends, [-np.log(99), np.log(99)], rtol=1e-5)


def test_accuracy_weights_are_best_for_independent_members():
    # All patterns of right and wrong of three members of two classes, each with its
    # probability: the expected accuracy of every rule, without sampling.
    accuracy = np.array([0.9, 0.6, 0.6])
    patterns = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1)  # 0 is right
    chance = np.prod(
        np.where(patterns == 0, accuracy[:, None], 1 - accuracy[:, None]), axis=0
    )

    def expected(weights):
        out = combine.weighted_vote(said(patterns, 2), jnp.asarray(weights))
        return float((chance * (np.asarray(out) == 0)).sum())

    best = expected(combine.accuracy_weights(accuracy, 2))
    np.testing.assert_allclose(best, 0.9, rtol=1e-6)
    assert best > expected(np.ones(3))


def test_unknown_ties_and_probabilities_of_votes_are_refused():
    with pytest.raises(ValueError, match="lowest, probability, .*; got 'first'"):
        combine.majority_vote(said([[0]]), ties="first")
    with pytest.raises(ValueError, match="key= go together"):
        combine.majority_vote(said([[0]]), ties="random")
    with pytest.raises(ValueError, match="accuracy= go together"):
        combine.majority_vote(said([[0]]), accuracy=jnp.ones(1))
    with pytest.raises(TypeError, match="no probabilities"):
        combine.majority_vote(said([[0]]), ties="probability")
    with pytest.raises(ValueError, match="weights must be"):
        combine.weighted_vote(said([[0]]), jnp.ones(2))
    with pytest.raises(ValueError, match="num_classes"):
        combine.accuracy_weights(jnp.ones(2), 1)


def test_random_ties_take_each_tied_class_equally_often_and_no_other():
    votes = np.tile([[0], [2], [2], [0], [1]], (1, 4000))
    votes[:3, -1] = 1  # a clear row
    key = jax.random.key(0)
    vote = jax.jit(lambda said: combine.majority_vote(said, ties="random", key=key))
    drawn = np.asarray(vote(said(votes)))
    assert set(drawn[:-1]) == {0, 2} and drawn[-1] == 1
    # Five standard deviations of a fair coin.
    assert abs((drawn == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    again = vote(said(votes[::-1]))
    assert (np.asarray(again) == drawn).all()


def test_the_best_member_among_those_of_tied_classes_decides():
    votes = [[0, 0, 0], [1, 2, 1], [1, 2, -1], [0, 1, 2], [2, 1, 2]]
    accuracy = [0.5, 0.7, 0.6, 0.4, 0.9]
    vote = jax.jit(
        lambda said, mask: combine.weighted_vote(
            said, jnp.ones(5), ties="best_member", accuracy=accuracy, mask=mask
        )
    )
    got = vote(said(votes), np.ones(5, bool))
    # Tied are 0 and 1; 1 and 2; only 2 has two votes.
    assert got.tolist() == [1, 1, 2]
    masked = vote(said(votes), np.asarray([True, True, False, False, False]))
    assert masked.tolist() == [1, 2, 1]


def test_votes_for_no_class_decide_nothing():
    votes = Predictions.from_votes(jnp.array([[7, 1], [9, 7]]), 3)
    assert combine.majority_vote(votes).tolist() == [-1, 1]
