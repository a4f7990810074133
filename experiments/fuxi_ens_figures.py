"""Figures of `fuxi_ens.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "fuxi_ens_claims")
training = load_beside(__file__, "fuxi_ens_training")

_SD = "deviations of the climate"
_LEAD = "lead (outputs of 0.1 time units)"


def shown_systems(config) -> list[str]:
    """What most figures show: not all of the sweep."""
    own, l1 = training.learned_name(config), training.l1_name(config)
    return [own, l1, *verdicts.CONSTANTS, "simulator"]


def add_figures(run_dir, config, done):
    """Skill by lead, deviation and error, the sweep, ranks, and cells."""
    found = done["emulate"]
    seeds = f"mean over {config.num_seeds} seeds, a thin line for each"
    run_dir.add_figure(
        "by_lead",
        _by_lead(config, found),
        "Spread over error (1 if reliable) and fair CRPS by lead;"
        f" {config.num_members} members, {config.archive.num_starts} starts; {seeds}.",
    )
    run_dir.add_figure(
        "deviation_and_error",
        _deviation_and_error(config, found),
        "Error of the mean after one step where the perturbation's deviation is small"
        " or large, in bins of equal numbers of starts and sites, for the networks of"
        f" the sweep; {seeds}. A constant Gaussian would be one point.",
    )
    run_dir.add_figure(
        "sweep",
        _sweep(config, found),
        "What the weight of the KL does (CRPS + KL): fair CRPS at the short leads,"
        " and KL and mean deviation at the end of training; means over"
        f" {config.num_seeds} seeds, dots for each. Dashed: L1 + KL.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(config, found),
        "Rank of the truth among members at the first and the last short lead, share"
        " over that of a reliable ensemble (dashed; ranks are binned in three where"
        f" there are many); mean over {config.num_seeds} seeds. One scale for all.",
    )
    run_dir.add_figure(
        "cells",
        _cells(config, found),
        "Fair CRPS of the learned ensemble less that of the imperfect simulator, over"
        " all sites by lead, with 95 % intervals of resampled starts; a colour for each"
        " seed. Below 0 the emulator is better.",
    )


def _styles(config):
    return {
        name: dict(color="#000000" if name == "simulator" else PALETTE[i])
        for i, name in enumerate(shown_systems(config))
    }


def _by_lead(config, found):
    fig = new_figure(4.6, width=10.0)
    ratio, score = fig.subplots(1, 2)
    for name, style in _styles(config).items():
        for ax, key in ((ratio, "ssr"), (score, "fair")):
            values = found[f"{name}/{key}"]
            lead = np.arange(1, values.shape[1] + 1)
            for own in values:
                ax.plot(lead, own, lw=0.5, alpha=0.5, **style)
            text = verdicts.label(name)
            ax.plot(lead, values.mean(axis=0), lw=1.7, label=text, **style)
    ratio.axhline(1, color=GREY, lw=1, ls="--")
    for ax in (ratio, score):
        ax.set_ylim(bottom=0)
    finish(ratio, x=_LEAD, y="spread / error")
    finish(score, x=_LEAD, y=f"fair CRPS ({_SD})")
    handles, labels = score.get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside upper center", ncols=3, fontsize=9, frameon=False
    )
    return fig


def _deviation_and_error(config, found):
    fig = new_figure(4.4)
    ax = fig.subplots()
    for i, name in enumerate(training.variants(config)):
        style = dict(color=PALETTE[i], marker=MARKERS[i])
        bins = found[f"{name}/bins"]
        for own in bins:
            ax.plot(*own, lw=0.5, alpha=0.5, color=PALETTE[i])
        text = verdicts.label(name)
        ax.plot(*bins.mean(axis=0), lw=1.6, ms=4, label=text, **style)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    finish(
        ax,
        x="deviation of the perturbation (in a step's change, logarithmic)",
        y=f"absolute error of the mean ({_SD})",
        legend=True,
    )
    return fig


def _sweep(config, found):
    own = config.variants
    weights = [
        weight
        for kind, weight in zip(own.reconstructions, own.kl_weights, strict=True)
        if kind == "crps"
    ]
    order = np.argsort(weights)
    names = [f"crps_{weights[i]:g}" for i in order]
    texts = [f"{weights[i]:g}" for i in order]
    l1 = training.l1_name(config)
    fig = new_figure(4.4, width=10.0)
    skill, inside = fig.subplots(1, 2)
    place = np.arange(len(names))

    def draw(ax, values, twin, text, i):
        """Values `[weight, seed]`, and those of the twin `[seed]`."""
        style = dict(color=PALETTE[i])
        ax.plot(place, values, ".", ms=4, alpha=0.6, **style)
        ax.plot(
            place, values.mean(axis=1), marker=MARKERS[i], ms=5, label=text, **style
        )
        ax.axhline(twin.mean(), lw=1, ls="--", **style)

    for i, lead in enumerate(config.short_leads):
        values = np.stack([found[f"{name}/fair"][:, lead - 1] for name in names])
        draw(skill, values, found[f"{l1}/fair"][:, lead - 1], f"lead {lead}", i)
    for i, (key, text) in enumerate(
        (("kl", "KL (nats an element)"), ("sigma", "mean deviation"))
    ):
        values = np.stack([found[f"{name}/{key}"] for name in names])
        draw(inside, values, found[f"{l1}/{key}"], text, i)
    for ax, y in ((skill, f"fair CRPS ({_SD})"), (inside, "end of training")):
        ax.set_xticks(place, texts)
        ax.set_yscale("log")
        text = "weight of the KL (not to scale)"
        finish(ax, x=text, y=f"{y}, logarithmic")
        above = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        ax.legend(fontsize=10, **above)
    return fig


def _ranks(config, found):
    names = shown_systems(config)
    ends = (0, len(config.short_leads) - 1)
    fig = new_figure(5.2, width=11.0)
    axes = fig.subplots(2, len(names), sharex=True, sharey=True)
    top = 0.0
    for row, place in zip(axes, ends, strict=True):
        for ax, name in zip(row, names, strict=True):
            shares = found[f"{name}/ranks"][:, place].mean(axis=0)
            shares = _coarser(shares)
            top = max(top, shares.max())
            color = _styles(config)[name]["color"]
            ax.bar((np.arange(len(shares)) + 0.5) / len(shares), shares,
                   width=0.9 / len(shares), color=color)  # fmt: skip
            ax.axhline(1, color=GREY, lw=1, ls="--")
            lead = f"lead {config.short_leads[place]}"
            first = ax is row[0]
            finish(
                ax,
                x="rank / members" if place == ends[1] else "",
                y=f"share / expected, {lead}" if first else "",
                starts_at_zero=False,
            )
            if place == ends[0]:
                text = (
                    verdicts.label(name)
                    .replace(" with a", "\nwith a")
                    .replace(" variance", "\nvariance")
                    .replace(" mean,", "\nmean,")
                )
                ax.set_title(text, fontsize=9, loc="left")
    axes[0, 0].set_ylim(0, 1.05 * top)
    return fig


def _coarser(shares, most=12):
    """Means of neighbouring ranks, where there are more than `most` and they divide."""
    for width in (5, 3):
        if len(shares) > most and len(shares) % width == 0:
            return shares.reshape(-1, width).mean(axis=1)
    return shares


def _cells(config, found):
    fig = new_figure(4.2)
    ax = fig.subplots()
    for seed, (mean, low, high) in enumerate(found["cells/difference"]):
        lead = np.arange(1, len(mean) + 1)
        color = PALETTE[seed % len(PALETTE)]
        ax.fill_between(lead, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(lead, mean, color=color, lw=1.5, label=f"seed {seed}")
    ax.axhline(0, color=GREY, lw=1, ls="--")
    finish(
        ax,
        x=_LEAD,
        y=f"difference of fair CRPS ({_SD})",
        legend=True,
        starts_at_zero=False,
    )
    return fig
