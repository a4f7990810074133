"""Pairs of members: exact derivatives both ways, in the memory of the members."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.train.kernel_crps import crps_of_weight

# The package has the function under the module's name.
kernel_crps = sys.modules[crps_of_weight.__module__]


def naive(members, truth, fair):
    """By the definition, with a matrix of all pairs."""
    count = len(members)
    kept = 1 - (1 - fair) / count
    distance = jnp.abs(members[:, None] - members[None]).sum(axis=(0, 1))
    error = jnp.abs(members - truth[None]).mean(axis=0)
    return error - kept * distance / (2 * count * (count - 1))


@pytest.mark.parametrize("block", [1, 4, 16])  # 1 of a CPU, 16 of accelerators
@pytest.mark.parametrize("count", [2, 5, 16])
def test_derivatives_are_those_of_the_definition(count, block, monkeypatch):
    monkeypatch.setitem(kernel_crps._BLOCK, "cpu", block)
    with jax.enable_x64(True):
        draws = np.random.default_rng(count).normal(size=(count + 1, 7))
        members, truth = jnp.asarray(draws[1:]), jnp.asarray(draws[0])
        tangent = jnp.asarray(np.random.default_rng(0).normal(size=members.shape))

        def sums(score):
            return lambda x, y, w: jnp.sum(score(x, y, w) ** 2)

        pairs = sums(lambda x, y, w: crps_of_weight(x, y, w, form="pairs"))
        for fair in (0.0, 0.95, 1.0):
            at = (members, truth, jnp.float64(fair))
            found, expected = (
                jax.grad(f, argnums=(0, 1, 2))(*at) for f in (pairs, sums(naive))
            )
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
            forward = jax.jvp(
                functools.partial(pairs, y=at[1], w=at[2]), at[:1], (tangent,)
            )[1]
            assert float(forward) == pytest.approx(float(jnp.sum(found[0] * tangent)))


def test_a_gradient_takes_a_few_times_the_memory_of_the_members():
    size = 20_000
    for count in (4, 16):
        shapes = (
            jax.ShapeDtypeStruct((count, size), np.float32),
            jax.ShapeDtypeStruct((size,), np.float32),
        )

        def loss(members, truth):
            return jnp.mean(crps_of_weight(members, truth, 0.95, form="pairs"))

        compiled = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        assert temporary < 6 * 4 * count * size
