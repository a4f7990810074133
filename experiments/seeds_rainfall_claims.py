"""What `seeds_rainfall.py` concludes: scalars, the paper's claim, and our checks."""

import numpy as np

from ensjax.experiment import Part, check, claim_of_all
from ensjax.experiment.claims import check_at_least, check_at_most

PAPER = "Li et al. 2024, Science Advances 10(13), eadk4489, arXiv:2306.14066"
NAMES = {"observations": "targets: observations", "half_half": "targets: half-half"}
# Of the same data, from an independent program: CRPS in mm, with full test years.
KNOWN_RAW, KNOWN_GIVEN, KNOWN_EMOS = 7.076, 9.417, 4.966


def raw_name(found):
    return next(name for name in found["systems"] if name.startswith("raw"))


def emos_name(found):
    """EMOS of as few members as the model is given."""
    return next(name for name in found["systems"] if name.startswith("EMOS"))


def summarise(found):
    """Flat scalars: of generated rain, means over seeds."""
    scalars = {"not_finite": found["not_finite"]}
    every = found["systems"] | {
        NAMES[kind]: {name: value.mean(axis=0) for name, value in scores.items()}
        for kind, scores in found["generated"].items()
    }
    for name, scores in every.items():
        word = name.replace(",", "").replace(": ", " ").replace(" ", "_")
        for score in ("crps", "fair_crps", "bias", "ratio", "unreliability"):
            scalars[f"{word}_{score}"] = float(scores[score])
        for number, skill in enumerate(scores["bss"]):
            scalars[f"{word}_bss_{number}"] = float(skill)
    return scalars


def make_claims(config, found):
    """That post-processing beats the raw ensemble; seeds share the test cases."""
    raw = found["systems"][raw_name(found)]
    own = found["generated"]["half_half"]
    parts = [
        Part("CRPS less that of the raw ensemble", own["crps"] - raw["crps"], 0.0, "<"),
        *(
            Part(
                f"Brier skill at {threshold:g} mm less the raw ensemble's",
                own["bss"][:, number] - raw["bss"][number],
                0.0,
            )
            for number, threshold in enumerate(config.thresholds)
        ),
        Part(
            "unreliability of ranks less the raw ensemble's",
            own["unreliability"] - raw["unreliability"],
            0.0,
            "<",
        ),
    ]
    return [
        claim_of_all(
            "seeds-diffusion-emulation.19.c: post-processing with mixed targets is more"
            " accurate and more reliable than the operational ensemble (seeds share the"
            " test cases)",
            parts=parts,
            paper=PAPER,
            source="results on generative post-processing; abstract",
            certainty="read",
            scale=config.scale,
            expected="better CRPS, Brier score and reliability than GEFS",
        )
    ]


def make_checks(config, found):
    """Bounds of the pilot, on means over seeds; and what was known before."""
    raw, emos = (found["systems"][f(found)] for f in (raw_name, emos_name))
    mixed, plain = (found["generated"][k] for k in ("half_half", "observations"))
    checks = [
        check_at_most("CRPS, half-half, mm", mixed["crps"].mean(), 5.7),
        _positive("Brier skill at 1 mm, half-half", mixed["bss"][:, 0].mean()),
        check_at_most("CRPS, observations, mm", plain["crps"].mean(), 5.2),
        *(
            _positive(f"Brier skill at {t:g} mm, observations", skill)
            for t, skill in zip(config.thresholds, plain["bss"].mean(axis=0))
        ),
        *(
            check_at_most(
                f"CRPS over the raw ensemble's, {NAMES[kind]}",
                scores["crps"].mean() / raw["crps"],
                0.8,
            )
            for kind, scores in found["generated"].items()
        ),
        *(
            check_at_least(
                f"unreliability of the raw ensemble over that, {NAMES[kind]}",
                raw["unreliability"] / scores["unreliability"].mean(),
                5.0,
            )
            for kind, scores in found["generated"].items()
        ),
        check_at_most(
            f"CRPS over that of {emos_name(found)}, {NAMES['observations']}",
            plain["crps"].mean() / emos["crps"],
            1.03,
        ),
        check_at_most("members or samples not finite", found["not_finite"], 0),
    ]
    if not config.num_test and config.num_given == 2:
        given = next(s for n, s in found["systems"].items() if n.startswith("the 2"))
        checks += [
            _near("CRPS of the raw ensemble, mm", raw["crps"], KNOWN_RAW, 5e-4),
            _near("CRPS of the 2 members given, mm", given["crps"], KNOWN_GIVEN, 5e-4),
            # Ours is fitted on five pairs of a case, the known one on one of them.
            check_at_most(
                "CRPS of EMOS of 2, mm, against what is known from elsewhere",
                emos["crps"],
                KNOWN_EMOS,
            ),
        ]
    return checks


def _positive(name, measured):
    return check(name, bound="> 0", measured=measured, passed=measured > 0)


def _near(name, measured, expected, tolerance):
    return check(
        f"{name}, as known from elsewhere",
        bound=f"{expected:g} within {tolerance:g}",
        measured=float(measured),
        passed=abs(float(measured) - expected) <= tolerance,
    )


def describe(config, train, test, found):
    """What was done and what came out, in a paragraph."""
    raw, emos = (found["systems"][f(found)] for f in (raw_name, emos_name))
    words = [
        f"{NAMES[kind]}: CRPS {scores['crps'].mean():.3f} mm, Brier skill"
        f" {scores['bss'].mean(axis=0)[0]:+.3f} at {config.thresholds[0]:g} mm and"
        f" {scores['bss'].mean(axis=0)[-1]:+.3f} at {config.thresholds[-1]:g} mm,"
        f" unreliability {scores['unreliability'].mean():.1f}"
        for kind, scores in found["generated"].items()
    ]
    against = found["against"]["observations", emos_name(found)]
    return (
        f"Denoisers of one number were given {config.num_given} of"
        f" {train.members.shape[1]} GEFS members; {len(train.observed)} cases to"
        f" {train.date[-1]} train, {len(test.observed)} from {test.date[0]} test."
        f" Means over {config.num_seeds} seeds, {config.num_samples} samples a case:"
        f" {'; '.join(words)}. The raw ensemble has {raw['crps']:.3f} mm and"
        f" {np.round(raw['unreliability'], 1)}, {emos_name(found)} {emos['crps']:.3f}"
        f" mm. CRPS of the first seed (observations) less that of {emos_name(found)}:"
        f" {against[0]:+.3f} mm ({against[1]:+.3f} to {against[2]:+.3f}, blocks of"
        f" {config.bootstrap_block_days} dates). Brier skill is against the frequency"
        " in training."
    )
