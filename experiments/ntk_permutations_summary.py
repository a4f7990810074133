"""What `ntk_permutations.py` says of itself in words."""

import numpy as np

from ensjax.experiment.fields import load_beside

verdicts = load_beside(__file__, "ntk_permutations_claims")


def _describe_bias(config, found):
    widths, bits = found["widths"], config.widths.num_bits
    biases = ", ".join(
        f"{bias[1]:+.4f} +- {error[1]:.4f} (width {width})"
        for width, bias, error in zip(
            config.widths.sizes, widths["bias"], widths["bias_error"]
        )
    )
    text = (
        f"With the NTK, f1 at two ones and k = {bits} is off the law by {biases}: a"
        " bias of finite width."
    )
    fit = verdicts.bias_fit(config, found)
    if fit is None:
        return text
    return text + (
        f" It falls like the width to the power {fit.slope:.2f}, which is slower than"
        " 1 / width: a unit that is off at a basis vector learns nothing from it, so"
        " that units go off and none goes on. Where it is several standard errors of a"
        " seed's mean, check B sees it."
    )


def describe(config, found) -> str:
    """The summary: what was done, what came out, what it does not show."""
    exact = found["theory"]
    parts = [
        "Closed forms have the values of kernel algebra to"
        f" {exact['form_errors'].max():.1g}, and f0 < 0 < f1 for all m >= 2 and k to"
        f" {config.forms.max_bits}."
    ]
    k = verdicts.shown_bits(config)
    away = np.nanmax(np.abs(verdicts.distances(config, found, k)))
    ratio = verdicts.variance_ratios(config, found, k).mean(axis=1)
    parts.append(
        f"{config.num_seeds} x {config.networks.num_members} networks of width"
        f" {config.networks.width} at k = {k}: means within {away:.1f} standard errors"
        f" of that law, variances {np.nanmin(ratio):.3f} to {np.nanmax(ratio):.3f} of"
        " it."
    )
    parts.append(_describe_bias(config, found))
    if found["trained_task"] is not None:
        own = found["trained_task"]
        shares = ", ".join(
            f"{100 * share:.0f} % of the sums ({kind}; all from N = {stays:.0f} on, by"
            f" the law N = {number:.0f} for the hardest input)"
            for kind, share, stays, number in zip(
                config.kinds, own["right"], own["stays"], own["members"]
            )
        )
        parts.append(
            f"{config.tasks.num_networks} networks of width {config.tasks.width},"
            f" trained to add numbers of {config.tasks.addition_bits} bits, have"
            f" {shares} right."
        )
    for kind in config.kinds:
        row = verdicts.cube_row(found, kind)
        errors = ", ".join(f"{law} {error:.2f}" for law, error in row.errors.items())
        parts.append(
            f"Whole cube, {kind}: N50 {row.numbers[0]:.0f} at k = {row.num_bits[0]} and"
            f" {row.numbers[-1]:.0f} at k = {row.num_bits[-1]}, exponent"
            f" {row.fit.slope:.2f} ({row.fit.low:.2f} to {row.fit.high:.2f}); held-out"
            f" errors {errors}: nearest is {row.nearest}."
        )
    first = f"one input, error {config.growth.deltas[0]:g}"
    for row in found["growth"]:
        if row.quantity.startswith((first, "published")):
            parts.append(
                f"{row.quantity[0].upper()}{row.quantity[1:]}, {row.kind}: exponent"
                f" {row.fit.slope:.2f}, nearest is {row.nearest}."
            )
    first, last = config.cube.num_bits[0], config.cube.num_bits[-1]
    gains = ", ".join(
        f"{verdicts.midpoint_gain(config, found, kind, first):.0f} to"
        f" {verdicts.midpoint_gain(config, found, kind, last):.0f} ({kind})"
        for kind in config.kinds
    )
    laws = "; ".join(
        f"{row.kind} exponent {row.fit.slope:.2f} ({row.fit.low:.2f} to"
        f" {row.fit.high:.2f}), nearest {row.nearest}"
        for row in (
            verdicts.cube_row(found, kind, rule="midpoint") for kind in config.kinds
        )
    )
    hardest = np.unique(np.concatenate([exact["hardest"], exact["hardest_large"]], -1))
    parts.append(
        "Rounding at the midpoint needs fewer networks by a factor that goes from"
        f" {gains} as k goes from {first} to {last}; its N50 on the cube grows too:"
        f" {laws}. The input that needs most has"
        f" {' or '.join(f'{m:.0f}' for m in hardest)} ones, for every k and error; k (k"
        " - 1) / 2 of the 2^k - 1 inputs have two."
    )
    parts.append(
        "So the paper's k^2 for all inputs is a bound that holds and no rate of growth."
        if all(verdicts.cube_row(found, kind).fit.high < 2 for kind in config.kinds)
        else "Whether k^2 is the rate of growth is not decided by these draws."
    )
    parts.append(
        "The published table has one trial for each k; its bound was read off a figure."
    )
    return " ".join(parts)
