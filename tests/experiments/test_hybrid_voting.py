"""The experiment of hybrid votes: its features, its segmentation, its runs."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ensjax.experiment import ConfigError, load_config
from ensjax.experiment.configs import load_module
from ensjax.experiment.runner import RunOptions, run_and_report

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "hybrid_voting.py")
experiment = load_module(ROOT / "experiments" / "hybrid_voting.py", "experiment")
images, members = experiment.images, experiment.members
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
    train, test = images.split_patients(described, config, 0)
    patients = described["patients"]
    assert len(train) + len(test) == 24 and len(test) == 6
    assert not set(patients[train]) & set(patients[test])
    (tmp_path / "benign" / "slice.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="<patient>_<slice>"):
        experiment.validate(config)


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


@pytest.mark.slow
def test_smoke_and_a_folder_of_slices_run_to_the_end(tmp_path):
    write_slices(tmp_path / "slices")
    few = [("num_table_splits", "2"), ("num_image_splits", "2"), ("num_trees", "10"),
           ("row_counts", "(25, 60)"), ("total_steps", "50"), ("num_looped", "2"),
           ("num_contrast_sets", "2"), ("num_contrast_images", "4"),
           ("images.path", str(tmp_path / "slices"))]  # fmt: skip
    for preset, overrides in (("smoke", []), ("paper", few)):
        path = tmp_path / preset
        options = RunOptions(f"{CONFIG}:{preset}", str(path), overrides)
        assert run_and_report(options) == 0
        results = json.loads((path / "results.json").read_text())
        checks = {c["name"]: c for c in results["checks"]}
        exact = [c for name, c in checks.items() if "scikit-learn" in name]
        assert exact and all(c["pass"] for c in exact)
        letters = {c["name"].split(":")[0][-1] for c in results["claims"]}
        assert letters == set("abcde")
        assert len(list((path / "figures").iterdir())) == 4
