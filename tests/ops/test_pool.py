"""Pooling equals Flax's, and so do its gradients where nothing ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.ops import avg_pool, max_pool

# space, window, strides, padding
CASES = {
    "tiles": ((6, 4), (2, 2), (2, 2), "VALID"),
    "tiles_remainder": ((7, 5), (2, 2), (2, 2), "VALID"),
    "tiles_padded": ((7, 5), (2, 3), (2, 3), "SAME"),
    "overlaps": ((7, 6), (3, 3), (2, 2), "SAME"),
    "strides_one": ((5, 6), (2, 3), (1, 1), "VALID"),
    "gaps": ((9, 8), (2, 1), (3, 2), "VALID"),
    "explicit": ((6, 6), (3, 2), (2, 1), ((1, 1), (0, 1))),
    "sequence": ((9,), (3,), (3,), "VALID"),
    "volume": ((4, 5, 6), (2, 2, 2), (2, 2, 2), "VALID"),
    "global": ((5, 4), (5, 4), (5, 4), "VALID"),
}


def _input(case):
    # Distinct numbers: nothing ties.
    shape = (2, *CASES[case][0], 3)
    order = jax.random.permutation(jax.random.key(0), int(np.prod(shape)))
    return order.reshape(shape).astype(jnp.float32) / 10


def _value_and_grad(pool, x):
    def loss(x):
        y = pool(x)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(weights * y), y

    (_, y), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return y, grad


EACH = pytest.mark.parametrize(
    "case",
    [
        case
        if case in ("tiles", "overlaps", "explicit")
        else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)


@EACH
def test_max_pool_equals_flax_bit_for_bit(case):
    _, window, strides, padding = CASES[case]
    x = _input(case)
    actual = _value_and_grad(lambda x: max_pool(x, window, strides, padding=padding), x)
    expected = _value_and_grad(lambda x: nnx.max_pool(x, window, strides, padding), x)
    np.testing.assert_array_equal(actual[0], expected[0])
    # Where windows overlap an entry sums several cotangents, in another order.
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count_include_pad", [True, False])
@EACH
def test_avg_pool_equals_flax(case, count_include_pad):
    _, window, strides, padding = CASES[case]
    x = _input(case)
    options = dict(padding=padding, count_include_pad=count_include_pad)
    actual = _value_and_grad(lambda x: avg_pool(x, window, strides, **options), x)
    with jax.numpy_rank_promotion("allow"):
        expected = _value_and_grad(
            lambda x: nnx.avg_pool(x, window, strides, **options), x
        )
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


def test_known_values_and_the_gradient_of_ties():
    x = jnp.array([[1.0, 5.0, 2.0, 2.0], [3.0, 4.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(max_pool(x, (2, 2), (2, 2)).ravel(), [5.0, 2.0])
    np.testing.assert_array_equal(avg_pool(x, (2, 2), (2, 2)).ravel(), [3.25, 2.0])
    grad = jax.grad(lambda x: jnp.sum(max_pool(x, (2, 2), (2, 2))))(x)
    expected = [[0.0, 1.0, 0.25, 0.25], [0.0, 0.0, 0.25, 0.25]]
    np.testing.assert_array_equal(grad[0, :, :, 0], expected)


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
def test_nan_reaches_its_windows_only_and_gives_no_gradient(strides):
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 0, 0, 0].set(jnp.nan)
    y, grad = _value_and_grad(lambda x: max_pool(x, (2, 2), strides), x)
    assert np.isnan(y).sum() == 1 and np.isnan(y[0, 0, 0, 0])
    assert np.isfinite(grad).all()
    assert np.isnan(avg_pool(x, (2, 2), strides)).sum() == 1


def test_pooling_needs_no_reduce_window_in_value_or_gradient():
    def loss(x):
        y = max_pool(x, (3, 3), (2, 2), padding="SAME") + avg_pool(x, (2, 2), (2, 2))
        return jnp.sum(y**2)

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((2, 8, 8, 3))).as_text()
    assert "reduce_window" not in text and "select_and_scatter" not in text


def test_leading_axes_and_vmap_are_batches():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    for pool in (max_pool, avg_pool):
        direct = pool(x, (2, 2), (2, 2))
        mapped = jax.vmap(lambda x, pool=pool: pool(x, (2, 2), (2, 2)))(x)
        np.testing.assert_array_equal(direct, mapped)
        single = pool(x[0, 0], (2, 2), (2, 2))
        np.testing.assert_array_equal(direct[0, 0], single)


def test_bfloat16_averages_are_summed_in_float32():
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    y = avg_pool(x, (32, 32), (32, 32))
    assert y.dtype == jnp.bfloat16 and y.ravel()[0] == 1.0


def test_errors_say_what_fits():
    x = jnp.ones((1, 4, 4, 2))
    with pytest.raises(ValueError, match="one window size and one stride"):
        max_pool(x, (2, 2), (2,))
    with pytest.raises(ValueError, match="must fit into its padded axis"):
        avg_pool(x, (5, 2), (2, 2))
    with pytest.raises(TypeError, match="floating point"):
        max_pool(x.astype(jnp.int32), (2, 2), (2, 2))
