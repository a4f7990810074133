"""One member made again alone, and read alone."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tensorstore

import ensjax
from ensjax import nn
from ensjax.checkpoint import DamagedCheckpoint
from ensjax.train import TrainingJob
from ensjax.train.objectives import ensemble_nll
from ensjax.train.replay import replay_member
from ensjax.train.stored import read_member


def make_model(rngs):
    return nn.MLP(in_features=6, hidden=(8,), num_outputs=3, dropout=0.2, rngs=rngs)


def adam(rate):
    return optax.adam(rate, eps=1e-3)


def job(kit, ids=range(6), **options):
    x, y = kit.data()
    defaults = dict(
        loss=ensjax.losses.cross_entropy,
        make_tx=adam,
        steps=20,
        batch_size=8,
        steps_per_call=5,
        log_every_steps=5,
        sampling="bootstrap",
        block=2,
        evaluation=(x, y),
        early_stopping=ensjax.EarlyStopping(patience=None),
    )
    return TrainingJob(
        make_model=make_model,
        member_ids=tuple(ids),
        init_seed=3,
        data=(x, y),
        hyper=np.linspace(1e-3, 1e-2, len(ids)).astype(np.float32),
        mesh_sizes=dict(member=1, data=1, model=1),
        options=defaults | options,
    )


@pytest.mark.parametrize(
    "block, is_bitwise",
    [
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param("auto", False, marks=pytest.mark.slow),
    ],
)
def test_a_member_is_made_again_alone(kit, tmp_path, block, is_bitwise):
    whole = job(kit, block=block)
    trained, log = whole.fit(checkpoint_dir=tmp_path, progress=False)
    for step in (15, 20):
        stored = read_member(tmp_path, 4, step=step)
        assert stored.step == step
        replayed = replay_member(whole, stored, 4, progress=False)
        # A fixed block gives the same bits; "auto" may choose another program.
        assert replayed.is_bitwise or not is_bitwise
        assert replayed.worst()[1] < 1e-5
        assert any(name.startswith("opt_state") for name in replayed.differences)
    # Another member is not it.
    other = replay_member(whole, read_member(tmp_path, 3), 4, progress=False)
    assert not other.is_bitwise and other.worst()[1] > 0.1
    # What is read are the weights that `fit` returned.
    weights = read_member(tmp_path, 4).weights()
    expected = jax.tree.leaves(trained.select([4]).params)
    params = [x for name, x in weights.items() if name.startswith("params.")]
    assert len(params) == len(expected)
    for ours, theirs in zip(params, expected, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs)[0])


@pytest.mark.slow
def test_a_member_costs_its_own_bytes(kit, tmp_path):
    """Of 64 members, reading one takes about a 64th of the bytes."""

    def large(rngs):
        return nn.MLP(in_features=6, hidden=(64, 64), num_outputs=3, rngs=rngs)

    ensemble = ensjax.Ensemble.init(large, num_members=64)
    kit.fit(ensemble, kit.data(), steps=10, checkpoint_dir=tmp_path)

    def bytes_read(ids):
        before = _bytes_read()
        for id_ in ids:
            read_member(tmp_path, id_)
        return _bytes_read() - before

    total = sum(p.stat().st_size for p in (tmp_path / "10").rglob("*") if p.is_file())
    member = 3 * sum(x[0].nbytes for x in jax.tree.leaves(ensemble.params))
    # Parameters and Adam's two moments, which compress a little, and the store's index,
    # which is a twelfth of all here: it holds small arrays itself.
    one, many = bytes_read([5]), bytes_read(range(0, 64, 4))
    assert 0.8 * member < one < 0.1 * total
    assert many > 10 * one


def _bytes_read():
    metrics = tensorstore.experimental_collect_matching_metrics(
        "/tensorstore/kvstore/file/bytes_read"
    )
    return sum(value["value"] for metric in metrics for value in metric["values"])


@pytest.mark.slow
def test_members_that_are_not_there_and_bytes_that_have_changed(kit, tmp_path):
    job(kit).fit(checkpoint_dir=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="no member 9; the members are 0, 1, 2, 3"):
        read_member(tmp_path / "run", 9)
    with pytest.raises(ValueError, match="after step 15, 20, but not after step 10"):
        read_member(tmp_path / "run", 1, step=10)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        read_member(tmp_path / "nothing", 1)
    # Where the last checkpoint is damaged, the one before is read.
    meta = tmp_path / "run" / "20" / "meta" / "metadata"
    text = meta.read_text()
    meta.write_text(text[:-9])
    assert read_member(tmp_path / "run", 1).step == 15
    meta.write_text(text)
    assert read_member(tmp_path / "run", 1).step == 20
    data = sorted((tmp_path / "run" / "20" / "state").glob("**/d/*"))
    for path in data:  # not every byte of every file belongs to a member
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 3, 2 * len(content) // 3):
            content[place] ^= 1
        path.write_bytes(bytes(content))
    failures = 0
    for id_ in range(6):
        try:
            read_member(tmp_path / "run", id_, step=20)
        except (DamagedCheckpoint, ValueError):
            failures += 1
    assert failures >= 1


@pytest.mark.slow
def test_a_joint_objective_cannot_be_replayed(kit, tmp_path):
    joint = job(
        kit,
        loss=ensjax.Joint(ensemble_nll),
        sampling="shared",
        evaluation=None,
        early_stopping=None,
    )
    joint.fit(checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="joint objective"):
        replay_member(joint, read_member(tmp_path, 1), 1, progress=False)


def test_a_job_may_refuse_a_replay_in_its_own_words(kit):
    later = dataclasses.replace(job(kit), why_no_replay="It began with other weights.")
    with pytest.raises(ValueError, match="It began with other weights"):
        replay_member(later, None, 1, progress=False)


def test_new_members_are_started_as_the_job_says(kit):
    seen = []

    def start(ensemble):
        seen.append(ensemble.member_ids.tolist())
        return "started"

    whole = dataclasses.replace(job(kit), start=start)
    assert whole.select([4, 1]).ensemble() == "started"
    assert seen == [[4, 1]]


@pytest.mark.slow
def test_a_member_that_was_added_later_is_replayed_like_any_other(kit, tmp_path):
    job(kit, range(3)).fit(checkpoint_dir=tmp_path, progress=False)
    rates = np.linspace(1e-3, 1e-2, 3).astype(np.float32)
    grown = dataclasses.replace(
        job(kit, range(5)), hyper=np.concatenate([rates, rates[:2]])
    )
    grown.fit(checkpoint_dir=tmp_path, progress=False)
    stored = read_member(tmp_path, 4)
    assert "generation-1" in stored.directory
    assert replay_member(grown, stored, 4, progress=False).is_bitwise


def test_a_job_knows_its_members(kit):
    with pytest.raises(ValueError, match="no member 7; the members are 0, 1"):
        job(kit).select([7])
    chosen = job(kit).select([4, 1])
    assert chosen.member_ids == (4, 1)
    np.testing.assert_array_equal(chosen.hyper, job(kit).hyper[[4, 1]])
    shapes = (jax.ShapeDtypeStruct((24, 6), "float32"),)
    with pytest.raises(ValueError, match="only the shapes"):
        dataclasses.replace(job(kit), data=shapes).fit()
