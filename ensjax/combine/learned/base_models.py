"""Predictions for the rows that base models are trained on, each by a model without it.

What is fitted on predictions learns to trust the model that has overfitted most, if
they are of that model's own training rows. Out-of-fold predictions are not.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ensjax.data.splits import k_folds
from ensjax.provenance import Provenance


@dataclasses.dataclass(frozen=True)
class BasePredictions:
    """What base models predict for some rows.

    Attributes:
        values: `[member, batch, ...]`, such as quantiles `[member, batch, level]`.
        names: of the models.
        provenance: which rows these are, and which models were trained on them.
        fold: `[batch]`, the fold that each row was held out with; None: not held out.
    """

    values: np.ndarray
    names: tuple[str, ...]
    provenance: Provenance
    fold: np.ndarray | None = None


Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def fit_out_of_fold(
    fits: Mapping[str, Fit],
    x: np.ndarray,
    y: np.ndarray,
    *,
    num_folds: int = 5,
    seed: int = 0,
    source: str,
    rows: np.ndarray,
    test_rows: np.ndarray | None = None,
) -> BasePredictions:
    """Predictions of training rows by models that were fitted on the other folds.

    Args:
        fits: by name, `fit(x, y)` that returns `predict(x) -> [batch, ...]`. Whatever a
            model chooses or scales by the data belongs inside, so that it is done
            within the fold.
        x: inputs `[batch, ...]`.
        y: targets `[batch]`.
        num_folds: each row is predicted by models of the other `num_folds - 1`.
        seed: of the folds.
        source: names the origin of the rows.
        rows: `[batch]`, the rows' numbers there.
        test_rows: row numbers that are kept for the test.

    Returns:
        `BasePredictions` whose provenance says that no model has seen its rows.

    Raises:
        ValueError: if there is no model, lengths differ, or a prediction has another
            number of rows.
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(fits, x, y, rows)
    values, fold = None, np.empty(len(x), np.int32)
    for number, (train, held_out) in enumerate(k_folds(len(x), num_folds, seed=seed)):
        fold[held_out] = number
        part = _predict(fits, x[train], y[train], x[held_out])
        if values is None:
            values = np.empty((len(part), len(x), *part.shape[2:]), np.float32)
        values[:, held_out] = part
    provenance = Provenance.of(source, rows, test_rows=test_rows)
    return BasePredictions(values, tuple(fits), provenance, fold)


def fit_and_predict(
    fits: Mapping[str, Fit],
    x: np.ndarray,
    y: np.ndarray,
    new_x: Mapping[str, np.ndarray],
    *,
    source: str,
    rows: np.ndarray,
    new_rows: Mapping[str, np.ndarray],
) -> dict[str, BasePredictions]:
    """Predictions of other rows by models that were fitted on all of `x`.

    Args:
        fits, x, y, source, rows: as for `fit_out_of_fold`.
        new_x: inputs of other rows by what they are for: "validation", "test", ...
        new_rows: their numbers in the source, by the same words.

    Returns:
        `BasePredictions` by the same words; the provenance marks rows that are in
        `rows` too as seen.

    Raises:
        ValueError: as `fit_out_of_fold`, or if the words differ.
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(fits, x, y, rows)
    if set(new_x) != set(new_rows):
        raise ValueError(
            f"new_x and new_rows must have the same entries; got {sorted(new_x)} and"
            f" {sorted(new_rows)}."
        )
    sizes = [len(new_x[part]) for part in new_x]
    joined = np.concatenate([np.asarray(new_x[part]) for part in new_x])
    values = _predict(fits, x, y, joined)
    predictions = {}
    for part, piece in zip(new_x, np.split(values, np.cumsum(sizes)[:-1], axis=1)):
        provenance = Provenance.of(source, new_rows[part], part=part, trained_on=rows)
        predictions[part] = BasePredictions(
            piece.astype(np.float32), tuple(fits), provenance
        )
    return predictions


def _predict(fits, x, y, new_x) -> np.ndarray:
    outputs: list[Any] = []
    for name, fit in fits.items():
        output = np.asarray(fit(x, y)(new_x))
        if len(output) != len(new_x) or (outputs and output.shape != outputs[0].shape):
            raise ValueError(
                f"{name} must predict [batch={len(new_x)}, ...] of one shape for all"
                f" models; got shape {output.shape}."
            )
        outputs.append(output)
    return np.stack(outputs)


def _check(fits, x, y, rows):
    if not fits:
        raise ValueError("fits must hold at least one base model.")
    if not len(x) == len(y) == len(rows):
        raise ValueError(
            f"x, y and rows must have one length; got {len(x)}, {len(y)} and"
            f" {len(rows)}."
        )
