"""A labelled data set whose rows know where they came from, and its checks."""

import dataclasses

import numpy as np

from ensjax.data.splits import check_disjoint


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and test arrays of a classification problem, with their provenance.

    Attributes:
        x_train, x_test: inputs, `[example, ...]`; images are `[example, height, width,
            channel]`, float32.
        y_train, y_test: labels, `[example]`, int32 in `[0, num_classes)`.
        num_classes: number of classes.
        class_names: one name per class, by label.
        name: the loader's name.
        source: which data these are, in words.
        train_ids, test_ids: `[example]`, the rows' numbers in the source, where files
            are numbered one after the other, training files first. No row is in both.

    Raises:
        ValueError: as `check_dataset` and `check_disjoint`, when it is made.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    name: str
    source: str
    train_ids: np.ndarray
    test_ids: np.ndarray

    def __post_init__(self):
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            check_dataset(x, y, self.num_classes, names=(f"x_{part}", f"y_{part}"))
            ids = getattr(self, f"{part}_ids")
            if ids.shape != y.shape:
                raise ValueError(
                    f"{part}_ids must have one row number per example of y_{part},"
                    f" shape {y.shape}; got shape {ids.shape}."
                )
        check_disjoint(self.train_ids, self.test_ids, names=("train_ids", "test_ids"))
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must hold num_classes={self.num_classes} names; got"
                f" {len(self.class_names)}."
            )

    def __repr__(self):
        return (
            f"Dataset({self.name!r}, x_train {self.x_train.shape}, x_test"
            f" {self.x_test.shape}, {self.num_classes} classes, {self.source})"
        )


def check_dataset(
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int,
    *,
    names: tuple[str, str] = ("x", "y"),
) -> None:
    """Raises unless `x` and `y` are a usable labelled data set.

    Args:
        x: inputs, `[example, ...]`.
        y: integer labels, `[example]`.
        num_classes: labels must lie in `[0, num_classes)`.
        names: what the error calls the two arrays.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if an array is empty, the lengths differ, an input is not finite, or
            a label is outside the classes. The message names the array and the row.
    """
    x, y = np.asarray(x), np.asarray(y)
    x_name, y_name = names
    for array, name in ((x, x_name), (y, y_name)):
        if array.ndim == 0 or array.size == 0:
            raise ValueError(
                f"{name} must hold at least one example; got shape {array.shape}."
            )
    if y.ndim != 1:
        raise ValueError(
            f"{y_name} must be class numbers, [example]; got shape {y.shape}."
            " One-hot labels become numbers with labels.argmax(-1)."
        )
    if len(x) != len(y):
        raise ValueError(
            f"{x_name} and {y_name} must have one row per example; {x_name} has"
            f" {len(x)} rows and {y_name} has {len(y)}."
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(
            f"{y_name} must be integers; got {y.dtype}. Cast with .astype('int32')."
        )
    if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        raise ValueError(
            f"{x_name} must be finite; {bad.size} of {len(x)} rows hold NaN or"
            f" infinity, the first is row {bad[0]}. Drop or fill them."
        )
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if outside.size:
        raise ValueError(
            f"{y_name} must lie in [0, {num_classes}); row {outside[0]} is"
            f" {y[outside[0]]} ({outside.size} such rows). Give the right num_classes,"
            " or renumber the classes from 0."
        )
