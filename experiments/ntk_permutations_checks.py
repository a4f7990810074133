"""Our own bounds of `ntk_permutations.py`, from pilots."""

import numpy as np

from ensjax.experiment import check
from ensjax.experiment.claims import check_at_least, check_at_most
from ensjax.experiment.fields import load_beside
from ensjax.ntk import published, two_layer

theory = load_beside(__file__, "ntk_permutations_theory")
verdicts = load_beside(__file__, "ntk_permutations_claims")


def make_checks(config, found) -> list[dict]:
    """Our own bounds, from the card's pilots."""
    exact = found["theory"]
    checks = [
        check_at_most(
            "A: closed forms against kernel algebra", exact["form_errors"].max(), 1e-8
        ),
        check(
            f"A: f0 < 0 < f1 for all m >= 2 and k to {config.forms.max_bits}",
            bound="f1 > 0 > f0",
            measured=exact["least_one"].min(),
            passed=exact["least_one"].min() > 0 > exact["largest_zero"].max(),
        ),
    ]
    for k in config.networks.num_bits:
        away = np.nanmax(np.abs(verdicts.distances(config, found, k)))
        ratio = np.nanmax(
            np.abs(verdicts.variance_ratios(config, found, k).mean(axis=1) - 1)
        )
        checks += [
            check_at_most(
                f"B: means of networks, k = {k}: largest distance, in standard errors",
                away,
                4,
            ),
            check_at_most(
                f"B: variance of networks, k = {k}: |ratio - 1|, largest",
                ratio,
                0.06,
            ),
        ]
    checks += _curve_checks(config, found) + _growth_checks(config, found)
    checks += _other_checks(config, found)
    return checks


def _curve_checks(config, found):
    sizes, checks = np.array(config.curve.num_bits), []
    for i, kind in enumerate(config.kinds):
        steps = np.diff(verdicts.medians(found, i))
        if steps.size:  # one k alone has none
            checks.append(
                check(
                    f"C: N90 of {kind} increases in k: smallest step",
                    bound="> 0",
                    measured=steps.min(),
                    passed=steps.min() > 0,
                )
            )
    if set(config.kinds) >= set(two_layer.KINDS):
        by_kind = {
            kind: verdicts.medians(found, i) for i, kind in enumerate(config.kinds)
        }
        ratio = (by_kind["ntk"] / by_kind["readout"])[sizes >= 10]
        if ratio.size:
            low, high = ratio.min(), ratio.max()
            text = f"{low:.2f} to {high:.2f}"
            checks.append(
                check(
                    f"C: N90 of ntk over readout, k >= 10 ({text}), farthest from 5",
                    bound="3 to 8",
                    measured=low if 5 - low > high - 5 else high,
                    passed=low >= 3 and high <= 8,
                )
            )
        table = published.MEMBERS_FOR_90_PERCENT
        shared = [j for j, k in enumerate(sizes) if k >= 15 and k in table]
        if shared:
            away = [by_kind["readout"][j] / table[sizes[j]] - 1 for j in shared]
            checks.append(
                check_at_most(
                    "C: readout N90 over the published, k >= 15: |ratio - 1|, largest",
                    np.abs(away).max(),
                    0.4,
                )
            )
    return checks


def _growth_checks(config, found):
    checks = []
    sizes = np.array(config.cube.num_bits)
    for kind in config.kinds:
        row = verdicts.cube_row(found, kind)
        checks.append(
            check(
                f"D: {kind}, cube: upper end of b's bootstrap interval",
                bound="< 2",
                measured=row.fit.high,
                passed=row.fit.high < 2,
            )
        )
        share = (row.numbers / sizes**2)[sizes >= 6]
        steps = np.diff(np.log(share))
        if steps.size:
            checks.append(
                check(
                    f"D: {kind}, cube: N50 / k^2 falls from k = 6 on: largest log step",
                    bound="< 0",
                    measured=steps.max(),
                    passed=steps.max() < 0,
                )
            )
    # The card's rows; rounding at the midpoint has other laws, which are reported.
    sign = [row for row in found["growth"] if "midpoint" not in row.quantity]
    rest = [row for row in found["growth"] if "midpoint" in row.quantity]
    margin = min(
        row.errors["k^2"] - max(row.errors["k"], row.errors["k log k"]) for row in sign
    )
    checks.append(
        check(
            f"D: k^2 has the largest held-out error in all {len(sign)} rows of the sign"
            f" rule and of published numbers: smallest margin ({len(rest)} rows of the"
            " midpoint rule are ours, and not judged: see the table)",
            bound="> 0",
            measured=margin,
            passed=margin > 0,
        )
    )
    if "readout" in config.kinds:
        error = verdicts.cube_row(found, "readout").errors["k log k"]
        checks.append(
            check(
                "D: readout, cube: held-out error of k log k",
                bound="< 0.06",
                measured=error,
                passed=error < 0.06,
            )
        )
    for kind in config.kinds if 10 in sizes else ():  # the pilot was of "ntk"
        ratio = verdicts.midpoint_gain(config, found, kind, 10)
        label = f"E: {kind}, cube, k = 10: N50 of sign over midpoint"
        checks.append(check_at_least(label, ratio, 20))
    return checks


def _other_checks(config, found):
    stream = found["stream"]
    shares = verdicts.sure_shares(config, found)[:, theory.SURE.index(0.001)]
    right, checks = found["tasks"]["right"].min(), []
    if (trained := found["trained_task"]) is not None:
        label = f"addition by {config.tasks.num_networks} trained networks"
        share = trained["right"].min()
        checks += [
            check(
                f"{label}: share of right sums",
                bound="1",
                measured=share,
                passed=share == 1,
            ),
            check_at_most(
                f"{label}: variance over the law's, |mean ratio - 1|, largest",
                np.abs(trained["variance"] - 1).max(),
                0.06,
            ),
        ]
    return checks + [
        check_at_least(
            "a: share right at the N of 0.999, all draws, smallest over k and laws",
            shares.mean(axis=-1).min(),
            0.98,
        ),
        check_at_most(
            f"stream of {config.stream.num_members}: mean from the law's, largest, in"
            " standard errors",
            stream["mean_error"],
            6,
        ),
        check_at_most(
            "stream: variance over the law's, |mean ratio - 1|",
            abs(stream["variance_ratio"].mean() - 1),
            0.01 if config.stream.num_members >= 10_000 else 0.05,
        ),
        check(
            "other tasks, mean of the infinite ensemble: share of right answers",
            bound="1",
            measured=right,
            passed=right == 1,
        ),
    ]
