"""Attention and rotary positions against NumPy, and what masks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn.attention import Attention, check_tokens
from ensjax.nn.rotary import LinearScaling, Llama3Scaling, rotary_angles, rotate

WIDTH = 8


@nnx.jit
def run(attention, *args):
    return attention(*args)


def inputs(seed=0, batch=2, tokens=5):
    return jax.random.normal(jax.random.key(seed), (batch, tokens, WIDTH))


def reference(attention, x, mask=None):
    """Attention by loops over examples, heads and tokens, in float64."""
    x = np.asarray(x, np.float64)
    layers = [attention.query, attention.key, attention.value]
    q, k, v = (_linear(layer, x) for layer in layers)
    size = attention.head_width
    group = q.shape[-1] // k.shape[-1]
    out = np.zeros_like(q)
    for b in range(x.shape[0]):
        for head in range(q.shape[-1] // size):
            own = slice(head * size, (head + 1) * size)
            shared = slice(head // group * size, (head // group + 1) * size)
            for t in range(x.shape[1]):
                seen = [
                    s
                    for s in range(x.shape[1])
                    if (mask is None or mask[b, s]) and (s <= t or not attention.causal)
                ]
                scores = k[b, seen, shared] @ q[b, t, own] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[b, t, own] = weights / weights.sum() @ v[b, seen, shared]
    return _linear(attention.out, out)


def _linear(layer, x):
    bias = 0.0 if layer.bias is None else np.asarray(layer.bias[...], np.float64)
    return x @ np.asarray(layer.kernel[...], np.float64) + bias


def make(**options):
    """An attention whose weights are large enough to be sharp, with biases."""
    attention = Attention(WIDTH, 4, rngs=nnx.Rngs(params=0), **options)
    state = nnx.state(attention, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    drawn = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), state)
    nnx.update(attention, drawn)
    return attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), dict(num_kv_heads=2, head_width=6)],
)
def test_attention_equals_loops_in_numpy(causal, options):
    attention = make(causal=causal, **options)
    x = inputs()
    np.testing.assert_allclose(run(attention, x), reference(attention, x), atol=2e-5)
    mask = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    expected = reference(attention, x, mask)
    np.testing.assert_allclose(
        run(attention, x, jnp.asarray(mask)), expected, atol=2e-5
    )


def test_later_tokens_do_not_matter_to_a_causal_token():
    attention = make(causal=True)
    x = inputs()
    changed = x.at[:, 3:].add(5.0)
    before, after = run(attention, x), run(attention, changed)
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not np.allclose(before[:, 3:], after[:, 3:], atol=0.1)


def test_equal_groups_are_ordinary_heads():
    grouped, ordinary = make(num_kv_heads=2), make()
    for name in ("query", "out"):
        nnx.update(getattr(ordinary, name), nnx.state(getattr(grouped, name)))
    for name in ("key", "value"):
        layer, small = getattr(ordinary, name), getattr(grouped, name)
        for leaf in ("kernel", "bias"):
            values = getattr(small, leaf)[...]
            heads = values.reshape(*values.shape[:-1], 2, 2)
            repeated = jnp.repeat(heads, 2, axis=-2)
            getattr(layer, leaf)[...] = repeated.reshape(*values.shape[:-1], WIDTH)
    x = inputs()
    np.testing.assert_allclose(run(grouped, x), run(ordinary, x), atol=1e-5)


def test_a_token_that_may_look_at_none_stays_finite_with_its_gradient():
    attention = make(causal=True)
    mask = jnp.array([[0, 0, 1, 1, 1]] * 2)
    total = jax.jit(jax.value_and_grad(lambda x: attention(x, mask).sum()))
    value, grad = total(inputs())
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_rotation_is_a_product_of_complex_numbers():
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, 7, 3, 6)), np.float64)
    frequencies = np.array([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)])
    turned = np.zeros_like(x)
    for t in range(7):
        for i in range(3):
            pair = x[:, t, :, i] + 1j * x[:, t, :, i + 3]
            pair = pair * np.exp(1j * t * frequencies[i])
            turned[:, t, :, i], turned[:, t, :, i + 3] = pair.real, pair.imag
    angles = rotary_angles(7, 6, theta=100.0)
    actual = rotate(jnp.asarray(x, jnp.float32), angles)
    np.testing.assert_allclose(actual, turned, atol=2e-6)


def test_products_of_rotated_vectors_depend_on_the_difference_of_positions():
    q, k = jax.random.normal(jax.random.key(3), (2, 1, 1, 1, 8))
    rows = jnp.broadcast_to(q, (1, 9, 1, 8)), jnp.broadcast_to(k, (1, 9, 1, 8))
    angles = rotary_angles(9, 8)
    turned_q, turned_k = (rotate(r, angles)[0, :, 0] for r in rows)
    products = np.asarray(turned_q @ turned_k.T)
    for offset in range(-8, 9):
        diagonal = np.diagonal(products, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    np.testing.assert_allclose(products[0, 0], float((q * k).sum()), atol=1e-5)


def test_scalings_of_the_frequencies():
    scaling = Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_tokens=64)
    expected = []
    for i in range(8):
        frequency = 10_000.0 ** (-i / 8)
        turns = 64 * frequency / (2 * np.pi)
        if turns > 4:
            expected.append(frequency)
        elif turns < 1:
            expected.append(frequency / 8)
        else:
            smooth = (turns - 1) / 3
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    assert expected[0] == 1.0 and expected[-1] == 10_000.0 ** (-7 / 8) / 8
    angles = rotary_angles(3, 16, scaling=scaling)
    np.testing.assert_allclose(angles[2], 2 * np.array(expected), rtol=1e-6)
    plain = rotary_angles(3, 16)
    halved = rotary_angles(3, 16, scaling=LinearScaling(2.0))
    np.testing.assert_allclose(halved, plain / 2, rtol=1e-6)
    np.testing.assert_allclose(plain[1, :2], [1.0, 10_000.0 ** (-1 / 8)], rtol=1e-6)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="multiple of those of keys.*got 4 and 3"):
        make(num_kv_heads=3)
    with pytest.raises(ValueError, match="3 heads must divide the width, 8"):
        Attention(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="even head width; got 5"):
        rotary_angles(4, 5)
    with pytest.raises(ValueError, match="0 < low < high must hold; got 4.0 and 1.0"):
        Llama3Scaling(low=4.0, high=1.0)
    with pytest.raises(TypeError, match="tokens must be integers; got float32"):
        check_tokens(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="becomes a batch with tokens"):
        check_tokens(jnp.arange(3))
    with pytest.raises(ValueError, match=r"mask must have.*\(1, 3\); got \(1, 2\)"):
        check_tokens(jnp.arange(3)[None], jnp.ones((1, 2)))
