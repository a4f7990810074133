"""Tables and figures of `hybrid_voting.py`."""

import numpy as np

from ensjax import plot
from ensjax.experiment import interval_text, mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot import style

images = load_beside(__file__, "hybrid_voting_images")
members = load_beside(__file__, "hybrid_voting_members")
verdicts = load_beside(__file__, "hybrid_voting_claims")

HARD = "hard vote"


def add_tables(run_dir, config, results):
    """Accuracies, segmentation by contrast, cost on few rows."""
    rows = []
    for where, (found, sizes) in _sets(config, results).items():
        for name, own in _systems(found).items():
            gain = "-"
            if name != HARD:
                gain = interval_text(found["hard"] - own, split_sizes=sizes)
            cell = interval_text(own, split_sizes=sizes)
            rows.append([where, name, cell, f"{own.std(ddof=1):.3f}", gain])
    run_dir.add_table(
        "Accuracy",
        ["data and features", "who", "accuracy", "sd over splits",
         "hard vote minus it"],
        rows,
        f"Means over splits with 95 % intervals: {_how(config)}",
    )  # fmt: skip
    segmentation, levels = results["segmentation"], config.contrast_levels
    names = [f"{a:g} to {b:g}" for a, b in zip(levels[:-1], levels[1:])]
    rows = [
        [name, *(interval_text(segmentation[f"{key}_by_level"][i]) for key in
                 ("median", "correlation", "dice"))]
        for i, name in enumerate(names)
    ]  # fmt: skip
    run_dir.add_table(
        "Segmented area against contrast",
        ["grey of the tumour", "median relative error", "correlation", "Dice"],
        rows,
        f"Phantoms; the brain's grey is {images.phantoms.BRAIN_LEVEL:g} with a texture"
        f" of {images.phantoms.BRAIN_TEXTURE:g}. Means over"
        f" {config.num_contrast_sets} sets of {config.num_contrast_images} images.",
    )
    small = results["small_data"]
    sizes = verdicts.split_sizes(config, results, "images")

    def cell(who, place):
        return interval_text(small[who][:, place], split_sizes=sizes)

    rows = [
        [
            count,
            *(cell(k, i) for k in ("mean_member", "vote")),
            f"{small['vote_seconds'][:, i].mean():.2g}",
            *(cell(k, i) for k in ("network", "ensemble")),
            f"{float(small['ensemble_seconds']):.2g}",
        ]
        for i, count in enumerate(config.row_counts)
    ]
    run_dir.add_table(
        "Few rows: votes and networks",
        ["training rows", "mean of KNN, RF, DT", "their vote", "seconds",
         "mean network", f"{config.num_members} networks", "seconds"],
        rows,
        "Accuracy on the thirteen texture features. Seconds here to fit three"
        " classifiers, and to train one ensemble as a part of the stack of all, which"
        " takes the same steps for any number of rows; the time to compile is in it.",
    )  # fmt: skip


def add_figures(run_dir, config, results):
    """Accuracies, phantoms and their masks, area error against contrast, few rows."""
    values = {
        f"Accuracy, {where}": {
            name: mean_and_interval(own, split_sizes=sizes)
            for name, own in _systems(found).items()
        }
        for where, (found, sizes) in _sets(config, results).items()
    }
    run_dir.add_figure(
        "accuracy",
        plot.metric_dots(values),
        "Accuracy of members and votes, mean over splits with 95 % intervals:"
        f" {_how(config)}",
    )
    run_dir.add_figure(
        "segmentation",
        _draw_images(config, results["described"]),
        "Images with the segmented outline (orange)"
        + ("." if config.images.is_real else " and the true one (blue)."),
    )
    run_dir.add_figure(
        "area-error",
        _draw_errors(results["segmentation"]),
        "Relative error of the segmented area of single phantoms against the contrast"
        " of the tumour, those below .001 at .001; the line is the median of ten groups"
        " of equal size.",
    )
    run_dir.add_figure(
        "few-rows",
        _draw_few_rows(config, results),
        "Accuracy against the number of training rows, mean over"
        f" {config.num_image_sets} splits with 95 % intervals.",
    )


def _how(config) -> str:
    shared = "those of breast-cancer rows are corrected, since splits share rows"
    if config.images.is_real:
        return "corrected, since splits share rows (Nadeau and Bengio)."
    return f"{shared} (Nadeau and Bengio); sets of phantoms are independent (Student)."


def _sets(config, results):
    """Accuracies by data and features, with the sizes of splits that share rows."""
    where = verdicts.TABLE
    sizes = verdicts.split_sizes(config, results, where)
    sets = {where: (results["table"], sizes)}
    sizes = verdicts.split_sizes(config, results, "images")
    for name in images.FEATURE_SETS:
        sets[name] = verdicts.image_scores(results, name), sizes
    return sets


def _systems(found):
    systems = dict(zip(members.MEMBERS, found["members"].T))
    return systems | {HARD: found["hard"], "soft vote": found["soft"]}


def _draw_images(config, described):
    fig = style.new_figure(2.2)
    names = ("benign", "malignant")
    number = len(described["shown"])
    for i, ax in enumerate(fig.subplots(1, number)):
        ax.imshow(described["shown"][i], cmap="gray", vmin=0, vmax=1)
        outlines = [(described["shown_found"][i], style.PALETTE[1], 1.6)]
        if len(described["shown_true"]):
            outlines.append((described["shown_true"][i], style.PALETTE[0], 1.0))
        for mask, color, width in outlines:
            if mask.any() and not mask.all():
                ax.contour(mask, [0.5], colors=[color], linewidths=width)
        label = int(described["shown_labels"][i])
        title = f"class {label}" if config.images.is_real else names[label]
        ax.set_title(title, fontsize=style.TICK_SIZE)
        ax.set_xticks([])
        ax.set_yticks([])
    return fig


def _draw_errors(segmentation):
    fig = style.new_figure(3.8)
    ax = fig.subplots()
    contrast, error = segmentation["contrast"], segmentation["error"]
    shown = np.maximum(error, 1e-3)
    ax.plot(contrast, shown, ".", ms=4, alpha=0.4, color=style.PALETTE[0],
            label="one phantom")  # fmt: skip
    groups = np.array_split(np.argsort(contrast), min(10, len(contrast)))
    middle = [contrast[g].mean() for g in groups]
    median = [np.median(shown[g]) for g in groups]
    ax.plot(middle, median, "-o", color=style.PALETTE[1], lw=1.8, ms=5, label="median")
    ax.axhline(0.05, color=style.GREY, ls="--", lw=1.2, label="5 %")
    ax.set_yscale("log")
    style.finish(ax, x="Grey of the tumour minus that of the brain",
                 y="Relative error of the area", legend=True)  # fmt: skip
    return fig


def _draw_few_rows(config, results):
    small, sizes = (
        results["small_data"],
        verdicts.split_sizes(config, results, "images"),
    )
    fig = style.new_figure(3.8)
    ax = fig.subplots()
    names = {
        "vote": "vote of KNN, RF, DT",
        "mean_member": "their mean",
        "ensemble": f"{config.num_members} networks",
        "network": "one network",
    }
    counts = np.asarray(config.row_counts, float)
    for i, (key, label) in enumerate(names.items()):
        told = [mean_and_interval(x, split_sizes=sizes) for x in small[key].T]
        mean, low, high = np.array(told).T
        ax.errorbar(counts * (1 + 0.02 * (i - 1.5)), mean, [mean - low, high - mean],
                    color=style.PALETTE[i], marker=style.MARKERS[i], ms=5, lw=1.6,
                    capsize=3, label=label)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(counts, [f"{c:g}" for c in counts])
    ax.minorticks_off()
    low, high = ax.get_ylim()  # an interval of two seeds may leave what is possible
    ax.set_ylim(max(low, 0), min(high, 1))
    style.finish(ax, x="Training rows", y="Accuracy", legend=True, legend_above=True)
    return fig
