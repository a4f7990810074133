"""The scorecard of two forecasts that `verify` has compared, with its alarms."""

from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.verification import Scorecard, drift_alarm, smoothing_alarm
from ensjax.verification.bootstrap import LEAST_BLOCKS
from ensjax.verification.scorecard import some_lack_text, too_few_text

_CELLS = {"low": "skill", "high": "difference", "one": "nearer"}  # by what is best
_OF_THE_MEAN = ("rmse", "acc", "activity_ratio")


def scorecard_of(scores: Any) -> Scorecard:
    """The card of a forecast against the one that it was compared with.

    Scores of which less is better; those that are 1 if perfect (ACC), where a
    difference is divided by what the reference lacks of 1, its interval too; and those
    that are best at 1 (spread over error, activity ratio), of which it shows how much
    nearer they are. Others have no place on it, nor have those that ensembles of
    different size cannot be compared by. Notes say so, how many members both have, how
    intervals were found, and where an alarm fires or is unknown.

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
        if best not in _CELLS or not bool(row["comparable"]):
            continue
        value, reference = (row[k].values for k in ("value", "reference"))
        column = _CELLS[best]
        cells = [row[k].values for k in (column, f"{column}_low", f"{column}_high")]
        if best == "high":
            lacking = np.where(reference < 1, 1 - reference, np.nan)
            cells = [cell / lacking for cell in cells]
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
        notes=(*alarms_of(scores), *notes_of(scores)),
    )


def notes_of(scores: Any) -> list[str]:
    """What a reader of scores should know: the members of both, and the intervals.

    Args:
        scores: of `verify`.

    Returns:
        Lines: how many members both forecasts have and what cannot be compared for
        that; how intervals were found, or why there are none.
    """
    about = scores.attrs
    lines = []
    if "compare_to" in about:
        mine, other = about["num_members"], about["num_members_of_compare_to"]
        if mine == other:
            lines.append(f"Both forecasts have {_members(mine)}.")
        else:
            lines += _different_sizes(scores, mine, other)
    if "bootstrap_block_length" in about:
        number, length = about["num_cases"], about["bootstrap_block_length"]
        if number < LEAST_BLOCKS * length:
            return [*lines, too_few_text(number, length, "starts")]
        paired = "paired " if "compare_to" in about else ""
        lines.append(
            f"Intervals of {about['bootstrap_confidence']:.0%} from"
            f" {about['bootstrap_num_resamples']} {paired}resamples of blocks of"
            f" {length} starts; {number} starts."
        )
        # The error has an interval wherever it is scored on enough starts.
        rmse = scores.sel(score="rmse")
        if np.any(np.isfinite(rmse["value"]) & np.isnan(rmse["low"])):
            lines.append(some_lack_text(length, "starts"))
    return lines


def _different_sizes(scores, mine, other):
    about = scores.attrs
    is_judged = scores["best"].isin(list(_CELLS))
    names = scores["score"][is_judged & ~scores["comparable"]].values
    of_mean = [n for n in _OF_THE_MEAN if n in scores["score"].values]
    return [
        f"{about['forecast']} has {_members(mine)}, {about['compare_to']} has"
        f" {_members(other)}.",
        f"Not compared, since these estimators depend on the number of members:"
        f" {', '.join(map(str, names))}; the fair ones do not.",
        f"Of ensemble means ({', '.join(of_mean)}) those of more members have less"
        " error and less activity for that alone.",
    ]


def _members(number):
    return f"{number} member" + ("" if number == 1 else "s")


def alarms_of(scores: Any) -> list[str]:
    """A line for each variable and region in which an alarm fires or is unknown.

    Where a kind of alarm neither fires nor is unknown anywhere, a line says that it
    does not. The drift alarm is of the last lead that has scores, and names it if it is
    not the last one. The smoothing alarm needs the scores of anomalies, and so a
    climatology: without, it is unknown.

    Args:
        scores: of `verify` with `compare_to`.
    """
    kinds = {"drift": [], "smoothing": []}
    silent = dict.fromkeys(kinds, False)
    for variable in scores["variable"].values:
        for region in scores["region"].values:
            part = scores.sel(variable=variable, region=region)
            for kind, lines_of in (("drift", _drift), ("smoothing", _smoothing)):
                told = lines_of(part)
                kinds[kind] += [
                    f"{kind.capitalize()} alarm, {variable}, {region}: {line}"
                    for line in told
                ]
                silent[kind] |= not told
    if "activity_ratio" not in scores["score"].values:
        kinds["smoothing"] = ["Smoothing alarm: unknown, it needs a climatology."]
        silent["smoothing"] = False
    lines = [line for told in kinds.values() for line in told]
    if not lines:
        return ["No alarm fires."]
    for kind, told in kinds.items():
        if silent[kind]:
            lines.append(f"No {'other ' if told else ''}{kind} alarm fires.")
    return lines


def _drift(part):
    leads, unit = _leads(part)
    of = {name: part["value"].sel(score=name).values for name in ("bias", "rmse")}
    found = drift_alarm(of["bias"], of["rmse"])
    last = int(found.last)
    if last < 0:
        return ["unknown, no lead has scores."]
    where = f"at lead {leads[last]:g} {unit}"
    if last < len(leads) - 1:
        where += ", the last that has scores"
    if bool(found.fires):
        return [f"the bias is {float(found.share):+.0%} of the error {where}."]
    return [] if last == len(leads) - 1 else [f"silent {where}."]


def _smoothing(part):
    if "activity_ratio" not in part["score"].values:
        return []
    leads, unit = _leads(part)
    rmse, activity = (part.sel(score=name) for name in ("rmse", "activity_ratio"))
    found = smoothing_alarm(
        rmse["value"].values,
        activity["value"].values,
        reference_rmse=rmse["reference"].values,
        reference_activity_ratio=activity["reference"].values,
    )
    fires, is_known = np.asarray(found.fires), np.asarray(found.is_known)
    if not is_known.any():
        return ["unknown, no lead has scores of both."]

    def at(chosen):
        return f"at leads {', '.join(f'{x:g}' for x in np.asarray(leads)[chosen])}"

    lines = []
    if fires.any():
        lines.append(f"a smaller error with less activity {at(fires)} {unit}.")
    if not is_known.all():
        text = "" if fires.any() else f"silent {at(is_known)}, "
        lines.append(f"{text}unknown {at(~is_known)} {unit}.")
    return lines


def _leads(scores):
    """Numbers, and their unit."""
    leads = scores["lead"].values
    if leads.dtype.kind != "m":
        return [float(lead) for lead in leads], "steps"
    hours = leads / np.timedelta64(1, "h")
    if np.all(hours % 24 == 0):
        return (hours / 24).tolist(), "days"
    return hours.tolist(), "hours"
