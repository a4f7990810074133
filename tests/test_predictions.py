"""Predictions: one form for logits, probabilities and votes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from ensjax import predictions
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance


def logits_of(num_members=4, num_rows=7, num_classes=3, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(num_members, num_rows, num_classes))


def test_log_probs_equal_the_float64_reference():
    logits = logits_of()
    expected = log_softmax(logits, axis=-1)
    np.testing.assert_allclose(predictions.log_probs(logits), expected, atol=2e-6)


def test_log_probs_are_float32_and_normalised_from_bfloat16():
    logits = jnp.asarray(logits_of(num_classes=1000), jnp.bfloat16)
    log_probs = predictions.log_probs(logits)
    assert log_probs.dtype == jnp.float32
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1.0, atol=1e-5)


def test_log_probs_leave_log_probs_as_they_are():
    once = predictions.log_probs(logits_of())
    np.testing.assert_allclose(predictions.log_probs(once), once, atol=1e-6)


def test_log_probs_are_finite_at_logits_of_ten_thousand():
    log_probs = predictions.log_probs(jnp.array([[1e4, -1e4], [-1e4, -1e4]]))
    np.testing.assert_allclose(log_probs, [[0.0, -2e4], [np.log(0.5)] * 2], rtol=1e-6)


def test_log_probs_refuse_votes():
    with pytest.raises(TypeError, match="from_votes"):
        predictions.log_probs(jnp.array([[0, 1]]))


def test_votes_take_the_lowest_class_of_equals_and_abstain_on_nan():
    logits = jnp.array([[1.0, 1.0], [0.0, 2.0], [np.nan, 2.0]])
    assert predictions.votes(logits).tolist() == [0, 1, -1]


def test_predictions_pass_through_jit_and_keep_their_kind():
    said = Predictions.from_votes(jnp.array([[0, 2], [1, -1]]), 3, names=["a", "b"])
    back = jax.jit(lambda p: p)(said)
    assert (back.kind, back.names, back.num_classes) == ("votes", ("a", "b"), 3)
    assert back.votes.tolist() == [[0, 2], [1, -1]]


def test_from_probs_clips_zeros_and_normalises_again():
    probs = np.array([[[1.0, 0.0], [0.25, 0.75]]])
    said = Predictions.from_probs(probs, smallest=1e-3)
    expected = [[[1 / 1.001, 1e-3 / 1.001], [0.25, 0.75]]]
    np.testing.assert_allclose(said.probs, expected, rtol=1e-6)
    assert np.isfinite(said.log_probs).all()


def test_from_probs_takes_scikit_learn_estimators():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier

    x, y = load_iris(return_X_y=True)
    models = [LogisticRegression(max_iter=500), DecisionTreeClassifier(max_depth=2)]
    probs = np.stack([m.fit(x, y).predict_proba(x) for m in models])
    said = Predictions.from_probs(probs, names=["linear", "tree"])
    np.testing.assert_allclose(said.probs, probs, atol=1e-6)
    assert (np.asarray(said.votes) == [m.predict(x) for m in models]).all()


def test_votes_carry_no_probabilities():
    said = Predictions.from_votes(jnp.array([[0, 1]]), 2)
    with pytest.raises(TypeError, match="majority_vote"):
        _ = said.log_probs


@pytest.mark.parametrize("shape", [(3,), (4, 7), (1, 4)])
def test_weights_of_another_shape_are_refused_or_taken(shape):
    logits = logits_of()
    if shape == (4, 7):
        assert Predictions.from_logits(logits, weights=np.ones(shape)).num_members == 4
    else:
        with pytest.raises(ValueError, match=r"\[member\] = \(4,\)"):
            Predictions.from_logits(logits, weights=np.ones(shape))


def test_one_model_without_a_member_axis_is_refused():
    with pytest.raises(ValueError, match=r"logits\[None\]"):
        Predictions.from_logits(jnp.zeros((7, 3)))


def test_predictive_equals_the_weighted_mean_probability():
    logits, weights = logits_of(), np.array([1.0, 2.0, 0.0, 5.0])
    log_probs = log_softmax(logits, axis=-1)
    expected = logsumexp(log_probs, axis=0, b=(weights / weights.sum())[:, None, None])
    actual = predictions.predictive_log_probs(logits, weights)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_weights_by_row_equal_each_row_alone():
    logits = logits_of()
    weights = np.random.default_rng(1).uniform(size=(4, 7))
    mask = np.random.default_rng(2).uniform(size=(4, 7)) < 0.8
    mask[0] = True
    actual = predictions.predictive_log_probs(logits, weights, mask)
    for row in range(7):
        alone = predictions.predictive_log_probs(
            logits[mask[:, row], row][:, None], weights[mask[:, row], row]
        )
        np.testing.assert_allclose(actual[row], alone[0], atol=1e-6)


def test_gradient_of_a_weight_at_zero_equals_a_difference_quotient():
    logits = logits_of(scale=0.5)  # small ratios: a difference quotient is near

    def loss(weights):
        return predictions.predictive_log_probs(logits, weights)[:, 0].sum()

    weights = jnp.array([1.0, 0.0, 1.0, 1.0])
    step = 1e-2
    slope = (loss(weights.at[1].add(step)) - loss(weights)) / step
    gradient = jax.grad(loss)(weights)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[1], slope, rtol=5e-2)


def everything():
    """One of each kind: 3 members, 4 rows."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 4, 2))
    return {
        "logits": Predictions.from_logits(values),
        "log_probs": Predictions.from_probs(np.full((3, 4, 2), 0.5)),
        "votes": Predictions.from_votes(jnp.asarray([[0, 1, 1, 0]] * 3), 2),
        "points": Predictions.from_points(values[..., 0], scale=values[..., 1] ** 2),
        "quantiles": Predictions.from_quantiles(values, (0.1, 0.9)),
        "features": Predictions.from_features(values),
    }


def test_what_predictions_do_not_know_is_refused_and_named():
    knows = {
        "log_probs": {"logits", "log_probs"},
        "probs": {"logits", "log_probs"},
        "votes": {"logits", "log_probs", "votes"},
        "points": {"points"},
        "quantiles": {"quantiles"},
        "features": {"features"},
    }
    for kind, said in everything().items():
        for name, kinds in knows.items():
            if kind in kinds:
                assert getattr(said, name).shape[:2] == (3, 4)
            else:
                with pytest.raises(TypeError, match="are .*(Use|made with)"):
                    getattr(said, name)


def test_every_kind_passes_through_jit_as_it_is():
    for said in everything().values():
        back = jax.jit(lambda p: p)(said)
        assert jax.tree.structure(back) == jax.tree.structure(said)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(said)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: Predictions.from_points(np.zeros(3)), "member, batch"),
        (lambda: Predictions.from_points(np.zeros((2, 3)), scale=np.zeros(3)), "scale"),
        (lambda: Predictions.from_points(np.zeros((2, 3)), lower=np.zeros(3)), "go to"),
        (lambda: Predictions.from_quantiles(np.zeros((2, 3, 2)), (0.5, 0.5)), "strict"),
        (
            lambda: Predictions.from_quantiles(np.zeros((2, 3, 2)), (0.0, 0.5)),
            "between",
        ),
        (lambda: Predictions.from_quantiles(np.zeros((2, 3)), (0.5,)), "level=1"),
        (lambda: Predictions.from_features(np.zeros((2, 3))), "feature"),
        (lambda: Predictions.from_logits(np.zeros((2, 3, 2)), columns=["a"]), "2 of"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_selected_members_keep_what_is_theirs():
    rows = Provenance.of("toy", np.arange(4), trained_on=[[0], [1], [2]])
    said = Predictions.from_points(
        np.arange(12.0).reshape(3, 4),
        scale=np.ones((3, 4)),
        weights=np.asarray([1.0, 2.0, 3.0]),
        mask=np.tri(3, 4, 1, dtype=bool),
        names=("a", "b", "c"),
        provenance=rows,
    )
    two = said.select(["c", "a"])
    np.testing.assert_array_equal(two.points, [[8, 9, 10, 11], [0, 1, 2, 3]])
    assert two.names == ("c", "a") and two.weights.tolist() == [3, 1]
    np.testing.assert_array_equal(two.mask, np.tri(3, 4, 1, dtype=bool)[[2, 0]])
    np.testing.assert_array_equal(two.provenance.seen, rows.seen[[2, 0]])
    for members in (slice(2, 3), 2, [False, False, True], "c"):
        assert said.select(members).names == ("c",)
    with pytest.raises(KeyError, match="no member"):
        said.select(["d"])


def test_taken_rows_keep_what_is_theirs():
    said = Predictions.from_votes(
        np.arange(8).reshape(2, 4) % 3,
        3,
        mask=np.ones(2, bool),
        weights=np.arange(8.0).reshape(2, 4),
        provenance=Provenance.of("toy", np.arange(10, 14)),
    )
    two = said.take([3, 0], part="test")
    np.testing.assert_array_equal(two.votes, said.votes[:, [3, 0]])
    np.testing.assert_array_equal(two.weights, [[3, 0], [7, 4]])
    assert two.mask.shape == (2,)
    assert two.provenance == Provenance.of("toy", np.asarray([13, 10]), part="test")


@pytest.mark.parametrize(
    "row, shown",
    [
        ([-5.0, 2.0], r"\[-5.0, 2.0\], with sum -3"),
        ([-0.2, 1.2], r"\[-0.2.*, 1.2.*\], with sum 1"),
        ([30.0, 70.0], r"with sum 100 \(1 such rows\).*from_logits; divide percent"),
        ([0.0, 0.0], "with sum 0 "),
    ],
)
def test_what_is_no_probability_is_refused(row, shown):
    """Clipped and normalised, logits and percentages passed for probabilities."""
    probs = np.full((2, 3, 2), 0.5)
    probs[1, 2] = row
    names = ("tree", "knn")
    with pytest.raises(ValueError, match=f"those of 'knn' in row 2 are .*{shown}"):
        Predictions.from_probs(probs, names=names)
    # Where a member does not count it may hold anything; a NaN stays one.
    Predictions.from_probs(probs, mask=np.array([True, False]))
    by_row = np.ones((2, 3), bool)
    by_row[1, 2] = False
    Predictions.from_probs(probs, mask=by_row)
    made = jax.jit(lambda x: Predictions.from_probs(x).values)(probs)
    assert made.shape == probs.shape


def test_probabilities_are_believed_to_the_rounding_of_what_made_them():
    rng = np.random.default_rng(0)
    exact = jnp.asarray(rng.dirichlet(np.ones(50), size=(2, 8)), jnp.float32)
    for probs in (exact.astype(jnp.bfloat16), jnp.round(exact, 3), exact - 1e-8):
        made = Predictions.from_probs(probs)
        np.testing.assert_allclose(made.probs, exact, atol=2e-3)
    broken = Predictions.from_probs(exact.at[0, 3].set(jnp.nan))
    assert np.isnan(broken.values).all(axis=-1).sum() == 1


def test_labels_and_names_are_pythons_values():
    logits = np.zeros((2, 3, 2))
    made = Predictions.from_logits(
        logits, columns=np.array([3, 7]), names=np.array(["a", "b"])
    )
    assert made.columns == (3, 7) and made.names == ("a", "b")
    assert {type(label) for label in made.columns + made.names} == {int, str}


def test_printed_probabilities_of_many_classes_are_taken():
    probs = np.random.default_rng(0).dirichlet(np.full(100, 0.3), size=(1, 50)).round(2)
    assert np.abs(probs.sum(axis=-1) - 1).max() > 0.02
    assert Predictions.from_probs(probs.astype(np.float32)).num_classes == 100
    with pytest.raises(ValueError, match="must sum to 1"):
        Predictions.from_probs(100 * probs)
