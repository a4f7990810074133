"""Tables and figures of `consensus_forecast.py`."""

import functools

import numpy as np

from ensjax.experiment import interval_text, student_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import ALARM, GREY, NOTE_SIZE, PALETTE, finish, new_figure

measures = load_beside(__file__, "consensus_forecast_scores")
verdicts = load_beside(__file__, "consensus_forecast_claims")
entries = load_beside(__file__, "consensus_forecast_entries")

LABELS = {
    "mauc": "mAUC",
    "bca": "BCA",
    "mae": "MAE",
    "wes": "WES",
    "cpa": "CPA",
}
TASKS = {
    "diabetes": "Diabetes",
    "wine": "Wine",
    "diagnosis": "Diagnosis",
    "ventricles": "Ventricles",
    "score": "Score",
}
SHAPES = {"mean": "D", "median": "o"}


def add_tables(run_dir, config, results):
    """Scores of consensuses and entries, rules, tests and attribution."""
    for condition in ("clean", "broken"):
        rows = []
        for task, metrics in results[condition].items():
            ranks = results["ranks"][condition][task]
            sizes = verdicts.split_sizes(config, task)
            cell = functools.partial(interval_text, split_sizes=sizes, form=".4g")
            for metric, values in metrics.items():
                is_higher = measures.HIGHER_IS_BETTER[metric]
                members = values[:, :-2]
                best = members.max(axis=1) if is_higher else members.min(axis=1)
                is_main = metric == next(iter(metrics))
                rows.append(
                    [
                        TASKS[task],
                        LABELS[metric],
                        *(cell(values[:, place]) for place in (-2, -1)),
                        cell(np.median(members, axis=1)),
                        cell(best),
                        *(
                            f"{ranks[:, p].mean():.1f}" if is_main else ""
                            for p in (-2, -1)
                        ),
                    ]
                )
        if rows:
            share = f"{config.broken.share:.0%} of the entries broken"
            what = "all entries as they are" if condition == "clean" else share
            run_dir.add_table(
                f"Consensus, {what}",
                ["task", "metric", "mean", "median", "median entry", "best entry"]
                + ["rank of mean", "rank of median"],
                rows,
                "Mean over seeds and its 95 % interval, that of diabetes and wine"
                " corrected, since their splits share rows (Nadeau and Bengio); the"
                " best entry is best in hindsight, on the test rows. mAUC and BCA:"
                " higher is better.",
            )
    if results["rules"]:
        told = dict(split_sizes=verdicts.split_sizes(config, "diabetes"), form=".4g")
        rows = [
            [
                name,
                *(
                    interval_text(results["rules"][c][place], **told)
                    for c in ("clean", "broken")
                ),
            ]
            for place, name in enumerate(measures.RULE_NAMES)
        ]
        run_dir.add_table(
            "Rules, diabetes",
            ["rule", "MAE", "MAE, broken entries"],
            rows,
            f"Trimmed and winsorised by {config.trim_share:g} at either end; the"
            " down-weighted mean weighs entries by their distance to the median.",
        )
    _add_overall(run_dir, results)
    if results["bootstrap"] is not None:
        _add_tests(run_dir, config, results)


def _add_overall(run_dir, results):
    """The challenge's overall ranking of entries and consensuses."""
    names = [*map(str, results["names"]["diagnosis"]), *measures.CONSENSUS]
    conditions = [c for c in ("clean", "broken") if results[c]]
    ranks = {c: verdicts.overall_ranks(results, c) for c in conditions}
    order = np.argsort(ranks["clean"].mean(axis=0), kind="stable")
    rows = [
        [
            names[place],
            *(interval_text(r[:, place], form=".1f") for r in ranks.values()),
        ]
        for place in order
    ]
    run_dir.add_table(
        "Overall rank over the three outcomes",
        ["entry", "rank", "rank, broken entries"][: 1 + len(conditions)],
        rows,
        "Rank of the sum of the ranks by mAUC, by MAE of the score and by MAE of the"
        " ventricles, as in the challenge; mean over cohorts and its 95 % interval.",
    )


def _add_tests(run_dir, config, results):
    boot = results["bootstrap"]
    rows = []
    for place, name in enumerate(results["names"]["diagnosis"]):
        cells = []
        for number, outcome in enumerate(verdicts.OUTCOMES):
            values, _ = verdicts.main_scores(results, outcome)
            low, high = boot["ends"][0, :, number, place]
            won = boot["wins"][:, number, place]
            cells += [f"{values[0, place]:.3f} ({low:.3f}-{high:.3f})"]
            cells += [f"{won.sum()} of {len(won)}"]
        rows.append([str(name), *cells])
    run_dir.add_table(
        "Simulated study: entries against the constant forecast",
        ["entry", "mAUC", "beats", "ventricles MAE", "beats", "score MAE", "beats"],
        rows,
        "Values and 95 % bootstrap intervals over people of the first cohort; in how"
        f" many cohorts Holm's test at {config.level:g} over the 14 others finds the"
        " entry better than the constant one.",
    )
    effects = verdicts.feature_effects(results)
    labels = {
        "marker_mauc": "marker: change of mAUC, equal entries",
        "weight_marker_mauc": "marker: regression weight, mAUC",
        "summary_mauc": "slope and extremes: change of mAUC, equal entries",
        "weight_summary_mauc": "slope and extremes: regression weight, mAUC",
        "marker_ventricle_share": "marker: relative change of ventricle MAE",
        "weight_marker_ventricles": "marker: regression weight, ventricle MAE",
        "summary_ventricle_share": "slope, extremes: relative change of ventricle MAE",
        "weight_summary_ventricles": "slope, extremes: regression weight, same",
    }
    run_dir.add_table(
        "Attribution to features",
        ["what", "mean over cohorts"],
        [
            [label, interval_text(effects[name], form=".4g")]
            for name, label in labels.items()
        ],
        "Equal entries: the same learner with and without the feature. The regression"
        " has one constant for each learner.",
    )


def add_figures(run_dir, config, results):
    """Ranks, rules under broken entries, coverage, influence, and feature effects."""
    run_dir.add_figure(
        "ranks",
        rank_figure(config, results),
        "Rank of both consensuses among the entries, over their number: mean over seeds"
        " and 95 % interval. Left of the dashed line is the first tenth.",
    )
    if config.data == "tadpole":
        return
    run_dir.add_figure(
        "rules",
        rules_figure(config, results),
        "Diabetes: MAE of rules over 20 entries, as they are and with four of them"
        " broken (times ten, zero, a constant, noise). Mean over seeds and 95 %"
        " interval.",
    )
    run_dir.add_figure(
        "coverage",
        coverage_figure(results),
        "Departure of the 50 % intervals' coverage from 50 % (CPA, 0 is best): every"
        " entry and both consensuses, mean over seeds.",
    )
    run_dir.add_figure(
        "influence",
        influence_figure(results),
        "Diabetes, first seed, four entries broken: how far the consensus moves when an"
        " entry is left out, against the entry's distance to the median consensus.",
    )
    run_dir.add_figure(
        "features",
        feature_figure(results),
        "Simulated study: what a feature changes in otherwise equal entries, one dot a"
        " cohort and their mean.",
    )


def rank_figure(config, results):
    conditions = [c for c in ("clean", "broken") if results["ranks"][c]]
    fig = new_figure(0.9 + 0.75 * len(results["clean"]))
    ax = fig.subplots()
    names = []
    for row, (task, ranks) in enumerate(results["ranks"]["clean"].items()):
        names.append(f"{TASKS[task]} ({ranks.shape[1] - 2})")
        for number, condition in enumerate(conditions):
            values = results["ranks"][condition][task]
            share, sizes = verdicts.places(values), verdicts.split_sizes(config, task)
            for place, (system, marker) in enumerate(SHAPES.items()):
                y = row + 0.18 * (2 * number + place - 1.5)
                label = f"{system}{', a fifth broken' if number else ''}"
                _dot(
                    ax,
                    share[:, place],
                    y,
                    sizes=sizes,
                    color=PALETTE[place],
                    marker=marker,
                    filled=not number,
                    label=label if row == 0 else None,
                )
    ax.axvline(verdicts.TOP, color=GREY, lw=1, ls="--")
    ax.set_xlim(0, 1.1)
    finish(
        ax,
        x="Rank of the consensus over the number of entries",
        y="",
        legend=True,
        legend_above=True,
        starts_at_zero=False,
    )
    _rows(ax, names)
    return fig


def rules_figure(config, results):
    fig = new_figure(3.6)
    ax = fig.subplots()
    for row in range(len(measures.RULE_NAMES)):
        for number, condition in enumerate(("clean", "broken")):
            _dot(
                ax,
                results["rules"][condition][row],
                row + 0.15 * (2 * number - 1),
                sizes=verdicts.split_sizes(config, "diabetes"),
                color=(PALETTE[0], ALARM)[number],
                marker="os"[number],
                label=("entries as they are", "a fifth broken")[number]
                if row == 0
                else None,
            )
    finish(
        ax,
        x="MAE (disease progression score)",
        y="",
        legend=True,
        legend_above=True,
        starts_at_zero=False,
    )
    _rows(ax, measures.RULE_NAMES)
    return fig


def coverage_figure(results):
    tasks = [task for task, metrics in results["clean"].items() if "cpa" in metrics]
    fig = new_figure(0.9 + 0.7 * len(tasks))
    ax = fig.subplots()
    for row, task in enumerate(tasks):
        values = results["clean"][task]["cpa"].mean(axis=0)
        first = row == 0
        spread = np.linspace(-0.12, 0.12, len(values) - 2)
        ax.plot(
            values[:-2],
            row + spread,
            "|",
            color=GREY,
            ms=10,
            label="entries" if first else None,
        )
        for place, (system, marker) in enumerate(SHAPES.items()):
            ax.plot(
                values[place - 2],
                row,
                marker,
                color=PALETTE[place],
                ms=8,
                ls="",
                label=system if first else None,
            )
    ax.set_xlim(-0.01, 0.51)
    finish(
        ax,
        x="|coverage of the 50 % interval - 0.5|",
        y="",
        legend=True,
        starts_at_zero=False,
    )
    _rows(ax, [TASKS[task] for task in tasks])
    return fig


def influence_figure(results):
    of_mean, of_median, far = results["influence"][:, 0]
    broken = results["is_broken"][0]
    fig = new_figure()
    ax = fig.subplots()
    for kind, moved, color, marker in (
        ("mean", of_mean, PALETTE[0], "D"),
        ("median", of_median, PALETTE[1], "o"),
    ):
        for chosen, face in ((~broken, color), (broken, "white")):
            label = f"on the {kind}" + (", broken entry" if face == "white" else "")
            ax.plot(
                far[chosen],
                moved[chosen],
                marker,
                color=color,
                markerfacecolor=face,
                ms=7,
                ls="",
                label=label,
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    whole = [1, 2, 5, 10, 20, 50, 100]
    low, high = ax.get_ylim()
    ticks = [tick for tick in whole if low <= tick <= high]
    if len(ticks) > 1:  # plain numbers instead of powers
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.set_yticks([], minor=True)
    finish(
        ax,
        x="Distance to the median consensus (log scale)",
        y="Mean move of the consensus (log scale)",
        legend=True,
    )
    return fig


def feature_figure(results):
    effects = verdicts.feature_effects(results)
    panels = (
        ("mauc", "Change of mAUC", 1.0),
        ("ventricle_share", "Change of ventricle MAE (%)", 100.0),
    )
    fig = new_figure(2.6)
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (name, label, scale) in zip(axes, panels, strict=True):
        for row, flag in enumerate(("marker", "summary")):
            values = scale * effects[f"{flag}_{name}"]
            ax.plot(
                values, np.full(len(values), row), "o", color=PALETTE[row], alpha=0.4
            )
            ax.plot(values.mean(), row, "|", color="black", ms=18, mew=2)
            ax.annotate(
                f"{values.mean():.3g}",
                (values.mean(), row),
                xytext=(0, 12),
                textcoords="offset points",
                ha="center",
                fontsize=NOTE_SIZE,
            )
        ax.axvline(0, color=GREY, lw=1)
        finish(ax, x=label, y="", starts_at_zero=False)
        ax.margins(x=0.12)
    _rows(axes[0], ["marker", "slope and\nextremes"])
    return fig


def _dot(ax, values, y, *, sizes, color, marker, filled=True, label=None):
    interval = student_interval(values, split_sizes=sizes)
    if interval is not None:
        ax.hlines(y, *interval, color=color, lw=2, alpha=0.6)
    ax.plot(
        np.mean(values),
        y,
        marker,
        color=color,
        markerfacecolor=color if filled else "white",
        ms=7,
        ls="",
        label=label,
    )


def _rows(ax, names):
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
