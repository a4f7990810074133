"""Plans of several architectures in one program, and of data that stream."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ensjax import Joint, data, nn
from ensjax.planning import Plan, plan, tune
from ensjax.planning.plan import describe
from ensjax.planning.step_cost import step_cost
from ensjax.train import GroupJob, ensemble_nll


def wider(rngs):
    return nn.MLP(in_features=64, hidden=(16,), num_outputs=3, rngs=rngs)


def group_of(kit, counts=(2, 3), **options):
    """A stack of hidden width 8 and one of width 16."""
    jobs = [kit.job(num_members=count, **options) for count in counts]
    ids = tuple(range(counts[0], sum(counts)))
    jobs[1] = dataclasses.replace(jobs[1], make_model=wider, member_ids=ids)
    return GroupJob(tuple(jobs))


def parameters(hidden):
    return 64 * hidden + hidden + hidden * 3 + 3


@pytest.mark.parametrize(
    "options", [{}, pytest.param(dict(mesh=(2, 2)), marks=pytest.mark.slow)]
)
def test_the_peak_of_a_group_is_that_of_the_program_that_fit_runs(
    kit, watch_fit, check_against, options
):
    job = group_of(kit, **options)
    check_against(plan(job, costs=False), watch_fit(job))


@pytest.fixture(scope="module")
def planned(kit):
    return plan(group_of(kit, evaluated=False), trial="always")


def test_a_group_is_the_sum_of_its_stacks(kit, planned):
    job = group_of(kit, evaluated=False)
    alone = [
        step_cost(describe(own, kit.mesh(1, 1)), say=lambda text: None)
        for own in job.stacks
    ]
    assert [stack.step for stack in planned.stacks] == alone
    assert planned.step.flops == sum(step.flops for step in alone)
    assert planned.step.bytes_moved == sum(step.bytes_moved for step in alone)
    assert [s.num_members for s in planned.stacks] == [2, 3]
    assert planned.num_members == 5
    sizes = [stack.member.parameters for stack in planned.stacks]
    assert sizes == [parameters(8), parameters(16)]
    assert planned.member.parameters == sum(sizes)
    states = [stack.num_rows * stack.member.state_bytes for stack in planned.stacks]
    assert planned.checkpoint_bytes == planned.arrays["training state"] == sum(states)
    assert planned.trial.seconds_per_step > 0
    assert Plan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


def test_a_member_of_a_group_is_selected_from_its_stack(kit):
    job = group_of(kit)
    assert job.select([3]).make_model is wider
    both = job.select([4, 0])
    assert both.member_ids == (0, 4) and isinstance(both, GroupJob)
    weighted = group_of(
        kit, sampling="weighted", weights=np.ones((2, 96)), counts=(2, 2)
    )
    assert weighted.options["weights"].shape == (4, 96)
    with pytest.raises(ValueError, match="There is no member 9"):
        job.select([9])
    with pytest.raises(ValueError, match="member_ids must differ"):
        GroupJob((job.stacks[0], job.stacks[0]))


@pytest.mark.slow
def test_a_group_fits_as_its_members_alone(kit):
    job = group_of(kit, evaluated=False, block=1)
    group, _ = job.fit(progress=False)
    alone, _ = job.select([3]).fit(progress=False)
    for ours, theirs in zip(
        jax.tree.leaves(group.ensembles[1].params), jax.tree.leaves(alone.params)
    ):
        np.testing.assert_array_equal(ours[1], theirs[0])


@pytest.mark.slow
def test_a_joint_group_has_one_step_for_all_and_a_group_is_tuned(kit):
    joint = group_of(
        kit, evaluated=False, loss=Joint(loss=ensemble_nll), sampling="shared"
    )
    found = plan(joint)
    assert found.step.flops > 0 and [s.step for s in found.stacks] == [None, None]
    blocks = [t.block for t in tune(group_of(kit, evaluated=False)).timings]
    assert {"auto", "all", 1} <= set(blocks)
    assert tune(joint, in_blocks=False, unrolled=False).best.block == "auto"


# Streams


def streamed(kit, mesh=(1, 1)):
    job = kit.job(num_members=2, mesh=mesh, evaluated=False)
    return dataclasses.replace(job, data=data.stream(job.data, batch_size=8, seed=0))


def shapes_of(job):
    batch = next(iter(job.data))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return dataclasses.replace(job, data=shapes, is_stream=True)


def test_a_stream_is_planned_as_it_runs(kit, watch_fit, check_against):
    job = streamed(kit, (1, 2))
    found = plan(job)
    # Three batches of a call, half of each on a device, and those of the second call.
    chunk = 3 * 4 * (64 + 1) * 4
    assert found.batch_size == 8
    assert found.arrays["data"] == found.arrays["batches read ahead"] == chunk
    (reduced,) = found.step.collectives
    assert reduced.operation == "all-reduce"
    check_against(found, watch_fit(job))
    again = plan(shapes_of(job), costs=False)
    assert again.peak_bytes == found.peak_bytes and again.arrays == found.arrays


def test_a_step_of_a_stream_costs_what_one_of_arrays_costs(kit):
    job = streamed(kit)
    found = plan(shapes_of(job), trial="always")
    assert found.trial.data == "zeros"
    arrays = kit.job(num_members=2, evaluated=False, sampling="shared")
    resident = step_cost(describe(arrays, kit.mesh(1, 1)), say=lambda text: None)
    assert found.step.flops == pytest.approx(resident.flops, rel=0.01)
    odd = dataclasses.replace(
        streamed(kit, (1, 2)),
        data=data.stream(kit.job().data, batch_size=7, seed=0),
    )
    with pytest.raises(ValueError, match="batches of 7 examples, which must divide"):
        plan(odd)
