"""The plan of a call of `map_members` says what then runs."""

import dataclasses
import functools
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import make_mesh, map_members, ntk
from ensjax.planning import MappedJob, Plan, plan

WIDTH, STEPS = 64, 7


def descend(steps, unroll, weights, x, y):
    """Gradient descent on a linear map, and the weights that it ends with."""

    def step(w, _):
        return w - 0.1 * x.T @ (x @ w - y), None

    return jax.lax.scan(step, weights, length=steps, unroll=unroll)[0]


def written_out(steps):
    return functools.partial(descend, steps, True)


LOOP = functools.partial(descend, STEPS, False)


def job_of(num_members=8, member=1, **changes):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(num_members, WIDTH, WIDTH)).astype(np.float32)
    x = rng.normal(size=(32, WIDTH)).astype(np.float32) / 8
    y = np.ones((32, WIDTH), np.float32)
    job = MappedJob(
        LOOP,
        ("member", "shared", "shared"),
        (w, x, y),
        mesh_sizes=dict(member=member, data=1),
        block=2,
        params=jax.ShapeDtypeStruct(w.shape[1:], w.dtype),
        steps=STEPS,
        written_out=written_out,
    )
    return dataclasses.replace(job, **changes)


def mesh_of(member, data=1):
    return make_mesh(member=member, data=data, devices=jax.devices()[: member * data])


def bytes_of(stats):
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


def network_job(member, num_members, block):
    """Networks of finite width, as `ntk_permutations` trains them."""
    k, width = 6, 512
    spec = ntk.FullyConnected()
    train = ntk.TrainNetwork(spec, width, 9)
    return MappedJob(
        train,
        ("member", *("shared",) * 5),
        (
            np.arange(num_members, dtype=np.int32),
            np.int32(0),
            np.float32(1.0),
            np.eye(k, dtype=np.float32),
            np.eye(k, dtype=np.float32),
            ntk.cube_inputs(k),
        ),
        mesh_sizes=dict(member=member, data=1),
        block=block,
        params=train.abstract_params(k, k),
        steps=9,
        written_out=train.written_out,
    )


CASES = {
    "one device": lambda: job_of(),
    "members on devices": lambda: job_of(member=4),
    "padded": lambda: job_of(5, member=2),
    "networks": lambda: network_job(2, 6, 1),
    "networks, padded, all at once": lambda: network_job(4, 6, None),
}
QUICK = ("padded", "networks")


@pytest.mark.parametrize(
    "case",
    [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
)
def test_the_plan_is_of_the_program_that_runs(case):
    job = CASES[case]()
    mesh = mesh_of(job.mesh_sizes["member"])
    planned = plan(job, mesh=mesh, costs=False)
    arguments = job.placed_arguments(mesh)
    # As somebody without a plan would run it.
    program = map_members(job.fn, kinds=job.kinds, mesh=mesh, block=job.block)
    ran = program.lower(*arguments).compile().memory_analysis()
    assert planned.peak_bytes == pytest.approx(bytes_of(ran), rel=0.05)
    (memory,) = planned.programs
    placed = sum(
        x.sharding.shard_shape(x.shape)[0] * x.nbytes // x.shape[0] if x.ndim else 4
        for x in arguments
    )
    assert memory.argument_bytes == pytest.approx(placed, rel=0.05)
    for ours, theirs in zip(
        jax.tree.leaves(job.compile(mesh)(*arguments)),
        jax.tree.leaves(program(*job.arguments)),
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_parameters_and_padding_are_counted_by_hand():
    planned = plan(network_job(4, 6, None), mesh=mesh_of(4), costs=False)
    assert planned.member.parameters == 2 * 6 * 512
    assert planned.member.params_bytes == 4 * 2 * 6 * 512
    assert (planned.num_members, planned.num_rows) == (6, 8)
    assert (planned.steps, planned.num_calls, planned.num_checkpoints) == (9, 1, 0)
    assert planned.batch_size is None and planned.checkpoint_bytes == 0


def test_operations_of_a_step_are_counted_by_hand_and_the_loop_is_not_once():
    planned = plan(job_of(), mesh=mesh_of(1))
    products = 2 * 2 * 32 * WIDTH * WIDTH  # x w, and x^T of the error
    assert planned.step.block == 2 and not planned.step.has_loop
    assert planned.step.flops == pytest.approx(8 * products, rel=0.05)
    assert planned.beside.flops < 0.05 * planned.step.flops
    assert planned.step.collectives == planned.beside.collectives == ()
    # On two devices each does half.
    halved = plan(job_of(), mesh=mesh_of(2))
    assert halved.step.flops == pytest.approx(planned.step.flops / 2)


def test_a_step_of_networks_is_its_five_products():
    k, width, rows = 6, 512, 63
    planned = plan(network_job(1, 2, 1), mesh=mesh_of(1))
    product = 2 * k * k * width
    # The rest are updates, and the derivative of the activation.
    assert planned.step.flops == pytest.approx(2 * 5 * product, rel=0.2)
    assert planned.beside.flops > 2 * 2 * (2 * rows * k * width)  # two networks asked


def summed(weights, x):
    return jax.lax.psum(weights @ x.T, "data").sum()


def test_collectives_are_counted_for_every_block():
    job = MappedJob(
        summed,
        ("member", "batch"),
        (np.ones((8, 4), np.float32), np.ones((6, 4), np.float32)),
        mesh_sizes=dict(member=2, data=2),
        block=2,
    )
    planned = plan(job, mesh=mesh_of(2, 2))
    (found,) = planned.step.collectives
    assert (found.operation, found.axes, found.count) == ("all-reduce", ("data",), 2)
    assert found.result_bytes == 2 * 2 * 3 * 4  # two blocks of two members, 3 numbers
    assert planned.beside is None


def test_the_automatic_block_is_that_of_the_engine():
    assert plan(job_of(block="auto"), mesh=mesh_of(1)).step.block == 8
    wide = np.zeros((8, 512, 512), np.float32)  # a MiB a member: one by one
    x, y = np.zeros((32, 512), np.float32), np.zeros((32, 512), np.float32)
    job = job_of(block="auto", arguments=(wide, x, y))
    assert plan(job, mesh=mesh_of(1)).step.block == 1


def test_shapes_are_enough_and_nothing_is_allocated():
    job = job_of()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.arguments
    )
    abstract = dataclasses.replace(job, arguments=shapes)
    gc.collect()
    before = {id(x) for x in jax.live_arrays()}
    planned = plan(abstract, mesh=mesh_of(1), costs=False)
    gc.collect()
    assert {id(x) for x in jax.live_arrays()} <= before
    assert planned.peak_bytes == plan(job, mesh=mesh_of(1), costs=False).peak_bytes
    with pytest.raises(ValueError, match="only shapes; to run it"):
        abstract.placed_arguments(mesh_of(1))


def test_it_survives_json_and_older_files_are_read():
    planned = plan(job_of(), mesh=mesh_of(1))
    value = json.loads(json.dumps(planned.to_json()))
    assert Plan.from_json(value) == planned and planned.beside is not None
    del value["beside"]
    assert Plan.from_json(value) == dataclasses.replace(planned, beside=None)


def test_what_cannot_be_planned_says_why():
    with pytest.raises(ValueError, match="steps of a mapped job are inside"):
        plan(job_of(), trial="always")
    with pytest.raises(TypeError, match="3 arguments were declared"):
        plan(job_of(arguments=job_of().arguments[:2]))
    other = (*job_of().arguments[:2], jnp.ones((3, 3)))
    with pytest.raises(TypeError, match="dot_general|sub"):
        plan(job_of(arguments=other))


def test_random_keys_are_arguments_too():
    job = MappedJob(
        jax.random.normal,
        ("member",),
        (jax.random.split(jax.random.key(0), 4),),
        mesh_sizes=dict(member=2, data=1),
    )
    mesh = mesh_of(2)
    outputs = job.compile(mesh)(*job.placed_arguments(mesh))
    expected = jax.vmap(jax.random.normal)(job.arguments[0])
    np.testing.assert_array_equal(np.asarray(outputs), np.asarray(expected))
