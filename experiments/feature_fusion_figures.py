"""Figures and tables of `feature_fusion.py`."""

import functools

import numpy as np

from ensjax.experiment.claims import MIN_SEEDS
from ensjax.experiment.fields import load_beside
from ensjax.plot import metric_dots
from ensjax.plot.style import GREY, PALETTE, finish, new_figure

measures = load_beside(__file__, "feature_fusion_scores")
verdicts = load_beside(__file__, "feature_fusion_claims")


def add_tables(run_dir, config, results):
    """Accuracy and NLL of every system in every task."""
    for task, by_condition in results["tasks"].items():
        for condition, systems in by_condition.items():
            rows = [
                [system, *(float(metrics[m].mean()) for m in measures.METRICS)]
                for system, metrics in systems.items()
            ]
            run_dir.add_table(
                f"{task}_{condition}",
                ["system", "accuracy", "NLL (nats)"],
                rows,
                f"{task}, {condition}: means over {config.num_seeds} seeds. A hard vote"
                " gives no probabilities.",
            )


def add_figures(run_dir, config, results):
    """Systems of each task, gains of the gate, schedules, and the gate's weights."""
    seeds = f"{config.num_seeds} seeds"
    if config.num_seeds >= MIN_SEEDS:
        seeds += " with 95 % intervals (of digits for seeds that share rows)"
    for task, by_condition in results["tasks"].items():
        for condition, systems in by_condition.items():
            run_dir.add_figure(
                f"{task}_{condition}",
                _systems(config, systems, task, condition),
                f"Accuracy and NLL on test rows of {task}, {condition}: means over"
                f" {seeds}.",
            )
    run_dir.add_figure(
        "gains",
        _gains(config, results),
        f"Accuracy of the gate minus that of others, by task: means over {seeds}.",
    )
    if config.schedules:
        run_dir.add_figure(
            "schedules",
            _schedules(config, results),
            "The gate over frozen members, and trained jointly or in turns with them,"
            f" at equal gradient steps: means over {seeds}.",
        )
    if results["gate"] is not None:
        run_dir.add_figure(
            "gate",
            _gate(config, results["gate"]),
            f"What the gate gives a view that is noise and one that is not: means over"
            f" {seeds}.",
        )


def _gate(config, gate):
    interval = functools.partial(_interval, config, config.tasks[0])
    names = ("clean", "corrupted")
    fig = metric_dots(
        {"Mean weight of a view": {f"{n} view": interval(gate[n]) for n in names}}
    )
    ax = fig.axes[0]
    ax.set_xlim(0, 1.15 * ax.dataLim.x1)  # a share
    return fig


def _systems(config, systems, task, condition):
    order = [measures.MEAN, *verdicts.RIVALS, measures.GEOMETRIC, measures.CONVEX]
    order += [measures.STACK_LOGS, *config.fusions]
    order = list(dict.fromkeys(order))
    panels = {}
    for metric, label in (
        ("accuracy", "Accuracy (better higher)"),
        ("nll", "NLL (nats, better lower)"),
    ):
        panels[label] = {
            name: _interval(config, task, systems[name][metric])
            for name in order
            if np.isfinite(systems[name][metric]).all()
        }
    return metric_dots(panels, title=f"{task}, {condition}")


def _gains(config, results):
    rivals = ("concat", "static", measures.SOFT, measures.STACK_PROBS)
    names = [
        (task, condition)
        for task, by_condition in results["tasks"].items()
        for condition in by_condition
    ]
    fig = new_figure(1.2 + 0.8 * len(names))
    ax = fig.subplots()
    for i, rival in enumerate(rivals):
        for row, (task, condition) in enumerate(names):
            systems = results["tasks"][task][condition]
            gain = systems["gated"]["accuracy"] - systems[rival]["accuracy"]
            place = row + 0.16 * (i - (len(rivals) - 1) / 2)
            label = f"minus {rival}" if row == 0 else None
            ax.plot(gain.mean(), place, "o", color=PALETTE[i], ms=6, label=label)
            interval = _interval(config, task, gain)
            if isinstance(interval, tuple):
                ax.hlines(place, *interval[1:], color=PALETTE[i], lw=2, alpha=0.6)
    ax.axvline(0, color=GREY, lw=1)
    ax.set_yticks(range(len(names)), [f"{t},\n{c}" for t, c in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    finish(
        ax,
        x="Accuracy of the gate minus the other's",
        y="",
        legend=True,
        legend_above=True,
        starts_at_zero=False,
    )
    return fig


def _schedules(config, results):
    schedules = next(iter(results["schedules"].values()))
    interval = functools.partial(_interval, config, config.tasks[0])
    return metric_dots(
        {
            "Accuracy (better higher)": {
                s: interval(m["accuracy"]) for s, m in schedules.items()
            },
            "NLL (nats, better lower)": {
                s: interval(m["nll"]) for s, m in schedules.items()
            },
            "Disagreement of members": {
                s: interval(v) for s, v in results["disagreement"].items()
            },
        }
    )


def _interval(config, task, values):
    """The mean with its interval; of fewer than five seeds, which say little, alone."""
    if len(values) < MIN_SEEDS:
        return float(values.mean())
    return (values.mean(), *verdicts.interval_of(config, task, values))
