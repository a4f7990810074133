"""A plan says what then runs: compared with the programs of a real `fit`."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ensjax import EarlyStopping, Joint, nn
from ensjax.checkpoint import Checkpoints
from ensjax.planning import DoesNotFit, Plan, plan
from ensjax.planning.memory import tree_bytes
from ensjax.planning.plan import describe
from ensjax.planning.step_cost import members_of_a_block, step_cost
from ensjax.planning.trial import why_no_trial
from ensjax.train import ensemble_nll

STOPPING = dict(early_stopping=EarlyStopping(patience=3))
CASES = {
    "both axes, padded, best weights": dict(mesh=(2, 2), num_members=5, **STOPPING),
}
MORE_CASES = {
    "state split": dict(mesh=(1, 2), shard_state=True, evaluated=False),
    "one device": dict(),
    "members on devices": dict(mesh=(4, 1), block=1),
    "weighted": dict(sampling="weighted", weights=np.ones(96), evaluated=False),
    "weighted by member": dict(sampling="weighted", weights=np.ones((8, 96))),
}


@pytest.mark.parametrize(
    "case",
    [
        c if c == "one device" else pytest.param(c, marks=pytest.mark.slow)
        for c in CASES | MORE_CASES
    ],
)
def test_the_peak_is_that_of_the_programs_that_fit_runs(
    kit, watch_fit, check_against, case
):
    job = kit.job(**(CASES | MORE_CASES)[case])
    check_against(plan(job, costs=False), watch_fit(job))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet-20", "vit", "wide-resnet"])
def test_the_peak_is_right_for_all_shipped_models(kit, watch_fit, check_against, name):
    job = kit.job(name, 4, (2, 2), **STOPPING)
    check_against(plan(job, costs=False), watch_fit(job))


@pytest.fixture(scope="module")
def planned(kit):
    """Of two members on each of four devices, and two data shards."""
    return plan(kit.job(mesh=(4, 2), evaluated=False), trial="auto")


def test_nothing_is_allocated_and_shapes_are_enough(kit, planned):
    job = kit.job(mesh=(4, 2), evaluated=False)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.data)
    gc.collect()
    before = {id(x) for x in jax.live_arrays()}
    alone = plan(dataclasses.replace(job, data=shapes), costs=False)
    assert {id(x) for x in jax.live_arrays()} <= before
    assert alone.peak_bytes == planned.peak_bytes
    assert alone.arrays == planned.arrays


def test_sizes_of_a_member_are_counted_by_hand(kit):
    job = kit.job(num_members=5, mesh=(2, 1), **STOPPING, evaluate_every_steps=6)
    planned = plan(job, costs=False, save_every_steps=3)
    assert (planned.num_members, planned.num_rows) == (5, 6)
    assert planned.padding == pytest.approx(1 / 6)
    parameters = 64 * 8 + 8 + 8 * 3 + 3
    member = planned.member
    assert member.parameters == parameters
    assert member.params_bytes == 4 * parameters
    assert member.optimizer_bytes == 8 * parameters + 4  # two moments and a count
    assert member.best_bytes == 4 * parameters + 12  # value, step and waited
    # And when it froze or stopped.
    assert member.state_bytes == 16 * parameters + 24
    assert planned.checkpoint_bytes == 6 * member.state_bytes
    assert planned.checkpoint_directory_bytes == 12 * member.state_bytes
    assert planned.arrays["data"] == 96 * (64 + 1) * 4
    assert (planned.num_calls, planned.num_evaluations) == (2, 1)
    assert planned.num_checkpoints == 2


def test_a_checkpoint_takes_the_bytes_that_were_planned(kit, tmp_path):
    """Of random numbers, which hardly compress."""
    run = describe(_wide_job(kit), kit.mesh(1, 1))
    rng = np.random.default_rng(0)
    states = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape)).astype(x.dtype), run.states
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, states, {})
    written = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert written == pytest.approx(tree_bytes(run.states), rel=0.1)


# One step


def wide(rngs):
    return nn.MLP(in_features=64, hidden=(2048,), num_outputs=3, rngs=rngs)


def _wide_job(kit, **options):
    job = kit.job(num_members=2, evaluated=False, **options)
    return dataclasses.replace(job, make_model=wide)


def cost_of(kit, job, mesh=(1, 1)):
    return step_cost(describe(job, kit.mesh(*mesh)), say=lambda text: None)


def test_operations_of_dense_layers_are_those_by_hand(kit):
    """Forward, and both gradients but that of the input, which nobody needs."""
    step = cost_of(kit, kit.job(num_members=4, evaluated=False))
    dense = 2 * 8 * (2 * 64 * 8 + 3 * 8 * 3)
    assert step.block == 4
    # The rest is Adam, 12 operations a parameter, and the softmax.
    rest = 12 * (64 * 8 + 8 + 8 * 3 + 3)
    assert step.flops == pytest.approx(4 * (dense + rest), rel=0.1)
    assert step.collectives == () and not step.has_loop


def test_a_loop_over_blocks_is_counted_as_often_as_it_runs(kit):
    one, many = (
        cost_of(kit, kit.job(num_members=m, block=1, evaluated=False)) for m in (1, 8)
    )
    assert (one.block, many.block) == (1, 1)
    assert many.flops == 8 * one.flops
    assert many.bytes_moved == 8 * one.bytes_moved


def test_the_automatic_block_is_that_of_the_engine(kit):
    mesh = kit.mesh(1, 1)
    small = describe(kit.job(evaluated=False), mesh)
    assert members_of_a_block(small) == 8
    assert members_of_a_block(describe(_wide_job(kit), mesh)) == 1


def test_collectives_have_their_axis_and_bytes(kit, planned):
    parameters = 64 * 8 + 8 + 8 * 3 + 3
    (found,) = planned.step.collectives
    assert (found.operation, found.axes, found.count) == ("all-reduce", ("data",), 1)
    # Gradients, the loss and a metric of two local members.
    assert found.result_bytes == 2 * 4 * (parameters + 2)
    # In blocks of one, two rounds of half.
    by_one = kit.job(mesh=(4, 2), evaluated=False, block=1)
    (again,) = cost_of(kit, by_one, (4, 2)).collectives
    assert (again.count, again.result_bytes) == (2, found.result_bytes)


def test_a_split_state_is_gathered_and_scattered(kit):
    job = _wide_job(kit, shard_state=True)
    found = cost_of(kit, job, (2, 2)).collectives
    operations = {c.operation: c.axes for c in found}
    assert operations["all-gather"] == operations["reduce-scatter"] == ("data",)


@pytest.mark.slow
def test_a_joint_objective_gathers_members_outputs(kit):
    joint = Joint(loss=ensemble_nll)
    job = kit.job(evaluated=False, loss=joint, sampling="shared")
    found = {c.operation: c for c in cost_of(kit, job, (4, 2)).collectives}
    gathered = found["all-gather"]
    assert gathered.axes == ("member",)
    # Outputs [8 members, 4 local examples, 3 classes] in float32, and the mask.
    assert 8 * 4 * 3 * 4 <= gathered.result_bytes <= 8 * (4 * 3 + 1) * 4


def test_a_loop_in_the_loss_is_told(kit, scanned_loss):
    assert cost_of(kit, kit.job(loss=scanned_loss, evaluated=False)).has_loop


# The trial


def test_a_trial_measures_and_the_estimate_adds_up(planned):
    trial = planned.trial
    assert planned.why_no_trial == "" and trial.data == "the job's own"
    assert trial.seconds_per_step > 0 and trial.seconds_per_evaluation == 0
    parts = 6 * trial.seconds_per_step + 2 * trial.seconds_per_call
    assert planned.wall_seconds == pytest.approx(parts + planned.compile_seconds)


@pytest.mark.slow
def test_shapes_are_tried_with_zeros_and_evaluated(kit):
    job = kit.job(num_members=2)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (job.data, job.options["evaluation"]),
    )
    options = {**job.options, "evaluation": shapes[1]}
    job = dataclasses.replace(job, data=shapes[0], options=options)
    before = {id(x) for x in jax.live_arrays()}
    trial = plan(job, costs=False, trial="always").trial
    assert trial.data == "zeros" and trial.seconds_per_evaluation > 0
    gc.collect()
    assert {id(x) for x in jax.live_arrays()} <= before


def test_no_trial_is_run_unasked_where_it_would_take_long(kit, planned):
    mesh = kit.mesh(4, 2)
    slow = dataclasses.replace(planned.step, flops=1e12)
    assert "8.0e+12 operations" in why_no_trial(mesh, 1000, slow)
    assert "too little" in why_no_trial(mesh, 2**60, planned.step)
    assert why_no_trial(mesh, 1000, planned.step) == ""


# Out and in


def test_a_plan_survives_json(planned):
    text = json.dumps(planned.to_json())
    assert Plan.from_json(json.loads(text)) == planned
    assert json.loads(text)["derived"]["peak_bytes"] == planned.peak_bytes


def test_what_cannot_be_planned_says_why(kit):
    with pytest.raises(ValueError, match="trial is"):
        plan(kit.job(), trial="maybe")
    with pytest.raises(ValueError, match="batch_size=7 must be at most the 96"):
        plan(kit.job(mesh=(1, 2), batch_size=7))
    stream = dataclasses.replace(kit.job(), data=iter([]))
    with pytest.raises(ValueError, match="list_iterator .* would lose its first batch"):
        plan(stream)
    with pytest.raises(TypeError, match="make_tx is called with 1 arguments"):
        plan(kit.job(make_tx=lambda: optax.sgd(0.1)))


@pytest.mark.parametrize(
    "message, needed, limit",
    [
        (
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries"
            " (58.50G) exceeds available HBM (15.75G). HLO module: jit_TrainSteps.",
            58.5 * 2**30,
            15.75 * 2**30,
        ),
        ("Ran out of memory. Used 512.00M of 256.0M hbm.", 2**29, 2**28),
        ("RESOURCE_EXHAUSTED: something else", None, None),
    ],
)
def test_what_a_tpu_compiler_says_is_read(message, needed, limit):
    error = DoesNotFit(message)
    assert (error.needed_bytes, error.limit_bytes) == (needed, limit)


def test_dtypes_are_those_that_jax_computes_with(kit):
    job = kit.job(evaluated=False)
    doubles = (job.data[0].astype(np.float64), job.data[1].astype(np.int64))
    run = describe(dataclasses.replace(job, data=doubles), kit.mesh(1, 1))
    assert [str(x.dtype) for x in run.data] == ["float32", "int32"]
