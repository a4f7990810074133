"""A scorecard as a picture: triangles for what is significant, by lead."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ensjax.plot.style import GREY, LABEL_SIZE, NOTE_SIZE, PALE, TICK_SIZE, new_figure
from ensjax.verification import Scorecard


def scorecard(
    card: Scorecard, *, limit: float | None = None, title: str | None = None
) -> Figure:
    """Cells of a card: colour is the normalised difference, triangles are significant.

    A row is a score of a variable and region, a column a lead. Blue and up: better than
    the reference; orange and down: worse; a dot is not significant, an empty cell was
    not scored.

    Args:
        card: from `verification.make_scorecard`.
        limit: of the colours; by default the largest difference, at most 1.

    Raises:
        ValueError: if no cell was scored.
    """
    rows = [
        (s, v, r)
        for v in range(len(card.variables))
        for r in range(len(card.regions))
        for s in range(len(card.scores))
    ]
    order = tuple(np.array(rows).T)
    values = np.moveaxis(card.normalised, 2, 3)[order]  # [row, lead]
    verdict = np.moveaxis(card.verdict, 2, 3)[order]
    if not np.isfinite(values).any():
        raise ValueError("the card holds no cell that was scored.")
    if limit is None:
        limit = float(min(np.nanmax(np.abs(values)), 1.0)) or 1.0
    wide = max(6.4, 3.2 + 0.42 * len(card.leads))
    fig = new_figure(1.7 + 0.3 * len(rows), width=wide)
    ax = fig.subplots()
    ax.set_facecolor(PALE)
    colours = matplotlib.colormaps["PuOr"]
    picture = ax.imshow(
        values, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", alpha=0.8
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        way = int(verdict[row, column])
        marker, size = {1: ("^", 8), -1: ("v", 8), 0: (".", 4)}[way]
        dark = abs(value) > 0.6 * limit
        ax.plot(column, row, marker, ms=size, color="white" if dark else "black")
    per_block = len(card.scores)
    for edge in range(per_block, len(rows), per_block):
        ax.axhline(edge - 0.5, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), [_row_name(card, row) for row in rows])
    step = -(-len(card.leads) // 12)
    shown = range(0, len(card.leads), step)
    ax.set_xticks(shown, [f"{card.leads[i]:g}" for i in shown])
    ax.tick_params(labelsize=TICK_SIZE, length=0)
    ax.set_xlabel(f"Lead ({card.lead_unit})", fontsize=LABEL_SIZE)
    bar = fig.colorbar(picture, ax=ax, shrink=0.9)
    bar.set_label("normalised difference\n(positive: better)", fontsize=NOTE_SIZE)
    bar.ax.tick_params(labelsize=NOTE_SIZE)
    text = title or f"{card.systems[0]} against {card.systems[1]}"
    fig.suptitle(text, fontsize=LABEL_SIZE, x=0.01, ha="left")
    fig.supxlabel(
        "triangles: the whole 95 % interval is off 0; dots: it is not",
        fontsize=NOTE_SIZE,
        color=GREY,
    )
    return fig


def _row_name(card, row):
    score, variable, region = row
    parts = [card.scores[score]]
    if len(card.variables) > 1:
        parts.append(card.variables[variable])
    if len(card.regions) > 1:
        parts.append(card.regions[region])
    return ", ".join(parts)
