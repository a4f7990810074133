"""Windows of patches on a latitude-longitude grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import WindowTransformer

SPACE = (8, 16)


def network(**options):
    sizes = dict(space=SPACE, patch_size=(1, 1), window=(4, 4), width=8, depth=2)
    return WindowTransformer(
        1, 1, **{**sizes, "num_heads": 2, "rngs": nnx.Rngs(0), **options}
    )


@pytest.fixture(scope="module")
def moved():
    """A network whose last layer is no zeros and whose places are all alike."""
    net = network()
    net.head.kernel[...] = jax.random.normal(jax.random.key(1), net.head.kernel.shape)
    net.places[...] = jnp.zeros_like(net.places[...])
    return jax.jit(net)


def test_a_new_one_is_zero_everywhere():
    found = network(patch_size=(2, 2), window=(2, 4))(jnp.ones((*SPACE, 1)))
    np.testing.assert_array_equal(found, np.zeros((*SPACE, 1)))


def test_the_longitudes_are_a_ring(moved):
    x = jax.random.normal(jax.random.key(0), (*SPACE, 1))
    turned = moved(jnp.roll(x, 4, axis=1))
    np.testing.assert_allclose(turned, jnp.roll(moved(x), 4, axis=1), atol=1e-5)


def test_who_looks_at_whom(moved):
    """A window, then one that is shifted by half: across the ring, not the poles."""
    x = jax.random.normal(jax.random.key(0), (*SPACE, 1))

    def reached(row, column):
        change = np.abs(moved(x.at[row, column].add(1.0)) - moved(x))[..., 0] > 0
        return [np.flatnonzero(change.any(axis=axis)).tolist() for axis in (1, 0)]

    # Rows 0-3 are seen first, then by the shifted windows of rows 2-5 and, since the
    # poles are apart, of rows 0-1; columns -2 to 5 around the ring.
    assert reached(0, 0) == [list(range(6)), [0, 1, 2, 3, 4, 5, 14, 15]]
    assert reached(7, 5) == [list(range(2, 8)), list(range(2, 10))]


def test_blocks_may_be_computed_again(moved):
    x = jax.random.normal(jax.random.key(0), (*SPACE, 1))
    slopes = [
        jax.grad(lambda x, n=net: n(x).sum())(x)
        for net in (network(), network(remat=True))
    ]
    np.testing.assert_allclose(*slopes, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused():
    for options, message in (
        (dict(window=(3, 4)), "must tile the grid"),
        (dict(num_heads=3), "heads must divide the width"),
        (dict(depth=3), "depth be even"),
    ):
        with pytest.raises(ValueError, match=message):
            network(**options)
    with pytest.raises(ValueError, match=r"inputs must be \(8, 16, 1\)"):
        network()(jnp.ones((8, 8, 1)))
