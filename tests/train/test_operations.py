"""Members are taken over only if they were trained with the same functions."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import nn
from ensjax.checkpoint import Checkpoints
from ensjax.train.operations import checksum, other_operations

OPTIONS = dict(steps=10, steps_per_call=5, log_every_steps=5, block=1)
SCALE = 2.0


def scaled(x):
    return x * SCALE


def times(factor):
    return lambda x: x * factor


def with_table(table):
    return lambda x: jnp.take(jnp.asarray(table), jnp.argsort(x))


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, 0, 1)


@clipped.defjvp
def _(primals, tangents):
    return clipped(*primals), 3 * tangents[0]


def busy(x):
    """Draws, a loop, a table and a rule of its own for the derivative."""
    noise = jax.random.normal(jax.random.key(3), x.shape)
    table = jnp.asarray(np.arange(12.0, dtype=np.float32).reshape(3, 4))

    def body(i, total):
        return total + jax.lax.psum(clipped(total) * i, "data")

    total = jax.lax.fori_loop(0, 4, body, x + noise) @ table
    return jax.nn.softmax(total).max() + jax.lax.axis_index("member")


def busy_checksum():
    return checksum(jax.grad(busy), jax.ShapeDtypeStruct((3,), jnp.float32))


def test_equal_operations_have_equal_checksums_whatever_they_are_called(monkeypatch):
    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert checksum(times(2.0), x) == checksum(scaled, x)
    assert checksum(jax.jit(times(2.0)), x) == checksum(jax.jit(scaled), x)
    assert checksum(times(2.0), x) != checksum(times(3.0), x)
    before = checksum(scaled, x)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    jax.clear_caches()
    assert checksum(scaled, x) != before
    table = np.arange(4.0, dtype=np.float32)
    assert checksum(with_table(table), x) == checksum(with_table(table.copy()), x)
    assert checksum(with_table(table), x) != checksum(with_table(table[::-1]), x)
    wide = jax.ShapeDtypeStruct((5,), jnp.float32)
    assert checksum(jnp.sin, x) != checksum(jnp.cos, x)
    assert checksum(jnp.sin, x) != checksum(jnp.sin, wide)


def test_another_process_finds_the_same_checksum():
    """Under another order of sets, and with other addresses."""
    code = (
        "import importlib.util as u;"
        f"s = u.spec_from_file_location('m', {__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "print(m.busy_checksum())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == busy_checksum()


def make_tx(b1=0.9):
    def make_tx(rate):
        return optax.adam(rate, b1=b1)

    return make_tx


def shift(by):
    def augment(key, example):
        return example[0] + by, example[1]

    return augment


def smoothed(amount):
    def loss(model, batch, key):
        own, metrics = ensjax.losses.cross_entropy(model, batch, key)
        return own * (1 - amount), metrics

    return loss


def fit(kit, ids, directory, *, activation=jax.nn.relu, mesh=(1, 1), **options):
    def make_model(rngs):
        return nn.MLP(
            in_features=6, hidden=(8,), num_outputs=3, activation=activation, rngs=rngs
        )

    ensemble = ensjax.Ensemble.init(make_model, num_members=4, mesh=kit.mesh(1, 1))
    ensemble = ensemble.select(list(ids)).on_mesh(kit.mesh(*mesh))
    own = dict(OPTIONS, make_tx=make_tx(), loss=smoothed(0.1), augment=shift(0.0))
    options = {**own, "checkpoint_dir": directory, "mesh": kit.mesh(*mesh), **options}
    return kit.fit(ensemble, kit.data(), **options)


CHANGES = {
    "make_tx": dict(make_tx=make_tx(b1=0.5)),
    "loss or model": dict(activation=jnp.tanh),
    "augment": dict(augment=shift(0.5)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "make_tx" else pytest.mark.slow)
        for name in CHANGES
    ],
)
def test_members_of_another_training_are_not_taken_over(kit, tmp_path, name):
    """The functions have the same names; what they hold differs."""
    fit(kit, [1], tmp_path / "b", **CHANGES[name])
    with pytest.raises(ValueError, match=f"trained with another {name} than") as error:
        fit(kit, [0, 1], tmp_path / "a", members_from=[tmp_path / "b"])
    assert "\n" not in str(error.value) and str(tmp_path / "b") in str(error.value)
    assert not list((tmp_path / "a").glob("*/state"))  # nothing was trained or saved
    with pytest.raises(ValueError, match="or another checkpoint_dir"):
        fit(kit, [0, 1], tmp_path / "b", steps=20)  # new members join no others


def test_a_run_goes_on_with_functions_that_were_edited_and_says_so(kit, tmp_path):
    fit(kit, [1], tmp_path / "b")
    edited = dict(steps=20, loss=smoothed(0.2))
    with pytest.warns(UserWarning, match="another loss or model until step 10"):
        _, log = fit(kit, [1], tmp_path / "b", **edited)
    assert log.resumed_step == 10
    # From here on it is the run of the edited function.
    _, log = fit(kit, [1], tmp_path / "b", **edited | dict(steps=25))
    assert log.resumed_step == 20


@pytest.fixture
def identities(monkeypatch):
    """What `fit` would compare, of every call; nothing is compiled or trained."""
    module, seen = sys.modules["ensjax.train.fit"], []

    class Seen(Exception):
        pass

    def look(run, **options):
        seen.append(run.identity)
        raise Seen

    monkeypatch.setattr(module, "run_schedule", look)

    def identity_of(train, *args, **options):
        with pytest.raises(Seen):
            train(*args, **options)
        return seen[-1]

    return identity_of


def test_blocks_mesh_and_members_are_no_part_of_what_is_compared(
    kit, tmp_path, identities
):
    first = identities(fit, kit, [0, 1, 2], tmp_path)["operations"]
    assert set(first["stacks"][0]) == {"augment", "loss or model", "make_tx"}
    for ids, options in (
        ([3], dict(block=None)),
        (range(4), dict(mesh=(2, 2), block="auto", steps_per_call=1)),
        (range(4), dict(mesh=(2, 2), shard_state=True, steps=20)),
        ([1, 2], dict(unroll=True, block=None, steps_per_call=10, log_every_steps=10)),
    ):
        other = identities(fit, kit, ids, tmp_path, **options)["operations"]
        assert other_operations(other, first) == []
    for name, options in CHANGES.items():
        other = identities(fit, kit, [3], tmp_path, **options)["operations"]
        assert other_operations(other, first) == [name]
    # Nothing is traced for a run that is not saved.
    assert "operations" not in identities(fit, kit, [0], None)


def fit_images(kit, directory, **options):
    def make_model(rngs):
        sizes = dict(image_shape=(8, 8, 5), features=(6, 6), num_outputs=3)
        return nn.CNN(**sizes, **options, rngs=rngs)

    ensemble = ensjax.Ensemble.init(make_model, num_members=1, mesh=kit.mesh(1, 1))
    data = np.zeros((16, 8, 8, 5), np.float32), np.zeros(16, np.int32)
    return kit.fit(ensemble, data, **OPTIONS, checkpoint_dir=directory)


def test_the_form_of_a_convolution_is_no_part_of_what_is_compared(
    kit, tmp_path, identities
):
    """It changes rounding alone; the precision of a convolution changes more."""
    first = identities(fit_images, kit, tmp_path)["operations"]
    for form in ("plain", "patches", "mixed"):
        other = identities(fit_images, kit, tmp_path, conv_form=form)["operations"]
        assert other_operations(other, first) == []
    low = identities(fit_images, kit, tmp_path, dtype=jnp.bfloat16)["operations"]
    assert other_operations(low, first) == ["loss or model"]


def test_what_an_older_version_wrote_is_taken_with_a_word(kit, tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_as_before(self, step, state, meta):
        run = {k: v for k, v in meta["run"].items() if k != "operations"}
        save(self, step, state, meta | {"run": run})

    monkeypatch.setattr(Checkpoints, "save", save_as_before)
    fit(kit, [1], tmp_path / "b")
    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.warns(UserWarning, match="whether its members were trained with the"):
        _, log = fit(kit, [1, 0], tmp_path / "a", members_from=[tmp_path / "b"])
    assert log.resumed_step == 10
    _, log = fit(kit, [1], tmp_path / "b", steps=15)
    assert log.resumed_step == 10


def test_other_versions_are_not_compared():
    ours = {"made_with": {"jax": "2"}, "stacks": [{"loss": "a", "make_tx": "b"}]}
    assert other_operations(None, ours) is None
    assert other_operations(ours | {"made_with": {"jax": "1"}}, ours) is None
    theirs = ours | {"stacks": [{"loss": "a", "make_tx": "c", "augment": "d"}]}
    assert other_operations(theirs, ours) == ["make_tx", "augment"]


def test_all_kinds_of_functions_are_compared(kit, tmp_path, identities):
    """Those of a joint objective, of early stopping and of new members."""

    def names(train, *args, **options):
        found = identities(train, *args, **options)["operations"]
        return set(found["stacks"][0])

    joint = dict(loss=ensjax.Joint(ensjax.train.ensemble_nll), sampling="shared")
    expected = {"augment", "loss", "forward or model", "make_tx"}
    assert names(fit, kit, [0, 1], tmp_path, **joint) == expected
    # Its statistics are means over data shards.
    normed = kit.ensemble("mlp-batch-norm", 2)
    options = dict(joint, checkpoint_dir=tmp_path)
    assert names(kit.fit, normed, kit.data(), **options) == expected - {"augment"}
    stopping = ensjax.EarlyStopping(patience=None)
    evaluated = dict(evaluation=kit.data(), early_stopping=stopping)
    expected = {"augment", "loss or model", "make_tx", "evaluation_loss"}
    assert names(fit, kit, [0, 1], tmp_path, **evaluated) == expected

    def make_model(rngs):
        return nn.MLP(in_features=6, hidden=(8,), num_outputs=3, rngs=rngs)

    weighted = dict(loss=ensjax.losses.cross_entropy, loss_weights=np.ones(24))
    weighted["health"] = ensjax.Health(policy="reseed", make_model=make_model)
    expected = {"augment", "loss or model", "make_tx", "health.make_model"}
    assert names(fit, kit, [0, 1], tmp_path, **weighted) == expected
    x, y = kit.data()
    stream = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)] * 4
    ensemble, options = kit.ensemble("mlp-dropout", 2), dict(checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="cannot save its position"):
        found = names(kit.fit, ensemble, stream, **options)
    assert found == {"loss or model", "make_tx"}


def test_compiled_and_rematerialised_parts_are_what_they_compute():
    def loss(x, inner=lambda x: jnp.sin(x) * 2):
        return (inner(inner(x)) * x).sum()

    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    one = checksum(loss, shape)
    for wrap in (jax.jit, jax.checkpoint):
        wrapped = wrap(lambda x: jnp.sin(x) * 2)
        assert checksum(lambda x, f=wrapped: loss(x, f), shape) == one
    other = jax.jit(lambda x: jnp.sin(x) * 3)
    assert checksum(lambda x: loss(x, other), shape) != one
    assert checksum(lambda x: loss(jax.lax.stop_gradient(x)), shape) != one


def test_what_is_evaluated_is_traced_in_the_batches_that_it_comes_in(tmp_path):
    def only_eight(model, batch, key):
        assert batch[0].shape[0] == 8
        return ensjax.losses.cross_entropy(model, batch, key)

    rng = np.random.default_rng(0)
    data = rng.normal(size=(64, 6)).astype(np.float32), rng.integers(0, 3, 64)
    ensemble = ensjax.Ensemble.init(
        lambda rngs: nn.MLP(in_features=6, hidden=(4,), num_outputs=3, rngs=rngs),
        num_members=2,
    )
    ensjax.fit(
        ensemble,
        data,
        loss=ensjax.losses.cross_entropy,
        make_tx=optax.adam,
        hyper=1e-3,
        batch_size=8,
        evaluation=data,
        evaluation_loss=only_eight,
        evaluation_batch_size=8,
        evaluate_every_steps=5,
        early_stopping=ensjax.EarlyStopping(patience=2),
        checkpoint_dir=tmp_path / "run",
        progress=False,
        **OPTIONS,
    )
