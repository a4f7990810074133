"""Ensembles that grow, shrink and take members over while they are trained."""

import jax
import numpy as np
import pytest

import ensjax
from ensjax.checkpoint import Checkpoints
from ensjax.train.objectives import ensemble_nll

OPTIONS = dict(steps=20, steps_per_call=5, log_every_steps=5, block=1)
RATES = np.linspace(1e-3, 5e-3, 9)


def fit(kit, ids, *, mesh=(1, 1), data=None, name="mlp", **options):
    """A run of some of nine members, each with its own rate and resample."""
    ensemble = kit.ensemble(name, member_ids=ids, mesh=mesh)
    defaults = dict(OPTIONS, hyper=RATES[ids], sampling="bootstrap")
    return kit.fit(ensemble, kit.data() if data is None else data, **defaults | options)


@pytest.fixture(scope="module")
def whole(kit):
    """The nine members as they are when nothing ever happens to them."""
    return fit(kit, range(9))


def check_members(kit, result, whole, ids):
    """Weights and history are those of the run that had all members all along."""
    (ensemble, log), (expected, expected_log) = result, whole
    assert ensemble.member_ids.tolist() == list(ids)
    kit.check_equal(ensemble, expected.select(list(ids)))
    np.testing.assert_array_equal(log.steps, expected_log.steps)
    np.testing.assert_array_equal(
        log.metrics["loss"], expected_log.metrics["loss"][:, list(ids)]
    )


@pytest.mark.parametrize("at", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_an_ensemble_grows(kit, tmp_path, whole, at, capsys):
    directory = tmp_path / "run"
    fit(kit, range(5), steps=at, checkpoint_dir=directory)
    grown = fit(kit, range(9), checkpoint_dir=directory, progress=True)
    check_members(kit, grown, whole, range(9))
    shown = capsys.readouterr().out
    assert f"4 members catch up from step 0 to {at} (5, 6, 7, 8)" in shown
    # What they saved on their way is gone, what the five were is not.
    names = sorted(path.name for path in directory.iterdir())
    assert [n for n in names if not n.isdecimal()] == ["generation-1"]
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == at
    # The same call finds all nine.
    again = fit(kit, range(9), checkpoint_dir=directory)
    check_members(kit, again, whole, range(9))
    assert again[1].resumed_step == 20
    names = sorted(path.name for path in directory.iterdir())
    assert [n for n in names if not n.isdecimal()] == ["generation-1"]
    # What both have spent until then is counted once.
    assert again[1].times.row_steps == grown[1].times.row_steps


@pytest.mark.slow
def test_an_ensemble_shrinks_and_grows_again(kit, tmp_path, whole):
    options = dict(checkpoint_dir=tmp_path / "run")
    fit(kit, range(9), steps=5, **options)
    fewer = fit(kit, [0, 3, 5], steps=15, **options)
    check_members(kit, fewer, fit(kit, range(9), steps=15), [0, 3, 5])
    # Three go on from step 15; the others from step 5, where they were left.
    check_members(kit, fit(kit, range(9), **options), whole, range(9))
    # And in another order, on other devices.
    shuffled = [5, 0, 8]
    other, log = fit(kit, shuffled, mesh=(4, 2), **options)
    assert log.resumed_step == 20
    kit.check_equal(other, whole[0].select(shuffled))


@pytest.mark.slow
def test_members_that_catch_up_go_on_after_a_kill(kit, tmp_path, whole, monkeypatch):
    """The folders of a catch-up are as good as any other checkpoint."""
    directory = tmp_path / "run"
    fit(kit, range(5), checkpoint_dir=directory)

    class Killed(Exception):
        pass

    save, count = Checkpoints.save, 0

    def save_twice(self, step, state, meta):
        nonlocal count
        count += 1
        if count == 3:
            self.wait()
            raise Killed
        save(self, step, state, meta)

    monkeypatch.setattr(Checkpoints, "save", save_twice)
    with pytest.raises(Killed):
        fit(kit, range(9), checkpoint_dir=directory)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert list(directory.glob("joining-*/10"))
    grown, log = fit(kit, range(9), checkpoint_dir=directory)
    check_members(kit, (grown, log), whole, range(9))
    assert not list(directory.glob("joining-*"))


@pytest.mark.slow
def test_members_of_other_runs_are_taken_over(kit, tmp_path, whole):
    """An ensemble that is trained in parts, on three machines say."""
    for name, ids, steps in (("a", range(3), 20), ("b", [3, 4], 20), ("c", [5], 10)):
        fit(kit, ids, steps=steps, checkpoint_dir=tmp_path / name)
    together = fit(
        kit,
        range(6),
        checkpoint_dir=tmp_path / "a",
        members_from=[tmp_path / "b", tmp_path / "c"],
    )
    check_members(kit, together, whole, range(6))
    assert together[1].resumed_step == 20
    with pytest.raises(ValueError, match="nowhere of members_from holds no checkpoint"):
        fit(kit, [0], checkpoint_dir=tmp_path / "d", members_from=["nowhere"])
    with pytest.raises(ValueError, match="b holds a run with seed=0.*has seed=1"):
        fit(
            kit,
            [3],
            checkpoint_dir=tmp_path / "d",
            members_from=[tmp_path / "b"],
            seed=1,
        )
    with pytest.raises(ValueError, match="members_from needs a checkpoint_dir"):
        fit(kit, [0], members_from=[tmp_path / "b"])


@pytest.mark.slow
def test_a_stream_is_read_again_for_those_that_catch_up(kit, tmp_path):
    def stream():
        return ensjax.data.stream(kit.data(), batch_size=8, seed=3)

    def run(ids, **options):
        ensemble = kit.ensemble("mlp", member_ids=ids)
        return kit.fit(ensemble, stream(), **OPTIONS | options)

    expected, _ = run(range(5))
    run(range(3), steps=10, checkpoint_dir=tmp_path / "run")
    grown, _ = run(range(5), checkpoint_dir=tmp_path / "run")
    kit.check_equal(grown, expected)


@pytest.mark.slow
def test_members_of_weighted_sampling_keep_their_weights(kit, tmp_path):
    weights = np.random.default_rng(0).uniform(size=(9, 24))
    options = dict(sampling="weighted")
    expected = fit(kit, range(9), weights=weights, **options)
    directory = tmp_path / "run"
    fit(kit, range(5), weights=weights[:5], checkpoint_dir=directory, **options)
    grown = fit(kit, range(9), weights=weights, checkpoint_dir=directory, **options)
    check_members(kit, grown, expected, range(9))
    with pytest.raises(ValueError, match="weights=.* for member 0"):
        fit(kit, [0], weights=weights[1:2], checkpoint_dir=directory, **options)


@pytest.mark.slow
def test_a_group_grows_in_one_of_its_stacks(kit, tmp_path):
    def run(mlps, others, **options):
        group = ensjax.Group(
            (
                kit.ensemble("mlp", member_ids=mlps),
                kit.ensemble("mlp-batch-norm", member_ids=others),
            )
        )
        return kit.fit(group, kit.data(), **OPTIONS | options)

    expected, log = run([0, 1], [2, 3, 4])
    run([0, 1], [2], steps=10, checkpoint_dir=tmp_path / "run")
    grown, grown_log = run([0, 1], [2, 3, 4], checkpoint_dir=tmp_path / "run")
    for ours, theirs in zip(grown.ensembles, expected.ensembles, strict=True):
        kit.check_equal(ours, theirs)
    np.testing.assert_array_equal(grown_log.metrics["loss"], log.metrics["loss"])
    # One whole stack that is new.
    directory = tmp_path / "one"
    kit.fit(
        kit.ensemble("mlp", member_ids=[0, 1]),
        kit.data(),
        **OPTIONS | dict(steps=10, checkpoint_dir=directory),
    )
    with pytest.raises(ValueError, match="num_stacks=1"):
        run([0, 1], [2, 3], checkpoint_dir=directory)


@pytest.mark.slow
@pytest.mark.parametrize("whole_steps", [1, 0])
def test_damage_among_members_that_catch_up_is_passed_over(
    kit, tmp_path, whole, monkeypatch, whole_steps
):
    directory = tmp_path / "run"
    fit(kit, range(5), checkpoint_dir=directory)

    class Killed(Exception):
        pass

    save, count = Checkpoints.save, 0

    def save_three(self, step, state, meta):
        nonlocal count
        count += 1
        if count == 4:
            self.wait()
            raise Killed
        save(self, step, state, meta)

    monkeypatch.setattr(Checkpoints, "save", save_three)
    with pytest.raises(Killed):
        fit(kit, range(9), checkpoint_dir=directory)
    monkeypatch.setattr(Checkpoints, "save", save)
    (joining,) = directory.glob("joining-*")
    for step in [15] if whole_steps else [10, 15]:
        (joining / str(step) / "meta" / "metadata").write_text('{"meta": ')
    grown = fit(kit, range(9), checkpoint_dir=directory)
    check_members(kit, grown, whole, range(9))


@pytest.mark.slow
def test_damage_of_a_generation_falls_back_to_an_older_one(
    kit, tmp_path, whole, capsys
):
    directory = tmp_path / "run"
    fit(kit, range(5), steps=10, checkpoint_dir=directory)
    fit(kit, range(9), checkpoint_dir=directory)
    for meta in directory.glob("generation-1/*/meta/metadata"):
        meta.write_text('{"meta": ')
    options = dict(checkpoint_dir=directory, progress=True)
    check_members(kit, fit(kit, range(9), **options), whole, range(9))
    shown = capsys.readouterr().out
    assert "no checkpoint in" in shown and "4 members catch up from step 0" in shown
    check_members(kit, fit(kit, [0, 1], **options), whole, [0, 1])


@pytest.mark.slow
def test_evaluations_of_members_that_stopped_on_their_way_are_kept(kit, tmp_path):
    x, y = kit.data()
    rates = np.array([1e-4, 1e-4, 3.0, 3.0])
    options = dict(evaluation=(x, y), steps=60, sampling="independent")
    options |= dict(early_stopping=ensjax.EarlyStopping(patience=1))
    _, log = fit(kit, range(4), hyper=rates, **options)
    assert (log.stopped_steps[2:] >= 0).all()
    options["checkpoint_dir"] = tmp_path
    fit(kit, range(2), hyper=rates[:2], **options)
    _, grown = fit(kit, range(4), hyper=rates, **options)
    for name, values in log.evaluations.items():
        np.testing.assert_array_equal(grown.evaluations[name], values)
    with pytest.raises(ValueError, match="evaluated every 5 steps.*every 10: new"):
        more = np.append(rates, 1e-4)
        fit(kit, range(5), hyper=more, evaluate_every_steps=10, **options)


@pytest.mark.slow
def test_a_metric_may_be_added_and_a_rate_may_be_no_number(kit, tmp_path):
    def loss(model, batch, key):
        value, metrics = ensjax.losses.cross_entropy(model, batch, key)
        return value, metrics | extra

    extra = {}
    rates = np.array([1e-3, np.nan, 1e-3])
    options = dict(hyper=rates, loss=loss, checkpoint_dir=tmp_path)
    fit(kit, range(3), steps=10, **options)
    jax.clear_caches()
    extra = {"one": 1.0}

    def again(model, batch, key):
        return loss(model, batch, key)

    again.__qualname__ = loss.__qualname__  # code that was edited in between
    _, log = fit(kit, range(3), **options | {"loss": again})
    assert log.resumed_step == 10
    assert np.isnan(log.metrics["one"][:2]).all()
    assert log.metrics["one"][-1].tolist()[::2] == [1.0, 1.0]


@pytest.mark.slow
def test_members_of_a_joint_objective_stay_together(kit, tmp_path):
    options = dict(
        loss=ensjax.Joint(ensemble_nll), sampling="shared", checkpoint_dir=tmp_path
    )
    ensemble = kit.ensemble("mlp", 5)
    kit.fit(ensemble, kit.data(), **OPTIONS | options)
    for ids in (range(6), range(4)):
        other = kit.ensemble("mlp", member_ids=ids)
        with pytest.raises(ValueError, match="depends on all others"):
            kit.fit(other, kit.data(), **OPTIONS | options)
    _, log = kit.fit(ensemble, kit.data(), **OPTIONS | options)
    assert log.resumed_step == 20


@pytest.mark.slow
def test_members_that_ended_leave_the_program_and_come_back_as_they_were(
    kit, tmp_path, capsys, compilations
):
    """Compaction changes no number: weights, best steps, history."""
    x, y = kit.data()
    rates = np.array([3.0, 1.0, 2.0, 4.0, 1e-4, 1e-4, 3.0, 1.0, 2.0])
    options = dict(
        hyper=rates,
        sampling="independent",
        evaluation=(x, y),
        early_stopping=ensjax.EarlyStopping(patience=1),
        steps=80,
    )
    expected, log = fit(kit, range(9), **options)
    assert (log.stopped_steps >= 0).sum() >= 6 and (log.stopped_steps == -1).any()
    options |= dict(checkpoint_dir=tmp_path / "run", progress=True)
    capsys.readouterr()
    compacted, compacted_log = fit(kit, range(9), **options)
    shown = capsys.readouterr().out
    assert "members still change; the others leave the program" in shown
    kit.check_equal(compacted, expected)
    for name in ("stopped_steps", "best_steps", "frozen_steps"):
        ours, theirs = getattr(compacted_log, name), getattr(log, name)
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in (
        (compacted_log.metrics, log.metrics),
        (compacted_log.evaluations, log.evaluations),
    ):
        np.testing.assert_array_equal(ours["loss"], theirs["loss"])
    # Fewer rows were computed, and it is said.
    assert compacted_log.times.row_steps < log.times.row_steps
    assert compacted_log.times.live_fraction > log.times.live_fraction
    assert 0 < compacted_log.times.goodput < 1 and compacted_log.times.chip_hours > 0
    # A checkpoint holds everybody, and a restart compacts again.
    again, log_again = fit(kit, range(9), **options)
    kit.check_equal(again, expected)
    assert log_again.resumed_step == 80
    longer, _ = fit(kit, range(9), **options | dict(steps=100))
    del options["checkpoint_dir"]
    unbroken, _ = fit(kit, range(9), **options | dict(steps=100))
    kit.check_equal(longer, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("shard_state", [False, True])
def test_growth_and_compaction_on_a_mesh(kit, tmp_path, shard_state):
    def make_model(rngs):
        return ensjax.nn.MLP(in_features=6, hidden=(64, 16), num_outputs=3, rngs=rngs)

    x, y = kit.data()
    # A member of rate 0 never improves, and stops; larger ones would amplify rounding.
    rates = np.where(np.arange(13) % 3 > 0, 0.0, 1e-4)

    def run(ids, mesh, **others):
        ensemble = ensjax.Ensemble.init(
            make_model, member_ids=ids, mesh=kit.mesh(*mesh)
        )
        options = dict(
            hyper=rates[ids],
            steps=60,
            steps_per_call=5,
            log_every_steps=5,
            evaluation=(x, y),
            early_stopping=ensjax.EarlyStopping(patience=1),
        )
        return kit.fit(ensemble, (x, y), **options | others)

    expected, log = run(np.arange(13), (1, 1))
    assert (log.stopped_steps >= 0).sum() >= 6
    options = dict(checkpoint_dir=tmp_path, shard_state=shard_state)
    run(np.arange(6), (2, 2), steps=30, **options)
    grown, grown_log = run(np.arange(13), (4, 2), **options)
    kit.check_close(grown, expected)
    np.testing.assert_array_equal(grown_log.stopped_steps, log.stopped_steps)
    for leaf in jax.tree.leaves(grown.params):
        assert leaf.shape[0] == 13
