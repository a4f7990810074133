"""What `report_check.py` concludes: scalars, claims of the paper, our own checks."""

import numpy as np

from ensjax import scores
from ensjax.experiment import check, claim, not_run, student_interval

PAPER = "Wu et al. 2023, arXiv:2312.13103"
DOMAINS = "AB"
UNTUNED, FITTED, TUNED = "untuned", "untuned, threshold fitted", "tuned"


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
    for key, values in results["alone"].items():
        scalars[f"alone_{key}"] = values.mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value per seed."""
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    simple, kind = results["simple"], results["kind"]
    gain = simple[TUNED]["member"] - simple[UNTUNED]["member"]
    claims = []

    def state(letter, text, values, *, side=">", bound=0.0, expected):
        name = f"radiology-error-check.{letter}: {text}"
        claims.append(
            claim(
                name,
                values_by_seed=values,
                side=side,
                bound=bound,
                expected=expected,
                **about,
            )
        )

    named = domains(config)
    paper_gain = ("+47.4 % (MIMIC-CXR)", "+25.4 % (IU X-ray)")
    for d, letter in enumerate(named):
        text = f"tuned minus untuned members, accuracy, domain {letter}"
        expected = paper_gain[d] if d < len(paper_gain) else "> 0"
        state("a", text, gain[:, d], expected=expected)
    claims.append(
        not_run(
            "radiology-error-check.b: LLaVA v1.5 is the best public model (named models"
            " are not here; the report ranks untuned members)",
            expected="LLaVA v1.5 first",
            **about,
        )
    )
    for q, quality in enumerate(config.reader_qualities):
        text = f"mean tuned member minus a reader of accuracy {quality:g}, accuracy"
        values = results["qualities"]["member"][q].mean(axis=-1)
        state("c", text, values, expected=0.0167)
    controls = results["controls"]
    for d, letter in enumerate(named):
        text = (
            "vote right where the reader was wrong, minus the matched control, domain"
            f" {letter}"
        )
        values = (controls["vote_wrong"] - controls["vote_matched"])[:, d]
        state("d", text, values, expected="71.4 % of 21 cases, no control")
    for who in ("member", "vote"):
        text = f"accuracy of the kind of error minus that of 'is there one', {who}"
        values = (kind[who] - simple[TUNED][who]).mean(axis=-1)
        state("e", text, values, side="<", expected="poor for all models")
    return claims


def make_checks(config, results) -> list[dict]:
    """Our own bounds, all on means over seeds; from the pilot of the plan."""
    simple, kind, alone = results["simple"], results["kind"], results["alone"]
    checks = []

    def least(name, values, bound):
        value = float(np.min(np.mean(values, axis=0)))
        text = f">= {bound:g}"
        checks.append(check(name, bound=text, measured=value, passed=value >= bound))

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
    checks.append(
        check(
            "Wilson interval of 15 of 21, distance from the closed form",
            bound="<= 1e-6",
            measured=error,
            passed=error <= 1e-6,
        )
    )
    return checks


def _wilson(successes, trials, z=1.959963984540054):
    """The two roots of (p - s)^2 = z^2 p (1 - p) / n in p, in double precision."""
    share = successes / trials
    roots = np.roots([1 + z**2 / trials, -(2 * share + z**2 / trials), share**2])
    return tuple(np.sort(roots.real).tolist())


WILSON_15_OF_21 = _wilson(15, 21)


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
        f" {by_domain(kind['on_altered'])} on altered reports alone."
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
    failed = [entry["name"] for entry in checks if not entry["pass"]]
    fails = [entry["name"] for entry in claims if entry["verdict"] == "fails"]
    if fails:
        text += f" Claims that fail: {'; '.join(fails)}."
    if failed:
        text += f" Checks that fail: {'; '.join(failed)}."
    return text
