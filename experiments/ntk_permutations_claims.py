"""What `ntk_permutations.py` concludes: scalars and claims."""

from typing import Any, NamedTuple

import numpy as np

from ensjax import ntk
from ensjax.experiment import Part, claim, claim_of_all, claim_of_cases
from ensjax.experiment.fields import load_beside
from ensjax.ntk import published, two_layer

theory = load_beside(__file__, "ntk_permutations_theory")
draws = load_beside(__file__, "ntk_permutations_draws")

PAPER = "Giapitzakis et al. 2025, arXiv:2502.16763v1"
SLUG = "permutation-ntk"
# The largest k that the factor of a law is fitted on: small sizes, and large ones.
FITTED_UP_TO, LARGE_FITTED_UP_TO = 10, 100


class Row(NamedTuple):
    """One growth: how N depends on k.

    Attributes:
        quantity: in words.
        kind: the law, or "trained".
        num_bits, numbers: the curve.
        fit: log N = a + b log k.
        errors: of each law on larger k than it was fitted on.
    """

    quantity: str
    kind: str
    num_bits: np.ndarray
    numbers: np.ndarray
    fit: ntk.PowerLaw
    errors: dict[str, float]

    @property
    def nearest(self) -> str:
        """The law with the least error."""
        return ntk.nearest_law(self.errors)


def gather(config, done) -> dict[str, Any]:
    """The stages' arrays, joined over k, and the growth that follows from them."""
    curves = [done[f"curve-{k}"] for k in config.curve.num_bits]
    found = {
        "theory": done["theory"],
        "tasks": done["tasks"],
        "trained_task": done.get("trained-task"),
        "widths": done["widths"],
        "stream": done["stream"],
        "networks": {k: done[f"networks-{k}"] for k in config.networks.num_bits},
        # [kind, target, repetition or nothing, k]
        "curve": {
            name: np.stack([curve[name] for curve in curves], axis=-1)
            for name in ("first", "stays", "exact")
        },
        # [k, seed, draw, kind, rule]
        "needed": np.stack([done[f"cube-{k}"]["needed"] for k in config.cube.num_bits]),
    }
    return found | {"growth": _growth(config, found)}


def _growth(config, found) -> list[Row]:
    rows = []
    exact = found["theory"]
    for suffix, sizes, last in ranges(config):
        for i, kind in enumerate(config.kinds):
            for delta, numbers in zip(
                config.growth.deltas, exact[f"one{suffix}"][i], strict=True
            ):
                words = f"one input, error {delta:g}, k = {_span(sizes)}"
                rows.append(_exact_row(words, kind, sizes, numbers, last))
    sizes, needed = np.array(config.cube.num_bits), found["needed"]
    for rule, words in enumerate(draws.RULES):
        for quantile in (0.5, 0.9):
            for i, kind in enumerate(config.kinds):
                pooled = needed[..., i, rule].reshape(len(sizes), -1)
                numbers = np.quantile(pooled, quantile, axis=1)
                quantity = f"cube, {words} rule, N{100 * quantile:.0f}"
                rows.append(
                    Row(
                        f"{quantity}, k = {_span(sizes)}",
                        kind,
                        sizes,
                        numbers,
                        ntk.bootstrap_power_law(sizes, pooled, quantile=quantile),
                        ntk.held_out_errors(
                            sizes, numbers, fitted_up_to=config.cube.fitted_up_to
                        ),
                    )
                )
    for label, table in (
        ("90", published.MEMBERS_FOR_90_PERCENT),
        ("99.9", published.MEMBERS_FOR_99_9_PERCENT),
    ):
        sizes = [k for k in table if k >= 5]
        words = f"published N{label}, one input, k = {_span(sizes)}"
        numbers = [table[k] for k in sizes]
        rows.append(_exact_row(words, "trained", sizes, numbers, FITTED_UP_TO))
    return rows


def ranges(config):
    """Suffix of the stage's arrays, k, and the largest k of the fit, of both ranges."""
    own = config.growth
    return (
        ("", own.num_bits, FITTED_UP_TO),
        ("_large", own.large_bits, LARGE_FITTED_UP_TO),
    )


def _exact_row(quantity, kind, sizes, numbers, last):
    sizes, numbers = np.array(sizes), np.array(numbers, float)
    fit = ntk.fit_power_law(sizes, numbers)
    errors = ntk.held_out_errors(sizes, numbers, fitted_up_to=last)
    return Row(quantity, kind, sizes, numbers, fit, errors)


def _span(sizes):
    return f"{min(sizes)} to {max(sizes)}"


def cube_row(found, kind, *, rule="sign", quantile=0.5) -> Row:
    """The growth of one law on the whole cube."""
    start = f"cube, {rule} rule, N{100 * quantile:.0f},"
    return next(
        row
        for row in found["growth"]
        if row.kind == kind and row.quantity.startswith(start)
    )


def shown_bits(config) -> int:
    """The k whose networks are drawn and described: 8, or the first."""
    sizes = config.networks.num_bits
    return 8 if 8 in sizes else sizes[0]


def medians(found, i, target=0, name="first") -> np.ndarray:
    """Median N over repetitions of one law, `[k]`."""
    return np.median(found["curve"][name][i, target], axis=0)


def distances(config, found, k) -> np.ndarray:
    """Means of networks from the law, in standard errors, `[kind, seed, ones, bit]`."""
    own, away = found["networks"][k], []
    for i, kind in enumerate(config.kinds):
        law = two_layer.law(k, np.minimum(config.networks.ones, k), kind=kind)
        expected = np.stack([law.on_zero, law.on_one], axis=-1)
        away.append((own["mean"][i] - expected) / own["error"][i])
    return np.array(away)


def variance_ratios(config, found, k) -> np.ndarray:
    """Variance of networks over the law's, `[kind, seed, ones]`."""
    own = found["networks"][k]
    ones = np.minimum(config.networks.ones, k)
    laws = np.stack(
        [two_layer.law(k, ones, kind=kind).variance for kind in config.kinds]
    )
    return own["variance"] / laws[:, None]


def sure_shares(config, found, rule=0) -> np.ndarray:
    """Share of draws that are right on the cube at N of the union bound.

    Returns:
        `[kind, delta, k, seed]`.
    """
    needed = np.moveaxis(found["needed"][..., rule], -1, 0)  # [kind, k, seed, draw]
    numbers = found["theory"]["cube_sure"]
    is_right = needed[:, None] <= numbers[..., None, None]
    return is_right.mean(axis=-1)


def log_advantage(found, kind, sizes) -> np.ndarray:
    """Error of k log k minus the least of k and k^2, for one input, `[delta]`."""
    rows = [
        row
        for row in found["growth"]
        if row.kind == kind
        and row.quantity.startswith("one input")
        and row.num_bits.tolist() == list(sizes)
    ]
    return np.array(
        [
            row.errors["k log k"] - min(row.errors["k"], row.errors["k^2"])
            for row in rows
        ]
    )


def slopes_by_seed(config, found, i) -> np.ndarray:
    """Exponent of N50 on the cube from each seed's own draws, `[seed]`."""
    sizes = np.array(config.cube.num_bits)
    numbers = np.median(found["needed"][..., i, 0], axis=2)  # [k, seed]
    return np.array([ntk.fit_power_law(sizes, column).slope for column in numbers.T])


def summarise(config, found) -> dict[str, float]:
    """Flat scalars: a function of the config, without speeds and memory."""
    exact, stream, widths = found["theory"], found["stream"], found["widths"]
    scalars = {"form_error": exact["form_errors"].max()}
    for i, kind in enumerate(config.kinds):
        scalars[f"{kind}_least_f1"] = exact["least_one"][i]
        scalars[f"{kind}_largest_k_f0"] = exact["largest_zero"][i]
        for place, k in enumerate(config.curve.num_bits):
            for j, target in enumerate(config.curve.targets):
                at = f"{kind}_curve_{k}_{100 * target:g}"
                scalars[f"{at}_first"] = medians(found, i, j)[place]
                scalars[f"{at}_stays"] = medians(found, i, j, "stays")[place]
        for k in config.networks.num_bits:
            away = np.abs(distances(config, found, k)[i])
            ratio = variance_ratios(config, found, k)[i]
            scalars[f"{kind}_networks_{k}_largest_z"] = np.nanmax(away)
            scalars[f"{kind}_networks_{k}_variance"] = np.nanmean(ratio)
            scalars[f"{kind}_networks_{k}_rows_right"] = found["networks"][k]["rows"][
                i, :, -1
            ].mean()
        last = config.cube.num_bits[-1]
        gain = midpoint_gain(config, found, kind, last)
        scalars[f"{kind}_midpoint_gain_{last}"] = gain
    for number, row in enumerate(found["growth"]):
        at = f"growth_{number}_{row.kind}"
        scalars |= {f"{at}_slope": row.fit.slope, f"{at}_low": row.fit.low}
        scalars[f"{at}_high"] = row.fit.high
        for law, error in row.errors.items():
            scalars[f"{at}_error_{law.replace(' ', '_')}"] = error
        for k, n in zip(row.num_bits, row.numbers):
            if row.quantity.startswith("cube"):
                scalars[f"{at}_{k}"] = n
    scalars["stream_first_exact"], scalars["stream_stays_exact"] = stream["sign_first"]
    scalars["stream_mean_error"] = stream["mean_error"]
    scalars["stream_variance_ratio"] = stream["variance_ratio"].mean()
    for p, name in enumerate(config.widths.parameterisations):
        for width, drift in zip(config.widths.sizes, widths["drift"][p]):
            scalars[f"drift_{name}_{width}"] = drift.mean()
    for j, width in enumerate(config.widths.sizes):
        scalars[f"width_{width}_f0"], scalars[f"width_{width}_f1"] = widths["mean"][j]
        for place, name in enumerate(("f0", "f1")):
            at = f"width_{width}_{name}_bias"
            scalars[at] = widths["bias"][j, place]
            scalars[f"{at}_error"] = widths["bias_error"][j, place]
    if (fit := bias_fit(config, found)) is not None:
        scalars["width_f1_bias_slope"] = fit.slope
    if (trained := found["trained_task"]) is not None:
        for name in ("largest", "rms", "variance", "right", "stays", "members"):
            for i, kind in enumerate(config.kinds):
                scalars[f"{kind}_trained_task_{name}"] = trained[name][i]
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, found) -> list[dict]:
    """The paper's statements."""

    def about(source, scale, expected):
        return dict(
            paper=PAPER, source=source, certainty="read", scale=scale, expected=expected
        )

    shares, sure = sure_shares(config, found), theory.SURE.index(0.001)
    claims = [
        claim_of_all(
            f"{SLUG}.a: share of infinite ensembles right on all 2^k - 1 inputs at N of"
            f" the union bound for .999, mean over k = {_span(config.cube.num_bits)}",
            parts=[
                Part(kind, shares[i, sure].mean(axis=0), 0.99, is_share=True)
                for i, kind in enumerate(config.kinds)
            ],
            **about("abstract; theorem on all inputs", "full", "tends to 1"),
        )
    ]
    away, ratios = [], []
    for k in config.networks.num_bits:
        away.append(np.nanmax(np.abs(distances(config, found, k)), axis=(0, 2, 3)))
        ratio = np.abs(variance_ratios(config, found, k) - 1)
        ratios.append(np.nanmax(ratio, axis=(0, 2)))
    errors = found["theory"]["form_errors"].max(axis=-1).ravel()
    claims.append(
        claim_of_all(
            f"{SLUG}.b: a Gaussian process whose signs are the permuted bits",
            parts=[
                Part("closed forms minus kernel algebra", errors, 1e-8, "<"),
                Part(
                    "means of trained networks from it, largest, in standard errors",
                    np.max(away, axis=0),
                    4.0,
                    "<",
                ),
                Part(
                    "their variance over its, minus 1, largest",
                    np.max(ratios, axis=0),
                    0.06,
                    "<",
                ),
            ],
            **about("abstract; theorem on the mean", config.scale, "equal"),
        )
    )
    for kind in config.kinds:
        for _, sizes, _ in ranges(config):
            claims.append(
                claim_of_cases(
                    f"{SLUG}.d, {kind}, k = {_span(sizes)}: held-out error of k log k"
                    " minus the least of k and k^2, for every delta",
                    values_by_case=dict(
                        zip(
                            (f"delta {delta:g}" for delta in config.growth.deltas),
                            log_advantage(found, kind, sizes),
                            strict=True,
                        )
                    ),
                    side="<",
                    bound=0.0,
                    **about("abstract: one input", "full", "k log k is nearest"),
                )
            )
    for i, kind in enumerate(config.kinds):
        values = slopes_by_seed(config, found, i)
        claims.append(
            claim(
                f"{SLUG}.e, {kind}: N50 of the whole cube grows like k^2: exponent b"
                " above 2 (undecided with 2 in the interval)",
                values_by_seed=values,
                side=">",
                bound=2.0,
                **about("abstract: all inputs", "full", "2"),
            )
        )
        claims.append(
            claim(
                f"{SLUG}.e, {kind}, as an upper bound N <= c k^2: exponent b below 2",
                values_by_seed=values,
                side="<",
                bound=2.0,
                **about("abstract: all inputs", "full", "at most 2"),
            )
        )
    return claims


def midpoint_gain(config, found, kind, k) -> float:
    """N50 on the cube of the sign rule over that of the midpoint rule."""
    place = config.cube.num_bits.index(k)
    sign, midpoint = (
        cube_row(found, kind, rule=rule).numbers[place] for rule in draws.RULES
    )
    return float(sign / midpoint)


def bias_fit(config, found) -> ntk.PowerLaw | None:
    """How f1's bias of finite width falls with the width; None for fewer than 3."""
    if len(config.widths.sizes) < 3:
        return None
    return ntk.fit_power_law(config.widths.sizes, np.abs(found["widths"]["bias"][:, 1]))
