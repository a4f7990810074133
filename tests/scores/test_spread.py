"""Scores of predicted spreads, against loops, scipy and scoringrules."""

import jax
import numpy as np
import pytest
import scoringrules
from scipy import stats

from ensjax import scores

ROWS = 60


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(2, ROWS))
    std = rng.uniform(0.3, 2, size=(2, ROWS))
    targets = rng.normal(size=ROWS)
    arrays = [x.astype(np.float32) for x in (mean, std, targets)]
    return *arrays, rng.integers(0, 3, ROWS).astype(np.float32)


def test_pit_equals_scipy(case):
    mean, std, targets, _ = case
    expected = stats.norm.cdf(targets, mean, std)
    np.testing.assert_allclose(
        scores.pit_gaussian(mean, std, targets), expected, atol=1e-6
    )
    assert np.isnan(scores.pit_gaussian(mean, 0 * std, targets)).all()


def test_the_miscalibration_area_equals_a_fine_grid(case):
    mean, std, targets, weight = case
    z = np.abs(targets - mean) / std
    grid = (np.arange(200_000) + 0.5) / 200_000
    bound = stats.norm.ppf((1 + grid) / 2)
    for w in (None, weight):
        found = jax.jit(scores.miscalibration_area)(mean, std, targets, sample_weight=w)
        for i in range(2):
            order = np.argsort(z[i])
            mass = np.cumsum(np.ones(ROWS) if w is None else w[order]).astype(float)
            mass = np.concatenate([[0], mass / mass[-1]])
            coverage = mass[np.searchsorted(z[i][order], bound, side="right")]
            expected = np.abs(coverage - grid).mean()
            np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_the_area_is_near_zero_if_honest_and_grows_with_the_scale():
    rng = np.random.default_rng(1)
    std = rng.uniform(0.5, 2, 20_000)
    targets = rng.normal(0, std)
    zeros = np.zeros_like(std)
    found = [
        scores.miscalibration_area(zeros, scale * std, targets)
        for scale in (1.0, 0.7, 0.3)
    ]
    assert found[0] < 0.01 < 0.05 < found[1] < found[2] < 0.5


def test_ence_equals_a_loop_over_bins(case):
    mean, std, targets, _ = case
    found = jax.jit(scores.ence, static_argnames="num_bins")(
        mean, std, targets, num_bins=5
    )
    for i in range(2):
        order = np.argsort(std[i])
        errors = []
        for own in np.split(order, 5):
            spread = np.sqrt(np.mean(std[i, own] ** 2))
            skill = np.sqrt(np.mean((mean[i, own] - targets[own]) ** 2))
            errors.append(abs(spread - skill) / spread)
        np.testing.assert_allclose(found[i], np.mean(errors), rtol=1e-5)


@pytest.mark.slow
def test_ence_of_weights_and_of_equal_spreads(case):
    mean, std, targets, weight = case
    twice = np.repeat(np.arange(ROWS), weight.astype(int))
    found = scores.ence(mean, std, targets, num_bins=4, sample_weight=weight)
    expected = scores.ence(mean[:, twice], std[:, twice], targets[twice], num_bins=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    constant = np.full_like(std, 1.5)
    found = scores.ence(mean, constant, targets)
    rmse = np.sqrt(np.mean((mean - targets) ** 2, axis=1))
    np.testing.assert_allclose(found, abs(1.5 - rmse) / 1.5, rtol=1e-5)


@pytest.mark.slow
def test_rows_of_weight_zero_are_gone_wherever_they_would_be_sorted(case):
    mean, std, targets, _ = case
    keep = np.arange(ROWS) % 3 != 0
    odd = np.where(np.arange(ROWS) % 2, 1e-3, np.nan)
    broken = np.where(keep, std, odd)
    for score in (scores.ence, scores.sparsification_error, scores.miscalibration_area):
        found = score(mean, broken, targets, sample_weight=keep)
        expected = score(mean[:, keep], std[:, keep], targets[keep])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def loop_ause(mean, std, targets):
    error = np.abs(mean - targets).astype(float)

    def curve(order):
        return np.mean([error[order[: k + 1]].mean() for k in range(len(order))])

    return (curve(np.argsort(std)) - curve(np.argsort(error))) / error.mean()


def test_ause_equals_a_loop_and_is_zero_for_the_oracle(case):
    mean, std, targets, weight = case
    found = jax.jit(scores.sparsification_error)(mean, std, targets)
    expected = [loop_ause(mean[i], std[i], targets) for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    oracle = scores.sparsification_error(mean, np.abs(mean - targets), targets)
    np.testing.assert_allclose(oracle, 0, atol=1e-6)
    keep = weight > 0
    found = scores.sparsification_error(mean, std, targets, sample_weight=keep)
    expected = [loop_ause(mean[i][keep], std[i][keep], targets[keep]) for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ause_of_ties_does_not_depend_on_the_order(case):
    mean, std, targets, _ = case
    order = np.random.default_rng(2).permutation(ROWS)
    coarse = np.round(std)
    found = scores.sparsification_error(mean, coarse, targets)
    again = scores.sparsification_error(
        mean[:, order], coarse[:, order], targets[order]
    )
    np.testing.assert_allclose(found, again, rtol=1e-5)


@pytest.mark.parametrize("fair", [False, True])
def test_crps_equals_scoringrules(fair):
    rng = np.random.default_rng(3)
    samples = np.round(rng.normal(size=(7, ROWS)), 1).astype(np.float32)
    targets = rng.normal(size=ROWS).astype(np.float32)
    estimator = "fair" if fair else "nrg"
    expected = scoringrules.crps_ensemble(targets, samples.T, estimator=estimator)
    found = jax.jit(scores.crps_samples, static_argnames="fair")(
        samples, targets, fair=fair
    )
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    # A member that is masked is a member that is not there.
    mask = np.arange(7) != 2
    broken = np.where(mask[:, None], samples, np.nan)
    expected = scoringrules.crps_ensemble(targets, samples[mask].T, estimator=estimator)
    found = scores.crps_samples(broken, targets, fair=fair, mask=mask)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    by_row = rng.uniform(size=samples.shape) < 0.7
    by_row[:2] = True
    found = scores.crps_samples(samples, targets, fair=fair, mask=by_row)
    rows = [
        scoringrules.crps_ensemble(
            targets[n], samples[by_row[:, n], n], estimator=estimator
        )
        for n in range(ROWS)
    ]
    np.testing.assert_allclose(found, np.mean(rows), rtol=1e-5)


def test_one_sample_has_the_absolute_error_and_no_fair_score():
    samples, targets = np.float32([[1.0, 2.0]]), np.float32([0.0, 5.0])
    assert scores.crps_samples(samples, targets) == 2
    assert np.isnan(scores.crps_samples(samples, targets, fair=True))


def test_exchangeable_members_have_the_spread_of_their_skill():
    rng = np.random.default_rng(4)
    center = rng.normal(size=20_000)
    drawn = center + rng.normal(size=(6, 20_000))
    found = scores.spread_skill(drawn[:5], drawn[5])
    assert found == pytest.approx(1, abs=0.02)
    narrow = center + 0.5 * (drawn[:5] - center)
    assert scores.spread_skill(narrow, drawn[5]) < 0.6


def test_what_does_not_fit_is_refused(case):
    mean, std, targets, _ = case
    with pytest.raises(ValueError, match="std must have the shape of mean"):
        scores.ence(mean, std[0], targets)
    with pytest.raises(ValueError, match="num_bins"):
        scores.ence(mean, std, targets, num_bins=0)
    with pytest.raises(ValueError, match="samples must be"):
        scores.crps_samples(targets, targets)
    with pytest.raises(ValueError, match="two members"):
        scores.spread_skill(targets[None], targets)
    with pytest.raises(ValueError, match="mask must be"):
        scores.crps_samples(mean, targets, mask=np.ones(3))


def test_members_masked_from_spread_skill_are_removed():
    rng = np.random.default_rng(7)
    samples = rng.normal(size=(5, 12)).astype(np.float32)
    targets = rng.normal(size=12).astype(np.float32)
    weight = rng.uniform(0.5, 1, 12).astype(np.float32)
    mask = rng.uniform(size=(5, 12)) < 0.7
    mask[:2], weight[3] = True, 0
    mask[1:, 3] = False  # one member alone, in a row without weight
    mask[:, 4] = [True, False, True, False, True]
    squares, errors = np.zeros(12), np.zeros(12)
    for n in range(12):
        own = samples[mask[:, n], n].astype(float)
        if len(own) > 1:
            squares[n] = (len(own) + 1) / len(own) * own.var(ddof=1)
        errors[n] = (own.mean() - targets[n]) ** 2
    expected = np.sqrt(
        np.average(squares, weights=weight) / np.average(errors, weights=weight)
    )
    spread_skill = jax.jit(scores.spread_skill)
    broken = np.where(mask, samples, np.nan)
    found = spread_skill(broken, targets, mask=mask, sample_weight=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = spread_skill(broken, targets, mask=mask, sample_weight=weight * 0 + 1)
    assert np.isnan(found)  # the row of one member counts
    whole = np.array([True, True, False, True, False])
    found = scores.spread_skill(samples, targets, mask=whole)
    removed = scores.spread_skill(samples[whole], targets)
    np.testing.assert_allclose(found, removed, rtol=1e-6)
