"""The scorecard of two forecasts that `verify` has compared, with its alarms."""

from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.verification import Scorecard, drift_alarm, smoothing_alarm


def scorecard_of(scores: Any) -> Scorecard:
    """The card of a forecast against the one that it was compared with.

    Scores of which less is better, and those that are 1 if perfect (ACC): a difference
    of these is divided by what the reference lacks of 1, its interval too. Others have
    no place on it. Notes say where an alarm fires.

    Args:
        scores: of `verify` with `compare_to` and `bootstrap`.

    Raises:
        GriddedError: if the scores are of one forecast alone, or without intervals.
    """
    if "reference" not in scores or "difference_low" not in scores:
        raise GriddedError(
            "a scorecard is of two forecasts and has intervals: give verify compare_to"
            " and bootstrap (ensjax verify --compare-to FILE --bootstrap N)."
        )
    parts = {name: [] for name in ("value", "reference", "normalised", "low", "high")}
    names, bests = [], []
    for name in scores["score"].values:
        row = scores.sel(score=name)
        best = str(row["best"].values)
        if best not in ("low", "high"):
            continue
        value, reference = (row[k].values for k in ("value", "reference"))
        if best == "low":
            cells = [row[k].values for k in ("skill", "skill_low", "skill_high")]
        else:
            lacking = np.where(reference < 1, 1 - reference, np.nan)
            cells = [
                row[k].values / lacking
                for k in ("difference", "difference_low", "difference_high")
            ]
        names.append(str(name))
        bests.append(best)
        for part, array in zip(parts, (value, reference, *cells), strict=True):
            parts[part].append(np.asarray(array, np.float64))
    about = scores.attrs
    leads, unit = _leads(scores)
    return Scorecard(
        scores=tuple(names),
        best=tuple(bests),
        variables=tuple(str(x) for x in scores["variable"].values),
        leads=tuple(leads),
        regions=tuple(str(x) for x in scores["region"].values),
        **{name: np.stack(rows) for name, rows in parts.items()},
        systems=(about["forecast"], about["compare_to"]),
        lead_unit=unit,
        notes=(
            *alarms_of(scores),
            f"Intervals of {about['bootstrap_confidence']:.0%} from"
            f" {about['bootstrap_num_resamples']} paired resamples of blocks of"
            f" {about['bootstrap_block_length']} starts; {about['num_cases']} starts.",
        ),
    )


def alarms_of(scores: Any) -> list[str]:
    """A line for each variable and region in which an alarm fires, or that none does.

    The smoothing alarm needs the scores of anomalies, and so a climatology.
    """
    known = list(scores["score"].values)
    leads, unit = _leads(scores)
    lines = []
    for variable in scores["variable"].values:
        for region in scores["region"].values:
            part = scores.sel(variable=variable, region=region)
            rmse = part.sel(score="rmse")
            drift = drift_alarm(
                part["value"].sel(score="bias").values, rmse["value"].values
            )
            if bool(drift.fires):
                lines.append(
                    f"Drift alarm, {variable}, {region}: the bias is"
                    f" {float(drift.share):+.0%} of the error at lead {leads[-1]:g}"
                    f" {unit}."
                )
            if "activity_ratio" not in known:
                continue
            activity = part.sel(score="activity_ratio")
            fires = np.asarray(
                smoothing_alarm(
                    rmse["value"].values,
                    activity["value"].values,
                    reference_rmse=rmse["reference"].values,
                    reference_activity_ratio=activity["reference"].values,
                ).fires
            )
            if fires.any():
                where = ", ".join(f"{lead:g}" for lead in np.asarray(leads)[fires])
                lines.append(
                    f"Smoothing alarm, {variable}, {region}: a smaller error with less"
                    f" activity at leads {where} {unit}."
                )
    return lines or ["No alarm fires."]


def _leads(scores):
    """Numbers, and their unit."""
    leads = scores["lead"].values
    if leads.dtype.kind != "m":
        return [float(lead) for lead in leads], "steps"
    hours = leads / np.timedelta64(1, "h")
    if np.all(hours % 24 == 0):
        return (hours / 24).tolist(), "days"
    return hours.tolist(), "hours"
