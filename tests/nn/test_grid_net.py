"""A network from channels to other channels on the same grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import GridNet


def network(**options):
    grid = dict(width=4, depth=1, kernel_size=(3,), rngs=nnx.Rngs(0))
    return GridNet(2, 3, **{**grid, **options})


def test_a_new_one_is_zero_everywhere():
    np.testing.assert_array_equal(network()(jnp.ones((5, 2))), np.zeros((5, 3)))


def test_a_ring_that_is_turned_gives_what_is_turned_and_a_far_place_does_not_matter():
    net = network()
    kernel = net.head.linear.kernel
    kernel[...] = jax.random.normal(jax.random.key(0), kernel.shape)
    net = jax.jit(net)
    x = jax.random.normal(jax.random.key(1), (16, 2))
    turned = net(jnp.roll(x, 3, axis=0))
    np.testing.assert_allclose(turned, jnp.roll(net(x), 3, axis=0), atol=1e-5)
    # Four convolutions of three taps reach four places.
    moved = np.abs(net(x.at[8].add(1.0)) - net(x)).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(4, 13))


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"inputs must be \[..., \*space, 2\]"):
        network()(jnp.ones((5, 3)))
