"""The experiment of report checks: its reports, its votes, its runs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from ensjax import cli
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "report_check.py")
experiment = load_module(ROOT / "experiments" / "report_check.py", "experiment")
cases, votes, verdicts = experiment.cases, experiment.votes, experiment.verdicts


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


def test_a_report_says_what_was_written_and_damage_is_a_missing_side():
    rng = np.random.default_rng(0)
    for _ in range(20):
        stated = rng.integers(4, size=12) * (rng.uniform(size=12) < 0.3)
        text = cases.write_report(stated, rng, damaged_share=0.0)
        np.testing.assert_array_equal(cases.read_report(text, 12), stated)
        damaged = cases.write_report(stated, rng, damaged_share=1.0)
        read = cases.read_report(damaged, 12)
        np.testing.assert_array_equal(read, np.where(stated > 0, cases.MISSING, 0))
    assert cases.read_report("no finding.", 12).tolist() == [0] * 12


def test_an_error_changes_what_its_kind_says():
    rng, kinds = np.random.default_rng(1), []
    for _ in range(300):
        truth = rng.integers(4, size=6) * (rng.uniform(size=6) < 0.4)
        stated, kind = cases.alter(truth, rng)
        kinds.append(kind)
        more = np.count_nonzero(stated) - np.count_nonzero(truth)
        assert more == {1: 1, 2: -1, 3: 0}[kind]
        changed = np.count_nonzero(stated != truth)
        assert changed == 1 if kind < 3 else changed in (1, 2)
    assert set(kinds) == {1, 2, 3}
    full = np.ones(6, int)  # nothing is absent
    assert {cases.alter(full, rng)[1] for _ in range(30)} == {2, 3}
    assert {cases.alter(0 * full, rng)[1] for _ in range(30)} == {1}


def test_what_members_see_is_the_image_and_the_stated_sides():
    read = np.array([[0, 1, 3, cases.MISSING]])
    seen = cases.encode(np.array([[7.0, 8.0]], np.float32), read)
    want = [7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(seen[0], want, rtol=1e-6)


def test_ties_go_to_the_best_member_and_nothing_else_changes():
    says = np.array([[1, 1, 0, -1], [0, 1, 0, 0], [-1, 0, 1, 1]])[None, None]
    best = np.array([[0]])
    assert votes.vote(says, 2, best)[0, 0].tolist() == [1, 1, 0, 0]
    # Without an answer of the best member, a tie goes to the lowest class.
    assert votes.vote(says, 2, np.array([[1]]))[0, 0].tolist() == [0, 1, 0, 0]


def test_votes_are_the_counts_of_the_answers_that_were_read():
    rng = np.random.default_rng(6)
    says = rng.integers(-1, 3, size=(2, 1, 4, 300))
    best = np.array([[1], [3]])
    counted = votes.count_votes(says, 3, best)
    np.testing.assert_array_equal(votes.vote(says, 3, best), counted)
    for seed, row in np.ndindex(2, 300):
        read = says[seed, 0, :, row]
        counts = np.bincount(read[read >= 0], minlength=3)
        tied = np.flatnonzero(counts == counts.max())
        own = read[best[seed, 0]]
        want = -1 if not counts.any() else own if own in tied else tied[0]
        assert counted[seed, 0, row] == want
    # Masking one member's answers to some rows leaves the votes on the others alone.
    masked = says.copy()
    masked[0, 0, 2, :50] = -1
    again = votes.vote(masked, 3, best)
    np.testing.assert_array_equal(again[0, :, 50:], counted[0, :, 50:])
    np.testing.assert_array_equal(again[1], counted[1])


def test_answers_that_cannot_be_read_are_left_out():
    rng = np.random.default_rng(2)
    choices = rng.integers(2, size=(1, 1, 3, 400))
    read = votes.ask(
        choices,
        votes.SIMPLE_ANSWERS,
        votes.SIMPLE_PATTERNS,
        unread_share=0.1,
        rng=rng,
    )
    unread = read == -1
    assert 0.05 < unread.mean() < 0.15
    np.testing.assert_array_equal(read[~unread], choices[~unread])
    kinds = np.arange(4)[None]
    same = votes.ask(
        kinds, votes.KIND_ANSWERS, votes.KIND_PATTERNS, unread_share=0.0, rng=rng
    )
    np.testing.assert_array_equal(same, kinds)
    labels = choices[0, 0, 0]
    assert votes.accuracy(read, labels)[0, 0, 0] == 1.0  # of those that were read


def test_thresholds_are_fitted_on_labelled_rows_and_refuse_the_others():
    rng = np.random.default_rng(3)
    is_error = rng.integers(2, size=(2, 1, 60))
    odds = rng.normal(size=(2, 1, 3, 60)) + 2 * is_error[:, :, None] - 3
    logits = np.stack([0 * odds, odds], axis=-1).astype(np.float32)
    labelled = np.arange(60) < 20
    seen = np.zeros((2, 1, 60), bool)
    fitted = votes.fit_thresholds(logits, is_error, labelled, seen)
    other = is_error.copy()
    other[..., ~labelled] = 0  # test labels say nothing
    again = votes.fit_thresholds(logits, other, labelled, seen)
    np.testing.assert_array_equal(fitted, again)
    before = (logits.argmax(-1) == is_error[:, :, None])[..., ~labelled].mean()
    assert (fitted == is_error[:, :, None])[..., ~labelled].mean() > before
    # A labelled report that is among those of the training is found by what it says.
    held_out = rng.normal(size=(2, 1, 60, 4)).astype(np.float32)
    general = rng.normal(size=(2, 90, 4)).astype(np.float32)
    assert not cases.find_shared(held_out, general).any()
    general[1, 50] = held_out[1, 0, 7]
    shared = cases.find_shared(held_out, general)
    assert np.argwhere(shared).tolist() == [[1, 0, 7]]
    with pytest.raises(LeakageError, match="thresholds cannot be fitted on row 7 of"):
        votes.fit_thresholds(logits, is_error, labelled, shared)
    with pytest.raises(LeakageError, match="kept for the test"):
        votes.combine.fit_vote_thresholds(
            votes.Predictions.from_logits(
                logits[0, 0],
                provenance=votes.Provenance.of("x", np.arange(60), test_rows=[59]),
            ),
            is_error[0, 0],
        )


def test_a_reader_of_set_quality_has_it_and_keeps_the_other_answers():
    rng = np.random.default_rng(4)
    right = rng.uniform(size=200) < 0.7
    for quality in (0.6, 0.9):
        changed = votes.set_quality(right, quality, rng)
        assert changed.mean() == quality
        better = quality > right.mean()
        assert (changed >= right).all() if better else (changed <= right).all()


def test_readers_are_compared_with_the_vote_and_each_member_on_what_was_read():
    rng = np.random.default_rng(7)
    is_error = rng.integers(2, size=(1, 1, 400))
    members = np.where(rng.uniform(size=(1, 1, 3, 400)) < 0.85, is_error, 1 - is_error)
    members[:, :, 2, :100] = -1
    right = rng.uniform(size=(1, 1, 400)) < 0.9
    reader = rng.uniform(size=(1, 1, 400)) < 0.75
    config = config_of("smoke", ("reader_qualities", "(0.6, 0.99)"))
    found = votes.compare_qualities(
        config, right, votes.Votes(members, None, 0), is_error, reader, rng
    )
    np.testing.assert_allclose(found["reader"][:, 0, 0], [0.6, 0.99], atol=0.002)
    np.testing.assert_allclose(found["vote"], right.mean() - found["reader"])
    assert found["member_p"].shape == (2, 1, 1, 3)
    for who in ("vote_p", "member_p"):
        assert (found[who][0] > 0).all() and (found[who][0] < 0.001).all()
        assert (found[who][1] > -0.001).all() and (found[who][1] < 0).all()
    better, worse = verdicts.tests_against_reader({"qualities": found}, "member", 1)
    assert better.sum() == 0 and worse.sum() == 3


def test_two_towers_have_gradients_for_a_report_without_findings():
    kinds = experiment.kinds
    config = config_of("smoke", ("hidden", "(8,)"))
    assert list(kinds.make_kinds(config_of("claims"))) == list(kinds.KINDS)
    model = kinds.make_kinds(config)["two towers"](rngs=nnx.Rngs(0))
    x = np.zeros((3, 24 + 36), np.float32)
    x[:, :24] = np.random.default_rng(8).normal(size=(3, 24))
    x[1:, 30] = 1.0

    @nnx.jit
    def look(model):
        slopes = nnx.grad(lambda m: m(x)[:, 0].sum())(model)
        return model.image(x[:, :24]), model.report(x[:, 24:]), model(x), slopes

    image, report, logits, slopes = jax.tree.map(np.asarray, look(model))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert (report[0] == 0).all() and logits[0, 0] == 0  # nothing to compare with
    norms = np.linalg.norm(image[1:], axis=1) * np.linalg.norm(report[1:], axis=1)
    cosine = (image[1:] * report[1:]).sum(axis=1) / norms
    np.testing.assert_allclose(logits[1:, 0], 10 * cosine, rtol=1e-3)
    assert (logits[:, 1] == 0).all()


def test_what_is_planned_are_the_tuned_members_and_no_answers(capsys):
    overrides = [("reports.num_train", "60"), ("reports.num_general", "60"),
                 ("reports.num_test", "50"), ("batch_size", "32")]  # fmt: skip
    job = experiment.training_job(config_of("smoke", *overrides))
    assert len(set(job.member_ids)) == len(job.member_ids) == 2 * 2 * 5
    assert job.data[0].shape == (2 * 2 * 60, 24 + 36)
    assert (job.options["weights"].sum(axis=1) == 60).all()
    assert job.stage == "tuned" and "untuned" in job.why_no_replay
    assert cli.main(["plan", f"{CONFIG}:paper"]) == 2
    error = capsys.readouterr().err
    assert "trains nothing" in error and error.count("\n") == 1


def answers_file(path, broken=False):
    lines = ["error,reader,model a,model b,model c"]
    for i in range(30):
        error = "insert" if i % 2 else "none"
        reader = "no" if i % 5 == 0 else ("yes" if i % 2 else "no")
        says = ["Yes, an error." if i % 2 else "No."] * 2 + ["I am not sure."]
        lines.append(",".join([error, reader, *(f'"{s}"' for s in says)]))
    lines += ["unknown,yes,no,no,no"] if broken else []
    path.write_text("\n".join(lines))
    return ("answers.path", str(path))


def test_answers_of_real_models_are_voted_on(tmp_path):
    overrides = [answers_file(tmp_path / "answers.csv")]
    options = RunOptions(f"{CONFIG}:paper", str(tmp_path / "run"), overrides)
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    scalars = results["scalars"]
    assert scalars["vote_accuracy"] == 1.0 and scalars["reader_wrong"] == 3
    assert scalars["vote_where_reader_wrong"] == 1.0
    low = 0.025 ** (1 / 3)  # Clopper and Pearson, 3 of 3
    assert scalars["vote_where_reader_wrong_low"] == pytest.approx(low)
    assert {c["verdict"] for c in results["claims"]} == {"undecided", "not run"}
    letters = [c["name"].split(":")[0][-1] for c in results["claims"]]
    assert sorted(letters) == list("abccde")


@pytest.mark.parametrize(
    "preset, field, value, message",
    [
        ("smoke", "reports.turn", "(0.1,)", "config.reports.turn"),
        ("smoke", "reports.num_findings", "40", "config.reports.num_findings"),
        ("smoke", "tuned_steps", "70", "config.tuned_steps"),
        ("smoke", "batch_size", "5000", "config.batch_size"),
        ("smoke", "unread_share", "1.0", "config.unread_share"),
        ("smoke", "kinds", "('forest',)", "config.kinds is one of linear"),
        ("smoke", "reader_noise_sd", "0.1", "config.reader_noise_sd"),
        ("paper", "seed", "1", "config.answers.path names a CSV file"),
    ],
)
def test_mistakes_in_a_config_are_named(preset, field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of(preset, (field, value)))


def test_a_word_that_is_no_error_is_named_with_its_line(tmp_path):
    override = answers_file(tmp_path / "answers.csv", broken=True)
    with pytest.raises(ConfigError, match="line 32: error is one of"):
        experiment.validate(config_of("paper", override))


@pytest.mark.slow
def test_smoke_runs_to_the_end_and_resumes_to_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ensjax.experiment.replay.set_devices_of", lambda run: None)
    options = RunOptions(f"{CONFIG}:smoke", str(tmp_path))
    assert run_and_report(options) == 0
    results = (tmp_path / "results.json").read_text()
    letters = {c["name"].split(":")[0][-1] for c in json.loads(results)["claims"]}
    assert letters == set("abcde")
    c = [
        c["name"] for c in json.loads(results)["claims"] if "error-check.c" in c["name"]
    ]
    assert len(c) == 10 and sum("accuracy of the vote" in name for name in c) == 5
    assert len(list((tmp_path / "figures").iterdir())) == 5
    (tmp_path / "results.json").unlink()
    (tmp_path / "stages" / "members.npz").unlink()  # trained, not yet stored
    capsys.readouterr()
    assert run_and_report(options) == 0
    assert (tmp_path / "results.json").read_text() == results
    assert "step 50/100" not in capsys.readouterr().out  # no member trained again
    assert cli.main(["replay", str(tmp_path), "--member", str(2**12)]) == 2
    assert "go on from untuned ones" in capsys.readouterr().err
