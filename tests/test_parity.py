"""Eager, jitted, mapped and looped computations agree, also past 2^15 rows.

Some versions of JAX silently return wrong values under `jit` on CPU (jax issue 39103:
the last of 32,769 mapped rows). These tests guard whatever version is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ensjax import Ensemble, losses, make_mesh, map_members, nn

SIZES = [32_769, 32_768, 33_001, 65_537]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("width", [3, 2, 5])
def test_a_mapped_matrix_vector_product_is_right_in_every_row(rows, width):
    rng = np.random.default_rng(0)
    m = rng.normal(size=(width, width)).astype(np.float32)
    r = rng.normal(size=(rows, width)).astype(np.float32)

    def one(r):
        return jnp.sum((m @ r) ** 2)

    expected = ((r.astype(np.float64) @ m.T.astype(np.float64)) ** 2).sum(axis=1)
    gradient = 2 * (r.astype(np.float64) @ m.T) @ m.astype(np.float64)
    compiled = jax.jit(jax.vmap(one))(r)
    # Sums of at most 25 products in float32.
    np.testing.assert_allclose(compiled, expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(one)(r), expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(one)))(r), gradient, rtol=2e-5, atol=5e-5
    )
    for i in (0, rows // 2, rows - 1):
        np.testing.assert_allclose(one(r[i]), expected[i], rtol=2e-5)
        np.testing.assert_allclose(compiled[i], one(r[i]), rtol=2e-5)


@pytest.mark.parametrize("rows", SIZES[:2])
def test_a_sum_over_many_rows_is_right(rows):
    x = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)

    def total(w):
        return jnp.mean((x @ w) ** 2)

    w = jnp.array([0.5, -1.0, 2.0])
    exact = x.astype(np.float64)
    residual = exact @ np.asarray(w, np.float64)
    gradient = 2 * (residual[:, None] * exact).mean(axis=0)
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_allclose(wrap(total)(w), (residual**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(wrap(jax.grad(total))(w), gradient, rtol=1e-4)


@pytest.mark.parametrize("rows", [32_769])
def test_members_with_many_examples_equal_float64(rows):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    w = rng.normal(size=(3, 3, 4)).astype(np.float32)

    def one(w, x):
        return jax.vmap(lambda r: jnp.sum((r @ w) ** 2))(x)

    expected = ((x.astype(np.float64) @ w.astype(np.float64)) ** 2).sum(axis=2)
    for block in (None, 1):
        run = map_members(
            one,
            kinds=("member", "batch"),
            out="member_batch",
            mesh=make_mesh(member=1),
            block=block,
        )
        np.testing.assert_allclose(run(w, x), expected, rtol=2e-5, atol=1e-5)


def dense(rngs):
    return nn.MLP(in_features=5, hidden=(7,), num_outputs=3, rngs=rngs)


def conv(rngs):
    return nn.CNN(
        image_shape=(7, 7, 1), features=(3,), num_pools=1, num_outputs=3, rngs=rngs
    )


def vit(rngs):
    return nn.ViT(
        image_shape=(8, 8, 1), width=8, depth=1, num_heads=2, num_outputs=3, rngs=rngs
    )


MEMBERS = [
    pytest.param(dense, (5,), id="dense"),
    pytest.param(conv, (7, 7, 1), id="conv", marks=pytest.mark.slow),
    pytest.param(vit, (8, 8, 1), id="vit", marks=pytest.mark.slow),
]


def value(graphdef, params, rest, x, y):
    model = nnx.merge(graphdef, params, rest, copy=True)
    return losses.cross_entropy(model, (x, y), None)[0]


@pytest.mark.parametrize("make_model, shape", MEMBERS)
def test_eager_jit_vmap_and_loop_agree(make_model, shape):
    """Loss, gradient, and parameters after 10 steps of Adam with eps = 1e-3."""
    ensemble = Ensemble.init(make_model, num_members=3, mesh=make_mesh(member=1))
    graphdef, rest = ensemble.graph.graphdef, ensemble.state["rest"]
    stacked = ensemble.params
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, *shape)).astype(np.float32)
    y = rng.integers(3, size=9)
    tx = optax.adam(1e-2, eps=1e-3)

    def gradient(params, rest):
        return jax.value_and_grad(lambda p: value(graphdef, p, rest, x, y))(params)

    def train(params, rest):
        def step(carry, _):
            params, opt_state = carry
            loss, grads = gradient(params, rest)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry = (params, tx.init(params))
        return jax.lax.scan(step, carry, None, length=10)[0][0]

    def loop(fn):
        rows = [
            fn(*jax.tree.map(lambda a: a[i], (stacked, rest)))  # noqa: B023
            for i in range(3)
        ]
        return jax.tree.map(lambda *r: jnp.stack(r), *rows)

    def close(a, b, atol):
        """To `atol` of the largest entry of each leaf, or of 1 if that is smaller."""

        def check(p, q):
            scale = max(1.0, float(jnp.abs(q).max()))
            np.testing.assert_allclose(p, q, atol=atol * scale, rtol=0)

        jax.tree.map(check, a, b)

    first = jax.tree.map(lambda a: a[0], (stacked, rest))
    looped = loop(jax.jit(gradient))
    eager = gradient(*first)  # one operation at a time
    close(jax.tree.map(lambda a: a[0], looped), eager, 2e-6)
    close(jax.jit(jax.vmap(gradient))(stacked, rest), looped, 2e-6)
    trained = loop(jax.jit(train))
    close(jax.jit(jax.vmap(train))(stacked, rest), trained, 1e-5)
    for options in (dict(block=None), dict(block=1)):
        run = map_members(
            train, kinds=("member",) * 2, mesh=make_mesh(member=1), **options
        )
        close(run(stacked, rest), trained, 1e-5)
