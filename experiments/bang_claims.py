"""What `bang.py` concludes: scalars, claims and our own checks."""

import numpy as np

from ensjax.experiment import check, claim
from ensjax.experiment.fields import load_beside

wise = load_beside(__file__, "wise_ft_claims")
training = load_beside(__file__, "wise_ft_training")

PAPER = "Lin et al. 2024, arXiv:2309.17230"
ENDS = {"pretrained": "pre-trained"} | wise.NAMES


def from_one(config) -> int:
    """The place of lambda = 1."""
    return list(config.lambdas).index(1.0)


def falls(config, balance) -> np.ndarray:
    """Smallest fall of accuracy from one lambda to the next above 1, in points."""
    return -100 * np.diff(balance[..., from_one(config) :], axis=-1).max(axis=-1)


def bang_gains(config, tuned) -> dict[str, np.ndarray]:
    """Accuracy at alpha .5 above that of plain fine-tuning, in points, `[seed]`."""
    middle = wise.half(config)
    plain = wise.curve(config, tuned, "plain")[:, middle]
    return {
        recipe: wise.curve(config, tuned, recipe)[:, middle] - plain
        for recipe in config.recipes
        if recipe != "plain"
    }


def even(config, tuned, recipe) -> np.ndarray:
    """Accuracy (%) of both ends' logits added at lambda 1, `[seed]`."""
    place = config.recipes.index(recipe)
    return 100 * tuned["balance"][:, :, place, from_one(config)].mean(axis=1)


def balanced(config, tuned, recipe) -> np.ndarray:
    """The same with each end at a temperature that fits it, `[seed]`."""
    place = config.recipes.index(recipe)
    return 100 * tuned["balanced"][:, :, place].mean(axis=1)


def ends_of(config) -> list[str]:
    """Names of the ends whose calibration is measured, in order."""
    return ["pretrained", *config.recipes]


def summarise(config, done) -> dict[str, float]:
    """Flat scalars: means over seeds; accuracies in per cent."""
    pairs, tuned = done["pairs"], done["tune"]
    frozen = [(part["frozen_steps"] >= 0).sum() for part in done.values()]
    scalars = {"num_members_not_finite": sum(frozen)}
    scalars["pairs_single"] = 100 * pairs["single"].mean()
    for place, x in enumerate(config.lambdas):
        scalars[f"pairs_lambda_{x:g}"] = 100 * pairs["balance"][..., place].mean()
    for number, recipe in enumerate(config.recipes):
        for test in training.TESTS:
            values = wise.curve(config, tuned, recipe, test=test).mean(axis=0)
            for alpha, value in zip(config.alphas, values):
                scalars[f"{recipe}_{test}_{alpha:g}"] = value
        own = wise.parts(config, tuned, recipe)
        middle = wise.half(config)
        scalars[f"{recipe}_gain"] = own.gain[:, middle].mean()
        fixed = own.false_false_true[:, middle].mean()
        scalars[f"{recipe}_false_false_true"] = fixed
        for place, x in enumerate(config.lambdas):
            value = 100 * tuned["balance"][:, :, number, place].mean()
            scalars[f"{recipe}_lambda_{x:g}"] = value
        scalars[f"{recipe}_balanced"] = 100 * tuned["balanced"][:, :, number].mean()
        for place, end in enumerate(("pretrained", "finetuned")):
            value = np.median(tuned["temperatures"][:, :, number, place])
            scalars[f"{recipe}_temperature_{end}"] = value
    for recipe, gain in bang_gains(config, tuned).items():
        scalars[f"{recipe}_minus_plain"] = gain.mean()
    for place, end in enumerate(ends_of(config)):
        for number, test in enumerate(training.TESTS):
            for name in ("ece", "overconfidence"):
                value = tuned[name][number, :, :, place].mean()
                scalars[f"{end}_{test}_{name}"] = value
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, done) -> list[dict]:
    """The paper's statements, one value per seed."""

    def about(source, expected):
        return dict(
            paper=PAPER,
            source=source,
            certainty="recalled",
            scale="toy",
            expected=expected,
            side=">",
            bound=0.0,
        )

    tuned, plain = done["tune"], config.recipes.index("plain")
    over = tuned["overconfidence"][training.TESTS.index("ood")]  # [seed, model, end]
    over = 100 * (over[:, :, 1 + plain] - over[:, :, 0]).mean(axis=1)
    claims = [
        claim(
            "spurious-feature-diversification.d: fall of accuracy from one lambda to"
            f" the next above 1, smallest (points), of {who}",
            values_by_seed=falls(config, balance.mean(axis=1)),
            **about("section on imbalance of confidence", "> 0"),
        )
        for who, balance in (
            (
                f"pairs of equal models, p = {config.pairs.p:g}",
                done["pairs"]["balance"],
            ),
            (
                "the pre-trained model and lambda times the plainly fine-tuned one",
                tuned["balance"][:, :, plain],
            ),
        )
    ] + [
        claim(
            "spurious-feature-diversification.d, over-confidence: mean probability"
            " minus accuracy out of distribution, plainly fine-tuned minus pre-trained"
            " (points)",
            values_by_seed=over,
            **about("section on imbalance of confidence", "> 0"),
        ),
    ]
    for recipe, gain in bang_gains(config, done["tune"]).items():
        claims.append(
            claim(
                f"spurious-feature-diversification.e, {recipe}: accuracy out of"
                " distribution at alpha .5 minus that of plain fine-tuning (points)",
                values_by_seed=gain,
                **about("table of BANG on ImageNet", "about 1 to 2 on average"),
            )
        )
    return claims


def make_checks(config, done) -> list[dict]:
    """Our own bounds, from a pilot on digits."""
    pairs = done["pairs"]
    mean = 100 * pairs["balance"].mean(axis=(0, 1))
    best = float(config.lambdas[int(mean.argmax())])
    fall = float(falls(config, pairs["balance"].mean(axis=(0, 1))))
    last = list(config.lambdas).index(100.0)
    away = float(abs(mean[last] - 100 * pairs["single"].mean()))
    unordered = pairs["balance"].shape[0] * pairs["balance"].shape[1] // 2
    frozen = sum(int((part["frozen_steps"] >= 0).sum()) for part in done.values())
    return [
        check("pairs", bound=">= 4", measured=unordered, passed=unordered >= 4),
        check(
            "pairs: best lambda",
            bound="0.5 to 2",
            measured=best,
            passed=0.5 <= best <= 2,
        ),
        check(
            "pairs: accuracy falls from each lambda to the next, 1 to 100 (points)",
            bound="> 0",
            measured=fall,
            passed=fall > 0,
        ),
        check(
            "pairs: |accuracy at lambda 100 - that of the model it multiplies|",
            bound="<= 0.5",
            measured=away,
            passed=away <= 0.5,
        ),
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0),
    ]


def describe(config, done) -> str:
    """The summary: what was done, what came out, what it does not show."""
    pairs, tuned = done["pairs"], done["tune"]
    mean = 100 * pairs["balance"].mean(axis=(0, 1))
    best, middle = int(mean.argmax()), wise.half(config)
    sentences = [
        f"{config.num_seeds} seeds on scikit-learn's digits amid 32 coloured patches."
        f" Outputs of two equal models (p = {config.pairs.p:g}), the second times"
        f" lambda: {mean[from_one(config)]:.1f} % at lambda 1, the best"
        f" {mean[best]:.1f} % at {config.lambdas[best]:g}, {mean[-1]:.1f} % at"
        f" {config.lambdas[-1]:g}, and {100 * pairs['single'].mean():.1f} % the second"
        " model alone. Either model of a pair is the second one in turn, so that the"
        " curve is the same at lambda and 1 / lambda: its fall from 1 on is what it"
        " shows, not where its best is.",
        "WiSE-FT with four recipes of fine-tuning, out of distribution:",
    ]
    over = tuned["overconfidence"][training.TESTS.index("ood")].mean(axis=(0, 1))
    sentences.append(
        f"the pre-trained model alone has {100 * over[0]:+.1f} points more confidence"
        " than accuracy."
    )
    for number, recipe in enumerate(config.recipes, start=1):
        values = wise.curve(config, tuned, recipe).mean(axis=0)
        curve = 100 * tuned["balance"][:, :, number - 1].mean(axis=(0, 1))
        sentences.append(
            f"{wise.as_start(wise.NAMES[recipe])}: {values[0]:.1f} % before,"
            f" {values[-1]:.1f} % after, {values[middle]:.1f} % at alpha .5; over-"
            f"confidence of the fine-tuned end {100 * over[number]:+.1f} points;"
            f" outputs added at lambda 1 {even(config, tuned, recipe).mean():.1f} %, at"
            f" the best lambda, {config.lambdas[curve.argmax()]:g},"
            f" {curve.max():.1f} %, at temperatures that fit each model"
            f" {balanced(config, tuned, recipe).mean():.1f} %."
        )
    sentences.append(
        "Those temperatures are fitted out of distribution, on the half of the digits"
        " that is not scored."
    )
    gains = bang_gains(config, tuned)
    shown = ", ".join(f"{wise.NAMES[r]} {g.mean():+.1f}" for r, g in gains.items())
    sentences.append(
        f"At alpha .5 against plain fine-tuning (points): {shown}. The recipes also"
        " change the fine-tuned end itself, so that these differences mix its accuracy"
        " with its confidence; the pairs, whose models differ in nothing but lambda, do"
        " not. Strengths (label smoothing"
        f" {config.label_smoothing:g}, Mixup Beta({config.mixup:g}, {config.mixup:g}))"
        " are assumed, since the paper's were not known, and nothing was tuned. All"
        " seeds share their digits; no CLIP model and no ImageNet were used."
    )
    return " ".join(sentences)
