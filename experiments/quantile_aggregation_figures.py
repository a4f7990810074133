"""Tables and figures of `quantile_aggregation.py`."""

import numpy as np

from ensjax import plot
from ensjax.experiment import student_interval
from ensjax.experiment.claims import MIN_SEEDS
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import GREY, MARKERS, PALETTE, finish, new_figure

base = load_beside(__file__, "quantile_aggregation_base")
conformal = load_beside(__file__, "quantile_aggregation_conformal")
measures = load_beside(__file__, "quantile_aggregation_scores")
regimes = load_beside(__file__, "quantile_aggregation_regimes")
verdicts = load_beside(__file__, "quantile_aggregation_claims")

words = verdicts.words
MAIN = base.NAMES[: base.NUM_MAIN]
UNIT = "mean pinball loss (training deviations)"


def add_tables(run_dir, config, results):
    """Scores, order, conformal steps, and numbers of base models, by data set."""
    for name, found in results["sets"].items():
        kinds = found["kinds"]
        rows = []
        for system, values in kinds["pinball"].items():
            rows.append(
                [
                    words(system),
                    _cell(values),
                    *(
                        _cell(kinds[field][system]) if system in kinds[field] else "-"
                        for field in ("wis", "crps", "crossing_before")
                    ),
                ]
            )
        chosen = verdicts.validated_base(kinds, MAIN)
        rows.append(["best base by validation", _cell(chosen), "-", "-", "-"])
        run_dir.add_table(
            f"Scores on the test rows: {name}",
            ["system", "pinball", "WIS", "CRPS", "crossing before order"],
            rows,
            f"{_splits(config)} Lower is better. WIS is twice the pinball loss;"
            " crossing is the share of neighbouring levels that are out of order"
            " before they are ordered, and 0 after.",
        )
        _add_conformal_table(run_dir, config, name, found)
        _add_subsets_table(run_dir, config, name, found["subsets"])
    if results["regimes"] is not None:
        task = results["regimes"]
        run_dir.add_table(
            "Two regimes",
            ["system", "pinball", "crossing before order"],
            [
                [
                    words(system),
                    _cell(values),
                    _cell(task["crossing_before"][system])
                    if system in task["crossing_before"]
                    else "-",
                ]
                for system, values in task["pinball"].items()
            ],
            f"{_splits(config)} The oracle knows the true distribution.",
        )


def _add_conformal_table(run_dir, config, name, found):
    nominal, rows = verdicts.nominal_bands(config), []
    for kind, steps in found["conformal"].items():
        for step, (coverage, width) in steps.items():
            for band in _shown_bands(nominal):
                rows.append(
                    [
                        words(kind),
                        words(step),
                        f"{nominal[band]:.0%}",
                        _cell(coverage[:, band]),
                        _cell(width[:, band]),
                    ]
                )
    run_dir.add_table(
        f"Central bands before and after conformal steps: {name}",
        ["weights", "step", "nominal", "coverage", "mean width"],
        rows,
        f"{_splits(config)} Split steps use the rows of fold 0 with the aggregator that"
        " holds them out; CV+ uses every training row with the aggregator of its fold."
        " No such row chose a step or a weight of the aggregator that it calibrates."
        " Infinite: too few rows for the band.",
    )


def _add_subsets_table(run_dir, config, name, subsets):
    rows = [
        [
            words(system),
            *(_cell(by_seed) for by_seed in values),
            f"{subsets['noise'][system].mean():+.1%}",
            f"{subsets['noise'][system].mean(axis=1).max():+.1%}",
        ]
        for system, values in subsets["by_count"].items()
    ]
    run_dir.add_table(
        f"Numbers of base models, and noise: {name}",
        ["system", *(f"p = {c}" for c in config.base_counts), "noise", "worst noise"],
        rows,
        f"{_splits(config)} Pinball of the first p of"
        f" {', '.join(map(words, base.NAMES))}; all numbers are members of one stack"
        " with masks. Noise: what the pinball rises by when noise takes the place of"
        f" one of the first {base.NUM_MAIN}, mean over which, and the worst of them.",
    )


def add_figures(run_dir, config, results):
    """Scores, coverage, calibration and numbers of base models."""
    for name, found in results["sets"].items():
        run_dir.add_figure(
            f"pinball_{name}",
            plot.metric_dots({UNIT: _intervals(found["kinds"]["pinball"])}),
            f"{_splits_of_dots(config)} Base models, their plain average and median,"
            " and aggregators.",
        )
        run_dir.add_figure(
            f"coverage_{name}",
            _coverage_figure(config, found["conformal"]),
            "Coverage of central bands on the test rows, and their mean width, before"
            f" and after conformal steps; {words(config.conformal_kinds[0])} weights,"
            " mean over splits. Bands that would be infinite are left out.",
        )
        run_dir.add_figure(
            f"levels_{name}",
            _levels_figure(config, found["kinds"]),
            "By level: share of test targets at most the quantile, minus the level; and"
            " the pinball loss over that of the plain average. Mean over splits.",
        )
        run_dir.add_figure(
            f"base_models_{name}",
            _counts_figure(config, found["subsets"]),
            "Left: pinball loss of the first p base models. Right: what it rises by"
            " when noise takes the place of one of the five. Mean over splits, bars"
            " 95 %.",
        )
    if results["regimes"] is not None:
        run_dir.add_figure(
            "two_regimes",
            plot.metric_dots(
                {"mean pinball loss": _intervals(results["regimes"]["pinball"])}
            ),
            f"{_splits_of_dots(config)} The task where each base model knows one half"
            " of the inputs; the oracle knows the truth.",
        )


def _coverage_figure(config, found):
    nominal = verdicts.nominal_bands(config)
    fig = new_figure(3.6)
    left, right = fig.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    for i, (step, (coverage, width)) in enumerate(
        found[config.conformal_kinds[0]].items()
    ):
        mean = width.mean(axis=0)
        shown = np.isfinite(mean)
        style = dict(color=PALETTE[i], marker=MARKERS[i], ms=4, lw=1.5)
        left.plot(
            nominal[shown], coverage.mean(axis=0)[shown], label=words(step), **style
        )
        right.plot(nominal[shown], mean[shown], **style)
    finish(
        left,
        x="Nominal coverage",
        y="Coverage of test rows",
        legend=True,
        starts_at_zero=False,
    )
    right.set_ylim(bottom=0)
    finish(right, x="Nominal coverage", y="Mean width")
    return fig


def _levels_figure(config, kinds):
    levels = base.level_values(config)
    fig = new_figure(3.8)
    left, right = fig.subplots(1, 2)
    average = kinds["pinball_by_level"][measures.AVERAGE].mean(axis=0)
    shown = [measures.AVERAGE, *(k for k in kinds["coverage"] if "_" in k)][:7]
    for i, system in enumerate(shown):
        style = dict(color=PALETTE[i], lw=1.5, marker=MARKERS[i], ms=3)
        off = kinds["coverage"][system].mean(axis=0) - levels
        left.plot(levels, off, label=words(system), **style)
        if system != measures.AVERAGE:
            ratio = kinds["pinball_by_level"][system].mean(axis=0) / average
            right.plot(levels, ratio, **style)
    left.axhline(0, color="black", lw=0.8)
    right.axhline(1, color=PALETTE[0], lw=1.5)
    finish(left, x="Level", y="Share below - level", starts_at_zero=False)
    finish(right, x="Level", y="Pinball / average's", starts_at_zero=False)
    fig.legend(
        *left.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return fig


def _counts_figure(config, subsets):
    fig = new_figure(3.8)
    left, right = fig.subplots(1, 2)
    for i, (system, values) in enumerate(subsets["by_count"].items()):
        style = dict(color=PALETTE[i], marker=MARKERS[i], ms=5, lw=1.5)
        left.plot(config.base_counts, values.mean(axis=1), label=words(system), **style)
        noise = 100 * subsets["noise"][system]
        places = np.arange(len(MAIN)) + 0.25 * (i - 1)
        means = noise.mean(axis=1)
        halves = [_half(row) for row in noise]
        right.errorbar(
            means, places, xerr=halves, fmt=MARKERS[i], color=PALETTE[i], ms=5, lw=1.5
        )
    left.set_xscale("log")
    left.set_xticks(config.base_counts, [str(c) for c in config.base_counts])
    left.minorticks_off()
    right.set_yticks(range(len(MAIN)), [words(n) for n in MAIN])
    right.invert_yaxis()
    right.axvline(0, color="black", lw=0.8)
    finish(left, x="Base models", y="Mean pinball loss", legend=True, legend_above=True)
    finish(right, x="Rise of the pinball loss (%)", y="", starts_at_zero=False)
    right.set_title("Noise in place of", fontsize=10, loc="left")
    return fig


def _shown_bands(nominal):
    return sorted({int(np.argmin(np.abs(nominal - p))) for p in (0.9, 0.8, 0.5)})


def _interval(by_seed):
    """None for fewer than five splits, of which an interval says little."""
    return student_interval(by_seed) if len(by_seed) >= MIN_SEEDS else None


def _intervals(values):
    shown = {}
    for system, by_seed in values.items():
        interval = _interval(by_seed)
        mean = float(np.mean(by_seed))
        shown[words(system)] = mean if interval is None else (mean, *interval)
    return shown


def _half(by_seed):
    interval = _interval(by_seed)
    return np.nan if interval is None else (interval[1] - interval[0]) / 2


def _cell(by_seed) -> str:
    by_seed = np.asarray(by_seed, float)
    interval = _interval(by_seed)
    if interval is None:
        return f"{by_seed.mean():.4g}"
    return f"{by_seed.mean():.4g} ± {(interval[1] - interval[0]) / 2:.2g}"


def _splits(config) -> str:
    if config.num_seeds < MIN_SEEDS:
        return f"Mean over {config.num_seeds} splits."
    return (
        f"Mean ± half a 95 % interval over {config.num_seeds} splits as if they were"
        " independent; claims widen it, since splits share rows."
    )


def _splits_of_dots(config) -> str:
    if config.num_seeds < MIN_SEEDS:
        return _splits(config)
    return (
        f"Mean and 95 % interval over {config.num_seeds} splits as if they were"
        " independent; claims widen it, since splits share rows."
    )
