"""What `wise_ft.py` concludes: scalars, claims and our own checks."""

import jax
import numpy as np

from ensjax import scores
from ensjax.experiment import check, claim
from ensjax.experiment.fields import load_beside

training = load_beside(__file__, "wise_ft_training")

PAPER = "Lin et al. 2024, arXiv:2309.17230"
SPACES = ("weights", *training.OUTPUTS)
NAMES = {
    "plain": "plain fine-tuning",
    "smoothing": "label smoothing",
    "mixup": "Mixup",
    "both": "label smoothing and Mixup",
}


def curve(config, results, recipe, *, space="weights", test="ood") -> np.ndarray:
    """Accuracy (%) along alpha, mean over the models of a seed, `[seed, alpha]`."""
    accuracy = results["accuracy"][SPACES.index(space), training.TESTS.index(test)]
    return 100 * accuracy[:, :, config.recipes.index(recipe)].mean(axis=1)


def parts(config, results, recipe, *, space="weights", test="ood"):
    """Parts of the gain along alpha in points, fields `[seed, alpha]`."""
    table = results["table"][SPACES.index(space), training.TESTS.index(test)]
    table = table[:, :, config.recipes.index(recipe)].mean(axis=1)
    found = jax.device_get(scores.gain_parts(table))
    return scores.GainParts(*(100 * np.asarray(value, float) for value in found))


def half(config) -> int:
    """The place of alpha = .5."""
    return list(config.alphas).index(0.5)


def summarise(config, results, intervals) -> dict[str, float]:
    """Flat scalars: means over seeds; accuracies and shares of rows in per cent."""
    scalars = {"num_members_not_finite": (results["frozen_steps"] >= 0).sum()}
    middle = half(config)
    for number, recipe in enumerate(config.recipes):
        for test in training.TESTS:
            values = curve(config, results, recipe, test=test).mean(axis=0)
            for alpha, value in zip(config.alphas, values):
                scalars[f"{recipe}_{test}_{alpha:g}"] = value
        for space in training.OUTPUTS:
            values = curve(config, results, recipe, space=space)
            scalars[f"{recipe}_ood_{space}"] = values[:, middle].mean()
        own = parts(config, results, recipe)
        for name, value in own._asdict().items():
            scalars[f"{recipe}_{name}"] = value[:, middle].mean()
        scalars[f"{recipe}_best_gain"] = best_gain(config, results, recipe)
        for name, value in zip(("", "_low", "_high"), intervals[number]):
            scalars[f"{recipe}_share{name}"] = value
    return {name: float(value) for name, value in scalars.items()}


def as_start(words: str) -> str:
    """Words as a sentence begins with them; names keep their capitals."""
    return words[0].upper() + words[1:]


def best_gain(config, results, recipe) -> float:
    """The largest accuracy along alpha above the better end, of means over seeds."""
    values = curve(config, results, recipe).mean(axis=0)
    return float(values.max() - max(values[0], values[-1]))


def shares(net, gain) -> np.ndarray:
    """Shares of the gain, NaN (which decides nothing) in a seed that has none."""
    return np.where(gain > 0, net / np.where(gain > 0, gain, 1.0), np.nan)


def make_claims(config, results) -> list[dict]:
    """The paper's statement, one value per seed."""
    claims, middle = [], half(config)
    for recipe in ("mixup", "plain"):
        if recipe not in config.recipes:
            continue
        own = parts(config, results, recipe)
        net = (own.false_false_true - own.true_true_false)[:, middle]
        about = dict(
            paper=PAPER,
            source="section 3 and its figure of False-False-True",
            certainty="recalled",
            scale="toy",
            side=">",
        )
        claims += [
            claim(
                f"spurious-feature-diversification.a, {recipe}: False-False-True minus"
                " True-True-False at alpha .5 (points)",
                expected="> 0",
                values_by_seed=net,
                bound=0.0,
                **about,
            ),
            claim(
                f"spurious-feature-diversification.a, {recipe}, share: that as a share"
                " of the gain over the better end",
                expected="a significant part of the gain",
                values_by_seed=shares(net, own.gain[:, middle]),
                bound=0.2,
                **about,
            ),
        ]
    return claims


def make_checks(config, results) -> list[dict]:
    """Our own bounds, from a pilot with Mixup."""
    own, middle = parts(config, results, "mixup"), half(config)
    best = best_gain(config, results, "mixup")
    fixed = own.false_false_true[:, middle].mean()
    broken = own.true_true_false[:, middle].mean()
    total = own.false_false_true - own.true_true_false + own.followed - own.misled
    identity = float(np.abs(total - own.gain).max())
    frozen = int((results["frozen_steps"] >= 0).sum())
    return [
        check(
            "Mixup: best accuracy along alpha above the better end (points)",
            bound=">= 8",
            measured=best,
            passed=best >= 8,
        ),
        check(
            "Mixup: False-False-True over True-True-False at alpha .5",
            bound=">= 3",
            measured=fixed / broken if broken else np.inf,
            passed=fixed >= 3 * broken,
        ),
        check(
            "|sum of the parts - gain|, largest (points)",
            bound="<= 1e-3",
            measured=identity,
            passed=identity <= 1e-3,
        ),
        check(
            "seeds and pairs (seed, model)",
            bound=">= 5 seeds",
            measured=config.num_seeds * config.num_models,
            passed=config.num_seeds >= 5,
        ),
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0),
    ]


def describe(config, results, intervals) -> str:
    """The summary: what was done, what came out, what it does not show."""
    middle = half(config)
    sentences = [
        f"{config.num_seeds} seeds, {config.num_models} pre-trained model(s) each,"
        " on scikit-learn's digits amid 32 coloured patches: 16 of them tell the class"
        " in pre-training, the other 16 in fine-tuning; out of distribution each does"
        f" with probability {config.ood_agreement:g}."
    ]
    for number, recipe in enumerate(config.recipes):
        values = curve(config, results, recipe).mean(axis=0)
        own = parts(config, results, recipe)
        gain = own.gain[:, middle].mean()
        outputs = [
            curve(config, results, recipe, space=space)[:, middle].mean()
            for space in training.OUTPUTS
        ]
        place = int(values.argmax())
        sentences.append(
            f"{as_start(NAMES[recipe])}: {values[0]:.1f} % before,"
            f" {values[-1]:.1f} % after,"
            f" {values[middle]:.1f} % at alpha .5 (gain over the better end"
            f" {gain:.1f} points), the best at alpha {config.alphas[place]:g} with"
            f" {values[place]:.1f} %; mean of probabilities {outputs[0]:.1f} %, of"
            f" logits {outputs[1]:.1f} %. At alpha .5 both ends are wrong and the"
            f" mixture right on {own.false_false_true[:, middle].mean():.1f} % of the"
            f" rows, and the reverse on {own.true_true_false[:, middle].mean():.1f} %;"
            " it keeps"
            f" {own.followed[:, middle].mean():.1f} % from the worse end and loses"
            f" {own.misled[:, middle].mean():.1f} % of the better."
        )
        if gain > 0:
            share, low, high = intervals[number]
            sentences.append(
                f"Fixed minus broken rows are {share:.2f} of the gain"
                f" ({low:.2f} to {high:.2f}, bootstrap over digits)."
            )
        else:
            sentences.append("There is no gain at alpha .5 to have a share of.")
    sentences.append(
        "All seeds share their digits and the split of them; no CLIP model and no"
        " ImageNet were used."
    )
    return " ".join(sentences)
