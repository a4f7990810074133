"""The mesh, and where arrays live on it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from ensjax.mapping import whole_on_each_device
from ensjax.mesh import (
    check_mesh,
    default_mesh,
    fetch,
    make_mesh,
    place,
    platform,
    tracing_for,
    tracing_platform,
)


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (8, 1, 1)),
        ({"member": 2}, (2, 1, 1)),
        ({"data": 2}, (4, 2, 1)),
        ({"member": 2, "data": -1}, (2, 4, 1)),
        ({"member": 2, "data": 2, "model": -1}, (2, 2, 2)),
        ({"member": 1, "data": 3}, (1, 3, 1)),
    ],
)
def test_sizes_and_what_is_left_fill_the_devices(sizes, shape):
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == ("member", "data", "model")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Auto,) * 3
    check_mesh(mesh)


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"member": 16}, "needs 16 devices, but there are 8"),
        ({"data": 3}, "does not divide 8"),
        ({"member": 0}, "'member' must be at least 1"),
        ({"data": -2}, "'data' must be at least 1"),
        ({"data": -1}, "Only one mesh axis may be -1; got member, data"),
    ],
)
def test_sizes_that_do_not_fit_say_so(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(**sizes)


def test_the_devices_that_are_given_are_used_in_order():
    devices = jax.devices()[4:6]
    assert list(make_mesh(devices=devices).devices.flat) == devices


def test_another_mesh_is_refused():
    with pytest.raises(ValueError, match="make_mesh.*'x'"):
        check_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)))


def test_place_splits_and_fetch_brings_back():
    mesh = make_mesh(member=4, data=2)
    x = np.arange(16.0).reshape(8, 2)
    keys = jax.random.split(jax.random.key(0), 4)
    placed = place({"x": x, "keys": keys}, mesh, jax.P("member"))
    assert placed["x"].addressable_shards[0].data.shape == (2, 2)
    assert placed["keys"].sharding.spec == jax.P("member")
    back = fetch(placed["x"])
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, x)


def test_the_platform_of_a_trace_is_what_it_is_for():
    assert platform(default_mesh()) == "cpu"
    assert tracing_platform() == "cpu"
    with tracing_for("tpu"):
        assert tracing_platform() == "tpu"
        with tracing_for("cuda"):
            assert tracing_platform() == "gpu"
        assert tracing_platform() == "tpu"
    assert tracing_platform() == "cpu"
    with pytest.raises(RuntimeError), tracing_for("tpu"):
        raise RuntimeError
    assert tracing_platform() == "cpu"


def test_one_traced_function_is_not_shared_between_platforms():
    """JAX caches traces by function and shapes: the mesh must be part of the key."""
    seen = []

    @jax.jit
    def inner(x):
        seen.append(tracing_platform())
        return x

    with tracing_for("tpu"):
        jax.jit(lambda x: inner(x)).lower(jnp.ones(2))
    with tracing_for("cpu"):
        jax.jit(lambda x: inner(x) + 1).lower(jnp.ones(2))
    assert seen == ["tpu", "cpu"]


def devices_of_a_new_process(environment, before=""):
    """What `use_cpu_cores` leads to, as printed on stdout and stderr."""
    lines = ("import jax, ensjax.mesh", before, "ensjax.mesh.use_cpu_cores()")
    program = "\n".join((*lines, "print(len(jax.devices()))"))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    return result.stdout.strip(), result.stderr


def test_every_core_becomes_a_device_unless_a_number_is_set():
    cores = len(os.sched_getaffinity(0))
    assert devices_of_a_new_process({})[0] == str(min(8, cores))
    assert devices_of_a_new_process({"JAX_NUM_CPU_DEVICES": "3"})[0] == "3"
    flag = {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}
    assert devices_of_a_new_process(flag)[0] == "5"
    assert "RuntimeError" in devices_of_a_new_process({}, "jax.devices()")[1]


@pytest.mark.parametrize("sizes", [{"member": 8}, {"member": 4, "data": 2}])
def test_what_is_whole_on_each_device_is_computed_as_on_one(sizes):
    values = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
    split = place(values, make_mesh(**sizes), jax.P("member", "data"))

    def chaotic(x):  # rounding of the sum decides
        x = jax.lax.fori_loop(0, 40, lambda _, x: 3.9 * x * (1 - x), x.sum((0, 1)) % 1)
        return x, x.min()

    def whole(x):
        return whole_on_each_device(chaotic, 0.3 * x)[0] + 0.0 * x.sum()

    for call in (whole, jax.jit(whole)):
        np.testing.assert_array_equal(call(split), call(values))
    text = jax.jit(lambda x: whole_on_each_device(chaotic, x)).lower(split)
    assert "all-reduce" not in text.compile().as_text()
