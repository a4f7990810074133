"""Out-of-fold predictions: every row is predicted by members that never saw it.

Level-1 rows for a meta-model, without setting rows aside. For neural members the folds
are one more stacked axis of one `fit`: K folds of M members are K * M members, and a
member differs from its siblings by the rows that it may draw.

    folds = combine.fold_of_rows(ensjax.data.k_folds(n, 5, seed=0))
    weights = combine.fold_weights(folds, num_members=4)
    ensemble = Ensemble.init(make_model, num_members=len(weights))
    ensemble, _ = fit(ensemble, (x, y), sampling="weighted", weights=weights, ...)
    level_one = combine.out_of_fold(predict(ensemble, x), folds, weights=weights)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import Predictions
from ensjax.provenance import Provenance, row_numbers


def fold_of_rows(splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The fold that holds each row out, `[batch]`, of `data.k_folds`.

    Args:
        splits: pairs `(train_ids, test_ids)` whose test rows partition all rows.

    Raises:
        TypeError: if test rows are a mask, or no row numbers.
        ValueError: if the test rows are no partition of 0 to batch - 1.
    """
    tests = [
        row_numbers(f"the test rows of split {fold}", test)
        for fold, (_, test) in enumerate(splits)
    ]
    everything = np.concatenate(tests) if tests else np.zeros(0, int)
    if not len(everything) or not np.array_equal(
        np.sort(everything), np.arange(len(everything))
    ):
        raise ValueError(
            "the folds' test rows must hold every row from 0 on once; got"
            f" {len(everything)} rows in {len(tests)} folds."
        )
    folds = np.empty(len(everything), np.int64)
    for fold, rows in enumerate(tests):
        folds[rows] = fold
    return folds


def fold_weights(
    folds: np.ndarray, num_members: int, *, sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """How often each member may draw each row: never those that its fold holds out.

    Args:
        folds: `[batch]`, integers from 0 to K - 1.
        num_members: M, members of each fold.
        sample_weight: `[batch]`, non-negative. Rows of an out-of-fold fit weigh what
            they weigh in any other fit.

    Returns:
        `[fold * member, batch]`, float32, for `fit(sampling="weighted", weights=...)`;
        member m of fold k is row k * M + m.

    Raises:
        ValueError: if a fold is empty or holds all rows, a shape does not fit, or a
            weight is negative.
    """
    folds = _check_folds(folds)
    num_folds = int(folds.max()) + 1
    weight = np.ones(len(folds)) if sample_weight is None else np.asarray(sample_weight)
    if weight.shape != folds.shape or not (weight >= 0).all():
        raise ValueError(
            f"sample_weight must be [batch] = {folds.shape} and not negative; got shape"
            f" {weight.shape}."
        )
    trains = folds[None] != np.arange(num_folds)[:, None]  # [fold, batch]
    per_fold = np.where(trains, weight[None], 0.0).astype(np.float32)
    return np.repeat(per_fold, num_members, axis=0)


def out_of_fold(
    outputs: jax.Array,
    folds: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    source: str = "rows",
    rows: np.ndarray | None = None,
    test_rows: np.ndarray | None = None,
) -> Predictions:
    """What the members of the fold that held a row out say of it, logits or points.

    Args:
        outputs: of all members on all rows, logits `[fold * member, batch, class]` or
            points `[fold * member, batch]`.
        folds: `[batch]`, as for `fold_weights`.
        weights: `[fold * member, batch]` that the members were trained with. Given,
            what they have seen is read off them and a mix-up of folds is found when
            something is fitted; otherwise the folds are believed.
        names: of the M members.
        source, rows, test_rows: of the provenance; `rows` are 0, 1, ... by default.

    Returns:
        `Predictions` of logits `[member, batch, class]` or of points `[member, batch]`
        that carry their `Provenance`.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if `outputs` are integers, as of votes.
    """
    folds = _check_folds(folds)
    outputs = jnp.asarray(outputs)
    num_folds, batch = int(folds.max()) + 1, len(folds)
    is_shaped = outputs.ndim in (2, 3) and outputs.shape[1] == batch
    if not is_shaped or outputs.shape[0] % num_folds:
        raise ValueError(
            "outputs must be [fold * member, batch, class], or points [fold * member,"
            f" batch], of {num_folds} folds and {batch} rows; got {outputs.shape}."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(
            f"outputs must be logits or points, floating point; got {outputs.dtype}."
            " Votes go in as logits: jax.nn.one_hot(votes, num_classes)."
        )
    num_members = outputs.shape[0] // num_folds
    maker = folds * num_members + np.arange(num_members)[:, None]  # [member, batch]
    values = outputs[maker, np.arange(batch)[None]]
    seen = np.zeros((1, batch), bool)
    if weights is not None:
        weights = np.asarray(weights)
        if weights.shape != outputs.shape[:2]:
            raise ValueError(
                f"weights must be [fold * member, batch] = {outputs.shape[:2]}; got"
                f" shape {weights.shape}."
            )
        seen = weights[maker, np.arange(batch)[None]] > 0
    provenance = Provenance(
        source,
        np.arange(batch) if rows is None else rows,
        "out-of-fold",
        seen,
        test_rows,
    )
    make = Predictions.from_logits if values.ndim == 3 else Predictions.from_points
    return make(values, names=names, provenance=provenance)


def estimator_out_of_fold(
    estimators: Sequence[Any],
    x: np.ndarray,
    y: np.ndarray,
    folds: np.ndarray,
    *,
    method: str = "predict_proba",
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Out-of-fold outputs of scikit-learn estimators; they are cloned, K fits of each.

    Args:
        estimators: with `fit` and `method`; they are left as they are.
        x: `[batch, ...]`.
        y: targets `[batch]`; for classifiers integers from 0 to C - 1.
        folds: `[batch]`, as for `fold_weights`.
        method: "predict_proba", "decision_function" or "predict".
        sample_weight: `[batch]`; every fit gets its rows' weights.

    Returns:
        `[member, batch, class]`, columns by class (0 for one that a fold lacks), or
        `[member, batch]` for "predict".

    Raises:
        TypeError: from an estimator that takes no sample weights; they are not dropped.
        ValueError: if a shape does not fit, or a fold lacks a class for
            "decision_function", which has no value for it.
    """
    from sklearn.base import clone

    folds = _check_folds(folds)
    x, y = np.asarray(x), np.asarray(y)
    if x.shape[:1] != folds.shape or y.shape[:1] != folds.shape:
        raise ValueError(
            f"x, y and folds must have one length; got {x.shape[:1]}, {y.shape[:1]} and"
            f" {folds.shape}."
        )
    weight = None if sample_weight is None else np.asarray(sample_weight)

    def out_of_fold_of(estimator):
        def predict(train, held_out):
            own = {} if weight is None else {"sample_weight": weight[train]}
            fitted = clone(estimator).fit(x[train], y[train], **own)
            values = getattr(fitted, method)(x[held_out])
            if method == "predict":
                return values
            lacks = f"fold {folds[held_out[0]]} lacks a class"
            return _by_class(values, fitted.classes_, int(y.max()) + 1, method, lacks)

        return predict_by_fold(folds, predict)

    return np.stack([out_of_fold_of(estimator) for estimator in estimators])


def predict_by_fold(
    folds: np.ndarray, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Every row's output by what was fitted without its fold, `[batch, ...]`.

    Args:
        folds: `[batch]`, as for `fold_weights`.
        predict: `predict(train, held_out)` of row numbers that rise: fits on the first
            and returns outputs `[held_out, ...]` of the others.

    Raises:
        ValueError: if a fold is empty or holds all rows, or outputs have another number
            of rows.
    """
    folds, out = _check_folds(folds), None
    for fold in range(folds.max() + 1):
        held_out = np.flatnonzero(folds == fold)
        values = np.asarray(predict(np.flatnonzero(folds != fold), held_out))
        if len(values) != len(held_out):
            raise ValueError(
                f"fold {fold} has {len(held_out)} rows; its outputs have the shape"
                f" {values.shape}."
            )
        if out is None:
            out = np.zeros((len(folds), *values.shape[1:]), values.dtype)
        out[held_out] = values
    return out


def _by_class(values, classes, num_classes, method, lacks):
    if method == "decision_function":
        if len(classes) != num_classes:
            raise ValueError(
                f"{lacks}, for which there is no decision value; stratify the folds:"
                " data.k_folds(..., labels=y)."
            )
        return values[:, None] if values.ndim == 1 else values
    full = np.zeros((len(values), num_classes), values.dtype)
    full[:, np.asarray(classes, int)] = values
    return full


def _check_folds(folds):
    folds = np.asarray(folds)
    if folds.ndim != 1 or not np.issubdtype(folds.dtype, np.integer) or not len(folds):
        raise ValueError(
            f"folds must be integers [batch]; got {folds.dtype} of shape {folds.shape}."
        )
    counts = np.bincount(folds) if folds.min() >= 0 else np.zeros(1)
    if len(counts) < 2 or not counts.all():
        raise ValueError(
            "folds must number at least two folds from 0 on, each with a row; got"
            f" {np.unique(folds).tolist()}."
        )
    return folds
