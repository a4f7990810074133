"""Data of `weighted_views.py`: noise, views of digits and of cells, connectomes.

Every data set is an array `[example, column]`; a view is a list of its columns, so that
members of all views read the same array.
"""

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensjax.experiment import ConfigError

PHENOTYPES = "Phenotypic_V1_0b_preprocessed1.csv"


class Views(NamedTuple):
    """A classification problem whose columns belong to views.

    `x [example, column]`, `labels [example]`, `columns` by name of the view; `groups
    [example]` the site of each row, or None; `extra` the columns that every view may
    have as well (age and sex); `planted` the columns that tell, by view, or None.
    """

    x: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray]
    groups: np.ndarray | None = None
    extra: np.ndarray | None = None
    planted: dict[str, np.ndarray] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


def noise(config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent normal features `[example, feature]`, and balanced labels."""
    canary = config.canary
    rng = np.random.default_rng((config.seed, seed, 0))
    x = rng.normal(size=(canary.num_examples, canary.num_features))
    return x.astype(np.float32), np.arange(canary.num_examples) % 2


@functools.cache
def digit_views() -> Views:
    """The 8x8 digits as their top half, their bottom half, and 2x2 means."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    pooled = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    x = np.concatenate([images.reshape(-1, 64), pooled], axis=1)
    columns = {
        "top half": np.arange(32),
        "bottom half": np.arange(32, 64),
        "2x2 means": np.arange(64, 80),
    }
    return Views(x.astype(np.float32), labels, columns)


@functools.cache
def cancer_views() -> Views:
    """Ten measurements of cell nuclei as their mean, standard error, and worst."""
    from sklearn.datasets import load_breast_cancer

    x, labels = load_breast_cancer(return_X_y=True)
    columns = {
        "mean": np.arange(10),
        "standard error": np.arange(10, 20),
        "worst": np.arange(20, 30),
    }
    return Views(x.astype(np.float32), labels, columns)


def connectomes(config, seed: int) -> Views:
    """Simulated connectomes of one seed, or ABIDE (for which seeds change nothing)."""
    settings = config.connectomes
    if settings.source == "abide":
        return read_abide(settings.root, settings.names)
    return simulate(settings, np.random.default_rng((config.seed, seed, 1)))


def simulate(settings, rng: np.random.Generator) -> Views:
    """Views that share latent factors and sites; a few planted features tell cases.

    x_v = factors loadings_v + site shift_v + effect y 1[planted] + noise
    """
    subjects = settings.num_subjects
    labels = rng.permutation(np.arange(subjects) % 2)
    sites = rng.integers(0, settings.num_sites, subjects)
    factors = rng.normal(size=(subjects, settings.num_factors))
    blocks, columns, planted, start = [], {}, {}, 0
    for name, width in zip(settings.names, settings.widths):
        loadings = settings.loading * rng.normal(size=(settings.num_factors, width))
        shift = settings.site_shift * rng.normal(size=(settings.num_sites, width))
        x = factors @ loadings + shift[sites] + rng.normal(size=(subjects, width))
        telling = rng.choice(width, settings.num_planted, replace=False)
        x[:, telling] += settings.effect * labels[:, None]
        blocks.append(x)
        columns[name] = np.arange(start, start + width)
        planted[name] = start + np.sort(telling)
        start += width
    age = 17 + settings.age_sd * rng.normal(size=subjects) + settings.age_shift * labels
    male = rng.random(subjects) < np.asarray(settings.share_male)[labels]
    blocks.append(np.stack([age, male], axis=1))
    x = np.concatenate(blocks, axis=1).astype(np.float32)
    extra = np.arange(start, start + 2)
    return Views(x, labels, columns, sites, extra, planted)


def read_abide(root: str, atlases: tuple[str, ...]) -> Views:
    """ABIDE I as correlations between regions, by atlas, with age and sex.

    Subjects without a file in every atlas are left out. A region that never changes has
    the correlation 0 with all others.

    Args:
        root: holds the table of phenotypes and, for each atlas, a folder such as
            `rois_cc200` of files such as `Pitt_0050003_rois_cc200.1D`: a comment line,
            then one row per time and one column per region.
        atlases: such as "CC200".

    Raises:
        ConfigError: if the table, or every file of an atlas, is not there.
    """
    people = check_abide(root, atlases)
    blocks, columns, start = [], {}, 0
    for atlas in atlases:
        block = np.stack([_correlations(_series(root, p, atlas)) for p in people])
        blocks.append(block)
        columns[atlas] = np.arange(start, start + block.shape[1])
        start += block.shape[1]
    age = [float(p["AGE_AT_SCAN"]) for p in people]
    male = [int(p["SEX"]) == 1 for p in people]
    blocks.append(np.stack([age, male], axis=1))
    labels = np.array([int(p["DX_GROUP"]) == 1 for p in people]).astype(np.int64)
    sites = np.unique([p["SITE_ID"] for p in people], return_inverse=True)[1]
    x = np.concatenate(blocks, axis=1).astype(np.float32)
    return Views(x, labels, columns, sites, np.arange(start, start + 2))


def check_abide(root: str, atlases: tuple[str, ...]) -> list[dict[str, str]]:
    """The phenotypes of the subjects that have a file in every atlas.

    Raises:
        ConfigError: if the table is not there, or there is no such subject.
    """
    table = Path(root) / PHENOTYPES
    if not root or not table.is_file():
        raise ConfigError(
            f"config.connectomes.root must be a folder with {PHENOTYPES} and ROI time"
            " series of ABIDE I (Preprocessed Connectomes Project, C-PAC, filt_global),"
            f" such as rois_cc200/Pitt_0050003_rois_cc200.1D; got {root!r}."
        )
    with table.open(newline="") as file:
        people = list(csv.DictReader(file))
    people = [p for p in people if all(_series(root, p, a).is_file() for a in atlases)]
    if not people:
        folders = ", ".join(f"rois_{atlas.lower()}" for atlas in atlases)
        raise ConfigError(
            f"config.connectomes.root: no subject of {table} has a file in each of"
            f" {folders}."
        )
    return people


def _series(root, person, atlas):
    kind = atlas.lower()
    return Path(root) / f"rois_{kind}" / f"{person['FILE_ID']}_rois_{kind}.1D"


def _correlations(path):
    """The lower triangle of the regions' correlations, `[region pair]`."""
    series = np.loadtxt(path, ndmin=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(np.corrcoef(series, rowvar=False))
    return correlation[np.tril_indices(len(correlation), -1)]
