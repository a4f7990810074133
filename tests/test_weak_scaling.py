"""A device of many does what one device does, read off the compiled program.

As members grow with the devices, operations, bytes moved and memory of each device stay
what they were, and no device waits for another. The programs are those of `fit`,
through `ensjax.train.lower_step`, and are not run. Run as a script, `python
tests/test_weak_scaling.py 64` prints the facts of 64 CPU devices as JSON.
"""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from ensjax import Ensemble, losses, make_mesh, nn
from ensjax.train import lower_step

MEMBERS_PER_DEVICE = 4
# The program before machine code is the same, in half the time.
QUICK = {"xla_backend_optimization_level": 0}
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter"
    r"|collective-permute|collective-broadcast)(?:-start)?\("
)
SLOW = pytest.mark.slow


def mlp(rngs):
    return nn.MLP(in_features=64, hidden=(64, 64), rngs=rngs)


def cnn(rngs):
    return nn.CNN(image_shape=(8, 8, 1), features=(8, 8), num_outputs=3, rngs=rngs)


MODELS = {"MLP": (mlp, (64,)), "CNN": (cnn, (8, 8, 1))}
# All members of a device at once, so that all of the work is counted; "auto" puts the
# convolutional net into a loop over members, whose body is counted once.
CASES = [("MLP", None), ("CNN", None), ("CNN", "auto")]


@functools.cache
def facts_of(name, num_devices, block=None, members_per_device=MEMBERS_PER_DEVICE):
    """Numbers per device of one training step, and the collectives of the program."""
    make_model, shape = MODELS[name]
    members = members_per_device * num_devices
    examples = (
        jax.ShapeDtypeStruct((256, *shape), jnp.float32),
        jax.ShapeDtypeStruct((256,), jnp.int32),
    )
    program = lower_step(
        jax.eval_shape(lambda: Ensemble.init(make_model, num_members=members)),
        examples,
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        hyper=1e-3,
        batch_size=32,
        mesh=make_mesh(member=num_devices, devices=jax.devices()[:num_devices]),
        block=block,
    ).compile(QUICK)
    costs, memory = program.cost_analysis(), program.memory_analysis()
    numbers = {
        "flops": costs["flops"],
        "bytes accessed": costs["bytes accessed"],
        "temporary bytes": memory.temp_size_in_bytes,
        "argument bytes": memory.argument_size_in_bytes,
        "output bytes": memory.output_size_in_bytes,
    }
    return numbers, COLLECTIVE.findall(program.as_text())


def assert_same_per_device(name, block, facts):
    numbers, collectives = facts
    expected, _ = facts_of(name, 1, block)
    assert min(expected.values()) > 0
    for what, value in expected.items():
        assert numbers[what] == pytest.approx(value, rel=0.02), what
    assert collectives == []


@pytest.mark.parametrize(
    "num_devices", [*(pytest.param(n, marks=SLOW) for n in (2, 4)), 8]
)
@pytest.mark.parametrize(
    "name, block", [CASES[0], *(pytest.param(*case, marks=SLOW) for case in CASES[1:])]
)
def test_a_device_does_the_same_however_many_there_are(name, block, num_devices):
    assert_same_per_device(name, block, facts_of(name, num_devices, block))


@SLOW
def test_each_of_64_devices_does_the_same():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-P", __file__, "64"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert len(found) == len(CASES)
    for name, block, *facts in found:
        assert_same_per_device(name, block, facts)


def test_the_numbers_follow_the_work():
    """Twice the members on a device are twice the operations and the weights."""
    once, _ = facts_of("MLP", 2)
    twice, _ = facts_of("MLP", 2, members_per_device=2 * MEMBERS_PER_DEVICE)
    assert twice["flops"] == pytest.approx(2 * once["flops"], rel=0.02)
    # The weights are all of the outputs; the data are whole on every device.
    assert twice["output bytes"] == pytest.approx(2 * once["output bytes"], rel=0.02)


def test_a_step_that_joins_members_is_seen():
    sharded = jax.NamedSharding(make_mesh(member=4, data=2), jax.P("member"))
    x = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharded)
    text = jax.jit(lambda x: x.mean(axis=0)).lower(x).compile().as_text()
    assert COLLECTIVE.findall(text) == ["all-reduce"]


if __name__ == "__main__":
    count = int(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", count)
    print(json.dumps([[*case, *facts_of(case[0], count, case[1])] for case in CASES]))
