"""Risk-coverage scores against loops written from the formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from ensjax import combine, scores


def case(num_rows=50, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(num_rows, 3))
    labels = np.where(rng.uniform(size=num_rows) < 0.6, logits.argmax(-1), 0)
    return logits, labels, rng.normal(size=num_rows)


def loop(error, confidence):
    """risk_k of the k surest rows, k = 1..N, all confidences being different."""
    error = error[np.argsort(-confidence)]
    return np.array([error[:k].mean() for k in range(1, len(error) + 1)])


def errors(logits, labels):
    return (logits.argmax(-1) != labels).astype(float)


def test_curve_and_areas_equal_a_loop_over_thresholds():
    logits, labels, confidence = case()
    error, kept = errors(logits, labels), np.arange(1, 51) / 50
    risk = loop(error, confidence)
    curve = scores.risk_coverage(logits, labels, confidence=confidence)
    np.testing.assert_allclose(curve.coverage, kept, rtol=1e-6)
    np.testing.assert_allclose(curve.risk, risk, rtol=1e-5, atol=1e-6)

    best = loop(error, -error + 1e-6 * confidence)
    for score, expected in [
        (scores.aurc, risk.mean()),
        (scores.excess_aurc, risk.mean() - best.mean()),
        (scores.augrc, (risk * kept).mean()),
    ]:
        actual = score(logits, labels, confidence=confidence)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=score.__name__)


def test_default_confidence_is_the_largest_probability():
    logits, labels, _ = case()
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        scores.aurc(logits, labels),
        scores.aurc(logits, labels, confidence=probs.max(-1)),
        rtol=1e-6,
    )


def test_aurc_by_hand():
    # Sure to unsure: right, wrong, right. risk = 0, 1/2, 1/3.
    log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    labels = jnp.array([0, 1, 0])
    np.testing.assert_allclose(scores.aurc(log_probs, labels), 5 / 18, rtol=1e-6)
    # Best order: risk = 0, 0, 1/3.
    excess = scores.excess_aurc(log_probs, labels)
    np.testing.assert_allclose(excess, 5 / 18 - 1 / 9, rtol=1e-6)
    # risk_k k / N = 0, 1/3, 1/3.
    np.testing.assert_allclose(scores.augrc(log_probs, labels), 2 / 9, rtol=1e-6)


def test_ties_take_the_mean_over_all_orders():
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    labels = np.array([0, 1, 0, 0, 1])
    error = errors(logits, labels)
    risks = [
        loop(error[[0, *middle, 4]], -np.arange(5.0))
        for middle in itertools.permutations([1, 2, 3])
    ]
    curve = scores.risk_coverage(logits, labels)
    np.testing.assert_allclose(curve.risk, np.mean(risks, axis=0), rtol=1e-6)


def test_equal_confidence_everywhere_gives_the_error_rate():
    logits, labels, _ = case()
    actual = scores.aurc(logits, labels, confidence=np.zeros(50))
    np.testing.assert_allclose(actual, errors(logits, labels).mean(), rtol=1e-6)


def test_all_right_and_all_wrong_are_zero_and_one():
    logits, _, _ = case()
    right = logits.argmax(-1)
    assert scores.aurc(logits, right) == 0 and scores.excess_aurc(logits, right) == 0
    np.testing.assert_allclose(scores.aurc(logits, (right + 1) % 3), 1.0, rtol=1e-6)
    assert abs(scores.excess_aurc(logits, (right + 1) % 3)) < 1e-6


@pytest.mark.parametrize("coverage", [0.02, 0.07, 0.5, 0.8, 1.0])
def test_risk_at_coverage_keeps_the_fewest_rows_that_reach_it(coverage):
    logits, labels, confidence = case()
    risk = loop(errors(logits, labels), confidence)
    kept = int(np.ceil(coverage * 50 - 1e-9))
    actual = scores.risk_at_coverage(
        logits, labels, coverage=coverage, confidence=confidence
    )
    np.testing.assert_allclose(actual, risk[kept - 1], rtol=1e-5)


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_undefined_row_counts_also_if_it_is_rejected(bad):
    logits, labels, confidence = case()
    labels[confidence.argmin()] = bad
    assert np.isnan(scores.risk_at_coverage(logits, labels, confidence=confidence))


@pytest.mark.parametrize("risk", [0.0, 0.05, 0.3, 1.0])
def test_coverage_at_risk_is_the_largest_that_qualifies(risk):
    logits, labels, confidence = case()
    curve = loop(errors(logits, labels), confidence)
    reached = [k / 50 for k in range(1, 51) if curve[k - 1] <= risk]
    actual = scores.coverage_at_risk(logits, labels, risk=risk, confidence=confidence)
    np.testing.assert_allclose(actual, max(reached, default=0.0), rtol=1e-5)


def test_weighted_area_equals_a_loop_with_weights():
    logits, labels, confidence = case()
    weight = np.random.default_rng(1).uniform(0.1, 1, 50)
    order = np.argsort(-confidence)
    w, wrong = weight[order], (weight * errors(logits, labels))[order]
    expected = np.average(np.cumsum(wrong) / np.cumsum(w), weights=w)
    actual = scores.aurc(logits, labels, confidence=confidence, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "score, name",
    [(scores.risk_at_coverage, "coverage"), (scores.coverage_at_risk, "risk")],
)
def test_targets_outside_their_range_are_refused(score, name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        score(jnp.zeros((2, 2)), jnp.zeros(2, int), **{name: 1.5})


def test_the_trapezoid_aurc_equals_numpy_and_is_not_the_mean():
    logits, labels, confidence = case()
    risk = loop(errors(logits, labels), confidence)
    coverage = np.arange(1, 51) / 50
    expected = np.trapezoid(risk, coverage) / (1 - 1 / 50)
    found = scores.aurc_trapezoid(logits, labels, confidence=confidence)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(found - scores.aurc(logits, labels, confidence=confidence)) > 1e-4
    # Rows of weight 0, and one row alone.
    weight = np.random.default_rng(2).integers(0, 2, 50)
    kept = weight > 0
    found = scores.aurc_trapezoid(
        logits, labels, confidence=confidence, sample_weight=weight
    )
    risk = loop(errors(logits, labels)[kept], confidence[kept])
    coverage = np.arange(1, len(risk) + 1) / len(risk)
    expected = np.trapezoid(risk, coverage) / (1 - coverage[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    wrong = scores.aurc_trapezoid(logits[:1], (logits[:1].argmax(-1) + 1) % 3)
    assert wrong == 1


def test_error_auroc_equals_scikit_learn_with_ties():
    logits, labels, confidence = case()
    weight = np.random.default_rng(2).uniform(size=50)
    for own in (confidence, np.round(confidence)):
        found = scores.error_auroc(logits, labels, confidence=own, sample_weight=weight)
        expected = roc_auc_score(errors(logits, labels), -own, sample_weight=weight)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    always_right = logits.argmax(-1)
    assert np.isnan(scores.error_auroc(logits, always_right))
    unknown = labels.copy()
    unknown[0] = 9
    assert np.isnan(scores.error_auroc(logits, unknown))


def saturated_case(num_rows=1500):
    """Sure rows, most of which have a float32 log-probability of 0 or nearly."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(num_rows, 4)).astype(np.float32)
    logits[:, 2] = rng.uniform(11, 40, num_rows)
    odds = logits[:, 2] - logsumexp(logits[:, [0, 1, 3]].astype(float), axis=1)
    wrong = rng.uniform(size=num_rows) < 1 / (1 + np.exp(odds / 4 - 4))
    return logits, np.where(wrong, 0, 2), odds, wrong.astype(float)


def areas(logits, labels, **options):
    given = dict(sample_weight=np.ones(len(labels), np.float32)) | options
    names = ("error_auroc", "aurc", "excess_aurc", "aurc_trapezoid", "augrc")
    found = {name: getattr(scores, name)(logits, labels, **given) for name in names}
    found["coverage_at_risk"] = scores.coverage_at_risk(
        logits, labels, risk=0.1, **given
    )
    found["risk_at_coverage"] = scores.risk_at_coverage(logits, labels, **given)
    return found


@pytest.mark.slow
def test_the_order_of_saturated_rows_is_that_of_float64():
    logits, labels, odds, wrong = saturated_case()
    assert np.mean(np.asarray(scores.max_prob(logits)) > 1 - 4e-6) > 0.7
    risk = loop(wrong, odds)
    best = loop(wrong, -wrong + 1e-9 * odds)
    kept = np.arange(1, len(risk) + 1) / len(risk)
    expected = {
        "error_auroc": roc_auc_score(wrong, -odds),
        "aurc": risk.mean(),
        "excess_aurc": risk.mean() - best.mean(),
        "aurc_trapezoid": np.trapezoid(risk, kept) / (1 - kept[0]),
        "augrc": (risk * kept).mean(),
        "coverage_at_risk": kept[risk <= 0.1].max(),
        "risk_at_coverage": risk[int(0.8 * len(risk)) - 1],
    }
    assert expected["error_auroc"] > 0.7 and expected["aurc"] < 0.8 * wrong.mean()
    found = jax.jit(areas)(logits, labels)
    # Neighbours that differ by less than 4e-6 of their log-odds are one tie.
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)

    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = jax.jit(areas)(logits[order], labels[order])
    for name, value in found.items():
        np.testing.assert_allclose(shuffled[name], value, atol=2e-6, err_msg=name)

    evaluated = scores.evaluate(logits[None], labels, ["error_auroc", "aurc"])
    for name in ("error_auroc", "aurc"):
        np.testing.assert_allclose(evaluated[name], expected[name], atol=2e-4)


@pytest.mark.slow
def test_members_in_another_order_are_as_sure_where_all_are_saturated():
    logits, labels, _, _ = saturated_case(300)
    rng = np.random.default_rng(1)
    members = logits + rng.normal(size=(5, 300, 4)).astype(np.float32)
    members[:, 200:] = members[[1, 3, 4, 0, 2], 100:200]  # rows that are tied
    labels[200:] = (labels[100:200] + rng.integers(0, 2, 100)) % 4
    pools = [
        np.asarray(combine.mean_probs(members[order]))
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 4, 1, 2, 0])
    ]
    first, *others = (jax.jit(areas)(pool, labels) for pool in pools)
    for other in others:
        for name, value in first.items():
            np.testing.assert_allclose(other[name], value, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "score",
    [
        scores.augrc,
        scores.aurc,
        scores.aurc_trapezoid,
        scores.coverage_at_risk,
        scores.error_auroc,
        scores.excess_aurc,
        scores.risk_at_coverage,
    ],
)
def test_a_nan_among_the_confidences_says_nothing_of_the_order(score, compiled):
    logits, labels, confidence = case(20)
    confidence[3] = np.nan
    both = np.stack([confidence, np.arange(20.0)])
    weight = np.ones(20, np.float32)
    score = compiled(score)
    twice = (np.stack([logits] * 2), labels)
    found = score(*twice, confidence=both, sample_weight=weight)
    assert np.isnan(found[0]) and np.isfinite(found[1])
    weight[3] = 0  # a row that does not count may hold anything
    found = score(*twice, confidence=both, sample_weight=weight)
    assert np.isfinite(found).all()


def test_a_curve_of_a_nan_confidence_has_no_risks():
    logits, labels, confidence = case(20)
    confidence[3] = np.nan
    curve = scores.risk_coverage(logits, labels, confidence=confidence)
    assert np.isnan(curve.risk).all() and np.isfinite(curve.coverage).all()
