"""A plan says what then runs: compared with the programs of a real `fit`."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ensjax import EarlyStopping, Joint
from ensjax.planning import DoesNotFit, Plan, plan
from ensjax.planning.plan import describe
from ensjax.planning.step_cost import members_of_a_block
from ensjax.train import ensemble_nll

PROGRAMS = {
    "TrainSteps": "training",
    "JointSteps": "training",
    "Evaluate": "evaluation",
    "InitState": "initial state",
}


def check_against(planned, calls):
    """The plan's bytes are those of the programs that ran, and of what was there."""
    seen = {}
    for call in calls:
        seen.setdefault(PROGRAMS[call.name], call)
    assert set(seen) == {program.name for program in planned.programs}
    peaks = []
    for program in planned.programs:
        call = seen[program.name]
        memory = call.memory
        ran = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        assert program.program_peak_bytes == pytest.approx(ran, rel=0.05)
        # What was on the device when the program was called: arguments and the rest.
        live = program.argument_bytes + program.beside_bytes
        assert live == pytest.approx(call.live_bytes, rel=0.05)
        peaks.append(ran + call.live_bytes - memory.argument_size_in_bytes)
    assert planned.peak_bytes == pytest.approx(max(peaks), rel=0.05)


STOPPING = dict(early_stopping=EarlyStopping(patience=3))
CASES = {
    "one device": dict(),
    "members on devices": dict(mesh=(4, 1), block=1),
    "both axes, best weights": dict(mesh=(2, 2), **STOPPING),
    "padded": dict(mesh=(2, 1), num_members=5),
    "state split": dict(mesh=(2, 2), shard_state=True),
    "weighted": dict(sampling="weighted", weights=np.ones(96), evaluated=False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_that_of_the_programs_that_fit_runs(kit, watch_fit, case):
    job = kit.job(**CASES[case])
    check_against(plan(job, costs=False), watch_fit(job))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
@pytest.mark.parametrize("name", ["cnn", "resnet-20", "vit", "wide-resnet"])
def test_the_peak_is_right_for_all_shipped_models(kit, watch_fit, name, mesh):
    job = kit.job(name, 4, mesh, **STOPPING)
    check_against(plan(job, costs=False), watch_fit(job))


def test_nothing_is_allocated_and_shapes_are_enough(kit):
    job = kit.job(mesh=(2, 1))
    before = len(jax.live_arrays())
    whole = plan(job, costs=False)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (job.data, job.options["evaluation"]),
    )
    options = {**job.options, "evaluation": shapes[1]}
    alone = plan(dataclasses.replace(job, data=shapes[0], options=options), costs=False)
    assert len(jax.live_arrays()) == before
    assert alone.peak_bytes == whole.peak_bytes
    assert alone.arrays == whole.arrays


def test_sizes_of_a_member_are_counted_by_hand(kit):
    job = kit.job(**STOPPING, evaluate_every_steps=6)
    planned = plan(job, costs=False, save_every_steps=3)
    parameters = 64 * 8 + 8 + 8 * 3 + 3
    member = planned.member
    assert member.parameters == parameters
    assert member.params_bytes == 4 * parameters
    assert member.optimizer_bytes == 8 * parameters + 4  # two moments and a count
    assert member.best_bytes == 4 * parameters + 12  # value, step and waited
    # And when it froze or stopped.
    assert member.state_bytes == 16 * parameters + 24
    assert planned.checkpoint_bytes == 8 * member.state_bytes
    assert planned.checkpoint_directory_bytes == 16 * member.state_bytes
    assert planned.arrays["data"] == 96 * (64 + 1) * 4
    assert (planned.num_calls, planned.num_evaluations) == (2, 1)
    assert planned.num_checkpoints == 2


def test_padding_is_the_share_of_rows_that_are_no_members(kit):
    planned = plan(kit.job(num_members=5, mesh=(2, 1)), costs=False)
    assert (planned.num_members, planned.num_rows) == (5, 6)
    assert planned.padding == pytest.approx(1 / 6)


def test_a_checkpoint_takes_the_bytes_that_were_planned(kit, tmp_path):
    job = kit.job("cnn", 2, batch_size=32)
    planned = plan(job, costs=False)
    job.fit(checkpoint_dir=tmp_path, progress=False, save_every_steps=3)
    # The arrays themselves: names and positions are not small beside tiny members.
    sizes = [
        os.path.getsize(os.path.join(folder, name))
        for step in (3, 6)
        for folder, _, names in os.walk(tmp_path / str(step) / "state")
        for name in names
        if "/d" in folder
    ]
    written = sum(sizes)
    assert written == pytest.approx(planned.checkpoint_directory_bytes, rel=0.3)


# One step


def test_operations_of_dense_layers_are_those_by_hand(kit):
    """Forward, and both gradients but that of the input, which nobody needs."""
    step = plan(kit.job(num_members=4)).step
    dense = 2 * 8 * (2 * 64 * 8 + 3 * 8 * 3)
    assert step.block == 4
    # The rest is Adam, 12 operations a parameter, and the softmax.
    rest = 12 * (64 * 8 + 8 + 8 * 3 + 3)
    assert step.flops == pytest.approx(4 * (dense + rest), rel=0.1)
    assert step.collectives == () and not step.has_loop


def test_operations_do_not_depend_on_the_block_or_the_steps_of_a_call(kit):
    counts = [
        plan(kit.job(block=block, steps_per_call=steps, evaluated=False)).step
        for block, steps in ((None, 1), (1, 3), (2, 6))
    ]
    assert [c.block for c in counts] == [8, 1, 2]
    for count in counts[1:]:
        assert count.flops == pytest.approx(counts[0].flops, rel=0.05)


def test_collectives_have_their_axis_and_bytes(kit):
    job = kit.job(mesh=(4, 2), evaluated=False)
    parameters = 64 * 8 + 8 + 8 * 3 + 3
    (found,) = plan(job).step.collectives
    assert (found.operation, found.axes, found.count) == ("all-reduce", ("data",), 1)
    # Gradients, the loss and a metric of two local members.
    assert found.result_bytes == 2 * 4 * (parameters + 2)
    # In blocks of one, two rounds of half.
    by_one = dataclasses.replace(job, options={**job.options, "block": 1})
    (again,) = plan(by_one).step.collectives
    assert (again.count, again.result_bytes) == (2, found.result_bytes)


def test_a_split_state_is_gathered_and_scattered(kit):
    job = kit.job(mesh=(2, 2), shard_state=True, evaluated=False)
    big = dataclasses.replace(job, make_model=_wide)
    operations = {c.operation: c.axes for c in plan(big).step.collectives}
    assert operations["all-gather"] == operations["reduce-scatter"] == ("data",)


def _wide(rngs):
    from ensjax import nn

    return nn.MLP(in_features=64, hidden=(64,), num_outputs=3, rngs=rngs)


def test_the_automatic_block_is_that_of_the_engine(kit):
    mesh = kit.mesh(1, 1)
    dense = kit.job(evaluated=False)
    assert members_of_a_block(describe(dense, mesh)) == 8
    assert members_of_a_block(describe(kit.job("cnn", evaluated=False), mesh)) == 1


def test_a_joint_objective_gathers_members_outputs(kit):
    job = kit.job(
        mesh=(4, 2),
        evaluated=False,
        loss=Joint(loss=ensemble_nll),
        sampling="shared",
    )
    found = {c.operation: c for c in plan(job).step.collectives}
    gathered = found["all-gather"]
    assert gathered.axes == ("member",)
    # Outputs [8 members, 4 local examples, 3 classes] in float32, and the mask.
    assert gathered.result_bytes >= 8 * 4 * 3 * 4


def test_a_loop_in_the_loss_is_told(kit, scanned_loss):
    assert plan(kit.job(loss=scanned_loss, evaluated=False)).step.has_loop


# The trial


def test_a_trial_measures_and_the_estimate_adds_up(kit):
    planned = plan(kit.job(), costs=False, trial="auto")
    trial = planned.trial
    assert planned.why_no_trial == "" and trial.data == "the job's own"
    assert trial.seconds_per_step > 0 and trial.seconds_per_evaluation > 0
    parts = 6 * trial.seconds_per_step + 2 * trial.seconds_per_call
    parts += 2 * trial.seconds_per_evaluation + planned.compile_seconds
    assert planned.wall_seconds == pytest.approx(parts)


def test_shapes_are_tried_with_zeros(kit):
    job = kit.job(evaluated=False, num_members=2)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.data)
    planned = plan(dataclasses.replace(job, data=shapes), costs=False, trial="always")
    assert planned.trial.data == "zeros"


def test_no_trial_is_run_unasked_where_it_would_take_long(kit, monkeypatch):
    monkeypatch.setattr("ensjax.planning.trial._CPU_FLOPS", 1.0)
    planned = plan(kit.job(evaluated=False), trial="auto")
    assert planned.trial is None and planned.wall_seconds is None
    assert "takes a CPU long" in planned.why_no_trial


# Out and in


def test_a_plan_survives_json(kit):
    planned = plan(kit.job(mesh=(2, 2)), trial="auto")
    text = json.dumps(planned.to_json())
    assert Plan.from_json(json.loads(text)) == planned
    assert json.loads(text)["derived"]["peak_bytes"] == planned.peak_bytes


def test_what_cannot_be_planned_says_why(kit):
    with pytest.raises(ValueError, match="trial is"):
        plan(kit.job(), trial="maybe")
    with pytest.raises(ValueError, match="batch_size=7 must be at most the 96"):
        plan(kit.job(mesh=(1, 2), batch_size=7))
    stream = dataclasses.replace(kit.job(), data=iter([]))
    with pytest.raises(ValueError, match="Only resident data"):
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
    planned = plan(dataclasses.replace(job, data=doubles), costs=False)
    assert planned.arrays["data"] == 96 * (64 + 1) * jnp.float32(0).nbytes
