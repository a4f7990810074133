"""What `huge_ensembles_7424.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most
from ensjax.experiment.claims import Part, claim_of_all
from ensjax.verification import log_log_slope

PAPER = "Mahesh et al. 2024, arXiv:2408.01581"
SCORES = {"brier": "Brier score", "owcrps": "owCRPS"}
BY_SIZE = ("outliers", "bracketed", "gain", "best", "width")
KINDS = {"bred": "checkpoints x bred vectors", "random": "checkpoints x random"}
SIMULATORS = {"system": "two-scale simulator", "closure": "imperfect simulator"}


def slopes(config, found, kind, name="width") -> np.ndarray:
    """Powers of n that widths follow, `[seed]`."""
    values = np.asarray(found[f"{kind}_{name}"])
    return np.asarray(log_log_slope(tuple(config.sizes), values.T.astype(np.float32)))


def outlier_ratio(found, kind) -> np.ndarray:
    """Outliers of all members over those of the fewest, `[seed]`."""
    values = found[f"{kind}_outliers"]
    return values[:, -1] / values[:, 0]


def best_ratio(found, kind) -> np.ndarray:
    """Error of the best member of the fewest over that of all, `[seed]`."""
    values = found[f"{kind}_best"]
    return values[:, 0] / values[:, -1]


def cost_ratio(done, simulator: str) -> np.ndarray:
    """Time of a simulator over the emulator's for the same members, `[seed]`."""
    times = done["cost"]
    return times[f"seconds_{simulator}"] / times["seconds_emulator"]


def fair_ratio(done, simulator: str) -> np.ndarray:
    """Fair CRPS of all members over that of a simulator's, `[seed]`."""
    found = done["members"]
    return found["bred_fair"] / found[f"{simulator}_fair"]


def make_claims(config, done) -> list[dict]:
    """13.a to 13.f at the scale of this system, of bred vectors x checkpoints."""
    found = done["members"]
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    least, most = config.sizes[0], config.sizes[-1]
    gain = found["bred_gain"]
    rises = [
        Part(
            f"{text} of {most:,} less that of {least}",
            found[f"bred_{name}"][:, -1] - found[f"bred_{name}"][:, 0],
            0.0,
            "<",
        )
        for name, text in SCORES.items()
    ]
    change = found["bred_outliers"][:, -1] - found["bred_outliers"][:, 0]
    exact = np.minimum(found["stream_exact"], found["drawn_counts"])
    same = [
        Part("mean and variance, two passes", found["drawn_two_pass"], 1e-5, "<"),
        Part("another block", found["drawn_block"], 1e-5, "<"),
        Part(
            "streamed forecasts against kept ones",
            found["stream_difference"],
            1e-5,
            "<",
        ),
        Part("extremes, their members and counts are equal", exact, 0.5),
        Part("a member made alone has the same bits", found["stream_again"], 0.5),
    ]
    if np.all(np.isfinite(found["drawn_devices"])):
        same.append(Part("two devices", found["drawn_devices"], 1e-5, "<"))
    return [
        claim_of_all(
            "13.a: the tails are sampled out to four standard deviations",
            expected="4",
            parts=[
                Part(
                    f"median of {most:,} members less that of {least}",
                    gain[:, -1] - gain[:, 0],
                    0.0,
                ),
                Part("farthest cell", found["bred_gain_high"][:, -1], 4.0),
                Part("nearest cell", found["bred_gain_low"][:, -1], 4.0, "<"),
            ],
            **about,
        ),
        claim_of_all(
            f"13.b: the best member of {most:,} is better than that of {least} (by"
            " construction: the few are drawn from all)",
            expected="better",
            parts=[Part("ratio of errors", best_ratio(found, "bred"), 1.0)],
            **about,
        ),
        claim_of_all(
            "13.c: probabilities of extremes are known better with more members (their"
            " standard scores fall by construction)",
            expected="better quantified",
            parts=[
                Part(
                    "power of n of the width", slopes(config, found, "bred"), 0.0, "<"
                ),
                *rises,
            ],
            **about,
        ),
        claim_of_all(
            "13.d: the truth is outside of the ensemble less often (by construction:"
            " the few are drawn from all)",
            expected="3.9 % of 50, 0.027 % of 7,424 members if reliable",
            parts=[
                Part(f"share of {most:,} members less that of {least}", change, 0, "<")
            ],
            **about,
        ),
        claim_of_all(
            "13.e: comparable fidelity at orders of magnitude less compute, beside the"
            " two-scale simulator",
            expected="comparable; orders of magnitude",
            parts=[
                Part("fair CRPS over its own", fair_ratio(done, "system"), 1.05, "<"),
                Part("its time over the emulator's", cost_ratio(done, "system"), 100.0),
            ],
            **about,
        ),
        claim_of_all(
            "13.f: streamed statistics are those of all members, and one is made again",
            expected="met",
            parts=same,
            **about | {"source": "section 3", "scale": "reduced"},
        ),
    ]


def make_checks(config, done) -> list[dict]:
    """The card's acceptance: means over seeds."""
    found = done["members"]
    checks = []
    for kind in KINDS:
        gain = found[f"{kind}_gain"].mean(axis=0)
        slope = float(slopes(config, found, kind).mean())
        falls = np.diff(found[f"{kind}_outliers"].mean(axis=0)).max()
        checks += [
            check_at_most(f"(a) {kind}: outliers fall with n", float(falls), 0.0),
            check_at_most(
                f"(a) {kind}: outliers of all over those of the fewest",
                float(outlier_ratio(found, kind).mean()),
                0.5,
            ),
            check_at_least(
                f"(b) {kind}: median gain, fewest, low", float(gain[0]), 2.2
            ),
            check_at_most(
                f"(b) {kind}: median gain, fewest, high", float(gain[0]), 2.7
            ),
            check_at_least(f"(b) {kind}: median gain, all, low", float(gain[-1]), 3.0),
            check_at_most(f"(b) {kind}: median gain, all, high", float(gain[-1]), 4.2),
            check_at_least(
                f"(c) {kind}: best member, error of fewest over all",
                float(best_ratio(found, kind).mean()),
                1.5,
            ),
            check_at_least(f"(d) {kind}: power of n of the width, low", slope, -0.6),
            check_at_most(f"(d) {kind}: power of n of the width, high", slope, -0.4),
        ]
        gap = np.abs(found[f"{kind}_fair"] - found[f"{kind}_small_fair"])
        error = found[f"{kind}_small_error"]
        checks.append(
            check_at_most(
                f"(e) {kind}: fair CRPS, few less all, in standard errors",
                float((gap / error).max()),
                4.0,
            )
        )
        change = found[f"{kind}_small_crps"] - found[f"{kind}_crps"]
        checks.append(
            check_at_least(
                f"(e) {kind}: standard CRPS, few less all, in standard errors",
                float((change / found[f"{kind}_small_crps_error"]).min()),
                4.0,
            )
        )
        for name, label in SCORES.items():
            values = found[f"{kind}_{name}"].mean(axis=0)
            rise = np.diff(values).max() - 0.2 * (values[0] - values[-1])
            checks.append(
                check_at_most(
                    f"6b {kind}: {label}, largest rise from size to size less a fifth"
                    " of the fall from fewest to all",
                    float(rise),
                    0.0,
                )
            )
        fair = found[f"{kind}_fair_brier"]
        error = np.maximum(found[f"{kind}_fair_brier_error"][:, 0], 1e-12)
        off = np.abs(fair[:, 0] - fair[:, -1]) / error
        checks.append(
            check_at_most(
                f"6b {kind}: fair Brier score, few less all, in standard errors",
                float(off.max()),
                4.0,
            )
        )
    flat = found["stream_bytes"] / found["stream_few_bytes"]
    exact = np.minimum(found["stream_exact"], found["drawn_counts"])
    frozen = int((found["frozen_steps"] >= 0).sum())
    return [
        *checks,
        check_at_least(
            "(f) a member made alone is equal", float(found["stream_again"].min()), 1.0
        ),
        check_at_least("(f) extremes and counts are equal", float(exact.min()), 1.0),
        check_at_most("peak bytes of all over few members", float(flat.max()), 1.01),
        check_at_most(
            "streamed CRPS less that of kept members, deviations",
            float(found["stream_crps_difference"].max()),
            1e-3,
        ),
        check_at_most("networks not finite", frozen, 0),
    ]


def summarise(config, done) -> dict[str, float]:
    """Flat scalars without times: means over seeds."""
    found = done["members"]
    scalars = {}
    for kind in KINDS:
        for name in (*BY_SIZE, "fair_brier", "fair_owcrps"):
            values = found[f"{kind}_{name}"].mean(axis=0)
            for size, value in zip(config.sizes, values):
                scalars[f"{kind}_{name}_{size}"] = float(value)
        for name in ("fair", "crps", "small_fair", "small_crps", "ssr"):
            scalars[f"{kind}_{name}"] = float(found[f"{kind}_{name}"].mean())
        scalars[f"{kind}_width_slope"] = float(slopes(config, found, kind).mean())
    frozen = int((found["frozen_steps"] >= 0).sum())
    return scalars | {
        "stream_bytes": float(found["stream_bytes"].max()),
        "system_fair": float(found["system_fair"].mean()),
        "closure_fair": float(found["closure_fair"].mean()),
        "num_networks_not_finite": frozen,
    }
