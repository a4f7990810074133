"""Members that are not finite, and members that stop early."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ensjax
from ensjax import losses
from ensjax.train.objectives import ensemble_nll
from ensjax.train.progress import Pace, duration, report_line

BAD = 2


def spoilt(kit):
    """Five members; the weights of one hold an infinite number."""
    ensemble = kit.ensemble("mlp")
    state = jax.device_get(ensemble.state)
    kernel = state["params"]["blocks"][0]["linear"]["kernel"]
    weights = np.array(kernel.get_value())
    weights[BAD, 0, 0] = np.inf
    kernel.set_value(weights)
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def others(ensemble):
    return ensemble.select([i for i in range(5) if i != BAD])


def test_infinite_weights_change_no_other_member_and_compile_nothing(kit, compilations):
    healthy, _ = kit.fit(kit.ensemble("mlp"), kit.data())  # compiles
    ensemble = spoilt(kit)
    compilations.clear()
    trained, log = kit.fit(ensemble, kit.data())
    assert "jit(TrainSteps)" not in compilations
    kit.check_equal(others(trained), others(healthy))
    # The member was never finite: it stays as it was, and no step of it counts.
    kit.check_equal(trained.select([BAD]), ensemble.select([BAD]))
    assert log.frozen_steps.tolist() == [-1, -1, 0, -1, -1]
    assert np.isnan(log.metrics["loss"][:, BAD]).all()
    assert np.isfinite(np.delete(log.metrics["loss"], BAD, axis=1)).all()


def test_an_infinite_learning_rate_changes_no_other_member(kit, compilations):
    healthy, _ = kit.fit(kit.ensemble("mlp"), kit.data())  # compiles
    rates = np.full(5, 1e-3)
    rates[BAD] = np.inf
    ensemble = kit.ensemble("mlp")
    compilations.clear()
    trained, log = kit.fit(ensemble, kit.data(), hyper=rates)
    assert "jit(TrainSteps)" not in compilations
    kit.check_equal(others(trained), others(healthy))
    kit.check_equal(trained.select([BAD]), ensemble.select([BAD]))
    assert log.frozen_steps.tolist() == [-1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    "mesh, block",
    [
        ((1, 1), None),
        pytest.param((1, 1), 1, marks=pytest.mark.slow),
        pytest.param((4, 2), "auto", marks=pytest.mark.slow),
    ],
)
def test_a_member_that_breaks_inside_a_call_keeps_the_last_look(kit, mesh, block):
    """300 steps in one call are looked at after 128, 256 and 300."""

    def make_tx(hyper):
        def rate(step):
            return jnp.where(step >= hyper["breaks_at"], jnp.inf, 1e-3)

        return optax.adam(rate, eps=1e-3)

    never = np.full(5, 10**6)
    breaks = np.where(np.arange(5) == BAD, 200, never)
    ensemble = kit.ensemble("mlp", 5, mesh=mesh)
    every = dict.fromkeys(("steps", "steps_per_call", "log_every_steps"), 300)
    options = dict(make_tx=make_tx, block=block, **every)
    healthy, healthy_log = kit.fit(
        ensemble, kit.data(), hyper={"breaks_at": never}, **options
    )
    trained, log = kit.fit(ensemble, kit.data(), hyper={"breaks_at": breaks}, **options)
    assert log.frozen_steps.tolist() == [-1, -1, 128, -1, -1]
    kit.check_equal(others(trained), others(healthy))
    early, early_log = kit.fit(
        ensemble,
        kit.data(),
        hyper={"breaks_at": never},
        **options | dict.fromkeys(every, 128),
    )
    kit.check_close(trained.select([BAD]), early.select([BAD]))
    # Means are over the steps that count: 300 of the others, 128 of this one.
    np.testing.assert_allclose(
        log.metrics["loss"][0, BAD], early_log.metrics["loss"][0, BAD], rtol=1e-5
    )
    np.testing.assert_array_equal(
        np.delete(log.metrics["loss"], BAD, 1),
        np.delete(healthy_log.metrics["loss"], BAD, 1),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps_per_call", [160, pytest.param(290, marks=pytest.mark.slow)]
)
def test_several_looks_in_a_call_change_nothing(kit, steps_per_call):
    options = dict(steps=290, batch_size=7)
    short, log = kit.fit(
        kit.ensemble("mlp"), kit.data(), **options | dict(steps_per_call=5)
    )
    calls = dict(steps_per_call=steps_per_call, log_every_steps=steps_per_call)
    long, _ = kit.fit(kit.ensemble("mlp"), kit.data(), **options | calls)
    kit.check_close(long, short)


class Lines:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def write(self, step, metrics):
        self.lines.append((step, metrics))

    def close(self):
        pass


def poisoned(model, batch, key):
    """NaN for a batch that holds the example whose seventh feature is positive."""
    x, y = batch
    loss, metrics = ensjax.losses.cross_entropy(model, (x[:, :6], y), key)
    return jnp.where((x[:, 6] > 0).any(), jnp.nan, loss), metrics


def test_a_frozen_member_keeps_its_last_finite_weights_and_is_reported(kit, capsys):
    x, y = kit.data()
    x = np.concatenate([x, np.zeros((24, 1), np.float32)], axis=1)
    weights = np.ones((5, 24))
    weights[:, 3] = 0  # only one member ever draws this example
    weights[BAD, 3] = 0.2
    options = dict(loss=poisoned, sampling="weighted", weights=weights)
    options |= dict(steps_per_call=1, log_every_steps=1, steps=12)
    ensemble = kit.ensemble("mlp", member_ids=[0, 1, 9, 3, 4])
    healthy, _ = kit.fit(ensemble, (x, y), **options)
    x[3, 6] = 1
    logger = Lines()
    with pytest.warns(UserWarning, match="member 9 at step"):
        trained, log = kit.fit(
            ensemble, (x, y), logger=logger, progress=True, **options
        )
    frozen = log.frozen_steps[BAD]
    assert 0 < frozen < 12
    assert np.delete(log.frozen_steps, BAD).tolist() == [-1] * 4
    kit.check_equal(others(trained), others(healthy))
    stopped, _ = kit.fit(ensemble, (x, y), **options | dict(steps=int(frozen)))
    kit.check_equal(trained.select([BAD]), stopped.select([BAD]))
    assert logger.lines[0][1]["member_ids"] == [0, 1, 9, 3, 4]
    *shown, cost = capsys.readouterr().out.splitlines()
    assert len(shown) == 12 and "of the rows were members that still changed" in cost
    for step, (line, (logged_step, metrics)) in enumerate(
        zip(shown, logger.lines, strict=True), start=1
    ):
        assert logged_step == step
        assert ("NOT FINITE: 1 of 5 members (9)" in line) == (step > frozen)
        assert ("member_ids" in metrics) == (step == 1)
        assert metrics["num_not_finite"] == (step > frozen)
        assert np.isnan(metrics["loss"][BAD]) == (step > frozen)
        # Means and spreads are over the members that made steps.
        assert "nan" not in line


def stop_by_hand(values, patience, min_delta=0.0):
    """The evaluations (from 0) that are best and last, by a loop."""
    best, best_at, waited = np.inf, -1, 0
    for number, value in enumerate(values):
        if value < best - min_delta:
            best, best_at, waited = value, number, 0
        else:
            waited += 1
        if waited >= patience:
            return best_at, number
    return best_at, None


@pytest.mark.parametrize(
    "metric, mode",
    [("loss", "min"), pytest.param("accuracy", "max", marks=pytest.mark.slow)],
)
def test_early_stopping_of_each_member_is_a_loop_written_by_hand(kit, metric, mode):
    # Labels that say nothing, so that held-out examples get worse at some time.
    x, y = kit.data()
    train, held_out = (x[:16], y[:16]), (x[16:], y[16:])
    options = dict(evaluation=held_out, evaluate_every_steps=2, log_every_steps=10)
    options |= dict(steps=60, steps_per_call=2, hyper=3e-2)
    ensemble = kit.ensemble("mlp")
    keep = ensjax.EarlyStopping(patience=None, metric=metric, mode=mode)
    _, endless = kit.fit(ensemble, train, early_stopping=keep, **options)
    stopping = ensjax.EarlyStopping(patience=3, metric=metric, mode=mode)
    trained, log = kit.fit(ensemble, train, early_stopping=stopping, **options)
    sign = 1 if mode == "min" else -1
    ends = []
    for member in range(5):
        values = sign * endless.evaluations[metric][:, member]
        best, last = stop_by_hand(values, 3)
        assert log.best_steps[member] == 2 * (best + 1)
        assert log.stopped_steps[member] == (-1 if last is None else 2 * (last + 1))
        ends.append(60 if last is None else 2 * (last + 1))
    assert len(set(ends)) > 1 and min(ends) < 60
    # What comes back are the weights of the best evaluation.
    outputs = np.asarray(ensjax.predict(trained, held_out[0]))
    log_probs = np.asarray(jax.nn.log_softmax(outputs))
    nll = -log_probs[:, np.arange(8), held_out[1]].mean(axis=1)
    accuracy = (np.argmax(outputs, axis=2) == held_out[1]).mean(axis=1)
    got = nll if metric == "loss" else accuracy
    rows = np.searchsorted(log.evaluation_steps, log.best_steps)
    expected = log.evaluations[metric][rows, np.arange(5)]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_run_ends_when_every_member_has_stopped_and_stays_ended(
    kit, tmp_path, capsys, runs
):
    x, y = kit.data()
    options = dict(evaluation=(x[16:], y[16:]), evaluate_every_steps=2)
    options |= dict(log_every_steps=50, save_every_steps=100, hyper=0.1)
    options |= dict(steps=1000, steps_per_call=2, checkpoint_dir=tmp_path / "run")
    options |= dict(early_stopping=ensjax.EarlyStopping(patience=2), progress=True)
    ensemble = kit.ensemble("mlp")
    trained, log = kit.fit(ensemble, (x[:16], y[:16]), **options)
    end = int(log.stopped_steps.max())
    assert (log.stopped_steps > 0).all() and end < 1000
    assert f"every member has stopped; ending at step {end}" in capsys.readouterr().out
    # The rest of the report that was not due yet is there all the same.
    assert log.steps[-1] == end == log.evaluation_steps[-1]
    # The end was saved, although no save was due.
    again, log_again = kit.fit(ensemble, (x[:16], y[:16]), **options)
    assert log_again.resumed_step == end
    kit.check_equal(again, trained)
    kit.check_equal(log_again.metrics, log.metrics)
    assert log_again.stopped_steps.tolist() == log.stopped_steps.tolist()
    assert "resuming" not in capsys.readouterr().out


def test_early_stopping_works_with_a_member_that_was_never_finite(kit):
    stopping = ensjax.EarlyStopping(patience=2)
    options = dict(evaluation=kit.data(), early_stopping=stopping, steps=20)
    ensemble = spoilt(kit)
    trained, log = kit.fit(ensemble, kit.data(), **options)
    assert log.best_steps[BAD] == -1 and log.stopped_steps[BAD] == -1
    kit.check_equal(trained.select([BAD]), ensemble.select([BAD]))
    healthy, _ = kit.fit(kit.ensemble("mlp"), kit.data(), **options)
    kit.check_equal(others(trained), others(healthy))


def test_a_random_evaluation_loss_chooses_the_same_weights_on_all_shards(kit, runs):
    # 21 examples do not divide over two shards: each evaluates all of them.
    def noisy_loss(model, batch, key):
        keys = ensjax.losses.example_keys(key, len(batch[0]))
        noise = jax.vmap(jax.random.normal)(keys)
        return ensjax.losses.cross_entropy(model, batch, key)[0] + noise.mean()

    held_out = tuple(leaf[:21] for leaf in kit.data())
    kit.fit(
        kit.ensemble("mlp", 4, mesh=(4, 2)),
        kit.data(),
        evaluation=held_out,
        evaluation_loss=noisy_loss,
        early_stopping=ensjax.EarlyStopping(patience=None),
        steps_per_call=5,
        log_every_steps=5,
    )
    ((_, (state,)),) = runs
    for leaf in jax.tree.leaves(state["best"]):
        by_rows = {}
        for shard in leaf.addressable_shards:
            by_rows.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        for copies in by_rows.values():
            assert len(copies) == 2
            np.testing.assert_array_equal(*copies)


def test_the_progress_line_says_pace_time_left_and_spread():
    pace = Pace(total_steps=100, first_step=10)
    pace.begin(20, compile_seconds=3.0)
    pace.start -= 10.0  # as if ten seconds had passed
    metrics = {"loss": np.array([1.0, 3.0, np.nan]), "accuracy": np.array([0.5] * 3)}
    line = report_line(60, pace, metrics, np.array([False, False, True]))
    assert line == (
        "step 60/100 | 4 steps/s | 10 s left | loss 2 (sd 1.4) | accuracy 0.5 (sd 0)"
        " | NOT FINITE: 1 of 3 members (2)"
    )
    assert [duration(s) for s in (5, 59.6, 3599, 3600, 7500)] == [
        "5 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    # Nothing is known yet.
    assert report_line(20, pace, {}, np.zeros(3)) == "step 20/100 | ? left"


@pytest.mark.slow
def test_padding_is_reported(kit, capsys):
    _, log = kit.fit(kit.ensemble("mlp", 5), kit.data(), block=3, progress=True)
    first = capsys.readouterr().out.splitlines()[0]
    expected = "5 members fill 6 rows of the devices and blocks: 17% of the work is"
    assert first == f"{expected} padding" and log.num_padding == 1
    kit.fit(kit.ensemble("mlp", 5), kit.data(), block=5, progress=True)
    assert "padding" not in capsys.readouterr().out


def test_progress_in_a_terminal_is_a_bar_with_lines_above_it(monkeypatch, capsys):
    from ensjax.train.progress import Progress

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = Progress(10, 0, show=True)
    progress.advance(5)
    progress.say("step 5/10 | loss 1")
    progress.close()
    progress.close()
    shown = capsys.readouterr().out
    assert "step 5/10 | loss 1\n" in shown and "training" in shown


def test_a_label_that_is_no_class_is_reported_at_once():
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    logits = jnp.zeros((3, 4, 3))
    batch = (x[:4], jnp.array([0, 2, 3, 1]))
    loss, _ = losses.cross_entropy(lambda _: logits[0], batch, None)
    assert jnp.isnan(loss)
    mask = jnp.ones(3, bool)
    assert jnp.isnan(ensemble_nll(logits, batch, None, mask)[0])
    good = (x[:4], jnp.array([0, 2, 2, 1]))
    value = losses.cross_entropy(lambda _: logits[0], good, None)[0]
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(
        ensemble_nll(logits, good, None, mask)[0], np.log(3), rtol=1e-6
    )


@pytest.mark.slow
def test_the_first_evaluation_does_not_make_training_look_fast(kit):
    """Its compilation is no part of the pace; the training it waits for is."""

    def make_model(rngs):  # large enough to take longer than what is called for it
        return ensjax.nn.MLP(in_features=6, hidden=(512, 512), num_outputs=3, rngs=rngs)

    logger = Lines()
    options = dict(steps=60, steps_per_call=20, log_every_steps=20, batch_size=24)
    ensemble = ensjax.Ensemble.init(make_model, num_members=5, mesh=kit.mesh(1, 1))
    kit.fit(ensemble, kit.data(), logger=logger, evaluation=kit.data(), **options)
    paces = [metrics["steps_per_second"] for _, metrics in logger.lines]
    assert len(paces) == 3
    assert paces[0] < 5 * paces[-1]


@pytest.mark.slow
def test_a_statistic_that_is_infinite_from_the_start_is_no_fault(kit):
    """A mask of -inf, say; one that becomes infinite is."""

    class Masked(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 3, rngs=rngs)
            self.mask = nnx.BatchStat(jnp.full(3, -jnp.inf))
            self.count = nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            self.count.set_value(self.count.get_value() * 2e20 + 1)
            return self.linear(x)

    ensemble = ensjax.Ensemble.init(lambda rngs: Masked(rngs), num_members=2)
    options = dict(steps_per_call=1, log_every_steps=1)
    _, log = kit.fit(ensemble, kit.data(), steps=2, **options)
    assert log.frozen_steps.tolist() == [-1, -1]
    _, log = kit.fit(ensemble, kit.data(), steps=4, **options)
    assert log.frozen_steps.tolist() == [2, 2]
