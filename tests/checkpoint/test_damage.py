"""Damage to a checkpoint is noticed wherever it is, and the one before is taken."""

import hashlib
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ensjax.checkpoint import Checkpoints
from ensjax.checkpoint.seals import DamagedCheckpoint
from ensjax.mesh import make_mesh, place

MEMBERS = 3  # padded to four rows


def state_of(seed):
    rng = np.random.default_rng(seed)
    members = {
        "kernel": rng.normal(size=(4, 40, 50)).astype(np.float32),
        "half": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16),
        "flag": rng.random((4, 2)) < 0.5,
        "keys": jax.random.split(jax.random.key(seed), 4),
        "zero": np.zeros((4, 6), np.float32),
    }
    return place(members, make_mesh(member=2), jax.P("member"))


STATES = {step: state_of(step) for step in (5, 10)}
LIKE = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATES[5]
)

PLAIN = {
    **LIKE,
    "keys": jax.ShapeDtypeStruct((4, 2), "uint32", sharding=LIKE["keys"].sharding),
}


def digests(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "run"
    with Checkpoints(directory) as checkpoints:
        for step, state in STATES.items():
            checkpoints.save(step, state, {"step": step, "loss": [0.5, float("nan")]})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def resume(directory):
    """The step taken, after checking that all of it is as saved; and what was said."""
    said = []
    with Checkpoints(directory) as checkpoints:

        def read(step):
            meta = checkpoints.read_meta(step)
            return meta, checkpoints.restore(step, LIKE, num_members=MEMBERS)

        step, (meta, state) = checkpoints.newest_whole(read, say=said.append)
    assert meta["step"] == step and meta["loss"][0] == 0.5 and len(meta) == 2
    for name, leaf in STATES[step].items():
        assert state[name].dtype == leaf.dtype
        a, b = (x[:MEMBERS] for x in (state[name], leaf))
        if name == "keys":
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
    return step, said


def data_files(directory):
    """The files with the chunks of members, the largest first; one, or more."""
    files = (directory / "10/state").rglob("d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)


def data_file(directory):
    return data_files(directory)[0]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_what_is_whole_is_taken_without_a_word(copy):
    assert resume(copy) == (10, [])


def rows_changed(directory):
    """As Orbax alone reads them: it gives other numbers, and no word."""
    args = ocp.checkpoint_utils.construct_restore_args(PLAIN)
    raw = ocp.PyTreeCheckpointHandler().restore(
        directory / "10/state", args=ocp.args.PyTreeRestore(PLAIN, restore_args=args)
    )
    original = np.asarray(STATES[10]["kernel"])
    return np.flatnonzero((np.asarray(raw["kernel"]) != original).any(axis=(1, 2)))


def damage_row(directory, *, of_member):
    """Flips a byte of the kernel of a member, or of a row of padding."""
    # The writer chooses the file of a row, and the order of rows and leaves in it.
    files = (file for file in data_files(directory) if file.stat().st_size > 1000)
    for file, part in itertools.product(files, range(1, 64, 2)):
        position = file.stat().st_size * part // 64
        flip(file, position)
        try:
            rows = rows_changed(directory)
        except Exception:  # the frame of the compression: Orbax notices itself
            rows = ()
        if len(rows) == 1 and (rows[0] < MEMBERS) == of_member:
            return rows[0]
        flip(file, position)
    raise AssertionError("no such row")


def test_a_flipped_byte_of_data_names_leaf_and_member(copy):
    member = damage_row(copy, of_member=True)
    step, (line,) = resume(copy)
    assert step == 5
    assert line == (
        f"checkpoint 10 is damaged (kernel of member {member} is not what was saved);"
        " going on from step 5"
    )


def test_a_flipped_byte_of_padding_does_no_harm(copy):
    assert damage_row(copy, of_member=False) == MEMBERS
    assert resume(copy) == (10, [])


@pytest.mark.slow
def test_damage_anywhere_is_noticed_or_does_no_harm(saved, tmp_path):
    """Every file: deleted, emptied, cut in half, and with a flipped byte."""
    rng = np.random.default_rng(0)
    noticed = set()
    files = [path for path in (saved / "10").rglob("*") if path.is_file()]
    for file in files:
        size = file.stat().st_size
        for damage in (
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(path.read_bytes()[: size // 2]),  # noqa: B023
            lambda path: flip(path, int(rng.integers(size))),  # noqa: B023
        ):
            directory = tmp_path / "run"
            shutil.copytree(saved, directory)
            damage(directory / file.relative_to(saved))
            step, said = resume(directory)
            assert bool(said) == (step == 5)
            if said:
                assert said[0].startswith("checkpoint 10 is damaged (")
                assert "\n" not in said[0]
                noticed.add(file.name)
            shutil.rmtree(directory)
    assert {"metadata", "_METADATA", "manifest.ocdbt", data_file(saved).name} <= noticed


@pytest.mark.parametrize("part", ["10/meta", "10/state", "10"])
def test_a_folder_that_was_emptied_is_noticed(copy, part):
    shutil.rmtree(copy / part)
    (copy / part).mkdir()
    step, (line,) = resume(copy)
    assert step == 5 and line.startswith("checkpoint 10 is damaged (")


def test_where_nothing_is_whole_all_is_told_and_nothing_changed(copy):
    (copy / "5/meta/metadata").write_text('{"meta": ')
    damage_row(copy, of_member=True)
    before = digests(copy)
    with pytest.raises(DamagedCheckpoint) as error:
        resume(copy)
    text = str(error.value)
    assert text.startswith(
        f"no checkpoint in {copy} is whole: checkpoint 10 is damaged"
    )
    assert "kernel of member" in text and "checkpoint 5 is damaged (JSONDec" in text
    assert "\n" not in text and digests(copy) == before


def test_a_damaged_step_is_moved_aside_when_the_next_is_saved(copy):
    for again in ("", "-again"):
        damage_row(copy, of_member=True)
        damaged = digests(copy / "10")
        with Checkpoints(copy) as checkpoints:

            def read(step):
                return checkpoints.restore(step, LIKE, num_members=MEMBERS)

            step, state = checkpoints.newest_whole(read, say=lambda line: None)
            assert step == 5 and digests(copy / "10") == damaged
            checkpoints.save(7, state, {"step": 7, "loss": [0.5, 1]})
            checkpoints.save(10, STATES[10], {"step": 10, "loss": [0.5, 1]})
        assert digests(copy / f"10.damaged{again}") == damaged
        assert resume(copy) == (10, [])
        shutil.rmtree(copy / "7")
        with Checkpoints(copy) as checkpoints:
            checkpoints._manager.delete(10)
            checkpoints.save(5, STATES[5], {"step": 5, "loss": [0.5, 1]})
            checkpoints.save(10, STATES[10], {"step": 10, "loss": [0.5, 1]})


def test_a_checkpoint_without_checksums_is_read_as_it_is(tmp_path):
    """As version 0.1 wrote it."""
    state = STATES[5]
    table = {**state, "keys": jax.random.key_data(state["keys"])}
    with ocp.CheckpointManager(
        tmp_path / "run",
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        },
    ) as manager:
        items = dict(
            state=ocp.args.PyTreeSave(table),
            meta=ocp.args.JsonSave({"step": 5, "loss": [0.5]}),
        )
        manager.save(5, args=ocp.args.Composite(**items))
    assert resume(tmp_path / "run") == (5, [])
    with (
        Checkpoints(tmp_path / "run") as checkpoints,
        pytest.raises(ValueError, match="holds no leaf 'more'"),
    ):
        more = {**LIKE, "more": LIKE["half"]}
        checkpoints.restore(5, more, num_members=MEMBERS)


def test_another_model_is_refused_and_not_called_damage(copy):
    with Checkpoints(copy) as checkpoints:
        for changed, words in (
            ({**LIKE, "more": LIKE["half"]}, "holds no leaf 'more'"),
            ({"half": LIKE["half"]}, "that this run lacks"),
        ):
            with pytest.raises(ValueError, match=words) as error:
                checkpoints.restore(10, changed, num_members=MEMBERS)
            assert not isinstance(error.value, DamagedCheckpoint)
