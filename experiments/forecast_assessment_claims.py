"""What `forecast_assessment.py` concludes: scalars, claims, checks and the summary."""

import numpy as np

from ensjax import verification as v
from ensjax.experiment import check, check_at_least, check_at_most
from ensjax.experiment.claims import Part, claim_of_all, not_run
from ensjax.experiment.fields import load_beside

cost = load_beside(__file__, "forecast_assessment_cost")
scores = load_beside(__file__, "forecast_assessment_scores")
rain = load_beside(__file__, "forecast_assessment_rain")
tables = load_beside(__file__, "forecast_assessment_tables")

LABELS, lead_at = tables.LABELS, tables.lead_at
add_tables = tables.add_tables

ABOUT = dict(
    paper="Ben Bouallegue et al. 2024 (arXiv:2307.10128)",
    source="abstract",
    certainty="read",
)
SMOOTH = ("emulator", "multistep", "crps_mean")
# Pilot: SEDI of simulator and emulator by truth, lead 1 and 2 of the card.
SEDI_BOUND = 0.05


def slope(values, config) -> np.ndarray:
    """Least-squares slopes with lead of `[seed, lead]`, a time unit."""
    return np.asarray(v.bias_drift(values.T, scores.lead_times(config)).slope)


def small_slope(found, name, config) -> np.ndarray:
    return slope(found[f"{name}_small"], config)


def make_claims(config, done) -> list[dict]:
    """3.a to 3.e of the paper, at the scale of this system."""
    about = dict(ABOUT, scale=config.scale)
    found, card = done["scores"], done["cards"]
    leads = scores.lead_times(config)
    shown = sorted({lead_at(config, t) for t in (1, 2, 3, 5)})
    parts = []
    for i in shown:
        # Normalised differences are positive where the emulator is better.
        for at, name in enumerate(("RMSE", "RMSE at equal activity", "ACC")):
            high = card["card_single_high"][:, at, 0, i, 0]
            text = f"upper end of the gain in {name} at lead {leads[i]:g}"
            parts.append(Part(text, high, 0.0))
    claims = [
        claim_of_all(
            "3.a: the emulator is not shown to be worse than the simulator by the block"
            " bootstrap",
            parts=parts,
            expected="comparable for global scores",
            **about,
        )
    ]
    sedi = np.abs(sedi_differences(config, card)).max(axis=(1, 3))  # [seed, truth]
    claims.append(
        claim_of_all(
            "3.b: largest difference in SEDI at 2, 5, 95 and 98 %, emulator and"
            " simulator",
            parts=[
                Part(f"against {truth}", sedi[:, i], SEDI_BOUND, "<")
                for i, truth in enumerate(scores.TRUTHS)
            ],
            expected="comparable for extremes, against analysis and stations",
            **about,
        )
    )
    claims.append(
        claim_of_all(
            "3.c: forecasts grow smoother with lead, slope a time unit",
            parts=[
                Part(f"{what} of {LABELS[name]}", values, 0.0, "<")
                for name in SMOOTH
                for what, values in (
                    (
                        "activity ratio",
                        slope(found[f"{name}_activity_ratio"], config),
                    ),
                    ("small-scale power", small_slope(found, name, config)),
                )
            ],
            expected="activity falls with lead",
            **about,
        )
    )
    claims.append(
        claim_of_all(
            "3.d: the emulator's bias grows with lead, and by more than the sample of"
            " starts makes it grow, slope a time unit",
            # The absolute error of a sample's mean grows with the error, also where
            # there is no bias at all.
            parts=[
                Part(f"{text}, {part} mean", found[f"emulator_{part}_{name}"], 0.0)
                for name, text in (
                    ("slope", "absolute bias"),
                    ("squared_slope", "squared bias, by halves of the starts"),
                )
                for part in ("area", "zonal")
            ],
            expected="bias grows with lead",
            **about,
        )
    )
    ratio = cost.ratios(done["cost"])
    claims.append(
        claim_of_all(
            "3.e: cost of a forecast day of the simulator over the emulator's",
            parts=[
                Part("seconds", ratio["simulator_seconds"], 1.0),
                Part(
                    "operations",
                    np.full(config.num_seeds, ratio["simulator_flops"]),
                    1.0,
                ),
            ],
            expected="above 1, by orders of magnitude",
            **about,
        )
    )
    claims.append(
        not_run(
            "Tropical cyclones: weaker intensity, competitive position",
            expected="position errors competitive, intensity too weak",
            **about | {"certainty": "recalled"},
        )
    )
    return claims


def sedi_differences(config, card) -> np.ndarray:
    """Emulator less simulator over the whole ring at the last two leads of the
    extremes, 1 and 2, `[seed, threshold, truth, lead]`."""
    at = scores.extreme_leads(config)[-2:]
    value, reference = (
        card[f"card_single_{name}"][:, -len(config.extremes.percents) :, :, :, 0]
        for name in ("value", "reference")
    )
    return (value - reference)[..., at]


def below_analysis(config, found, name) -> np.ndarray:
    """Cells in which SEDI against stations is below that against analyses, of all
    leads of the extremes and thresholds, as a share, `[seed]`."""
    pairs = [found[f"{name}_sedi_{truth}"] for truth in scores.TRUTHS]
    return (pairs[1] < pairs[0]).mean(axis=(1, 2))


def make_checks(config, done) -> list[dict]:
    """Acceptance (A) to (D) of the report."""
    found, card, fall = done["scores"], done["cards"], done["rain"]
    third = lead_at(config, 3)
    members = found["crps_members_activity_ratio"]
    gaps = [np.abs(x).max() for name, x in found.items() if name.endswith("gap")]
    at = scores.extreme_leads(config)
    better = found["multistep_rmse"][:, third] < found["emulator_rmse"][:, third]
    ratio = (found["multistep_activity_ratio"] / found["emulator_activity_ratio"])[
        :, third
    ]
    agree = np.mean(
        [
            np.sign(found["emulator_rmse"] - found["simulator_rmse"])[:, at]
            == np.sign(
                found["emulator_station_rmse"] - found["simulator_station_rmse"]
            )[:, at]
        ]
    )
    off = {
        way: max(
            np.abs(
                found[f"{name}_deflated"][:, at] / found[f"{name}_{way}"][:, at] - 1
            ).max()
            for name in ("emulator", "simulator")
        )
        for way in ("interpolated", "rmse")
    }
    sedi = np.abs(sedi_differences(config, card)).mean(axis=0)
    verdict = (fall["card_low"] > 0).astype(int) - (fall["card_high"] < 0)
    marked = dict(zip(rain.SCORES, verdict, strict=True))
    checks = [
        check_at_most(
            "A: activity ratio of the mean of CRPS members at lead 3",
            found["crps_mean_activity_ratio"][:, third].max(),
            0.9,
        ),
        check_at_least("A: least activity ratio of CRPS members", members.min(), 0.97),
        check_at_most("A: largest activity ratio of CRPS members", members.max(), 1.03),
        check_at_most("A: gap of the identity of error and activity", max(gaps), 1e-5),
        check_at_least(
            "A: share of seeds in which the smoothing alarm fires for the mean",
            found["crps_mean_smoothing"].any(axis=1).mean(),
            1.0,
        ),
        check_at_most(
            "A: share of seeds in which it fires for members",
            found["crps_members_smoothing"].any(axis=1).mean(),
            0.0,
        ),
        check_at_least(
            "B: share of seeds in which several steps lower the error at lead 3 and"
            " activity by more than 5 %",
            np.mean(better & (ratio < 0.95)),
            2 / 3,
        ),
        check_at_least(
            "C: share of resamples with the alarm, drift planted",
            found["planted_alarms"].min(),
            1.0,
        ),
        check_at_most(
            "C: share of resamples with a false alarm", found["alarms"].mean(), 0.05
        ),
        check_at_least(
            "C: slope of the planted bias with lead",
            found["planted_drift_slope"].min(),
            0,
        ),
        check_at_most(
            "C2: largest difference in SEDI of 16 cells, mean over seeds",
            sedi.max(),
            SEDI_BOUND,
        ),
        *(
            check_at_least(
                f"C2: share of cells with SEDI lower at stations, {name}",
                below_analysis(config, found, name).mean(),
                0.75,
            )
            for name in ("emulator", "simulator")
        ),
        check_at_most(
            "C2: station error less that of observations, off the error against"
            " analyses at the stations less theirs",
            off["interpolated"],
            0.03,
        ),
        check_at_most("C2: the same, off the error at grid points", off["rmse"], 0.03),
        check_at_least(
            "C2: share of cells in which both truths agree on the smaller error",
            agree,
            1.0,
        ),
        *(
            check(
                f"D: raw rain, {name}",
                bound=f"{known} to its digits",
                measured=fall[f"all_{name}"],
                passed=abs(fall[f"all_{name}"] - known) <= 0.0051,
            )
            for name, known in rain.KNOWN.items()
        ),
        check(
            "D: rain after the split, CRPS of raw members",
            bound=f"{rain.KNOWN_TEST['raw_CRPS']} to its digits",
            measured=fall["raw_CRPS"],
            passed=abs(fall["raw_CRPS"] - rain.KNOWN_TEST["raw_CRPS"]) <= 0.0051,
        ),
        # Another fit of EMOS than the pilot's: no worse than that.
        check_at_most(
            "D: rain after the split, CRPS of EMOS",
            fall["emos_CRPS"],
            rain.KNOWN_TEST["emos_CRPS"],
        ),
        check_at_least(
            "D: rain after the split, Brier skill of EMOS, to two digits",
            np.round(fall["emos_BSS"], 2),
            rain.KNOWN_TEST["emos_BSS"],
        ),
        *(
            check(
                f"D: EMOS against raw rain is marked significant, {name} (1: better)",
                bound="1",
                measured=float(marked[name]),
                passed=marked[name] == 1,
            )
            for name in ("CRPS", "RMSE", "bias", "SSR", "BSS", "AUC")
        ),
        check_at_most("networks not finite", int(done["forecast"]["not_finite"]), 0),
    ]
    return checks


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds, no times."""
    found, fall = done["scores"], done["rain"]
    scalars = {}
    for time in (1, 2, 3, 5):
        i = lead_at(config, time)
        for name in LABELS:
            for part in ("rmse", "equal_activity_rmse", "acc", "activity_ratio"):
                key = f"{name}_{part}_lead_{scores.lead_times(config)[i]:g}"
                scalars[key] = float(found[f"{name}_{part}"][:, i].mean())
        for name in scores.ENSEMBLES:
            for part in ("fair_crps", "ssr"):
                key = f"{name}_{part}_lead_{scores.lead_times(config)[i]:g}"
                scalars[key] = float(found[f"{name}_{part}"][:, i].mean())
    for name in ("efi_correlation", "efi_difference", "efi_roc_crps"):
        scalars[name] = float(found[name].mean())
    scalars["efi_roc_physical"] = float(found["efi_roc_physical"].mean())
    flops = cost.ratios(done["cost"])
    scalars["simulator_flops_ratio"] = float(flops["simulator_flops"])
    scalars["system_flops_ratio"] = float(flops["system_flops"])
    for name in ("raw_SEEPS", "emos_SEEPS", "raw_CRPS", "emos_CRPS", "emos_BSS"):
        scalars[f"rain_{name}"] = float(fall[name])
    return scalars


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found, fall = done["scores"], done["rain"]
    leads = scores.lead_times(config)
    first, third = lead_at(config, 1), lead_at(config, 3)

    def at(name, i):
        return float(found[name][:, i].mean())

    ratio = cost.ratios(done["cost"])
    sedi = np.abs(sedi_differences(config, done["cards"])).mean(axis=0).max()
    return (
        f"{config.num_seeds} seeds of two-scale Lorenz-96. From equal analyses the"
        f" emulator of one step has an RMSE of {at('emulator_rmse', first):.3f} at lead"
        f" {leads[first]:g} and {at('emulator_rmse', third):.3f} at {leads[third]:g},"
        f" the simulator {at('simulator_rmse', first):.3f} and"
        f" {at('simulator_rmse', third):.3f}; at equal activity"
        f" {at('emulator_equal_activity_rmse', third):.3f} and"
        f" {at('simulator_equal_activity_rmse', third):.3f} at the latter. Activity"
        f" there is {at('emulator_activity_ratio', third):.2f} of the analyses' for one"
        f" step, {at('multistep_activity_ratio', third):.2f} for several,"
        f" {at('crps_mean_activity_ratio', third):.2f} for the mean of CRPS members and"
        f" {at('crps_members_activity_ratio', third):.2f} for members. The largest"
        f" difference in SEDI is {sedi:.3f}. A planted drift raises the alarm in"
        f" {found['planted_alarms'].mean():.0%} of resamples, none in"
        f" {found['alarms'].mean():.0%}. Indices of extremes of both ensembles"
        f" correlate {found['efi_correlation'].mean():.2f}. The simulator makes a"
        f" forecast day with {float(ratio['simulator_flops']):.3g} of the emulator's"
        " operations: a toy, of which the claim of cost cannot be asked in earnest."
        " Real rain: EMOS"
        f" lowers the CRPS from {fall['raw_CRPS']:.2f} to {fall['emos_CRPS']:.2f} mm."
    )
