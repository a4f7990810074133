"""What `recurrent_stacking.py` concludes: scalars, claims of the paper, our checks."""

import numpy as np

from ensjax.experiment import check, claim, not_run, student_interval
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "recurrent_stacking_scores")

PAPER = "Muhammad et al. 2023, arXiv:2307.02858"
SLUG = "face-anti-spoofing-ensemble"
# Videos of the domain left out, in the order O, C, I, M of `config.data.path`.
REPORTED = {"OULU-NPU": 12.23, "Replay-Attack": 11.19, "MSU-MFSD": 3.12}


def by_seed(results, metric, name, left_out, *, frames=None, skip=1) -> np.ndarray:
    """A system's numbers in the jobs that leave a domain out, `[seed]`."""
    frames = results["main_frames"] if frames is None else frames
    values = getattr(results["by_frames"][frames], metric)[name]
    jobs = results["jobs"][frames]
    chosen = [j for j, job in enumerate(jobs) if job[1:] == (left_out, skip)]
    return values[chosen]


def over_domains(results, metric, name) -> np.ndarray:
    """Mean over the domains left out, `[seed]`."""
    domains = range(results["num_domains"])
    return np.mean([by_seed(results, metric, name, d) for d in domains], axis=0)


def skip_curve(config, results, metric="hter", name=measures.STACK) -> dict[str, dict]:
    """A metric where the last domain is left out, `[seed]` by skip.

    At equal frames and at equal duration.
    """
    last = results["num_domains"] - 1
    curve = {"frames": {}, "duration": {}}
    for skip in config.skips:
        lengths = (results["main_frames"], results["num_frames"] // skip)
        for kind, frames in zip(curve, lengths, strict=True):
            curve[kind][skip] = by_seed(
                results, metric, name, last, frames=frames, skip=skip
            )
    return curve


def shared_rows(config, num_domains: int) -> tuple[int, int] | None:
    """Clips that are fitted on and clips that are tested on, of so many domains.

    Every seed deals the same digit images out anew, to the domains and within them in
    proportion to the clips of each part; a number over several domains left out is of
    the test clips of them all. None for features in a file: there every seed has the
    same clips, and differs by its members alone.
    """
    if config.data.name != "simulated":
        return None
    fitted_on = config.data.num_train + config.data.num_dev
    domains = len(config.data.noise_sd)
    # Left out one by one, all domains are fitted on in turns; one is tested on alone.
    fitted = domains if num_domains > 1 else domains - 1
    return fitted * fitted_on, num_domains * config.data.num_test


def interval_of(config, values, num_domains: int) -> tuple[float, float] | None:
    """The 95 % interval over seeds of numbers that are of so many domains left out."""
    values, shared = [float(v) for v in values], shared_rows(config, num_domains)
    return student_interval(values, split_sizes=shared)


def chosen_skips(config, results) -> np.ndarray:
    """The skip above 1 of each seed, at equal duration, that development clips choose.

    By the error rate of the nested stack, whose meta-model was fitted on the other half
    of the development clips; the domain left out is not looked at.
    """
    skips = np.array([skip for skip in config.skips if skip > 1])
    curve = skip_curve(config, results, "eer", measures.STACK_NESTED)["duration"]
    return skips[np.argmin([curve[skip] for skip in skips], axis=0)]


def skip_losses(config, results) -> np.ndarray:
    """HTER at the skip of `chosen_skips` minus that at skip 1, `[seed]`."""
    curve = skip_curve(config, results)["duration"]
    skips = chosen_skips(config, results)
    return np.array([curve[s][i] - curve[1][i] for i, s in enumerate(skips)])


def summarise(config, results) -> dict[str, float]:
    """Flat scalars: means over seeds."""
    scalars = {}
    for name in measures.systems(config):
        for metric in ("hter", "auroc"):
            slug = _slug(name)
            scalars[f"{slug}_{metric}"] = over_domains(results, metric, name).mean()
            for domain in range(results["num_domains"]):
                value = by_seed(results, metric, name, domain).mean()
                scalars[f"{slug}_{metric}_domain_{domain}"] = value
    if len(config.skips) > 1:
        for kind, by_skip in skip_curve(config, results).items():
            for skip, values in by_skip.items():
                scalars[f"stack_hter_skip_{skip}_equal_{kind}"] = values.mean()
        scalars["chosen_skip"] = chosen_skips(config, results).mean()
        scalars["chosen_skip_minus_skip_1"] = skip_losses(config, results).mean()
    scalars["num_members_not_finite"] = results["frozen"]
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results) -> list[dict]:
    """The paper's statements, one value for each seed."""
    about = dict(paper=PAPER, certainty="read", scale=config.scale)
    note = "; seeds draw from the same digit images, corrected"
    if config.data.name != "simulated":
        note = "; all seeds have the same videos"
    skips = dict(
        source="abstract; released scripts (every 30th frame)",
        expected="no loss at lower cost",
    )
    name = (
        f"{SLUG}.a: HTER at a skip above 1, chosen on development clips, minus that at"
        f" skip 1; equal duration (no loss: below {config.skip_margin:g}){note}"
    )
    if len(config.skips) > 1:
        skip_claim = claim(
            name,
            values_by_seed=skip_losses(config, results),
            side="<",
            bound=config.skip_margin,
            split_sizes=shared_rows(config, 1),
            **about,
            **skips,
        )
    else:
        skip_claim = not_run(name, **about, **skips)
    return [
        skip_claim,
        claim(
            f"{SLUG}.b: HTER on an unseen domain, the stack minus each member (here the"
            f" member that it is least surely below){note}",
            values_by_seed=_stack_minus_worst(config, results)[1],
            side="<",
            bound=0.0,
            split_sizes=shared_rows(config, results["num_domains"]),
            expected="< 0 for every member",
            source="abstract; released scripts",
            **about,
        ),
        not_run(
            f"{SLUG}.c: HTER across data sets of licensed videos (%)",
            expected=", ".join(f"{v:g} ({k})" for k, v in REPORTED.items()),
            source="abstract, tables of cross-data-set results",
            **(about | dict(scale="full")),
        ),
    ]


def _stack_minus_worst(config, results):
    """The member whose interval of stack minus member ends highest; that by seed.

    Where it ends below 0, those of all members do.
    """
    stack = over_domains(results, "hter", measures.STACK)
    differences = {
        name: stack - over_domains(results, "hter", name)
        for name in config.architectures
    }

    def end(name):
        values = differences[name]
        interval = interval_of(config, values, results["num_domains"])
        return float(values.mean()) if interval is None else interval[1]

    worst = max(differences, key=end)
    return worst, differences[worst]


def make_checks(config, results) -> list[dict]:
    """Bounds from a pilot on the last domain, and what must always hold."""
    last = results["num_domains"] - 1

    def of(name):
        return by_seed(results, "hter", name, last)

    members = np.array([of(name) for name in config.architectures])
    stack, vote = of(measures.STACK), of(measures.VOTE)
    mean = members.mean(axis=0)
    wins, needed = int((stack < mean).sum()), int(np.ceil(0.75 * config.num_seeds))
    gap = float((mean - stack).mean())
    above_vote = float((vote - mean).mean())
    above_best = float(stack.mean() - members.mean(axis=1).min())
    over_vote = float((stack - vote).mean())
    found = [
        check(
            f"seeds of {config.num_seeds} whose stack has less HTER than its mean"
            " member, last domain",
            bound=f">= {needed}",
            measured=wins,
            passed=wins >= needed,
        ),
        check(
            "HTER of the mean member minus the stack's, last domain",
            bound=">= 0.008",
            measured=gap,
            passed=gap >= 0.008,
        ),
        check(
            "HTER of the mean vote minus the mean member's, last domain",
            bound="<= 0",
            measured=above_vote,
            passed=above_vote <= 0,
        ),
        check(
            "HTER of the stack minus the best member's on average, last domain",
            bound="<= 0.02",
            measured=above_best,
            passed=above_best <= 0.02,
        ),
        check(
            "HTER of the stack minus the mean vote's, last domain",
            bound="<= 0.01",
            measured=over_vote,
            passed=over_vote <= 0.01,
        ),
    ]
    loop, change = results["loop_difference"], results["threshold_change"]
    frozen = results["frozen"]
    found += [
        check(
            "largest difference of any system's HTER or EER from a float64 loop over"
            " thresholds",
            bound="<= 1e-12",
            measured=loop,
            passed=loop <= 1e-12,
        ),
        check(
            "change of the thresholds when test labels are permuted",
            bound="0",
            measured=change,
            passed=change == 0,
        ),
        check("members not finite", bound="0", measured=frozen, passed=frozen == 0),
    ]
    return found


def describe(config, clips, results) -> str:
    """The summary: what was done, what came out, what it does not show."""
    kinds = len(config.architectures)
    trained = kinds * sum(map(len, results["jobs"].values()))
    hter = {
        name: over_domains(results, "hter", name) for name in measures.systems(config)
    }
    members = ", ".join(
        f"{name} {hter[name].mean():.3f}" for name in config.architectures
    )
    worst, difference = _stack_minus_worst(config, results)
    relation = "below" if difference.mean() < 0 else "not below"
    text = (
        f"{trained} recurrent networks ({', '.join(config.architectures)};"
        f" {config.num_seeds} seeds) trained for {config.total_steps:,} steps, each on"
        f" all domains but one; a logistic meta-model on their logits and every"
        f" threshold come from development clips of the same domains. HTER on the"
        f" domain left out, mean over {results['num_domains']} domains and seeds:"
        f" {members}; mean of probabilities {hter[measures.VOTE].mean():.3f}; stack"
        f" {hter[measures.STACK].mean():.3f} (on the sum of the logits"
        f" {hter[measures.STACK_SUM].mean():.3f}; with the threshold on other"
        f" development clips than the meta-model"
        f" {hter[measures.STACK_NESTED].mean():.3f}). On average the stack is"
        f" {relation} {worst}, the member hardest to beat"
        f" ({difference.mean():+.3f})."
    )
    if len(config.skips) > 1:
        curve = skip_curve(config, results)
        largest = max(config.skips)
        frames, duration = (
            ", ".join(f"{s}: {curve[kind][s].mean():.3f}" for s in config.skips)
            for kind in ("frames", "duration")
        )
        processed = results["num_frames"] // largest
        text += (
            f" HTER of the stack on the last domain by skip, at"
            f" {results['main_frames']} frames: {frames}; over all"
            f" {results['num_frames']} frames of time: {duration}. There a skip of"
            f" {largest} processes {processed} frames of {results['num_frames']}."
            " Development clips choose the skip"
            f" {_counted(chosen_skips(config, results))}; it loses"
            f" {skip_losses(config, results).mean():+.3f}."
        )
    if config.data.name == "simulated":
        text += (
            " The clips are simulated: digits carried about or bent, with noise. They"
            " stand in for face videos, whose licences do not let them come along, and"
            " say nothing about the error rates that the paper reports."
        )
    if results["frozen"]:
        text += (
            f" {results['frozen']} members stopped being finite and count as they are."
        )
    return text


def _counted(values) -> str:
    found = sorted(set(values.tolist()))
    return ", ".join(f"{v} in {(values == v).sum()} seeds" for v in found)


def _slug(text) -> str:
    return text.replace(",", "").replace(" ", "_")
