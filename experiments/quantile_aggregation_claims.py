"""What `quantile_aggregation.py` concludes: scalars, claims, checks of our own."""

import numpy as np

from ensjax.experiment import Part, check, claim_of_all, not_run
from ensjax.experiment.fields import load_beside

base = load_beside(__file__, "quantile_aggregation_base")
conformal = load_beside(__file__, "quantile_aggregation_conformal")
measures = load_beside(__file__, "quantile_aggregation_scores")
regimes = load_beside(__file__, "quantile_aggregation_regimes")

PAPER = "Fakoor et al. 2023, arXiv:2103.00083, JMLR 24"
# The step that the claim is about: it uses every training row once.
CONFORMAL_STEP = "cv_plus"


def best_base(pinball, names) -> str:
    """The base model with the lowest mean over seeds on the *test* rows: hindsight."""
    return min(names, key=lambda name: pinball[name].mean())


def validated_base(measured, names) -> np.ndarray:
    """Test pinball of the base model that the validation rows choose, `[seed]`."""
    validation = np.stack([measured["validation_pinball"][name] for name in names])
    test = np.stack([measured["pinball"][name] for name in names])
    return np.take_along_axis(test, validation.argmin(axis=0)[None], axis=0)[0]


def gains(measured, names, kind) -> tuple[np.ndarray, np.ndarray]:
    """Pinball of a kind over the best base model's, and over the average's, minus 1."""
    pinball = measured["pinball"]
    best = pinball[best_base(pinball, names)]
    return pinball[kind] / best - 1, pinball[kind] / pinball[measures.AVERAGE] - 1


def over_sets(results, value) -> np.ndarray:
    """The mean over data sets of `value(set)`, `[seed]`."""
    return np.mean([value(found) for found in results["sets"].values()], axis=0)


def coverage_errors(found, kind, step, nominal) -> np.ndarray:
    """Mean over bands of |coverage - nominal|, `[seed]`."""
    coverage, _ = found["conformal"][kind][step]
    return np.abs(coverage - nominal[None]).mean(axis=1)


def nominal_bands(config) -> np.ndarray:
    """What the central bands should hold, the widest first."""
    levels = base.level_values(config)
    half = len(levels) // 2
    return (levels[::-1] - levels)[:half]


def summarise(config, results) -> dict[str, float]:
    """Means over seeds of every system, by data set."""
    scalars = {}
    nominal = nominal_bands(config)
    for name, found in results["sets"].items():
        kinds, subsets = found["kinds"], found["subsets"]
        for system, values in kinds["pinball"].items():
            scalars[f"{name}_pinball_{system}"] = values.mean()
        chosen = validated_base(kinds, base.NAMES[: base.NUM_MAIN])
        scalars[f"{name}_pinball_best_base_by_validation"] = chosen.mean()
        for field in ("wis", "crps", "crossing_before", "crossing_after"):
            for system, values in kinds[field].items():
                scalars[f"{name}_{field}_{system}"] = values.mean()
        for kind, steps in found["conformal"].items():
            for step, (coverage, width) in steps.items():
                label = f"{name}_{kind}_{step}"
                errors = coverage_errors(found, kind, step, nominal)
                scalars[f"{label}_coverage_error"] = errors.mean()
                # Of the widest band; infinite where there are too few rows for it.
                scalars[f"{label}_widest_coverage"] = coverage[:, 0].mean()
                scalars[f"{label}_widest_width"] = width[:, 0].mean()
        for system, values in subsets["by_count"].items():
            for count, by_seed in zip(config.base_counts, values):
                scalars[f"{name}_pinball_{system}_of_{count}"] = by_seed.mean()
        for system, values in subsets["noise"].items():
            scalars[f"{name}_noise_costs_{system}"] = values.mean()
    if results["regimes"] is not None:
        for system, values in results["regimes"]["pinball"].items():
            scalars[f"two_regimes_pinball_{system}"] = values.mean()
        for kind, values in results["regimes"]["crossing_before"].items():
            scalars[f"two_regimes_crossing_before_{kind}"] = values.mean()
    return {name: float(value) for name, value in scalars.items()}


def make_claims(config, results, split_sizes) -> list[dict]:
    """The paper's statements, one value per split.

    Args:
        config: of the run.
        results: what was measured.
        split_sizes: fitting and test rows of a split; of several data sets those of the
            one with the largest share of test rows.
    """
    main = base.NAMES[: base.NUM_MAIN]

    def state(letter, text, parts, *, expected, source):
        about = dict(
            paper=PAPER,
            source=source,
            certainty="recalled",
            scale=config.scale,
            expected=expected,
        )
        name = f"quantile-aggregation.{letter}: {text}"
        return (
            claim_of_all(name, parts=parts, **about)
            if parts
            else not_run(name, **about)
        )

    def worse_gain(measured, names, kind):
        """Against whichever is better: the best base model or the plain average."""
        return np.maximum(*gains(measured, names, kind))

    where = ", ".join(results["sets"])
    better = [
        Part(
            f"{words(kind)}, {where}; splits share rows",
            over_sets(
                results, lambda found, k=kind: worse_gain(found["kinds"], main, k)
            ),
            0.0,
            "<",
            split_sizes,
        )
        for kind in ("global_fine", "local_fine")
        if kind in config.kinds
    ]
    if results["regimes"] is not None:
        better += [
            Part(
                f"{words(kind)}, two regimes",
                worse_gain(results["regimes"], regimes.NAMES, kind),
                0.0,
                "<",
            )
            for kind in ("global_fine", "local_medium")
        ]
    claims = [
        state(
            "a",
            "pinball of fitted weights over the better of the best base model and the"
            " plain average, minus 1",
            better,
            expected="< 0, global and local (on most of 34 data sets)",
            source="abstract and section 5",
        )
    ]
    rises = [
        np.maximum(m["sort_rise"], m["isotonic_rise"]) for m in _all_measured(results)
    ]
    claims.append(
        state(
            "b",
            "sorting or isotonic projection never raises the pinball sum of a row",
            [Part("the largest rise", np.max(rises, axis=0), 1e-7, "<")],
            expected="<= 0",
            source="section 3, propositions on order",
        )
    )
    nominal, kind = nominal_bands(config), config.conformal_kinds[0]

    def less_error(found):
        before, after = (
            coverage_errors(found, kind, step, nominal)
            for step in ("before", CONFORMAL_STEP)
        )
        return before - after

    crossing = config.kinds[-1]

    def crossings(found, when):
        return found["kinds"][f"crossing_{when}"][crossing]

    def less_crossing(found):
        return crossings(found, "before") - crossings(found, "after")

    note = "; splits share rows"
    claims.append(
        state(
            "c",
            "order and conformal calibration give better intervals",
            [
                Part(
                    "error of coverage before minus after conformal calibration (CV+),"
                    f" {words(kind)} weights, mean over central bands{note}",
                    over_sets(results, less_error),
                    0.0,
                    split_sizes=split_sizes,
                ),
                Part(
                    "share of neighbouring quantiles that cross, before minus after"
                    f" ordering; {words(crossing)} weights{note}",
                    over_sets(results, less_crossing),
                    0.0,
                    split_sizes=split_sizes,
                ),
                Part(
                    f"share that cross after ordering; {words(crossing)} weights{note}",
                    over_sets(results, lambda found: crossings(found, "after")),
                    1e-9,
                    "<",
                    split_sizes,
                ),
            ],
            expected="> 0 for both, and no crossing after",
            source="sections 3 and 4",
        )
    )
    claims.append(
        state(
            "d",
            "base models in any number, through one program",
            [
                Part(
                    "largest difference between a masked and an absent one",
                    absent_differences(results),
                    1e-6,
                    "<",
                )
            ],
            expected="0",
            source="section 2: base models are given",
        )
    )
    return claims


def absent_differences(results) -> np.ndarray:
    """The most that a masked base model differs from an absent one, `[seed]`."""
    found = [own["subsets"]["absent_difference"] for own in results["sets"].values()]
    return np.max(found, axis=0)


def make_checks(config, results) -> list[dict]:
    """Our own bounds, from a pilot run."""
    main, checks = base.NAMES[: base.NUM_MAIN], []

    def bounded(name, value, *, at_most):
        value = float(value)
        bound = f"<= {at_most:g}"
        checks.append(check(name, bound=bound, measured=value, passed=value <= at_most))

    for name, found in results["sets"].items():
        kinds = found["kinds"]
        for kind in ("global_medium", "global_fine"):
            against_best, against_average = gains(kinds, main, kind)
            share = float((against_best < 0).mean())
            checks.append(
                check(
                    f"{name}: splits in which {words(kind)} is below the best base",
                    bound=">= 0.8",
                    measured=share,
                    passed=share >= 0.8,
                )
            )
            bounded(
                f"{name}: pinball of {words(kind)} over the best base's, minus 1",
                against_best.mean(),
                at_most=-0.01,
            )
            bounded(
                f"{name}: pinball of {words(kind)} over the average's, minus 1",
                against_average.mean(),
                at_most=0.0,
            )
        subsets = found["subsets"]
        noise = {k: v.mean() for k, v in subsets["noise"].items()}
        bounded(
            f"{name}: what noise in place of a base model costs global fine",
            noise["global_fine"],
            at_most=0.02,
        )
        bounded(
            f"{name}: the same, over what it costs the average",
            noise["global_fine"] / noise[measures.AVERAGE],
            at_most=1.0,
        )
        bounded(
            f"{name}: one base model, medium: largest difference from it",
            subsets["one_base_difference"],
            at_most=1e-6,
        )
        bounded(
            f"{name}: masked minus absent base models ({_counts(config)} of them),"
            " largest difference of a quantile",
            subsets["absent_difference"].max(),
            at_most=1e-6,
        )
        for kind, steps in found["conformal"].items():
            for step in conformal.STEPS[1:]:
                # The band nearest to 80 %, as in the pilot.
                nominal = nominal_bands(config)
                band = int(np.argmin(np.abs(nominal - 0.8)))
                before, after = (
                    abs(steps[s][0][:, band].mean() - nominal[band])
                    for s in ("before", step)
                )
                bounded(
                    f"{name}: {words(kind)}, |mean coverage - {nominal[band]:.2g}|"
                    f" after {step} minus before",
                    after - before,
                    at_most=0.0,
                )
    for field in ("sort_rise", "isotonic_rise"):
        most = max(m[field].max() for m in _all_measured(results))
        bounded(
            f"{field.split('_')[0]}: the most that it raises a row's pinball sum",
            most,
            at_most=1e-7,
        )
    after = max(
        v.max() for m in _all_measured(results) for v in m["crossing_after"].values()
    )
    bounded("share of crossing neighbours after ordering", after, at_most=0.0)
    if results["regimes"] is not None:
        pinball = results["regimes"]["pinball"]
        bounded(
            "two regimes: local medium over global fine, minus 1, worst seed",
            (pinball["local_medium"] / pinball["global_fine"]).max() - 1,
            at_most=-0.1,
        )
        bounded(
            "two regimes: local medium over the oracle, minus 1, worst seed",
            (pinball["local_medium"] / pinball[measures.ORACLE]).max() - 1,
            at_most=0.03,
        )
    return checks


def describe(config, splits, results, scalars) -> str:
    """The summary: what was done, what came out, and what does not hold."""
    main = base.NAMES[: base.NUM_MAIN]
    name, own = next(iter(splits.items()))
    sizes = [len(own[0].y[part]) for part in ("train", "validation", "test")]
    found = results["sets"][name]
    pinball = found["kinds"]["pinball"]
    best = best_base(pinball, main)
    listed = ", ".join(
        f"{words(kind)} {pinball[kind].mean():.4f}" for kind in config.kinds
    )
    text = (
        f"{config.num_seeds} splits of {', '.join(splits)} ({name}: {sizes[0]}"
        f" training, {sizes[1]} validation and {sizes[2]} test rows);"
        f" {config.num_levels} levels;"
        f" base models {', '.join(words(n) for n in main)}, out of fold in"
        f" {config.base.num_folds} folds. Targets are in units of the training rows'"
        " standard deviation. Aggregators of all kinds, splits and folds are one stack,"
        f" trained for {config.total_steps} steps; the validation rows choose the step."
        f" Mean test pinball on {name}: best base model in hindsight ({words(best)})"
        f" {pinball[best].mean():.4f}, best by validation"
        f" {scalars[f'{name}_pinball_best_base_by_validation']:.4f}, plain average"
        f" {pinball[measures.AVERAGE].mean():.4f}; {listed}."
    )
    worse = [
        words(kind)
        for kind in config.kinds
        if pinball[kind].mean() > pinball[measures.AVERAGE].mean()
    ]
    if worse:
        text += f" Worse than the plain average here: {', '.join(worse)}."
    noise = {k: v.mean() for k, v in found["subsets"]["noise"].items()}
    text += (
        f" Noise in place of one base model (each in turn) raises the pinball of global"
        f" fine by {noise['global_fine']:.1%} and that of the average by"
        f" {noise[measures.AVERAGE]:.1%}."
    )
    nominal, kind = nominal_bands(config), config.conformal_kinds[0]
    errors = {
        step: coverage_errors(found, kind, step, nominal).mean()
        for step in conformal.STEPS
    }
    text += (
        f" Error of the coverage of central bands, {words(kind)}: "
        + ", ".join(f"{words(step)} {error:.3f}" for step, error in errors.items())
        + f" ({sizes[2]} test rows alone give about"
        f" {np.mean(np.sqrt(nominal * (1 - nominal) * 2 / np.pi / sizes[2])):.3f})."
    )
    if results["regimes"] is not None:
        task = results["regimes"]["pinball"]
        listed = ", ".join(
            f"{words(system)} {values.mean():.4f}" for system, values in task.items()
        )
        text += f" Two regimes (ours, {config.two_regimes.num_train} rows): {listed}."
    return text


def _counts(config):
    return ", ".join(map(str, config.base_counts))


def _all_measured(results):
    found = [found["kinds"] for found in results["sets"].values()]
    return found if results["regimes"] is None else [*found, results["regimes"]]


def words(name) -> str:
    """A system's or a step's name as a reader writes it."""
    known = {"cqr": "CQR", "cqr_asymmetric": "asymmetric CQR", "cv_plus": "CV+"}
    return known.get(name, name.replace("_", " "))
