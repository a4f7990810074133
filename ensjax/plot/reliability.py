"""The reliability diagram: accuracy against confidence, and how confident rows are."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure

from ensjax import scores
from ensjax.plot.style import (
    GREY,
    LABEL_SIZE,
    MARKERS,
    PALETTE,
    finish,
    named,
    new_figure,
)


# Compiled once for a figure's curves: run eagerly, dozens of small programs are.
@functools.partial(jax.jit, static_argnums=2)
def _bins_and_error(log_probs, labels, num_bins):
    bins = scores.reliability_bins(log_probs, labels, num_bins=num_bins)
    return bins, scores.ece(log_probs, labels, num_bins=num_bins)


def reliability(
    log_probs: np.ndarray | Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    title: str | None = None,
) -> Figure:
    """Accuracy against confidence in bins of the top label, with the ECE.

    Vertical lines are 95 % Wilson intervals of each bin's accuracy; bins without rows
    have no point. The lower panel shows how many rows each bin holds.

    Args:
        log_probs: `[batch, class]`, or a dict of name to such arrays (a few curves).
        labels: class indices `[batch]`.
        num_bins: number of equal-width bins (lo, hi].

    Raises:
        ValueError: if a shape does not fit.

    Source: Guo et al. 2017, arXiv:1706.04599, figures 1 and 4.
    """
    curves = named(log_probs, "ensemble")
    fig = new_figure(5.6 + 0.25 * len(curves))
    ax, counts = fig.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]}
    )
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    for i, (name, values) in enumerate(curves.items()):
        bins, error = _bins_and_error(values, labels, num_bins)
        x, y, weight = (np.asarray(b, float) for b in bins[:3])
        full = weight > 0
        interval = scores.wilson_interval(y[full] * weight[full], weight[full])
        color = PALETTE[i]
        low, high = np.asarray(interval.low), np.asarray(interval.high)
        ax.vlines(x[full], low, high, color=color, lw=1.2, alpha=0.5)
        ax.plot(
            x[full],
            y[full],
            color=color,
            marker=MARKERS[i],
            ms=5,
            lw=1.5,
            clip_on=False,
            label=f"{name}, ECE {float(error):.3g}",
        )
        edges = np.asarray(bins.edges, float)
        share = weight / weight.sum()
        counts.stairs(share, edges, color=color, lw=1.5, fill=False)
        if len(curves) == 1:
            counts.stairs(share, edges, color=color, alpha=0.3, fill=True)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    rows = np.shape(labels)[0]
    finish(
        ax,
        x="",
        y="Accuracy",
        legend=True,
        legend_above=True,
        legend_title=f"{num_bins} bins, {rows:,} rows",
    )
    finish(counts, x="Confidence (probability of the first choice)", y="Share of rows")
    counts.set_ylim(bottom=0)
    if title:  # above the legend
        fig.suptitle(title, fontsize=LABEL_SIZE, x=0.01, ha="left")
    return fig
