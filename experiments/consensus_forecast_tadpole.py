"""The challenge's own files: submissions of forecasts, and D4, what came true.

A submission is a CSV file with one line for each person and month: RID, forecast month
and date (year-month), relative probabilities of CN, MCI and AD, and ADAS13 and
ventricles (over intracranial volume), each with the ends of a 50 % interval. D4 has one
line for each visit: RID, CogAssessmentDate, ScanDate, Diagnosis, ADAS13, Ventricles.

The format is that of the challenge's evaluation script, github.com/noxtoby/TADPOLE.
"""

import csv
import datetime
import math
import re
from pathlib import Path

import numpy as np

from ensjax.experiment import ConfigError

CLASSES = ("CN", "MCI", "AD")
_PROBS = tuple(f"{name.lower()}relativeprobability" for name in CLASSES)
_OUTCOMES = {"score": "adas13", "ventricles": "ventriclesicv"}
_POINTS = {
    outcome: (name, f"{name}50cilower", f"{name}50ciupper")
    for outcome, name in _OUTCOMES.items()
}
_NEEDED = (
    "rid",
    "forecastmonth",
    "forecastdate",
    *_PROBS,
    *(column for columns in _POINTS.values() for column in columns),
)
_D4 = ("rid", "cogassessmentdate", "scandate", "diagnosis", "adas13", "ventricles")


def read_submission(path):
    """One submission: `rid`, `month`, `day`, `probs`, and points by outcome.

    Probabilities are normalised. Points are `[line, 3]`: value, lower and upper end.

    Raises:
        ConfigError: naming the file and the line.
    """
    columns = _read(path, _NEEDED)
    probs = np.stack([_numbers(path, columns, name) for name in _PROBS], axis=1)
    bad = np.flatnonzero(~((probs >= 0).all(axis=1) & (probs.sum(axis=1) > 0)))
    if len(bad):
        _fail(path, bad[0], f"relative probabilities are {probs[bad[0]]}")
    found = {
        "rid": _numbers(path, columns, "rid").astype(np.int64),
        "month": _numbers(path, columns, "forecastmonth").astype(np.int64),
        "day": _days(path, columns, "forecastdate"),
        "probs": probs / probs.sum(axis=1, keepdims=True),
    }
    for outcome, names in _POINTS.items():
        ends = [_numbers(path, columns, name) for name in names]
        found[outcome] = np.stack(ends, axis=1)
    return found


def read_truth(path):
    """D4: `rid`, `cognitive_day`, `scan_day`, `labels` (-1: unknown) and both outcomes.

    Unknown numbers are NaN; a visit without a date has the day -1.
    """
    columns = _read(path, _D4)
    labels = []
    for line, text in enumerate(columns["diagnosis"]):
        if _is_missing(text):
            labels.append(-1)
        elif text in CLASSES:
            labels.append(CLASSES.index(text))
        else:
            _fail(path, line, f"Diagnosis is CN, MCI, AD or empty; got {text!r}")
    return {
        "rid": _numbers(path, columns, "rid").astype(np.int64),
        "cognitive_day": _days(path, columns, "cogassessmentdate", missing=True),
        "scan_day": _days(path, columns, "scandate", missing=True),
        "labels": np.asarray(labels),
        "score": _numbers(path, columns, "adas13", missing=True),
        "ventricles": _numbers(path, columns, "ventricles", missing=True),
    }


def load_forecasts(folder, truth_path, min_months):
    """All submissions of a folder at the visits of D4, nearest forecast in time.

    Diagnosis and ADAS13 are matched by the date of the cognitive assessment, ventricles
    by that of the scan. Submissions that lack a person of D4, or forecast fewer than
    `min_months` months of one, are left out.

    Returns:
        Arrays as `forecast_study` gives them, `[member, visit, ...]`, with
        `weight [visit]` of the diagnosis and `<outcome>_weight`, 0 where the truth is
        unknown; `people [visit]` and `left_out`, the names of files.

    Raises:
        ConfigError: if a file cannot be read, or no submission is complete.
    """
    truth = read_truth(truth_path)
    kept, left_out, parts = [], [], []
    for path in sorted(Path(folder).glob("*.csv")):
        submission = read_submission(path)
        part = _at_visits(submission, truth, min_months)
        (left_out if part is None else kept).append(path.stem)
        if part is not None:
            parts.append(part)
    if not parts:
        raise ConfigError(
            f"config.tadpole.submissions: no .csv file of {folder} covers all people of"
            f" {truth_path} for {min_months} months."
        )
    found = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    known = (truth["labels"] >= 0) & (truth["cognitive_day"] >= 0)
    found |= {
        "targets": np.where(known, truth["labels"], 0),
        "weight": known.astype(float),
        "people": truth["rid"],
        "names": np.asarray(kept),
        "left_out": np.asarray(left_out, dtype=str),
    }
    for outcome, day in (("score", "cognitive_day"), ("ventricles", "scan_day")):
        known = np.isfinite(truth[outcome]) & (truth[day] >= 0)
        found[f"{outcome}_targets"] = np.where(known, truth[outcome], 0.0)
        found[f"{outcome}_weight"] = known.astype(float)
    return found


def _at_visits(submission, truth, min_months):
    """The submission's forecasts at every visit, or None if it is not complete."""
    lines = {"cognitive_day": [], "scan_day": []}
    for person in np.unique(truth["rid"]):
        own = submission["rid"] == person
        if len(np.unique(submission["month"][own])) < min_months:
            return None
    for row, person in enumerate(truth["rid"]):
        own = np.flatnonzero(submission["rid"] == person)
        for day, chosen in lines.items():
            away = np.abs(submission["day"][own] - truth[day][row])
            chosen.append(own[np.argmin(away)])
    found = {"probs": submission["probs"][lines["cognitive_day"]]}
    for outcome, day in (("score", "cognitive_day"), ("ventricles", "scan_day")):
        values = submission[outcome][lines[day]]
        for place, name in enumerate(("points", "lower", "upper")):
            found[f"{outcome}_{name}"] = values[:, place]
    return found


def _read(path, needed):
    """Columns of text by plain name: small letters and digits alone."""
    with Path(path).open(newline="") as file:
        reader = csv.reader(file)
        header = [re.sub("[^a-z0-9]", "", name.lower()) for name in next(reader, [])]
        lacking = [name for name in needed if name not in header]
        if lacking:
            raise ConfigError(f"{path}, line 1: columns {lacking} are missing.")
        lines = [line for line in reader if line]
    for number, line in enumerate(lines):
        if len(line) != len(header):
            _fail(path, number, f"{len(header)} columns are expected; got {len(line)}")
    if not lines:
        raise ConfigError(f"{path} holds no line but the header.")
    return {
        name: [line[header.index(name)].strip() for line in lines] for name in needed
    }


def _is_missing(text):
    return text.lower() in ("", "nan", "na")


def _numbers(path, columns, name, *, missing=False):
    values = []
    for line, text in enumerate(columns[name]):
        try:
            value = math.nan if missing and _is_missing(text) else float(text)
        except ValueError:
            value = math.inf
        if math.isinf(value) or (math.isnan(value) and not missing):
            _fail(path, line, f"{name} must be a number; got {text!r}")
        values.append(value)
    return np.asarray(values)


def _days(path, columns, name, *, missing=False):
    """Days since the year 1; a month stands for its first day; -1: missing."""
    days = []
    for line, text in enumerate(columns[name]):
        if missing and _is_missing(text):
            days.append(-1)
            continue
        try:
            whole = text if text.count("-") == 2 else f"{text}-01"
            days.append(datetime.date.fromisoformat(whole).toordinal())
        except ValueError:
            _fail(path, line, f"{name} must be year-month(-day); got {text!r}")
    return np.asarray(days)


def _fail(path, line, text):
    raise ConfigError(f"{path}, line {line + 2}: {text}.")
