"""Predictions of members of any kind: ensembles, scikit-learn's estimators, and both.

What somebody else has written into a file is read by `ensjax.prediction_files`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.group import Group, predict
from ensjax.member_arrays import plain_label
from ensjax.predictions import Predictions
from ensjax.provenance import Provenance, merge_members

_MAKERS = {
    "logits": Predictions.from_logits,
    "points": Predictions.from_points,
    "features": Predictions.from_features,
}


def from_ensemble(
    ensemble: Ensemble | Group,
    x: Any,
    *,
    kind: str = "logits",
    batch_size: int = 512,
    block: int | str | None = "auto",
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    names: Sequence[str] | None = None,
    provenance: Provenance | None = None,
) -> Predictions:
    """What every member of an `Ensemble` or `Group` says of `x` (compiled).

    Args:
        ensemble: the members; the output of each is one array.
        x: inputs, leaves `[example, ...]`.
        kind: what the output is: "logits", "points" or "features".
        batch_size, block: as for `ensjax.predict`.
        weights, mask, names, provenance: as for `Predictions.from_logits`.

    Raises:
        ValueError: if `kind` is unknown or a shape does not fit.
        TypeError: if the members return several arrays.
    """
    if kind not in _MAKERS:
        raise ValueError(f"kind must be one of {', '.join(_MAKERS)}; got {kind!r}.")
    outputs = predict(ensemble, x, batch_size=batch_size, block=block)
    if not isinstance(outputs, jax.Array):
        raise TypeError(
            "from_ensemble takes members that return one array; these return"
            f" {jax.tree.structure(outputs)}. Use ensjax.predict, and the Predictions"
            " constructor of the array that is meant."
        )
    return _MAKERS[kind](
        outputs, weights=weights, mask=mask, names=names, provenance=provenance
    )


def from_sklearn(
    estimators: Sequence[Any] | Mapping[str, Any],
    x: Any,
    *,
    classes: Sequence[Any] | None = None,
    kind: str | None = None,
    smallest: float = 1e-7,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    names: Sequence[str] | None = None,
    provenance: Provenance | None = None,
) -> Predictions:
    """What fitted scikit-learn estimators say of `x`: probabilities, votes or points.

    Whatever has `predict`, and `classes_` if it classifies, will do: pipelines,
    searches, other libraries' estimators.

    Args:
        estimators: fitted, or name -> fitted estimator.
        x: inputs `[batch, ...]`, as the estimators take them.
        classes: labels of all classes, in the order of the class axis; None: the labels
            that any estimator knows, sorted. An estimator that has not seen a class
            gives it no probability (`smallest`).
        kind: "probs", "votes" or "points"; None: points of regressors, probabilities of
            classifiers, and votes of all classifiers if one has no `predict_proba`.
        smallest: see `Predictions.from_probs`.
        weights, mask, names, provenance: as for `Predictions.from_logits`.

    Returns:
        `Predictions` whose `columns` are the classes. Labels become class indices:
        `encode_labels(y, predictions.columns)`.

    Raises:
        ValueError: if an estimator knows a label that is not in `classes` (the error
            names both), or outputs differ in shape.
        TypeError: if classifiers and regressors are mixed, or an estimator cannot give
            what `kind` asks for.
    """
    if isinstance(estimators, Mapping):
        names = list(estimators) if names is None else names
        estimators = list(estimators.values())
    estimators = list(estimators)
    if not estimators:
        raise ValueError("from_sklearn needs at least one estimator.")
    if names is None:
        names = [f"{i} {type(e).__name__}" for i, e in enumerate(estimators)]
    told = dict(weights=weights, mask=mask, names=names, provenance=provenance)
    kind = _kind(estimators, names, kind)
    if kind == "points":
        points = [np.asarray(e.predict(x), np.float32) for e in estimators]
        return Predictions.from_points(_stacked(points, names), **told)
    classes = _all_classes(estimators, names, classes)
    told["columns"] = classes
    if kind == "votes":
        votes = [
            encode_labels(e.predict(x), classes, who=f"member {name!r}")
            for e, name in zip(estimators, names, strict=True)
        ]
        return Predictions.from_votes(_stacked(votes, names), len(classes), **told)
    members = []
    for estimator, name in zip(estimators, names, strict=True):
        own = np.asarray(estimator.predict_proba(x))
        probs = np.zeros((len(own), len(classes)), np.float32)
        places = encode_labels(estimator.classes_, classes, who=f"member {name!r}")
        if own.shape[1:] != (len(places),):
            raise ValueError(
                f"member {name!r} gives probabilities {own.shape} for its"
                f" {len(places)} classes."
            )
        probs[:, places] = own
        members.append(probs)
    return Predictions.from_probs(_stacked(members, names), smallest=smallest, **told)


def encode_labels(
    labels: Any, classes: Sequence[Any], *, who: str = "labels"
) -> np.ndarray:
    """Class indices `[batch]` of labels of any kind; int32.

    Labels are equal as Python's values are: 1, 1.0 and True are one label, "1" is
    another.

    Args:
        labels: `[batch]`: strings, -1 and +1, numbers.
        classes: labels in the order of the class axis.
        who: whose labels they are, for the error.

    Raises:
        ValueError: if a label is not among the classes, or a class comes twice.
    """
    places = {plain_label(label): place for place, label in enumerate(classes)}
    if len(places) < len(classes):
        raise ValueError(f"classes must be different labels; got {tuple(classes)}.")
    plain = [plain_label(label) for label in np.asarray(labels).reshape(-1)]
    unknown = sorted({label for label in plain if label not in places}, key=repr)
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:5])
        raise ValueError(
            f"{who}: unknown {shown}; the classes are"
            f" {tuple(map(plain_label, classes))}."
        )
    return np.asarray([places[label] for label in plain], np.int32)


def concatenate_predictions(parts: Sequence[Predictions]) -> Predictions:
    """The members of all parts, in order: several sources' predictions of equal rows.

    Weights stay as they are: they are relative to each other over all sources. Names
    may repeat. Logits and log-probabilities go together, and labels 0, 1, ... with
    class indices that have no labels.

    Raises:
        ValueError: if rows, kinds, classes, levels or columns differ, only some state a
            scale or an interval, or the provenance cannot be merged.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("concatenate_predictions needs at least one part.")
    if {part.kind for part in parts} == {"logits", "log_probs"}:
        parts = [part.replace(kind="logits") for part in parts]
    parts = [_without_plain_columns(part) for part in parts]
    first = parts[0]
    for place, part in enumerate(parts[1:], start=2):
        for name in ("kind", "num_classes", "levels", "columns"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"predictions of several sources must agree in {name}; the first"
                    f" has {getattr(first, name)!r}, number {place}"
                    f" {getattr(part, name)!r}."
                )
        if part.values.shape[1:] != first.values.shape[1:]:
            raise ValueError(
                "predictions of several sources must be of the same rows: the first is"
                f" {first.values.shape}, number {place} is {part.values.shape}."
            )
    joined = {}
    for name in ("values", "mask", "weights", "scale", "lower", "upper"):
        arrays = [getattr(part, name) for part in parts]
        if all(array is None for array in arrays):
            continue
        if any(array is None for array in arrays):
            raise ValueError(
                f"either all sources state {name} or none does; leave it out with"
                f" .replace({name}=None)."
            )
        if name in ("mask", "weights") and len({array.ndim for array in arrays}) > 1:
            rows = first.values.shape[1]
            arrays = [
                jnp.broadcast_to(array.reshape(len(array), -1), (len(array), rows))
                for array in arrays
            ]
        joined[name] = jnp.concatenate(arrays)
    return first.replace(
        names=tuple(name for part in parts for name in part.names),
        provenance=merge_members(
            [part.provenance for part in parts], [part.num_members for part in parts]
        ),
        **joined,
    )


def _without_plain_columns(part):
    """Classes 0, 1, ... are what class indices mean where no labels are stated."""
    if part.num_classes and part.columns == tuple(range(part.num_classes)):
        return part.replace(columns=None)
    return part


def _kind(estimators, names, kind):
    classifies = [hasattr(e, "classes_") for e in estimators]
    if kind not in (None, "probs", "votes", "points"):
        raise ValueError(f'kind must be "probs", "votes" or "points"; got {kind!r}.')
    for estimator, name, does in zip(estimators, names, classifies, strict=True):
        if not does and _is_classifier(estimator):
            raise ValueError(f"member {name!r} is a classifier that is not fitted.")
    if any(classifies) and not all(classifies):
        raise TypeError(
            f"classifiers and regressors make no ensemble: member"
            f" {names[classifies.index(False)]!r} has no classes_, member"
            f" {names[classifies.index(True)]!r} has."
        )
    without = [n for n, e in zip(names, estimators) if not hasattr(e, "predict_proba")]
    if not classifies[0]:
        if kind not in (None, "points"):
            raise TypeError(f"regressors give points, not {kind}.")
        return "points"
    if kind == "points":
        raise TypeError('classifiers give "probs" or "votes", not points.')
    if kind == "probs" and without:
        raise TypeError(
            f"member {without[0]!r} has no predict_proba. Use votes, or wrap it in"
            " CalibratedClassifierCV."
        )
    return kind or ("votes" if without else "probs")


def _is_classifier(estimator):
    from sklearn.base import is_classifier

    return hasattr(estimator, "__sklearn_tags__") and is_classifier(estimator)


def _all_classes(estimators, names, classes):
    for estimator, name in zip(estimators, names, strict=True):
        if np.ndim(estimator.classes_) != 1 or isinstance(estimator.classes_, list):
            raise TypeError(f"member {name!r} has several outputs; it must have one.")
    known = {plain_label(label) for e in estimators for label in e.classes_}
    if classes is not None:
        return tuple(plain_label(label) for label in classes)
    try:
        return tuple(sorted(known))
    except TypeError:
        raise ValueError(
            f"members' labels are of several kinds: {sorted(known, key=repr)}; encode"
            " them alike before fitting."
        ) from None


def _stacked(members, names):
    shapes = {member.shape for member in members}
    if len(shapes) > 1:
        odd = next(i for i, m in enumerate(members) if m.shape != members[0].shape)
        raise ValueError(
            f"members must agree in shape: {names[0]!r} gives {members[0].shape},"
            f" {names[odd]!r} {members[odd].shape}."
        )
    return np.stack(members)
