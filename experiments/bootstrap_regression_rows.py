"""Data sets of `bootstrap_regression.py`, and which rows every ensemble trains on.

A *job* is one ensemble: its training rows, how they are resampled, and its settings.
All jobs of a data set are trained as one stack, where a row's weight says whether, and
how often, a member sees it.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensjax import data
from ensjax.experiment import ConfigError

BUNDLED = ("auto_mpg", "diabetes", "friedman1")
SEED_STRIDE, JOB_STRIDE = 2**16, 2**10


class Table(NamedTuple):
    """Features `[row, feature]` and targets `[row]`, float32, and what they are."""

    x: np.ndarray
    y: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One ensemble of one seed.

    Attributes:
        name: such as "main", "size-50" or "nested-3-1" (fold 3, preset 1).
        seed: number of the split.
        number: among the jobs of the seed.
        train_rows: rows of the table.
        num_members: of the ensemble.
        is_resampled: whether every member has its own bootstrap.
        learning_rate, weight_decay: of every member.
        features: `[feature]` bools, those the members see; None: all.
    """

    name: str
    seed: int
    number: int
    train_rows: np.ndarray
    num_members: int
    is_resampled: bool
    learning_rate: float
    weight_decay: float
    features: np.ndarray | None = None

    @property
    def member_ids(self) -> np.ndarray:
        """Ids of its members, apart from those of all other jobs."""
        first = SEED_STRIDE * self.seed + JOB_STRIDE * self.number
        return first + np.arange(self.num_members)


def load_table(config, name) -> Table:
    """A data set by name.

    Raises:
        ConfigError: if it is neither bundled nor a table in `config.folder`.
    """
    if name in BUNDLED:
        x, y, source = {
            "auto_mpg": _auto_mpg,
            "diabetes": _diabetes,
            "friedman1": _friedman,
        }[name]()
    else:
        x, y, source = _read_csv(config, name)
    return Table(x.astype(np.float32), y.astype(np.float32), source)


def _diabetes():
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    return found.data, found.target, "scikit-learn's diabetes (442 x 10)"


def _auto_mpg():
    try:
        from mlxtend.data import autompg_data
    except ImportError as error:
        raise ConfigError(
            "config.sets: auto_mpg comes with mlxtend: pip install 'ensjax[examples]'."
        ) from error
    x, y = autompg_data()
    x = np.asarray(x, np.float64)
    x = x[:, np.isfinite(x).all(axis=0)]  # without the names of the cars
    return x, np.asarray(y, np.float64), "Auto MPG of mlxtend (392 x 7)"


def _friedman():
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(500, n_features=10, noise=1.0, random_state=0)
    return x, y, "Friedman #1, simulated (500 x 10, noise 1)"


def _read_csv(config, name):
    path = Path(config.folder) / f"{name}.csv"
    if not config.folder or not path.is_file():
        raise ConfigError(
            f"config.folder must hold {name}.csv, a header and then one row a material:"
            " numeric descriptors, the target last. Get MatBench v0.1 from"
            " https://matbench.materialsproject.org and its descriptors from matminer;"
            f" config.folder is {config.folder!r}."
        )
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise ConfigError(f"config.folder: {path} is not numeric: {error}.") from error
    if rows.shape[1] < 2 or not np.isfinite(rows).all():
        raise ConfigError(
            f"config.folder: {path} needs a feature, a target and no missing value."
        )
    return rows[:, :-1], rows[:, -1], f"{path.name} ({len(rows)} rows)"


def split_rows(config, table, seed) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a seed, both in random order."""
    return data.train_test_split(
        len(table.y), test_size=config.test_share, seed=1000 * config.seed + seed
    )


def sizes_of(config, num_train) -> tuple[int, ...]:
    """Training rows of the small-data curve, those of the whole training part last."""
    return (*(size for size in config.sizes if size < num_train), num_train)


def shift_rows(config, table, seed) -> dict[str, np.ndarray]:
    """Rows of the shift: training rows and a hold-out below, and the upper end."""
    inside, shifted = data.split_by_feature(
        table.x[:, config.shift.feature], share=config.shift.share
    )
    train, test = data.train_test_split(
        len(inside), test_size=config.test_share, seed=1000 * config.seed + seed
    )
    return {"train": inside[train], "inside": inside[test], "shifted": shifted}


def thinned_rows(config, table, seed) -> np.ndarray:
    """The training rows of a seed, with few of those of large target."""
    train, _ = split_rows(config, table, seed)
    kept = data.thin_target(
        table.y[train],
        share=config.shift.share,
        keep=config.shift.keep,
        seed=1000 * config.seed + seed,
    )
    return train[kept]


def split_sizes(config, table) -> dict[str, tuple[int, int]]:
    """Training and test rows of a seed: of "main", and of "shift" below the end.

    An ensemble that trains on some of a split's training rows counts as one on all of
    them: how often two seeds test on the same row depends on the split alone.
    """
    train, test = split_rows(config, table, 0)
    parts = shift_rows(config, table, 0)
    return {
        "main": (len(train), len(test)),
        "shift": (len(parts["train"]), len(parts["inside"])),
    }


def list_jobs(config, table, *, is_first) -> list[Job]:
    """All jobs of a data set, of all seeds, without those of nested selection.

    The first set has also an ensemble without resampling, one under a shift and one
    with a thinned target.
    """
    jobs = []
    for seed in range(config.num_seeds):
        train, _ = split_rows(config, table, seed)
        plans = [("main", train, config.num_members if is_first else None, True)]
        plans += [
            (f"size-{size}", train[:size], None, True)
            for size in sizes_of(config, len(train))[:-1]
        ]
        if is_first:
            plans += [
                ("plain", train, None, False),
                ("shift", shift_rows(config, table, seed)["train"], None, True),
                ("thinned", thinned_rows(config, table, seed), None, True),
            ]
        jobs += [
            Job(
                name=name,
                seed=seed,
                number=number,
                train_rows=rows,
                num_members=num_members or config.num_side_members,
                is_resampled=is_resampled,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
            )
            for number, (name, rows, num_members, is_resampled) in enumerate(plans)
        ]
    return jobs
