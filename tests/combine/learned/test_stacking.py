"""Stacking: equals scikit-learn's, respects weights and masks, refuses seen rows."""

import functools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize, nnls
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ensjax import combine, data
from ensjax.predictions import Predictions
from ensjax.provenance import LeakageError, Provenance

fit_stacking = jax.jit(combine.fit_stacking, static_argnames="features")
fit_regression = jax.jit(
    combine.fit_stacking_regression, static_argnames=("constraint", "intercept")
)
apply = jax.jit(lambda fitted, outputs: fitted(outputs))
apply_masked = jax.jit(lambda fitted, outputs, mask: fitted(outputs, mask=mask))


def case(num_classes=3, members=3, rows=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, rows)
    logits = 1.5 * rng.normal(size=(members, rows, num_classes))
    logits = logits + 2 * np.eye(num_classes)[labels][None]
    return logits.astype(np.float32), labels, rng.uniform(0, 2, rows)


def points_case(members=5, rows=80, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=rows) + 3
    spread = np.linspace(0.2, 2, members)[:, None]
    points = 0.8 * targets + spread * rng.normal(size=(members, rows)) + spread
    return points.astype(np.float32), targets, rng.uniform(0, 2, rows)


@pytest.mark.parametrize(
    "num_classes, features",
    [
        (3, "probs"),
        pytest.param(2, "probs", marks=pytest.mark.slow),
        pytest.param(3, "log_probs", marks=pytest.mark.slow),
        pytest.param(3, "votes", marks=pytest.mark.slow),
        pytest.param(2, "log_probs", marks=pytest.mark.slow),
    ],
)
def test_equals_weighted_logistic_regression(num_classes, features):
    logits, labels, weight = case(num_classes)
    stacking = fit_stacking(logits, labels, features=features, sample_weight=weight)
    columns = np.asarray(combine.level_one_features(logits, features), np.float64)
    per_member = 1 if (num_classes, features) == (2, "probs") else num_classes
    assert columns.shape == (90, 3 * per_member)
    reference = LogisticRegression(tol=1e-10, max_iter=10_000)
    reference.fit(columns, labels, sample_weight=weight)
    actual = np.exp(apply(stacking, logits))
    np.testing.assert_allclose(actual, reference.predict_proba(columns), atol=1e-5)


def test_level_one_features_say_what_their_names_say():
    logits, _, _ = case(rows=4)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for features, values in [
        ("probs", probs),
        ("log_probs", np.log(probs)),
        ("logits", logits),
        ("votes", np.eye(3)[logits.argmax(-1)]),
    ]:
        expected = np.concatenate(list(values), axis=1)
        actual = combine.level_one_features(logits, features)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    x = np.arange(8.0).reshape(4, 2)
    actual = combine.level_one_features(logits, "sum", x=x, mask=[True, False, True])
    expected = np.concatenate([logits[[0, 2]].sum(0), x], axis=1)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_parity_with_the_stacking_classifier_of_scikit_learn():
    x, y = load_iris(return_X_y=True)
    x, y = x[np.arange(150) % 5 < 3], y[np.arange(150) % 5 < 3]  # 90 rows
    members = [
        ("tree", DecisionTreeClassifier(max_depth=2, random_state=0)),
        ("stump", DecisionTreeClassifier(max_depth=1, random_state=0)),
        ("bayes", GaussianNB()),
    ]
    folds = combine.fold_of_rows(data.k_folds(len(y), 3, seed=0, labels=y))
    cv = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(3)]
    final = LogisticRegression(tol=1e-10, max_iter=10_000)
    reference = StackingClassifier(members, final, cv=cv).fit(x, y)
    probs = combine.estimator_out_of_fold([m for _, m in members], x, y, folds)

    def values(probs):
        return Predictions.from_probs(probs, smallest=1e-9).values

    stacking = fit_stacking(
        values(probs), y, features="probs", sample_weight=np.ones(90)
    )
    # The members that predict are fitted on all rows, in both.
    fitted = np.stack([m.predict_proba(x) for m in reference.estimators_])
    actual = np.exp(apply(stacking, values(fitted)))
    np.testing.assert_allclose(actual, reference.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(actual.argmax(-1), reference.predict(x))


def test_parity_with_the_stacking_regressor_of_scikit_learn():
    x, y = load_diabetes(return_X_y=True)
    members = [
        ("tree", DecisionTreeRegressor(max_depth=3, random_state=0)),
        ("near", KNeighborsRegressor(10)),
        ("line", LinearRegression()),
    ]
    folds = combine.fold_of_rows(data.k_folds(len(y), 3, seed=0))
    cv = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(3)]
    reference = StackingRegressor(members, Ridge(alpha=2.0), cv=cv).fit(x, y)
    level_one = combine.estimator_out_of_fold(
        [m for _, m in members], x, y, folds, method="predict"
    )
    stacking = fit_regression(level_one, y, l2=2.0)
    fitted = np.stack([m.predict(x) for m in reference.estimators_])
    actual = apply(stacking, fitted.astype(np.float32))
    np.testing.assert_allclose(actual, reference.predict(x), rtol=1e-5)


@pytest.mark.parametrize(
    "constraint",
    [
        "simplex",
        pytest.param("free", marks=pytest.mark.slow),
        pytest.param("non_negative", marks=pytest.mark.slow),
    ],
)
def test_regression_weights_equal_the_constrained_minimum(constraint):
    points, targets, weight = points_case()
    fitted = fit_regression(
        points, targets, constraint=constraint, l2=0.3, sample_weight=weight
    )
    centre = weight / weight.sum()
    z = (points - (points @ centre)[:, None]).T.astype(np.float64)
    t = targets - targets @ centre
    root = np.sqrt(weight)
    if constraint == "free":
        expected = np.linalg.solve(z.T * weight @ z + 0.3 * np.eye(5), z.T * weight @ t)
    elif constraint == "non_negative":
        rows = np.concatenate([z * root[:, None], np.sqrt(0.3) * np.eye(5)])
        expected, _ = nnls(rows, np.concatenate([t * root, np.zeros(5)]))
        unbound = np.linalg.lstsq(z * root[:, None], t * root)[0]
        assert (unbound < 0).any()  # the constraint binds
    else:
        expected = minimize(
            lambda w: weight @ (z @ w - t) ** 2 + 0.3 * w @ w,
            np.full(5, 0.2),
            bounds=[(0, None)] * 5,
            constraints=[dict(type="eq", fun=lambda w: w.sum() - 1)],
            method="SLSQP",
            options=dict(ftol=1e-14, maxiter=500),
        ).x
        assert float(fitted.weights.sum()) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(fitted.weights, expected, atol=2e-5)
    offset = targets @ centre - expected @ (points @ centre)
    assert float(fitted.intercept) == pytest.approx(offset, abs=1e-4)
    actual = apply(fitted, points)
    np.testing.assert_allclose(actual, points.T @ expected + offset, atol=1e-4)


def test_a_masked_member_equals_a_removed_one_and_rows_of_weight_zero_leave_no_trace():
    logits, labels, weight = case()
    weight[:5] = 0
    broken = logits.copy()
    broken[1], broken[:, :5] = np.nan, np.inf
    mask = np.array([True, False, True])
    masked = fit_stacking(
        broken, labels, features="probs", mask=mask, sample_weight=weight
    )
    columns = np.asarray(combine.level_one_features(logits[mask]), np.float64)
    removed = LogisticRegression(tol=1e-10, max_iter=10_000)
    removed.fit(columns[5:], labels[5:], sample_weight=weight[5:])
    actual = np.exp(apply_masked(masked, broken, mask))
    np.testing.assert_allclose(
        actual[5:], removed.predict_proba(columns[5:]), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["free", "simplex"])
def test_a_masked_member_of_a_regression_equals_a_removed_one(constraint):
    points, targets, weight = points_case()
    weight[:3] = 0
    mask = np.array([True, False, True, True, True])
    broken = points.copy()
    broken[1], broken[:, :3] = np.nan, np.nan
    fit = functools.partial(fit_regression, constraint=constraint, l2=0.1)
    masked = fit(broken, targets, mask=mask, sample_weight=weight)
    z, t = points[mask][:, 3:].T.astype(np.float64), targets[3:]
    share = weight[3:] / weight.sum()
    z, t = z - share @ z, t - share @ t
    if constraint == "free":
        expected = Ridge(0.1, fit_intercept=False).fit(z, t, weight[3:]).coef_
    else:
        expected = minimize(
            lambda w: weight[3:] @ (z @ w - t) ** 2 + 0.1 * w @ w,
            np.full(4, 0.25),
            bounds=[(0, None)] * 4,
            constraints=[dict(type="eq", fun=lambda w: w.sum() - 1)],
            method="SLSQP",
            options=dict(ftol=1e-14, maxiter=500),
        ).x
    np.testing.assert_allclose(masked.weights[mask], expected, atol=2e-5)
    assert masked.weights[1] == 0
    assert np.isfinite(apply(masked, broken)[3:]).all()


def test_member_order_does_not_matter():
    logits, labels, weight = case()
    order = np.array([2, 0, 1])
    fit = functools.partial(fit_stacking, features="probs", sample_weight=weight)
    a = apply(fit(logits, labels), logits)
    b = apply(fit(logits[order], labels), logits[order])
    np.testing.assert_allclose(np.exp(a), np.exp(b), atol=1e-5)


@pytest.mark.slow
def test_one_member_on_the_simplex_is_itself():
    points, targets, _ = points_case(1)
    alone = combine.fit_stacking_regression(
        points, targets, constraint="simplex", intercept=False
    )
    np.testing.assert_allclose(alone(points), points[0], rtol=1e-6)


def test_rows_that_a_member_saw_and_test_rows_are_refused():
    logits, labels, _ = case(rows=10)
    points, targets, _ = points_case(2, rows=10)
    seen = Provenance.of("toy", np.arange(10), trained_on=[np.array([3, 4]), []])
    with pytest.raises(LeakageError, match="rows 3, 4 of 'toy': member 'a'"):
        combine.fit_stacking(
            Predictions.from_logits(logits[:2], names=("a", "b"), provenance=seen),
            labels,
        )
    with pytest.raises(LeakageError, match="meta-model cannot be fitted on rows 3, 4"):
        combine.fit_stacking_regression(points, targets, provenance=seen)
    # The member that saw them does not count.
    one = np.array([False, True])
    fit = functools.partial(combine.fit_stacking_regression, mask=one)
    jax.eval_shape(functools.partial(fit, provenance=seen), points, targets)
    held_out = Provenance("toy", np.arange(10))
    stacking = jax.eval_shape(
        combine.fit_stacking,
        Predictions.from_logits(logits, provenance=held_out),
        labels,
    )
    test = held_out.take(np.array([7, 2]), part="test")
    with pytest.raises(LeakageError, match="rows 2, 7 of 'toy', which are test rows"):
        stacking(Predictions.from_logits(logits[:, [7, 2]], provenance=test))


def test_mistakes_are_named():
    logits, labels, _ = case(rows=6)
    with pytest.raises(ValueError, match="one of log_probs, probs"):
        combine.fit_stacking(logits, labels, features="all")
    with pytest.raises(ValueError, match="l2 must not be negative"):
        combine.fit_stacking(logits, labels, l2=-1.0)
    with pytest.raises(ValueError, match="at least one held-out row"):
        combine.fit_stacking(logits[:, :0], labels[:0])
    with pytest.raises(TypeError, match="labels must be integers"):
        combine.fit_stacking(logits, labels * 1.0)
    with pytest.raises(TypeError, match="carry no logits"):
        probs = np.full((2, 6, 3), 1 / 3)
        combine.fit_stacking(Predictions.from_probs(probs), labels, features="logits")
    with pytest.raises(ValueError, match="fitted on 3 members and 9 features; got 2"):
        jax.eval_shape(combine.fit_stacking, logits, labels)(logits[:2])
    with pytest.raises(ValueError, match="constraint must be one of free"):
        combine.fit_stacking_regression(logits[..., 0], labels, constraint="convex")
    with pytest.raises(ValueError, match="on the simplex members alone"):
        combine.fit_stacking_regression(
            logits[..., 0], labels, constraint="simplex", x=np.zeros((6, 1))
        )


def test_a_masked_member_leaves_its_weight_on_the_simplex_to_the_others():
    points, targets, _ = points_case(members=3, rows=30)
    fitted = fit_regression(points, targets, constraint="simplex", intercept=False)
    weights = np.asarray(fitted.weights)
    assert (weights > 0.01).all()
    new = np.array([[100.0, 1], [100.0, 2], [np.nan, 3]], np.float32)
    mask = np.array([[True, True], [True, False], [False, True]])
    said = Predictions.from_points(new, mask=mask)
    found = fitted(said)
    second = (weights[0] + 3 * weights[2]) / (weights[0] + weights[2])
    np.testing.assert_allclose(found.values, [[100.0, second]], rtol=1e-6)
    np.testing.assert_array_equal(fitted(new, mask=mask), found.values[0])
    np.testing.assert_array_equal(apply_masked(fitted, new, mask), found.values[0])
    nobody = fitted(new, mask=np.zeros((3, 2), bool))
    assert np.isnan(nobody).all()


def test_a_masked_member_with_a_weight_that_is_not_shared_out_is_refused():
    points, targets, _ = points_case(members=3, rows=30)
    fitted = fit_regression(points, targets)
    said = Predictions.from_points(points, mask=np.array([True, False, True]))
    with pytest.raises(ValueError, match=r"of its members \[1\] are masked"):
        fitted(said)
    # A program cannot raise: rows that lack nothing keep their values.
    mask = np.ones((3, 30), bool)
    mask[1, :4] = False
    found = np.asarray(apply_masked(fitted, points, mask))
    assert np.isnan(found[:4]).all()
    np.testing.assert_array_equal(found[4:], np.asarray(apply(fitted, points))[4:])
    # One that was masked in the fit has no weight to miss.
    without = fit_regression(points, targets, mask=np.array([True, False, True]))
    np.testing.assert_array_equal(
        without(said).values[0], np.asarray(apply(without, points))
    )
