"""Data sets of `quantile_aggregation.py`, and what base models say of their rows."""

import dataclasses
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes

from ensjax import combine, data
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import load_beside
from ensjax.provenance import Provenance

base = load_beside(__file__, "quantile_aggregation_base")

PARTS = ("train", "validation", "test")


@dataclasses.dataclass
class Split:
    """One split of a data set; targets in units of the training rows' deviation.

    Attributes:
        source: names the data set.
        rows: row numbers by part.
        x, y: by part, inputs `[batch, feature]` as they are and targets `[batch]`.
        fold: `[batch]` of the training rows.
    """

    source: str
    rows: dict[str, np.ndarray]
    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    fold: np.ndarray

    def scaled_x(self, part: str) -> np.ndarray:
        """Inputs in units of the training rows' deviation; constants become 0."""
        mean, sd = self.x["train"].mean(axis=0), self.x["train"].std(axis=0)
        return (self.x[part] - mean) / np.where(sd > 0, sd, 1.0)

    def provenance(self, part: str) -> Provenance:
        """Of what the base models say: of the training rows out of fold.

        Models of the other parts were trained on all training rows; that of a fold on
        those of the other folds.
        """
        name = "validation" if part == "train" else part
        test_rows = None if part == "test" else self.rows["test"]
        trained_on = [] if part == "train" else self.rows["train"]
        return Provenance.of(
            self.source,
            self.rows[part],
            part=name,
            trained_on=trained_on,
            test_rows=test_rows,
        )


def load_tables(config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets by name of the data set.

    Raises:
        ConfigError: for a file that is not there or is no table of numbers.
    """
    if config.data.name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return {"diabetes": (x, y)}
    tables = {}
    for file in config.data.files:
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"config.data.files: there is no file {path}.")
        with path.open() as lines:
            first = lines.readline()
        try:
            [float(word) for word in first.split(",")]
            skipped = 0
        except ValueError:
            skipped = 1  # a header
        try:
            table = np.loadtxt(path, delimiter=",", skiprows=skipped, ndmin=2)
        except ValueError as error:
            raise ConfigError(f"config.data.files: {path}: {error}") from error
        if table.shape[1] < 2 or not np.isfinite(table).all():
            raise ConfigError(
                f"config.data.files: {path} must hold finite numbers in two columns or"
                f" more, the target last; got shape {table.shape}."
            )
        tables[path.stem] = table[:, :-1], table[:, -1]
    return tables


def split_rows(config, name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """Training, validation and test rows of one seed, and the folds of the first."""
    draw = 1000 * config.seed + seed
    rest, test = data.train_test_split(
        len(y), test_size=config.data.test_size, seed=draw
    )
    train, validation = data.train_test_split(
        len(rest), test_size=config.data.validation_size, seed=draw + 500
    )
    rows = {"train": rest[train], "validation": rest[validation], "test": test}
    mean, sd = y[rows["train"]].mean(), y[rows["train"]].std()
    fold = np.empty(len(train), int)
    folds = data.k_folds(len(train), config.base.num_folds, seed=draw)
    for number, (_, held_out) in enumerate(folds):
        fold[held_out] = number
    return Split(
        name,
        rows,
        {part: x[ids] for part, ids in rows.items()},
        {part: (y[ids] - mean) / (sd or 1.0) for part, ids in rows.items()},
        fold,
    )


def split_sizes(splits: dict[str, list[Split]]) -> tuple[int, int]:
    """Rows of a split that are fitted or chosen on, and its test rows.

    Of several data sets those of the largest share of test rows.
    """
    sizes = []
    for own in splits.values():
        count = {part: len(ids) for part, ids in own[0].rows.items()}
        sizes.append((count["train"] + count["validation"], count["test"]))
    return max(sizes, key=lambda pair: pair[1] / pair[0])


def base_quantiles(config, split: Split, seed: int) -> dict[str, np.ndarray]:
    """Quantiles of the base models that are no networks, by part.

    Those of the training rows are out of fold; the others are of models fitted on all
    training rows.

    Returns:
        "train", "validation", "test": `[member, batch, level]`.
    """
    fits = base.make_fits(config, 1000 * config.seed + seed)
    about = dict(levels=base.level_values(config), source=split.source)
    held_out = combine.fit_out_of_fold(
        fits,
        split.x["train"],
        split.y["train"],
        split.fold,
        rows=split.rows["train"],
        test_rows=split.rows["test"],
        **about,
    )
    new = combine.fit_and_predict(
        fits,
        split.x["train"],
        split.y["train"],
        {part: split.x[part] for part in PARTS[1:]},
        rows=split.rows["train"],
        new_rows={part: split.rows[part] for part in PARTS[1:]},
        **about,
    )
    return {p: np.asarray(q.values) for p, q in {"train": held_out, **new}.items()}


def join_base(config, splits, by_seed, nets) -> dict[str, np.ndarray]:
    """Quantiles of all base models in the order of `NAMES`, and of noise, by part.

    Args:
        config: of the run.
        splits: one for each seed.
        by_seed: of each seed, what `base_quantiles` gave.
        nets: what `train_nets` gave.

    Returns:
        "train", "validation", "test": `[seed, member, batch, level]`, the noise last.
    """
    levels = base.level_values(config)
    others = [name for name in base.NAMES if name not in base.NETS]
    joined = {}
    for number, part in enumerate(PARTS):
        stacks = []
        for seed, split in enumerate(splits):
            known = dict(zip(others, by_seed[seed][part], strict=True))
            known |= dict(zip(base.NETS, nets[part][seed], strict=True))
            noise = base.noise_quantiles(
                levels, len(split.y[part]), 10 * (1000 * config.seed + seed) + number
            )
            stacks.append(np.stack([*(known[n] for n in base.NAMES), noise]))
        joined[part] = np.stack(stacks).astype(np.float32)
    return joined
