"""Merging a stack that is split over devices: the same result, and what it sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh
from ensjax.planning import read_collectives
from ensjax.weight_space import METHODS

KEY = jax.random.key(1, impl="threefry2x32")
SHAPES = {"bias": (5,), "conv": (2, 2, 3, 4), "kernel": (7, 5), "scale": ()}
# All-reduces in the program that merges four leaves. XLA joins those that may run
# together: 1 is a sum over members of all leaves at once, 2 are an election and a mean,
# and 5 an election leaf by leaf. The steps of `karcher_mean` wait for each other.
ALL_REDUCES = {
    "average": 1,
    "breadcrumbs": 1,
    "breadcrumbs_ties": 5,
    "dare": 1,
    "dare_ties": 2,
    "della": 2,
    "della_linear": 1,
    "fisher": 1,
    "karcher_mean": 7,
    "model_stock": 1,
    "multislerp": 1,
    "nearswap": 1,
    "nuslerp": 1,
    "regmean": 2,
    "sce": 5,
    "slerp": 1,
    "task_arithmetic": 1,
    "ties": 2,
}
# Each leaf of the two members is sent to where it is mixed.
SENT = {"nearswap", "nuslerp", "slerp"}
QUICK = {"task_arithmetic", "ties"}


@functools.cache
def example():
    rng = np.random.default_rng(0)
    base = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
    stacked = {
        k: base[k][None] + jnp.asarray(rng.normal(size=(8, *s)), jnp.float32)
        for k, s in SHAPES.items()
    }
    fisher = jax.tree.map(lambda x: x**2, stacked)
    vectors = rng.normal(size=(8, 1, 20, 8))
    gram = jnp.asarray(np.einsum("mgni,mgnj->mgij", vectors, vectors) / 20, jnp.float32)
    return stacked, base, fisher, {"kernel": gram}


def program(name):
    """A method of stacked arguments, and those arguments."""
    method = METHODS[name]
    stacked, base, fisher, grams = example()
    knobs = {"density": 0.4, "t": 0.3}
    knobs = {k: v for k, v in knobs.items() if k in method.knobs_without_default}
    statistics = {"fisher": (fisher,), "grams": (grams,), "": ()}[method.statistics]
    if method.num_members == 2:
        stacked = jax.tree.map(lambda x: x[:2], stacked)

    def merge(stacked, *statistics):
        arguments = [base] if method.base else []
        arguments += [KEY] if method.needs_key else []
        return method.merge(stacked, *arguments, *statistics, **knobs)

    return merge, (stacked, *statistics)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_a_stack_over_devices_merges_alike_with_few_collectives(name):
    merge, arguments = program(name)
    members = jax.tree.leaves(arguments[0])[0].shape[0]
    mesh = make_mesh(member=members, devices=jax.devices()[:members])
    split = jax.device_put(arguments, jax.NamedSharding(mesh, jax.P("member")))
    whole = jax.NamedSharding(mesh, jax.P())
    compiled = jax.jit(merge, out_shardings=whole).lower(*split).compile()
    # Half the time to compile.
    quick = {"xla_backend_optimization_level": 0}
    alone = jax.jit(merge, compiler_options=quick)(*arguments)
    for leaf, value in compiled(*split).items():
        np.testing.assert_allclose(value, alone[leaf], rtol=1e-6, atol=1e-6)
    found = {
        c.operation: c.count
        for c in read_collectives(compiled.as_text(), (members, 1, 1))
    }
    if name in SENT:
        assert found.pop("collective-permute") <= len(SHAPES)
    assert found["all-reduce"] <= ALL_REDUCES[name]
    assert set(found) == {"all-reduce"}
