"""Temperature scaling: recovers a known temperature, equals scipy's minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ensjax import combine, scores
from ensjax.predictions import Predictions

# Compiled once per shape, where the eager loop would compile at each call.
calibrate = jax.jit(combine.calibrate)


def draw(logits, rng):
    """Labels drawn from softmax(logits)."""
    cumulative = np.exp(log_softmax(logits, axis=-1)).cumsum(-1)
    return (rng.uniform(size=len(logits))[:, None] > cumulative[:, :-1]).sum(-1)


def case(temperature=2.5, num_rows=400, num_members=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(num_rows, 4))
    logits = logits + rng.normal(size=(num_members, num_rows, 4))
    labels = draw(np.asarray(combine.mean_probs(logits)) / temperature, rng)
    return logits, labels


def reference(log_probs, labels, weight=None):
    log_probs = np.asarray(log_probs, np.float64)

    def nll(log_temperature):
        scaled = log_softmax(log_probs / np.exp(log_temperature), axis=-1)
        picked = scaled[np.arange(len(labels)), labels]
        return -np.average(picked, weights=weight)

    found = minimize_scalar(
        nll, bounds=(-3, 9), method="bounded", options={"xatol": 1e-9}
    )
    return np.exp(found.x)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_recovers_the_temperature_that_made_the_labels(temperature):
    logits, labels = case(temperature, num_rows=20_000)
    fitted = calibrate(logits, labels).temperature
    # The relative standard error of the estimate is near 1 % with 20,000 rows.
    np.testing.assert_allclose(fitted, temperature, rtol=0.04)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_equals_the_minimum_that_scipy_finds(weighted, scale):
    logits, labels = case()
    weight = np.random.default_rng(1).uniform(size=400) if weighted else None
    # Pooled already, so that the scale reaches the temperature unchanged.
    pooled = scale * np.asarray(combine.mean_probs(logits))
    actual = calibrate(pooled, labels, sample_weight=weight).temperature
    expected = np.clip(reference(pooled, labels, weight), 0.05, 1e4)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_pools_before_it_fits():
    logits, labels = case()
    pooled = combine.mean_probs(logits)
    temperature = calibrate(logits, labels)
    np.testing.assert_allclose(
        temperature.temperature, calibrate(pooled, labels).temperature
    )
    expected = log_softmax(np.asarray(pooled) / temperature.temperature, axis=-1)
    np.testing.assert_allclose(temperature(logits), expected, atol=2e-6)
    np.testing.assert_allclose(temperature(pooled), expected, atol=2e-6)


def test_lowers_the_nll_of_its_own_rows_and_keeps_the_choices():
    logits, labels = case()
    before, after = (
        combine.mean_probs(logits),
        calibrate(logits, labels)(logits),
    )
    assert scores.nll(after, labels) < scores.nll(before, labels)
    assert (jnp.argmax(after, -1) == jnp.argmax(before, -1)).all()
    assert scores.ece(after, labels) < scores.ece(before, labels)


def test_weights_of_the_pool_are_kept_for_later_calls():
    logits, labels = case()
    weights = np.array([1.0, 0.0, 3.0])
    temperature = calibrate(logits, labels, weights)
    chosen = calibrate(logits[[0, 2, 2, 2]], labels)
    np.testing.assert_allclose(temperature.temperature, chosen.temperature, rtol=1e-5)
    np.testing.assert_allclose(
        temperature(logits), chosen(logits[[0, 2, 2, 2]]), atol=1e-5
    )


@pytest.mark.slow
def test_predictions_and_jit_give_the_same():
    logits, labels = case()
    mask = np.array([True, True, False])
    said = Predictions.from_logits(logits, mask=mask)
    expected = combine.calibrate(logits[:2], labels)
    actual = calibrate(said, labels)
    np.testing.assert_allclose(actual.temperature, expected.temperature, rtol=1e-5)
    out = jax.jit(lambda t, x: t(x))(actual, said)
    np.testing.assert_allclose(out.values[0], expected(logits[:2]), atol=1e-5)


def test_rows_without_weight_do_not_count():
    logits, labels = case()
    keep = np.arange(400) % 2 == 0
    broken = np.where(keep[None, :, None], logits, np.nan)
    actual = calibrate(broken, np.where(keep, labels, -1), sample_weight=keep)
    expected = calibrate(logits[:, keep], labels[keep])
    np.testing.assert_allclose(actual.temperature, expected.temperature, rtol=1e-5)


def test_undetermined_temperatures_end_at_the_bounds_and_uniform_rows_at_one():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    right, wrong = jnp.array([0, 1]), jnp.array([1, 0])
    np.testing.assert_allclose(calibrate(logits, right).temperature, 0.05, 1e-4)
    np.testing.assert_allclose(calibrate(logits, wrong).temperature, 1e4, 1e-4)
    assert calibrate(jnp.zeros((2, 2)), right).temperature == 1.0


def test_broken_rows_and_labels_give_nan():
    logits, labels = case()
    broken = logits.copy()
    broken[0, 0] = np.nan
    assert np.isnan(calibrate(broken, labels).temperature)
    wrong = np.where(np.arange(400) == 0, 4, labels)
    assert np.isnan(calibrate(logits, wrong).temperature)


def test_a_vetoed_class_does_not_break_the_fit():
    logits = np.array([[0.0, -np.inf, -1.0], [0.0, 1.0, -np.inf], [0.0, 0.0, -2.0]])
    labels = np.array([2, 1, 0])
    actual = calibrate(logits, labels).temperature
    np.testing.assert_allclose(actual, reference(logits, labels), rtol=1e-3)


def test_member_temperatures_equal_each_member_alone():
    logits, labels = case()
    together = combine.calibrate_members(logits, labels)
    alone = [calibrate(x, labels).temperature for x in logits]
    np.testing.assert_allclose(together.temperature, alone, rtol=1e-5)
    scaled = logits / np.asarray(alone)[:, None, None]
    np.testing.assert_allclose(together(logits), combine.mean_probs(scaled), atol=1e-5)
    with pytest.raises(ValueError, match="3 temperatures for 2 members"):
        together(logits[:2])


def test_temperatures_of_members_weigh_logits_and_leave_the_rule_open():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 50, 4)).astype(np.float32)
    for factor in (0.25, 1.0, 100.0):
        given = combine.MemberTemperatures(jnp.array([1.0, 1 / factor]))
        scaled = given.scale(logits)
        np.testing.assert_allclose(
            scaled, log_softmax(logits * [[[1.0]], [[factor]]], axis=-1), atol=2e-4
        )
        pooled = np.asarray(combine.mean_logits(scaled))
        expected = logits[0] + factor * logits[1]
        np.testing.assert_array_equal(pooled.argmax(-1), expected.argmax(-1))
        np.testing.assert_allclose(combine.mean_probs(scaled), given(logits), atol=1e-5)
    with pytest.raises(ValueError, match="2 temperatures for 3 members"):
        given.scale(np.zeros((3, 5, 4)))


def test_scaled_members_are_the_same_members():
    logits, labels = case()
    said = Predictions.from_logits(logits, names=("a", "b", "c"))
    scaled = combine.calibrate_members(said, labels).scale(said)
    assert scaled.names == ("a", "b", "c") and scaled.kind == "log_probs"
    np.testing.assert_allclose(np.exp(scaled.values).sum(-1), 1, rtol=1e-5)


def test_averaging_calibrated_members_calls_for_a_temperature_below_one():
    rng = np.random.default_rng(0)
    truth = 2 * rng.normal(size=(1000, 3))
    labels = draw(truth, rng)
    logits = truth + 1.5 * rng.normal(size=(8, 1000, 3))
    members = jax.jit(combine.calibrate_members)(logits, labels)
    scaled = logits / np.asarray(members.temperature)[:, None, None]
    assert calibrate(scaled, labels).temperature < 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_the_slope_of_the_nll_is_zero_at_the_fit(seed):
    assert abs(slope_at_the_fit(*case(seed=seed, num_rows=60, num_members=1))) < 1e-4


@jax.jit  # one compilation for all examples
def slope_at_the_fit(logits, labels):
    pooled = combine.mean_probs(logits)
    fitted = calibrate(pooled, labels).temperature
    return jax.grad(lambda inverse: scores.nll(inverse * pooled, labels))(1 / fitted)
