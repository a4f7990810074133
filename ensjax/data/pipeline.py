"""scikit-learn's selectors, scalers, samplers and estimators, fitted inside splits.

Each stage is cloned, so that nothing it has learned elsewhere comes along, and is
fitted on the training rows of one split. No function takes rows that were prepared
beforehand together with a split: preparing them is what the stages are for.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ensjax.data.partition import Split
from ensjax.provenance import Provenance


@dataclasses.dataclass(frozen=True, eq=False)
class FittedPipeline:
    """Stages fitted on the training rows of one split.

    Attributes:
        transforms: fitted stages with `transform`, in order.
        estimator: the fitted last stage, if it predicts; else None.
        split: the split.
    """

    transforms: tuple
    estimator: Any
    split: Split

    def transform(self, x: np.ndarray) -> np.ndarray:
        """New rows as the estimator sees them; samplers change training rows only."""
        for stage in self.transforms:
            x = stage.transform(x)
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The estimator's predictions for new rows."""
        return self._estimator().predict(self.transform(x))

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """The estimator's probabilities `[batch, class]` for new rows."""
        return self._estimator().predict_proba(self.transform(x))

    def _estimator(self):
        if self.estimator is None:
            raise TypeError("the last stage only transforms; add an estimator.")
        return self.estimator


def fit_in_splits(
    stages: Sequence[Any], x: np.ndarray, y: np.ndarray, splits: Iterable[Split]
) -> list[FittedPipeline]:
    """Fits stages one behind the other on the "train" rows of every split.

    Args:
        stages: scikit-learn objects: transformers (`fit`, `transform`), samplers
            (`fit_resample`, as in imbalanced-learn, which change the training rows and
            nothing else) and, as the last one, perhaps an estimator (`predict`).
        x: `[example, ...]` of the whole source, as it is.
        y: `[example]`.
        splits: of this source, such as `Folds`.

    Returns:
        One `FittedPipeline` for each split.

    Raises:
        ValueError: if a length does not fit, or there is no stage.
        TypeError: if a stage can do none of these.
    """
    from sklearn.base import clone  # a second to import

    if not stages:
        raise ValueError("there is at least one stage; got none.")
    x, y = np.asarray(x), np.asarray(y)
    fitted = []
    for split in splits:
        if not len(x) == len(y) == split.num_examples:
            raise ValueError(
                f"x and y must hold the {split.num_examples} rows of {split.source!r};"
                f" got {len(x)} and {len(y)}."
            )
        rows = split["train"]
        seen, labels, transforms, estimator = x[rows], y[rows], [], None
        for number, stage in enumerate(stages):
            stage = clone(stage)
            if hasattr(stage, "fit_resample"):
                seen, labels = stage.fit_resample(seen, labels)
            elif hasattr(stage, "transform"):
                stage.fit(seen, labels)
                seen = stage.transform(seen)
                transforms.append(stage)
            elif hasattr(stage, "predict") and number == len(stages) - 1:
                estimator = stage.fit(seen, labels)
            else:
                raise TypeError(
                    f"stage {number}, {type(stage).__name__}, has neither transform nor"
                    " fit_resample; an estimator comes last."
                )
        fitted.append(FittedPipeline(tuple(transforms), estimator, split))
    return fitted


def predict_held_out(
    pipelines: Sequence[FittedPipeline], x: np.ndarray, *, part: str = "test"
) -> tuple[np.ndarray, Provenance]:
    """Probabilities of every split's held-out rows, by ascending row, and provenance.

    For folds these are out-of-fold predictions of all rows.

    Args:
        pipelines: of splits that hold out different rows, with an estimator that has
            `predict_proba`.
        x: `[example, ...]` of the whole source.
        part: the part that is predicted.

    Returns:
        `[row, class]`, with a column for each class that any pipeline was fitted on, in
        ascending order, and 0 in those that the row's own pipeline lacks. And a
        `Provenance` that says, row by row, whether the pipeline
        that predicted it was fitted on it. Its part is `part`; what is to be fitted on
        out-of-fold predictions takes them as `provenance.take(..., part="validation")`.

    Raises:
        ValueError: if a row is held out twice, or the estimators say different numbers
            of columns and not which classes these are (`classes_`).
    """
    if not pipelines:
        raise ValueError("there is at least one pipeline; got none.")
    rows = np.concatenate([p.split[part] for p in pipelines])
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"a row is in the part {part!r} of two splits.")
    order = np.argsort(rows)
    probs = np.concatenate(
        _by_class(
            [p.predict_proba(x[p.split[part]]) for p in pipelines],
            [getattr(p.estimator, "classes_", None) for p in pipelines],
        )
    )
    seen = [np.isin(p.split[part], p.split["train"]) for p in pipelines]
    provenance = Provenance(
        pipelines[0].split.source,
        rows[order],
        part,
        np.concatenate(seen)[order][None],
    )
    return probs[order], provenance


def _by_class(probs, classes):
    """Probabilities of several estimators, with the columns of all their classes."""
    if any(own is None for own in classes):
        widths = sorted({said.shape[1] for said in probs})
        if len(widths) > 1:
            raise ValueError(
                f"the estimators' probabilities have {widths} columns, and these do not"
                " say which classes they are of (classes_); stratify the folds:"
                " data.make_folds(..., labels=y)."
            )
        return probs
    every = np.unique(np.concatenate(classes))
    placed = []
    for said, own in zip(probs, classes, strict=True):
        full = np.zeros((len(said), len(every)), said.dtype)
        full[:, np.searchsorted(every, own)] = said
        placed.append(full)
    return placed
