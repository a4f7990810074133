"""Figures and tables of `soups.py`."""

import numpy as np

from ensjax.experiment.claims import interval_text, mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

ways = load_beside(__file__, "soups_ways")
trajectory = load_beside(__file__, "soups_trajectory")
verdicts = load_beside(__file__, "soups_claims")

PLACES = {"id": "in distribution", "ood": "out of distribution"}
NAMES = {"individual": "mean fine-tune"} | ways.WAYS
# Colour and marker of the ways that stand out among the members.
MARKED = {
    "pretrained": (GREY, "v"),
    "best": (PALETTE[6], "*"),
    "uniform": (PALETTE[0], "o"),
    "greedy": (PALETTE[1], "s"),
    "learned_layer": (PALETTE[3], "D"),
    "ensemble": (PALETTE[2], "^"),
    "greedy_ensemble": (PALETTE[4], "P"),
}


def _scatter(config, soups):
    del config
    fig = new_figure(5.2, width=9.4)
    axes = fig.subplots(1, 2)
    own = 100 * soups["members"][0, ways.SCORES.index("accuracy")]  # [member, dataset]
    x, y = (verdicts.on(soups, own, test) for test in PLACES)
    axes[0].scatter(x, y, s=16, color=PALETTE[5], alpha=0.6, label="fine-tunes")
    for way, (color, marker) in MARKED.items():
        values = [verdicts.of_way(soups, way, test=t) for t in PLACES]
        style = dict(color=color, markersize=11 if marker == "*" else 8)
        axes[0].plot(values[0][0], values[1][0], marker=marker, ls="", **style)
        x, y = (mean_and_interval(v) for v in values)
        axes[1].errorbar(
            x[0],
            y[0],
            xerr=[[x[0] - x[1]], [x[2] - x[0]]],
            yerr=[[y[0] - y[1]], [y[2] - y[0]]],
            fmt=marker,
            elinewidth=1,
            label=NAMES[way],
            **style,
        )
    titles = ("first seed, and its fine-tunes", "mean of seeds, 95 % intervals")
    for ax, title in zip(axes, titles):
        finish(
            ax,
            x="accuracy in distribution (%)",
            y="accuracy out of distribution (%)" if ax is axes[0] else "",
            title=title,
            starts_at_zero=False,
        )
    handles = [ax.get_legend_handles_labels() for ax in axes]
    handles, labels = (a + b for a, b in zip(*handles))
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def _curves(config, soups):
    fig = new_figure(4.6, width=9.4)
    axes = fig.subplots(1, 2)
    k = np.arange(1, config.num_members + 1)
    curves = 100 * soups["curves"][:, ways.SCORES.index("accuracy")]
    curves = curves - curves[:, :1, :1]  # the best single model of the same seed
    for ax, (test, title) in zip(axes, PLACES.items()):
        for number, (label, color) in enumerate(
            (
                ("soup of the k best", PALETTE[0]),
                ("output ensemble of the k best", PALETTE[2]),
                ("greedy soup after k candidates", PALETTE[1]),
            )
        ):
            values = verdicts.on(soups, curves[:, number], test)  # [seed, k]
            mean, sd = values.mean(axis=0), values.std(axis=0)
            ax.plot(k, mean, color=color, label=label)
            ax.fill_between(k, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
        ax.axhline(0, color=GREY, linestyle=":", label="best single model")
        finish(
            ax,
            x="k, fine-tunes in the order of their validation accuracy",
            y="minus the best single model's (points)" if ax is axes[0] else "",
            title=f"accuracy {title}",
            starts_at_zero=False,
        )
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def _ways(config, soups):
    del config
    fig = new_figure(5.2, width=9.4)
    axes = fig.subplots(1, 2, sharey=True)
    shown = [way for way in NAMES if way not in ("best", "pretrained")]
    y = np.arange(len(shown))
    for ax, (test, title) in zip(axes, PLACES.items()):
        for row, way in enumerate(shown):
            values = verdicts.minus(soups, way, "best", test=test)
            mean, low, high = mean_and_interval(values)
            color = PALETTE[2] if way in ways.ENSEMBLES else PALETTE[0]
            color = GREY if way == "individual" else color
            ax.barh(row, mean, color=color, height=0.65)
            ax.hlines(row, low, high, color="black", lw=1.8)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(y, [NAMES[way] for way in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        finish(
            ax,
            x="points above the best single model",
            y="",
            title=title,
            starts_at_zero=False,
        )
    return fig


def _shares(config, soups):
    fig = new_figure(4.4, width=9.4)
    left, right = fig.subplots(1, 2)
    members = config.num_members
    ranks = np.arange(1, members + 1)
    order = soups["greedy_order"]  # [seed, member]
    shares = np.take_along_axis(soups["shares"], order, axis=1)
    mean, sd = shares.mean(axis=0), shares.std(axis=0)
    left.bar(ranks, mean, color=PALETTE[0], width=0.9, label="learned, one a model")
    left.vlines(ranks, mean - sd, mean + sd, color="black", lw=0.8)
    for number, color, marker in zip(
        range(soups["layer_shares"].shape[1]), PALETTE[1:], MARKERS
    ):
        own = np.take_along_axis(soups["layer_shares"][:, number], order, axis=1)
        name = str(soups["layers"][0, number])
        style = dict(marker=marker, markersize=3, lw=1)
        right.plot(ranks, own.mean(axis=0), color=color, label=name, **style)
    for ax, title in ((left, "learned soup"), (right, "learned soup by layer")):
        ax.axhline(1 / members, color=GREY, linestyle=":", label="uniform soup")
        ax.set_ylim(0)
        finish(
            ax,
            x="fine-tune, by validation accuracy (1: best)",
            y="share in the soup, mean of seeds" if ax is left else "",
            title=title,
            legend=True,
        )
    return fig


def _along(done):
    fig = new_figure(3.8, width=9.4)
    axes = fig.subplots(1, 2, sharey=True)
    kinds = list(trajectory.KINDS)
    for ax, score, label in zip(
        axes, ways.SCORES, ("test accuracy (%)", "test NLL (nats)")
    ):
        for row, kind in enumerate(kinds):
            values = verdicts.along(done, kind, score=score)
            mean, low, high = mean_and_interval(values)
            color = PALETTE[row % len(PALETTE)]
            ax.hlines(row, low, high, color=color, lw=2.5)
            ax.plot(mean, row, "o", color=color, ms=7)
            ax.plot(values, np.full(len(values), row + 0.25), "|", color=GREY, ms=5)
        ax.set_yticks(range(len(kinds)), trajectory.KINDS.values())
        ax.set_ylim(len(kinds) - 0.4, -0.6)
        finish(ax, x=label, y="", starts_at_zero=False)
    return fig


FIGURES = {
    "scatter": (
        "Accuracy in and out of distribution of every fine-tune of the first seed and"
        " of what is made of them; right, means over seeds.",
        _scatter,
    ),
    "curves": (
        "Fine-tunes are added in the order of their validation accuracy: the mean of"
        " the k best weights, of their outputs, and the greedy soup, each against the"
        " best single model of the same seed. Mean and sd over seeds.",
        _curves,
    ),
    "ways": (
        "Every way against the best single model of the same seed, with 95 %"
        " intervals over seeds. Green: ensembles of outputs, which run all their"
        " members for each prediction.",
        _ways,
    ),
    "shares": (
        "Coefficients of the learned soups; vertical lines are one sd over seeds.",
        _shares,
    ),
}


def add_soup_figures(run_dir, config, soups):
    """Draws the first part."""
    for name, (caption, draw) in FIGURES.items():
        run_dir.add_figure(name, draw(config, soups), caption)


def add_figures(run_dir, config, done):
    """Draws everything that the report shows."""
    add_soup_figures(run_dir, config, done["soups"])
    run_dir.add_figure(
        "along",
        _along(done),
        "Averages along one run with a constant learning rate: mean, 95 % interval and"
        " every run. Axes do not start at 0.",
    )


def add_soup_tables(run_dir, config, soups):
    """All ways by accuracy, NLL and cost, and on every test set."""
    models = {
        "ensemble": config.num_members,
        "greedy_ensemble": soups["num_selected"][:, 0].mean(),
        "greedy_ensemble_nll": soups["num_selected"][:, 1].mean(),
    }

    def text(way, **where):
        values = verdicts.of_way(soups, way, **where)
        return interval_text(values, form=".3f" if "score" in where else ".2f")

    run_dir.add_table(
        "ways",
        (
            "way",
            "models at inference",
            *(f"accuracy {place} (%)" for place in PLACES.values()),
            *(f"NLL {place}" for place in PLACES.values()),
        ),
        [
            (
                name,
                models.get(way, 1),
                *(text(way, test=test) for test in PLACES),
                *(text(way, test=test, score="nll") for test in PLACES),
            )
            for way, name in NAMES.items()
        ],
        "Means over seeds with 95 % intervals; the choice was made on validation rows.",
    )
    tests = verdicts.tests_of(soups)
    run_dir.add_table(
        "shifts",
        ("way", *tests),
        [
            (
                name,
                *(verdicts.of_way(soups, way, test=test).mean() for test in tests),
            )
            for way, name in NAMES.items()
        ],
        "Accuracy on every test set (%), mean over seeds.",
    )


def add_tables(run_dir, config, done):
    """The tables of both parts."""
    add_soup_tables(run_dir, config, done["soups"])
    rows = [
        (
            name,
            interval_text(verdicts.along(done, kind), form=".2f"),
            interval_text(verdicts.along(done, kind, score="nll")),
        )
        for kind, name in trajectory.KINDS.items()
    ]
    run_dir.add_table(
        "along",
        ("of one run", "accuracy (%)", "NLL"),
        rows,
        "Averages along a run, means over runs with 95 % intervals.",
    )
