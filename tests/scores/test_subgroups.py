"""Subsets of rows against loops, closed forms and scipy's binomial intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ensjax import scores


def test_intervals_of_15_of_21_equal_the_closed_forms():
    wilson = scores.subgroup_rate(np.arange(21) < 15, np.ones(21, bool))
    exact = scores.subgroup_rate(
        np.arange(21) < 15, np.ones(21, bool), interval="exact"
    )
    result = stats.binomtest(15, 21)
    for found, method in ((wilson, "wilson"), (exact, "exact")):
        want = result.proportion_ci(method=method)
        np.testing.assert_allclose(found.estimate, 15 / 21, rtol=1e-6)
        np.testing.assert_allclose(found.low, want.low, rtol=1e-5)
        np.testing.assert_allclose(found.high, want.high, rtol=1e-5)


def test_exact_intervals_end_at_0_and_1_and_are_whole_without_trials():
    found = scores.exact_interval([0, 7, 0], [7, 7, 0])
    assert found.low[0] == 0 and found.high[1] == 1
    np.testing.assert_allclose(found.high[0], 1 - 0.025 ** (1 / 7))
    np.testing.assert_allclose(found.low[1], 0.025 ** (1 / 7))
    assert np.isnan(found.estimate[2]) and (found.low[2], found.high[2]) == (0, 1)
    with pytest.raises(ValueError, match="between 0 and the trials"):
        scores.exact_interval(8, 7)


def test_a_score_of_a_subgroup_is_the_score_of_its_rows_alone():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 30, 4)), rng.integers(4, size=30)
    where = np.stack([rng.uniform(size=30) < 0.4, labels == 2, np.zeros(30, bool)])
    logits[:, ~where.any(0)] = np.nan  # rows of no group leave no trace

    def nll(weight):
        return scores.nll(logits, labels, sample_weight=weight)

    found = scores.subgroup(nll, where)
    assert found.shape == (3, 3)
    for group in range(2):
        rows = where[group]
        want = scores.nll(logits[:, rows], labels[rows])
        np.testing.assert_allclose(found[group], want, rtol=1e-5)
        np.testing.assert_allclose(scores.subgroup(nll, rows), want, rtol=1e-5)
    assert np.isnan(found[2]).all()
    with pytest.raises(TypeError, match="bool"):
        scores.subgroup(nll, labels)


def test_rates_of_several_systems_are_those_of_loops():
    rng = np.random.default_rng(1)
    right = rng.uniform(size=(3, 40)) < 0.7
    where = rng.uniform(size=40) < 0.3
    found = scores.subgroup_rate(right, where)
    for i in range(3):
        want = stats.binomtest(int(right[i, where].sum()), int(where.sum()))
        np.testing.assert_allclose(
            found.low[i], want.proportion_ci(method="wilson").low, atol=1e-6
        )
    assert np.isnan(scores.subgroup_rate(right, np.zeros(40, bool)).estimate).all()
    with pytest.raises(ValueError, match="exact, wilson"):
        scores.subgroup_rate(right, where, interval="normal")


def test_complementarity_counts_the_four_kinds_of_rows():
    rng = np.random.default_rng(2)
    first, second = rng.uniform(size=(2, 50)) < np.array([[0.8], [0.6]])
    found = scores.complementarity(first, second)
    pairs = list(zip(first.tolist(), second.tolist()))
    want = [(True, True), (True, False), (False, True), (False, False)]
    assert list(found[:4]) == [pairs.count(pair) for pair in want]
    share = found.only_first / (found.only_first + found.both_wrong)
    np.testing.assert_allclose(found.first_where_second_wrong.estimate, share)
    assert found.p_value == scores.mcnemar(first, second).p_value
    matrix = scores.complementarity_matrix(np.stack([first, second]))
    np.testing.assert_allclose(matrix[0, 1], share, rtol=1e-6)
    np.testing.assert_allclose(
        matrix[1, 0], found.second_where_first_wrong.estimate, rtol=1e-6
    )
    assert matrix[0, 0] == matrix[1, 1] == 0


def test_who_is_never_wrong_has_no_complement():
    right = np.array([[True, True, True], [True, False, True]])
    matrix = np.asarray(scores.complementarity_matrix(right))
    assert np.isnan(matrix[:, 0]).all() and matrix[0, 1] == 1
    weighted = scores.complementarity_matrix(right, sample_weight=[1.0, 0.0, 1.0])
    assert np.isnan(weighted[:, 1]).all()


@pytest.mark.parametrize("tied", [False, True])
def test_controls_are_the_nearest_of_their_stratum(tied):
    rng = np.random.default_rng(3)
    values = rng.uniform(size=60).astype(np.float32)
    values = np.round(values, 1) if tied else values
    values[7] = np.nan
    strata = rng.integers(4, size=60)
    cases = rng.uniform(size=60) < 0.4
    candidates = ~cases & (strata != 3)  # nobody is left in one stratum
    cases[7] = True
    found = np.asarray(
        jax.jit(scores.matched_control)(
            cases, values, strata=strata, candidates=candidates
        )
    )
    for i in range(60):
        allowed = candidates & (strata == strata[i]) & ~np.isnan(values)
        allowed[i] = False
        if not cases[i] or np.isnan(values[i]) or not allowed.any():
            assert found[i] == -1
            continue
        assert allowed[found[i]]
        least = np.abs(values[allowed] - values[i]).min()
        np.testing.assert_allclose(abs(values[found[i]] - values[i]), least)


def test_by_default_every_other_row_is_a_candidate_and_equal_ones_go_down():
    cases = np.array([False, True, False, True])
    found = scores.matched_control(cases, jnp.array([0.0, 1.0, 2.0, 5.0]))
    assert found.tolist() == [-1, 0, -1, 2]
    everyone = scores.matched_control(
        np.ones(3, bool), jnp.array([0.0, 1.0, 1.5]), candidates=np.ones(3, bool)
    )
    assert everyone.tolist() == [1, 2, 1]  # never the row itself
    with pytest.raises(TypeError, match="strata must be integers"):
        scores.matched_control(cases, jnp.zeros(4), strata=jnp.zeros(4))
