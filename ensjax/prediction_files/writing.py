"""Writes predictions: beside the old file, which is replaced once all is written."""

import csv
import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from ensjax.prediction_files.labels import OPTIONAL, by_number, listed
from ensjax.predictions import ABSTAIN, Predictions

_ARRAYS = ("values", "mask", "weights", *OPTIONAL)


def save_predictions(
    path: str | os.PathLike,
    predictions: Predictions,
    *,
    rows: Sequence[Any] | None = None,
) -> None:
    """Writes predictions to `path`: `.npz` keeps everything, `.csv` anybody can read.

    What was in the file stays there until all of the new is written, and where these
    predictions cannot be saved. Classes, members and rows come back in their order,
    those too that no line would hold; labels of classes as text, or as integers if all
    are.

    Args:
        path: ends in `.npz` or `.csv`.
        predictions: a CSV file holds no features, no weights but equal ones,
            probabilities of logits, and of the provenance the row numbers and which
            rows members have seen: not the source, the part and the test rows, so that
            `load_predictions` needs `source=` (and `part=`) again.
        rows: `[batch]`, what the rows are called in a CSV file; None: the row numbers
            of the provenance, or 0, 1, ...

    Raises:
        ValueError: for another suffix, or for what a CSV file cannot hold.
        TypeError: for labels or names of a .npz file that are neither text, numbers nor
            bools, or rows that are a mask or a set.
    """
    path = epath.Path(path)
    if path.suffix == ".npz":
        packed = _packed(predictions)
        _replace_file(path, "wb", lambda file: np.savez(file, **packed))
    elif path.suffix == ".csv":
        lines = _lines(predictions, rows)
        _replace_file(
            path,
            "w",
            lambda file: csv.writer(file, lineterminator="\n").writerows(lines),
        )
    else:
        raise ValueError(f"predictions are saved as .npz or .csv; got {path}.")


def _replace_file(path: epath.Path, mode: str, write: Callable[[Any], None]):
    """Writes beside the file, then replaces it: it is the old one or the new, whole."""
    owner = f"{os.getpid()}.{threading.get_ident()}"
    temporary = path.parent / f".{path.name}.{owner}.tmp"
    try:
        with temporary.open(mode) as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _packed(predictions):
    for name in ("names", "columns"):
        for label in getattr(predictions, name) or ():
            if not isinstance(label, str | int | float | None):
                raise TypeError(
                    f"{name} are saved if they are text, numbers or bools; got"
                    f" {label!r}. Give others with predictions.replace({name}=...)."
                )
    provenance = predictions.provenance
    facts = {
        name: getattr(predictions, name)
        for name in ("kind", "names", "num_classes", "columns", "levels")
    }
    arrays = {
        name: np.asarray(value)
        for name in _ARRAYS
        if (value := getattr(predictions, name)) is not None
    }
    if provenance is not None:
        facts |= {"source": provenance.source, "part": provenance.part}
        for name in ("rows", "seen", "test_rows", "known"):
            if getattr(provenance, name) is not None:
                arrays[name] = getattr(provenance, name)
    return arrays | {"facts": np.asarray(json.dumps(facts))}


def _lines(predictions, rows):
    kind = predictions.kind
    if kind == "features":
        raise ValueError("features are saved as .npz, not as .csv.")
    weights = np.asarray(predictions.weights)
    if weights.size and (weights != weights.flat[0]).any():
        raise ValueError(
            "a .csv file holds no weights; save as .npz, or drop them with"
            " predictions.replace(weights=jnp.ones(predictions.num_members))."
        )
    values = np.asarray(predictions.values)
    if kind in ("logits", "log_probs"):
        values = np.exp(np.asarray(predictions.log_probs, np.float64))
    shape = num_members, num_rows = values.shape[:2]
    mask = np.asarray(predictions.mask).reshape(num_members, -1)
    mask = np.broadcast_to(mask, shape)
    if not mask.any():
        raise ValueError("a .csv file holds what members say; these are all masked.")
    more = [n for n in OPTIONAL if getattr(predictions, n) is not None]
    parts = [np.asarray(getattr(predictions, n)) for n in more]
    if not all(np.isfinite(part[mask]).all() for part in (values, *parts)):
        raise ValueError(
            "a .csv file holds finite numbers; mask the members and rows of which they"
            " are missing, or save as .npz."
        )
    if kind == "votes":
        last, votes = predictions.num_classes - 1, values[mask]
        if ((votes < ABSTAIN) | (votes > last)).any():
            raise ValueError(f"votes must be classes from 0 to {last}, or {ABSTAIN}.")
    if rows is None:
        known = predictions.provenance
        rows = range(num_rows) if known is None else known.rows.tolist()
    members = _texts("names of members", predictions.names, num_members)
    rows = _texts("rows", listed(rows), num_rows)
    what = {"points": "target", "quantiles": "level"}.get(kind, "class")
    has_columns = values.ndim == 3 or kind == "votes"
    seen = _seen_as_text(predictions.provenance, shape)
    columns = None
    if has_columns:
        size = predictions.num_classes if kind == "votes" else values.shape[2]
        columns = predictions.levels or predictions.columns or range(size)
        columns = _texts(f"the names of each {what}", columns, size)
    header = [
        "member",
        "row",
        *([what] if has_columns else []),
        *([] if kind == "votes" else ["value"]),
        *more,
        *([] if seen is None else ["seen"]),
    ]
    naming = _naming_lines(header, members, rows, columns, mask)
    said = _said(values, parts, members, rows, columns, mask, seen)
    return itertools.chain([header], naming, said)


def _naming_lines(header, members, rows, columns, mask):
    """Of what would otherwise not be found, or in another order."""
    pairs = np.argwhere(mask)
    found = {
        "member": [members[m] for m in dict.fromkeys(pairs[:, 0].tolist())],
        "row": by_number([rows[r] for r in dict.fromkeys(pairs[:, 1].tolist())], list),
    }
    texts = {"member": members, "row": rows}
    if columns is not None and header[2] != "level":
        # Of votes always: which classes got one is not the same in each file.
        listed = by_number(columns, sorted) if header[2] == "class" else columns
        found[header[2]] = listed if "value" in header else None
        texts[header[2]] = columns
    for name, own in texts.items():
        if own != found[name]:
            for text in own:
                yield [text if column == name else "" for column in header]


def _said(values, parts, members, rows, columns, mask, seen):
    """The lines of what members say."""
    for member, row in np.argwhere(mask):
        start = [members[member], rows[row]]
        last = [] if seen is None else [seen[member, row]]
        if columns is not None and values.ndim == 2:
            vote = values[member, row]
            yield [*start, "" if vote == ABSTAIN else columns[vote], *last]
            continue
        entries = [a[member, row].reshape(-1) for a in (values, *parts)]
        for place, numbers in enumerate(zip(*entries)):
            # repr of float64 is exact for float32 values.
            numbers = [repr(float(number)) for number in numbers]
            column = [] if columns is None else [columns[place]]
            yield [*start, *column, *numbers, *last]


def _texts(what, labels, size):
    """As they stand in the file and are read back: different, and on one line."""
    texts = [str(label) for label in labels]
    if len(texts) != size or len(set(texts)) != size:
        raise ValueError(
            f"{what} must be {size} different names; got {len(texts)}, of which"
            f" {len(set(texts))} differ."
        )
    for text in texts:
        if not text or text != text.strip() or "\n" in text or "\r" in text:
            raise ValueError(
                f"{what} must not be empty, have spaces around them or several lines;"
                f" got {text!r}."
            )
    return texts


def _seen_as_text(provenance, shape):
    if provenance is None or provenance.seen is None:
        return None
    known = True if provenance.known is None else provenance.known[:, None]
    text = np.where(provenance.seen, "1", np.where(known, "0", ""))
    return np.broadcast_to(text, shape)
