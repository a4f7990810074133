"""What `multicolor_mnist.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check, claim
from ensjax.experiment.fields import load_beside

theory = load_beside(__file__, "multicolor_mnist_theory")

PAPER = "Lin et al. 2024, arXiv:2309.17230"
# Accuracy (%) on MultiColorMNIST by p, recalled: mean of two models, and their pair.
PAPER_P = (0.70, 0.75, 0.80, 0.85, 0.90)
PAPER_SINGLE = (71.41, 60.41, 48.915, 37.335, 26.32)
PAPER_PAIR = (78.64, 67.61, 55.25, 42.34, 29.28)


def gains(own, prefix="") -> np.ndarray:
    """Pair minus mean of its two models, in points, `[p, seed, pair]`."""
    single = own[prefix + "single"]
    return 100 * (own[prefix + "pair"] - (single[..., 0::2] + single[..., 1::2]) / 2)


def at_p(config, p) -> int | None:
    """The place of `p` in the config, or None."""
    near = np.isclose(config.p, p)
    return int(near.argmax()) if near.any() else None


def summarise(config, results, known) -> dict[str, float]:
    """Flat scalars: means over seeds and pairs, accuracies and gains in per cent."""
    scalars = {
        "theory_error_of_forms": _form_errors(known).max(),
        "theory_simulation_errors": _simulation_errors(known).max(),
    }
    for name, own in results.items():
        scalars[f"{name}_id"] = 100 * own["id"].mean()
        scalars[f"{name}_not_finite"] = (own["frozen_steps"] >= 0).sum()
        for i, p in enumerate(config.p):
            at = f"{name}_{p:g}"
            scalars[f"{at}_single"] = 100 * own["single"][i].mean()
            scalars[f"{at}_pair"] = 100 * own["pair"][i].mean()
            scalars[f"{at}_gain"] = gains(own)[i].mean()
            scalars[f"{at}_false_false_true"] = 100 * own["both_wrong"][i].mean()
            scalars[f"{at}_true_true_false"] = 100 * own["both_right"][i].mean()
            scalars[f"{at}_largest_ensemble"] = 100 * own["by_size"][i, :, -1].mean()
            scalars[f"{at}_control_single"] = 100 * own["control_single"][i].mean()
            scalars[f"{at}_control_gain"] = gains(own, "control_")[i].mean()
    return {name: float(value) for name, value in scalars.items()}


def _form_errors(known):
    return np.abs(known["enumerated"] - known["closed"]).max(axis=1)


def _simulation_errors(known):
    """Largest distance of simulation and formula in standard errors, `[seed]`."""
    away = np.abs(known["simulated"] - known["many"][..., None]) / known["error"]
    return away.max(axis=(0, 1))


def make_claims(config, results, known) -> list[dict]:
    """The paper's statements, one value per seed."""

    def about(source, certainty, scale, expected):
        return dict(
            paper=PAPER,
            source=source,
            certainty=certainty,
            scale=scale,
            expected=expected,
        )

    forms = about("toy of section 4", "recalled", "full", "equal")
    claims = [
        claim(
            "spurious-feature-diversification.b: |enumerated accuracy - closed form| of"
            " single and averaged linear models, one value for each p",
            values_by_seed=_form_errors(known),
            side="<",
            bound=1e-12,
            **forms,
        ),
        claim(
            "spurious-feature-diversification.b, many features: largest distance of a"
            " simulation from F_p(z), in standard errors",
            values_by_seed=_simulation_errors(known),
            side="<",
            bound=3.0,
            **about("propositions of section 4", "recalled", "full", "equal"),
        ),
    ]
    for name, own in results.items():
        claims += [
            claim(
                f"spurious-feature-diversification.c, {name}: pair minus single"
                f" accuracy (points), smallest over p of {_range(config)}",
                values_by_seed=gains(own).mean(axis=-1).min(axis=0),
                side=">",
                bound=0.0,
                **about("table of MultiColorMNIST", "recalled", config.scale, "3 to 7"),
            ),
            claim(
                f"spurious-feature-diversification.c, {name}, one colour: that gain,"
                " largest absolute value over p",
                values_by_seed=np.abs(gains(own, "control_").mean(axis=-1)).max(axis=0),
                side="<",
                bound=0.3,
                **about("SingleColor control", "recalled", config.scale, "0"),
            ),
        ]
    return claims


def _range(config):
    return f"{min(config.p):g} to {max(config.p):g}"


def make_checks(config, results) -> list[dict]:
    """Our own bounds, from a pilot on digits."""
    found = []
    for name, own in results.items():
        found += _checks_of_set(config, name, own)
    return found


def _checks_of_set(config, name, own):
    def one(label, bound, measured, passed):
        return check(f"{name}: {label}", bound=bound, measured=measured, passed=passed)

    gain, checks = gains(own), []
    number = gain.shape[1] * gain.shape[2]
    enough = number >= 8 and gain.shape[1] >= 3
    checks.append(one("pairs, over at least 3 seeds", ">= 8", number, enough))
    for p, (low, high) in {0.7: (4, 10), 0.9: (1, 5)}.items():
        if (i := at_p(config, p)) is not None:
            value, bound = gain[i].mean(), f"{low} to {high}"
            label = f"gain at p = {p:g} (points)"
            checks.append(one(label, bound, value, low <= value <= high))
    if (i := at_p(config, 0.7)) is not None:
        least = gain[i].min()
        checks.append(one("smallest gain of a pair, p = .7", "> 0", least, least > 0))
    wrong = 100 * own["both_wrong"].mean(axis=(1, 2))
    right = 100 * own["both_right"].mean(axis=(1, 2))
    checks.append(
        one(
            "False-False-True (%), smallest over p",
            ">= 0.5",
            wrong.min(),
            wrong.min() >= 0.5,
        )
    )
    ratio = (right / wrong).max() if wrong.min() > 0 else np.inf
    checks.append(
        one(
            "True-True-False over False-False-True, largest over p",
            "< 0.1",
            ratio,
            ratio < 0.1,
        )
    )
    control = np.abs(gains(own, "control_").mean(axis=(1, 2))).max()
    label = "gain with one colour (points), largest over p"
    checks.append(one(label, "< 0.3", control, control < 0.3))
    sizes = own["by_size"].mean(axis=1)  # [p, size]
    if sizes.shape[1] > 1:
        step = 100 * np.diff(sizes, axis=1).min()
        label = "accuracy of ensembles of 1, 2, 4, ... members: smallest rise (points)"
        checks.append(one(label, "> 0", step, step > 0))
    places = [(i, at_p(config, p)) for i, p in enumerate(PAPER_P)]
    away = [
        abs(100 * own["single"][j].mean() - PAPER_SINGLE[i])
        for i, j in places
        if j is not None
    ]
    if away:
        label = "single accuracy against the paper's (points), largest over p"
        checks.append(one(label, "<= 5", max(away), max(away) <= 5))
    broken = int((own["frozen_steps"] >= 0).sum())
    checks.append(one("members not finite", "0", broken, broken == 0))
    return checks


def describe(config, results, known) -> str:
    """The summary: what was done, what came out, what it does not show."""
    parts = [
        "Features that vote, enumerated, have the accuracy of the closed forms to"
        f" {_form_errors(known).max():.1g}; 200,000 features, simulated, that of"
        f" F_p(z) to {_simulation_errors(known).max():.2g} standard errors or less.",
        f"{config.num_seeds} seeds, each with its own permutations of colours.",
    ]
    for name, own in results.items():
        count = own["single"].shape[1] * own["single"].shape[2]
        first, last = 0, len(config.p) - 1
        gain, control = gains(own).mean(axis=(1, 2)), gains(own, "control_")
        numbers = [
            f"p = {config.p[i]:g}: {100 * own['single'][i].mean():.1f} % alone,"
            f" {100 * own['pair'][i].mean():.1f} % as pairs (gain {gain[i]:.2f} points)"
            for i in sorted({first, last})
        ]
        sizes = own["by_size"].shape[2]
        parts.append(
            f"{name}, {count} models: {'; '.join(numbers)}; all {2 ** (sizes - 1)} of a"
            f" seed together {100 * own['by_size'][first, :, -1].mean():.1f} % at p ="
            f" {config.p[first]:g}. In distribution {100 * own['id'].mean():.1f} %."
            f" With one colour the gain is at most"
            f" {np.abs(control.mean(axis=(1, 2))).max():.2f} points in size."
        )
    if "mnist5k" in results:
        parts.append(
            "mnist5k has 4,000 training digits where the paper's table, which was"
            " recalled and not read, has 50,000."
        )
    parts.append("All seeds share their digits and the split of them.")
    return " ".join(parts)
