"""Figures of `huge_ensembles_7424.py`."""

import numpy as np
from scipy.special import ndtr, ndtri

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure
from ensjax.verification import expected_outliers

verdicts = load_beside(__file__, "huge_ensembles_7424_claims")

_COLORS = {"bred": PALETTE[2], "random": PALETTE[3]}
_MARKERS = dict(zip(_COLORS, MARKERS))


def add_figures(run_dir, config, done):
    """Statistics by number of members; tails; scores by size."""
    found = done["members"]
    seeds = f"mean over {config.num_seeds} seeds, thin lines for each"
    run_dir.add_figure(
        "sizes",
        _sizes(config, found),
        "By number of members: share of cells where the truth is outside (dashed: of a"
        " reliable ensemble; none is not shown), median gain (dashed: of a normal"
        " distribution), error of the best member in deviations of the climate, and"
        " width of the 95 % interval"
        f" of P(x > its {100 * config.extreme_quantile:g} % quantile) over members"
        " (solid, a power of -1/2 by construction) and over checkpoints (dotted);"
        f" {seeds}.",
    )
    run_dir.add_figure(
        "tails",
        _tails(found),
        f"All {config.sizes[-1]:,} members of the first start, bred, lead"
        f" {config.judged_lead / 10:g}, of which every site has its own mean and"
        " deviation: share beyond so many deviations, against a normal distribution.",
    )
    run_dir.add_figure(
        "scores",
        _scores(config, found),
        "Brier score of exceeding the extreme quantile and outcome-weighted CRPS above"
        f" the {100 * config.high_quantile:g} % quantile, over the standard ones of"
        f" {config.sizes[0]} members: standard scores (solid) and fair ones (dashed)."
        " The fair Brier score alone does not fall by construction: where no member is"
        " above, the error of the largest is scored, fair or not. Right: share of cells"
        f" whose truth is inside more than 95 % of subsets. {seeds.capitalize()}.",
    )


def _sizes(config, found):
    fig = new_figure(6.4, width=9.6)
    axes = fig.subplots(2, 2)
    sizes = np.asarray(config.sizes)
    labels = {
        "outliers": "share outside",
        "gain": "median gain (deviations)",
        "best": "best member's error",
        "width": "width of the interval",
    }
    for ax, (name, label) in zip(axes.flat, labels.items()):
        for kind, color in _COLORS.items():
            values = found[f"{kind}_{name}"]
            mean = values.mean(axis=0)
            if name != "gain":  # none outside has no place on a logarithmic axis
                values, mean = (np.where(x > 0, x, np.nan) for x in (values, mean))
            for one in values:
                ax.plot(sizes, one, color=color, lw=0.5, alpha=0.5)
            style = dict(color=color, lw=1.6, marker=_MARKERS[kind], ms=4)
            ax.plot(sizes, mean, label=verdicts.KINDS[kind], **style)
            if name == "width":
                wide = found[f"{kind}_cluster_width"].mean(axis=0)
                ax.plot(sizes, wide, color=color, lw=1.4, ls=":")
        if name == "outliers":
            reliable = [expected_outliers(size) for size in sizes]
            ax.plot(sizes, reliable, color=GREY, ls="--", lw=1.2)
        if name == "gain":
            normal = ndtri((1 + 0.5 ** (1 / sizes)) / 2)
            ax.plot(sizes, normal, color=GREY, ls="--", lw=1.2)
        ax.set_xscale("log")
        is_power = name != "gain"
        if is_power:
            ax.set_yscale("log")
        finish(ax, x="members", y=label, starts_at_zero=False)
    axes.flat[0].legend(fontsize=8, frameon=False)
    return fig


def _tails(found):
    members = found["example"]
    away = np.abs((members - members.mean(axis=0)) / members.std(axis=0))
    at = np.linspace(0, away.max() * 1.02, 200)
    ordered = np.sort(away.ravel())
    share = 1 - np.searchsorted(ordered, at, side="right") / ordered.size
    fig = new_figure(4.2, width=7.0)
    ax = fig.subplots()
    shown = share > 0
    ax.plot(at[shown], share[shown], color=_COLORS["bred"], lw=1.8, label="members")
    normal = 2 * ndtr(-at)
    ax.plot(at, normal, color=GREY, ls="--", lw=1.4, label="normal")
    ax.axvline(4, color=GREY, lw=0.8)
    ax.set_yscale("log")
    ax.set_ylim(0.5 / ordered.size, 1.5)
    finish(
        ax,
        x="standard deviations from the mean",
        y="share of members beyond",
        legend=True,
        starts_at_zero=False,
    )
    return fig


def _scores(config, found):
    fig = new_figure(3.6, width=11.5)
    axes = fig.subplots(1, 3)
    sizes = np.asarray(config.sizes)
    labels = {"brier": "Brier score, relative", "owcrps": "owCRPS, relative"}
    for ax, (name, label) in zip(axes, labels.items()):
        for kind, color in _COLORS.items():
            first = found[f"{kind}_{name}"][:, :1]
            values = found[f"{kind}_{name}"] / first
            fair = (found[f"{kind}_fair_{name}"] / first).mean(axis=0)
            ax.plot(sizes, fair, color=color, lw=1.4, ls="--")
            for one in values:
                ax.plot(sizes, one, color=color, lw=0.5, alpha=0.5)
            style = dict(color=color, lw=1.6, marker=_MARKERS[kind], ms=4)
            ax.plot(sizes, values.mean(axis=0), label=verdicts.KINDS[kind], **style)
        ax.axhline(1, color=GREY, lw=0.8)
        ax.set_xscale("log")
        finish(ax, x="members", y=label, starts_at_zero=False)
    for kind, color in _COLORS.items():
        values = found[f"{kind}_bracketed"]
        for one in values:
            axes[2].plot(sizes, one, color=color, lw=0.5, alpha=0.5)
        style = dict(color=color, lw=1.6, marker=_MARKERS[kind], ms=4)
        axes[2].plot(sizes, values.mean(axis=0), label=verdicts.KINDS[kind], **style)
    axes[2].set_xscale("log")
    finish(axes[2], x="members", y="share of cells bracketed", starts_at_zero=False)
    axes[2].legend(fontsize=8, frameon=False)
    return fig
