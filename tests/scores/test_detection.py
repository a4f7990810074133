"""FAR, FRR, EER, HTER and presentation attacks, against loops over rows."""

import jax
import numpy as np
import pytest

from ensjax import scores


def loop_rates(values, genuine, threshold, weight=None):
    weight = np.ones(len(values)) if weight is None else weight
    far = weight[~genuine & (values > threshold)].sum() / weight[~genuine].sum()
    frr = weight[genuine & (values <= threshold)].sum() / weight[genuine].sum()
    return far, frr


def loop_eer(values, genuine):
    found = [(*loop_rates(values, genuine, t), t) for t in sorted(set(values))]
    far, frr, threshold = min(found, key=lambda x: round(abs(x[0] - x[1]), 6))
    return (far + frr) / 2, threshold


@pytest.fixture(params=["random", "tied", "separate"])
def rows(request):
    rng = np.random.default_rng(3)
    genuine = rng.uniform(size=60) < 0.4
    values = rng.normal(size=60) + genuine
    if request.param == "tied":
        values = np.round(values)
    if request.param == "separate":
        values += 100 * genuine
    return values.astype(np.float32), genuine


def test_rates_equal_a_loop(rows):
    values, genuine = rows
    weight = np.random.default_rng(4).uniform(size=60)
    for threshold in (-10.0, 0.0, 0.5, float(values[7]), 1000.0):
        found = scores.error_rates(values, genuine, threshold, sample_weight=weight)
        expected = loop_rates(values, genuine, threshold, weight)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        both = scores.hter(values, genuine, threshold, sample_weight=weight)
        np.testing.assert_allclose(both, np.mean(expected), atol=1e-6)


def test_the_equal_error_rate_equals_a_loop_and_its_threshold_reaches_it(rows):
    values, genuine = rows
    rate, threshold = scores.equal_error_rate(values, genuine)
    expected_rate, expected_threshold = loop_eer(values, genuine)
    np.testing.assert_allclose(rate, expected_rate, atol=1e-6)
    assert threshold == expected_threshold
    np.testing.assert_allclose(scores.hter(values, genuine, threshold), rate, atol=1e-6)
    assert scores.fit_threshold(values, genuine) == threshold


def test_other_rules_equal_loops(rows):
    values, genuine = rows
    found = [(*loop_rates(values, genuine, t), t) for t in sorted(set(values))]
    *_, youden = min(found, key=lambda x: round(x[0] + x[1], 6))
    assert scores.fit_threshold(values, genuine, rule="youden") == youden
    for most in (0.0, 0.1, 0.5):
        expected = min(t for far, _, t in found if far <= most + 1e-6)
        threshold = scores.fit_threshold(values, genuine, rule="far", most_far=most)
        assert threshold == expected


def test_a_threshold_does_not_see_the_rows_it_is_applied_to():
    rng = np.random.default_rng(5)
    development, test = rng.normal(size=(2, 40)).astype(np.float32)
    genuine = np.arange(40) % 2 == 0
    threshold = scores.equal_error_rate(development, genuine).threshold
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(genuine)
        found = scores.error_rates(test, shuffled, threshold)
        np.testing.assert_allclose(
            found, loop_rates(test, shuffled, float(threshold)), atol=1e-6
        )


def test_members_have_their_own_thresholds():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(3, 50)).astype(np.float32)
    genuine = rng.uniform(size=50) < 0.5
    rates, thresholds = jax.jit(scores.equal_error_rate)(values, genuine)
    half = jax.jit(scores.hter)(values, genuine, thresholds)
    for i in range(3):
        alone = scores.equal_error_rate(values[i], genuine)
        np.testing.assert_allclose(rates[i], alone.rate, atol=1e-6)
        assert thresholds[i] == alone.threshold
    np.testing.assert_allclose(half, rates, atol=1e-6)


def test_the_attack_that_succeeds_most_counts():
    values = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.95, 0.3], np.float32)
    types = np.array([0, 0, 1, 1, 1, -1, -1])
    found = scores.attack_errors(values, types, 0.5, num_types=4)
    np.testing.assert_allclose(found, (2 / 3, 1 / 2, 7 / 12), atol=1e-6)
    weight = np.array([1, 1, 0, 1, 0, 1, 1])
    found = scores.attack_errors(values, types, 0.5, num_types=4, sample_weight=weight)
    np.testing.assert_allclose(found.apcer, 1 / 2, atol=1e-6)
    assert np.isnan(scores.attack_errors(values, types, 0.5, num_types=1)).all()


def test_what_is_undefined_is_nan():
    values = np.array([0.1, 0.2, np.nan, 0.4], np.float32)
    genuine = np.array([True, False, True, False])
    assert np.isnan(scores.equal_error_rate(values, genuine)).all()
    keep = np.array([1, 1, 0, 1])
    assert not np.isnan(
        scores.equal_error_rate(values, genuine, sample_weight=keep)
    ).any()
    rates = scores.error_rates(values, genuine, 0.3)
    assert rates.far == 0.5 and np.isnan(rates.frr)
    nobody = scores.error_rates(values[:2], np.array([True, True]), 0.3)
    assert np.isnan(nobody.far) and nobody.frr == 1


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rule="best"), "eer, youden, far"),
        (dict(rule="far"), "most_far goes with"),
        (dict(most_far=0.1), "most_far goes with"),
        (dict(rule="far", most_far=1.0), "most_far must lie in"),
    ],
)
def test_unknown_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scores.fit_threshold(np.zeros(3), np.array([1, 0, 1]), **options)


def test_a_threshold_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="threshold must be a scalar"):
        scores.error_rates(np.zeros((2, 3)), np.array([1, 0, 1]), np.zeros(3))
