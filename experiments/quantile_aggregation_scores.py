"""What `quantile_aggregation.py` measures, on test rows, by seed."""

import jax
import numpy as np

from ensjax import combine, scores
from ensjax.experiment.fields import load_beside

base = load_beside(__file__, "quantile_aggregation_base")
conformal = load_beside(__file__, "quantile_aggregation_conformal")
training = load_beside(__file__, "quantile_aggregation_training")

AVERAGE, MEDIAN, ORACLE = "average", "median", "oracle"


def mean_pinball(quantiles, targets, levels) -> float:
    """Over rows and levels, in units of the targets."""
    return float(np.mean(scores.pinball(quantiles, targets, levels=levels)))


def chosen(config, stack, results, kind: str, seed: int, held_out: int = -1) -> int:
    """The place of a kind's member, of the setting with the lowest validation loss."""
    places = {
        (m.kind, m.seed, m.setting, m.held_out): i for i, m in enumerate(stack.members)
    }
    settings = range(len(training.settings_of(config)))
    losses = [
        results["validation_loss"][places[kind, seed, setting, -1]]
        for setting in settings
    ]
    return places[kind, seed, int(np.argmin(losses)), held_out]


def measure_kinds(config, kinds, splits, quantiles, stack, results) -> dict:
    """Scores of base models, of their average and median, and of every kind.

    Args:
        config: of the run.
        kinds: that were trained.
        splits: by seed.
        quantiles: of the base models that were mixed, by part, `[seed, member, ...]`.
        stack, results: what was trained, and what came out.

    Returns:
        "pinball": system to `[seed]`; "validation_pinball" of the base models; and of
        kinds "crossing_before", "crossing_after", "wis", "crps" `[seed]`, "coverage"
        `[seed, level]`, "pinball_by_level" `[seed, level]`, "pit" `[seed, batch]`;
        "sort_rise" and "isotonic_rise" `[seed]`, the most that ordering raises the
        pinball sum of a row.
    """
    levels = base.level_values(config)
    seeds = range(len(splits))
    order = config.model.order
    measured: dict = {
        name: {}
        for name in (
            "pinball",
            "validation_pinball",
            "crossing_before",
            "crossing_after",
            "wis",
            "crps",
            "coverage",
            "pinball_by_level",
            "pit",
        )
    }
    for place, name in enumerate(stack.base_names):
        for field, part in (("pinball", "test"), ("validation_pinball", "validation")):
            measured[field][name] = np.array(
                [
                    mean_pinball(quantiles[part][s, place], splits[s].y[part], levels)
                    for s in seeds
                ]
            )
    systems = {
        AVERAGE: quantiles["test"].mean(axis=1),
        MEDIAN: np.median(quantiles["test"], axis=1),
    }
    raws = []
    for kind in kinds:
        raw = np.stack(
            [results["raw"][chosen(config, stack, results, kind, s)] for s in seeds]
        )
        raws.append(raw)
        systems[kind] = np.asarray(combine.order_quantiles(raw, order, levels=levels))
        measured["crossing_before"][kind] = np.asarray(scores.crossing_rate(raw))
        after = scores.crossing_rate(systems[kind])
        measured["crossing_after"][kind] = np.asarray(after)
    for name, predicted in systems.items():
        targets = [split.y["test"] for split in splits]
        rows = list(zip(predicted, targets))

        def by_seed(score, rows=rows, **options):
            return np.stack([np.asarray(score(q, y, **options)) for q, y in rows])

        by_level = by_seed(scores.pinball, levels=levels)
        measured["pinball_by_level"][name] = by_level
        measured["pinball"][name] = by_level.mean(axis=1)
        measured["wis"][name] = by_seed(scores.weighted_interval_score, levels=levels)
        measured["crps"][name] = by_seed(scores.crps_quantiles, levels=levels)
        measured["coverage"][name] = by_seed(scores.quantile_coverage)
        measured["pit"][name] = by_seed(scores.pit_quantiles, levels=levels)
    rises = [
        ordering_rises([raw[s] for raw in raws], splits[s].y["test"], levels, s)
        for s in seeds
    ]
    measured["sort_rise"] = np.array([sort for sort, _ in rises])
    measured["isotonic_rise"] = np.array([isotonic for _, isotonic in rises])
    return measured


def ordering_rises(raws, targets, levels, seed: int) -> tuple[float, float]:
    """The most that sort and isotonic projection raise the pinball sum of a row.

    Of what aggregators said, and of as many random quantiles, which cross nearly
    everywhere. In float64, so that it is the method that is measured.
    """
    rng = np.random.default_rng(seed)
    stacks = [np.asarray(raw, float) for raw in raws]
    stacks.append(rng.normal(size=stacks[0].shape))
    rises = []
    for order in ("sort", "isotonic"):
        with jax.enable_x64(True):
            own = dict(targets=np.asarray(targets, float), levels=levels)
            sums = [
                [
                    scores.pinball_losses(q, **own).sum(axis=-1)
                    for q in (combine.order_quantiles(raw, order), raw)
                ]
                for raw in stacks
            ]
            rises.append(max(float((after - before).max()) for after, before in sums))
    return rises[0], rises[1]


def measure_conformal(config, splits, stack, results) -> dict:
    """Coverage and width of central bands by kind and step, `[seed, band]`.

    Returns:
        kind, then step of `conformal.STEPS`, to `(coverage, width)`.
    """
    levels, folds = base.level_values(config), range(config.base.num_folds)
    measured: dict = {}
    for kind in config.conformal_kinds:
        by_step: dict = {step: ([], []) for step in conformal.STEPS}
        for seed, split in enumerate(splits):
            places = [chosen(config, stack, results, kind, seed, f) for f in folds]
            train, test = (
                np.sort(results[name][places], axis=-1) for name in ("train_raw", "raw")
            )
            bands = conformal.bands(
                train,
                test,
                split.y["train"],
                split.fold,
                levels,
                provenance=split.provenance("train"),
                test_provenance=split.provenance("test"),
            )
            for step, ends in bands.items():
                coverage, width = conformal.measure(ends, split.y["test"])
                by_step[step][0].append(coverage)
                by_step[step][1].append(width)
        measured[kind] = {
            step: (np.array(coverage), np.array(width))
            for step, (coverage, width) in by_step.items()
        }
    return measured


def measure_subsets(config, splits, quantiles, stack, results) -> dict:
    """Numbers of base models, and what noise in place of one costs.

    Returns:
        "by_count": kind or "average" to `[count, seed]` pinball; "noise": the same
        systems to `[replaced, seed]`, the share that the pinball rises; and
        "absent_difference", "one_base_difference" `[seed]`.
    """
    levels = base.level_values(config)
    main = base.NAMES[: base.NUM_MAIN]
    counts = list(config.base_counts)
    by_count: dict = {}
    noise: dict = {}
    found: dict = {}
    for i, member in enumerate(stack.members):
        q = np.sort(results["raw"][i], axis=-1)
        score = mean_pinball(q, splits[member.seed].y["test"], levels)
        found[member.kind, member.seed, member.bases] = score
        places = [stack.base_names.index(name) for name in member.bases]
        average = quantiles["test"][member.seed][places].mean(axis=0)
        found[AVERAGE, member.seed, member.bases] = mean_pinball(
            average, splits[member.seed].y["test"], levels
        )
    for system in ("global_medium", "global_fine", AVERAGE):
        seeds = range(len(splits))
        by_count[system] = np.array(
            [[found[system, s, base.NAMES[:c]] for s in seeds] for c in counts]
        )
        if base.NUM_MAIN in counts:
            whole = np.array([found[system, s, main] for s in seeds])
            replaced = [
                [
                    found[system, s, tuple(n for n in main if n != name) + ("noise",)]
                    for s in seeds
                ]
                for name in main
            ]
            noise[system] = np.array(replaced) / whole - 1
    by_seed = {
        name: np.array(
            [
                max(
                    results[name][i] for i, m in enumerate(stack.members) if m.seed == s
                )
                for s in range(len(splits))
            ]
        )
        for name in ("absent_difference",)
    }
    medium = [
        results["one_base_difference"][i]
        for i, m in enumerate(stack.members)
        if m.kind == "global_medium"
    ]
    return {
        "by_count": by_count,
        "noise": noise,
        "one_base_difference": float(max(medium)),
        **by_seed,
    }
