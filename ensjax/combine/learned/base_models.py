"""Predictions for the rows that base models are trained on, each by a model without it.

What is fitted on predictions learns to trust the model that has overfitted most, if
they are of that model's own training rows. Out-of-fold predictions are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ensjax.combine.learned.folds import predict_by_fold
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def fit_out_of_fold(
    fits: Mapping[str, Fit],
    x: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray,
    *,
    levels: Sequence[float] | None = None,
    source: str,
    rows: np.ndarray,
    test_rows: np.ndarray | None = None,
) -> Predictions:
    """Predictions of training rows by models that were fitted on the other folds.

    Args:
        fits: by name, `fit(x, y)` that returns `predict(x) -> [batch, ...]`. Whatever a
            model chooses or scales by the data belongs inside, so that it is done
            within the fold.
        x: inputs `[batch, ...]`.
        y: targets `[batch]`.
        folds: `[batch]`, the fold that holds each row out, as from `fold_of_rows`.
        levels: given, models predict quantiles `[batch, level]`; None: points `[batch]`
            or `[batch, target]`.
        source: names the origin of the rows.
        rows: `[batch]`, the rows' numbers there.
        test_rows: row numbers that are kept for the test.

    Returns:
        `Predictions` of quantiles or points whose provenance says that no model has
        seen its rows.

    Raises:
        ValueError: if there is no model, lengths differ, a fold is empty or holds all
            rows, or a prediction has another shape.
    """
    x, y, folds = np.asarray(x), np.asarray(y), np.asarray(folds)
    _check(fits, x=x, y=y, folds=folds, rows=rows)

    def predict(train, held_out):
        values = _predict(fits, x[train], y[train], x[held_out])
        return np.moveaxis(values, 0, 1)

    values = np.moveaxis(predict_by_fold(folds, predict), 1, 0)
    provenance = Provenance.of(
        source, rows, part="out-of-fold", trained_on=[], test_rows=test_rows
    )
    return _predictions(values, levels, fits, provenance)


def fit_and_predict(
    fits: Mapping[str, Fit],
    x: np.ndarray,
    y: np.ndarray,
    new_x: Mapping[str, np.ndarray],
    *,
    levels: Sequence[float] | None = None,
    source: str,
    rows: np.ndarray,
    new_rows: Mapping[str, np.ndarray],
) -> dict[str, Predictions]:
    """Predictions of other rows by models that were fitted on all of `x`.

    Args:
        fits, x, y, levels, source, rows: as for `fit_out_of_fold`.
        new_x: inputs of other rows by what they are for: "validation", "test", ...
        new_rows: their numbers in the source, by the same words.

    Returns:
        `Predictions` by the same words; the provenance marks rows that are in `rows`
        too as seen.

    Raises:
        ValueError: as `fit_out_of_fold`, or if the words differ.
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(fits, x=x, y=y, rows=rows)
    if set(new_x) != set(new_rows):
        raise ValueError(
            f"new_x and new_rows must have the same entries; got {sorted(new_x)} and"
            f" {sorted(new_rows)}."
        )
    sizes = [len(new_x[part]) for part in new_x]
    joined = np.concatenate([np.asarray(new_x[part]) for part in new_x])
    values = _predict(fits, x, y, joined)
    pieces = np.split(values, np.cumsum(sizes)[:-1], axis=1)
    predictions = {}
    for part, piece in zip(new_x, pieces):
        provenance = Provenance.of(source, new_rows[part], part=part, trained_on=rows)
        predictions[part] = _predictions(piece, levels, fits, provenance)
    return predictions


def _predictions(values, levels, fits, provenance):
    about = dict(names=tuple(fits), provenance=provenance)
    if levels is None:
        return Predictions.from_points(values, **about)
    return Predictions.from_quantiles(values, levels, **about)


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


def _check(fits, **arrays):
    if not fits:
        raise ValueError("fits must hold at least one base model.")
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"all must have one row for each example; got {listed} rows.")
