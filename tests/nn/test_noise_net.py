"""The network with noise inside: what it sees, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import ResidualGenerator

SITES = 16


def network(**options):
    """Its last layer is not left at zeros, so that there is something to see."""
    options = dict(width=4, depth=1, kernel_size=(3,)) | options
    rngs = nnx.Rngs(0)
    net = ResidualGenerator(1, num_condition_channels=2, rngs=rngs, **options)
    shape = net.head.linear.kernel.shape
    net.head.linear.kernel[...] = jax.random.normal(rngs.params(), shape)
    return net


def given():
    keys = jax.random.split(jax.random.key(1))
    shapes = (SITES, 4), (SITES, 2)
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def test_places_are_alike_and_see_their_neighbours_only():
    net = nnx.jit(network())
    noise, condition = given()
    found = net(noise, condition)
    assert found.shape == (SITES, 1) and found.dtype == jnp.float32
    moved = net(jnp.roll(noise, 5, axis=0), jnp.roll(condition, 5, axis=0))
    np.testing.assert_allclose(moved, jnp.roll(found, 5, axis=0), atol=1e-5)
    # Four convolutions of three taps reach four places, on a ring.
    changed = net(noise.at[0].add(1.0), condition)
    differs = set(np.flatnonzero(np.abs(changed - found)[:, 0] > 1e-6).tolist())
    assert {0} <= differs <= {12, 13, 14, 15, 0, 1, 2, 3, 4}


def test_noise_enters_beside_the_condition_and_into_the_blocks():
    """Each way alone makes members differ: with the other one's weights at zero."""
    noise, condition = given()
    stem_only, film_only = network(), network()
    stem_only.embedding.linear2.kernel[...] *= 0
    kernel = film_only.stem.linear.kernel[...]  # [3 taps x (4 noise + 2), width]
    kernel = kernel.reshape(3, 6, -1).at[:, :4].set(0.0).reshape(kernel.shape)
    film_only.stem.linear.kernel[...] = kernel
    for net in (stem_only, film_only):
        spread = jnp.abs(net(noise, condition) - net(-noise, condition)).max()
        assert spread > 1e-2


def test_a_new_network_starts_from_equal_members():
    net = ResidualGenerator(1, num_noise_channels=2, width=4, depth=1, rngs=nnx.Rngs(0))
    noise = jax.random.normal(jax.random.key(0), (3, SITES, 2))
    np.testing.assert_array_equal(jax.vmap(net)(noise), jnp.zeros((3, SITES, 1)))


def test_low_precision_inside_and_float32_outside():
    noise, condition = given()
    low = network(dtype=jnp.bfloat16)(noise, condition)
    assert low.dtype == jnp.float32
    found = network()(noise, condition)
    np.testing.assert_allclose(low, found, atol=0.1 * float(jnp.abs(found).max()))
    assert (low != found).any()


def test_other_channels_are_refused():
    noise, condition = given()
    with pytest.raises(ValueError, match=r"noise must be \[\*space, 4\]"):
        network()(noise[:, :3], condition)
    with pytest.raises(ValueError, match="was built for a condition"):
        network()(noise)
    with pytest.raises(ValueError, match="num_noise_channels"):
        network(num_noise_channels=0)
