"""Tables and figures of `window_cascade.py`."""

import numpy as np
from matplotlib.ticker import EngFormatter

from ensjax.experiment import student_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

measures = load_beside(__file__, "window_cascade_measures")

COLORS = {
    "single": "#000000",
    "threshold": PALETTE[2],
    "window": PALETTE[0],
    "ensemble": PALETTE[1],
}
WORDS = {
    "single": "one member",
    "threshold": "single-threshold cascade",
    "window": "window cascade",
    "ensemble": "two members",
}


def labels(config) -> dict[str, str]:
    """What each metric is called, with its unit."""
    return {
        "accuracy": "Accuracy (%)",
        "cov": f"Coverage at {100 * config.risk:g} % risk (%)",
        "risk": f"Risk at {100 * config.coverage:g} % coverage (%)",
        "fpr80": f"FPR at {100 * config.tpr[0]:g} % TPR (%)",
        "fpr95": f"FPR at {100 * config.tpr[1]:g} % TPR (%)",
        "scod": f"SCOD risk at {100 * config.scod_coverage:g} % (%)",
    }


def add_tables(run_dir, config, results):
    """All metrics of the shown size, and by size what cascades and scaling give."""
    names, shown = labels(config), config.shown_size
    rows = []
    for system in measures.SYSTEMS:
        cells = [
            _cell(100 * results.value(metric, system)[shown])
            for metric in measures.METRICS
        ]
        cost = 1 + results.share("cov", system)[shown].mean()
        rows.append([system, *cells, cost])
    run_dir.add_table(
        f"Systems of {results.names[shown]}",
        ["system", *names.values(), "cost (one member = 1)"],
        rows,
        f"{_seeds(results)} window: each metric with the window of its own task; cov"
        " window: all with that of coverage at risk; capacity: the same by ranks in"
        f" batches of {config.capacity_batch_size}. The cost is that of the coverage"
        " column. SCOD: selective risk of a 1 : 1 mixture with OOD rows; its window is"
        " centred on the unlabelled mixture, which uses statistics of the test set.",
    )
    rows = []
    for size, name in enumerate(results.names):
        rows.append(
            [
                name,
                results.macs[size],
                *(
                    _cell(100 * results.value("cov", s)[size])
                    for s in ("single", "window", "ensemble")
                ),
                *(
                    _cell(100 * results.front_gain("cov", s)[size])
                    for s in ("window", "ensemble")
                ),
                _cell(results.cost_ratio()[size]),
            ]
        )
    run_dir.add_table(
        "Cascades against larger single models",
        [
            "size",
            "MACs of a member",
            "cov: single",
            "cov: window",
            "cov: ensemble",
            "window over front",
            "ensemble over front",
            "MACs over those of an equal single model",
        ],
        rows,
        f"{_seeds(results)} Coverages in %, differences in points. The front is the"
        " single models' coverage, linear in log MACs and extended beyond the last.",
    )
    rows = []
    for metric in measures.OOD_METRICS:
        shares = [
            100 * results.improved_by_second(metric, s).mean()
            for s in ("ensemble", "window")
        ]
        rows.append(
            [names[metric], *shares, 100 * results.improved_by_size(metric).mean()]
        )
    run_dir.add_table(
        "What improves under OOD rows: share of sizes and seeds (%)",
        ["metric", "two members", "window cascade", "next size"],
        rows,
        "How often a second member of the same size is better than one member, and how"
        " often the next size is.",
    )


def add_figures(run_dir, config, results):
    """Every figure of the report."""
    run_dir.add_figure(
        "pareto",
        _pareto(config, results),
        f"Means over {results.num_seeds} seed(s) and both member orders. MACs are half"
        " the compiled operations of the stages that ran; a cascade's are those of"
        " its own window. Dashed: the line of single models extended.",
    )
    run_dir.add_figure(
        "over_front",
        _over_front(config, results),
        "By how much each system is better than a single model of its MACs, in points;"
        " above 0 it pays. Bars: 95 % intervals over seeds as if independent, paired."
        " The axes are linear within 1 point, and logarithmic beyond.",
    )
    run_dir.add_figure(
        "risk_coverage",
        _risk_coverage(config, results),
        f"First pair of the first seed, {results.names[config.shown_size]}. Above:"
        " error rate of the surest rows; the cascade has the window of the dotted risk."
        " Below: the first member's confidences; rows inside the window go on.",
    )
    run_dir.add_figure(
        "ood",
        _improved(config, results),
        "Share of sizes and seeds in which a second member, or the next size, makes the"
        " metric better. 50 % is what chance would give.",
    )


def _pareto(config, results):
    fig = new_figure(7.4, width=7.6)
    axes = fig.subplots(2, 2).reshape(-1)
    names = labels(config)
    for ax, metric in zip(axes, ("cov", "risk", "fpr95", "fpr80")):
        single = 100 * results.value(metric, "single").mean(axis=1)
        for i, system in enumerate(("single", "ensemble", "window")):
            macs = results.cost(metric, system).mean(axis=1)
            values = 100 * results.value(metric, system).mean(axis=1)
            ax.plot(
                macs,
                values,
                color=COLORS[system],
                marker=MARKERS[i],
                lw=1.8,
                ms=6,
                label=WORDS[system],
            )
        slope = (single[-1] - single[-2]) / np.log(results.macs[-1] / results.macs[-2])
        end = 2 * results.macs[-1]
        ax.plot(
            [results.macs[-1], end],
            [single[-1], single[-1] + slope * np.log(2)],
            color=COLORS["single"],
            ls="--",
            lw=1,
        )
        ax.set_xscale("log")
        short = EngFormatter(places=1, sep="")
        ticks = [short(macs).replace(".0", "") for macs in results.macs]
        ax.set_xticks(results.macs, ticks)
        ax.minorticks_off()
        finish(
            ax,
            x="MACs for one row (log scale)",
            y=names[metric],
            title="higher is better" if metric == "cov" else "lower is better",
            legend=ax is axes[0],
            starts_at_zero=False,
        )
    return fig


def _over_front(config, results):
    fig = new_figure(4.2, width=8.4)
    axes = fig.subplots(1, 2)
    names = labels(config)
    systems = ("window", "threshold", "ensemble")
    for ax, metric in zip(axes, ("cov", "risk")):
        places = np.arange(results.num_sizes)
        for i, system in enumerate(systems):
            gain = 100 * results.front_gain(metric, system)
            middle = gain.mean(axis=1)
            intervals = [student_interval(values) for values in gain]
            at = places + 0.15 * (i - 1)
            for x, interval in zip(at, intervals):
                if interval is not None:
                    ax.vlines(x, *interval, color=COLORS[system], lw=2, alpha=0.6)
            ax.plot(
                at,
                middle,
                ls="",
                marker=MARKERS[i],
                ms=7,
                color=COLORS[system],
                label=WORDS[system],
            )
        ax.axhline(0, color=GREY, lw=1)
        # Far below lie full ensembles of small sizes; the rest would be flat.
        ax.set_yscale("symlog", linthresh=1.0)
        ticks = [-10, -3, -1, -0.5, 0, 0.5, 1, 3]
        low, high = ax.get_ylim()
        ax.set_ylim(min(1.4 * low, low), high)  # markers are not cut
        ticks = [t for t in ticks if low <= t <= high]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        short = [name.replace("width ", "").split("-")[-1] for name in results.names]
        ax.set_xticks(places, short)
        label = names[metric].replace(" (%)", "").lower()
        finish(
            ax,
            x="Size" if config.cached.files else "Width of the hidden layers",
            y=f"Gain in {label}\nover equal MACs (points, log beyond ±1)",
            legend=metric == "cov",
            legend_above=True,
            starts_at_zero=False,
        )
    return fig


def _risk_coverage(config, results):
    one = {k[4:]: v for k, v in results.arrays.items() if k.startswith("one/")}
    fig = new_figure(7.0)
    above, below = fig.subplots(2, 1, height_ratios=(3, 2))
    for system in ("single", "window", "ensemble"):
        kept = one[f"{system}_coverage"] > 0.02  # a few rows before that
        above.plot(
            100 * one[f"{system}_coverage"][kept],
            100 * one[f"{system}_risk"][kept],
            color=COLORS[system],
            lw=1.6,
            ls="--" if system == "ensemble" else "-",
            label=WORDS[system],
        )
    above.axhline(100 * config.risk, color=GREY, lw=1, ls=":")
    above.set_xlim(0, 100)
    above.set_ylim(bottom=0)
    finish(
        above,
        x="Coverage (% of rows kept)",
        y="Error rate of kept rows (%)",
        legend=True,
    )
    confidence, right = one["confidence"], one["correct"] == 1
    edges = np.linspace(*np.quantile(confidence, (0.0, 0.995)), 41)
    for keep, color, label in (
        (right, PALETTE[0], "right"),
        (~right, PALETTE[1], "wrong"),
    ):
        below.hist(confidence[keep], bins=edges, color=color, alpha=0.6, label=label)
    below.axvspan(one["low"], one["high"], color=PALETTE[4], alpha=0.3, label="window")
    below.axvline(one["threshold"], color="black", lw=1, label="threshold")
    unit = " (log-odds, nats)" if config.confidence == "max_probability" else ""
    finish(
        below,
        x=f"Confidence of one member: {config.confidence.replace('_', ' ')}{unit}",
        y="Test rows",
        legend=True,
    )
    return fig


def _improved(config, results):
    fig = new_figure(3.8, width=7.0)
    ax = fig.subplots()
    names = labels(config)
    bars = {
        WORDS["ensemble"]: [
            results.improved_by_second(m, "ensemble").mean()
            for m in measures.OOD_METRICS
        ],
        WORDS["window"]: [
            results.improved_by_second(m, "window").mean() for m in measures.OOD_METRICS
        ],
        "next size, one member": [
            results.improved_by_size(m).mean() for m in measures.OOD_METRICS
        ],
    }
    colors = (COLORS["ensemble"], COLORS["window"], GREY)
    places = np.arange(len(measures.OOD_METRICS))
    for i, (label, values) in enumerate(bars.items()):
        at = places + 0.27 * (i - 1)
        ax.bar(at, 100 * np.array(values), 0.25, color=colors[i], label=label)
        for x, value in zip(at, values):
            ax.annotate(
                f"{100 * value:.0f}",
                (x, 100 * value),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    ax.axhline(50, color="black", lw=0.8, ls=":")
    ax.set_ylim(0, 112)
    ax.set_yticks(range(0, 101, 25))
    ax.set_xticks(places, [names[m].replace(" (%)", "") for m in measures.OOD_METRICS])
    finish(
        ax, x="", y="Improved (% of sizes and seeds)", legend=True, legend_above=True
    )
    return fig


def _cell(by_seed) -> str:
    by_seed = np.asarray(by_seed, float)
    interval = student_interval(by_seed)
    if interval is None:
        return f"{by_seed.mean():.4g}"
    return f"{by_seed.mean():.4g} ± {(interval[1] - interval[0]) / 2:.2g}"


def _seeds(results) -> str:
    if results.num_seeds == 1:
        return "One pair of each size: no interval."
    return (
        f"Mean ± half a 95 % interval over {results.num_seeds} seeds as if they were"
        " independent; claims widen it where seeds share rows."
    )
