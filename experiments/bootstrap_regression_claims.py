"""What `bootstrap_regression.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import (
    Part,
    check,
    claim,
    claim_of_all,
    not_run,
    student_interval,
)
from ensjax.experiment.claims import MIN_SEEDS
from ensjax.experiment.fields import load_beside

peers = load_beside(__file__, "bootstrap_regression_peers")

AREAS = ("sigma_area", "distance_area", "oracle_area", "distance_error_spearman")
PAPER = "De Breuck, Evans and Rignanese 2021, arXiv:2102.02263"


def ratios(results) -> dict[str, np.ndarray]:
    """Error over that of the better of forest and boosting, `[size, seed]` by set."""
    trees = [peers.PEERS.index(name) for name in ("forest", "boosting")]
    return {
        name: own["mae"] / own["peer_mae"][trees].min(axis=0)
        for name, own in results["sets"].items()
    }


def size_slopes(results) -> np.ndarray:
    """Slope of the ratio in the log of the training rows, mean over sets, `[seed]`."""
    slopes = []
    for name, ratio in ratios(results).items():
        logs = np.log(results["sets"][name]["sizes"])
        slopes.append([np.polyfit(logs, column, 1)[0] for column in ratio.T])
    return np.mean(slopes, axis=0)


def smallest_ratios(results) -> np.ndarray:
    """The ratio at the smallest number of rows, geometric mean over sets, `[seed]`."""
    return np.exp(np.mean([np.log(r[0]) for r in ratios(results).values()], axis=0))


def nested_wins(results) -> dict[str, bool]:
    """Whether the nested ensemble has the lowest error over all seeds, by set."""
    return {
        name: bool(own["nested_mae"].mean() < own["peer_mae"][:, -1].mean(-1).min())
        for name, own in results["sets"].items()
    }


def summarise(config, results) -> dict[str, float]:
    """Flat scalars: means over seeds."""
    scalars = {"num_members_not_finite": results["not_finite"]}
    for part in ("point", "spread", "shift", "imbalance", "plain"):
        for name, values in results[part].items():
            if np.ndim(values) == 1:
                scalars[f"{part}_{name}"] = np.mean(values)
    for name in AREAS:
        scalars[name] = results["curves"][name].mean()
    for name, own in results["sets"].items():
        for place, size in enumerate(own["sizes"]):
            scalars[f"{name}_mae_of_{size}"] = own["mae"][place].mean()
            for peer, errors in zip(peers.PEERS, own["peer_mae"]):
                scalars[f"{name}_{peer}_mae_of_{size}"] = errors[place].mean()
            scalars[f"{name}_ratio_of_{size}"] = ratios(results)[name][place].mean()
        scalars[f"{name}_nested_mae"] = own["nested_mae"].mean()
    scalars["nested_wins"] = sum(nested_wins(results).values())
    scalars["size_slope"] = size_slopes(results).mean()
    scalars["smallest_ratio"] = smallest_ratios(results).mean()
    tau = results["rankings"]["tau"]
    off = ~np.eye(tau.shape[1], dtype=bool)
    scalars["ranking_tau_mean"] = np.nanmean(tau[:, off])
    scalars["ranking_tau_min"] = np.nanmean(np.nanmin(tau[:, off], axis=1))
    scalars["ranking_disagreeing_pairs"] = results["rankings"]["disagreeing"].mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per seed.

    Seeds are splits of the same rows, for which intervals are wider.
    """

    def state(text, values, *, split="main", side, bound, **about):
        return claim(
            f"{text}; splits share rows",
            values_by_seed=values,
            split_sizes=results["split_sizes"][split],
            side=side,
            bound=bound,
            **about,
        )

    def state_all(text, *parts, **about):
        name = f"{text}; splits share rows"
        return claim_of_all(name, parts=parts, **about)

    def part(text, values, side, bound, split="main"):
        return Part(text, values, bound, side, results["split_sizes"][split])

    def about(source, expected):
        return dict(
            paper=PAPER,
            source=source,
            certainty="read",
            scale=config.scale,
            expected=expected,
        )

    shift, imbalance = results["shift"], results["imbalance"]
    return [
        not_run(
            "modnet-bootstrap.a: MODNet leads on 6 of 13 MatBench tasks",
            **about("abstract and table of the benchmark repository", "6 of 13"),
        ),
        state_all(
            "modnet-bootstrap.b: MAE over that of the better of random forest and"
            " boosting",
            part("slope in log training rows", size_slopes(results), ">", 0.0),
            part(f"at {_smallest(results)} rows", smallest_ratios(results), "<", 1.0),
            **about("abstract: best below 10,000 samples", "slope > 0, small end < 1"),
        ),
        state(
            "modnet-bootstrap.c: pairs of metrics (of 10) that name another best model"
            " of six",
            results["rankings"]["disagreeing"],
            side=">",
            bound=0.0,
            **about("section on metrics", "> 0"),
        ),
        state_all(
            "modnet-bootstrap.d: MAE where domains differ over that where they do not",
            part(
                "beyond the end of a feature over a random hold-out at home",
                shift["shifted_mae"] / shift["inside_mae"],
                ">",
                1.0,
                "shift",
            ),
            part(
                "on the end of the target that was thinned in training over all rows"
                " without thinning",
                imbalance["thinned_tail_mae"] / imbalance["random_mae"],
                ">",
                1.0,
            ),
            part(
                "on the end of the target with thinning over without",
                imbalance["thinned_tail_mae"] / imbalance["whole_tail_mae"],
                ">",
                1.0,
            ),
            **about("section on bias and imbalance", "> 1 for each"),
        ),
        and_covered(
            state(
                "modnet-bootstrap.e: mean of the confidence curve by sigma (random: 1),"
                " and the interval of the scaled 2-sigma coverage includes .95",
                results["curves"]["sigma_area"],
                side="<",
                bound=1.0,
                **about("figures of confidence-error curves", "< 1, and .95"),
            ),
            results["spread"]["scaled_coverage"],
            results["split_sizes"]["main"],
        ),
        state(
            "modnet-bootstrap.e, calibrated: distance of the 2-sigma coverage from .95,"
            " scaled minus raw",
            _off(results, "scaled") - _off(results, "raw"),
            side="<",
            bound=0.0,
            **about("figures of calibration curves", "< 0"),
        ),
    ]


def and_covered(entry, coverage, split_sizes):
    """The claim, which holds only if the interval of the coverage includes .95 too.

    It fails if either part does, and is undecided otherwise.
    """
    interval = student_interval(coverage.tolist(), split_sizes=split_sizes)
    covered = "undecided"
    if interval is not None and entry["seeds"] >= MIN_SEEDS:
        covered = "holds" if interval[0] <= 0.95 <= interval[1] else "fails"
    parts = (entry["verdict"], covered)
    verdict = "undecided"
    if "fails" in parts:
        verdict = "fails"
    elif parts == ("holds", "holds"):
        verdict = "holds"
    interval = None if interval is None else list(interval)
    return entry | {"verdict": verdict, "coverage_interval": interval}


def _off(results, kind):
    return np.abs(results["spread"][f"{kind}_coverage"] - 0.95)


def _smallest(results):
    sizes = {int(own["sizes"][0]) for own in results["sets"].values()}
    return " or ".join(map(str, sorted(sizes)))


def make_checks(config, results) -> list[dict]:
    """Our own bounds, from a pilot on diabetes."""
    point, spread, shift = results["point"], results["spread"], results["shift"]
    ratio = point["mae"] / point["mean_member_mae"]
    area = results["curves"]["sigma_area"]
    below = float(np.mean(area < 1))
    scaled, raw = spread["scaled_miscalibration"], spread["raw_miscalibration"]
    coverage = spread["scaled_coverage"]
    interval = student_interval(
        coverage.tolist(), split_sizes=results["split_sizes"]["main"]
    )
    sigma = shift["shifted_sigma"] / shift["inside_sigma"]
    identity = np.abs(point["mse"] - (point["mean_member_mse"] - point["ambiguity"]))
    identity = float((identity / point["mean_member_mse"]).max())
    holds = interval is not None and interval[0] <= 0.95 <= interval[1]
    return [
        check(
            "ensemble MAE over mean member MAE, largest over seeds",
            bound=f"<= {config.max_mae_ratio:g}",
            measured=ratio.max(),
            passed=ratio.max() <= config.max_mae_ratio,
        ),
        check(
            "share of seeds whose confidence curve is below 1 on average",
            bound=">= 0.8",
            measured=below,
            passed=below >= 0.8,
        ),
        check(
            "mean of the confidence curve, over seeds",
            bound=f"<= {config.max_curve_area:g}",
            measured=area.mean(),
            passed=area.mean() <= config.max_curve_area,
        ),
        check(
            "miscalibration area after out-of-bag scaling",
            bound=f"<= {config.max_miscalibration:g}",
            measured=scaled.mean(),
            passed=scaled.mean() <= config.max_miscalibration,
        ),
        check(
            "miscalibration area after scaling over that before",
            bound="<= 0.5",
            measured=scaled.mean() / raw.mean(),
            passed=scaled.mean() <= 0.5 * raw.mean(),
        ),
        check(
            "2-sigma coverage after scaling",
            bound="0.92 to 0.98",
            measured=coverage.mean(),
            passed=0.92 <= coverage.mean() <= 0.98,
        ),
        check(
            "2-sigma coverage after scaling: 95 % interval over splits that share rows",
            bound="includes 0.95",
            measured=coverage.mean(),
            passed=holds,
        ),
        check(
            "sigma beyond the end of a feature over that at home, smallest over seeds",
            bound=f">= {config.min_sigma_ratio:g}",
            measured=sigma.min(),
            passed=sigma.min() >= config.min_sigma_ratio,
        ),
        check(
            "|ensemble MSE - (mean member MSE - ambiguity)| / mean member MSE, largest",
            bound="<= 1e-5",
            measured=identity,
            passed=identity <= 1e-5,
        ),
        check(
            "members of the stack minus those trained alone, in the targets' deviation",
            bound="<= 1e-5",
            measured=results["alone"],
            passed=results["alone"] <= 1e-5,
        ),
        check(
            "members not finite",
            bound="0",
            measured=results["not_finite"],
            passed=results["not_finite"] == 0,
        ),
    ]


def describe(config, tables, results, scalars) -> str:
    """The summary: what was done, what came out, what it does not show."""
    first = config.sets[0]
    train = results["sets"][first]["sizes"][-1]
    wins = [name for name, won in nested_wins(results).items() if won]
    models, values = results["models"], results["rankings"]["values"]
    best = models[int(values[0].mean(axis=-1).argmin())]
    return (
        f"{config.num_seeds} seeds, each a random split. Data:"
        f" {'; '.join(table.source for table in tables.values())}."
        f" On {first}, {config.num_members} networks"
        f" ({'-'.join(map(str, config.hidden))}) on bootstraps of {train} rows have MAE"
        f" {scalars['point_mae']:.4g} together and"
        f" {scalars['point_mean_member_mae']:.4g} on average; of as many networks"
        f" ({config.num_side_members}) on bootstraps and on all rows, MAE"
        f" {scalars['plain_bootstrap_of_as_many_mae']:.4g} and"
        f" {scalars['plain_mae']:.4g}. The best of six models by MAE is {best}."
        f" Their standard deviation is too small: out-of-bag rows, which no counted"
        f" member was trained on, ask for a factor of {scalars['spread_tau']:.3g}. It"
        f" moves the miscalibration area from"
        f" {scalars['spread_raw_miscalibration']:.3g} to"
        f" {scalars['spread_scaled_miscalibration']:.3g} and the 2-sigma coverage from"
        f" {scalars['spread_raw_coverage']:.3g} to"
        f" {scalars['spread_scaled_coverage']:.3g}. Dropping rows by it leaves"
        f" {scalars['sigma_area']:.3g} of the MAE on average (oracle"
        f" {scalars['oracle_area']:.3g}, random 1); by distance to the training"
        f" rows {scalars['distance_area']:.3g}. Beyond the end of a feature the spread"
        f" is {scalars['shift_shifted_sigma'] / scalars['shift_inside_sigma']:.3g} and"
        f" the MAE {scalars['shift_shifted_mae'] / scalars['shift_inside_mae']:.3g}"
        f" times that at home. Against the better of random forest and boosting the"
        f" smallest training sets give a MAE ratio of {scalars['smallest_ratio']:.3g}."
        f" With nested selection the networks have the lowest MAE on"
        f" {len(wins)} of {len(tables)} sets"
        f"{' (' + ', '.join(wins) + ')' if wins else ''}. MatBench itself was"
        f"{'' if config.scale == 'full' else ' not'} measured. Seeds are splits of the"
        " same rows: intervals of claims are widened for it (Nadeau and Bengio 2003),"
        " and the rows beyond the end of the feature are the same in all seeds."
    )
