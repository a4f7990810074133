"""Limits that keep a NaN: against NumPy, compiled, and fused with a sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.ops.limits import at_least, at_most, between, larger, smaller

ROWS = 4_096  # with few rows the compiler that loses a NaN keeps it
FUNCTIONS = {
    "at_least": (lambda x: at_least(x, 0.1), lambda x: np.maximum(x, 0.1)),
    "at_most": (lambda x: at_most(x, 0.1), lambda x: np.minimum(x, 0.1)),
    "between": (lambda x: between(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5)),
    "larger": (lambda x: larger(x, -x), lambda x: np.maximum(x, -x)),
    "smaller": (lambda x: smaller(-x, x), lambda x: np.minimum(x, -x)),
}


def broken():
    x = np.random.default_rng(0).normal(size=(3, ROWS, 4)).astype(np.float32)
    x[0, 1, 1] = np.nan
    x[0, 2], x[0, 3] = np.inf, -np.inf
    return x


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_numpys_and_a_nan_stays(name):
    own, expected = FUNCTIONS[name]
    x = broken()
    np.testing.assert_array_equal(jax.jit(own)(x), expected(x))
    np.testing.assert_array_equal(own(jnp.asarray(x)), expected(x))
    # Fused with what comes after it.
    summed = jax.jit(lambda x: jnp.exp(-jnp.abs(own(x))).sum(axis=(0, 2)))(x)
    assert np.isnan(summed[1]) and np.isfinite(np.delete(summed, 1)).all()


@pytest.mark.parametrize("function", [larger, smaller])
def test_either_may_be_nan(function):
    x, nan = jnp.arange(3.0), jnp.full(3, jnp.nan)
    assert jnp.isnan(function(x, nan)).all() and jnp.isnan(function(nan, x)).all()
    both = function(jnp.array([1, 5], jnp.int32), jnp.array([2, 3], jnp.int32))
    assert both.dtype == jnp.int32


def test_dtypes_are_kept_and_a_hinge_is_flat_at_its_edge():
    assert at_least(jnp.ones(2, jnp.bfloat16), 0.0).dtype == jnp.bfloat16
    assert between(jnp.ones(2, jnp.float16), 0.0, 0.5).dtype == jnp.float16
    slope = jax.grad(lambda x: at_least(x, 0.0).sum())(jnp.array([-1.0, 0.0, 1.0]))
    assert slope.tolist() == [0.0, 0.0, 1.0]
