"""Networks that make one step: persistence at first, noise that parts members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn.forecast_net import ResidualForecaster


def _network(**options):
    small = dict(width=8, depth=2, kernel_size=(3,), rngs=nnx.Rngs(0))
    return ResidualForecaster(2, **{**small, **options})


def _with_head(network):
    kernel = network.head.linear.kernel
    kernel[...] = jax.random.normal(jax.random.key(5), kernel.shape)
    return network


def test_a_new_network_is_persistence():
    state = jax.random.normal(jax.random.key(1), (8, 2))
    np.testing.assert_array_equal(_network()(None, state), state)


@pytest.mark.parametrize("norm", [None, "layer", "group"])
def test_it_turns_with_the_ring(norm):
    network = _with_head(_network(norm=norm, num_noise_channels=3))
    state = jax.random.normal(jax.random.key(1), (8, 2))
    noise = jax.random.normal(jax.random.key(2), (8, 3))
    turned = network(jnp.roll(noise, 2, 0), jnp.roll(state, 2, 0))
    expected = jnp.roll(network(noise, state), 2, 0)
    np.testing.assert_allclose(turned, expected, rtol=2e-5, atol=2e-5)


def test_noise_parts_members_and_the_scale_is_of_each_channel():
    network = _with_head(_network(num_noise_channels=3, step_scale=(1.0, 0.0)))
    state = jnp.ones((8, 2))
    noise = jax.random.normal(jax.random.key(2), (2, 8, 3))
    first, second = (network(one, state) for one in noise)
    assert not np.allclose(first[:, 0], second[:, 0])
    np.testing.assert_array_equal(first[:, 1], state[:, 1])


def test_an_earlier_state_is_seen():
    network = _with_head(_network(num_extra_channels=2))
    state, earlier = jnp.ones((8, 2)), jnp.zeros((8, 2))
    assert not np.allclose(network(None, state, earlier), network(None, state, state))


@pytest.mark.parametrize(
    "options, noise, state, word",
    [
        ({}, np.zeros((8, 1)), np.zeros((8, 2)), "no noise"),
        ({"num_noise_channels": 1}, None, np.zeros((8, 2)), "noise must be"),
        ({"num_noise_channels": 1}, np.zeros((8, 2)), np.zeros((8, 2)), "noise must"),
        ({}, None, np.zeros((8, 3)), "state must be"),
        ({"num_extra_channels": 2}, None, np.zeros((8, 2)), "condition"),
    ],
)
def test_other_channels_are_refused(options, noise, state, word):
    with pytest.raises(ValueError, match=word):
        _network(**options)(noise, state)


@pytest.mark.parametrize(
    "options", [dict(step_scale=(1.0, 1.0, 1.0)), dict(num_noise_channels=-1)]
)
def test_sizes_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError):
        _network(**options)
