"""Tests of differences, against scipy, loops over pairs of rows, and simulation."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from ensjax import scores


def test_mcnemar_is_the_binomial_of_the_rows_that_differ():
    first = np.array([True] * 10 + [False] * 3 + [True] * 5)
    second = np.array([False] * 10 + [True] * 3 + [True] * 5)
    found = scores.mcnemar(first, second)
    assert found.statistic == 3
    expected = min(1.0, 2 * stats.binom.cdf(3, 13, 0.5))
    np.testing.assert_allclose(found.p_value, expected)
    statistic, p_value = scores.mcnemar(first, second, exact=False)
    np.testing.assert_allclose(statistic, (7 - 1) ** 2 / 13)
    np.testing.assert_allclose(p_value, stats.chi2.sf(36 / 13, 1))
    assert scores.mcnemar(first, first) == (0, 1)
    assert scores.mcnemar(first, first, exact=False) == (0, 1)
    assert scores.mcnemar(second, first) == found


def test_all_pairs_are_adjusted_together():
    rng = np.random.default_rng(0)
    right = rng.uniform(size=(3, 60)) < np.array([[0.9], [0.5], [0.85]])
    found = scores.pairwise_mcnemar(right)
    plain = {pair: scores.mcnemar(*right[list(pair)]).p_value for pair in found}
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    first, second, third = sorted(plain, key=plain.get)
    # Holm by hand: times 3, 2 and 1, never falling.
    low = 3 * plain[first]
    middle = max(low, 2 * plain[second])
    expected = {first: low, second: middle, third: max(middle, plain[third])}
    for pair, p_value in expected.items():
        assert found[pair] == pytest.approx(min(1.0, p_value), rel=1e-9)


def loop_delong(first, second, positive):
    """The covariance of the two areas from the placements of single rows."""
    placements = []
    for values in (first, second):
        own, other = values[positive], values[~positive]
        wins = (own[:, None] > other) + 0.5 * (own[:, None] == other)
        placements.append((wins.mean(1), wins.mean(0)))
    cov = np.cov([p[0] for p in placements]) / positive.sum()
    cov = cov + np.cov([p[1] for p in placements]) / (~positive).sum()
    areas = [p[0].mean() for p in placements]
    return areas, np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])


@pytest.mark.parametrize("tied", [False, True])
def test_delong_equals_placements_of_single_rows(tied):
    rng = np.random.default_rng(1)
    positive = rng.uniform(size=70) < 0.4
    first = rng.normal(size=70) + positive
    second = 0.5 * first + rng.normal(size=70)
    if tied:
        first, second = np.round(first), np.round(second)
    found = scores.delong(first, second, positive)
    areas, error = loop_delong(first, second, positive)
    np.testing.assert_allclose([found.first, found.second], areas)
    assert found.first == pytest.approx(metrics.roc_auc_score(positive, first))
    np.testing.assert_allclose(found.standard_error, error)
    np.testing.assert_allclose(found.z, (areas[0] - areas[1]) / error)
    np.testing.assert_allclose(found.p_value, 2 * stats.norm.sf(abs(found.z)))
    same = scores.delong(first, first, positive)
    assert (same.z, same.p_value) == (0, 1)


def test_delong_rejects_as_often_as_it_says_where_nothing_differs():
    rng = np.random.default_rng(2)
    rejected = 0
    for _ in range(300):
        positive = np.arange(60) < 30
        signal = positive + rng.normal(size=60)
        pair = signal + rng.normal(size=(2, 60))
        rejected += scores.delong(*pair, positive).p_value < 0.1
    # 30 of 300 expected; 4 standard deviations are 21.
    assert 9 <= rejected <= 51


def test_the_corrected_t_test_by_hand_and_against_the_plain_one():
    values = np.array([0.01, 0.03, -0.01, 0.02, 0.015])
    found = scores.corrected_t_test(values, num_train=90, num_test=10)
    t = values.mean() / np.sqrt((1 / 5 + 10 / 90) * values.var(ddof=1))
    np.testing.assert_allclose(found, (t, 2 * stats.t.sf(t, 4)))
    plain = stats.ttest_1samp(values, 0)
    assert found.p_value > plain.pvalue
    many = scores.corrected_t_test(values, num_train=10**9, num_test=1)
    np.testing.assert_allclose(many, plain, rtol=1e-6)
    assert scores.corrected_t_test(np.zeros(3), num_train=9, num_test=1) == (0, 1)
    same = scores.corrected_t_test(np.full(3, 0.5), num_train=9, num_test=1)
    assert same == (np.inf, 0)


def test_the_corrected_interval_is_that_of_the_corrected_test():
    values = np.array([0.01, 0.03, -0.01, 0.02, 0.015])
    sizes = dict(num_train=90, num_test=10)
    mean, low, high = scores.corrected_t_interval(values, **sizes)
    half = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 10 / 90) * values.var(ddof=1))
    np.testing.assert_allclose((mean, low, high), values.mean() + [0, -half, half])
    # The test of either end is on the edge of its level.
    for end in (low, high):
        at_end = scores.corrected_t_test(values - end, **sizes)
        assert at_end.p_value == pytest.approx(0.05)
    found = scores.corrected_t_interval(values, num_train=10**9, num_test=1)
    plain = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    np.testing.assert_allclose(found[1:], plain, rtol=1e-6)


def test_holm_by_hand():
    np.testing.assert_allclose(
        scores.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    np.testing.assert_allclose(scores.holm([0.9, 0.8]), [1.0, 1.0])
    assert scores.holm([]).shape == (0,)


def test_friedman_equals_scipy_and_demsars_critical_differences():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(14, 4)) + np.arange(4)
    found = scores.friedman(values, higher_is_better=True)
    expected = stats.friedmanchisquare(*values.T)
    np.testing.assert_allclose((found.statistic, found.p_value), expected)
    # Demsar 2006, section 3.2.2: k = 4, n = 14, q = 2.569 at 5 %, 2.291 at 10 %.
    assert found.critical_difference == pytest.approx(1.25, abs=0.01)
    at_ten = scores.friedman(values, higher_is_better=True, level=0.1)
    assert at_ten.critical_difference == pytest.approx(1.12, abs=0.01)
    assert found.mean_ranks[3] < found.mean_ranks[0]
    turned = scores.friedman(values, higher_is_better=False)
    np.testing.assert_allclose(turned.mean_ranks, 5 - found.mean_ranks)
    equal = scores.friedman(np.ones((3, 4)), higher_is_better=True)
    assert equal.p_value == 1 and (equal.mean_ranks == 2.5).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scores.mcnemar(np.array([True]), np.array([[True]])), "batch"),
        (lambda: scores.delong([1, np.nan], [1, 2], [1, 0]), "NaN"),
        (lambda: scores.delong([1, 2, 3], [1, 2, 3], [1, 0, 0]), "two rows"),
        (lambda: scores.corrected_t_test([1.0], num_train=1, num_test=1), "two"),
        (lambda: scores.corrected_t_test([1.0, 2], num_train=0, num_test=1), "least"),
        (lambda: scores.corrected_t_interval([1.0], num_train=1, num_test=1), "two"),
        (
            lambda: scores.corrected_t_interval(
                [1.0, 2], num_train=1, num_test=1, confidence=1
            ),
            "confidence",
        ),
        (lambda: scores.holm([0.5, 1.5]), "between 0 and 1"),
        (lambda: scores.friedman(np.ones((5, 2)), higher_is_better=True), "mcnemar"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_being_right_is_bool():
    with pytest.raises(TypeError, match="whether each row is right"):
        scores.mcnemar(np.array([1, 0]), np.array([1, 1]))
