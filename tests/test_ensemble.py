"""`Ensemble` and `Group`: members in, members out, on any mesh."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ensjax import Ensemble, Group, checkpoint, make_mesh, nn, predict


def make_mlp(rngs):
    return nn.MLP(in_features=4, hidden=(8,), num_outputs=3, rngs=rngs)


def make_wide(rngs):
    return nn.MLP(in_features=4, hidden=(9,), num_outputs=3, rngs=rngs)


def make_noisy(rngs):
    """Batch norm and dropout."""
    return nn.MLP(
        in_features=4, hidden=(8,), num_outputs=3, norm="batch", dropout=0.5, rngs=rngs
    )


class Users(nnx.Module):
    """A user's own module, with a kind of variable of its own."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.scale = nnx.Variable(jnp.array(2.0))

    def __call__(self, x):
        return self.scale[...] * self.linear(x)


X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
ONE = dict(member=1)


def states_equal(a, b, rtol=0):
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(x, y, rtol=rtol)
        else:
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.member_ids, b.member_ids)


def test_a_member_is_the_same_model_in_an_ensemble_of_any_size():
    """The same draws; another shape may round an inverse error function otherwise."""
    many = Ensemble.init(make_noisy, num_members=11, seed=3)
    few = Ensemble.init(make_noisy, num_members=2, seed=3, mesh=make_mesh(**ONE))
    states_equal(many[:2], few, rtol=1e-6)
    chosen = Ensemble.init(make_noisy, seed=3, member_ids=[7, 1])
    states_equal(chosen, many.select([7, 1]), rtol=1e-6)
    other = Ensemble.init(make_noisy, num_members=2, seed=4)
    assert not np.allclose(other(X), few(X))


def test_members_differ_from_each_other():
    outputs = Ensemble.init(make_mlp, num_members=3)(X)
    assert len({np.asarray(own).tobytes() for own in outputs}) == 3


@pytest.mark.parametrize(
    "member, data, members",
    [
        (1, 1, 8),
        (8, 1, 1),
        (4, 2, 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (1, 1, 1),
                (1, 1, 3),
                (8, 1, 3),
                (8, 1, 8),
                (4, 2, 1),
                (4, 2, 8),
            ]
        ),
    ],
)
def test_a_call_equals_each_member_alone(members, member, data):
    mesh = make_mesh(member=member, data=data)
    ensemble = Ensemble.init(make_mlp, num_members=members, mesh=mesh)
    assert len(ensemble) == ensemble.num_members == members
    outputs = ensemble(X)
    assert outputs.shape == (members, 6, 3)
    for i in range(members):
        np.testing.assert_allclose(outputs[i], ensemble[i](X), atol=1e-6)


@pytest.mark.parametrize(
    "block", [2, "auto", *(pytest.param(b, marks=pytest.mark.slow) for b in (None, 1))]
)
def test_every_block_gives_the_same_outputs(block):
    ensemble = Ensemble.init(make_mlp, num_members=5, mesh=make_mesh(member=2))
    np.testing.assert_allclose(ensemble(X, block=block), ensemble(X), atol=1e-6)


def test_a_stack_of_modules_holds_copies_of_them():
    models = [Users(nnx.Rngs(i)) for i in range(3)]
    ensemble = Ensemble.stack(models)
    for i, model in enumerate(models):
        np.testing.assert_allclose(ensemble(X)[i], model(X), atol=1e-6)
    before = np.asarray(ensemble(X))
    models[0].scale[...] = jnp.array(5.0)
    np.testing.assert_array_equal(ensemble(X), before)
    assert isinstance(ensemble[0], Users)
    np.testing.assert_array_equal(ensemble.member_ids, [0, 1, 2])


def test_stacking_what_does_not_stack_says_why():
    with pytest.raises(ValueError, match=r"bias.*\[8\].*\[9\].*Group"):
        Ensemble.stack([make_mlp(nnx.Rngs(0)), make_wide(nnx.Rngs(1))])
    with pytest.raises(TypeError, match="from_apply"):
        Ensemble.stack([lambda x: x])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble.stack([])
    drops = [
        nn.MLP(in_features=4, dropout=rate, rngs=nnx.Rngs(params=0, dropout=1))
        for rate in (0.1, 0.2)
    ]
    with pytest.raises(ValueError, match="Model 1 is built differently"):
        Ensemble.stack(drops)


def test_evaluation_mode_of_one_model_does_not_keep_it_out_of_the_stack():
    models = [make_noisy(nnx.Rngs(params=i, dropout=i)) for i in range(2)]
    models[1].eval()
    assert Ensemble.stack(models)(X).shape == (2, 6, 3)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(num_members=0), "at least one member"),
        (dict(), "at least one member"),
        (dict(member_ids=[1, 1]), "differ"),
        (dict(member_ids=[-1, 1]), "must lie from 0"),
        (dict(member_ids=[0.5]), "integers"),
        (dict(member_ids=[]), "integers"),
        (dict(num_members=2, member_ids=[1]), "2 members but 1"),
    ],
)
def test_wrong_members_raise(options, words):
    with pytest.raises(ValueError, match=words):
        Ensemble.init(make_mlp, **options)


def apply(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"][None]


def test_a_bare_function_is_a_member():
    rng = np.random.default_rng(1)
    params = {
        "w": rng.normal(size=(5, 4, 3)).astype(np.float32),
        "b": np.ones((5, 3), np.float32),
    }
    ensemble = Ensemble.from_apply(apply, params)
    outputs = ensemble(X)
    for i in range(5):
        own = ensemble[i]
        np.testing.assert_array_equal(own["w"], params["w"][i])
        np.testing.assert_allclose(outputs[i], apply(own, X), atol=1e-6)
    assert len(ensemble[1:3].concatenate(ensemble[:1])) == 3
    params["b"] = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"\['w'\].*4 members|\['b'\].*5 members"):
        Ensemble.from_apply(apply, params)


def test_a_linen_module_is_a_member():
    module = linen.Dense(3)
    keys = jax.random.split(jax.random.key(0), 4)
    params = jax.vmap(module.init, in_axes=(0, None))(keys, X)
    ensemble = Ensemble.from_apply(module.apply, params)
    for i in range(4):
        alone = module.apply(module.init(keys[i], X), X)
        np.testing.assert_allclose(ensemble(X)[i], alone, atol=1e-6)


def test_indices_slices_and_masks_choose_members_with_their_ids():
    ensemble = Ensemble.init(make_noisy, num_members=7)
    outputs = np.asarray(ensemble(X))
    mask = np.array([True, False, False, True, False, True, False])
    for chosen, rows in [
        (ensemble[2:5], [2, 3, 4]),
        (ensemble[[5, -7]], [5, 0]),
        (ensemble.select(mask), [0, 3, 5]),
        (ensemble[::-3], [6, 3, 0]),
        (ensemble.select(jnp.array([4])), [4]),
    ]:
        np.testing.assert_array_equal(chosen.member_ids, rows)
        np.testing.assert_allclose(chosen(X), outputs[rows], atol=1e-6)
    assert isinstance(ensemble[np.int64(3)], nn.MLP)
    np.testing.assert_allclose(ensemble[-1](X), outputs[6], atol=1e-6)
    with pytest.raises(IndexError, match="0 to 6"):
        ensemble[7]
    with pytest.raises(ValueError, match="no member"):
        ensemble[3:3]


def test_all_members_can_be_iterated():
    ensemble = Ensemble.init(make_mlp, num_members=3)
    assert [type(model) for model in ensemble] == [nn.MLP] * 3


@pytest.mark.slow
def test_concatenating_the_parts_gives_the_whole(compilations):
    ensemble = Ensemble.init(make_noisy, num_members=5)
    states_equal(ensemble[:2].concatenate(ensemble[2:]), ensemble)
    compilations.clear()
    states_equal(ensemble[:2].concatenate(ensemble[2:]), ensemble)
    assert not compilations
    elsewhere = ensemble[2:].on_mesh(make_mesh(member=2))
    states_equal(ensemble[:2].concatenate(elsewhere), ensemble)
    other = Ensemble.init(make_wide, num_members=1)
    with pytest.raises(ValueError, match="Group"):
        ensemble.concatenate(other)


def test_other_ids_leave_the_weights_alone():
    ensemble = Ensemble.init(make_mlp, num_members=3)
    renamed = ensemble.with_ids([10, 11, 12])
    np.testing.assert_array_equal(renamed.member_ids, [10, 11, 12])
    np.testing.assert_array_equal(renamed(X), ensemble(X))
    with pytest.raises(ValueError, match="3 members but 2"):
        ensemble.with_ids([1, 2])


def test_an_ensemble_is_a_pytree_and_moves_between_meshes():
    ensemble = Ensemble.init(make_noisy, num_members=8)
    moved = ensemble.on_mesh(make_mesh(member=2, data=2))
    states_equal(ensemble, moved)
    leaves, treedef = jax.tree.flatten(ensemble)
    states_equal(jax.tree.unflatten(treedef, leaves), ensemble)
    kernel = jax.tree.leaves(moved.params)[0]
    assert kernel.addressable_shards[0].data.shape[0] == 4
    assert jax.jit(lambda e: e.member_ids.sum())(ensemble) == 28


def test_equal_ensembles_share_one_program():
    mesh = make_mesh(member=2)
    a = Ensemble.init(make_mlp, num_members=3, seed=0, mesh=mesh)
    b = Ensemble.init(make_mlp, num_members=3, seed=1, mesh=mesh)
    assert a.graph == b.graph and hash(a.graph) == hash(b.graph)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_evaluation_uses_running_statistics_and_no_dropout():
    models = [make_noisy(nnx.Rngs(params=i, dropout=i)) for i in range(2)]
    for model in models:
        model.train()
        for _ in range(20):
            model(3 * X + 1)  # moves the running statistics
    ensemble = Ensemble.stack(models)
    outputs = np.asarray(ensemble(X))
    np.testing.assert_array_equal(ensemble(X), outputs)
    for model, member, own in zip(models, ensemble, outputs, strict=True):
        model.eval()
        np.testing.assert_allclose(own, model(X), atol=1e-6)
        np.testing.assert_allclose(own, member(X), atol=1e-6)  # in evaluation mode
    # One example alone gives its own row: nothing depends on the batch.
    np.testing.assert_allclose(ensemble(X[:1])[:, 0], outputs[:, 0], atol=1e-6)


def test_inputs_may_be_a_pytree():
    def apply_pair(params, inputs):
        return {"sum": params["w"] * (inputs["a"] + inputs["b"])}

    ensemble = Ensemble.from_apply(apply_pair, {"w": jnp.arange(1.0, 4.0)})
    outputs = ensemble({"a": X, "b": X})["sum"]
    np.testing.assert_allclose(outputs[2], 6 * X, rtol=1e-6)


@pytest.mark.parametrize(
    "batch_size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 100))]
)
@pytest.mark.parametrize(
    "member, data", [(4, 2), pytest.param(8, 1, marks=pytest.mark.slow)]
)
def test_predicting_in_batches_equals_all_at_once(batch_size, member, data):
    ensemble = Ensemble.init(
        make_noisy, num_members=3, mesh=make_mesh(member=member, data=data)
    )
    outputs = predict(ensemble, X[:5], batch_size=batch_size)
    assert outputs.shape == (3, 5, 3)
    np.testing.assert_allclose(outputs, ensemble(X)[:, :5], atol=1e-6)


def test_predicting_nothing_or_unequal_inputs_raises():
    ensemble = Ensemble.init(make_mlp, num_members=2)
    for x, size in [(X[:0], 4), ({"a": X, "b": X[:2]}, 4), (X, 0), (np.float32(1), 4)]:
        with pytest.raises(ValueError, match="predict needs inputs"):
            predict(ensemble, x, batch_size=size)


def test_a_group_is_one_ensemble_of_several_architectures():
    a = Ensemble.init(make_mlp, num_members=3)
    b = Ensemble.init(make_wide, member_ids=[7, 8])
    group = Group([a, b])
    assert len(group) == group.num_members == 5
    np.testing.assert_array_equal(group.member_ids, [0, 1, 2, 7, 8])
    expected = np.concatenate([a(X), b(X)])
    np.testing.assert_allclose(group(X), expected, atol=1e-6)
    np.testing.assert_allclose(predict(group, X, batch_size=4), expected, atol=1e-6)
    np.testing.assert_allclose(group[3](X), expected[3], atol=1e-6)
    np.testing.assert_allclose(group[-1](X), expected[4], atol=1e-6)
    with pytest.raises(IndexError, match="0 to 4"):
        group[5]
    np.testing.assert_allclose([m(X) for m in group], expected, atol=1e-6)
    for indices in (slice(1, 4), [0, 2, 4, 3], [True, False, False, False, True], [1]):
        some = group.select(indices)
        np.testing.assert_allclose(some(X), expected[indices], atol=1e-6)
        np.testing.assert_array_equal(
            some.member_ids, np.array([0, 1, 2, 7, 8])[indices]
        )
    with pytest.raises(ValueError, match=r"ensemble by ensemble.*\[3, 0\]"):
        group.select([3, 0])
    with pytest.raises(ValueError, match="holds no member"):
        group[:0]
    with pytest.raises(ValueError, match="at least one"):
        Group([])
    assert len(jax.tree.map(lambda x: x, group)) == 5
    assert jax.jit(lambda g: g.num_members)(group) == 5
    with pytest.raises(ValueError, match="share one mesh"):
        Group([a, b.on_mesh(make_mesh(member=2))])


def test_a_group_is_saved_whole_and_loads_onto_any_mesh(tmp_path, monkeypatch):
    parts = [Ensemble.init(make_noisy, num_members=3)]
    parts += [Ensemble.init(make_wide, member_ids=[7, 8])]
    group, path = Group(parts), tmp_path / "group"
    group.save(path)
    loaded = Group.load(path, mesh=make_mesh(member=2, data=2))
    for a, b in zip(loaded.ensembles, group.ensembles, strict=True):
        assert a.mesh.shape["member"] == 2
        states_equal(a, b)
    with pytest.raises(ValueError, match="group exists"):
        group.save(path)
    with pytest.raises(ValueError, match="no saved group at"):
        Group.load(tmp_path / "nowhere")
    saved = []

    def save_tree(*args):
        saved.append(args)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(*args)

    save = checkpoint.save_tree
    monkeypatch.setattr(checkpoint, "save_tree", save_tree)
    with pytest.raises(OSError, match="No space"):
        group.save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["group"]


@pytest.mark.parametrize("members", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_what_is_saved_loads_onto_any_mesh(tmp_path, members):
    ensemble = Ensemble.init(make_noisy, num_members=members, seed=5)[::-1]
    ensemble.save(tmp_path / "ensemble")
    for member, data in [(8, 1), (1, 1), (2, 2)]:
        mesh = make_mesh(member=member, data=data)
        loaded = Ensemble.load(tmp_path / "ensemble", mesh=mesh)
        assert loaded.mesh == mesh
        states_equal(loaded, ensemble)
        np.testing.assert_allclose(loaded(X), ensemble(X), atol=1e-6)
    built = Ensemble.load(tmp_path / "ensemble", make_model=make_noisy)
    states_equal(built, ensemble)
    assert built.graph == ensemble.graph


def test_a_flipped_byte_of_a_saved_ensemble_is_noticed(tmp_path):
    Ensemble.init(make_mlp, num_members=2).save(tmp_path / "a")
    # What a process wrote is copied into the whole, of which alone a load reads.
    (file,) = (tmp_path / "a/arrays/d").iterdir()
    whole = file.read_bytes()
    for eighth in range(1, 8):
        at = len(whole) * eighth // 8
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(checkpoint.DamagedCheckpoint):
            Ensemble.load(tmp_path / "a")
    # One that was written without checksums is read as it is.
    Ensemble.init(make_mlp, num_members=2).save(tmp_path / "b")
    (tmp_path / "b/arrays.json").unlink()
    assert len(Ensemble.load(tmp_path / "b")) == 2


def test_a_save_that_fails_leaves_nothing_and_can_be_made_again(tmp_path, monkeypatch):
    ensemble = Ensemble.init(make_mlp, num_members=2)
    save_tree = checkpoint.save_tree

    def fail_at_the_end(path, tree):
        save_tree(path, tree)
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_tree", fail_at_the_end)
    with pytest.raises(OSError, match="No space"):
        ensemble.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    ensemble.save(tmp_path / "a")
    np.testing.assert_array_equal(Ensemble.load(tmp_path / "a")(X), ensemble(X))


def test_what_a_killed_save_left_is_not_seen_and_not_in_the_way(tmp_path):
    ensemble = Ensemble.init(make_mlp, num_members=2)
    (tmp_path / ".a.partial" / "arrays").mkdir(parents=True)
    with pytest.raises(ValueError, match="no saved ensemble"):
        Ensemble.load(tmp_path / "a")
    ensemble.save(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_is_overwritten(tmp_path):
    ensemble = Ensemble.init(make_mlp, num_members=2)
    ensemble.save(tmp_path / "a")
    with pytest.raises(ValueError, match="exists; choose another path"):
        ensemble.save(tmp_path / "a")
    with pytest.raises(ValueError, match="no saved ensemble"):
        Ensemble.load(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_loading_as_another_architecture_names_the_leaf(tmp_path):
    Ensemble.init(make_mlp, num_members=2).save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"^params.blocks.0.linear.*\[8\].*\[9\]"):
        Ensemble.load(tmp_path / "a", make_model=make_wide)
    with pytest.raises(ValueError, match="no leaf '.*norm.*'"):
        Ensemble.load(tmp_path / "a", make_model=make_noisy)


def test_a_bare_function_is_saved_with_its_parameters(tmp_path):
    ensemble = Ensemble.from_apply(
        apply, {"w": np.ones((2, 4, 3)), "b": np.ones((2, 3))}
    )
    ensemble.save(tmp_path / "a")
    np.testing.assert_allclose(Ensemble.load(tmp_path / "a")(X), ensemble(X), atol=1e-6)


def in_a_fresh_process(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_touches_no_device_and_no_plotting_or_data_library():
    code = """
import sys
import ensjax, jax
ensjax.Ensemble, ensjax.fit, ensjax.calibrate
jax.config.update("jax_num_cpu_devices", 3)  # raises once devices have started
heavy = {"matplotlib", "sklearn", "grain", "mlxtend", "torch", "tensorflow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    in_a_fresh_process(code)


def test_importing_adds_little_to_jax_and_flax():
    """In seconds of this process alone, so that other work on the machine adds none."""
    code = """
import jax, flax, time
start = time.process_time()
import ensjax
ensjax.Ensemble, ensjax.fit, ensjax.calibrate
print(time.process_time() - start)
"""
    assert float(in_a_fresh_process(code)) < 1.5


def make_orthogonal(rngs):
    kernel_init = nnx.initializers.orthogonal()
    return nnx.Sequential(
        nnx.Linear(4, 4, kernel_init=kernel_init, rngs=rngs),
        nnx.Linear(4, 4, kernel_init=kernel_init, rngs=rngs),
    )


def test_members_are_made_on_one_cpu_device_and_placed_on_all():
    """Two LAPACK calls that two CPU devices run at once can wait for ever."""
    mesh = make_mesh(member=2)
    ensemble = Ensemble.init(make_orthogonal, num_members=6, mesh=mesh)
    kernel = np.asarray(jax.tree.leaves(ensemble.params)[-1])
    identity = np.broadcast_to(np.eye(4), kernel.shape)
    np.testing.assert_allclose(
        np.einsum("mij,mkj->mik", kernel, kernel), identity, atol=1e-5
    )
    assert ensemble.mesh == mesh
    assert {len(x.devices()) for x in jax.tree.leaves(ensemble.state)} == {2}
