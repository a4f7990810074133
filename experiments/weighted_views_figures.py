"""Tables and figures of `weighted_views.py`; intervals are over seeds unless said."""

import numpy as np

from ensjax import plot
from ensjax.experiment import interval_text, mean_and_interval
from ensjax.experiment.fields import load_beside
from ensjax.plot.style import PALETTE, finish, new_figure

verdicts = load_beside(__file__, "weighted_views_claims")
votes = verdicts.votes


def add_tables(run_dir, config, done):
    """Accuracies, weights, the canary, and rates by site."""
    run_dir.add_table(
        "Noise: what a leak is worth",
        ["features selected", "accuracy", "lowest", "highest seed"],
        [
            [text, interval_text(values), f"{values.min():.3f}", f"{values.max():.3f}"]
            for text, values in (
                ("inside the folds", done["canary"]["inside"]),
                ("on all rows before", done["canary"]["outside"]),
            )
        ],
        "Held-out accuracy on pure noise with balanced labels; 0.5 is all there is."
        f" {_over(done['canary']['inside'])}",
    )
    for name in (*verdicts.DATA, "network"):
        accuracy = verdicts.accuracy_of(done, name)
        best = verdicts.best_view(done, name)
        told = dict(split_sizes=verdicts.split_sizes(config, name))

        def row(system, values, best=best, told=told):
            cells = (interval_text(x, **told) for x in (values, values - best))
            return [system, *cells]

        rows = [row(system, values) for system, values in accuracy.items()]
        if name == "network":
            for system, values in zip(
                done[name]["systems"], done[name]["accuracy_new"].T
            ):
                rows.append(row(f"{system}, random start", values))
        if name in ("digits", "cancer"):
            union, oracle = done[name]["union"], done[name]["oracle"]
            rows.append(row("one member, all columns", union))
            rows.append(row("any view right (oracle)", oracle))
        run_dir.add_table(
            f"Accuracy: {verdicts.TITLES[name]}",
            ["system", "accuracy", "minus the best view"],
            rows,
            "The best view is the best on the test rows of each seed. Weights and the"
            f" choice of a view come from validation rows. {_over(best, **told)}",
        )
    for name in ("digits", "cancer"):
        views = verdicts.views_of(done, name)
        weights = done[name]["weights"].mean(axis=0)
        run_dir.add_table(
            f"Weights: {verdicts.TITLES[name]}",
            ["rule", *views],
            [
                [rule, *(f"{w:.3f}" for w in row)]
                for rule, row in zip(votes.VOTES[1:], weights)
            ],
            "Mean over seeds; they sum to 1.",
        )
    _add_rates(run_dir, done)
    if "inside" in done["connectomes"]:
        found = done["connectomes"]
        run_dir.add_table(
            "Planted features among the ten largest F",
            ["", "value"],
            [
                ["recall inside the folds", interval_text(found["inside"])],
                ["recall on all rows", interval_text(found["all"])],
                ["recall of a random list", f"{verdicts.chance_recall(config):.3f}"],
                [
                    "Jaccard overlap of the folds' lists",
                    interval_text(found["overlap"]),
                ],
            ],
            f"Mean over views. {_over(found['inside'])}",
        )


def _add_rates(run_dir, done):
    found, rows = done["connectomes"], []
    places = [("all sites", np.ones(len(found["labels"][0]), bool))]
    places += [
        (f"site {s}", found["sites"][0] == s) for s in np.unique(found["sites"][0])
    ]
    for name, inside in places:
        rate = verdicts.rates(done, 0, inside)
        cells = []
        for kind in ("sensitivity", "specificity"):
            value, low, high = verdicts.interval(*rate[kind])
            cells += [rate[kind][1], f"{value:.3f} ({low:.3f} to {high:.3f})"]
        rows.append([name, *cells])
    run_dir.add_table(
        "Sensitivity and specificity by site",
        ["", "cases", "sensitivity", "controls", "specificity"],
        rows,
        "The vote weighted by accuracy, with age and sex, seed 0: every subject by the"
        " fold that held it out. Wilson intervals of 95 % over subjects.",
    )


def add_figures(run_dir, config, done):
    """Accuracy of all systems, the canary, gains by seed, and the autoencoders."""
    run_dir.add_figure(
        "canary",
        plot.metric_dots(
            {
                "Accuracy on noise (0.5 is right)": {
                    "selected inside folds": mean_and_interval(
                        done["canary"]["inside"]
                    ),
                    "selected on all rows": mean_and_interval(
                        done["canary"]["outside"]
                    ),
                }
            },
            columns=1,
        ),
        "Held-out accuracy on pure noise: with features selected on all rows before, a"
        f" leak shines. {_over(done['canary']['inside'])}",
    )
    for name in (*verdicts.DATA, "network"):
        count = len(verdicts.best_view(done, name))
        told = dict(split_sizes=verdicts.split_sizes(config, name))
        values = {
            system: mean_and_interval(accuracy, **told)
            for system, accuracy in verdicts.accuracy_of(done, name).items()
        }
        if name in ("digits", "cancer"):
            union = done[name]["union"]
            values["one member, all columns"] = mean_and_interval(union, **told)
        if name == "network":
            place = [str(s) for s in done[name]["systems"]].index(votes.EQUAL)
            new = done[name]["accuracy_new"][:, place]
            values["equal vote, random start"] = mean_and_interval(new)
        figure = plot.metric_dots(
            {f"Accuracy: {verdicts.TITLES[name]} (higher is better)": values}, columns=1
        )
        run_dir.add_figure(
            f"accuracy_{name}",
            figure,
            f"Test accuracy of views and votes. {_over(range(count), **told)}",
        )
    run_dir.add_figure(
        "gains",
        _gains(done),
        "Each dot is a seed: what the weighted vote gains over the best view, over the"
        " equal vote, and what age and sex add. Horizontal lines are means.",
    )
    run_dir.add_figure(
        "autoencoders",
        _training(config, done),
        "Training of the stacked autoencoders: mean over members and the range of all"
        " members. Each point averages the steps since the one before.",
    )


def _gains(done):
    groups = {}
    for name in verdicts.DATA:
        accuracy = verdicts.accuracy_of(done, name)
        weighted = accuracy[votes.BY_ACCURACY]
        best = verdicts.best_view(done, name)
        groups[f"{name}:\nbest view"] = weighted - best
        groups[f"{name}:\nequal vote"] = weighted - accuracy[votes.EQUAL]
    groups["connectomes:\nno age, sex"] = verdicts.demographic_gain(done)
    fig = new_figure(4.6)
    ax = fig.subplots()
    for place, values in enumerate(groups.values()):
        across = place + np.linspace(-0.2, 0.2, len(values))
        color = PALETTE[place // 2 % len(PALETTE)]
        ax.plot(across, values, "o", color=color, ms=4, alpha=0.7)
        ax.hlines(np.mean(values), place - 0.3, place + 0.3, color=color, lw=2)
    ax.axhline(0, color="black", lw=0.8)
    finish(ax, x="Compared with", y="Gain in accuracy", starts_at_zero=False)
    ax.set_xticks(range(len(groups)), list(groups), rotation=40, ha="right", fontsize=9)
    return fig


def _training(config, done):
    fig = new_figure(3.4)
    axes = fig.subplots(1, 2)
    for number, stage in verdicts.encoders(done).items():
        steps = config.autoencoders.total_steps[number - 1]
        reports = len(stage["rmse"])
        at = np.arange(1, reports + 1) * steps / reports
        for ax, key in zip(axes, ("rmse", "mean_code")):
            values, color = stage[key], PALETTE[number - 1]
            label = f"autoencoder {number}"
            ax.plot(at, values.mean(axis=1), color=color, label=label)
            low, high = values.min(axis=1), values.max(axis=1)
            ax.fill_between(at, low, high, color=color, alpha=0.2, lw=0)
    target = config.autoencoders.sparsity_target
    axes[1].axhline(target, color="black", ls="--", lw=1, label="target of the first")
    for ax in axes:
        ax.set_ylim(bottom=0)
    finish(axes[0], x="Step", y="RMSE of reconstruction (sd)", legend=True)
    finish(axes[1], x="Step", y="Mean |h|", legend=True)
    return fig


def _over(values, split_sizes=None) -> str:
    count = len(values)
    if count == 1:
        return "One seed."
    text = f"Means and 95 % intervals over {count} seeds"
    if split_sizes is None:
        return f"{text}."
    return f"{text}, corrected, since their splits share rows (Nadeau and Bengio)."
