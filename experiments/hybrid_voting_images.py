"""Images of `hybrid_voting.py`: segmented, described, classified; and few of them.

Phantoms by default; with `config.images.is_real` a folder of MR slices, one folder for
each of two classes, with files named <patient>_<slice>. Patients are never split.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import load_beside

phantoms = load_beside(__file__, "hybrid_voting_phantoms")
features = load_beside(__file__, "hybrid_voting_features")
loops = load_beside(__file__, "hybrid_voting_loops")
members = load_beside(__file__, "hybrid_voting_members")

SUFFIXES = (".png", ".jpg", ".jpeg")
TEXTURE, MIXED, WAVELET = "13 texture", "10 texture + wavelets", "13 wavelets"
FEATURE_SETS = (TEXTURE, MIXED, WAVELET)


def list_files(config) -> tuple[list[Path], np.ndarray, list[str], list[str]]:
    """Files, class of each, patient of each, and the two classes' names.

    Raises:
        ConfigError: if there is no such folder, or it is laid out differently.
    """
    path = config.images.path
    if not path:
        raise ConfigError(
            "config.images.path names a folder of MR slices, <class>/<patient>_<slice>"
            ".png or .jpg with two classes, such as benign and malignant; the published"
            " 2,556 images are not to be had, the Figshare brain tumour set or BraTS"
            " slices in this layout are. Nothing is downloaded."
        )
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"config.images.path: there is no folder {path}.")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    if len(classes) != 2:
        raise ConfigError(
            f"config.images.path {path} must hold two folders, one for each class; got"
            f" {', '.join(classes) or 'none'}."
        )
    files, labels, patients = [], [], []
    for label, name in enumerate(classes):
        found = sorted(
            p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES
        )
        if not found:
            raise ConfigError(f"config.images.path {path}: {name} holds no image.")
        for file in found:
            patient, mark, _ = file.stem.rpartition("_")
            if not mark or not patient:
                raise ConfigError(
                    f"config.images.path: {file.name} must be named <patient>_<slice>,"
                    " so that no patient is split."
                )
            files.append(file)
            labels.append(label)
            patients.append(patient)
    return files, np.asarray(labels), patients, classes


def load_folder(config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey images `[image, size, size]` of 0 to 1, labels, and patients' numbers."""
    from matplotlib import image as reader

    files, labels, patients, _ = list_files(config)
    images = []
    for file in files:
        try:
            pixels = np.asarray(reader.imread(file))
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError(f"{file} is no image: {one_line(error)}") from error
        pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)
        grey = pixels if pixels.ndim == 2 else pixels[..., :3].mean(axis=-1)
        zoom = config.images.size / np.asarray(grey.shape)
        images.append(ndimage.zoom(grey, zoom, order=1))
    numbers = np.unique(patients, return_inverse=True)[1]
    return np.clip(np.stack(images), 0, 1), labels, numbers


def describe(config) -> dict[str, np.ndarray]:
    """Features of all images, with their labels, patients and sets, and examples.

    Sets of phantoms are independent, and each is split once. Slices of a folder are in
    all sets (-1), and split anew for each.
    """
    parts = []
    if config.images.is_real:
        images, labels, patients = load_folder(config)
        parts.append(_describe(config, images, None, labels, patients, -1))
    else:
        for number in range(config.num_image_sets):
            rng = np.random.default_rng([config.seed, 0, number])
            made = phantoms.make_phantoms(config.num_images, config.blob_level, rng)
            patients = np.arange(config.num_images)  # a phantom is a patient
            parts.append(
                _describe(
                    config, made.images, made.masks, made.labels, patients, number
                )
            )
    of_images = ("texture", "wavelets", "labels", "patients", "sets")
    joined = {
        name: np.concatenate([part[name] for part in parts]) for name in of_images
    }
    return parts[0] | joined


def _describe(config, images, masks, labels, patients, number):
    """The part of one set; only the first set is checked and shown."""
    found = np.stack([phantoms.segment(image) for image in images])
    texture, wavelets = features.image_features(images, found)
    described = {
        "texture": texture,
        "wavelets": wavelets,
        "labels": labels.astype(np.int64),
        "patients": patients,
        "sets": np.full(len(labels), number),
    }
    if number > 0:
        return described
    error = 0.0
    sums = 0.0
    for image, mask in zip(images[: config.num_looped], found):
        crop = features.tumour_crop(image, mask)
        whole = np.where(mask, image, 0.0)
        pairs = (
            (features.texture_features(crop), loops.texture_features(crop)),
            (features.wavelet_features(whole), loops.wavelet_features(whole)),
        )
        error = max(error, *(np.abs(a - np.asarray(b)).max() for a, b in pairs))
        counts = features.co_occurrence(features.grey_levels(crop))
        sums = max(sums, abs(counts.sum() - 1), np.abs(counts - counts.T).max())
    shown = [
        int(np.flatnonzero(labels == kind)[i]) for i in range(2) for kind in (0, 1)
    ]
    return described | {
        "loop_error": np.asarray(error),
        "co_occurrence_error": np.asarray(sums),
        "constant_error": np.asarray(_constant_error()),
        "shown": images[shown],
        "shown_found": found[shown],
        "shown_true": np.zeros(0, bool) if masks is None else masks[shown],
        "shown_labels": labels[shown],
    }


def _constant_error():
    """How far a constant image is from contrast 0, energy 1 and correlation 1."""
    constant = features.texture_features(np.full((8, 8), 0.4))
    found = dict(zip(features.TEXTURE_NAMES, constant))
    return max(
        abs(found["contrast"]), abs(found["energy"] - 1), abs(found["correlation"] - 1)
    )


def otsu_misses(num_images: int) -> int:
    """On how many of the first digits Otsu's threshold is not the best of all."""
    misses = 0
    for image in load_digits().images[:num_images]:
        values = image.reshape(-1).tolist()
        best = max(loops.otsu_spread(values, cut) for cut in sorted(set(values)))
        own = loops.otsu_spread(values, phantoms.otsu_threshold(image))
        misses += own < best * (1 - 1e-12)
    return misses


def measure_segmentation(config) -> dict[str, np.ndarray]:
    """Area errors by contrast, `[set]` for the configured grey and `[level, set]`.

    "median" and "correlation" are of sets of images with blobs of `blob_level`, as
    "areas" `[true or found, image]` of all these; the others of groups of one contrast
    each. "error" and "contrast" are single images.
    """
    levels = config.contrast_levels
    groups = [config.blob_level, *zip(levels[:-1], levels[1:])]
    found = {name: [] for name in ("median", "correlation", "dice")}
    contrast, errors, high = [], [], []
    for group, level in enumerate(groups):
        rows = []
        for number in range(config.num_contrast_sets):
            rng = np.random.default_rng([config.seed, 1, group, number])
            made = phantoms.make_phantoms(config.num_contrast_images, level, rng)
            masks = np.stack([phantoms.segment(image) for image in made.images])
            areas = phantoms.compare_areas(made.masks, masks)
            together = np.corrcoef(areas["true_area"], areas["area"])[0, 1]
            rows.append([np.median(areas["error"]), together, areas["dice"].mean()])
            if not group:
                high.append([areas["true_area"], areas["area"]])
            else:
                inside = [x[m].mean() for x, m in zip(made.images, made.masks)]
                contrast.append(np.asarray(inside) - phantoms.BRAIN_LEVEL)
                errors.append(areas["error"])
        for name, values in zip(found, zip(*rows)):
            found[name].append(values)
    arrays = {name: np.asarray(values) for name, values in found.items()}
    return {
        **{name: values[0] for name, values in arrays.items()},
        **{f"{name}_by_level": values[1:] for name, values in arrays.items()},
        "areas": np.concatenate(high, axis=1),
        "contrast": np.concatenate(contrast),
        "error": np.concatenate(errors),
        "otsu_misses": np.asarray(otsu_misses(config.num_looped)),
    }


def split_patients(described, config, number: int):
    """Row numbers of training and test of a set; no patient has rows in both.

    The test holds about `test_share` of the patients, stratified by the class of a
    patient's first row.
    """
    sets = described["sets"]
    rows = np.flatnonzero((sets == number) | (sets < 0))
    patients, labels = described["patients"][rows], described["labels"][rows]
    names, first = np.unique(patients, return_index=True)
    _, test = members.split(labels[first], config.test_share, config.seed + number)
    is_test = np.isin(patients, names[test])
    return rows[~is_test], rows[is_test]


def choose_features(described, name: str, train, test, num_components: int):
    """Scaled features of training and test rows; all is fitted on the training rows."""
    texture, wavelets = described["texture"], described["wavelets"]
    if name == TEXTURE:
        return members.scale(texture[train], texture[test])
    if name == WAVELET:
        return members.project(wavelets[train], wavelets[test], 13)
    kept = [i for i, n in enumerate(features.TEXTURE_NAMES) if n not in
            features.REDUNDANT]  # fmt: skip
    plain = members.scale(texture[train][:, kept], texture[test][:, kept])
    parts = members.project(wavelets[train], wavelets[test], num_components)
    return tuple(np.concatenate(pair, axis=1) for pair in zip(plain, parts))


def measure_images(config, described) -> dict[str, np.ndarray]:
    """Accuracies by feature set, of each split: members `[features, split, member]`.

    Votes are `[features, split]`; "differ" counts rows on which a vote is not
    scikit-learn's, and "rows" the test rows of each split.
    """
    labels = described["labels"]
    found = {name: [] for name in ("members", "hard", "soft", "differ")}
    for name in FEATURE_SETS:
        rows = []
        for seed in range(config.num_image_sets):
            train, test = split_patients(described, config, seed)
            x_train, x_test = choose_features(
                described, name, train, test, config.num_components
            )
            chosen = members.make_members(config, config.seed + seed)
            said = members.vote(chosen, x_train, labels[train], x_test)
            own = members.accuracies(said, labels[test]) | {"differ": said.differ}
            rows.append(own | {"rows": len(test)})
        for key in found:
            found[key].append([row[key] for row in rows])
    counts = [row["rows"] for row in rows]
    return {k: np.asarray(v) for k, v in found.items()} | {"rows": np.asarray(counts)}
