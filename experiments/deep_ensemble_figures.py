"""Tables and figures of `deep_ensemble.py`; curves show all seeds, pictures seed 0."""

import numpy as np

from ensjax import plot
from ensjax.experiment import student_interval
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "deep_ensemble_scores")

LABELS = {
    "accuracy": "Accuracy",
    "nll": "NLL (nats)",
    "brier": "Brier (0-2)",
    "ece": "ECE",
    "aurc": "AURC",
}
SHOWN = (measures.MEMBER, measures.ENSEMBLE, measures.CALIBRATED)


def add_tables(run_dir, config, results):
    """The scores, out-of-distribution detection, and what the ensemble costs."""
    if results["not_finite"]:
        run_dir.add_table(
            "Members that are in no score",
            ["seed", "member", "last finite step"],
            results["not_finite"],
            "They stopped being finite and were frozen. Every seed is scored with its"
            f" first {results['num_members']} members that stayed finite.",
        )
    _add_scores(run_dir, config, results)
    if results["ood"] is not None:
        rows = []
        for score, systems in results["auroc"].items():
            member = systems.get(measures.MEMBER)
            cell = "-" if member is None else _cell(member.mean(axis=1))
            rows.append([score, _cell(systems[measures.ENSEMBLE]), cell])
        run_dir.add_table(
            "Out of distribution: AUROC",
            ["score", "ensemble", "mean member"],
            rows,
            "Chance that a row of the other data is less certain than a test row."
            f" {_ood_caption(config)}",
        )
    for shift, (field, label) in _shift_fields().items():
        rows = [
            [severity, name, *cells]
            for severity, measured in zip(config[field], results["shift"][shift])
            for name, *cells in _mean_rows(measured)
        ]
        run_dir.add_table(
            f"Scores under {shift}",
            [label, "system", *LABELS.values()],
            rows,
            "Temperatures are those fitted on unshifted calibration rows.",
        )
    sizes, rows = results["sizes"], []
    for size in [s for s in (1, 2, 4, 8, 16) if s <= results["num_members"]]:
        at = int(np.flatnonzero(sizes == size)[0])
        values = [
            float(np.nanmean(results["by_size"][k][:, at])) for k in ("accuracy", "nll")
        ]
        rows.append([size, size, size * config.total_steps, *values])
    run_dir.add_table(
        "What it costs",
        [
            "members",
            "cost (one member = 1)",
            "optimizer steps",
            "accuracy",
            "NLL (nats)",
        ],
        rows,
        f"An ensemble of M costs M times one member's training, and M times its"
        f" prediction: {results['num_members']} here. Mean over subsets of the same"
        " members and over seeds. One network trained for as many steps, or a larger"
        " one, was not measured.",
    )


def _mean_rows(measured):
    """`[system, value of each metric]`, means over seeds (and members), as text."""
    rows = []
    for system, metrics in measured.items():
        is_member = metrics["nll"].ndim == 2
        values = {k: v.mean(axis=1) if is_member else v for k, v in metrics.items()}
        name = system.replace("single", "mean") if is_member else system
        rows.append([name, *(_cell(values[k]) for k in LABELS)])
    return rows


def _add_scores(run_dir, config, results):
    rows = []
    for system, metrics in results["test"].items():
        is_member = metrics["nll"].ndim == 2
        values = {k: v.mean(axis=1) if is_member else v for k, v in metrics.items()}
        name = system.replace("single", "mean") if is_member else system
        rows.append([name, *(_cell(values[k]) for k in LABELS)])
        if is_member:
            spread = [f"{metrics[k].std(axis=1).mean():.2g}" for k in LABELS]
            rows.append([f"{name}: sd over members", *spread])
    if results["calibration"] is not None:  # the member that a user would choose
        seeds = np.arange(config.num_seeds)
        chosen = np.asarray(results["calibration"].member_nll).argmin(axis=1)
        member = results["test"][measures.MEMBER]
        best = [_cell(member[k][seeds, chosen]) for k in LABELS]
        rows.append(["best member by calibration NLL", *best])
    oracle = results["diversity"]["any_right"]
    rows.append(["any member right (oracle)", _cell(oracle), *["-"] * 4])
    run_dir.add_table(
        "Scores on the test rows",
        ["system", *LABELS.values()],
        rows,
        f"{_seeds(config)} ECE in {config.num_bins} equal bins of the first choice;"
        " AURC by the largest probability; lower is better but for accuracy. Calibrated"
        " systems have their own temperature, fitted on the calibration rows:"
        " after pooling for the ensemble, one by one for members.",
    )


def add_history(run_dir, member_ids, log):
    """What happened to each member, as a figure, and as a table where something did."""
    events = []
    for place, member_id in enumerate(member_ids):
        for name, steps in (
            ("frozen", log.frozen_steps[place : place + 1]),
            ("stopped", log.stopped_steps[place : place + 1]),
            (
                "recovered",
                () if log.recovery_steps is None else log.recovery_steps[place],
            ),
        ):
            events += [(member_id, name, int(step)) for step in steps if step >= 0]
    if events:
        run_dir.add_table(
            "What happened to members",
            ["member", "what", "after steps"],
            events,
            "frozen: not finite, and keeps the weights of then; recovered: went on from"
            " earlier weights, or from new ones; stopped: by early stopping.",
        )
    run_dir.add_figure(
        "member_history",
        plot.member_history(
            log.steps,
            log.metrics["loss"],
            frozen_steps=log.frozen_steps,
            stopped_steps=log.stopped_steps,
            recovery_steps=log.recovery_steps,
            names=member_ids,
            label="Training loss (nats)",
        ),
        "Every member's training loss between reports, from dark (low) to bright; grey:"
        " no step of it counted. A member's number is its id: those of seed s begin at"
        " 65536 s.",
    )


def add_times(run_dir, log, seconds):
    """What the run took; not a function of the config."""
    times = log.times
    run_dir.add_table(
        "What it took",
        ["what", "value"],
        [
            ["last call: training, with compilation (s)", seconds["training_seconds"]],
            ["last call: scoring and figures (s)", seconds["scoring_seconds"]],
            ["whole run: device time (chip-hours)", times.chip_hours],
            ["whole run: rows that were members still changing", times.live_fraction],
            ["whole run: goodput", times.goodput],
        ],
        "Goodput is the share of device time in steps of members that still changed;"
        " the rest compiled, evaluated, saved, or computed padding and members that had"
        " ended. Work lost in a kill is not known. A CPU counts as so many chips as it"
        " has devices.",
    )


def add_figures(run_dir, config, rows, results, log):
    """Every figure of the report; those that need several members are left out at 1."""
    _add_score_dots(run_dir, config, results)
    if results["num_members"] > 1:
        _add_sizes(run_dir, config, results)
    _add_shifts(run_dir, config, results)
    if results["ood"] is not None:
        _add_ood(run_dir, config, results)
    systems = _systems_of_one_seed(results)
    run_dir.add_figure(
        "reliability",
        plot.reliability(systems, rows.test[1], num_bins=config.num_bins),
        "Seed 0. The member is the one of median ECE. Above the diagonal: less"
        " confident than right. Bars: 95 % Wilson intervals of each bin; most rows are"
        " in the last one, as the lower panel shows.",
    )
    run_dir.add_figure(
        "risk_coverage",
        plot.risk_coverage(systems, rows.test[1]),
        "Seed 0. Error rate when only the surest rows are answered, by the largest"
        " probability; the temperature changes their order a little.",
    )
    _add_curves(run_dir, config, log)
    if results["num_members"] > 1:
        _add_diversity(run_dir, config, rows, results)


def _add_score_dots(run_dir, config, results):
    panels = {}
    for metric, label in LABELS.items():
        better = "higher" if metric == "accuracy" else "lower"
        panel = {}
        for system, metrics in results["test"].items():
            values = metrics[metric]
            if values.ndim == 2:
                low, high = np.quantile(values, (0.1, 0.9))
                panel[system] = (values.mean(), low, high)
            else:
                interval = student_interval(values)
                mean = values.mean()
                panel[system] = mean if interval is None else (mean, *interval)
        panels[f"{label}, {better} is better"] = panel
    run_dir.add_figure(
        "scores",
        plot.metric_dots(panels),
        "Mean over members: bars hold 80 % of the single members. Ensembles: bars are"
        f" 95 % intervals over seeds, if there are several ({config.num_seeds} here).",
    )


def _add_sizes(run_dir, config, results):
    for metric in LABELS:
        values = results["by_size"][metric]  # [seed, size, subset]
        flat = np.moveaxis(values, 1, 0).reshape(len(results["sizes"]), -1)
        member = results["test"][measures.MEMBER][metric].mean()
        run_dir.add_figure(
            f"size_{metric}",
            plot.metric_against_size(
                results["sizes"], flat, label=LABELS[metric], mean_member=member
            ),
            f"{LABELS[metric]} of at most {config.num_subsets} random subsets of each"
            f" size, of {config.num_seeds} seed(s). Subsets of the same"
            f" {results['num_members']} members overlap, so the band narrows towards"
            f" M = {results['num_members']} by itself: there it shows seeds alone.",
        )


def _add_shifts(run_dir, config, results):
    for shift, (field, label) in _shift_fields().items():
        severities = np.asarray(config[field], float)
        for metric in LABELS:
            curves = {}
            for system in [s for s in SHOWN if s in results["test"]]:
                values = [by[system][metric] for by in results["shift"][shift]]
                curves[system] = np.stack([v.reshape(-1) for v in values], axis=1)
            run_dir.add_figure(
                f"{shift}_{metric}",
                plot.metric_under_shift(
                    severities,
                    curves,
                    shift_label=label,
                    label=LABELS[metric],
                    band_label="members (ensembles: of seeds)",
                    log_y=metric == "nll",
                ),
                f"{LABELS[metric]} of the test rows under {shift}. Lines are means over"
                " members or seeds. The temperature is the one of unshifted rows.",
            )


def _shift_fields():
    return {
        "rotation": ("rotation_degrees", "Rotation (degrees)"),
        "noise": ("noise_sigma", "Noise (standard deviation, of pixels in [0, 1])"),
    }


def _add_ood(run_dir, config, results):
    inside = results["uncertainty"][measures.ENTROPY]
    outside = results["ood"][measures.ENTROPY]
    run_dir.add_figure(
        "ood_entropy",
        plot.histograms(
            {
                "test data, ensemble": inside[measures.ENSEMBLE],
                "other data, ensemble": outside[measures.ENSEMBLE],
                "other data, members": outside[measures.MEMBER],
            },
            log_y=True,
        ),
        f"Predictive entropy of single rows, all seeds. {_ood_caption(config)}",
    )
    bars = {}
    for score, systems in results["auroc"].items():
        for system, values in systems.items():
            by_seed = values.mean(axis=1) if values.ndim == 2 else values
            interval = student_interval(by_seed)
            mean = by_seed.mean()
            bars[f"{score}, {system}"] = mean if interval is None else (mean, *interval)
    run_dir.add_figure(
        "ood_auroc",
        plot.bars(bars, label="AUROC (0.5: chance)"),
        "How well each score tells the other data from the test data."
        f" {_seeds(config)}",
    )


def _ood_caption(config):
    if config.ood.name != "digits_enlarged":
        return f"The other data: test images of {config.ood.name}."
    return (
        "The other data are scikit-learn's 8x8 digits, enlarged: digits as well,"
        " blurred and filling the frame. They measure whether another style is noticed,"
        " not another class."
    )


def _systems_of_one_seed(results):
    systems = results["systems"]
    ece = results["test"][measures.MEMBER]["ece"][0]
    median = int(np.argsort(ece, kind="stable")[len(ece) // 2])
    shown = {"one member": np.asarray(systems[measures.MEMBER][0, median])}
    for name in SHOWN[1:]:
        if name in systems:
            shown[name] = np.asarray(systems[name][0])
    return shown


def _add_curves(run_dir, config, log):
    members = f"{log.metrics['loss'].shape[1]} members of all seeds"
    run_dir.add_figure(
        "training_loss",
        plot.learning_curves(log.steps, log.metrics["loss"], log_y=True),
        f"Training loss of {members}, mean over the steps between two reports"
        f"{', with the L2 term' if config.l2 else ''}. One step is one batch of"
        f" {config.batch_size} for every member.",
    )
    if log.evaluations:
        run_dir.add_figure(
            "held_out_loss",
            plot.learning_curves(
                log.evaluation_steps,
                log.evaluations["loss"],
                label="NLL of the calibration rows (nats)",
                log_y=True,
            ),
            f"The same of the rows that are held out for the temperature, {members}."
            " Nothing was chosen by it: all members train to the end.",
        )


def _add_diversity(run_dir, config, rows, results):
    x, labels = rows.test
    matrix = results["diversity"]["disagreement_matrix"][0]
    run_dir.add_figure(
        "disagreement",
        plot.disagreement_matrix(matrix),
        "Seed 0. Fraction of test rows on which two members choose different classes;"
        f" {results['diversity']['disagreement'].mean():.2%} over all pairs and seeds."
        " Jensen gap (mean member NLL minus ensemble NLL):"
        f" {results['diversity']['jensen_gap'].mean():.4g} nats.",
    )
    doubt = results["uncertainty"][measures.MUTUAL_INFORMATION]
    information = np.asarray(doubt[measures.ENSEMBLE])[0]
    order = np.argsort(-information, kind="stable")[: config.num_shown]
    pooled = np.asarray(results["systems"][measures.ENSEMBLE])[0]
    run_dir.add_figure(
        "largest_mutual_information",
        plot.image_grid(
            x[order],
            labels=labels[order].tolist(),
            predictions=pooled[order].argmax(axis=-1).tolist(),
            numbers=information[order],
            number_label="mutual information (nats)",
        ),
        f"Seed 0. The {len(order)} test images on which members disagree most, with"
        " their label and, where it is wrong, what the ensemble said.",
    )


def _cell(by_seed) -> str:
    by_seed = np.asarray(by_seed, float)
    interval = student_interval(by_seed)
    if interval is None:
        return f"{by_seed.mean():.4g}"
    half = (interval[1] - interval[0]) / 2
    return f"{by_seed.mean():.4g} ± {half:.2g}"


def _seeds(config) -> str:
    if config.num_seeds == 1:
        return "One seed of the ensemble: no interval."
    return f"Mean ± half a 95 % interval over {config.num_seeds} seeds of the ensemble."
