"""Checkpoints: whole, by name, and onto any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ensjax.checkpoint import Checkpoints, leaf_names, load_tree, save_tree
from ensjax.members import pad_members
from ensjax.mesh import make_mesh, place


def state_of(members):
    """A stacked state with every kind of leaf that training has."""
    rows = np.arange(members)
    return {
        "params": {
            "kernel": (rows[:, None, None] + np.ones((2, 3))).astype(np.float32)
        },
        "half": jnp.asarray(rows, jnp.bfloat16),
        "count": rows.astype(np.int32),
        "flag": rows % 2 == 0,
        "keys": jax.random.split(jax.random.key(0), members),
        "empty": (),
        "none": None,
    }


def like(state, mesh, rows=None, spec=None):
    spec = jax.P("member") if spec is None else spec
    sharding = jax.NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (rows or x.shape[0], *x.shape[1:]), x.dtype, sharding=sharding
        ),
        state,
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_every_kind_of_leaf_comes_back(tmp_path):
    mesh = make_mesh(member=8)
    state = place(state_of(8), mesh, jax.P("member"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(3, state, {"position": {"epoch": 1}, "records": [[1, [0.5]]]})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
        meta = checkpoints.read_meta(3)
        assert meta == {"position": {"epoch": 1}, "records": [[1, [0.5]]]}
        assert_equal(checkpoints.restore(3, like(state, mesh), num_members=8), state)


@pytest.mark.parametrize("member, data, rows", [(1, 1, 5), (2, 1, 6), (4, 2, 8)])
def test_a_padded_state_comes_back_with_the_padding_of_another_mesh(
    tmp_path, member, data, rows
):
    """Five members, padded to eight where they were saved."""
    members = state_of(5)
    saved = place(pad_members(members, 8), make_mesh(member=8), jax.P("member"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
    mesh = make_mesh(member=member, data=data)
    with Checkpoints(tmp_path) as checkpoints:  # as another process would
        target = like(members, mesh, rows)
        restored = checkpoints.restore(1, target, num_members=5)
    assert_equal(restored, pad_members(members, rows))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding.device_set <= set(mesh.devices.flat)


def test_several_stacks_are_one_checkpoint(tmp_path):
    mesh = make_mesh(member=1)
    stacks = (place(state_of(2), mesh, jax.P()), place(state_of(3), mesh, jax.P()))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, stacks, {})
        checkpoints.wait()
        target = tuple(like(s, mesh) for s in stacks)
        assert_equal(checkpoints.restore(1, target, num_members=(2, 3)), stacks)


def test_a_state_that_training_overwrites_at_once_is_saved_as_it_was(tmp_path):
    mesh = make_mesh(member=8)
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = place(np.zeros((8, 1000), np.float32), mesh, jax.P("member"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"x": x}, {})
        for _ in range(10):
            x = advance(x)
        checkpoints.wait()
        target = like({"x": x}, mesh)
        restored = checkpoints.restore(0, target, num_members=8)
    np.testing.assert_array_equal(restored["x"], 0)


def test_what_a_save_that_was_cut_off_left_goes_with_the_next_save(tmp_path):
    torn = tmp_path / "7.orbax-checkpoint-tmp"
    (torn / "state").mkdir(parents=True)
    state = place({"x": np.zeros((2, 3))}, make_mesh(member=1), jax.P("member"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert torn.exists()  # whoever only reads leaves it alone
        checkpoints.save(9, state, {})
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["9"]


def test_old_steps_are_removed(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"x": np.ones((2, 2), np.float32)}, {})
    assert {p.name for p in tmp_path.iterdir()} == {"2", "3"}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {**s, "more": s["count"]}, "holds no leaf 'more'"),
        (lambda s: {k: v for k, v in s.items() if k != "half"}, "a leaf 'half' that"),
        (lambda s: {**s, "half": s["half"][:, None]}, r"half is \[\] .*but \[1\] here"),
        (lambda s: {**s, "count": s["half"]}, "count is int32 .*bfloat16 here"),
    ],
)
def test_another_state_is_refused_by_the_name_of_its_leaf(tmp_path, change, words):
    mesh = make_mesh(member=1)
    state = place(state_of(2), mesh, jax.P())
    other = like(change(state), mesh)
    save_tree(tmp_path / "tree", state)
    with pytest.raises(ValueError, match=words):
        load_tree(tmp_path / "tree", other)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(0, state, {})
        checkpoints.wait()
        with pytest.raises(ValueError, match=words):
            checkpoints.restore(0, other, num_members=2)


def test_names_are_readable_and_unique():
    tree = {"a": [{"b": 1}, {"b": 2}], "a-b": 3, "a.b": 4}
    names = leaf_names(tree)
    assert names[:2] == ["a.0.b", "a.1.b"]
    assert len(set(names)) == 4
    assert leaf_names(np.ones(1)) == ["array"]


def test_a_saved_tree_is_not_overwritten(tmp_path):
    save_tree(tmp_path / "tree", {"x": np.ones((2, 1))})
    with pytest.raises(ValueError, match="exists"):
        save_tree(tmp_path / "tree", {"x": np.zeros((2, 1))})


def test_a_member_is_a_chunk_of_its_own(tmp_path):
    """So that reading one member costs one member, also of a stack on one device."""
    save_tree(tmp_path / "tree", {"x": np.ones((4, 64, 64), np.float32)})
    mesh = make_mesh(member=1)
    target = jax.ShapeDtypeStruct(
        (4, 64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P())
    )
    np.testing.assert_array_equal(load_tree(tmp_path / "tree", {"x": target})["x"], 1)
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(tmp_path / "tree").item_metadata.tree["x"]
    assert tuple(stored.storage.chunk_shape) == (1, 64, 64)
