"""A scorecard as a tidy table, as JSON, and as Markdown; `ensjax.plot` draws it."""

import json
import math
from typing import Any

from ensjax.verification.scorecard import Scorecard

MARKS = {1: "▲", 0: "·", -1: "▼"}
WORDS = {1: "better", 0: "not significant", -1: "worse"}


def scorecard_rows(card: Scorecard) -> list[dict[str, Any]]:
    """One dict a cell, of plain numbers and words: `pandas.DataFrame` takes the list.

    Cells that could not be scored are left out. The verdict is "unknown" where there is
    no interval.
    """
    rows = []
    verdict = card.verdict
    for s, score in enumerate(card.scores):
        for v, variable in enumerate(card.variables):
            for r, region in enumerate(card.regions):
                for i, lead in enumerate(card.leads):
                    at = s, v, i, r
                    if math.isnan(card.normalised[at]):
                        continue
                    rows.append(
                        {
                            "score": score,
                            "best": card.best[s],
                            "variable": variable,
                            "region": region,
                            "lead": lead,
                            "value": float(card.value[at]),
                            "reference": float(card.reference[at]),
                            "normalised_difference": float(card.normalised[at]),
                            "low": float(card.low[at]),
                            "high": float(card.high[at]),
                            "verdict": _word(card, verdict, at),
                        }
                    )
    return rows


def scorecard_json(card: Scorecard) -> str:
    """The card as a JSON object; what is not finite is null."""
    about = {
        "system": card.systems[0],
        "reference": card.systems[1],
        "lead_unit": card.lead_unit,
        "notes": list(card.notes),
        "costs": {name: _plain(value) for name, value in card.costs.items()},
        "cells": [
            {name: _plain(value) for name, value in row.items()}
            for row in scorecard_rows(card)
        ],
    }
    return json.dumps(about, indent=1, allow_nan=False)


def scorecard_markdown(card: Scorecard) -> str:
    """The card as tables of Markdown, one for each variable and region.

    ▲ better and ▼ worse than the reference with the whole interval, · neither, or
    without an interval.
    """
    lines = [
        f"**{card.systems[0]}** against **{card.systems[1]}**: normalised difference,"
        " positive where the first is better; ▲ better, ▼ worse, · not significant or"
        " without an interval. Of scores that are best at 1: how much nearer, no share."
    ]
    verdict = card.verdict
    heads = [f"{lead:g}" for lead in card.leads]
    for v, variable in enumerate(card.variables):
        for r, region in enumerate(card.regions):
            lines += ["", f"{variable}, {region}, lead in {card.lead_unit}", ""]
            lines.append("| score | " + " | ".join(heads) + " |")
            lines.append("|---" * (1 + len(heads)) + "|")
            for s, score in enumerate(card.scores):
                cells = [
                    _cell(card, verdict, (s, v, i, r)) for i in range(len(card.leads))
                ]
                lines.append(f"| {score} | " + " | ".join(cells) + " |")
    if card.costs:
        lines += ["", "| cost | |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in card.costs.items()]
    lines += ["", *(f"- {note}" for note in card.notes)]
    return "\n".join(lines) + "\n"


def _word(card, verdict, at):
    if math.isnan(card.low[at]) or math.isnan(card.high[at]):
        return "unknown"
    return WORDS[int(verdict[at])]


def _cell(card, verdict, at):
    value = card.normalised[at]
    if math.isnan(value):
        return ""
    is_share = card.best[at[0]] != "one"
    text = f"{100 * value:+.1f} %" if is_share else f"{value:+.3f}"
    return f"{MARKS[int(verdict[at])]} {text}"


def _plain(value):
    if isinstance(value, str):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
