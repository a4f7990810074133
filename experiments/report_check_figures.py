"""Tables and figures of `report_check.py`."""

import numpy as np

from ensjax import plot
from ensjax.experiment import interval_text, mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot import style

verdicts = load_beside(__file__, "report_check_claims")


def add_tables(run_dir, config, rows, results):
    """Accuracies, the reader's errors and their controls, rankings, examples."""
    simple, kind = results["simple"], results["kind"]
    table = []
    for d, letter in enumerate(verdicts.domains(config)):
        for name, values in simple.items():
            cells = [interval_text(values[k][:, d]) for k in ("member", "best", "vote")]
            says = interval_text(values["says_error"][:, d])
            table.append([letter, "is there an error", name, *cells, says])
        cells = [interval_text(kind[k][:, d]) for k in ("member", "best", "vote")]
        table.append([letter, "which error", "tuned", *cells, "-"])
        cells = ["-", "-", interval_text(kind["on_altered"][:, d])]
        table.append([letter, "which error, altered only", "tuned", *cells, "-"])
        reader = interval_text(results["reader"][:, d])
        table.append([letter, "is there an error", "reader", reader, "-", "-", "-"])
    run_dir.add_table(
        "Accuracy",
        ["domain", "question", "who", "mean member", "best member", "vote",
         "vote says error"],
        table,
        "Means over seeds with 95 % t-intervals. The best member is the best on the"
        " test rows themselves, and so flattered. Answers that cannot be read count"
        " neither way.",
    )  # fmt: skip
    _add_controls(run_dir, config, results)
    _add_qualities(run_dir, config, results)
    _add_ranking(run_dir, config, results)
    alone = results["alone"]
    names = {
        "member": "mean member",
        "best": "best member",
        "vote": "vote",
        "reader": "reader",
        "cases": "reader-wrong cases",
        "vote_wrong": "vote right there",
        "member_wrong": "mean member right there",
    }
    run_dir.add_table(
        "Votes alone: flipped labels of breast-cancer rows",
        ["", "mean", "smallest", "largest"],
        [
            [label, f"{x.mean():.3f}", f"{x.min():.3f}", f"{x.max():.3f}"]
            for label, x in ((label, alone[name]) for name, label in names.items())
        ],
        f"Over {len(alone['vote'])} seeds; logistic models of"
        f" {config.alone.num_features} features and {config.alone.num_rows} rows.",
    )
    run_dir.add_table(
        "Altered reports", ["error", "true report", "report"], rows.examples,
        "The first of each kind in the test rows of seed 0; a side that ends in"
        " underscores could not be read.",
    )  # fmt: skip


def _add_controls(run_dir, config, results):
    controls, table = results["controls"], []
    for d, letter in enumerate(verdicts.domains(config)):
        for who, label in (("vote", "vote"), ("member", "mean member")):
            cells = [
                interval_text(controls[f"{who}_{name}"][:, d])
                for name in ("wrong", "matched", "random")
            ]
            estimate, low, high = controls["difference"][d]
            paired = f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"
            paired = paired if who == "vote" else "-"
            cases = f"{controls['cases'][:, d].mean():.0f}"
            table.append([letter, label, cases, *cells, paired])
    run_dir.add_table(
        "Where the reader was wrong",
        ["domain", "who", "cases a seed", "reader wrong", "matched control",
         "random control", "wrong minus matched, pairs"],
        table,
        "Share that is right. A matched control is the reader-right case of the same"
        " kind of error that is nearest in the members' mean confidence; a random one"
        " is any of the same kind. Differences in pairs, all seeds, with 95 %"
        " bootstrap intervals over controls.",
    )  # fmt: skip


def _add_qualities(run_dir, config, results):
    found, table = results["qualities"], []
    for q, quality in enumerate(config.reader_qualities):
        for d, letter in enumerate(verdicts.domains(config)):
            cells = []
            for who in ("vote", "member"):
                tests = verdicts.tests_against_reader(results, who, q)
                better, worse = (test[:, d] for test in tests)
                cells.append(interval_text(found[who][q, :, d]))
                cells.append(f"{better.sum()} / {worse.sum()} of {better.size}")
            table.append([f"{quality:g}", letter, *cells])
    run_dir.add_table(
        "Against readers of set accuracy",
        ["reader", "domain", "vote minus reader", "better / worse",
         "mean member minus reader", "better / worse"],
        table,
        "Accuracy differences, means over seeds with 95 % t-intervals; and how many of"
        " McNemar's exact two-sided tests, one for each seed (and member), find it"
        f" better or worse at {verdicts.LEVEL:g}.",
    )  # fmt: skip


def _add_ranking(run_dir, config, results):
    accuracy = verdicts.simple_accuracy(results, verdicts.KINDS)  # [seed, domain, kind]
    table = []
    for d, letter in enumerate(verdicts.domains(config)):
        ranked = verdicts.rank_kinds(config, results, d)
        by_kind = dict(zip(results["kinds"], accuracy[:, d].T))
        for kind in ranked:
            behind = "-"
            if kind != ranked[0]:
                behind = interval_text(by_kind[kind] - by_kind[ranked[0]])
            table.append([letter, kind, interval_text(by_kind[kind]), behind])
    run_dir.add_table(
        "Untuned models of several kinds, ranked",
        ["domain", "kind", "accuracy", "minus the first"],
        table,
        "Is there an error? One model of each kind for every seed, on the same rows;"
        " means over seeds and of differences in pairs, with 95 % t-intervals. Named"
        " public models are not here to be ranked.",
    )


def add_figures(run_dir, config, results):
    """Controls, subsets of few cases, qualities of readers, complementarity."""
    run_dir.add_figure(
        "controls",
        _draw_controls(config, results),
        "Share that the vote gets right: cases that the reader got wrong, reader-right"
        " cases of the same kind of error matched in the members' confidence, and any"
        " of the same kind. Means over seeds with 95 % t-intervals.",
    )
    run_dir.add_figure(
        "subsets",
        _draw_subsets(config, results),
        f"Vote accuracy on {config.subset_size} reader-wrong cases drawn"
        f" {config.num_subsets:,} times, seed 0. The paper has one such subset.",
    )
    run_dir.add_figure(
        "qualities",
        _draw_qualities(config, results),
        "Accuracy of the vote and of the mean member minus that of readers whose"
        " answers were mended or spoilt to a set accuracy; mean over domains, with 95 %"
        " t-intervals over seeds.",
    )
    names = ["vote", "reader", *(f"m{m}" for m in range(config.num_members))]
    for d, letter in enumerate(verdicts.domains(config)):
        fig = plot.disagreement_matrix(
            results["matrix"][d], names=names, label="P(row right | column wrong)"
        )
        fig.axes[0].set_xlabel("Who is wrong", fontsize=style.LABEL_SIZE)
        fig.axes[0].set_ylabel("Who is right", fontsize=style.LABEL_SIZE)
        run_dir.add_figure(
            f"complementarity-{letter}",
            fig,
            f"How often a system is right where another is wrong, domain {letter}, mean"
            " over seeds.",
        )


def _draw_controls(config, results):
    controls = results["controls"]
    names = {"wrong": "reader wrong", "matched": "matched control",
             "random": "random control"}  # fmt: skip
    values = {
        f"{letter}, {label}": mean_and_interval(controls[f"vote_{name}"][:, d])
        for d, letter in enumerate(verdicts.domains(config))
        for name, label in names.items()
    }
    return plot.metric_dots({"Vote right (share)": values}, columns=1)


def _draw_subsets(config, results):
    fig = style.new_figure(3.8)
    ax = fig.subplots()
    draws, size = results["subsets"]["draws"], config.subset_size
    edges = (np.arange(size + 2) - 0.5) / size
    for d, letter in enumerate(verdicts.domains(config)):
        ax.hist(draws[d], edges, histtype="step", lw=1.8, color=style.PALETTE[d],
                label=f"domain {letter}")  # fmt: skip
    ax.axvline(15 / 21, color=style.GREY, ls="--", lw=1.2, label="the paper's 15 of 21")
    ax.set_xlim(0, 1.03)
    style.finish(
        ax,
        x=f"Vote right on {size} reader-wrong cases (share)",
        y="Draws",
        legend=True,
        legend_above=True,
    )
    return fig


def _draw_qualities(config, results):
    fig = style.new_figure(3.8)
    ax = fig.subplots()
    qualities = np.asarray(config.reader_qualities)
    for i, (who, label) in enumerate((("vote", "vote"), ("member", "mean member"))):
        values = results["qualities"][who].mean(axis=-1)  # [quality, seed]
        mean, low, high = np.array([mean_and_interval(row) for row in values]).T
        ax.errorbar(qualities, 100 * mean, 100 * np.stack([mean - low, high - mean]),
                    color=style.PALETTE[i], marker=style.MARKERS[i], lw=1.8, capsize=3,
                    label=label)  # fmt: skip
    ax.axhline(0, color=style.GREY, lw=1.2)
    style.finish(ax, x="Accuracy of the reader", y="Accuracy difference (points)",
                 legend=True)  # fmt: skip
    return fig
