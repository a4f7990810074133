"""Figures and tables of `merge_domains.py`."""

import numpy as np

from ensjax.experiment.claims import interval_text, mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import (
    GREY,
    LABEL_SIZE,
    MARKERS,
    PALETTE,
    TICK_SIZE,
    finish,
    new_figure,
)

verdicts = load_beside(__file__, "merge_domains_claims")
scores = load_beside(__file__, "merge_domains_scores")
methods, training = scores.methods, scores.training

# Knobs with a panel of their own: what the axis is called, and whose curves it has.
PANELS = {
    "lam": ("lambda", ("task_arithmetic", "ties", "della", "breadcrumbs", "sce")),
    "density": ("density", ("ties", "della", "breadcrumbs", "sce")),
    "drop": ("p, share that is dropped", ("dare", "dare_ties")),
    "alpha": ("alpha, share kept off the diagonal", ("regmean", "regmean_bias")),
}


def _views(done, name):
    is_merge = name in methods.METHODS
    read = scores.tuned_views if is_merge else scores.reference_views
    return read(done, name)


def _methods(config, done):
    names = [*scores.REFERENCES, *scores.merges(config)]
    names.sort(key=lambda name: verdicts.value(done, name).mean())
    fig = new_figure(1.6 + 0.3 * len(names), width=8.2)
    ax = fig.subplots()
    sizes = verdicts.split_sizes(config)
    for place, name in enumerate(names):
        mean, low, high = mean_and_interval(
            verdicts.value(done, name), split_sizes=sizes
        )
        is_merge = name in methods.METHODS
        ax.barh(
            place,
            mean,
            0.66,
            xerr=[[mean - low], [high - mean]],
            capsize=3,
            color=PALETTE[0] if is_merge else GREY,
            alpha=0.75,
        )
        by_domain = _views(done, name)[:, 1:].mean(axis=0)
        for number, x in enumerate(by_domain):
            ax.plot(
                x,
                place,
                linestyle="",
                marker=MARKERS[number],
                markersize=5,
                color=PALETTE[number + 1],
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=training.DOMAINS[number] if place == 0 else None,
            )
    own = scores.own_domain(done).mean()
    ax.axvline(own, color="black", linestyle="--", linewidth=1)
    ax.text(
        own - 0.6,
        0,
        "each member in its own domain",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=TICK_SIZE,
    )
    ax.set_yticks(range(len(names)), [verdicts.label(name) for name in names])
    ax.set_xlim(0, 100)
    ax.set_ylim(-0.6, len(names) - 0.4)
    finish(ax, x="test accuracy (%)", y="", starts_at_zero=False)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(training.DOMAINS),
        fontsize=TICK_SIZE,
        frameon=False,
    )
    return fig


def _knobs(config, done):
    shown = {
        knob: [n for n in names if n in config.grids and len(config.grids[n][knob]) > 1]
        for knob, (_, names) in PANELS.items()
    }
    shown = {knob: names for knob, names in shown.items() if names}
    rows = (len(shown) + 1) // 2
    fig = new_figure(3.6 * rows, width=9.2)
    axes = np.atleast_1d(fig.subplots(rows, 2)).reshape(-1)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for number, (ax, (knob, names)) in enumerate(zip(axes, shown.items())):
        for name in names:
            place = scores.merges(config).index(name)
            color = PALETTE[names.index(name)]
            values = np.asarray(config.grids[name][knob], float)
            curve = scores.along(config, done, name, knob)
            mean, sd = curve.mean(axis=0), curve.std(axis=0)
            label = verdicts.label(name)
            ax.plot(values, mean, color=color, marker=".", label=label, zorder=place)
            ax.fill_between(values, mean - sd, mean + sd, color=color, alpha=0.12)
            best = methods.candidates(config, name)[knob][scores.chosen(done, name)]
            ax.plot(
                best,
                scores.tuned(done, name),
                linestyle="",
                marker="*",
                markersize=9,
                markeredgecolor="white",
                markeredgewidth=0.5,
                color=color,
                zorder=50,
            )
        for name, style in (("mean", "--"), ("base", ":")):
            ax.axhline(
                verdicts.value(done, name).mean(),
                color=GREY,
                linestyle=style,
                linewidth=1,
                label=verdicts.label(name),
            )
        # Room for the legend above the curves.
        low, high = ax.get_ylim()
        low = max(low, 0)
        ax.set_ylim(low, high + 0.12 * (len(names) + 2) * (high - low))
        ax.set_yticks([y for y in ax.get_yticks() if low <= y <= 100])
        finish(
            ax,
            x=PANELS[knob][0],
            y="test accuracy (%)" if number % 2 == 0 else "",
            legend=True,
        )
    return fig


def _cosines(config, done):
    fig = new_figure(4.2, width=5.4)
    ax = fig.subplots()
    found = done["train"]["cosines"]
    mean, sd = found.mean(axis=0), found.std(axis=0)
    image = ax.imshow(mean, vmin=-1, vmax=1, cmap="RdBu_r")
    for i, j in np.ndindex(*mean.shape):
        text = f"{mean[i, j]:.2f}" + ("" if i == j else f"\n± {sd[i, j]:.2f}")
        color = "white" if abs(mean[i, j]) > 0.6 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=TICK_SIZE, color=color)
    places = range(len(training.DOMAINS))
    ax.set_xticks(places, training.DOMAINS, fontsize=TICK_SIZE)
    ax.set_yticks(places, training.DOMAINS, fontsize=TICK_SIZE)
    ax.set_title(
        f"mean ± sd over {config.num_seeds} seeds", fontsize=LABEL_SIZE, loc="left"
    )
    fig.colorbar(image, ax=ax, label="cosine of task vectors")
    return fig


def _conflicts(config, done):
    fig = new_figure(4.0, width=7.4)
    ax = fig.subplots()
    found = 100 * done["train"]["conflicts"]  # [density, seed, leaf]
    names = [leaf.replace(".linear", "") for leaf in done["train"]["leaves"].tolist()]
    x = np.arange(len(names))
    labels = ("all entries", f"largest {100 * config.conflict_density:g} % of a member")
    for shift, own, label, color in zip((-0.2, 0.2), found, labels, PALETTE):
        ax.bar(
            x + shift,
            own.mean(axis=0),
            0.38,
            yerr=own.std(axis=0),
            capsize=3,
            color=color,
            label=label,
        )
    ax.axhline(87.5, color=GREY, linestyle="--", label="four signs by chance")
    ax.set_xticks(x, [name.replace(".", "\n") for name in names], fontsize=TICK_SIZE)
    ax.set_ylim(0, 135)
    ax.set_yticks(range(0, 101, 20))
    finish(
        ax,
        x="leaf",
        y="entries with both signs (%)",
        legend=True,
        title=f"mean and sd over {config.num_seeds} seeds",
    )
    return fig


def _dropping(config, done):
    fig = new_figure(3.8)
    ax = fig.subplots()
    drops = list(config.grids[scores.ALONE].drop)
    values = [scores.alone(config, done, drop) for drop in drops]
    values = np.stack(values, axis=1) + scores.own_domain(done).mean(axis=1)[:, None]
    ax.errorbar(
        drops,
        values.mean(axis=0),
        yerr=values.std(axis=0),
        marker="o",
        capsize=3,
        color=PALETTE[0],
        label="one member, its own domain",
    )
    if "dare" in config.grids:
        curve = scores.along(config, done, "dare", "drop")
        ax.errorbar(
            list(config.grids.dare.drop),
            curve.mean(axis=0),
            yerr=curve.std(axis=0),
            marker="s",
            capsize=3,
            color=PALETTE[1],
            label="four merged, all domains",
        )
    ax.set_ylim(0, 105)
    finish(
        ax,
        x="p, share of the task vector that is dropped",
        y="test accuracy (%)",
        title=f"mean and sd over {config.num_seeds} seeds",
        legend=True,
    )
    return fig


def _images(config, done):
    """Three test digits in every view."""
    del done
    images, labels = (x[0] for x in training.load_rows(config).parts["test"])
    chosen = [int(np.flatnonzero(labels == c)[0]) for c in (2, 4, 7)]
    views = training.views_of(images[chosen])
    fig = new_figure(3.9, width=6.4)
    axes = fig.subplots(len(chosen), len(views))
    for (row, column), ax in np.ndenumerate(axes):
        ax.imshow(views[column, row, ..., 0], cmap="gray", vmin=0, vmax=1)
        ax.set_xticks([])
        ax.set_yticks([])
        if row == 0:
            ax.set_title(list(training.VIEWS)[column], fontsize=LABEL_SIZE)
    return fig


FIGURES = {
    "methods": (
        "Test accuracy over the four domains (bars, 95 % intervals over seeds) and in"
        " each of them (marks), knobs chosen on validation rows. Grey: not merged.",
        _methods,
    ),
    "knobs": (
        "Test accuracy by one knob, the others chosen on validation rows; mean and sd"
        " over seeds. Stars: what each seed chose.",
        _knobs,
    ),
    "cosines": ("How alike the directions are in which members moved.", _cosines),
    "conflicts": (
        "Interference: entries of the task vectors in which one member moved up and"
        " another down, of those that at least two members moved (0 where there are"
        " none).",
        _conflicts,
    ),
    "dropping": (
        "What DARE costs one member, and the merged model with lambda chosen anew.",
        _dropping,
    ),
    "images": ("Test digits as each domain shows them.", _images),
}


def add_figures(run_dir, config, done):
    """Draws everything that the report shows."""
    for name, (caption, draw) in FIGURES.items():
        if name != "dropping" or scores.ALONE in config.grids:
            run_dir.add_figure(name, draw(config, done), caption)


def add_tables(run_dir, config, done):
    """Every method in every domain, with the knobs that were chosen."""
    sizes, rows = verdicts.split_sizes(config), []
    for name in (*scores.REFERENCES, *scores.merges(config)):
        views = _views(done, name)
        text = interval_text(verdicts.value(done, name), split_sizes=sizes, form=".1f")
        knobs = ""
        if name in methods.METHODS:
            best = scores.chosen(done, name)
            found = methods.candidates(config, name)
            knobs = ", ".join(
                f"{knob} {np.median(values[best]):g}" for knob, values in found.items()
            )
        means = np.roll(views.mean(axis=0), -1).tolist()  # clean digits last
        rows.append((verdicts.label(name), text, *means, knobs))
    run_dir.add_table(
        "accuracy",
        (
            "method",
            "four domains (95 % interval)",
            *training.DOMAINS,
            "clean",
            "knobs, median over seeds",
        ),
        rows,
        "Test accuracy (%). Knobs are chosen on validation rows of the four domains;"
        " clean digits play no part in it.",
    )
