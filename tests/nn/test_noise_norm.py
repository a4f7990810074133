"""Norms and blocks that noise steers; noise of coarse grids and of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ensjax import nn
from ensjax.train import NoiseCrps, RolloutLoss, WhiteNoise

SITES = 12
KEYS = jax.random.split(jax.random.key(0), 3)


def given(width=6, channels=2):
    x = 3 + 2 * jax.random.normal(KEYS[0], (SITES, width))
    return x, jax.random.normal(KEYS[1], (SITES, channels))


def test_a_linen_module_can_hold_the_norm():
    """By flax's own bridge: parameters by name, and the same numbers and gradients."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, z):
            h = linen.Dense(6)(x)
            return nnx.bridge.to_linen(nn.NoiseConditionedNorm, 6, 2, name="norm")(h, z)

    x, z = given()
    net = Net()
    params = net.init(jax.random.key(0), x, z)["params"]
    assert set(params) == {"Dense_0", "norm"}
    shapes = jax.tree.map(jnp.shape, dict(params["norm"]["scale"]))
    assert shapes == {"kernel": (2, 6), "bias": (6,)}
    params = jax.tree.map(lambda p: p + 0.1, params)
    norm = nn.NoiseConditionedNorm(6, 2, rngs=nnx.Rngs(0))
    for name in ("scale", "shift"):
        own = params["norm"][name]
        linear = getattr(norm, name)
        linear.kernel[...], linear.bias[...] = own["kernel"], own["bias"]
    dense = params["Dense_0"]
    expected = norm(x @ dense["kernel"] + dense["bias"][None], z)
    found = net.apply({"params": params}, x, z)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    grads = jax.grad(lambda p: (net.apply({"params": p}, x, z) ** 2).sum())(params)
    for leaf in jax.tree.leaves(grads):
        assert np.abs(leaf).max() > 0


def test_the_norm_is_its_formula():
    x, z = given()
    norm = nn.NoiseConditionedNorm(6, 2, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("scale", "shift"):
        linear = getattr(norm, name)
        np.testing.assert_array_equal(linear.kernel[...], 0)
        np.testing.assert_array_equal(linear.bias[...], 0)
        kernel, bias = rng.normal(size=(2, 6)), rng.normal(size=6)
        linear.kernel[...] = jnp.asarray(kernel, jnp.float32)
        linear.bias[...] = jnp.asarray(bias, jnp.float32)
        parts[name] = np.asarray(z) @ kernel + bias
    x64 = np.asarray(x, np.float64)
    normed = (x64 - x64.mean(1, keepdims=True)) / np.sqrt(
        x64.var(1, keepdims=True) + 1e-5
    )
    expected = normed * (1 + parts["scale"]) + parts["shift"]
    np.testing.assert_allclose(norm(x, z), expected, atol=2e-5)
    # One vector for the whole of a state is the same noise at every place.
    everywhere = jnp.broadcast_to(z[:1], z.shape)
    np.testing.assert_allclose(norm(x, z[0]), norm(x, everywhere), atol=1e-6)


def test_a_new_norm_is_a_plain_one_and_its_noise_learns_through_it():
    """Both from zeros would never move; here W moves first, then the noise's MLP."""
    x, z = given()
    norm = nn.NoiseConditionedNorm(6, 2, rngs=nnx.Rngs(0))
    plain = nnx.LayerNorm(6, use_bias=False, use_scale=False, epsilon=1e-5, rngs=None)
    np.testing.assert_allclose(norm(x, z), plain(x), atol=1e-6)
    mlp = nn.NoiseMlp(2, width=4, rngs=nnx.Rngs(1))
    norm = nn.NoiseConditionedNorm(6, mlp.num_outputs, rngs=nnx.Rngs(0))

    def loss(parts):
        norm, mlp = parts
        return jnp.sum(norm(x, mlp(z)) * jax.random.normal(KEYS[2], x.shape))

    def largest(tree):
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    of_norm, of_mlp = nnx.grad(lambda parts: loss(parts))((norm, mlp))
    assert largest(of_norm) > 0.1 and largest(of_mlp) == 0
    norm.scale.kernel[...] += 0.01
    assert largest(nnx.grad(lambda parts: loss(parts))((norm, mlp))[1]) > 1e-4
    assert largest(nnx.state(mlp.linear2)) > 0.1


@pytest.mark.parametrize("kind", ["white", "projected", "global"])
def test_spread_grows_from_members_that_are_equal(kind):
    """All W are zeros and so is the pair term: the error's gradient parts members."""
    noise = {
        "white": WhiteNoise(2),
        "projected": nn.ProjectedNoise(2, factor=3),
        "global": nn.GlobalNoise(2),
    }[kind]
    model = nn.NoiseForecaster(
        1, num_noise_channels=2, width=4, depth=1, kernel_size=(3,), rngs=nnx.Rngs(0)
    )
    score = NoiseCrps(4, noise=noise)
    starts = jax.random.normal(KEYS[0], (32, SITES, 1))
    windows = jnp.stack([starts, starts + jax.random.normal(KEYS[1], starts.shape)], 1)
    loss = RolloutLoss(1, score)
    graph, params = nnx.split(model)

    @jax.jit
    def spread(params):
        network = nnx.merge(graph, params)
        members = jax.vmap(lambda key, x: score.members(network, key, x.shape, x))(
            jax.random.split(KEYS[2], 32), starts
        )
        return members.std(axis=1).mean()

    @jax.jit
    def descend(params, key):
        def value(params):
            return loss(nnx.merge(graph, params), windows, key)[0]

        slopes = jax.grad(value)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, slopes)

    assert float(spread(params)) < 1e-6
    for step in range(60):
        params = descend(params, jax.random.key(step))
    assert float(spread(params)) > 0.1


def test_the_forecaster_steps_from_its_state():
    model = nn.NoiseForecaster(
        2, num_noise_channels=3, width=4, depth=1, step_scale=0.0, rngs=nnx.Rngs(0)
    )
    noise, state = jnp.ones((SITES, 3)), jax.random.normal(KEYS[0], (SITES, 2))
    np.testing.assert_array_equal(model(noise, state), state)
    still = nn.NoiseForecaster(
        2, num_noise_channels=0, width=4, depth=1, rngs=nnx.Rngs(0)
    )
    assert still(None, state).shape == state.shape
    low = nn.NoiseForecaster(
        2, num_noise_channels=3, width=4, depth=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    assert low(noise, state).dtype == jnp.float32
    with pytest.raises(ValueError, match="built for 0 noise channels"):
        still(noise, state)
    with pytest.raises(ValueError, match="built for 3 noise channels"):
        model(None, state)
    with pytest.raises(ValueError, match=r"state must be \[\*space, 2\]"):
        model(noise, state[:, :1])
    with pytest.raises(ValueError, match=r"x is \[\*space, 6\]"):
        nn.NoiseConditionedNorm(6, 2, rngs=nnx.Rngs(0))(jnp.ones((5, 6)), noise[:, :2])


def test_global_noise_is_one_vector():
    drawn = nn.GlobalNoise(5)(KEYS[0], (SITES, 1))
    assert drawn.shape == (5,)
    np.testing.assert_array_equal(drawn, nn.GlobalNoise(5)(KEYS[0], (4, 8, 2)))


@pytest.mark.parametrize(
    "noise, space",
    [
        (nn.ProjectedNoise(1, factor=4, length=1.0), (32,)),
        (nn.ProjectedNoise(1, factor=2, length=0.7), (8, 12)),
        (nn.ProjectedNoise(1, factor=3, length=0.8, geometry="lat_lon"), (12, 24)),
    ],
)
def test_projected_noise_has_its_covariance(noise, space):
    """Unit variance everywhere, and the correlation of its weights with neighbours."""
    shape = (*space, 1)
    number = 4000
    drawn = jax.vmap(lambda k: noise(k, shape))(jax.random.split(KEYS[0], number))
    drawn = np.asarray(drawn).reshape(number, -1)
    coarse = tuple(size // noise.factor for size in space)
    units = np.eye(int(np.prod(coarse)), dtype=np.float32).reshape(-1, *coarse, 1)
    # The projection of each coarse place, found by drawing ones there.
    rows = [np.asarray(_project(noise, unit, shape)).ravel() for unit in units]
    covariance = np.stack(rows).T @ np.stack(rows)
    np.testing.assert_allclose(np.diag(covariance), 1, atol=1e-5)
    sampled = drawn.T @ drawn / number
    np.testing.assert_allclose(sampled, covariance, atol=6 / np.sqrt(number))
    assert covariance[0, 1] > 0.7  # neighbours along the last axis


def _project(noise, coarse, shape):
    """What `noise` makes of given draws."""
    original = jax.random.normal
    jax.random.normal = lambda key, shape: jnp.asarray(coarse).reshape(shape)
    try:
        return noise(jax.random.key(0), shape)
    finally:
        jax.random.normal = original


def test_on_a_ring_all_places_are_alike_but_for_their_place_in_the_cell():
    noise = nn.ProjectedNoise(1, factor=4)
    rows = np.stack(
        [
            np.asarray(_project(noise, unit, (32, 1))).ravel()
            for unit in np.eye(8, dtype=np.float32)
        ]
    )  # [coarse place, place]
    np.testing.assert_allclose(np.roll(rows[0], 4), rows[1], atol=1e-6)


def test_noise_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_channels"):
        nn.GlobalNoise(0)
    with pytest.raises(ValueError, match="of which a layer norm leaves two; got 2"):
        nn.NoiseMlp(2, num_outputs=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="factor is at least 1"):
        nn.ProjectedNoise(factor=0)
    with pytest.raises(ValueError, match="geometry is one of"):
        nn.ProjectedNoise(geometry="cube")
    with pytest.raises(ValueError, match="must divide every axis"):
        nn.ProjectedNoise(factor=5)(KEYS[0], (12, 1))
    with pytest.raises(ValueError, match="needs two axes"):
        nn.ProjectedNoise(geometry="lat_lon")(KEYS[0], (12, 1))
