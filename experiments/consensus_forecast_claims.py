"""What `consensus_forecast.py` concludes: scalars, claims of the paper, checks."""

import numpy as np

from ensjax.experiment import (
    Part,
    check_at_least,
    check_at_most,
    claim_of_all,
    not_run,
)
from ensjax.experiment.fields import load_beside

measures = load_beside(__file__, "consensus_forecast_scores")
entries = load_beside(__file__, "consensus_forecast_entries")

PAPER = "Marinescu et al. 2020, arXiv:2002.03419"
SYSTEMS = ("mean", "median")  # the consensuses, in words
OUTCOMES = ("diagnosis", "ventricles", "score")
TOP = 0.1  # "near the top": the first tenth of the entries
NUM_ROWS = {"diabetes": 442, "wine": 178}
# What the paper says, by the letter of the claim.
STATEMENTS = {
    "a": "no algorithm is best on diagnosis, cognitive score and ventricle volume",
    "b": "the best entries beat simple baselines by far for diagnosis and ventricles,"
    " but none beats guessing for the cognitive score",
    "c": "mean and median over all entries score near the top on almost every task",
    "d": "better diagnosis forecasts use cerebrospinal fluid and diffusion imaging",
    "e": "better ventricle forecasts use summary statistics such as slopes, extremes",
}


def main_scores(results, task, condition="clean"):
    """The metric that ranks a task's entries, `[seed, entry]`; whether up is good."""
    metrics = results[condition][task]
    name = next(iter(metrics))
    return metrics[name], measures.HIGHER_IS_BETTER[name]


def winners(results):
    """The best entry of each outcome of the study, `[outcome, seed]`; no consensus."""
    found = []
    for outcome in OUTCOMES:
        values, is_higher = main_scores(results, outcome)
        values = values[:, : -len(measures.CONSENSUS)]
        found.append(values.argmax(axis=1) if is_higher else values.argmin(axis=1))
    return np.asarray(found)


def places(ranks):
    """Rank of both consensuses over the number of entries, `[seed, consensus]`."""
    count = len(measures.CONSENSUS)
    return ranks[:, -count:] / (ranks.shape[1] - count)


def top_shares(results, tasks):
    """Share of tasks and conditions with it in the first tenth, `[consensus, seed]`."""
    conditions = [c for c in ("clean", "broken") if results[c]]
    found = np.stack(
        [
            places(results["ranks"][condition][task])
            for condition in conditions
            for task in tasks
        ]
    )
    return (found <= TOP).mean(axis=0).T


def split_sizes(config, task) -> tuple[int, int] | None:
    """Training and test rows where seeds split the same rows; else None.

    Simulated people are drawn anew for every seed.
    """
    if task == "diabetes":
        train = round(config.diabetes.train_share * NUM_ROWS[task])
    elif task == "wine":
        train = config.wine.num_train
    else:
        return None
    return train, NUM_ROWS[task] - train


def overall_ranks(results, condition="clean"):
    """Of entries and consensuses over the three outcomes, `[seed, entry]`."""
    by_outcome = [_rank_among_all(results, task, condition) for task in OUTCOMES]
    return measures.overall_ranks(by_outcome)


def beats_median_entry(results, task):
    """Whether each consensus is better than the median of the members, `[seed, 2]`."""
    values, is_higher = main_scores(results, task)
    count = len(measures.CONSENSUS)
    middle = np.median(values[:, :-count], axis=1, keepdims=True)
    consensus = values[:, -count:]
    return consensus > middle if is_higher else consensus < middle


def feature_effects(results):
    """What the marker and the summary statistics change, `[seed]` each."""
    told = (entries.STUDY_ENTRIES, entries.FEATURE_SETS)
    diagnosis, ventricles = (
        main_scores(results, outcome)[0] for outcome in ("diagnosis", "ventricles")
    )
    effects = {}
    for flag in ("marker", "summary"):
        effects[f"{flag}_mauc"] = measures.pair_effects(diagnosis, *told, flag)[0]
        change, without = measures.pair_effects(ventricles, *told, flag)
        effects[f"{flag}_ventricle_share"] = change / without
    flags = ("marker", "summary")
    for name, values in (("mauc", diagnosis), ("ventricles", ventricles)):
        weights = measures.attribution(values, *told, flags)
        for place, flag in enumerate(flags):
            effects[f"weight_{flag}_{name}"] = weights[:, place]
    return effects


def summarise(config, results):
    """Flat scalars, means over seeds."""
    scalars = {}
    for condition in ("clean", "broken"):
        for task, metrics in results[condition].items():
            ranks = results["ranks"][condition][task]
            for place, system in enumerate(measures.CONSENSUS):
                name = f"{condition}_{task}_{system}"
                scalars[f"{name}_rank"] = ranks[:, place - 2].mean()
                for metric, values in metrics.items():
                    scalars[f"{name}_{metric}"] = values[:, place - 2].mean()
            main, is_higher = main_scores(results, task, condition)
            members = main[:, :-2]
            best = members.max(axis=1) if is_higher else members.min(axis=1)
            worst = members.min(axis=1) if is_higher else members.max(axis=1)
            metric = next(iter(metrics))
            for word, values in (
                ("best", best),
                ("median", np.median(members, axis=1)),
                ("worst", worst),
            ):
                scalars[f"{condition}_{task}_{word}_entry_{metric}"] = values.mean()
            scalars[f"{condition}_{task}_entries"] = members.shape[1]
    for condition in ("clean", "broken"):
        if results[condition]:
            ranks = overall_ranks(results, condition)
            for place, system in enumerate(measures.CONSENSUS):
                name = f"{condition}_overall_{system}_rank"
                scalars[name] = ranks[:, place - 2].mean()
    for condition, values in results["rules"].items():
        for name, mae in zip(measures.RULE_NAMES, values, strict=True):
            scalars[f"{condition}_diabetes_{name.replace(' ', '_')}_mae"] = mae.mean()
    if results["bootstrap"] is not None:
        wins = results["bootstrap"]["wins"].sum(axis=2)
        for place, outcome in enumerate(OUTCOMES):
            scalars[f"entries_above_constant_{outcome}"] = wins[:, place].mean()
        for name, values in feature_effects(results).items():
            scalars[name] = values.mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results):
    """The paper's statements, one value per seed."""
    full = config.data == "tadpole"

    def state(letter, parts, *, expected, source, scale="toy"):
        about = dict(
            paper=PAPER,
            source=source,
            certainty="read",
            scale="full" if full else scale,
            expected=expected,
        )
        name = f"tadpole-consensus.{letter}: {STATEMENTS[letter]}"
        if any(part.values_by_seed is None for part in parts):
            return not_run(f"{name} ({parts[0].text})", **about)
        return claim_of_all(name, parts=parts, **about)

    def top_share(place, words, tasks, sizes):
        note = "" if sizes is None else "; splits share rows, corrected"
        text = f"share of tasks with the {SYSTEMS[place]} in the first tenth, {words}"
        share = top_shares(results, tasks)[place]
        return Part(f"{text}{note}", share, 0.5, split_sizes=sizes, is_share=True)

    distinct = np.asarray([len(set(seed)) for seed in winners(results).T])
    wins = effects = None
    if not full:
        wins = results["bootstrap"]["wins"]
        # The best entry is among those that win, or none does.
        wins = wins[:, :2].any(axis=2).all(axis=1) & ~wins[:, 2].any(axis=1)
        effects = feature_effects(results)
    return [
        state(
            "a",
            [Part("different best entries over the three outcomes", distinct, 1.0)],
            expected="no entry is best on all three (more than 1)",
            source="abstract",
        ),
        state(
            "b",
            [
                Part(
                    "share of cohorts where entries beat the constant on diagnosis and"
                    " ventricles and none does on the score",
                    wins,
                    0.5,
                    is_share=True,
                )
            ],
            expected="so it was in the challenge (1)",
            source="abstract; section 3 (none better than guessing on ADAS-Cog13)",
        ),
        state(
            "c",
            [
                top_share(place, *kind)
                for kind in _kinds_of_tasks(config, results)
                for place in range(len(SYSTEMS))
            ],
            expected="near the top on almost every task",
            source="abstract; table of results (ConsensusMean, ConsensusMedian)",
            scale="reduced",
        ),
        state(
            "d",
            [
                Part(text, None if effects is None else effects[name], 0.0)
                for text, name in (
                    ("change of mAUC with the marker, equal entries", "marker_mauc"),
                    ("the marker's weight for mAUC over entries", "weight_marker_mauc"),
                )
            ],
            expected="> 0",
            source="abstract (cerebrospinal fluid, diffusion imaging)",
        ),
        state(
            "e",
            [
                Part(
                    "relative change of the ventricles' MAE with slope and extremes,"
                    " equal entries",
                    None if effects is None else effects["summary_ventricle_share"],
                    0.0,
                    "<",
                )
            ],
            expected="< 0",
            source="abstract (summary statistics, such as slopes and extremes)",
        ),
    ]


def _kinds_of_tasks(config, results):
    """Words, tasks and sizes of splits: data sets that are split, and cohorts."""
    told = results["ranks"]["clean"]
    kinds = [("three outcomes", OUTCOMES, None)]
    tables = [task for task in told if task not in OUTCOMES]
    if tables:
        # Of wine's splits more rows are tested, and so shared, than of diabetes'.
        widest = max(
            (split_sizes(config, task) for task in tables),
            key=lambda sizes: sizes[1] / sizes[0],
        )
        kinds = [("diabetes and wine, clean and broken", tables, widest),
                 ("three outcomes, clean and broken", OUTCOMES, None)]  # fmt: skip
    return kinds


def make_checks(config, results):
    """Our own bounds; shares of seeds where the pilot counted seeds."""
    if config.data == "tadpole":
        return []
    checks = []

    def at_most(name, value, bound):
        checks.append(check_at_most(name, value, bound))

    def at_least(name, value, bound):
        checks.append(check_at_least(name, value, bound))

    ranks = results["ranks"]["clean"]
    for task, bound in (("diabetes", 6.5), ("wine", 4.0)):
        count = ranks[task].shape[1] - 2
        at_most(
            f"mean rank of the median consensus, {task}, of {count}",
            ranks[task][:, -1].mean(),
            bound,
        )
        better = beats_median_entry(results, task).mean(axis=0)
        for system, share in zip(measures.CONSENSUS, better, strict=True):
            at_least(
                f"share of seeds: {system} beats the median entry, {task}", share, 0.9
            )
    clean, broken = (results["rules"][c] for c in ("clean", "broken"))
    loss = dict(zip(measures.RULE_NAMES, broken.mean(axis=1) / clean.mean(axis=1) - 1))
    at_most("MAE of the median when a fifth is broken, change", loss["median"], 0.03)
    at_least("MAE of the mean when a fifth is broken, change", loss["mean"], 0.5)
    several = np.mean([len(set(seed)) > 1 for seed in winners(results).T])
    at_least("share of cohorts with two or more winners", several, 0.9)
    wins = results["bootstrap"]["wins"].sum(axis=2).mean(axis=0)
    at_least("entries that beat the constant on diagnosis, mean", wins[0], 10)
    at_least("entries that beat the constant on ventricles, mean", wins[1], 10)
    at_most("entries that beat the constant on the score, mean", wins[2], 3)
    for outcome in OUTCOMES:
        # Rank among all: each consensus and 15 entries, and the other consensus.
        middle = (ranks[outcome].shape[1] + 1) / 2
        for place, system in enumerate(measures.CONSENSUS):
            rank = _rank_among_all(results, outcome)[:, place - 2].mean()
            at_most(f"mean rank of {system}, {outcome}, of 17", rank, middle)
    effects = feature_effects(results)
    gains = (effects["marker_mauc"] > 0).mean()
    at_least("share of cohorts where the marker raises mAUC", gains, 0.8)
    side_effect = abs(effects["marker_ventricle_share"].mean())
    at_most("effect of the marker on the ventricles' MAE, relative", side_effect, 0.02)
    cut = (effects["summary_ventricle_share"] <= -0.15).mean()
    at_least("share of cohorts: slope and extremes cut ventricle MAE by 15 %", cut, 0.8)
    far = max(float(value) for value in results["definitions"].values())
    at_most("metrics, ties and unknown truths: distance from their loops", far, 1e-12)
    return checks


def _rank_among_all(results, task, condition="clean"):
    values, is_higher = main_scores(results, task, condition)
    return measures.ranks_among_all(values, higher_is_better=is_higher)


def describe(config, results, scalars):
    """The summary: what was done and what came out, with what does not hold."""
    if config.data == "tadpole":
        count = int(scalars["clean_diagnosis_entries"])
        return (
            f"{count} submissions of the challenge ({len(results['left_out'])} left out"
            " as incomplete), at the visits of D4. One data set says nothing about"
            " others, so that claims stay undecided; ranks are in the tables."
        )
    seeds, cohorts = config.num_seeds, config.simulation.num_seeds
    lines = [
        f"{seeds} splits of diabetes (20 forecasters) and wine (16), {cohorts}"
        f" simulated cohorts of {config.simulation.num_test} people with three"
        " outcomes (15 entries), all of scikit-learn; each task once more with"
        f" {config.broken.share:.0%} of the entries broken. A rank is 1 plus the"
        " entries that are better."
    ]
    for task in results["clean"]:
        count = int(scalars[f"clean_{task}_entries"])
        ranks = [
            scalars[f"{condition}_{task}_{system}_rank"]
            for condition in ("clean", "broken")
            for system in measures.CONSENSUS
        ]
        lines.append(
            f"{task.capitalize()}: mean rank of the mean {ranks[0]:.1f} and of the"
            f" median {ranks[1]:.1f} of {count}; with broken entries {ranks[2]:.1f} and"
            f" {ranks[3]:.1f}."
        )
    mae = {
        name: scalars[f"{name}_mae"]
        for name in (
            "clean_diabetes_best_entry",
            "clean_diabetes_mean",
            "clean_diabetes_median",
            "broken_diabetes_mean",
            "broken_diabetes_median",
        )
    }
    lines.append(
        "Diabetes, MAE: best entry in hindsight {:.1f}, mean {:.1f}, median {:.1f};"
        " with broken entries {:.1f} and {:.1f}.".format(*mae.values())
    )
    above = [scalars[f"entries_above_constant_{outcome}"] for outcome in OUTCOMES]
    lines.append(
        "Entries that beat the constant forecast (Holm, mean over cohorts): diagnosis"
        f" {above[0]:.1f}, ventricles {above[1]:.1f}, score {above[2]:.1f} of"
        f" {len(entries.STUDY_ENTRIES) - 1}."
    )
    overall = [
        scalars[f"{condition}_overall_{system}_rank"]
        for condition in ("clean", "broken")
        for system in measures.CONSENSUS
    ]
    lines.append(
        "Overall, ranked by the sum of the three outcomes' ranks as in the challenge:"
        f" mean {overall[0]:.1f} and median {overall[1]:.1f} of 17; with broken entries"
        f" {overall[2]:.1f} and {overall[3]:.1f}."
    )
    tasks = results["ranks"]["clean"]
    shares = np.mean(
        [top_shares(results, [task]).mean(axis=1) for task in tasks], axis=0
    )
    lines.append(
        f"Over all tasks, clean and broken, the mean is in the first tenth in"
        f" {shares[0]:.0%} and the median in {shares[1]:.0%}: a consensus is a good"
        " choice without hindsight, not the best entry of each task. What marker and"
        " summary statistics add holds by construction of the simulator; it tests the"
        " attribution, not the world. Intervals of entries are their errors on the"
        " training rows, so that those which remember them are too sure."
    )
    return " ".join(lines)
