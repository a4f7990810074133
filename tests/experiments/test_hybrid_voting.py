"""The experiment of hybrid votes: its features, its segmentation, its runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ensjax import cli
from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.claims import student_interval
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "hybrid_voting.py")
experiment = load_module(ROOT / "experiments" / "hybrid_voting.py", "experiment")
images, members = experiment.images, experiment.members
verdicts = experiment.verdicts
features, loops, phantoms = images.features, images.loops, images.phantoms


def config_of(preset, *overrides):
    return load_config(f"{CONFIG}:{preset}", overrides)[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 5)])
def test_every_feature_equals_a_loop(shape):
    image = np.random.default_rng(0).uniform(-0.1, 1.1, size=shape)
    np.testing.assert_allclose(
        features.texture_features(image), loops.texture_features(image), atol=1e-9
    )
    np.testing.assert_allclose(
        features.wavelet_features(image), loops.wavelet_features(image), atol=1e-9
    )


def test_a_constant_image_has_no_contrast_and_full_energy():
    found = dict(
        zip(features.TEXTURE_NAMES, features.texture_features(np.full((6, 6), 0.4)))
    )
    ones = ("correlation", "energy", "homogeneity", "inverse difference moment")
    assert all(found[name] == pytest.approx(1) for name in ones)
    zeros = ("contrast", "entropy", "variance", "skewness", "kurtosis", "smoothness")
    assert all(found[name] == pytest.approx(0, abs=1e-12) for name in zeros)


def test_co_occurrence_is_symmetric_and_sums_to_1():
    levels = features.grey_levels(np.random.default_rng(1).uniform(size=(8, 8)))
    pairs = features.co_occurrence(levels)
    np.testing.assert_array_equal(pairs, pairs.T)
    assert pairs.sum() == pytest.approx(1)


def test_haar_bands_keep_the_energy():
    image = np.random.default_rng(2).normal(size=(8, 8))
    bands = features.haar_bands(image)
    # Undecimated: each scale doubles the energy along both axes.
    assert (bands[0] ** 2).sum() == pytest.approx(4 * (image**2).sum())
    assert (bands[1] ** 2).sum() == pytest.approx(4 * (bands[0, 0] ** 2).sum())


def test_otsu_is_the_best_of_all_thresholds_on_digits():
    for image in load_digits().images[:5]:
        found = phantoms.otsu_threshold(image)
        spread = loops.otsu_spread(image.reshape(-1).tolist(), found)
        every = [loops.otsu_spread(image.reshape(-1).tolist(), t) for t in range(16)]
        assert spread == pytest.approx(max(every))
    assert phantoms.otsu_threshold(np.ones((3, 3))) == 1.0


def test_a_bright_blob_is_found_and_its_area_is_right():
    rng = np.random.default_rng(0)
    made = phantoms.make_phantoms(10, (0.8, 0.86), rng)
    found = np.stack([phantoms.segment(image) for image in made.images])
    areas = phantoms.compare_areas(made.masks, found)
    assert np.median(areas["error"]) < 0.05 and areas["dice"].mean() > 0.95
    assert sorted(made.labels) == [0] * 5 + [1] * 5


def test_soft_votes_give_ties_to_the_lowest_class():
    probs = np.array([[[0.4, 0.6]], [[1.0, 0.0]], [[0.1, 0.9]]])  # 1.5 each
    assert members.soft_vote(probs).tolist() == [0]


@pytest.mark.slow
def test_votes_are_those_of_scikit_learn_on_one_split():
    config = config_of("smoke", ("num_table_splits", "1"))
    found = members.measure_ties(config)
    assert found["differ"].sum() == 0 and found["ties"].sum() > 0


def write_slices(root, num_patients=12):
    rng = np.random.default_rng(0)
    for kind, name in enumerate(("benign", "malignant")):
        (root / name).mkdir(parents=True)
        for patient in range(num_patients):
            for number in range(3):
                image, _ = phantoms.make_phantom(kind, (0.8, 0.86), rng)
                pixels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
                path = root / name / f"{name[0]}{patient}_{number}.png"
                matplotlib.image.imsave(path, pixels, cmap="gray", vmin=0, vmax=255)


def test_a_folder_is_read_and_no_patient_is_split(tmp_path):
    write_slices(tmp_path, num_patients=4)
    config = config_of(
        "paper", ("images.path", str(tmp_path)), ("images.size", "32"),
        ("num_looped", "1"), ("test_share", "0.25"),
    )  # fmt: skip
    experiment.validate(config)
    described = images.describe(config)
    assert described["labels"].tolist() == [0] * 12 + [1] * 12
    assert described["loop_error"] < 1e-9
    patients, tests = described["patients"], []
    for number in range(2):  # all slices are in every set
        train, test = images.split_patients(described, config, number)
        assert len(train) + len(test) == 24 and len(test) == 6
        assert not set(patients[train]) & set(patients[test])
        tests.append(test.tolist())
    assert tests[0] != tests[1]
    (tmp_path / "benign" / "slice.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="<patient>_<slice>"):
        experiment.validate(config)


def test_sets_of_phantoms_are_independent_and_split_once():
    config = config_of("smoke", ("num_images", "60"), ("num_looped", "1"))
    described = images.describe(config)
    assert described["sets"].tolist() == [0] * 60 + [1] * 60
    first, second = described["texture"][:60], described["texture"][60:]
    assert not (first[:, None] == second[None]).all(axis=-1).any()
    assert described["loop_error"] < 1e-9
    assert described["co_occurrence_error"] < 1e-9
    for number in range(2):
        train, test = images.split_patients(described, config, number)
        rows = np.sort(np.concatenate([train, test]))
        np.testing.assert_array_equal(rows, np.arange(60) + 60 * number)
        assert len(test) == 9
        assert sorted(described["labels"][test]) in (
            [0] * 4 + [1] * 5,
            [0] * 5 + [1] * 4,
        )


def test_the_ratio_of_errors_is_that_of_all_and_spreads_as_the_delta_method():
    rng = np.random.default_rng(5)
    vote, other = 1 - rng.integers(0, 9, size=(2, 40)) / 60
    other[0] = 1.0  # a split without an error
    values = verdicts.error_ratio(vote, other, 60)
    errors, others = 60 * (1 - vote), 60 * (1 - other)
    assert values.mean() == pytest.approx(errors.sum() / others.sum())
    covariance = np.cov(errors, others)
    slope = np.array([1, -values.mean()]) / others.mean()
    assert values.var(ddof=1) == pytest.approx(slope @ covariance @ slope)
    assert np.isnan(verdicts.error_ratio(vote, np.ones(40), 60)).all()


def test_the_interval_of_a_correlation_ends_below_1():
    one_bad_set = np.array([0.92, *[0.998] * 9])
    assert student_interval(one_bad_set)[1] > 1
    z = verdicts.fisher_z(one_bad_set)
    np.testing.assert_allclose(z, np.log((1 + one_bad_set) / (1 - one_bad_set)) / 2)
    low, high = np.tanh(student_interval(z))
    assert low < np.tanh(z.mean()) < high < 1


def test_networks_of_the_published_size_have_the_papers_shapes():
    job = experiment.training_job(config_of("paper"), shapes_only=True)
    # 2,556 slices, 85:15; twenty splits of 25 to 340 rows, five networks on each.
    assert len(job.member_ids) == len(set(job.member_ids)) == 20 * 4 * 5
    assert job.data[0].shape == (20 * (25 + 50 + 100 + 340), 13)
    weights = job.options["weights"]
    assert weights.shape == (400, 10_300)
    assert (
        weights.sum(axis=1)[:20].tolist() == [25] * 5 + [50] * 5 + [100] * 5 + [340] * 5
    )
    assert (weights.sum(axis=0) == 5).all()  # no row is another task's, too
    few = config_of("paper", ("num_images", "200"))
    sizes = experiment.small_data.task_shapes(few).sizes
    assert sizes[:4] == [25, 50, 100, 170]


@pytest.mark.parametrize(
    "preset, field, value, message",
    [
        ("paper", "images.size", "64", "config.images.path names a folder"),
        ("smoke", "num_trees", "0", "config.num_trees"),
        ("smoke", "blob_level", "(0.8, 0.7)", "config.blob_level"),
        ("smoke", "num_neighbors", "60", "config.num_neighbors"),
        ("smoke", "total_steps", "49", "config.total_steps"),
        ("smoke", "contrast_levels", "(0.6, 0.5)", "config.contrast_levels"),
    ],
)
def test_mistakes_in_a_config_are_named(preset, field, value, message):
    with pytest.raises(ConfigError, match=message):
        experiment.validate(config_of(preset, (field, value)))


FEW = (
    ("num_table_splits", "2"), ("num_image_sets", "2"), ("num_trees", "10"),
    ("row_counts", "(25, 60)"), ("total_steps", "50"), ("num_looped", "2"),
    ("num_contrast_sets", "2"), ("num_contrast_images", "4"),
)  # fmt: skip


def finished(path):
    results = json.loads((path / "results.json").read_text())
    checks = {c["name"]: c["pass"] for c in results["checks"]}
    exact = [name for name in checks if "scikit-learn" in name or "loop" in name]
    assert len(exact) == 2 and all(checks[name] for name in exact)
    letters = {c["name"].split(":")[0][-1] for c in results["claims"]}
    assert letters == set("abcde")
    assert len(list((path / "figures").iterdir())) == 4
    return results


def made_up(members, correlation):
    """Results of eight splits: the vote is right on 90 % and up, members on `members`.

    `members` are of breast-cancer rows and of phantoms, `[member]` each.
    """
    own = 0.001 * np.arange(8)
    table, texture = (np.tile(m, (8, 1)).astype(float) for m in members)
    vote, rows = 0.9 + own, np.full(8, 85)
    every = np.stack([vote, vote + 0.05, vote])
    names = experiment.images.FEATURE_SETS
    return {
        "table": {"members": table, "hard": vote, "rows": rows, "all_rows": 569},
        "images": {
            "members": np.stack([texture] * len(names)),
            "hard": every[: len(names)],
            "soft": every[: len(names)],
            "rows": rows,
        },
        "segmentation": {"median": 0.01 + own, "correlation": correlation + own},
        "described": {"labels": np.arange(10) % 2},
        "small_data": {"vote": every.T, "ensemble": every.T - 0.1},
    }


@pytest.mark.parametrize(
    "members, correlation, expected",
    [
        (([0.7] * 3, [0.7] * 3), 0.985, "holds holds holds"),
        # One member of one data set is enough.
        (([0.7] * 3, [0.7, 0.95, 0.7]), 0.985, "fails fails holds"),
        (([0.7, 0.7, 0.903], [0.7] * 3), 0.978, "undecided undecided undecided"),
        (([0.7] * 3, [0.7] * 3), 0.9, "holds holds fails"),
    ],
)
def test_a_claim_about_every_member_is_one_row(members, correlation, expected):
    found = experiment.verdicts.make_claims(
        config_of("smoke"), made_up(members, correlation)
    )
    run = [c for c in found if c["verdict"] != "not run"]
    letters = [c["name"].split(":")[0][-1] for c in run]
    assert letters == list("abcde")
    assert [c["verdict"] for c in run[:3]] == expected.split()
    assert [len(c.get("parts", [0])) for c in run] == [6, 6, 2, 2, 1]
    if expected.startswith("fails"):
        assert "RF, phantoms" in run[0]["name"] and "RF, phantoms" in run[1]["name"]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_stage_and_its_networks_are_replayed(
    tmp_path, capsys, monkeypatch
):
    command = [sys.executable, "-m", "ensjax.cli", "run", f"{CONFIG}:smoke"]
    command += [f"--config.{name}={value}" for name, value in FEW]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [*command, "--workdir", str(killed)], stdout=subprocess.PIPE, text=True,
        env=environment, cwd=tmp_path,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("stage 4/6"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    for path in (killed, whole):
        options = RunOptions(f"{CONFIG}:smoke", str(path), list(FEW))
        assert run_and_report(options) == 0
    out = capsys.readouterr().out
    assert out.count("read back") == 4 and "stage 4/6 described: read back" in out
    assert finished(killed) == finished(whole)
    monkeypatch.setattr("ensjax.experiment.replay.set_devices_of", lambda run: None)
    member = experiment.small_data.SEED_STRIDE + experiment.small_data.COUNT_STRIDE + 3
    assert cli.main(["replay", str(whole), "--member", str(member)]) == 0
    assert "the same" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_slices_runs_to_the_end_and_is_asked_for_in_one_line(
    tmp_path, capsys
):
    path = tmp_path / "run"
    options = RunOptions(f"{CONFIG}:paper", str(path), list(FEW))
    assert run_and_report(options) == 2
    error = capsys.readouterr().err
    assert "config.images.path names a folder" in error and error.count("\n") == 1
    assert not path.exists()
    write_slices(tmp_path / "slices")
    overrides = [*FEW, ("images.path", str(tmp_path / "slices"))]
    assert run_and_report(RunOptions(f"{CONFIG}:paper", str(path), overrides)) == 0
    results = finished(path)
    claims = [c for c in results["claims"] if c["verdict"] != "not run"]
    assert all("split_sizes" in c for c in claims)  # splits of slices share patients


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "paper"])
def test_the_networks_are_planned(preset, capsys):
    assert cli.main(["plan", f"{CONFIG}:{preset}", "--no-trial"]) == 0
    assert "Memory of each device" in capsys.readouterr().out
