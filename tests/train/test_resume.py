"""A run that is resumed is the run that was never stopped."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
import optax
import pytest

import ensjax

SLOW = pytest.mark.slow
SAVED = dict(steps_per_call=5, log_every_steps=10, save_every_steps=5)


class Stop(Exception):
    """Stands for whatever ends a run from outside."""


class Lines:
    """A logger that keeps lines, and ends the run at one of them."""

    def __init__(self, stop_at=None):
        self.lines = {}
        self.stop_at = stop_at

    def write(self, step, metrics):
        if step == self.stop_at:
            raise Stop
        times = ("steps_per_second", "compile_seconds", "goodput", "chip_hours")
        metrics = {n: v for n, v in metrics.items() if n != "member_ids"}  # the first
        self.lines[step] = {n: v for n, v in metrics.items() if n not in times}
        assert len(self.lines[step]) == len(metrics) - len(times)

    def close(self):
        pass


def check_same_log(a, b):
    for name in ("steps", "evaluation_steps", "frozen_steps", "stopped_steps"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.best_steps, b.best_steps)
    for before, after in [(a.metrics, b.metrics), (a.evaluations, b.evaluations)]:
        assert list(before) == list(after)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize(
    "name", ["mlp-dropout", pytest.param("cnn-batch-norm", marks=SLOW)]
)
def test_a_resumed_run_has_the_bits_of_the_one_that_never_stopped(kit, tmp_path, name):
    ensemble, data = kit.ensemble(name), kit.data(name)
    options = dict(SAVED, evaluation=data, evaluate_every_steps=5, sampling="bootstrap")
    options |= dict(early_stopping=ensjax.EarlyStopping(patience=None))
    whole = Lines()
    unbroken, log = kit.fit(
        ensemble, data, logger=whole, checkpoint_dir=tmp_path / "a", **options
    )
    # The last save is of step 15, in the middle of what the report of 20 averages.
    first, second = Lines(stop_at=20), Lines()
    options["checkpoint_dir"] = tmp_path / "b"
    with pytest.raises(Stop):
        kit.fit(ensemble, data, logger=first, **options)
    resumed, resumed_log = kit.fit(ensemble, data, logger=second, **options)
    assert resumed_log.resumed_step == 15
    kit.check_equal(resumed, unbroken)
    check_same_log(resumed_log, log)
    assert first.lines | second.lines == whole.lines
    assert sorted(first.lines) == [5, 10, 15] and sorted(second.lines) == [20]


def test_a_finished_run_does_nothing_and_returns_the_same(kit, tmp_path, compilations):
    options = dict(SAVED, checkpoint_dir=tmp_path / "run")
    first, log = kit.fit(kit.ensemble(), kit.data(), **options)
    lines = Lines()
    compilations.clear()
    again, log_again = kit.fit(kit.ensemble(), kit.data(), logger=lines, **options)
    kit.check_equal(again, first)
    check_same_log(log_again, log)
    assert log_again.resumed_step == 20 and not lines.lines
    assert "jit(TrainSteps)" not in compilations


@SLOW
def test_a_run_of_more_steps_goes_on_with_other_default_intervals(kit, tmp_path):
    options = dict(steps_per_call=None, batch_size=3)
    unbroken, _ = kit.fit(kit.ensemble(), kit.data(), steps=61, **options)
    options["checkpoint_dir"] = tmp_path / "run"
    kit.fit(kit.ensemble(), kit.data(), steps=20, **options)  # one step a call
    longer, log = kit.fit(kit.ensemble(), kit.data(), steps=61, **options)
    assert log.resumed_step == 20 and log.steps[-1] == 61
    # One step a call is another program than a loop, which may round differently.
    kit.check_close(longer, unbroken)


def test_a_run_of_more_steps_goes_on_from_inside_a_call(kit, tmp_path):
    options = dict(SAVED, log_every_steps=5)
    unbroken, log = kit.fit(
        kit.ensemble(), kit.data(), **options | {"save_every_steps": None}
    )
    options["checkpoint_dir"] = tmp_path / "run"
    kit.fit(kit.ensemble(), kit.data(), steps=7, **options)
    longer, longer_log = kit.fit(kit.ensemble(), kit.data(), steps=20, **options)
    assert longer_log.resumed_step == 7
    kit.check_equal(longer, unbroken)
    # Reports are at multiples again; the first run's end was one too.
    assert longer_log.steps.tolist() == [5, 7, 10, 15, 20]
    np.testing.assert_array_equal(
        longer_log.metrics["loss"][-2:], log.metrics["loss"][-2:]
    )


@pytest.mark.parametrize(
    "before, after, shard_state",
    [
        pytest.param((8, 1), (2, 1), False, marks=SLOW),
        ((8, 1), (1, 1), False),
        pytest.param((4, 2), (1, 1), True, marks=SLOW),
        pytest.param((1, 1), (8, 1), False, marks=SLOW),
        pytest.param((2, 4), (4, 2), True, marks=SLOW),
    ],
)
def test_another_number_of_devices_goes_on(kit, tmp_path, before, after, shard_state):
    def make_model(rngs):
        return ensjax.nn.MLP(in_features=6, hidden=(64, 16), num_outputs=3, rngs=rngs)

    # Five members: the padding differs before and after.
    ensemble = ensjax.Ensemble.init(make_model, num_members=5, mesh=kit.mesh(*before))
    options = dict(steps_per_call=5, log_every_steps=5, checkpoint_dir=tmp_path / "run")
    options |= dict(make_tx=optax.sgd, hyper=0.05)
    kit.fit(ensemble, kit.data(), steps=10, shard_state=shard_state, **options)
    moved = ensemble.on_mesh(kit.mesh(*after))
    resumed, log = kit.fit(moved, kit.data(), **options)
    assert log.resumed_step == 10 and resumed.mesh == kit.mesh(*after)
    del options["checkpoint_dir"]
    unbroken, _ = kit.fit(ensemble, kit.data(), **options)
    kit.check_close(resumed, unbroken, tolerance=1e-6)


def contents(directory):
    """A digest of every file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(kit, tmp_path):
    directory = tmp_path / "run"
    ensemble, (x, y) = kit.ensemble(), kit.data()
    options = dict(SAVED, steps=10, checkpoint_dir=directory)
    kit.fit(ensemble, (x, y), **options)
    before = contents(directory)

    def refused(message, ensemble=ensemble, data=(x, y), **changed):
        with pytest.raises(ValueError) as error:
            kit.fit(ensemble, data, **{**options, "steps": 20, **changed})
        assert message in str(error.value) and str(directory) in str(error.value)
        assert "\n" not in str(error.value)
        assert contents(directory) == before

    refused("a run with seed=0, but this one has seed=1", seed=1)
    refused("sampling=independent", sampling="shared")
    with pytest.warns(UserWarning, match="cannot save its position"):
        refused("sampling=independent", data=[(x, y)])
    refused("batch_size=8", batch_size=4)
    refused("num_examples=24", data=(x[:20], y[:20]))
    refused("hyper=0.001", hyper=0.1)
    refused("loss=cross_entropy", loss=lambda *args: ensjax.losses.cross_entropy(*args))
    refused("make_tx=adam", make_tx=lambda lr: optax.adam(lr, eps=1e-3))
    refused("augment=None", augment=lambda key, example: example)
    refused("data=", data=(x + 1, y))
    stopping = ensjax.EarlyStopping(patience=3)
    refused("early_stopping=None", early_stopping=stopping, evaluation=(x, y))
    refused("make_tx=adam, but this one has make_tx=sgd", make_tx=optax.sgd)

    def adam(learning_rate):  # the same name, another optimizer
        return optax.sgd(learning_rate)

    adam.__qualname__ = "adam"
    refused("for another model or optimizer", make_tx=adam)
    refused("for another model or optimizer", kit.ensemble("mlp-batch-norm"))
    refused("holds step 10 of a run, but steps=5", steps=5)
    for rows in ([4, 3, 2, 1, 0], [0, 1, 2, 4, 3]):  # all or two in other places
        other = ensemble.select(rows).with_ids(range(5))
        refused("began with other weights", other)
    other = ensemble.with_ids([7, 0, 8, 9, 6])  # id 0 is another model now
    refused("member 0 began with other weights", other)

    def wider(rngs):
        return ensjax.nn.MLP(in_features=6, hidden=(9,), num_outputs=3, rngs=rngs)

    wide = ensjax.Ensemble.init(wider, num_members=5, mesh=ensemble.mesh)
    refused("the model, the optimizer or the data differ", wide)


@pytest.mark.slow
def test_two_settings_of_one_kind_are_two_runs(kit, tmp_path):
    x, y = kit.data("cnn-group-norm")
    options = dict(SAVED, steps=10, checkpoint_dir=tmp_path / "run")
    options |= dict(sampling="weighted", weights=np.arange(24.0))

    def augment(padding):
        return ensjax.data.augment_images(ensjax.data.random_crop(padding))

    ensemble = kit.ensemble("cnn-group-norm", 2)
    kit.fit(ensemble, (x, y), augment=augment(1), **options)
    with pytest.raises(ValueError, match="holds a run with augment="):
        kit.fit(ensemble, (x, y), augment=augment(2), **options)
    options["weights"] = np.ones(24)
    with pytest.raises(ValueError, match="holds a run with weights="):
        kit.fit(ensemble, (x, y), augment=augment(1), **options)


def test_the_best_weights_belong_to_one_evaluation(kit, tmp_path):
    x, y = kit.data()
    stopping = ensjax.EarlyStopping(patience=None)
    options = dict(SAVED, steps=10, checkpoint_dir=tmp_path / "run")
    options |= dict(early_stopping=stopping, evaluation=(x, y))
    ensemble = kit.ensemble()
    kit.fit(ensemble, (x, y), **options)
    for changed in (
        {"evaluation": (x + 1, y)},
        {"evaluation_loss": lambda *args: ensjax.losses.cross_entropy(*args)},
    ):
        with pytest.raises(ValueError, match=f"holds a run with {[*changed][0]}="):
            kit.fit(ensemble, (x, y), **{**options, **changed})
    # How often it is looked at may change, as it does by default with more steps.
    kit.fit(ensemble, (x, y), **{**options, "steps": 20, "evaluate_every_steps": 5})


def test_a_run_with_a_member_that_was_never_finite_goes_on(kit, tmp_path):
    ensemble = kit.ensemble()
    state = jax.tree.map(lambda x: x.at[2].set(np.nan), ensemble.state)
    broken = dataclasses.replace(ensemble, state=state)
    options = dict(SAVED, checkpoint_dir=tmp_path / "run")
    for steps in (10, 20):
        _, log = kit.fit(broken, kit.data(), steps=steps, **options)
        assert log.frozen_steps.tolist() == [-1, -1, 0, -1, -1]
    assert log.resumed_step == 10
    with pytest.raises(ValueError, match="began with other weights"):
        kit.fit(ensemble, kit.data(), steps=20, **options)


def test_a_fingerprint_bears_rounding_and_nothing_else(kit):
    from ensjax.train.identity import began_alike, fingerprint

    params = kit.ensemble().params
    prints = fingerprint(params)
    assert np.shape(prints) == (5, 3)
    rounded = jax.tree.map(lambda x: x * (1 + 1e-6), params)
    assert began_alike(prints, fingerprint(rounded))
    assert not began_alike(prints, fingerprint(jax.tree.map(lambda x: x[::-1], params)))
    assert not began_alike(prints, prints[:4])
    leaves, treedef = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        if leaf.any():  # not a bias, which begins with zeros
            changed = [*leaves[:i], leaf.at[2].set(leaf[2][::-1]), *leaves[i + 1 :]]
            other = fingerprint(jax.tree.unflatten(treedef, changed))
            assert not began_alike(prints, other)


def test_settings_are_described_by_what_they_hold():
    from ensjax.train.identity import describe, digest

    def forward(model, batch, key):
        return model(batch)

    assert describe(ensjax.Joint(forward)) == describe(ensjax.Joint(forward))
    halves = ensjax.Joint(forward, batch_block=4)
    assert describe(ensjax.Joint(forward)) != describe(halves)
    adam = functools.partial(optax.adam, b1=0.8)
    assert describe(adam) == ["partial", "adam", [], {"b1": 0.8}]
    assert describe({"a": (1, None)}) == {"a": [1, None]}
    ours, theirs = np.arange(4, dtype=np.float32), jax.numpy.arange(4.0)
    assert digest(ours) == digest(theirs)
    assert digest(np.zeros((2, 3))) != digest(np.zeros((3, 2)))
    assert digest(jax.random.bits(jax.random.key(0), (3,))) != digest(np.zeros(3))


# Streams


def batches_seen(kit, runs_of_steps, make_data, tmp_path):
    """The weights after several calls of `fit`, each to one of `runs_of_steps`."""
    options = dict(steps_per_call=3, log_every_steps=3, checkpoint_dir=tmp_path)
    for steps in runs_of_steps:
        trained, log = kit.fit(kit.ensemble(), make_data(), steps=steps, **options)
    return trained, log


def grain_loader(data):
    """A loader whose position is bytes."""
    import grain.python as grain

    class Source:
        def __repr__(self):  # grain compares it with what the position was saved for
            return "features"

        def __len__(self):
            return len(data[0])

        def __getitem__(self, index):
            return data[0][index], data[1][index]

    return grain.DataLoader(
        data_source=Source(),
        sampler=grain.IndexSampler(
            num_records=len(data[0]), shuffle=True, seed=3, num_epochs=None
        ),
        operations=[grain.Batch(8, drop_remainder=True)],
        worker_count=0,
    )


@pytest.mark.parametrize("source", ["stream", pytest.param("grain loader", marks=SLOW)])
def test_a_stream_goes_on_at_the_batch_where_it_was(kit, tmp_path, source):
    def make_data():
        if source == "grain loader":
            return grain_loader(kit.data())
        return ensjax.data.stream(kit.data(), batch_size=8, seed=3)

    # Ends inside a call of three steps, inside an epoch of three batches, and at both.
    broken, log = batches_seen(kit, [5, 9, 14], make_data, tmp_path / "a")
    assert log.resumed_step == 9
    unbroken, _ = batches_seen(kit, [14], make_data, tmp_path / "b")
    kit.check_equal(broken, unbroken)


def test_a_stream_is_read_no_further_than_the_run_goes(kit):
    left = iter([kit.data()] * 12)
    kit.fit(kit.ensemble(), left, steps=7, steps_per_call=3)
    assert len(list(left)) == 5
    with pytest.raises(ValueError, match="The data ended after 4 of 7 steps"):
        kit.fit(kit.ensemble(), iter([kit.data()] * 4), steps=7, steps_per_call=3)


@pytest.mark.slow
def test_a_stream_and_arrays_give_the_same_steps(kit):
    x, y = kit.data()
    batches = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    streamed, _ = kit.fit(kit.ensemble("mlp", 4, mesh=(4, 2)), batches, steps=7)
    one_device, _ = kit.fit(kit.ensemble("mlp", 4), batches, steps=7)
    kit.check_close(streamed, one_device)
    # The same steps by hand, for member 2.
    params = kit.ensemble("mlp", 4)[2]
    import flax.nnx as nnx

    graphdef, state = nnx.split(params)
    tx = optax.adam(1e-3, eps=1e-3)
    opt_state = tx.init(state)
    for number in range(7):
        batch = jax.tree.map(jax.numpy.asarray, batches[number % 3])

        def loss(state, batch=batch):
            model = nnx.merge(graphdef, state)
            return ensjax.losses.cross_entropy(model, batch, None)[0]

        updates, opt_state = tx.update(jax.grad(loss)(state), opt_state, state)
        state = optax.apply_updates(state, updates)
    kit.check_close(jax.tree.map(lambda x: x[2], one_device.state["params"]), state)


def test_a_stream_without_a_position_says_so_before_and_when_it_is_resumed(
    kit, tmp_path
):
    options = dict(SAVED, checkpoint_dir=tmp_path / "run")
    batches = [kit.data()] * 3
    with pytest.warns(UserWarning, match="a list cannot save its position"):
        kit.fit(kit.ensemble(), batches, steps=10, **options)
    with (
        pytest.warns(UserWarning, match="cannot be resumed"),
        pytest.raises(ValueError, match="data cannot be resumed at step 10: a list"),
    ):
        kit.fit(kit.ensemble(), batches, steps=20, **options)
    # Nothing has to be resumed in a run that is finished.
    with pytest.warns(UserWarning):
        _, log = kit.fit(kit.ensemble(), batches, steps=10, **options)
    assert log.resumed_step == 10


def test_what_is_saved_does_not_change_while_it_is_written():
    from ensjax.train.history import History

    sums = {"loss": np.ones(3), "_steps": np.ones(3)}
    state = {"frozen_step": np.full(3, -1), "stopped_step": np.full(3, -1)}
    history, places = History(3), np.arange(3)
    saved = []
    for history.step in (1, 2):
        history.add_sums((sums,))
        history.read((state,), (places,))
        history.add_report()
        saved.append(history.to_json(places))
    assert [len(s["reports"]) for s in saved] == [1, 2]
