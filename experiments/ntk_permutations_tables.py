"""Tables of `ntk_permutations.py`."""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.ntk import published, two_layer

draws = load_beside(__file__, "ntk_permutations_draws")
theory = load_beside(__file__, "ntk_permutations_theory")
verdicts = load_beside(__file__, "ntk_permutations_claims")


def add_tables(run_dir, config, found):
    """The published numbers beside ours, the laws of growth, networks, other tasks."""
    _add_curve(run_dir, config, found)
    run_dir.add_table(
        "growth",
        ("N of", "networks", "b", "interval", "k", "k log k", "k^2", "nearest"),
        [
            (
                row.quantity,
                row.kind,
                row.fit.slope,
                f"{row.fit.low:.2f} to {row.fit.high:.2f}",
                *(row.errors[law] for law in ("k", "k log k", "k^2")),
                row.nearest,
            )
            for row in found["growth"]
        ],
        "log N = a + b log k with 95 % intervals (bootstrap of the draws for the cube,"
        " Student's t of the residuals elsewhere), and the root mean square error of"
        " log N of each law where it was not fitted: fitted up to k = 10 (100 of those"
        " to 1,000; the cube as the config says).",
    )
    _add_cube(run_dir, config, found)
    _add_shares(run_dir, config, found)
    _add_networks(run_dir, config, found)
    _add_widths(run_dir, config, found)
    tasks = found["tasks"]
    names = ("copy", "addition", "multiplication")
    run_dir.add_table(
        "tasks",
        (
            "task",
            "training rows",
            "operands",
            "steps",
            "law",
            "right (%)",
            "N, hardest",
        ),
        [
            (
                f"{name} of {config.tasks[f'{name}_bits']} bits",
                str(tasks["features"][i]),
                str(tasks["operands"][i]),
                str(tasks["steps"][i]),
                kind,
                100 * tasks["right"][i, j],
                tasks["members"][i, j],
            )
            for i, name in enumerate(names)
            for j, kind in enumerate(config.kinds)
        ],
        "Other tasks: right answers of the infinite ensemble's rounded mean over all"
        f" operands, and N for an error of {config.delta:g} in the hardest step."
        " Outputs that no rule sets are 0 by the definition of a task, for any number"
        " of networks: they are neither asked nor counted.",
    )
    _add_trained_task(run_dir, config, found)
    _add_speed(run_dir, config, found)


def _add_speed(run_dir, config, found):
    """Measured, so that it is in the report and `metrics.jsonl`, not in results."""
    own, rows = config.networks, []
    for k in own.num_bits:
        for i, kind in enumerate(config.kinds):
            speed = [found["networks"][k][name][i] for name in draws.SPEED]
            count = config.num_seeds * own.num_members
            what = f"trained, {kind}, width {own.width:,}"
            rows.append((what, str(k), f"{count:,}", *map(float, speed)))
    stream = config.stream
    rows.append(
        (
            f"infinite, {config.kinds[0]}, whole cube",
            str(stream.num_bits),
            f"{stream.num_members:,}",
            *(float(found["stream"][name]) for name in draws.SPEED),
        )
    )
    run_dir.add_table(
        "speed",
        ("networks", "k", "how many", "a second", "beside arguments (MiB)", "output"),
        rows,
        "Networks made and asked in a second, without compilation, and what their"
        " program takes beside its arguments and for its output.",
    )


def _add_trained_task(run_dir, config, found):
    own, tasks = found["trained_task"], config.tasks
    if own is None:
        return
    names = ("right", "stays", "members", "rms", "largest", "variance")
    run_dir.add_table(
        "trained_task",
        (
            "law",
            "right (%)",
            "N, stays",
            "N by the law",
            "distance, rms",
            "largest",
            "variance ratio",
        ),
        [
            (kind, 100 * own["right"][i], *(own[name][i] for name in names[1:]))
            for i, kind in enumerate(config.kinds)
        ],
        f"Addition of {tasks.addition_bits} bits by {tasks.num_networks} trained"
        f" networks of width {tasks.width}: sums that their rounded mean has right at"
        " every step, N from which it has all, and N that the law gives the hardest of"
        f" the {own['inputs']} inputs for an error of {config.delta:g}; means of unseen"
        " inputs from the law in standard errors, and variance over the law's.",
    )


def _add_curve(run_dir, config, found):
    rows = []
    tables = {
        0.9: published.MEMBERS_FOR_90_PERCENT,
        0.999: published.MEMBERS_FOR_99_9_PERCENT,
    }
    for j, target in enumerate(config.curve.targets):
        table = tables.get(target, {})
        for place, k in enumerate(config.curve.num_bits):
            row = [f"{100 * target:g}", str(k), str(table.get(k, "-"))]
            for i in range(len(config.kinds)):
                for name in ("first", "stays"):
                    row.append(verdicts.medians(found, i, j, name)[place])
            rows.append(tuple(row))
    columns = ["% right", "k", "published"]
    for kind in config.kinds:
        columns += [f"{kind}, first", f"{kind}, stays"]
    run_dir.add_table(
        "curve",
        tuple(columns),
        rows,
        "N of inputs with two ones: published (one trial) and medians over"
        f" {config.curve.num_repetitions} repetitions of infinite networks, when the"
        " share is first reached and from when it is never less.",
    )


def _add_cube(run_dir, config, found):
    rows = []
    for place, k in enumerate(config.cube.num_bits):
        row = [str(k)]
        for kind in config.kinds:
            for rule in draws.RULES:
                for quantile in (0.5, 0.9):
                    found_row = verdicts.cube_row(
                        found, kind, rule=rule, quantile=quantile
                    )
                    row.append(found_row.numbers[place])
        rows.append(tuple(row))
    columns = ["k"]
    for kind in config.kinds:
        for rule in draws.RULES:
            columns += [f"{kind}, {rule}, N50", f"{kind}, {rule}, N90"]
    run_dir.add_table(
        "cube",
        tuple(columns),
        rows,
        "N at which all 2^k - 1 inputs are right, in half and in 90 % of"
        f" {config.num_seeds * config.cube.num_draws} draws.",
    )


def _add_widths(run_dir, config, found):
    own, k = found["widths"], config.widths.num_bits
    law = two_layer.ntk_law(k, 2)
    rows = [("infinite", float(law.on_one), "", float(law.on_zero), "", *[""] * 3)]
    rows[0] = rows[0][: 5 + len(own["drift"])]
    for j, width in enumerate(config.widths.sizes):
        (zero, one), (zero_error, one_error) = own["mean"][j], own["error"][j]
        drifts = own["drift"][:, j].mean(axis=-1)
        rows.append((f"{width:,}", one, one_error, zero, zero_error, *drifts))
    names = [f"drift, {name}" for name in config.widths.parameterisations]
    run_dir.add_table(
        "widths",
        ("width", "f1", "se", "f0", "se ", *names),
        rows,
        f"Inputs with two ones at k = {k}: means of {config.widths.num_members}"
        " networks with the NTK, and standard errors; how far kernels move in training,"
        f" |K - K_0| / |K_0|, mean of {config.widths.num_drift_members} networks.",
    )


def _add_shares(run_dir, config, found):
    rows = []
    for i, kind in enumerate(config.kinds):
        shares = verdicts.sure_shares(config, found)[i].mean(axis=-1)  # [delta, k]
        for j, delta in enumerate(theory.SURE):
            numbers = found["theory"]["cube_sure"][i, j]
            ends = f"{numbers[0]:.0f} to {numbers[-1]:.0f}"
            rows.append(
                (kind, f"{1 - delta:g}", ends, shares[j].mean(), shares[j].min())
            )
    run_dir.add_table(
        "shares",
        ("law", "chance at least", "N, first to last k", "share, mean", "least of a k"),
        rows,
        "Share of infinite ensembles that are right on the whole cube at the N for"
        " which the chances of all errors add up to the rest.",
    )


def _add_networks(run_dir, config, found):
    rows = []
    for k in config.networks.num_bits:
        own = found["networks"][k]
        away = verdicts.distances(config, found, k)
        for i, kind in enumerate(config.kinds):
            for j, m in enumerate(config.networks.ones):
                if m > k:
                    continue
                law = two_layer.law(k, m, kind=kind)
                mean = own["mean"][i, :, j].mean(axis=0)
                rows.append(
                    (
                        str(k),
                        kind,
                        str(m),
                        *(float(x) for x in (law.on_one, mean[1])),
                        *(float(x) for x in (law.on_zero, mean[0])),
                        np.nanmax(np.abs(away[i, :, j])),
                        float(law.variance),
                        own["variance"][i, :, j].mean(),
                    )
                )
    run_dir.add_table(
        "networks",
        ("k", "law", "m", "f1", "nets", "f0", "nets ", "max z", "variance", "nets  "),
        rows,
        f"{config.num_seeds} x {config.networks.num_members} networks of width"
        f" {config.networks.width:,} beside the law; z: largest distance of a seed's"
        " mean in standard errors.",
    )
