"""The experiment of recurrent members: clips, jobs, error rates, and a run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ensjax import scores
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.provenance import LeakageError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "recurrent_stacking.py")
experiment = load_module(ROOT / "experiments" / "recurrent_stacking.py", "experiment")
clips_of, measures = experiment.data, experiment.measures


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


@pytest.fixture(scope="module")
def clips():
    return clips_of.load_clips(config_of("smoke"))


def test_an_attack_keeps_its_picture_and_what_lives_bends():
    image = np.zeros((2, 8, 8))
    image[:, 3:5, 3:5] = 1.0
    rng = np.random.default_rng(0)
    frames = clips_of.animate(rng, image, np.array([False, True]), 12, walk_sd=0.1)
    np.testing.assert_allclose(frames[:, 0], image, atol=1e-12)
    # Carried about inside the picture nothing of the ink is lost.
    attack = frames[0].sum((1, 2))
    inside = [f[1:-1, 1:-1].sum() == pytest.approx(f.sum()) for f in frames[0]]
    np.testing.assert_allclose(attack[inside], 4.0, atol=1e-9)
    assert np.abs(frames[1].sum((1, 2)) - 4).max() > 0.2


def test_both_motions_are_of_one_size():
    # The displacement of pixels is read off pictures that are their own coordinates.
    u = np.broadcast_to(np.linspace(1, 2, 8), (4000, 8, 8))
    rng = np.random.default_rng(0)
    live = np.arange(4000) % 2 == 1
    moved = clips_of.animate(rng, u, live, 2, walk_sd=0.02)[:, 1] - u
    centre = moved[:, 1:-1, 1:-1]  # not over the border
    sizes = [np.sqrt((centre[live == kind] ** 2).mean()) for kind in (False, True)]
    assert sizes[0] == pytest.approx(0.01, rel=0.05)  # 0.02 half-widths of slope 1/2
    # Away from the border a bend is smaller; over all pixels the two are equal.
    grid = np.linspace(-1, 1, 8)
    inner = np.sqrt((grid[1:-1] ** 2).mean() / (grid**2).mean())
    assert sizes[1] == pytest.approx(0.01 * inner, rel=0.05)


def test_parts_share_no_source_image_and_domains_none():
    config = config_of("smoke")
    images = np.arange(200.0)[:, None, None] + np.ones((200, 8, 8))
    with config.unlocked():
        config.data.noise_sd, config.data.walk_sd = (0.0,) * 4, 0.0
        config.data.contrast = (1.0,) * 4
    found = clips_of.simulate(config, images)
    for seed in range(2):
        source = found.x[seed][:, 0, 0]
        groups = [
            set(source[(found.domain == d) & (found.part == p)])
            for d in range(4)
            for p in range(3)
        ]
        assert sum(map(len, groups)) == len(set.union(*groups))
    assert not np.array_equal(found.x[0], found.x[1])
    for part in range(3):
        assert found.is_live[found.part == part].mean() == 0.5


def test_members_draw_their_own_seed_and_skip_and_not_the_domain_left_out(clips):
    config = config_of("smoke")
    jobs = experiment.plan_jobs(config, 4, 12)
    assert {frames: len(own) for frames, own in jobs.items()} == {4: 10, 12: 2}
    (x, labels), weights = experiment.training_data(config, clips, 4, jobs[4])
    assert x.shape[0] == len(labels) == weights.shape[1]
    rows = np.flatnonzero(clips.part == clips_of.TRAIN)
    for job, weight in zip(jobs[4], weights):
        drawn = np.flatnonzero(weight)
        kept = rows[clips.domain[rows] != job.left_out]
        own = experiment.prepare(config, clips.inputs(job.seed, job.skip, 4)[kept])
        np.testing.assert_array_equal(x[drawn], own)
        np.testing.assert_array_equal(labels[drawn], clips.is_live[kept])
        for part in (clips_of.TRAIN, clips_of.DEVELOPMENT):
            others = clips.rows(part, job.left_out)
            assert not set(others) & set(clips.rows(clips_of.TEST, job.left_out))
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-6)


def test_a_seed_keeps_its_ids_when_there_are_more():
    ids = []
    for seeds in ("1", "3"):
        config = config_of("smoke", ("num_seeds", seeds))
        jobs = experiment.plan_jobs(config, 4, 12)[4]
        found = experiment.job_ids(config, jobs)
        every = [i + kind for i in found for kind in range(len(config.architectures))]
        assert len(set(every)) == len(every)
        ids.append(dict(zip(jobs, found, strict=True)))
    assert ids[0].items() <= ids[1].items() and len(ids[1]) == 3 * len(ids[0])


def test_a_meta_model_is_refused_clips_that_its_members_drew_or_that_are_tested():
    rows, is_row = np.array([[4, 5, 4]]), np.array([[True, True, False]])
    drawn = np.zeros((1, 12), bool)
    drawn[0, 8:] = True
    outputs = dict(dev_rows=rows, dev_is_row=is_row, test_is_row=is_row, drawn=drawn)
    measures.refuse_leaks(outputs | {"test_rows": np.array([[0, 1, 5]])})
    with pytest.raises(LeakageError, match="row 5 of 'clips', which are kept"):
        measures.refuse_leaks(outputs | {"test_rows": np.array([[0, 5, 1]])})
    drawn[0, 4] = True
    with pytest.raises(LeakageError, match="row 4 of 'clips': member 0 was trained"):
        measures.refuse_leaks(outputs | {"test_rows": np.array([[0, 1, 2]])})


def test_error_rates_equal_a_loop_over_thresholds_to_1e_12():
    rng = np.random.default_rng(0)
    for decimals in (1, 9):  # with ties, and without
        sides = []
        for count in (60, 81):
            live = np.arange(count) % 2 == 1
            score = np.round(rng.normal(size=count) + live, decimals)
            # A padded row, which counts nowhere.
            padded = np.append(score, 9.0).astype(np.float32)[None]
            is_row = np.append(np.ones(count, bool), False)[None]
            sides.append((padded, np.append(live, False)[None], is_row))
        dev, test = sides
        threshold = np.asarray(
            scores.fit_threshold(dev[0], dev[1], sample_weight=dev[2] * 1.0)
        )
        found = [measures.half_errors(*side, threshold)[0] for side in sides]
        pairs = [(x[0][k[0]], y[0][k[0]]) for x, y, k in sides]
        expected = measures.loop_errors(*pairs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert 0.2 < found[1] < 0.5


def test_the_skip_is_chosen_on_development_clips_and_the_member_by_its_interval():
    config = config_of("smoke", ("skips", "(1, 2, 3)"), ("num_seeds", "3"))
    systems, seeds = measures.systems(config), range(3)
    jobs, by_frames = experiment.plan_jobs(config, 4, 12), {}
    for frames, own in jobs.items():
        hter = {name: np.full(len(own), 0.3) for name in systems}
        eer = {name: np.full(len(own), 0.5) for name in systems}
        by_frames[frames] = measures.Measured(hter, eer, {}, {}, 0.0)
        for place, job in enumerate(own):
            if frames == 12 // job.skip and job.left_out == 3:
                # By development clips seed 1 takes skip 2; by test clips all would.
                better = {1: 2}.get(job.seed, 3)
                eer["stack, nested"][place] = 0.1 if job.skip == better else 0.2
                hter["stack"][place] = {1: 0.3, 2: 0.1, 3: 0.4}[job.skip]
            if frames == 4 and job.skip == 1:
                hter["bilstm"][place] = 0.4 + 0.3 * job.seed  # wide, of lower mean
                hter["gru"][place] = 0.35
    results = {"jobs": jobs, "by_frames": by_frames, "main_frames": 4}
    results |= {"num_frames": 12, "num_domains": 4}
    verdicts = experiment.verdicts
    assert verdicts.chosen_skips(config, results).tolist() == [3, 2, 3]
    np.testing.assert_allclose(verdicts.skip_losses(config, results), [0.1, -0.2, 0.1])
    worst, difference = verdicts._stack_minus_worst(config, results)
    assert worst == "bilstm" and len(difference) == len(seeds)


def test_features_of_videos_are_read_and_checked(tmp_path):
    path = tmp_path / "features.npz"
    rows = dict(
        x=np.random.default_rng(0).normal(size=(24, 5, 7)),
        lengths=np.arange(24) % 5 + 1,
        is_live=np.arange(24) % 2,
        domain=np.arange(24) // 6,
        part=np.arange(24) % 3,
    )
    np.savez(path, **rows)
    config = config_of("paper", ("data.path", str(path)))
    experiment.validate(config)
    found = clips_of.load_clips(config)
    assert found.x.shape == (1, 24, 5, 7) and found.lengths.tolist()[:3] == [1, 2, 3]
    jobs = experiment.plan_jobs(config, 4, 5)
    assert list(jobs) == [5] and len(jobs[5]) == 4 * config.num_seeds
    (x, lengths), chosen, is_row = experiment.own_inputs(
        config, found, 5, jobs[5], clips_of.TEST
    )
    assert x.shape[:2] == lengths.shape == chosen.shape == is_row.shape
    np.savez(path, **(rows | {"lengths": np.zeros(3)}))
    with pytest.raises(ConfigError, match=r"the others \[video\]"):
        experiment.validate(config)
    with pytest.raises(ConfigError, match="licensed face videos .* it is empty"):
        experiment.validate(config_of("paper"))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("data.name", "videos", "config.data.name is one of features, simulated"),
        ("hidden", "(3,)", "config.hidden holds one value for each of 2 members"),
        ("cells", "('rnn', 'gru')", "member bilstm: cell is one of gru, lstm"),
        ("frames", "9", "num_frames of at least 25; got 12"),
        ("skips", "(2, 3)", "config.skips holds 1 and other skips"),
        ("data.contrast", "(1.0,)", "one value for each of at least two domains"),
        ("meta_l2", "-1.0", "config.meta_l2 must be a number at least 0"),
        ("save_every_steps", "7", "config: "),
        ("block", "some", "config.block is"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of("smoke", (field, value)))


@pytest.mark.parametrize("preset", ["smoke", "small", "claims"])
def test_presets_are_valid(preset):
    experiment.validate(config_of(preset))


def test_a_job_has_a_stack_of_each_architecture():
    config = config_of("smoke")
    job = experiment.training_job(config)
    assert [len(stack.member_ids) for stack in job.stacks] == [
        len(job.member_ids) // len(config.architectures)
    ] * len(config.architectures)
    weights = job.options["weights"]
    assert weights.shape == (len(job.member_ids), len(job.data[1]))
    shapes = job.abstract_ensemble(job.mesh(jax.devices()[:1]))
    sizes = [e.num_members for e in shapes.ensembles]
    assert sizes == [len(stack.member_ids) for stack in job.stacks]


class TestClaims:
    """Numbers of five seeds that are made up: the intervals, and who is judged."""

    def results_of(self, config):
        jobs = [
            experiment.Job(seed, domain, skip)
            for seed in range(config.num_seeds)
            for domain, skip in ((0, 1), (1, 1), (1, 3))
        ]
        rng = np.random.default_rng(1)
        hter = {
            name: mean + 0.005 * rng.normal(size=len(jobs))
            for name, mean in zip(measures.systems(config), (0.13, 0.14, *[0.12] * 4))
        }
        measured = measures.Measured(hter, hter, hter, hter, 0.0)
        return {
            "jobs": {4: jobs, 12: jobs},
            "by_frames": {4: measured, 12: measured},
            "main_frames": 4,
            "num_domains": 2,
            "num_frames": 12,
        }

    def claims_of(self, *overrides):
        config = config_of("smoke", ("num_seeds", "5"), *overrides)
        config.data.noise_sd = config.data.noise_sd[:2]
        results = self.results_of(config)
        return results, experiment.verdicts.make_claims(config, results)

    def test_seeds_share_digits_and_their_intervals_say_so(self):
        _, (skips, stack, _) = self.claims_of()
        # 30 training and 30 development clips of a domain, 30 test clips: one domain is
        # tested on while the other is fitted on, or both in turns.
        assert skips["split_sizes"] == [60, 30]
        assert stack["split_sizes"] == [120, 60]
        for entry in (skips, stack):
            assert "same digit images, corrected" in entry["name"]

    def test_the_stack_is_judged_by_its_corrected_interval(self):
        results, (_, found, _) = self.claims_of()
        verdicts = experiment.verdicts
        differences = [
            verdicts.over_domains(results, "hter", measures.STACK)
            - verdicts.over_domains(results, "hter", member)
            for member in ("bilstm", "gru")
        ]
        low, high = zip(
            *(scores.corrected_t_interval(d, num_train=120, num_test=60)[1:]
              for d in differences)
        )  # fmt: skip
        worst = int(np.argmax(high))
        assert found["interval"] == pytest.approx([low[worst], high[worst]], abs=1e-7)
        plain = scores.t_interval(differences[worst])
        assert high[worst] > float(plain.high) + 1e-4

    def test_videos_of_a_file_are_the_same_for_every_seed(self):
        _, (_, stack, _) = self.claims_of(("data.name", "features"))
        assert "split_sizes" not in stack and "the same videos" in stack["name"]


@pytest.mark.slow
def test_the_smoke_run_reports_claims_and_the_same_after_a_resume(tmp_path, capsys):
    workdir = tmp_path / "run"
    options = RunOptions(f"{CONFIG}:smoke", str(workdir))
    assert run_and_report(options) == 0
    first = json.loads((workdir / "results.json").read_text())
    assert [c["name"][:28] for c in first["claims"]] == [
        f"face-anti-spoofing-ensemble.{letter}"[:28] for letter in "abc"
    ]
    passed = {check["name"]: check["pass"] for check in first["checks"]}
    assert passed["change of the thresholds when test labels are permuted"]
    assert passed["members not finite"]
    assert sum("float64 loop" in name and ok for name, ok in passed.items()) == 1
    assert len(list((workdir / "figures").glob("*.png"))) == 4
    # A run that was killed after its first stage computes the rest alike.
    (workdir / "results.json").unlink()
    (workdir / "stages" / "frames_12.npz").unlink()
    assert run_and_report(options) == 0
    assert json.loads((workdir / "results.json").read_text()) == first
    assert "read back" in capsys.readouterr().out
