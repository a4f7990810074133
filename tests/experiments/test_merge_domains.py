"""Merging four domains: what is drawn, one grid against a loop, scores, small runs."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import ensjax
from ensjax import weight_space as ws
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module, normalise_config
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
experiment = load_module(ROOT / "experiments" / "merge_domains.py", "experiment")
training, methods = experiment.training, experiment.methods
verdicts = experiment.verdicts
scores = verdicts.scores


def config_of(*overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/merge_domains.py:{preset}", overrides)[1]


@pytest.fixture(scope="module")
def rows():
    return training.load_rows(config_of())


def test_a_job_is_the_members_of_the_run(rows):
    config = config_of()
    job = experiment.training_job(config)
    assert job.member_ids == (1, 2, 3, 4, 257, 258, 259, 260)
    assert job.hyper["view"].tolist() == [1, 2, 3, 4] * 2
    assert job.options["steps"] == config.tuning_steps
    assert job.stage == "tune" and "trained before" in job.why_no_replay
    base = training.base_job(config, rows)
    assert base.member_ids == (0, 256) and base.why_no_replay == ""
    # Clean digits, and a few of the domains.
    assert base.data["label"].shape == (997 + 100, 2)


def test_members_are_not_taken_over(tmp_path, capsys):
    others = tmp_path / "others"
    (others / "checkpoints").mkdir(parents=True)
    path = f"{ROOT}/configs/merge_domains.py:smoke"
    settings = normalise_config(config_of())
    (others / "config.json").write_text(json.dumps(settings))
    options = RunOptions(
        path,
        workdir=str(tmp_path / "run"),
        members_from=[str(others)],
    )
    assert run_and_report(options) == 2
    assert "takes no members over" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_domains_do_what_they_are_called():
    image = np.arange(8.0).reshape(1, 2, 4, 1) / 8
    views = {name: np.asarray(view(image)) for name, view in training.VIEWS.items()}
    np.testing.assert_array_equal(views["flip"][0, 0], image[0, 1])
    np.testing.assert_array_equal(views["inversion"], 1 - image)
    assert views["transpose"].shape == (1, 4, 2, 1)
    assert views["transpose"][0, 3, 1, 0] == image[0, 1, 3, 0]
    np.testing.assert_array_equal(views["roll"][0, :, 0], image[0, :, 2])
    square = np.zeros((8, 8, 1))
    square[1, 6] = 1  # rolled by 4 columns
    assert training.VIEWS["roll"](square)[1, 2] == 1


def test_every_seed_splits_the_digits_anew_and_few_rows_are_of_training(rows):
    sizes = {part: y.shape for part, (_, y) in rows.parts.items()}
    assert sizes == {"validation": (2, 400), "test": (2, 400), "train": (2, 997)}
    for seed in range(2):
        flat = [x[seed].reshape(len(x[seed]), -1) for x, _ in rows.parts.values()]
        every = np.concatenate(flat)
        assert len(np.unique(every, axis=0)) == len(every)  # no digit is there twice
    tests = rows.parts["test"][0]
    assert (tests[0] != tests[1]).any()
    images, labels = rows.few
    assert images.shape == (2, 100, 8, 8, 1)
    train, train_labels = rows.parts["train"]
    for number, domain in enumerate(training.DOMAINS):
        own = np.asarray(training.VIEWS[domain](train[1])).reshape(997, -1)
        found = images[1, 25 * number].reshape(-1)
        (place,) = np.flatnonzero(np.abs(own - found).max(axis=1) < 1e-6)
        assert train_labels[1, place] == labels[1, 25 * number]


def test_a_member_sees_its_seed_in_its_domain(rows):
    images, labels = (np.swapaxes(x[:, :5], 0, 1) for x in rows.parts["train"])
    batch = {"image": images, "label": labels}
    for variant, view in ((0, 0), (1, 3)):
        hyper = {"variant": np.int32(variant), "view": np.int32(view)}
        found, own = training.as_member_sees(batch, hyper)
        expected = list(training.VIEWS.values())[view](images[:, variant])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(own, labels[:, variant])
    # Rows for the statistics of member (seed 1, transpose).
    own = training.own_rows(config_of(), rows)
    assert own.shape == (8, 64, 8, 8, 1)
    expected = training.VIEWS["transpose"](rows.parts["train"][0][1, 3])
    np.testing.assert_allclose(own[4 + 2, 3], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def untrained():
    """Bases of two seeds and four members each, near them."""
    make = functools.partial(training._make_model, (8,))
    mesh = ensjax.make_mesh(member=2, data=1, devices=jax.devices()[:2])
    base = ensjax.Ensemble.init(make, num_members=2, seed=0, mesh=mesh)
    other = ensjax.Ensemble.init(make, member_ids=range(10, 18), seed=0, mesh=mesh)
    near = jax.tree.map(
        lambda x, o: np.repeat(np.asarray(x), 4, axis=0) + 0.5 * np.asarray(o),
        base.params,
        other.params,
    )
    states = {**other.state, "params": near}
    return base, type(other)(states, other.member_ids, other.graph, other.mesh)


@pytest.mark.slow
def test_a_grid_is_every_candidate_merged_alone(rows, untrained):
    config = config_of(
        ("grids.dare.drop", "(0.0, 0.9)"), ("grids.task_arithmetic.lam", "(0.25, 2.0)")
    )
    base, members = untrained
    scored = tuple(
        (
            np.stack([training.views_of(x[:50]) for x in rows.parts[part][0]]),
            rows.parts[part][1][:, :50],
        )
        for part in training.PARTS
    )
    found = methods.measure(config, "task_arithmetic", base, members, (), scored)
    assert found.shape == (2, 2, 1, 2, 5)
    for seed, (place, lam) in ((0, (1, 2.0)), (1, (0, 0.25))):
        own = jax.tree.map(lambda x: x[4 * seed : 4 * seed + 4], members.params)  # noqa: B023
        origin = jax.tree.map(lambda x: x[seed], base.params)  # noqa: B023
        params = ws.task_arithmetic(own, origin, lam=lam)
        rest = jax.tree.map(lambda x: x[seed], base.state["rest"])  # noqa: B023
        model = base.graph.merge({"params": params, "rest": rest}, train=False)
        for part in range(2):
            views, labels = (x[seed] for x in scored[part])
            for view in range(5):
                right = np.asarray(model(views[view])).argmax(axis=-1) == labels
                assert found[seed, place, 0, part, view] == pytest.approx(right.mean())
    dropped = methods.measure(config, "dare", base, members, (), scored)
    assert dropped.shape == (2, 4, 2, 2, 5)
    # Nothing dropped is task arithmetic, whatever is drawn; draws differ else.
    quarter = methods.candidates(config, "dare")
    place = int(np.flatnonzero((quarter["drop"] == 0) & (quarter["lam"] == 0.25))[0])
    same = np.broadcast_to(found[:, :1, :1], dropped[:, [place]].shape)
    np.testing.assert_allclose(dropped[:, [place]], same, atol=1e-6)
    assert (dropped[:, -1, 0] != dropped[:, -1, 1]).any()


def test_candidates_are_all_combinations():
    config = config_of(("grids.ties.density", "(0.1, 0.3)"))
    found = methods.candidates(config, "ties")
    np.testing.assert_allclose(found["density"], [0.1, 0.1, 0.3, 0.3])
    np.testing.assert_allclose(found["lam"], [0.5, 1.0, 0.5, 1.0])
    assert methods.candidates(config, "mean") == {}


def test_sign_conflicts_count_entries_that_pull_to_both_sides():
    taus = {"w": np.array([[[1.0, 2.0, 0.1, 0.0], [-3.0, 4.0, 5.0, 6.0]]])}
    np.testing.assert_allclose(training.sign_conflicts(taus, 1.0), [[1 / 3]])
    # Of the larger half only the second entry is kept by both.
    np.testing.assert_allclose(training.sign_conflicts(taus, 0.5), [[0.0]])


def made_up(config):
    """Results in which every number is another one."""
    rng = np.random.default_rng(0)
    seeds = config.num_seeds
    merged = {}
    for name in config.grids:
        count = max([len(v) for v in methods.candidates(config, name).values()] or [1])
        draws = config.num_draws if methods.METHODS[name].draws else 1
        merged[name] = rng.uniform(size=(seeds, count, draws, 2, 5))
    train = {
        "base": rng.uniform(size=(seeds, 2, 5)),
        "members": rng.uniform(size=(seeds, 4, 2, 5)),
        "cosines": np.broadcast_to(np.eye(4), (seeds, 4, 4)),
        "conflicts": rng.uniform(size=(2, seeds, 3)),
        "leaves": np.array(["a", "b", "c"]),
        "frozen_steps": np.full(10, -1),
    }
    train |= {rule: rng.uniform(size=(seeds, 2, 5)) for rule in training.RULES}
    return {"train": train, "merge": merged}


def test_knobs_are_chosen_on_validation_rows_and_judged_on_test_rows():
    config = config_of()
    done = made_up(config)
    values = done["merge"]["ties"]  # [seed, candidate, draw, part, view]
    values[:, :, 0, 0, 1:] = [[[0.2] * 4, [0.9] * 4]] * 2
    values[:, :, 0, 1, 1:] = [[[0.8] * 4, [0.3] * 4]] * 2
    np.testing.assert_array_equal(scores.chosen(done, "ties"), [1, 1])
    np.testing.assert_allclose(scores.tuned(done, "ties"), [30, 30])
    fixed = scores.at(config, done, "ties", density=0.2, lam=0.5)
    np.testing.assert_allclose(fixed, [80, 80])
    assert scores.at(config, done, "ties", density=0.5, lam=0.5) is None
    assert scores.at(config, done, "sce", density=0.5) is None
    # Along one knob the other is chosen at each value.
    curve = scores.along(config, done, "dare", "drop")
    dare = done["merge"]["dare"][..., 1:].mean(axis=(2, -1))  # [seed, candidate, part]
    for seed in range(2):
        best = 2 + dare[seed, 2:, 0].argmax()  # of p = .9
        assert curve[seed, 1] == pytest.approx(100 * dare[seed, best, 1])


def test_the_best_member_is_chosen_on_validation_rows():
    config = config_of()
    done = made_up(config)
    members = done["train"]["members"]  # [seed, domain, part, view]
    members[:, 2, 0, 1:] = 1.0
    members[:, 2, 1, 1:] = 0.25
    np.testing.assert_allclose(scores.reference(done, "best_single"), 25)
    own = scores.own_domain(done)
    assert own[1, 3] == pytest.approx(100 * members[1, 3, 1, 4])


def test_what_dropping_costs_is_measured_in_the_members_own_domain():
    grid = (("grids.dare_alone.member", "(0, 1, 2, 3)"),)
    config = config_of(*grid, ("grids.dare_alone.drop", "(0.0, 0.9)"), preset="claims")
    done = made_up(config)
    values = done["merge"]["dare_alone"].mean(axis=2)[
        :, :, 1
    ]  # [seed, member x p, view]
    change = [values[:, 2 * m + 1, 1 + m] - values[:, 2 * m, 1 + m] for m in range(4)]
    expected = 100 * np.mean(change, axis=0)
    np.testing.assert_allclose(scores.alone(config, done, 0.9), expected)
    assert scores.alone(config, done, 0.5) is None


def test_checks_hold_for_every_seed_and_can_fail():
    config = config_of()
    done = made_up(config)

    def set_to(name, percent):
        done["merge"][name][..., 1:] = percent / 100

    done["train"]["base"][..., 1:] = 0.6
    done["train"]["members"][...] = 0.97
    for name, percent in (
        ("mean", 66),
        ("task_arithmetic", 66),
        ("fisher", 70),
        ("regmean", 90),
        ("regmean_bias", 92),
    ):
        set_to(name, percent)
    passed = {c["name"]: c["pass"] for c in verdicts.make_checks(config, done)}
    assert [name for name, good in passed.items() if not good] == ["seeds"]
    done["merge"]["fisher"][1, ..., 1:] = 0.665  # half a point in one seed
    failed = {
        c["name"] for c in verdicts.make_checks(config, done) if not c["pass"]
    } - {"seeds"}
    assert failed == {"Fisher minus mean, smallest of all seeds (points)"}


def test_a_claim_is_the_difference_of_tuned_accuracies():
    config = config_of()
    done = made_up(config)
    claims = {c["name"]: c for c in verdicts.make_claims(config, done)}
    found = next(c for name, c in claims.items() if "minus that of Fisher" in name)
    expected = scores.tuned(done, "regmean") - scores.tuned(done, "fisher")
    assert found["measured"] == pytest.approx(expected.mean())
    assert found["split_sizes"] == [1397, 400] and found["verdict"] == "undecided"
    assert not any("SCE" in name for name in claims)  # not in this grid


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([("hidden", "(0,)")], "config.hidden must be numbers at least 1"),
        ([("base_steps", "75")], "must be a multiple"),
        ([("num_test", "1350")], "leave 47 of 1797 digits for training"),
        ([("grids.ties.density", "(1.5,)")], "config.grids.ties.density must be"),
        ([("grids.dare.drop", "(1.0,)")], "config.grids.dare.drop must be"),
        ([("conflict_density", "0.0")], "config.conflict_density must be"),
        ([("num_draws", "0")], "config.num_draws must be"),
    ],
)
def test_mistakes_are_found_before_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of(*overrides))


def test_an_unknown_method_and_a_missing_knob_are_named():
    config = config_of().unlock()
    config.grids.ties = {"density": (0.2,)}
    with pytest.raises(ConfigError, match="must have values of"):
        experiment.validate(config)
    del config.grids["ties"]
    config.grids.soup = {}
    with pytest.raises(ConfigError, match="config.grids is one of breadcrumbs"):
        experiment.validate(config)


@pytest.mark.parametrize(
    "preset", ["small", "claims", pytest.param("paper", marks=pytest.mark.slow)]
)
def test_presets_are_valid(preset):
    config = config_of(preset=preset)
    if preset == "paper":
        full = load_module(ROOT / "experiments" / "merge_domains_full.py", "experiment")
        full.validate(config)
        job = full.training_job(config)
        assert job.data["image"].shape == (128, 8, 224, 224, 3)
        mesh = ensjax.make_mesh(member=8, data=1, devices=jax.devices()[:8])
        shapes = job.abstract_ensemble(mesh)
        size = sum(x.size // 8 for x in jax.tree.leaves(shapes.params))
        assert 86e6 < size < 89e6  # of the ViT-B/32 tower
        with pytest.raises(ConfigError, match="config.folder must name"):
            full.run(config, None)
    else:
        experiment.validate(config)
        assert set(config.grids) == set(methods.METHODS)


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    options = RunOptions(
        f"{ROOT}/configs/merge_domains.py:smoke", workdir=str(tmp_path)
    )
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scalars"]["num_members_not_finite"] == 0
    checks = {c["name"]: c["pass"] for c in results["checks"]}
    assert next(v for k, v in checks.items() if "task arithmetic at lambda" in k)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == results["scalars"]


@pytest.mark.slow
def test_the_full_size_runs_on_small_files(tmp_path):
    full = load_module(ROOT / "experiments" / "merge_domains_full.py", "experiment")
    small = {
        "model.image_size": 8,
        "model.patch_size": 4,
        "model.width": 8,
        "model.depth": 1,
        "model.num_heads": 2,
        "model.num_features": 4,
        "model.num_classes": 5,
        "model.dtype": "float32",
        "batch_size": 8,
        "total_steps": 8,
        "warmup_steps": 2,
        "save_every_steps": 8,
        "statistic_rows": 8,
        "predict_batch_size": 16,
        "tasks": "('dtd', 'mnist')",
        "folder": str(tmp_path),
    }
    for name in ("task_arithmetic", "ties", "dare", "breadcrumbs"):
        small[f"grids.{name}.lam"] = "(0.3,)"
    overrides = [(name, str(value)) for name, value in small.items()]
    config = config_of(*overrides, preset="paper")
    rng = np.random.default_rng(0)
    for task, classes in (("dtd", 5), ("mnist", 3)):
        (tmp_path / task).mkdir()
        head = rng.normal(size=(4, classes)).astype(np.float32)
        np.save(tmp_path / task / "head.npy", head)
        for part in full.PARTS:
            images = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
            np.save(tmp_path / task / f"{part}_images.npy", images)
            labels = rng.integers(0, classes, 20)
            np.save(tmp_path / task / f"{part}_labels.npy", labels)
    zero_shot = ensjax.Ensemble.init(
        functools.partial(_tower, full, config),
        num_members=1,
        mesh=full.training_job(config).mesh(jax.devices()[:1]),
    )
    zero_shot.save(tmp_path / "zero_shot")
    options = RunOptions(
        f"{ROOT}/configs/merge_domains.py:paper",
        overrides=overrides,
        workdir=str(tmp_path / "run"),
    )
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}
    # Before fine-tuning: the tower alone, among the classes of each task.
    right = []
    for task in config.tasks:
        images, labels = full.read_set(config, task, "test")
        head = full.read_head(config, task, labels)
        own = full._with_heads(zero_shot, head[None])
        logits = np.asarray(own[0](np.asarray(images)))
        if task == "mnist":
            assert logits[:, 3:].max() < -1e8
        right.append(np.mean(logits.argmax(axis=1) == labels))
    assert results["scalars"]["zero_shot"] == pytest.approx(100 * np.mean(right))
    np.save(tmp_path / "mnist" / "test_labels.npy", np.full(20, 4))
    with pytest.raises(ConfigError, match="labels must lie in 0 to 2"):
        full.run(config, None)


def _tower(full, config, rngs):
    return full.ClipTower(config, rngs=rngs)
