"""What `huge_ensembles_7424.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check_at_least, check_at_most
from ensjax.experiment.claims import Part, claim_of_all, interval_text
from ensjax.verification import expected_outliers, log_log_slope

PAPER = "Mahesh et al. 2024, arXiv:2408.01581"
KINDS = {"bred": "checkpoints x bred vectors", "random": "checkpoints x random"}


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


def cost_ratio(done) -> np.ndarray:
    """Trajectories of the emulator for one of the two-scale system, `[seed]`."""
    times = done["members"]
    return times["rate_emulator"] / times["rate_system"]


def make_claims(config, done) -> list[dict]:
    """13.a to 13.f at the scale of this system, of bred vectors x checkpoints."""
    found = done["members"]
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    least, most = config.sizes[0], config.sizes[-1]
    gain = found["bred_gain"]
    scores = {"Brier score": "brier", "owCRPS": "owcrps"}
    rises = [
        Part(
            f"{text} of {most:,} less that of {least}",
            found[f"bred_{name}"][:, -1] - found[f"bred_{name}"][:, 0],
            0.0,
            "<",
        )
        for text, name in scores.items()
    ]
    change = found["bred_outliers"][:, -1] - found["bred_outliers"][:, 0]
    fair = found["bred_fair"] / found["physics_fair"]
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
            f"13.b: the best member of {most:,} is better than that of {least}",
            expected="better",
            parts=[Part("ratio of errors", best_ratio(found, "bred"), 1.0)],
            **about,
        ),
        claim_of_all(
            "13.c: probabilities of extremes are known better with more members",
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
            "13.d: the truth is outside of the ensemble less often",
            expected="3.9 % of 50, 0.027 % of 7,424 members if reliable",
            parts=[
                Part(f"share of {most:,} members less that of {least}", change, 0, "<")
            ],
            **about,
        ),
        claim_of_all(
            "13.e: comparable fidelity at orders of magnitude less compute",
            expected="comparable; orders of magnitude",
            parts=[
                Part("fair CRPS over the imperfect simulator's", fair, 1.05, "<"),
                Part("trajectories/s over the two-scale ones", cost_ratio(done), 100.0),
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
        count, size = config.sizes[-1], min(config.crps_size, config.sizes[-1])
        expected = found[f"{kind}_spread"] * (1 / size - 1 / count)
        change = found[f"{kind}_small_crps"] - found[f"{kind}_crps"]
        off = np.abs(change - expected) / found[f"{kind}_small_error"]
        checks.append(
            check_at_most(
                f"(e) {kind}: standard CRPS differs by the spread's share, in errors",
                float(off.max()),
                4.0,
            )
        )
        for name, label in (("brier", "Brier score"), ("owcrps", "owCRPS")):
            rise = np.diff(found[f"{kind}_{name}"].mean(axis=0)).max()
            checks.append(
                check_at_most(f"6b {kind}: {label} rises with n by", float(rise), 1e-3)
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
        for name in ("outliers", "gain", "best", "brier", "owcrps", "width"):
            values = found[f"{kind}_{name}"].mean(axis=0)
            for size, value in zip(config.sizes, values):
                scalars[f"{kind}_{name}_{size}"] = float(value)
        for name in ("fair", "crps", "small_fair", "small_crps", "ssr"):
            scalars[f"{kind}_{name}"] = float(found[f"{kind}_{name}"].mean())
        scalars[f"{kind}_width_slope"] = float(slopes(config, found, kind).mean())
    frozen = int((found["frozen_steps"] >= 0).sum())
    return scalars | {
        "stream_bytes": float(found["stream_bytes"].max()),
        "physics_fair": float(found["physics_fair"].mean()),
        "num_networks_not_finite": frozen,
    }


def add_tables(run_dir, config, done) -> None:
    """Statistics by number of members, and what the run takes."""
    found, rows = done["members"], []
    for kind, label in KINDS.items():
        for place, size in enumerate(config.sizes):
            texts = [
                interval_text(found[f"{kind}_{name}"][:, place])
                for name in ("outliers", "gain", "best", "brier", "owcrps", "width")
            ]
            wide = interval_text(found[f"{kind}_cluster_width"][:, place])
            rows.append(
                [label, f"{size:,}", f"{expected_outliers(size):.2g}", *texts, wide]
            )
    ssr = {kind: found[f"{kind}_ssr"].mean() for kind in KINDS}
    run_dir.add_table(
        "sizes",
        ["members", "n", "2 / (n + 1)", "outside", "median gain", "best member",
         "Brier", "owCRPS", "width of P", "by checkpoint"],
        rows,
        f"Lead {config.judged_lead / 10:g} time units; {config.num_seeds} seeds,"
        f" {config.archive.num_starts} starts. Spread over error of all members:"
        f" {ssr['bred']:.2f} (bred), {ssr['random']:.2f} (random). Subsets without"
        f" replacement, {config.num_resamples} of each size; intervals of P(x > its"
        f" {100 * config.extreme_quantile:g} % quantile) with it, over members and over"
        " whole checkpoints. Errors in deviations of the climate.",
    )  # fmt: skip
    members, sites = config.sizes[-1], config.archive.num_sites
    seconds = found["stream_seconds"].mean()
    steps = config.leads[-1]
    rows = [
        ["seconds a start, streamed", f"{seconds:.3g}"],
        ["member-steps a second", f"{members * steps / seconds:,.0f}"],
        ["temporary GiB", f"{found['stream_bytes'].max() / 2**30:.4f}"],
        [
            "temporary GiB of few members",
            f"{found['stream_few_bytes'].max() / 2**30:.4f}",
        ],
        [
            "GiB if all were kept",
            f"{members * len(config.leads) * sites * 4 / 2**30:.4f}",
        ],
        *(
            [f"trajectories/s, {label}", f"{found[f'rate_{name}'].mean():,.0f}"]
            for name, label in (
                ("emulator", "emulators"),
                ("system", "two-scale simulator"),
                ("closure", "imperfect simulator"),
            )
        ),
    ]
    run_dir.add_table(
        "cost",
        ["what", "of this machine"],
        rows,
        f"{members:,} members, {steps} steps, states of all statistics at"
        f" {len(config.leads)} leads; compiled before.",
    )


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    found = done["members"]
    mean = {name: values.mean(axis=0) for name, values in found.items()
            if name.startswith(tuple(KINDS))}  # fmt: skip
    least, most = config.sizes[0], config.sizes[-1]
    again = "is" if found["stream_again"].min() == 1 else "is not always"
    return (
        f"{most:,} members of {config.archive.num_starts} starts and"
        f" {config.num_seeds} seeds, lead {config.judged_lead / 10:g}; spread over"
        f" error {mean['bred_ssr']:.2f} (bred) and {mean['random_ssr']:.2f} (random)."
        f" From {least} to {most:,} members the truth is outside in"
        f" {mean['bred_outliers'][0]:.3f} to {mean['bred_outliers'][-1]:.4f} of cells"
        f" (random: {mean['random_outliers'][0]:.3f} to"
        f" {mean['random_outliers'][-1]:.4f}), the median gain rises from"
        f" {mean['bred_gain'][0]:.2f} to {mean['bred_gain'][-1]:.2f}, and the best"
        f" member's error falls from {mean['bred_best'][0]:.3f} to"
        f" {mean['bred_best'][-1]:.3f}. Fair CRPS: {mean['bred_small_fair']:.4f} of"
        f" {config.crps_size}, {mean['bred_fair']:.4f} of all. The highest member, made"
        f" again alone, {again} equal bit for bit. An ensemble with too little spread"
        " keeps outliers whatever its size."
    )
