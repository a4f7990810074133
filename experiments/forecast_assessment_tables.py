"""Tables of `forecast_assessment.py`: scores by lead, extremes, cost, rain, cards."""

import numpy as np

from ensjax import verification as v
from ensjax.experiment.claims import interval_text
from ensjax.experiment.fields import load_beside

cost = load_beside(__file__, "forecast_assessment_cost")
scores = load_beside(__file__, "forecast_assessment_scores")
cards = load_beside(__file__, "forecast_assessment_cards")
rain = load_beside(__file__, "forecast_assessment_rain")

LABELS = {
    "emulator": "emulator, one step",
    "multistep": "emulator, several steps",
    "simulator": "simulator",
    "crps_mean": "mean of CRPS members",
    "crps_members": "CRPS members",
    "physical_mean": "mean of the simulator's ensemble",
    "physical_members": "members of the simulator's ensemble",
}


def lead_at(config, time: float) -> int:
    """Where the lead nearest to a number of time units is."""
    return int(np.argmin(np.abs(scores.lead_times(config) - time)))


def make_card(config, done, kind, seed=0) -> v.Scorecard:
    """The card of the first seed, with alarms and costs."""
    found = done["cards"]
    own = cards.card_scores(config)[kind]
    systems = {
        "single": ("emulator, one step", "simulator"),
        "ensemble": ("CRPS members", "simulator's ensemble"),
    }[kind]
    return v.Scorecard(
        scores=tuple(own),
        best=tuple(score.best for score in own.values()),
        variables=tuple(f"x, {truth}" for truth in scores.TRUTHS),
        leads=tuple(scores.lead_times(config).tolist()),
        regions=cards.REGIONS,
        **{name: found[f"card_{kind}_{name}"][seed] for name in cards.COLUMNS},
        systems=systems,
        lead_unit="time units",
        notes=(*alarm_lines(config, done, seed), _intervals(config)),
        costs=cost.card_costs(done["cost"]),
    )


def _intervals(config):
    boot = config.bootstrap
    return (
        f"95 % intervals from {boot.num_resamples} paired resamples of blocks of"
        f" {boot.block_length} starts, first seed."
    )


def alarm_lines(config, done, seed=0) -> list[str]:
    """What the alarms say of the first seed."""
    found, leads = done["scores"], scores.lead_times(config)
    lines = []
    for name in ("multistep", "crps_mean", "crps_members"):
        fires = found[f"{name}_smoothing"][seed].astype(bool)
        where = ", ".join(f"{lead:g}" for lead in leads[fires])
        told = f"fires at leads {where}" if fires.any() else "silent"
        lines.append(
            f"Smoothing alarm, {LABELS[name]} against the emulator of one step: {told}."
        )
    for name, label in (("", "as it is"), ("planted_", "with a drift planted")):
        told = "fires" if found[f"{name}alarm"][seed] else "silent"
        lines.append(
            f"Drift alarm, emulator {label}: {told} (bias"
            f" {found[f'{name}share'][seed]:+.0%} of the error at the last lead)."
        )
    return lines


def add_tables(run_dir, config, done) -> None:
    """Scores by lead, extremes, members, cost, rain and the cards."""
    found, leads = done["scores"], scores.lead_times(config)
    shown = sorted({lead_at(config, t) for t in (1, 2, 3, 5)})
    rows = []
    for name, label in LABELS.items():
        for i in shown:
            parts = ("rmse", "equal_activity_rmse", "acc", "activity_ratio")
            texts = [interval_text(found[f"{name}_{part}"][:, i]) for part in parts]
            spread = "-"
            kind = name.split("_")[0]
            if name.endswith("_mean"):
                spread = interval_text(found[f"{kind}_ssr"][:, i])
            rows.append([label, f"{leads[i]:g}", *texts, spread])
    run_dir.add_table(
        "skill",
        ["system", "lead", "RMSE", "RMSE at equal activity", "ACC",
         "activity ratio", "spread over error"],
        rows,
        f"Against analyses, in deviations of the climate; leads in time units."
        f" {config.archive.num_starts} starts, {config.num_seeds} seeds (mean and 95 %"
        " interval).",
    )  # fmt: skip
    _add_extremes(run_dir, config, done)
    ratio = cost.ratios(done["cost"])
    names = {"emulator": "emulator", "simulator": "simulator (one scale)",
             "system": "the two-scale system itself"}  # fmt: skip
    times = done["cost"]
    rows = [
        [
            label,
            f"{1e6 * np.mean(times[f'seconds_{name}']):.3g}",
            f"{float(times[f'flops_{name}']):,.0f}",
            "1" if name == "emulator" else f"{ratio[f'{name}_seconds'].mean():.3g}",
            "1" if name == "emulator" else f"{float(ratio[f'{name}_flops']):.3g}",
        ]
        for name, label in names.items()
    ]
    run_dir.add_table(
        "cost",
        ["system", "microseconds", "operations", "seconds over the emulator's",
         "operations over the emulator's"],
        rows,
        f"Of a forecast day (0.2 time units), {cost.ROWS} forecasts side by side on one"
        " device of this machine. A simulator of 36 numbers is no weather model: no"
        " network can be cheap beside it.",
    )  # fmt: skip
    _add_rain(run_dir, done["rain"])
    for kind in ("single", "ensemble"):
        card = make_card(config, done, kind)
        listed = v.scorecard_rows(card)
        rows = [
            [r["score"], r["variable"], r["region"], f"{r['lead']:g}", r["value"],
             r["reference"], f"{r['normalised_difference']:+.3f}",
             f"{r['low']:+.3f} to {r['high']:+.3f}", r["verdict"]]
            for r in listed if r["region"] == "ring"
        ]  # fmt: skip
        run_dir.add_table(
            f"scorecard_{kind}",
            ["score", "truth", "region", "lead", card.systems[0], card.systems[1],
             "normalised difference", "95 %", "verdict"],
            rows,
            " ".join(card.notes),
        )  # fmt: skip


def _add_extremes(run_dir, config, done):
    found = done["scores"]
    at, leads = scores.extreme_leads(config), scores.lead_times(config)
    rows = []
    for place, i in enumerate(at):
        for truth in scores.TRUTHS:
            for t, percent in enumerate(config.extremes.percents):
                row = [f"{leads[i]:g}", truth, f"{percent:g} %"]
                for what in ("sedi", "frequency"):
                    row += [
                        interval_text(found[f"{name}_{what}_{truth}"][:, place, t])
                        for name in ("simulator", "emulator")
                    ]
                row += [
                    interval_text(found[f"{name}_roc_{truth}"][:, -1, place, t])
                    for name in scores.ENSEMBLES
                ]
                rows.append(row)
    most = config.extremes.member_counts[-1]
    run_dir.add_table(
        "extremes",
        ["lead", "truth", "event", "SEDI, simulator", "SEDI, emulator",
         "frequency bias, simulator", "frequency bias, emulator",
         f"ROC area, {most} CRPS members", f"ROC area, {most} of the simulator"],
        rows,
        "Beyond percentiles of the climate at each place."
        f" {config.extremes.num_stations} stations with an error of"
        f" {config.extremes.station_noise:g} deviations.",
    )  # fmt: skip


def _add_rain(run_dir, fall):
    rows = []
    words = {1: "better", 0: "not significant", -1: "worse"}
    for i, name in enumerate(rain.SCORES):
        low, high = fall["card_low"][i], fall["card_high"][i]
        rows.append(
            [
                name,
                float(fall[f"all_{name}"]),
                float(fall[f"raw_{name}"]),
                float(fall[f"emos_{name}"]),
                f"{fall['card_normalised'][i]:+.3f} ({low:+.3f} to {high:+.3f})",
                words[int(low > 0) - int(high < 0)],
            ]
        )
    run_dir.add_table(
        "rain",
        ["score", "raw, all cases", "raw, after the split", "EMOS, after the split",
         "normalised difference (95 %)", "EMOS is"],
        rows,
        "Rain sums of 3 days at Innsbruck in mm, 11 members; BSS and AUC above the"
        " threshold, SEEPS of the medians"
        f" (dry share {fall['dry_share']:.2f}, heavy above {fall['heavy']:.1f} mm)."
        " Blocks of 30 days.",
    )  # fmt: skip
