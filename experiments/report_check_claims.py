"""What `report_check.py` concludes: scalars, claims of the paper, our own checks."""

import numpy as np

from ensjax import scores
from ensjax.experiment import (
    Part,
    check,
    check_at_least,
    check_at_most,
    claim_of_all,
    not_run,
    student_interval,
)

PAPER = "Wu et al. 2023, arXiv:2312.13103"
LEVEL = 0.05  # of McNemar's tests
UNTUNED, FITTED, TUNED = "untuned", "untuned, threshold fitted", "tuned"
KINDS = "untuned, several kinds"
# What the paper says, by the letter of the claim.
STATEMENTS = {
    "a": "instruction tuning raises binary error-checking",
    "b": "among public models LLaVA v1.5 is best at the SIMPLE level",
    "c": "the tuned model exceeds the expert",
    "d": "of 21 cases that a clinician got wrong the ensemble gets 71.4 % right",
    "e": "naming the type of error remains hard",
}


def name_claim(letter: str, what: str) -> str:
    """A claim's name: the paper's statement, and what is measured of it here."""
    return f"radiology-error-check.{letter}: {STATEMENTS[letter]} ({what})"


def domains(config) -> list[str]:
    """Letters of the domains."""
    return [chr(ord("A") + d) for d in range(len(config.reports.prevalence))]


def summarise(config, results) -> dict[str, float]:
    """Flat scalars: means over seeds, by domain."""
    scalars = {}
    for d, letter in enumerate(domains(config)):
        for name, values in results["simple"].items():
            slug = name.replace(", ", "_").replace(" ", "_")
            for key in ("member", "best", "vote", "says_error"):
                scalars[f"{letter}_{slug}_{key}"] = values[key][:, d].mean()
        for key in ("member", "vote", "on_altered"):
            scalars[f"{letter}_kind_{key}"] = results["kind"][key][:, d].mean()
        scalars[f"{letter}_reader"] = results["reader"][:, d].mean()
        for key, values in results["controls"].items():
            if key != "difference":
                scalars[f"{letter}_{key}"] = values[:, d].mean()
    for q, quality in enumerate(config.reader_qualities):
        for who in ("vote", "member"):
            name = f"{who}_against_reader_{quality:g}_mcnemar"
            better, worse = tests_against_reader(results, who, q)
            scalars[f"{name}_better"] = better.mean()
            scalars[f"{name}_worse"] = worse.mean()
    for number, name in enumerate(results["kinds"]):
        own = simple_accuracy(results, KINDS)[..., number]
        scalars[f"kind_{name.replace(', ', '_').replace(' ', '_')}"] = own.mean()
    for key, values in results["alone"].items():
        scalars[f"alone_{key}"] = values.mean()
    return {name: float(value) for name, value in scalars.items()}


def simple_accuracy(results, who: str) -> np.ndarray:
    """Members' accuracies at "is there an error", `[seed, domain, member]`."""
    return results["simple"][who]["members"]


def tests_against_reader(results, who: str, place: int):
    """Whether McNemar's tests find it better, and worse, than a reader of a quality.

    Args:
        results: of `report_check_votes.measure`.
        who: "vote", `[seed, domain]`, or "member", `[seed, domain, member]`.
        place: of the quality.
    """
    p = results["qualities"][f"{who}_p"][place]
    return (p > 0) & (p < LEVEL), (p < 0) & (p > -LEVEL)


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per seed; seeds share nothing."""
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    simple, kind = results["simple"], results["kind"]
    gain = simple[TUNED]["member"] - simple[UNTUNED]["member"]
    claims = []

    def state(letter, parts, *, expected):
        name = f"radiology-error-check.{letter}: {STATEMENTS[letter]}"
        claims.append(claim_of_all(name, parts=parts, expected=expected, **about))

    named = domains(config)
    state(
        "a",
        [
            Part(f"accuracy of tuned minus untuned members, domain {d}", values, 0.0)
            for d, values in zip(named, gain.T, strict=True)
        ],
        expected="> 0 in every domain: +47.4 % (MIMIC-CXR), +25.4 % (IU X-ray)",
    )
    claims.append(
        not_run(
            name_claim("b", "named models are not here; other kinds are ranked"),
            expected="LLaVA v1.5 first",
            **about,
        )
    )
    for who, words in (("vote", "vote"), ("member", "mean tuned member")):
        for q, quality in enumerate(config.reader_qualities):
            text = f"accuracy of the {words} minus a reader of accuracy {quality:g}"
            values = results["qualities"][who][q].mean(axis=-1)
            # Each quality is a statement of its own: the paper knows no reader's.
            state("c", [Part(text, values, 0.0)], expected=0.0167)
    controls = results["controls"]
    state(
        "d",
        [
            Part(
                "vote right where the reader was wrong, minus right on matched"
                f" controls, domain {d}",
                values,
                0.0,
            )
            for d, values in zip(
                named, (controls["vote_wrong"] - controls["vote_matched"]).T
            )
        ],
        expected="71.4 % of 21 cases, no control",
    )
    state(
        "e",
        [
            Part(
                f"accuracy at the type minus accuracy at 'is there one', {who}",
                (kind[who] - simple[TUNED][who]).mean(axis=-1),
                0.0,
                "<",
            )
            for who in ("member", "vote")
        ],
        expected="poor for all models",
    )
    return claims


def make_checks(config, results) -> list[dict]:
    """Our own bounds, all on means over seeds; from the pilot of the plan."""
    simple, kind, alone = results["simple"], results["kind"], results["alone"]
    checks = []

    def least(name, values, bound):
        value = float(np.min(np.mean(values, axis=0)))
        checks.append(check_at_least(name, value, bound))

    tuned, untuned = simple[TUNED], simple[UNTUNED]
    least(
        "tuned minus untuned members, the worse domain",
        tuned["member"] - untuned["member"],
        0.10,
    )
    least(
        "vote minus mean tuned member, the worse domain",
        tuned["vote"] - tuned["member"],
        0.02,
    )
    least(
        "members' 'is there an error' minus the kind of error, the worse domain",
        tuned["member"] - kind["member"],
        0.08,
    )
    width = results["subsets"]["high"] - results["subsets"]["low"]
    name = f"width of the 95 % interval of {config.subset_size} reader-wrong cases"
    least(name, width, 0.30)
    gain = alone["vote"] - alone["member"]
    least("breast cancer: vote minus mean member", gain, 0.02)
    least("breast cancer: vote minus best member", alone["vote"] - alone["best"], -0.04)
    share = float(np.nanmean(alone["vote_wrong"]))
    checks.append(
        check(
            "breast cancer: vote right where the reader was wrong",
            bound=".25 to .80",
            measured=share,
            passed=0.25 <= share <= 0.80,
        )
    )
    difference = alone["vote_wrong"] - alone["member_wrong"]
    interval = student_interval(difference[np.isfinite(difference)])
    low = float("nan") if interval is None else interval[0]
    checks.append(
        check(
            "breast cancer: there, vote minus mean member, lower end of 95 %",
            bound="<= 0",
            measured=low,
            passed=not low > 0,
        )
    )
    wilson = scores.wilson_interval(15, 21)
    error = max(
        abs(float(wilson.low) - WILSON_15_OF_21[0]),
        abs(float(wilson.high) - WILSON_15_OF_21[1]),
    )
    name = "Wilson interval of 15 of 21, distance from the closed form"
    checks.append(check_at_most(name, error, 1e-6))
    differ = int(results["differ"])
    name = "rows whose vote is not the count of the answers that were read"
    checks.append(check(name, bound="0", measured=differ, passed=differ == 0))
    return checks


def _wilson(successes, trials, z=1.959963984540054):
    """The two roots of (p - s)^2 = z^2 p (1 - p) / n in p, in double precision."""
    share = successes / trials
    roots = np.roots([1 + z**2 / trials, -(2 * share + z**2 / trials), share**2])
    return tuple(np.sort(roots.real).tolist())


WILSON_15_OF_21 = _wilson(15, 21)


def rank_kinds(config, results, domain: int) -> list[str]:
    """The kinds of untuned models by mean accuracy over seeds, best first."""
    mean = simple_accuracy(results, KINDS)[:, domain].mean(axis=0)
    return [results["kinds"][place] for place in np.argsort(-mean)]


def describe(config, results, claims, checks) -> str:
    """The summary: what was done, what came out, and what it does not show."""
    simple, kind, controls = results["simple"], results["kind"], results["controls"]

    def by_domain(values, digits=1):
        means = values.mean(axis=0)
        return " and ".join(f"{value:.{digits}%}" for value in means)

    tuned, untuned = simple[TUNED], simple[UNTUNED]
    relative = tuned["member"].mean(axis=0) / untuned["member"].mean(axis=0) - 1
    text = (
        f"{config.num_seeds} seeds of {config.num_members} members on simulated reports"
        f" of {len(domains(config))} domains ({config.reports.num_test:,} test reports"
        " each); reports, images and members are new for every seed. A domain's figures"
        f" stand in order. Is there an error? Untuned members"
        f" {by_domain(untuned['member'])} right, tuned ones"
        f" {by_domain(tuned['member'])} (a relative gain of"
        f" {' and '.join(f'{value:.1%}' for value in relative)}, the paper's are 47.4 %"
        f" and 25.4 %), their vote {by_domain(tuned['vote'])}. The untuned vote says"
        f" 'error' to {by_domain(untuned['says_error'])} of the reports, half of which"
        f" hold one; thresholds from {config.reports.num_labelled} labelled reports"
        f" bring its accuracy from {by_domain(untuned['vote'])} to"
        f" {by_domain(simple[FITTED]['vote'])}. Which error? Members"
        f" {by_domain(kind['member'])}, vote {by_domain(kind['vote'])}, and"
        f" {by_domain(kind['on_altered'])} on altered reports alone. Whoever names the"
        " kind of error has said that there is one, so that the second accuracy is the"
        " lower almost by construction; the distance is what tells."
    )
    is_lower = (controls["difference"][:, 2] < 0).tolist()
    text += (
        f" Of the cases that the simulated reader got wrong"
        f" ({by_domain(1 - results['reader'])} of all) the vote gets"
        f" {by_domain(controls['vote_wrong'])} right, and"
        f" {by_domain(controls['vote_matched'])} of reader-right cases of the same kind"
        " and about the same confidence."
    )
    if all(is_lower):
        text += (
            " So there is no special complementarity: what the reader missed is harder"
            " for the vote too, and a figure like 71 % appears without it."
        )
    elif any(is_lower):
        text += " In one domain only the first is lower."
    else:
        text += " The first is not lower, which speaks for complementarity."
    low, high = (results["subsets"][end].mean() for end in ("low", "high"))
    text += (
        f" {config.subset_size} such cases leave an interval of {low:.0%} to"
        f" {high:.0%}. Readers of set accuracy are the simulated reader with answers"
        " mended or spoilt at random, so that its easy and hard cases stay where they"
        " are."
    )
    counts = []
    for q, quality in enumerate(config.reader_qualities):
        better = [
            tests_against_reader(results, who, q)[0].mean()
            for who in ("vote", "member")
        ]
        counts.append(f"{quality:g}: {better[0]:.0%} and {better[1]:.0%}")
    text += (
        " Share of seeds and domains in which McNemar's test finds the vote, and a"
        f" single tuned member, better than the reader, by the reader's accuracy:"
        f" {'; '.join(counts)}."
    )
    first = [rank_kinds(config, results, d)[0] for d in range(len(domains(config)))]
    text += (
        f" Of {len(results['kinds'])} kinds of untuned models the best is"
        f" {' and '.join(first)}, which says nothing about named public ones."
    )
    failed = [entry["name"] for entry in checks if not entry["pass"]]
    fails = [entry["name"] for entry in claims if entry["verdict"] == "fails"]
    if fails:
        text += f" Claims that fail: {'; '.join(fails)}."
    if failed:
        text += f" Checks that fail: {'; '.join(failed)}."
    return text
