"""What `huge_ensembles_7424.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most
from ensjax.experiment.claims import Part, claim_of_all
from ensjax.verification import log_log_slope

PAPER = "Mahesh et al. 2024, arXiv:2408.01581"
SCORES = {"brier": "Brier score", "owcrps": "owCRPS"}
BY_SIZE = ("outliers", "bracketed", "gain", "best", "width", "cluster_width")
KINDS = {"bred": "checkpoints x bred vectors", "random": "checkpoints x random"}
WIDTHS = {"width": "members", "cluster_width": "checkpoints"}
SIMULATORS = {"system": "two-scale simulator", "closure": "imperfect simulator"}


def slopes(config, found, kind, name="cluster_width") -> np.ndarray:
    """Powers of n that widths follow, over checkpoints or over members, `[seed]`."""
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
    widths = slopes(config, found, "bred")
    exact = np.minimum(found["stream_exact"], found["drawn_counts"])
    same = [
        Part("mean and variance, two passes", found["drawn_two_pass"], 1e-5, "<"),
        Part("another block", found["drawn_block"], 1e-5, "<"),
        Part("two devices", found["drawn_devices"], 1e-5, "<"),
        Part(
            "streamed forecasts against kept ones",
            found["stream_difference"],
            1e-5,
            "<",
        ),
        Part("extremes, their members and counts are equal", exact, 0.5),
        Part("a member made alone has the same bits", found["stream_again"], 0.5),
    ]
    return [
        claim_of_all(
            "13.a: the tails are sampled out to four standard deviations (of the"
            " ensemble's own, so that members of any skill do, if they are no copies)",
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
            "13.c: probabilities of extremes are known better with more members, over"
            " checkpoints, too (intervals shrink, and standard scores fall, by"
            " construction; how much they shrink is a check)",
            expected="better quantified",
            parts=[
                Part("power of n of the width over checkpoints", widths, 0.0, "<"),
                Part(
                    "power of n of the width over members",
                    slopes(config, found, "bred", "width"),
                    0.0,
                    "<",
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
            " two-scale simulator, which is told the truth's fast variables",
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
        ]
        for name, label in WIDTHS.items():
            slope = float(slopes(config, found, kind, name).mean())
            text = f"(d) {kind}: power of n of the width over {label}"
            checks += [
                check_at_least(f"{text}, low", slope, -0.6),
                check_at_most(f"{text}, high", slope, -0.4),
            ]
        checks += _checks_of_crps(config, found, kind)
        # The sizes of the card, fewest, some and all; of two sizes these.
        places = sorted({0, (len(config.sizes) - 1) // 2, len(config.sizes) - 1})
        words = ", ".join(f"{config.sizes[place]:,}" for place in places)
        for name, label in SCORES.items():
            rises = np.diff(found[f"{kind}_{name}"].mean(axis=0)[places])
            text = f"6b {kind}: {label}, largest rise over {words} members"
            checks.append(check_at_most(text, float(rises.max()), 0.0))
        checks.append(
            check_at_most(
                f"6b {kind}: fair Brier score, few less all, in standard errors (equal"
                " by theorem)",
                _in_errors(
                    found[f"{kind}_fair_brier"][:, 0]
                    - found[f"{kind}_fair_brier"][:, -1],
                    found[f"{kind}_fair_brier_error"][:, 0],
                ),
                4.0,
            )
        )
    exact = np.minimum(found["stream_exact"], found["drawn_counts"])
    frozen = int((found["frozen_steps"] >= 0).sum())
    return [
        *checks,
        check_at_least(
            "(f) a member made alone is equal", float(found["stream_again"].min()), 1.0
        ),
        check_at_least("(f) extremes and counts are equal", float(exact.min()), 1.0),
        *_checks_of_memory(done["memory"]),
        check_at_most(
            "GiB of the program of a start, all members",
            float(done["memory"]["bytes"][1].sum() / 2**30),
            0.1,
        ),
        # A check, since scalars are what the config says, on any machine.
        check_at_most(
            "seconds of a start on this machine, all members",
            float(done["cost"]["seconds_emulator"].mean()),
            60.0,
        ),
        check_at_most(
            "streamed CRPS less that of kept members, deviations",
            float(found["stream_crps_difference"].max()),
            1e-3,
        ),
        check_at_most("networks not finite", frozen, 0),
    ]


def _in_errors(gap, error) -> float:
    """The largest gap of a seed, in its standard errors."""
    return float(np.max(np.abs(gap) / np.maximum(error, 1e-12)))


def standard_excess(found, kind, size) -> np.ndarray:
    """D / (2 n^2 (n - 1)) of n members: their mean distance over 2 n, `[seed]`.

    What the standard CRPS has more than the fair one, D being the sum of the distances
    of all ordered pairs; here the distances are those of all members.
    """
    return found[f"{kind}_spread"] / size


def _checks_of_crps(config, found, kind) -> list[dict]:
    """(e): what the number of members does to the fair CRPS and to the standard one."""
    few = min(config.crps_size, config.sizes[-1])
    own, rest = (standard_excess(found, kind, size) for size in (few, config.sizes[-1]))
    change = found[f"{kind}_small_crps"] - found[f"{kind}_crps"]
    error = found[f"{kind}_small_crps_error"]
    return [
        check_at_most(
            f"(e) {kind}: fair CRPS, few less all, in standard errors (equal by"
            " theorem)",
            _in_errors(
                found[f"{kind}_fair"] - found[f"{kind}_small_fair"],
                found[f"{kind}_small_error"],
            ),
            4.0,
        ),
        check_at_most(
            f"(e) {kind}: standard less fair CRPS of {few}, beside D / (2 n^2 (n - 1)),"
            " in standard errors",
            _in_errors(
                found[f"{kind}_small_gap"] - own, found[f"{kind}_small_gap_error"]
            ),
            4.0,
        ),
        check_at_most(
            f"(e) {kind}: standard CRPS, few less all, beside what D / (2 n^2 (n - 1))"
            " makes of both, in standard errors",
            _in_errors(change - (own - rest), error),
            4.0,
        ),
        check_at_least(
            f"(e) {kind}: standard CRPS, few less all, in standard errors",
            float((change / error).min()),
            4.0,
        ),
    ]


def _checks_of_memory(memory) -> list[dict]:
    """The bytes of the program of all members over that of few, each for its own."""
    few, most = (f"{int(count):,}" for count in memory["members"])
    text = f"of {most} over {few} members"
    temporary = memory["unordered_bytes"][:, 0]
    beside = memory["unordered_bytes"][:, 1:].sum(axis=1) - memory["id_bytes"]
    whole = memory["bytes"].sum(axis=1) - memory["id_bytes"]
    summary = memory["summary_numbers"]
    return [
        check_at_most(
            f"temporary bytes {text}, without the CRPS",
            float(temporary[1] / temporary[0]),
            1.01,
        ),
        check_at_most(
            f"arguments and results in bytes {text}, without the CRPS and ids",
            float(beside[1] / beside[0]),
            1.01,
        ),
        check_at_most(
            f"all bytes {text}, without ids, over the growth of the CRPS's summary",
            float(whole[1] / whole[0] / (summary[1] / summary[0])),
            1.0,
        ),
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
        names = (
            "fair",
            "crps",
            "small_fair",
            "small_crps",
            "small_gap",
            "spread",
            "ssr",
        )
        for name in names:
            scalars[f"{kind}_{name}"] = float(found[f"{kind}_{name}"].mean())
        for name in WIDTHS:
            slope = slopes(config, found, kind, name).mean()
            scalars[f"{kind}_{name}_slope"] = float(slope)
    frozen = int((found["frozen_steps"] >= 0).sum())
    return scalars | {
        "few_bytes": float(done["memory"]["bytes"][0].sum()),
        "all_bytes": float(done["memory"]["bytes"][1].sum()),
        "system_fair": float(found["system_fair"].mean()),
        "closure_fair": float(found["closure_fair"].mean()),
        "num_networks_not_finite": frozen,
    }
