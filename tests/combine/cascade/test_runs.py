"""The three ways to run a cascade give the same answers; how many programs they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import Ensemble, Group, combine, make_mesh
from ensjax.combine.cascade import runs as cascade_runs
from ensjax.predictions import Predictions

MEMBERS, CLASSES, ROWS = 4, 3, 200
STAGES = ((0,), (2, 1), (3,))
ENDS = [np.array(x, np.float32) for x in ([-0.5, 0.1], [1.2, 1.5], [0.3, 0.5])]
CASCADE = combine.Cascade(combine.Windows(*ENDS), STAGES)


def linear(params, x):
    """A member without a matrix product, whose bits depend on the batch size."""
    return jnp.sum(params[None] * x[:, :, None], axis=1)


@pytest.fixture(scope="module")
def inputs():
    x = np.random.default_rng(0).normal(size=(ROWS, 4))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def ensemble():
    params = 1.5 * np.random.default_rng(1).normal(size=(MEMBERS, 4, CLASSES))
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    return Ensemble.from_apply(linear, params.astype(np.float32), mesh=mesh)


@pytest.fixture(scope="module")
def dense(ensemble, inputs):
    return jax.jit(lambda e, x: CASCADE(e(x)))(ensemble, inputs)


def test_compaction_gives_the_answers_of_the_dense_form(ensemble, inputs, dense):
    assert set(np.asarray(dense.exit_stage)) == {0, 1, 2}
    models = CASCADE.split_members(ensemble)
    for batch_size in (64, 256):
        output = combine.run_compacted(CASCADE, models, inputs, batch_size=batch_size)
        np.testing.assert_array_equal(output.exit_stage, dense.exit_stage)
        classes = [x.log_probs.argmax(-1) for x in (output, dense)]
        np.testing.assert_array_equal(*classes)
        # With jax 0.10.1 the bits are equal; with 0.12 the last ones of an elementwise
        # program depend on the size of the batch.
        for ours, theirs in zip(output[:2], dense[:2]):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_weights_of_members_count_in_every_way_to_run(ensemble, inputs):
    labels = np.random.default_rng(2).integers(0, CLASSES, ROWS)
    weights = np.array([0.2, 1.0, 3.0, 0.5], np.float32)
    logits = ensemble(inputs)
    said = Predictions.from_logits(logits, weights=weights)
    options = dict(stages=STAGES, level=0.3, width=0.4)
    cascade = combine.fit_cascade(said, labels, **options)
    assert cascade.is_weighted
    assert not combine.fit_cascade(logits, labels, **options).is_weighted
    dense = cascade(said, allow_seen=True)
    assert not np.allclose(dense.log_probs, cascade(logits).log_probs)
    models = cascade.split_members(ensemble)
    with pytest.raises(ValueError, match="unequal weights.*give weights="):
        combine.run_compacted(cascade, models, inputs)
    with pytest.raises(ValueError, match=r"must be \[member\], of 4 members"):
        combine.run_compacted(cascade, models, inputs, weights=weights[:3])
    found = combine.run_compacted(cascade, models, inputs, weights=weights)
    np.testing.assert_array_equal(found.exit_stage, dense.exit_stage)
    assert len(set(found.exit_stage.tolist())) > 1
    for ours, theirs in zip(found[:2], dense[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # With room for all rows, those that all go on have seen all members.
    found = combine.run_with_capacity(
        cascade, models, inputs, share=1.0, weights=weights
    )
    whole, _ = combine.stage_scores(said, STAGES)
    np.testing.assert_allclose(found.log_probs, whole[-1], rtol=1e-5, atol=1e-6)


def test_each_stage_computes_its_own_rows_in_few_programs(ensemble, inputs, dense):
    seen = [[], [], []]  # padded sizes, by stage
    traced = [0, 0, 0]

    def model(stage, part):
        def trace(x):
            traced[stage] += 1
            return part(x)

        compiled = jax.jit(trace)

        def run(x):
            seen[stage].append(len(x))
            return compiled(x)

        return run

    parts = CASCADE.split_members(ensemble)
    models = [model(stage, part) for stage, part in enumerate(parts)]
    for rows in (200, 150, 70, 33, 9, 1):
        some = inputs[:rows]
        output = combine.run_compacted(
            CASCADE, models, some, batch_size=32, smallest=16
        )
        np.testing.assert_array_equal(output.exit_stage, dense.exit_stage[:rows])
    assert {size for sizes in seen for size in sizes} <= {16, 32}
    assert traced[0] == 2 and max(traced) <= 2
    # 200 + 150 + ... rows in the first stage, and those that go on in the others.
    reached = [
        sum(
            (dense.exit_stage[:rows] >= stage).sum()
            for rows in (200, 150, 70, 33, 9, 1)
        )
        for stage in range(3)
    ]
    assert reached[2] < reached[1] < reached[0]
    for stage in range(3):
        assert reached[stage] <= sum(seen[stage]) < 2 * reached[stage] + 6 * 16


@functools.partial(jax.jit, static_argnames="share")
def run_with_capacity(cascade, models, x, share):
    return combine.run_with_capacity(cascade, models, x, share=share)


@functools.partial(jax.jit, static_argnums=2)
def dense_by_ranks(logits, cascade, counts):
    """The dense form with windows by ranks among the rows that reach each stage."""
    _, scores = combine.stage_scores(logits, cascade.stages)
    rows, ends = jnp.ones(logits.shape[1], bool), []
    for boundary, count in enumerate(counts):
        sure = scores[boundary]
        tau = cascade.windows.threshold[boundary]
        tau = -np.inf if cascade.exit_rule == "threshold" else tau
        windows = combine.rank_windows(sure, tau, count, rows=rows)
        rows = rows & (sure > windows.low) & (sure < windows.high)
        ends.append((windows.low, windows.high, tau))
    windows = combine.Windows(*(jnp.asarray(x, jnp.float32) for x in zip(*ends)))
    return cascade.replace(windows=windows, exit_rule="window")(logits)


@pytest.mark.slow
@pytest.mark.parametrize("exit_rule", ["window", "threshold"])
def test_capacity_equals_the_dense_form_with_windows_by_ranks(
    exit_rule, ensemble, inputs
):
    cascade = CASCADE.replace(exit_rule=exit_rule)
    models = cascade.split_members(ensemble)
    output = run_with_capacity(cascade, models, inputs, share=(0.33, 0.101))
    logits = np.asarray(ensemble(inputs))
    expected = dense_by_ranks(logits, cascade, (66, 21))
    counts = np.bincount(output.exit_stage, minlength=3)
    assert counts.tolist() == [200 - 66, 66 - 21, 21]  # ceil of the shares, exactly
    np.testing.assert_array_equal(output.exit_stage, expected.exit_stage)
    np.testing.assert_allclose(output.log_probs, expected.log_probs, atol=1e-6)
    np.testing.assert_allclose(output.confidence, expected.confidence, atol=2e-6)


def test_capacity_is_one_program_and_rows_may_come_in_any_order(ensemble, inputs):
    models = CASCADE.split_members(ensemble)
    run = jax.jit(functools.partial(combine.run_with_capacity, share=0.2))
    first = run(CASCADE, models, inputs)
    order = np.random.default_rng(2).permutation(ROWS)
    moved = run(CASCADE, models, inputs[order])
    np.testing.assert_array_equal(moved.exit_stage, first.exit_stage[order])
    np.testing.assert_allclose(moved.log_probs, first.log_probs[order], atol=1e-6)
    other = combine.Windows(*[x + 0.3 for x in ENDS])
    again = run(CASCADE.replace(windows=other), models, inputs)
    assert (again.exit_stage != first.exit_stage).any()
    assert run._cache_size() == 1
    assert {x.sharding.num_devices for x in first} == {1}


def wide(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


@pytest.mark.slow
def test_stages_may_be_of_different_architecture(ensemble, inputs):
    rng = np.random.default_rng(3)
    shapes = {"in": (2, 4, 8), "out": (2, 8, CLASSES)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    others = Ensemble.from_apply(wide, params, mesh=ensemble.mesh)
    group = Group((ensemble.select([0, 1]), others))
    cascade = combine.Cascade(CASCADE.windows, ((0,), (1, 2), (3,)))
    models = cascade.split_members(group)
    expected = cascade(group(inputs))
    assert set(np.asarray(expected.exit_stage)) == {0, 1, 2}
    output = combine.run_compacted(cascade, models, inputs)
    np.testing.assert_array_equal(output.exit_stage, expected.exit_stage)
    # A matrix product of other batch sizes has other last bits.
    np.testing.assert_allclose(output.log_probs, expected.log_probs, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("member, data", [(1, 8), (2, 4)])
def test_eight_devices_equal_one(member, data, ensemble, inputs):
    mesh = make_mesh(member=member, data=data)
    split = ensemble.on_mesh(mesh)
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.device_put(inputs, sharding)
    models = CASCADE.split_members(split)
    one = run_with_capacity(CASCADE, CASCADE.split_members(ensemble), inputs, share=0.2)
    run = jax.jit(functools.partial(combine.run_with_capacity, share=0.2))
    eight = run(CASCADE, models, x)
    again = run(CASCADE, models, jax.device_put(inputs[::-1].copy(), sharding))
    assert run._cache_size() == 1
    np.testing.assert_array_equal(eight.exit_stage, one.exit_stage)
    np.testing.assert_array_equal(again.exit_stage[::-1], one.exit_stage)
    np.testing.assert_allclose(eight.log_probs, one.log_probs, atol=1e-6)
    compacted = combine.run_compacted(CASCADE, models, inputs, batch_size=64)
    expected = combine.run_compacted(
        CASCADE, CASCADE.split_members(ensemble), inputs, batch_size=64
    )
    np.testing.assert_array_equal(compacted.exit_stage, expected.exit_stage)
    np.testing.assert_allclose(compacted.log_probs, expected.log_probs, atol=1e-6)


def test_shares_are_counts_rounded_up():
    assert cascade_runs._capacities(0.1, 30, 1) == [3]  # 0.1 * 30 > 3 in floats
    assert cascade_runs._capacities((0.2, 0.11), 30, 2) == [6, 4]
    assert cascade_runs._capacities(1.0, 7, 1) == [7]


@pytest.mark.parametrize(
    "models, rows, options, message",
    [
        (2, ROWS, {}, "a cascade of 3 stages runs as many models"),
        (3, 0, {}, "inputs .* of one length, at least 1"),
        (3, ROWS, dict(share=(0.2, 0.3)), "a share must not exceed the one before"),
        (3, ROWS, dict(share=0.0), r"share must be a number in \(0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(models, rows, options, message):
    stages = [lambda x: jnp.zeros((1, len(x), 2))] * models
    options = dict(share=0.2) | options
    x = np.zeros((rows, 4))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: combine.run_with_capacity(CASCADE, stages, x, **options))


def test_a_model_with_other_members_is_refused():
    stages = [lambda x: jnp.zeros((1, len(x), 2))] * 3
    with pytest.raises(ValueError, match="model of stage 1 must give .* 2 members"):
        jax.eval_shape(
            lambda: combine.run_with_capacity(
                CASCADE, stages, np.zeros((6, 4)), share=0.5
            )
        )
