"""Out-of-bag ensembles against scikit-learn's, and priors against Bayes' rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ensjax import combine, scores
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance


def _counts(bag, num_rows):
    return np.stack(
        [np.bincount(r, minlength=num_rows) for r in bag.estimators_samples_]
    )


def test_out_of_bag_probabilities_and_score_equal_scikit_learn():
    x, y = load_iris(return_X_y=True)
    tree = DecisionTreeClassifier(max_depth=2, random_state=0)
    bag = BaggingClassifier(tree, 12, oob_score=True, random_state=0).fit(x, y)
    counts = _counts(bag, len(x))
    probs = np.stack([member.predict_proba(x) for member in bag.estimators_])
    predictions = Predictions.from_probs(probs)
    found = jax.jit(combine.out_of_bag_log_probs)(predictions, counts)
    known = (counts == 0).any(axis=0)
    np.testing.assert_allclose(
        np.exp(found)[known], bag.oob_decision_function_[known], atol=1e-5
    )
    assert np.isnan(found[~known]).all()
    score = combine.out_of_bag_score(scores.accuracy, predictions, counts, y)
    # scikit-learn scores every row, those that nobody left out as class 0.
    kept = bag.oob_decision_function_[known].argmax(axis=1) == y[known]
    np.testing.assert_allclose(score, kept.mean(), rtol=1e-6)


def test_out_of_bag_points_equal_scikit_learn_and_a_loop():
    x, y = load_iris(return_X_y=True)
    bag = BaggingRegressor(
        DecisionTreeRegressor(max_depth=2, random_state=0),
        12,
        oob_score=True,
        random_state=0,
    ).fit(x, y)
    counts = _counts(bag, len(x))
    points = np.stack([member.predict(x) for member in bag.estimators_])
    found = jax.jit(combine.out_of_bag_points, static_argnames="ddof")(
        points, counts, ddof=1
    )
    known = (counts == 0).sum(axis=0) > 1
    np.testing.assert_allclose(
        found.mean[known], bag.oob_prediction_[known], rtol=1e-5, atol=1e-6
    )
    for row in np.flatnonzero(known)[::10]:
        own = points[counts[:, row] == 0, row]
        assert found.num_members[row] == len(own)
        np.testing.assert_allclose(found.std[row], own.std(ddof=1), atol=1e-5)


def test_masks_are_kept_and_counts_must_fit():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6, 2)).astype(np.float32)
    counts = np.array([[0, 1, 0, 1, 0, 1], [0] * 6, [2] * 6])
    broken = logits.copy()
    broken[1] = np.nan
    masked = Predictions.from_logits(broken, mask=np.array([True, False, True]))
    found = combine.out_of_bag_log_probs(masked, counts)
    np.testing.assert_allclose(
        found[::2], log_softmax(logits[0, ::2], axis=-1), atol=1e-6
    )
    assert np.isnan(found[1::2]).all()
    points = combine.out_of_bag_points(
        broken[..., 0], counts, ddof=0, mask=np.array([True, False, True])
    )
    np.testing.assert_array_equal(points.num_members, [1, 0] * 3)
    with pytest.raises(
        ValueError, match=r"counts must be \[member, batch\] = \(3, 6\)"
    ):
        combine.out_of_bag_predictions(logits, counts[:, :5])


def test_counts_that_disagree_with_the_provenance_are_refused():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 6, 2)).astype(np.float32)
    counts = np.array([[1, 1, 0, 0, 2, 0], [0, 0, 1, 1, 0, 3]])
    labels = np.arange(6) % 2
    rows = np.arange(10, 16)
    right = Provenance("bag", rows, seen=counts > 0)

    def said(about):
        return Predictions.from_logits(logits, provenance=about)

    score = functools.partial(combine.out_of_bag_score, scores.accuracy)
    plain = combine.out_of_bag_log_probs(said(None), counts)
    np.testing.assert_array_equal(
        combine.out_of_bag_log_probs(said(right), counts), plain
    )
    assert score(said(right), counts, labels) == score(said(None), counts, labels)
    wrong = Provenance("bag", rows, seen=counts[::-1] > 0)
    told = "left out 6 rows of 'bag' .the first is row 10. that they were trained on"
    with pytest.raises(LeakageError, match=told):
        combine.out_of_bag_log_probs(said(wrong), counts)
    with pytest.raises(LeakageError, match=told):
        score(said(wrong), counts, labels)
    # Rows without weight do not count, and masked members do not.
    one = right.seen.copy()
    one[0, 2] = True
    one = said(Provenance("bag", rows, seen=one))
    with pytest.raises(LeakageError, match="left out 1 rows .* row 12"):
        score(one, counts, labels)
    weight = np.arange(6) != 2
    assert np.isfinite(score(one, counts, labels, sample_weight=weight))
    score(one.replace(mask=jnp.array([False, True])), counts, labels)
    # Compiled, nothing can raise: the row is NaN, and a score of it.
    log_probs = jax.jit(combine.out_of_bag_log_probs)(one, counts)
    assert np.isnan(log_probs).any(axis=1).tolist() == [i == 2 for i in range(6)]
    assert np.isnan(jax.jit(score)(one, counts, labels))
    assert np.isfinite(jax.jit(score)(said(right), counts, labels))
    with pytest.raises(ValueError, match="of 5 rows, the predictions of 6"):
        cut = said(None).replace(provenance=right.take(np.arange(5)))
        combine.out_of_bag_log_probs(cut, counts)


def test_adjusting_a_prior_is_bayes_rule():
    rng = np.random.default_rng(0)
    likelihood = rng.uniform(0.1, 1, (8, 3))
    train, target = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.0, 0.9])

    def posterior(prior):
        joint = likelihood * prior
        return joint / joint.sum(axis=1, keepdims=True)

    log_probs = np.log(posterior(train))
    found = combine.adjust_prior(log_probs, train, target)
    np.testing.assert_allclose(np.exp(found), posterior(target), atol=1e-6)
    balanced = combine.adjust_prior(log_probs, train)
    np.testing.assert_allclose(np.exp(balanced), posterior(np.ones(3)), atol=1e-6)
    half = combine.adjust_prior(log_probs, train, scale=0.5)
    np.testing.assert_allclose(
        half, log_softmax(log_probs - 0.5 * np.log(train), axis=1), atol=1e-5
    )
    with pytest.raises(ValueError, match=r"a prior must be \[class\] = \(3,\)"):
        combine.adjust_prior(log_probs, train[:2])
