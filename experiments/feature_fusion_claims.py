"""What `feature_fusion.py` concludes: scalars, claims of the paper, our checks."""

import math

import numpy as np

from ensjax.experiment import check, claim, not_run, student_interval
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "feature_fusion_scores")

PAPER = "Mungoli 2023, arXiv:2304.02653"
SLUG = "adaptive-feature-fusion"
ADAPTIVE = ("gated", "attention")
RIVALS = (
    measures.BEST,
    measures.HARD,
    measures.SOFT,
    measures.ENTROPY,
    measures.STACK_PROBS,
    "concat",
    "static",
)


def first_condition(config, results, task=None) -> dict:
    """Systems of a task, the first one by default, in its first condition."""
    by_condition = results["tasks"][task or config.tasks[0]]
    return next(iter(by_condition.values()))


def summarise(config, results) -> dict[str, float]:
    """Flat scalars: means over seeds."""
    scalars = {}
    for task, by_condition in results["tasks"].items():
        for condition, systems in by_condition.items():
            for system, metrics in systems.items():
                for metric, values in metrics.items():
                    if np.isfinite(values).all():
                        name = f"{task}_{condition}_{_slug(system)}_{metric}"
                        scalars[name] = values.mean()
    for condition, schedules in results["schedules"].items():
        for schedule, metrics in schedules.items():
            for metric, values in metrics.items():
                scalars[f"schedule_{condition}_{schedule}_{metric}"] = values.mean()
    for schedule, values in results["disagreement"].items():
        scalars[f"schedule_{schedule}_disagreement"] = values.mean()
    for name, values in (results["gate"] or {}).items():
        scalars[f"gate_{name}"] = values.mean()
    scalars["num_members_not_finite"] = results["frozen"]
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value for each seed."""
    about = dict(paper=PAPER, source="abstract", certainty="read", scale=config.scale)
    first = config.tasks[0]
    shared = shared_rows(config, first)
    note = "" if shared is None else "; seeds share rows"
    claims = [
        claim(
            f"{SLUG}.a: accuracy of input-dependent fusion (gate, attention) minus"
            " single models, votes, stacking and plain fusion, the pair with the least"
            f" sure gain{note}",
            values_by_seed=hardest_pair(config, first_condition(config, results))[1],
            bound=0.0,
            expected="> 0 for every rival",
            split_sizes=shared,
            **about,
        )
    ]
    name = f"{SLUG}.b: accuracy of the gate minus concatenation"
    expected = dict(expected="> 0 on images, text and graphs")
    if len(config.tasks) >= 3:
        worst, gain = hardest_task(config, results)
        shared_there = shared_rows(config, worst)
        claims.append(
            claim(
                f"{name} on images, text and graphs, the task with the least sure gain",
                values_by_seed=gain,
                bound=0.0,
                split_sizes=shared_there,
                **expected,
                **about,
            )
        )
    else:
        claims.append(not_run(name, **expected, **about))
    schedules = next(iter(results["schedules"].values()))
    name = (
        f"{SLUG}.c: accuracy of the gate trained in turns with its members minus the"
        " gate over frozen members, equal gradient steps"
    )
    if config.schedules:
        claims.append(
            claim(
                f"{name}{note}",
                values_by_seed=_gain(schedules, "alternating", "frozen"),
                bound=0.0,
                expected="> 0",
                split_sizes=shared,
                **about,
            )
        )
    else:
        claims.append(not_run(name, expected="> 0", **about))
    return claims


def shared_rows(config, task) -> tuple[int, int] | None:
    """Fitting and test rows where all seeds draw them from the same few rows.

    None for tasks that draw new rows for every seed, and for a file, whose rows are the
    same for all.
    """
    if task != "digit_views":
        return None
    return config.num_member + config.num_fusion, config.num_test


def interval_of(config, task, values) -> tuple[float, float] | None:
    """The 95 % interval over seeds of a task's numbers."""
    values, shared = [float(value) for value in values], shared_rows(config, task)
    return student_interval(values, split_sizes=shared)


def hardest_pair(config, systems):
    """The adaptive fusion and rival with the least sure gain, and that by seed.

    Their interval begins lowest: where it begins above 0, those of all pairs do.
    """
    gains = {
        (fusion, rival): _gain(systems, fusion, rival)
        for fusion in ADAPTIVE
        if fusion in systems
        for rival in RIVALS
    }
    pair = min(gains, key=lambda pair: _begin(config, config.tasks[0], gains[pair]))
    return pair, gains[pair]


def hardest_task(config, results):
    """The task whose gain of the gate over concatenation is least sure, and that."""
    gains = {
        task: _gain(first_condition(config, results, task), "gated", "concat")
        for task in config.tasks
    }
    worst = min(gains, key=lambda task: _begin(config, task, gains[task]))
    return worst, gains[worst]


def _begin(config, task, values):
    interval = interval_of(config, task, values)
    return float(values.mean()) if interval is None else interval[0]


def _gain(systems, a, b, metric="accuracy"):
    return systems[a][metric] - systems[b][metric]


def make_checks(config, results) -> list[dict]:
    """Bounds from a pilot on views of digits, and what must always hold."""
    frozen = results["frozen"]
    found = [
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0)
    ]
    if config.tasks[0] != "digit_views" or not config.corruption:
        return found
    systems = first_condition(config, results)
    clean = results["tasks"][config.tasks[0]]["clean"]
    needed = math.ceil(0.7 * config.num_seeds)
    over_static = float(_gain(systems, "gated", "static").mean())
    wins = int((_gain(systems, "gated", "concat") > 0).sum())
    ratio = systems[measures.ENTROPY]["nll"] / systems[measures.SOFT]["nll"]
    softer = float(_gain(systems, measures.SOFT, measures.HARD).mean())
    gate = float((results["gate"]["corrupted"] / results["gate"]["clean"]).mean())
    concat = float(_gain(clean, "concat", "gated").mean())
    over_soft = float(_gain(clean, "concat", measures.SOFT).mean())
    rows = [
        (
            "accuracy, gate - static weights",
            ">= 0.005",
            over_static,
            over_static >= 0.005,
        ),
        (
            f"seeds of {config.num_seeds} where the gate is above concatenation",
            f">= {needed}",
            wins,
            wins >= needed,
        ),
        (
            "largest NLL of the entropy-weighted vote / the soft vote's over seeds",
            "<= 0.8",
            float(ratio.max()),
            float(ratio.max()) <= 0.8,
        ),
        ("accuracy, soft vote - hard vote", ">= 0.08", softer, softer >= 0.08),
        ("gate weight, corrupted / clean view", "<= 0.4", gate, gate <= 0.4),
        (
            "accuracy without corruption, concatenation - gate",
            ">= -0.005",
            concat,
            concat >= -0.005,
        ),
        (
            "accuracy without corruption, concatenation - soft vote",
            "> 0",
            over_soft,
            over_soft > 0,
        ),
    ]
    return found + [
        check(name, bound=bound, measured=measured, passed=passed)
        for name, bound, measured, passed in rows
    ]


def describe(config, results) -> str:
    """The summary: what was done, what came out, what it does not show."""
    systems = first_condition(config, results)

    def shown(names):
        return ", ".join(f"{n} {systems[n]['accuracy'].mean():.3f}" for n in names)

    pair, difference = hardest_pair(config, systems)
    adaptive = [name for name in (*ADAPTIVE, "experts") if name in systems]
    text = (
        f"Three members, one for each view of a row, trained on {config.num_member:,}"
        f" rows; fusions of their features, meta-models and weights fitted on"
        f" {config.num_fusion:,} other rows, {config.num_choice:,} of which choose each"
        f" fusion's ridge, form and step; {config.num_test:,} test rows;"
        f" {config.num_seeds} seeds. Accuracy on {config.tasks[0]}"
        f" ({next(iter(results['tasks'][config.tasks[0]]))}): {shown(adaptive)};"
        f" {shown(RIVALS)}. The input-dependent fusion and the rival that are closest:"
        f" {pair[0]} minus {pair[1]} {difference.mean():+.3f}. NLL (nats): soft vote"
        f" {systems[measures.SOFT]['nll'].mean():.3f}, entropy-weighted"
        f" {systems[measures.ENTROPY]['nll'].mean():.3f}, gate"
        f" {systems['gated']['nll'].mean():.3f}."
    )
    if len(config.tasks) > 1:
        gains = {
            task: _gain(first_condition(config, results, task), "gated", "concat")
            for task in config.tasks
        }
        shown_gains = ", ".join(f"{t} {gain.mean():+.3f}" for t, gain in gains.items())
        text += f" Accuracy of the gate minus concatenation by task: {shown_gains}."
    schedules = next(iter(results["schedules"].values()))
    parts = ", ".join(
        f"{s} {metrics['accuracy'].mean():.3f} (disagreement of its members"
        f" {results['disagreement'][s].mean():.3f})"
        for s, metrics in schedules.items()
    )
    if config.schedules:
        text += (
            f" Schedules at {config.member_steps + config.fusion_steps:,} gradient"
            f" steps: {parts}. Joint training uses all rows for all parts."
        )
    return text + (
        " The paper gives no equations and no tables that were seen: the fusions are"
        " our reading of it, on small data, and detection is left out."
    )


def _slug(text) -> str:
    return text.replace("-", "_").replace(" ", "_")
