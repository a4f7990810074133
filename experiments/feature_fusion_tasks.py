"""Data of `feature_fusion.py`: three views of every row, in three kinds of data."""

import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np

from ensjax.experiment import ConfigError

NUM_VIEWS = 3
MODULES = (
    "argparse",
    "inspect",
    "typing",
    "tarfile",
    "subprocess",
    "_pydecimal",
    "pickletools",
    "pydoc_data.topics",
)
_HASHED = 64  # columns of n-grams of two and three bytes
_NUM_LEVELS = 4  # classes of energy


class Task(NamedTuple):
    """Rows of all jobs; a job is a condition and a seed, `condition * seeds + seed`.

    Attributes:
        views: three arrays `[job, row, width]`, float32. Rows are those of members,
            then those of fusions, then test rows.
        labels: `[job, row]`, int32.
        corrupted: `[job, row, view]`, True where a view is noise.
        num_classes: number of classes.
        conditions: names of the conditions.
    """

    views: tuple[np.ndarray, ...]
    labels: np.ndarray
    corrupted: np.ndarray
    num_classes: int
    conditions: tuple[str, ...]


def load_task(config, name: str) -> Task:
    """The rows of one task for all seeds.

    Raises:
        ConfigError: if there are too few rows, or the features cannot be read.
    """
    is_first = name == config.tasks[0]
    conditions = (
        ("corrupted", "clean") if config.corruption and is_first else ("plain",)
    )
    if name == "digit_views" and not is_first:
        conditions = ("corrupted",)
    jobs = [
        TASKS[name](config, condition, np.random.default_rng([config.seed, seed]))
        for condition in conditions
        for seed in range(config.num_seeds)
    ]
    views, labels, corrupted = zip(*jobs, strict=True)
    needed = config.num_member + config.num_fusion + config.num_test
    if labels[0].shape != (needed,):
        raise ConfigError(
            f"config.num_member + num_fusion + num_test = {needed} rows; {name} has"
            f" {len(labels[0])} of them."
        )
    return Task(
        views=tuple(
            np.stack([job[v] for job in views]).astype(np.float32)
            for v in range(NUM_VIEWS)
        ),
        labels=np.stack(labels).astype(np.int32),
        corrupted=np.stack(corrupted),
        num_classes=max(int(one.max()) for one in labels) + 1,
        conditions=conditions,
    )


def _needed(config):
    return config.num_member + config.num_fusion + config.num_test


def _digit_views(config, condition, rng):
    """Top half, bottom half, and the whole at half the resolution."""
    from ensjax.data import digits

    dataset = digits()
    images = np.concatenate([dataset.x_train, dataset.x_test])[..., 0]
    labels = np.concatenate([dataset.y_train, dataset.y_test])
    rows = rng.permutation(len(images))[: _needed(config)]
    images, labels = images[rows], labels[rows]
    count = len(images)
    pooled = images.reshape(count, 4, 2, 4, 2).mean((2, 4))
    strided = images[:, ::2, ::2]
    views = [
        images[:, :4].reshape(count, -1),
        images[:, 4:].reshape(count, -1),
        np.concatenate([pooled, strided], axis=1).reshape(count, -1),
    ]
    share = config.corruption if condition == "corrupted" else 0.0
    corrupted = rng.uniform(size=(count, NUM_VIEWS)) < share
    for v, view in enumerate(views):
        # Noise with the view's own mean and spread: nothing but its form tells.
        noise = rng.normal(view.mean(), view.std(), view.shape)
        views[v] = np.where(corrupted[:, v, None], noise, view)
    return views, labels, corrupted


def _byte_text(config, condition, rng):
    """Which module some bytes are from; views are counts of one, two, three bytes."""
    del condition
    length, count = config.bytes_per_row, _needed(config)
    labels = np.arange(count) % len(MODULES)
    texts = [_source(name) for name in MODULES]
    # Parts of a source's bytes for each part of the rows: windows may overlap, and
    # those of one part never reach into another.
    parts = np.repeat(
        np.arange(3), (config.num_member, config.num_fusion, config.num_test)
    )
    rows = np.empty((count, length), np.uint8)
    for row, (label, part) in enumerate(zip(labels, parts)):
        block = np.array_split(texts[label], 3)[part]
        start = rng.integers(0, len(block) - length)
        rows[row] = block[start : start + length]
    codes = rows.astype(np.int64)
    pairs = codes[:, :-1] * 257 + codes[:, 1:]
    triples = pairs[:, :-1] * 263 + codes[:, 2:]
    views = [
        _counts(codes % 128, 128),
        _counts(pairs * 2_654_435_761 % 2**32 % _HASHED, _HASHED),
        _counts(triples * 2_654_435_761 % 2**32 % _HASHED, _HASHED),
    ]
    return views, labels, np.zeros((count, NUM_VIEWS), bool)


def _source(name):
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise ConfigError(f"config.tasks: this Python has no source of {name}.")
    return np.frombuffer(pathlib.Path(spec.origin).read_bytes(), np.uint8)


def _counts(codes, number):
    table = np.zeros((len(codes), number))
    np.add.at(table, (np.arange(len(codes))[:, None], codes), 1)
    return np.sqrt(table)


def _molecules(config, condition, rng):
    """The quarter that a cluster's energy per atom falls in, from its descriptors.

    Clusters of 3 to 6 atoms of 4 species with Morse energies between pairs. Views: how
    many atoms of each species, distances of pairs, and eigenvalues of the graph whose
    edges are weighted by distance.
    """
    del condition
    count = _needed(config)
    radius, depth, width = (
        np.array(values)
        for values in (
            (1.0, 1.15, 1.3, 0.9),
            (1.0, 0.7, 1.3, 0.9),
            (2.0, 2.3, 1.7, 2.5),
        )
    )
    sizes = rng.integers(3, 7, count)
    is_atom = np.arange(6) < sizes[:, None]
    species = rng.integers(0, 4, (count, 6))
    place = rng.normal(size=(count, 6, 3)) * 0.75
    apart = np.linalg.norm(place[:, :, None] - place[:, None], axis=-1)
    apart = np.maximum(apart, 0.7)  # no pair is nearer than that
    first, second = np.triu_indices(6, 1)
    is_pair = (is_atom[:, :, None] & is_atom[:, None])[:, first, second]
    distance = apart[:, first, second]
    a, b = species[:, first], species[:, second]
    r0, alpha = (radius[a] + radius[b]) / 2, (width[a] + width[b]) / 2
    well = np.sqrt(depth[a] * depth[b])
    falls = np.exp(-alpha * (distance - r0))
    energy = np.where(is_pair, well * (falls**2 - 2 * falls), 0).sum(1) / sizes
    edges = np.quantile(energy[: config.num_member], np.linspace(0, 1, _NUM_LEVELS + 1))
    labels = np.searchsorted(edges[1:-1], energy)

    one_hot = np.eye(4)[species] * is_atom[..., None]
    centres = np.linspace(0.7, 3.5, 12)
    bumps = np.exp(-0.5 * ((distance[..., None] - centres) / 0.2) ** 2)
    radial = (bumps * is_pair[..., None]).sum(1)
    graph = np.exp(-(apart**2) / 2) * (is_atom[:, :, None] & is_atom[:, None])
    values = np.linalg.eigvalsh(graph)
    weighted = graph * np.sqrt(depth[species][:, :, None] * depth[species][:, None])
    views = [
        one_hot.sum(1),
        radial,
        np.concatenate([values, np.linalg.eigvalsh(weighted)], axis=1),
    ]
    return views, labels, np.zeros((count, NUM_VIEWS), bool)


def _features(config, condition, rng):
    """Rows of a file, by part; the same for all seeds."""
    del condition, rng
    names = [f"features_{v}" for v in range(NUM_VIEWS)]
    wanted = (
        "config.path must name an .npz of three backbones' features with"
        f" {', '.join(names)} [row, width], labels and part [row] (0 members, 1"
        " fusions, 2 test)"
    )
    if not config.path:
        raise ConfigError(f"{wanted}; it is empty.")
    try:
        with np.load(config.path, allow_pickle=False) as file:
            views = [file[name] for name in names]
            labels, part = file["labels"], file["part"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{wanted}; {config.path}: {error}.") from error
    counts = (config.num_member, config.num_fusion, config.num_test)
    rows = [np.flatnonzero(part == p)[:n] for p, n in enumerate(counts)]
    if [len(r) for r in rows] != list(counts):
        raise ConfigError(
            f"{wanted}; expected at least {counts} rows of the parts, got"
            f" {np.bincount(part, minlength=3).tolist()}."
        )
    rows = np.concatenate(rows)
    return (
        [view[rows] for view in views],
        labels[rows],
        np.zeros((len(rows), NUM_VIEWS), bool),
    )


TASKS = {
    "byte_text": _byte_text,
    "digit_views": _digit_views,
    "features": _features,
    "molecules": _molecules,
}
