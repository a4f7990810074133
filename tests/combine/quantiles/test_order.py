"""Isotonic projection and the order of quantiles, against scikit-learn and loops."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from ensjax import combine

module = importlib.import_module("ensjax.combine.quantiles.order")
isotonic = jax.jit(combine.isotonic)


def by_loop(values, weights=None):
    """Rows by scikit-learn, float64."""
    places = np.arange(values.shape[-1])
    rows = []
    for i, row in enumerate(values):
        weight = None if weights is None else weights[i].astype(float)
        fit = IsotonicRegression().fit(places, row.astype(float), weight)
        rows.append(fit.predict(places))
    return np.array(rows)


def pinball_sum(quantiles, target, levels):
    over = target - np.asarray(quantiles, float)
    return np.maximum(levels * over, (levels - 1) * over).sum(-1)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    values = (np.linspace(-1, 1, 19) + rng.normal(size=(12, 19))).astype(np.float32)
    values[0] = np.sort(values[0])
    values[1] = np.sort(values[1])[::-1]
    values[2] = 3.0
    values[3] = np.round(values[3])  # ties
    values[4] += 300  # kelvin
    return values, rng.uniform(0.1, 3, size=values.shape).astype(np.float32)


def test_the_projection_is_that_of_scikit_learn(case):
    values, weights = case
    found = isotonic(values)
    np.testing.assert_allclose(found, by_loop(values), rtol=2e-6, atol=1e-6)
    assert (np.diff(found, axis=-1) >= 0).all()
    np.testing.assert_array_equal(found[0], values[0])  # in order: not a bit changes
    found = isotonic(values, weights)
    np.testing.assert_allclose(found, by_loop(values, weights), rtol=2e-6, atol=1e-6)


def test_masked_levels_count_as_removed_and_nan_there_leaves_no_trace(case):
    values, weights = case
    mask = np.random.default_rng(1).uniform(size=values.shape) < 0.7
    mask[:, 3] = True
    found = np.asarray(isotonic(np.where(mask, values, np.nan), weights, mask=mask))
    for row in range(len(values)):
        kept = mask[row]
        alone = by_loop(values[row : row + 1, kept], weights[row : row + 1, kept])
        np.testing.assert_allclose(found[row, kept], alone[0], rtol=2e-6, atol=1e-6)
    assert (np.diff(found, axis=-1) >= 0).all()  # also where something is missing
    values = np.array([[1.0, np.nan, 2.0], [2.0, 1.0, 0.0]], np.float32)
    found = isotonic(values)
    assert np.isnan(found[0]).all() and np.allclose(found[1], 1)
    assert np.isnan(isotonic(values[1], mask=np.zeros(3, bool))).all()
    assert np.isnan(isotonic(values[1], -np.ones(3, np.float32))).all()


def test_the_gradient_averages_over_blocks(case):
    values, weights = case
    values = np.delete(values, [2, 3], axis=0)  # no derivative where values tie
    weights = np.delete(weights, [2, 3], axis=0)
    cotangent = np.random.default_rng(2).normal(size=values.shape)

    def total(values):
        return jnp.sum(combine.isotonic(values, weights) * cotangent)

    found = jax.jit(jax.grad(total))(values)
    step = 1e-5
    expected = np.empty_like(cotangent)
    for i in range(values.shape[1]):
        ends = [values.astype(float), values.astype(float)]
        ends[0][:, i] -= step
        ends[1][:, i] += step
        low, high = (by_loop(end, weights) for end in ends)
        expected[:, i] = ((high - low) * cotangent).sum(-1) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_in_blocks_and_under_vmap_equal_rows_at_once(case, monkeypatch):
    values, weights = case
    expected = isotonic(values, weights)
    monkeypatch.setattr(module, "_MAX_MEANS", 5 * 19**2)

    def both(values, weights):
        result, pull = jax.vjp(combine.isotonic, values, weights)
        return result, pull(values)[0]

    found, gradient = jax.jit(both)(values, weights)
    np.testing.assert_array_equal(found, expected)
    by_row = jax.jit(jax.vmap(both))(values, weights)
    np.testing.assert_array_equal(by_row[0], expected)
    # Row 4 has cotangents of 300, with 3e-5 in the last place.
    np.testing.assert_allclose(by_row[1], gradient, rtol=1e-6, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 30))
def test_sorting_and_isotonic_never_raise_the_pinball_sum_of_any_target(seed, scale):
    rng = np.random.default_rng(seed)
    levels = np.linspace(0.05, 0.95, 19)
    quantiles = (scale * rng.normal(size=(12, 19))).astype(np.float32)
    targets = (scale * rng.normal(size=12)).astype(np.float32)[:, None]
    before = pinball_sum(quantiles, targets, levels)
    after = pinball_sum(np.sort(quantiles, axis=-1), targets, levels)
    assert (after <= before + 1e-12 * scale).all()
    # Means in float32: 1e-6 of the scale for the sum of 19.
    after = pinball_sum(isotonic(quantiles), targets, levels)
    assert (after <= before + 2e-6 * scale).all()


def test_every_order_leaves_nothing_crossing_and_ordered_rows_alone(case):
    values, _ = case
    levels = np.linspace(0.05, 0.95, 19)
    for order in ("sort", "isotonic", "cummax"):
        ordered = jax.jit(combine.order_quantiles, static_argnames="order")
        found = ordered(values, order, levels=levels)
        assert (np.diff(found, axis=-1) >= 0).all()
        np.testing.assert_array_equal(found[0], values[0])
    np.testing.assert_array_equal(combine.order_quantiles(values, "none"), values)
    row = np.array([3.0, 0.0, 1.0, -1.0, 5.0, 4.0], np.float32)
    found = ordered(row, "cummax", levels=np.array([0.1, 0.3, 0.5, 0.6, 0.8, 0.9]))
    np.testing.assert_array_equal(found, [0, 0, 1, 1, 5, 5])
    with pytest.raises(ValueError, match="one of sort"):
        combine.order_quantiles(row, "soft")
    with pytest.raises(ValueError, match=r"weights must be \[level\]"):
        combine.isotonic(row, np.ones(2))
