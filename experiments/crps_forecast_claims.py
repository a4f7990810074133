"""What `crps_forecast.py` concludes: scalars, claims and our own checks."""

import itertools

import numpy as np

from ensjax.experiment import (
    Part,
    check_at_least,
    check_at_most,
    claim_of_all,
    claim_of_cases,
)
from ensjax.experiment.fields import load_beside

theory = load_beside(__file__, "crps_forecast_theory")

PAPER = "Lang et al. 2024, arXiv:2412.15832"
NAMES = {
    "error": "squared error, one forecast",
    "standard": "standard CRPS",
    "almost_fair": "almost fair CRPS",
    "fair": "fair CRPS",
    "simulator": "imperfect simulator",
}
RAIN_BOUND = 4.85  # mm
STEP = 0.1  # time units of an output
ZERO = 1e-7  # below a unit in the last place of derivatives of size 1 in float32
# How a drift comes about, by the ratios that have it.
DRIFTS = {"ratios": "added to forecasts", "pushed_ratios": "of the equations"}
# SSR at steps 1, 20, 50, fair CRPS at 20 and 50, RMSE at 50: a pilot with one seed.
PILOT = {
    "error": (0.0, 0.0, 0.0, 0.236, 0.821, 1.105),
    "standard": (0.61, 0.64, 0.90, 0.171, 0.448, 0.843),
    "almost_fair": (0.99, 0.87, 0.99, 0.160, 0.435, 0.830),
    "fair": (0.99, 0.91, 0.99, 0.158, 0.431, 0.823),
}


def late_lead(config) -> int:
    """The lead, in outputs, of late scores: 5 time units, or the end."""
    return min(round(5 / STEP), config.archive.num_leads)


def middle_lead(config) -> int:
    """Two time units, or the end."""
    return min(round(2 / STEP), config.archive.num_leads)


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, in deviations of the climate."""
    found, scalars = done["scores"], {}
    leads = {"step1": 1, "lead2": middle_lead(config), "lead5": late_lead(config)}
    for name in NAMES:
        for score in ("fair", "rmse", "ssr", "activity"):
            for label, lead in leads.items():
                values = found[f"{name}_{score}"][:, lead - 1]
                scalars[f"{name}_{score}_{label}"] = float(values.mean())
    for stem, key in (("ratio", "ratios"), ("pushed_ratio", "pushed_ratios")):
        ratios = found[key].mean(axis=0)  # [kind, drift, lead]
        for number, drift in enumerate(config.drifts):
            for place, lead in enumerate(config.mean_leads):
                for kind, word in enumerate(("raw", "anomaly")):
                    name = f"{stem}_{word}_drift{drift:g}_lead{lead * STEP:g}"
                    scalars[name] = float(ratios[kind, number, place])
    for number, size in enumerate(config.sizes):
        scalars[f"fair_of_{size}"] = float(found["sizes_fair"][:, number, 0].mean())
        for lead in config.rank_leads:
            for score in ("ssr", "unbiased_ssr"):
                values = found[f"sizes_{score}"][:, number, lead - 1]
                scalars[f"{score}_of_{size}_lead{lead * STEP:g}"] = float(values.mean())
    for name, values in done["first_step"].items():
        scalars[f"{name}_step1_all"] = float(values.mean())
    return scalars | {
        "share_of_cells": float(found["cells_share"].mean()),
        "rain_crps": float(done["rain"]["crps"].mean()),
        "rain_ssr": float(done["rain"]["ssr"].mean()),
        "num_networks_not_finite": _num_frozen(done),
    }


def _num_frozen(done):
    frozen = [done[stage]["frozen_steps"] for stage in ("scores", "rain")]
    return int(sum((x >= 0).sum() for x in frozen))


def spread_errors(done) -> dict[str, float]:
    """How far the best spread as found is from its closed form, by loss and size."""
    found = done["theory"]
    return {
        f"{word}, M = {size}": float(
            abs(found[f"{word}_found"][i] - found[f"{word}_spread"][i])
        )
        for word in ("standard", "almost_fair", "fair")
        for i, size in enumerate(theory.SIZES)
    }


def make_claims(config, done) -> list[dict]:
    """2.a to 2.d."""
    found = done["scores"]
    toy = dict(paper=PAPER, certainty="read", scale=config.scale)
    exact = dict(paper=PAPER, certainty="read", scale="full")
    bias = {
        f"spread left out, M = {size}": 1 - float(spread)
        for size, spread in zip(
            theory.SIZES, done["theory"]["almost_fair_spread"], strict=True
        )
    }
    fair, almost = (float(x) for x in done["theory"]["gradients"])
    value, low, high = np.moveaxis(found["sizes_fair"], -1, 0)  # [seed, size] each
    agrees = (low.max(axis=1) <= value.min(axis=1)) & (
        high.min(axis=1) >= value.max(axis=1)
    )
    drifts = [i for i, drift in enumerate(config.drifts) if drift > 0]
    late = len(config.mean_leads) - 1
    level = found["ratios"][:, 1, drifts, late].mean()
    parts = []
    for number, (key, kind) in itertools.product(drifts, DRIFTS.items()):
        raw, anomaly = np.moveaxis(found[key][:, :, number, late], 1, 0)
        text = (
            f"drift {config.drifts[number]:g} {kind}, lead"
            f" {config.mean_leads[late] * STEP:g}"
        )
        parts += [
            Part(f"{text}: raw ratio", raw, 1.0, "<"),
            Part(f"{text}: raw less anomaly ratio", raw - anomaly, 0.0, "<"),
        ]
    return [
        claim_of_cases(
            "2.a: nearly all of the bias of few members is gone: spread that the almost"
            " fair loss leaves out, of that of the target",
            values_by_case=bias,
            side="<",
            bound=0.05,
            source="section 2",
            expected="nearly eliminates the bias (0.952, 0.976, 0.988)",
            **exact,
        ),
        claim_of_cases(
            "2.a: the best spread as found is that in closed form",
            values_by_case=spread_errors(done),
            side="<",
            bound=1e-3,
            source="section 2, and its derivation",
            expected="equal",
            **exact,
        ),
        claim_of_cases(
            "2.a: the almost fair loss draws the runaway of two members back: its"
            " derivative",
            values_by_case={"almost fair": almost},
            side=">",
            bound=0.0,
            source="section 2",
            expected="above 0 if almost fair",
            **exact,
        ),
        claim_of_cases(
            "2.a: the fair loss does not: size of its derivative",
            values_by_case={"fair": abs(fair)},
            side="<",
            bound=ZERO,
            source="section 2",
            expected="0 if fair",
            **exact,
        ),
        claim_of_all(
            f"2.b: as many exchangeable members as one can afford ({config.sizes})",
            source="abstract, section 2",
            expected="ensembles of any size",
            parts=[
                Part(
                    "fair CRPS of all sizes agree within bootstrap intervals",
                    agrees.astype(float),
                    0.5,
                    is_share=True,
                ),
                *(
                    Part(
                        f"largest paired difference of {text} of any size and lead, in"
                        " half-widths of intervals that hold at once",
                        furthest,
                        1.0,
                        "<",
                    )
                    for text, furthest in zip(
                        ("fair CRPS", "unbiased SSR"), found["sizes_furthest"].T
                    )
                ),
                Part("change by permutation", found["sizes_permuted"], 1e-6, "<"),
            ],
            **toy,
        ),
        claim_of_all(
            "2.c: better than the physics-based ensemble for most variables and leads",
            source="abstract",
            expected="most variables and lead times",
            parts=[
                Part("share of cells", found["cells_share"], 0.5, is_share=True),
                Part(
                    "lower end of its bootstrap interval",
                    found["cells_low"],
                    0.5,
                    is_share=True,
                ),
            ],
            **toy,
        ),
        claim_of_all(
            "2.d: at subseasonal range better on raw values than on anomalies, against"
            " a simulator that drifts (by construction: the drift is planted, and of"
            f" anomalies the ratio is {level:.2f})",
            source="section 4",
            expected="raw better; as anomalies competitive",
            parts=parts,
            **toy,
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """Acceptance (a) to (e) and 6b of the replication; means over seeds."""
    mean = {name: np.asarray(x).mean(axis=0) for name, x in done["scores"].items()}
    late, middle = late_lead(config) - 1, middle_lead(config) - 1
    ssr = mean["almost_fair_ssr"]
    first = {name: float(x.mean()) for name, x in done["first_step"].items()}
    own, standard = first["almost_fair_ssr"], first["standard_ssr"]
    error, rmse = mean["error_rmse"][late], mean["almost_fair_rmse"][late]
    asked = theory.optimal_spread(config.stages.num_members[-1], 0.0)
    activity = np.abs(mean["almost_fair_activity"] - 1).max()
    raw, anomaly = mean["ratios"]  # [drift, lead]
    pushed = mean["pushed_ratios"][1]
    distances = np.abs(anomaly[0, [0, -1]] - 1)
    sizes = mean["sizes_fair"][:, 0]
    shown = np.asarray(config.rank_leads) - 1
    unbiased = mean["sizes_unbiased_ssr"][:, shown]  # [size, lead]
    drifts = np.asarray(config.drifts)
    quarter = int(np.argmin(np.abs(drifts - 0.25)))
    checks = [
        check_at_least("(a) SSR at step 1, almost fair, low", own, 0.93),
        check_at_most("(a) SSR at step 1, almost fair, high", own, 1.05),
        check_at_most(
            f"(a) SSR at step 1, standard, off the {asked:.3f} it asks for",
            abs(standard - asked),
            0.05,
        ),
        check_at_least(
            "(b) SSR from two time units on, low", float(ssr[middle:].min()), 0.8
        ),
        check_at_most(
            "(b) SSR from two time units on, high", float(ssr[middle:].max()), 1.1
        ),
        check_at_most(
            "(c) fair CRPS late, of the absolute error of one forecast",
            float(mean["almost_fair_fair"][late] / mean["error_fair"][late]),
            0.6,
        ),
        check_at_least(
            "(d) RMSE late, how much below that of the squared error",
            float(1 - rmse / error),
            0.15,
        ),
        check_at_most("(e) activity of members off the truth's", float(activity), 0.03),
        # Of a drift that is added to forecasts it is the drift-free one by algebra.
        check_at_most(
            "6b: anomaly ratio off the drift-free one, drift 0.25 of the equations",
            float(np.abs(pushed[quarter] - pushed[0]).max()),
            0.02,
        ),
        check_at_most(
            "6b: anomaly ratio off the drift-free one, any drift of the equations",
            float(np.abs(pushed - pushed[0]).max()),
            0.02,
        ),
        check_at_least(
            "6b: raw ratio below the anomaly ratio at drift 0.25 (added), last lead",
            float(anomaly[quarter, -1] - raw[quarter, -1]),
            0.04,
        ),
        check_at_most(
            "6b: distance of the anomaly ratio from 1, last lead less first",
            float(distances[1] - distances[0]),
            0.0,
        ),
        check_at_most(
            "2.b: fair CRPS of few members off that of many, of it",
            float(np.abs(sizes / sizes[-1] - 1).max()),
            0.02,
        ),
        check_at_most(
            "2.b: unbiased SSR of few members off that of many, leads of the ranks",
            float(np.abs(unbiased - unbiased[-1]).max()),
            0.05,
        ),
        check_at_most("rain: CRPS, mm", float(done["rain"]["crps"].mean()), RAIN_BOUND),
        check_at_most("networks not finite", _num_frozen(done), 0),
    ]
    return checks


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    mean = {name: np.asarray(x).mean(axis=0) for name, x in done["scores"].items()}
    late, middle = late_lead(config) - 1, middle_lead(config) - 1
    ratios, pushed = mean["ratios"], mean["pushed_ratios"]
    raw, whole, rain = done["rain"]["references"]
    ssr = ", ".join(
        f"{NAMES[name]} {done['first_step'][f'{name}_ssr'].mean():.2f}"
        for name in ("standard", "almost_fair", "fair")
    )
    return (
        f"{config.num_seeds} seeds of two-scale Lorenz-96; networks of one step of"
        f" {STEP:g} time units, trained on {config.stages.num_members[0]} members and"
        f" verified with {config.num_members}. Spread-skill ratio after one step"
        f" from all {config.archive.num_starts} starts:"
        f" {ssr} (asked for:"
        f" {theory.optimal_spread(config.stages.num_members[0], 0.0):.3f},"
        f" {theory.optimal_spread(config.stages.num_members[0], 0.95):.3f}, 1)."
        f" Fair CRPS of the almost fair one at {(middle + 1) * STEP:g} and"
        f" {(late + 1) * STEP:g}"
        f" time units {mean['almost_fair_fair'][middle]:.3f} and"
        f" {mean['almost_fair_fair'][late]:.3f}; one forecast of squared error has"
        f" {mean['error_fair'][middle]:.3f} and {mean['error_fair'][late]:.3f}, the"
        f" imperfect simulator {mean['simulator_fair'][middle]:.3f} and"
        f" {mean['simulator_fair'][late]:.3f}. The network is better in"
        f" {mean['cells_share']:.0%} of the cells of variable and lead. Against a"
        f" simulator that drifts by {config.drifts[-1]:g} deviations its ratio is"
        f" {ratios[0, -1, -1]:.2f} on raw means at lead"
        f" {config.mean_leads[-1] * STEP:g} and {ratios[1, -1, -1]:.2f} on anomalies,"
        " where the drift is added to forecasts (anomalies then are those without it,"
        f" by algebra), and {pushed[0, -1, -1]:.2f} and {pushed[1, -1, -1]:.2f} where a"
        " forcing by place makes it. Both systems start from the truth's slow"
        " variables; the red noise of the simulator starts at random."
        f" Rain: CRPS {done['rain']['crps'].mean():.2f} mm (raw ensemble {raw:.2f},"
        f" climatology {whole:.2f}, EMOS of all members {rain:.2f}). The system is a"
        " toy: nothing here is about weather but the rain."
    )
