"""Blocks that are computed again for the gradient, equal neighbours in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax import nn
from ensjax.blocks import inner_jaxprs
from ensjax.ops.sphere import SphericalGrid


def on_sphere(remat):
    grid = SphericalGrid(6, 12)
    return nn.SphericalForecaster(
        grid,
        2,
        num_noise_channels=1,
        width=4,
        noise_width=2,
        blocks=("local", "local", "global"),
        kernel_shape=(1, 1),
        layer_scale=0.5,
        remat=remat,
        rngs=nnx.Rngs(0),
    )


def on_ring(remat):
    return nn.NoiseForecaster(
        2,
        num_noise_channels=1,
        width=4,
        depth=3,
        kernel_size=(3,),
        remat=remat,
        rngs=nnx.Rngs(0),
    )


def lengths_of_loops(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn.params["length"]
        for inner, _ in inner_jaxprs(eqn):
            yield from lengths_of_loops(inner)


@pytest.mark.parametrize(
    "make, space, length", [(on_sphere, (6, 12), 2), (on_ring, (8,), 3)]
)
def test_a_loop_over_blocks_changes_neither_forecast_nor_gradient(make, space, length):
    keys = jax.random.split(jax.random.key(0))
    noise = jax.random.normal(keys[0], (2, *space, 1))  # of two members
    state = jax.random.normal(keys[1], (*space, 2))

    def run(remat):
        graph, params = nnx.split(make(remat))

        def loss(params):
            network = nnx.merge(graph, params)
            found = jax.vmap(lambda one: network(one, state))(noise)
            return jnp.sum(found**2), found

        call = jax.value_and_grad(loss, has_aux=True)
        loops = set(lengths_of_loops(jax.make_jaxpr(call)(params).jaxpr))
        return jax.jit(call)(params), loops

    (again, loops), (kept, _) = run(True), run(False)
    assert length in loops
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
