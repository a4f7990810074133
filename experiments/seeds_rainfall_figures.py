"""Figures and tables of `seeds_rainfall.py`."""

import numpy as np

from ensjax.experiment.claims import mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot import metric_dots
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

verdicts = load_beside(__file__, "seeds_rainfall_claims")
measures = load_beside(__file__, "seeds_rainfall_scores")


def add_tables(run_dir, config, found):
    """Every system's scores, and differences with intervals over dates."""
    low, high = config.thresholds[0], config.thresholds[-1]
    columns = ["system", "CRPS, mm", f"BSS {low:g} mm", f"BSS {high:g} mm", "bias, mm",
               "spread/skill", "unreliability", "outliers"]  # fmt: skip
    every = found["systems"] | {
        verdicts.NAMES[kind]: {name: x.mean(axis=0) for name, x in scores.items()}
        for kind, scores in found["generated"].items()
    }
    rows = [
        [
            name,
            s["crps"],
            s["bss"][0],
            s["bss"][-1],
            s["bias"],
            s["ratio"],
            s["unreliability"],
            s["outliers"],
        ]
        for name, s in every.items()
    ]
    run_dir.add_table(
        "systems",
        columns,
        rows,
        "Standard CRPS, which has few members pay for being few; Brier skill against"
        " the frequency in training; unreliability (about 1 is reliable) and outliers"
        f" of ranks among {measures.NUM_RANKED} members, fewer where there are no more."
        " Generated rain: means over seeds.",
    )
    run_dir.add_table(
        "against",
        ["generated, first seed", "less", "CRPS, mm", "low", "high"],
        [
            [verdicts.NAMES[kind], name, *numbers]
            for (kind, name), numbers in found["against"].items()
        ],
        "Differences of CRPS with 95 % intervals of a bootstrap of blocks of"
        f" {config.bootstrap_block_days} dates.",
    )


def add_figures(run_dir, config, test, done, found):
    """Scores, ranks, reliability, and two weeks of forecasts."""
    seeds = f"{config.num_seeds} seeds (dots with 95 % intervals)"
    run_dir.add_figure(
        "scores",
        _scores(config, found),
        f"CRPS and Brier skill at {config.thresholds[-1]:g} mm; generated rain:"
        f" {seeds}, which share the test cases.",
    )
    run_dir.add_figure(
        "ranks",
        _ranks(found),
        "Rank of the observation among members, share of the cases over that of a"
        " reliable ensemble (dashed). Generated rain: first seed.",
    )
    run_dir.add_figure(
        "reliability",
        _reliability(found),
        f"How often more than {config.thresholds[-1]:g} mm fell where it was forecast"
        " with a probability, in ten bins; below, how many cases each bin has.",
    )
    run_dir.add_figure(
        "plume",
        _plume(config, test, done),
        "Generated rain (targets: observations, first seed: median, and 25 to 75 and 5"
        " to 95 % of the samples), members that were given, and what was observed.",
    )


def _scores(config, found):
    def dots(score, number=None):
        def of(values):
            return values if number is None else values[..., number]

        rows = {
            name: round(float(of(s[score])), 3) + 0.0  # -0.0 + 0.0 is 0.0
            for name, s in found["systems"].items()
        }
        for kind, scores in found["generated"].items():
            rows[verdicts.NAMES[kind]] = mean_and_interval(of(scores[score]))
        return rows

    top = f"{config.thresholds[-1]:g} mm"
    return metric_dots(
        {
            "CRPS, mm (better lower)": dots("crps"),
            f"Brier skill at {top} (better higher)": dots("bss", -1),
        },
        title="Rain at Innsbruck",
    )


def _ranks(found):
    shown = {
        "raw": found["systems"][verdicts.raw_name(found)]["counts"],
        "EMOS": found["systems"][verdicts.emos_name(found)]["counts"],
    } | {
        verdicts.NAMES[kind]: scores["counts"][0]
        for kind, scores in found["generated"].items()
    }
    fig = new_figure(5.2, width=7.2)
    axes = fig.subplots(2, 2, sharex=True, sharey=True)
    for ax, (name, counts), color in zip(axes.flat, shown.items(), PALETTE):
        ax.bar(np.arange(len(counts)), counts / counts.mean(), color=color, width=0.9)
        ax.set_xticks(range(len(counts)))
        ax.axhline(1, color=GREY, lw=1, ls="--")
        finish(ax, x="rank", y="share / expected", title=name)
        ax.label_outer()
    return fig


def _reliability(found):
    fig = new_figure(5.6)
    ax, below = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    for number, (name, values) in enumerate(found["reliability"].items()):
        probability, frequency, weight = values
        full = weight > 0
        style = dict(color=PALETTE[number], marker=MARKERS[number], ms=5)
        label = verdicts.NAMES.get(name, name)
        ax.plot(probability[full], frequency[full], label=label, **style)
        below.plot(probability[full], weight[full], **style)
    below.set_yscale("log")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    finish(ax, x="", y="frequency", legend=True)
    finish(below, x="forecast probability", y="cases")
    return fig


def _plume(config, test, done):
    first = min(200, max(len(test.observed) - 60, 0))
    rows = slice(first, first + 60)
    rain = done["observations"]["rain"][0][:, rows]
    date = test.date[rows]
    fig = new_figure(4.0, width=9.6)
    ax = fig.subplots()
    for share, alpha in ((0.05, 0.2), (0.25, 0.35)):
        low, high = np.quantile(rain, (share, 1 - share), axis=0)
        ax.fill_between(date, low, high, color=PALETTE[0], alpha=alpha, lw=0)
    ax.plot(date, np.median(rain, axis=0), color=PALETTE[0], label="generated, median")
    members = test.members[rows, : config.num_given]
    ax.plot(date, members, ".", color=GREY, ms=4)
    ax.plot([], [], ".", color=GREY, label="members given")
    ax.plot(date, test.observed[rows], "x", color="black", ms=5, label="observed")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=0)
    ticks = [0, 1, 10, 100]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    finish(
        ax,
        x="end of the 3 days",
        y="rain in 3 days, mm (log above 1)",
        legend=True,
        legend_above=True,
        starts_at_zero=False,
    )
    ax.get_legend().set_ncols(3)
    for label in ax.get_xticklabels():
        label.set_fontsize(8)
    return fig
