"""A scorecard as a picture: triangles for what is significant, by lead."""

import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ensjax.plot.style import GREY, LABEL_SIZE, NOTE_SIZE, PALE, TICK_SIZE, new_figure
from ensjax.verification import Scorecard

_MARKERS = {1: ("^", 6), -1: ("v", 6), 0: (".", 3)}


def scorecard(
    card: Scorecard,
    *,
    limit: float | None = None,
    title: str | None = None,
    shows_notes: bool = False,
) -> Figure:
    """Cells of a card: colour is the normalised difference, triangles are significant.

    A panel for each variable (down) and region (across); in it a row is a score and a
    column a lead. Purple and up: better than the reference; orange and down: worse; a
    dot is not significant or has no interval, an empty cell was not scored.

    Args:
        card: from `verification.make_scorecard`.
        limit: of the colours; by default nine in ten cells are within it, of those that
            are shares.
        title: by default the names of both systems.
        shows_notes: whether the card's notes stand below, for a figure without caption.

    Raises:
        ValueError: if no cell was scored.
    """
    if not np.isfinite(card.normalised).any():
        raise ValueError("the card holds no cell that was scored.")
    if limit is None:
        # A small bias of the reference makes ratios that would bleach all others, and
        # so do scores that are best at 1, whose differences are no shares.
        values = card.normalised[[best != "one" for best in card.best]]
        if not np.isfinite(values).any():
            values = card.normalised
        limit = float(np.nanquantile(np.abs(values), 0.9)) or 1.0
    down, across = len(card.variables), len(card.regions)
    width = max(6.4, 3.0 + across * max(1.1, 0.21 * len(card.leads)))
    height = 1.2 + down * (0.5 + 0.21 * len(card.scores))
    notes = []
    if shows_notes:
        # About 14 characters of the notes' size to the inch.
        wrapped = (textwrap.wrap(note, int(14 * width)) for note in card.notes)
        notes = [line for lines in wrapped for line in lines]
    fig = new_figure(height + 0.16 * len(notes), width=width)
    axes = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for (v, r), ax in np.ndenumerate(axes):
        picture = _panel(ax, card, v, r, limit)
        names = (card.variables[v], card.regions[r])
        shown = [name for name, n in zip(names, (down, across), strict=True) if n > 1]
        ax.set_title(", ".join(shown), fontsize=TICK_SIZE, loc="left")
    bar = fig.colorbar(picture, ax=axes, shrink=0.9, aspect=25, extend="both")
    bar.set_label("normalised difference\n(positive: better)", fontsize=NOTE_SIZE)
    bar.ax.tick_params(labelsize=NOTE_SIZE)
    text = title or f"{card.systems[0]} against {card.systems[1]}"
    fig.suptitle(text, fontsize=LABEL_SIZE, x=0.01, ha="left")
    about = (
        f"Lead ({card.lead_unit}). Triangles: the whole interval is off 0; dots: not."
    )
    fig.supxlabel(
        "\n".join([about, *notes]),
        fontsize=NOTE_SIZE,
        color=GREY,
    )
    return fig


def _panel(ax, card, variable, region, limit):
    values = card.normalised[:, variable, :, region]  # [score, lead]
    verdict = card.verdict[:, variable, :, region]
    ax.set_facecolor(PALE)
    colours = matplotlib.colormaps["PuOr"]
    picture = ax.imshow(
        values, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", alpha=0.8
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        marker, size = _MARKERS[int(verdict[row, column])]
        color = "white" if abs(value) > 0.6 * limit else "black"
        ax.plot(column, row, marker, ms=size, color=color)
    ax.set_yticks(range(len(card.scores)), card.scores)
    step = -(-len(card.leads) // 6)
    shown = range(0, len(card.leads), step)
    ax.set_xticks(shown, [f"{card.leads[i]:g}" for i in shown])
    ax.tick_params(labelsize=NOTE_SIZE, length=0)
    return picture
