"""Consensus of many forecasters, after the TADPOLE challenge.

Collects the forecasts of scikit-learn's estimators (or the challenge's submissions),
breaks a share of them, combines, scores, ranks, and ends in claims and figures. Of the
files `consensus_forecast_*.py`, `entries` forecasts, `tadpole` reads the challenge's
files, `scores` measures (`loops` checks that), `claims` judges and `figures` draws.
"""

import functools
from pathlib import Path

import jax
import numpy as np

from ensjax.data import bootstrap_counts
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.members import member_key

entries = load_beside(__file__, "consensus_forecast_entries")
tadpole = load_beside(__file__, "consensus_forecast_tadpole")
measures = load_beside(__file__, "consensus_forecast_scores")
loops = load_beside(__file__, "consensus_forecast_loops")
verdicts = load_beside(__file__, "consensus_forecast_claims")
figures = load_beside(__file__, "consensus_forecast_figures")

PAPER = "Marinescu et al. 2020, arXiv:2002.03419"
DATA = {"studies": None, "tadpole": None}


def validate(config):
    """Raises `ConfigError` for numbers out of range and for data that are not there."""
    choose("data", config.data, DATA)
    check_numbers(
        config,
        ("num_seeds", "simulation.num_seeds", "num_trees", "num_resamples"),
        at_least=1,
    )
    check_numbers(config, ("diabetes.train_share",), above=0.05, below=0.95)
    check_numbers(config, ("wine.num_train",), at_least=30, at_most=150)
    people = ("simulation.num_train", "simulation.num_test")
    check_numbers(config, people, at_least=50)
    check_numbers(config, ("simulation.visit_years", "simulation.class_edges"))
    positive = (
        "onset_sd",
        "rate_median",
        "rate_log_sd",
        "forecast_years",
        "ventricles.noise_sd",
        "score.noise_sd",
        "score.forecast_noise_sd",
        "marker.noise_sd",
    )
    check_numbers(config, [f"simulation.{name}" for name in positive], at_least=0)
    check_numbers(config, ("broken.share", "trim_share"), at_least=0, below=0.5)
    check_numbers(config, ("broken.constant_sd", "broken.noise_sd"), at_least=0)
    check_numbers(config, ("min_width_sd",), above=0)
    check_numbers(config, ("level",), above=0, below=1)
    check_numbers(config, ("tadpole.min_months",), at_least=1)
    # The smallest p-value is 1 / (resamples + 1), and Holm multiplies it.
    others = len(entries.STUDY_ENTRIES) - 1
    if (config.num_resamples + 1) * config.level <= others:
        raise ConfigError(
            "config.num_resamples is too small for Holm's test of"
            f" {others} entries to reject at config.level={config.level:g}; at least"
            f" {int(others / config.level)} are needed, got {config.num_resamples}."
        )
    years, edges = config.simulation.visit_years, config.simulation.class_edges
    if len(years) < 2 or any(a >= b for a, b in zip(years, years[1:])):
        raise ConfigError(
            f"config.simulation.visit_years must be two or more, rising; got {years}."
        )
    if len(edges) != 2 or edges[0] >= edges[1]:
        raise ConfigError(
            "config.simulation.class_edges must be two numbers, rising (three"
            f" classes); got {edges}."
        )
    if config.data == "tadpole":
        folder, truth = config.tadpole.submissions, config.tadpole.d4
        if not folder or not any(Path(folder).glob("*.csv")) or not truth:
            raise ConfigError(
                "config.tadpole.submissions must be a folder of the challenge's"
                " submissions (.csv) and config.tadpole.d4 its file D4, from"
                " adni.loni.usc.edu after an agreement with ADNI; got"
                f" {folder!r}, {truth!r}."
            )
        if not Path(truth).is_file():
            raise ConfigError(f"config.tadpole.d4: there is no file {truth}.")


def run(config, run_dir):
    """Forecasts, combines, scores and reports; a finished stage is not done again."""
    if config.data == "tadpole":
        stages = {"tadpole": lambda done: _load_tadpole(config)}
    else:
        stages = {
            "diabetes": lambda done: _by_seed(config, entries.forecast_diabetes),
            "wine": lambda done: _by_seed(config, entries.forecast_wine),
            "simulated": lambda done: _by_seed(
                config, entries.forecast_study, config.simulation.num_seeds
            ),
            "bootstrap": lambda done: _bootstrap(config, done["simulated"]),
            "definitions": lambda _: _compare_definitions(config),
        }
    done = run_stages(run_dir, config, stages)
    results = measure(config, done)
    scalars = verdicts.summarise(config, results)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def measure(config, done):
    """All scores and ranks.

    Returns:
        `{"clean", "broken"}`, each task -> metric -> `[seed, entry]`; `"ranks"`, the
        same of the first metric; `"names"` of members by task; and what is measured of
        some tasks alone.
    """
    tasks = _tasks(done)
    results = {"clean": {}, "broken": {}, "ranks": {"clean": {}, "broken": {}}}
    results["rules"] = {}
    results["names"] = {name: task["names"] for name, task in tasks.items()}
    results["bootstrap"] = done.get("bootstrap")
    results["left_out"] = done.get("tadpole", {}).get("left_out", ())
    results["definitions"] = done.get("definitions")
    for name, task in tasks.items():
        for condition in ("clean", "broken"):
            if condition == "broken" and config.data == "tadpole":
                continue  # real entries are broken as it is
            task = _broken(config, task) if condition == "broken" else task
            scored = _score(config, task)
            main = task["metrics"][0]
            results[condition][name] = scored
            results["ranks"][condition][name] = measures.ranks(
                scored[main], higher_is_better=measures.HIGHER_IS_BETTER[main]
            )
            if name == "diabetes":
                rules = measures.score_rules(
                    task["points"], task["targets"], config.trim_share
                )
                results["rules"][condition] = np.asarray(rules, np.float64)
                if condition == "broken":
                    influence = measures.member_influence(task["points"])
                    results["influence"] = np.asarray(influence, np.float64)
                    results["is_broken"] = task["is_broken"]
    return results


def _tasks(done):
    """Every outcome of every data set: forecasts, targets, names and metrics."""
    tasks = {}
    if "diabetes" in done:
        tasks["diabetes"] = dict(done["diabetes"], metrics=measures.POINT_METRICS)
        tasks["wine"] = dict(done["wine"], metrics=measures.CLASS_METRICS)
    study = done["simulated"] if "simulated" in done else done["tadpole"]
    names = study["names"]
    told = {"names": names, "metrics": measures.CLASS_METRICS}
    fields = ("probs", "targets", "weight")
    tasks["diagnosis"] = told | {k: study[k] for k in fields if k in study}
    for outcome in ("ventricles", "score"):
        fields = ("points", "lower", "upper", "targets", "weight")
        own = {k: study[f"{outcome}_{k}"] for k in fields if f"{outcome}_{k}" in study}
        tasks[outcome] = {"names": names, "metrics": measures.POINT_METRICS} | own
    return tasks


def _score(config, task):
    targets = task["targets"]
    weight = task.get("weight", np.ones(targets.shape))
    if "probs" in task:
        systems = measures.class_systems(task["probs"])
        scored = measures.score_classes(systems, targets, weight)
    else:
        systems = measures.point_systems(task["points"], task["lower"], task["upper"])
        width = config.min_width_sd * np.std(targets, axis=1)
        scored = measures.score_points(systems, targets, weight, width)
    # In the task's order, the ranking metric first: programs return names sorted.
    return {name: np.asarray(scored[name], np.float64) for name in task["metrics"]}


def _compare_definitions(config):
    """The largest distance of each metric from its loop, with and without ties."""
    found = [loops.distances(config.seed + t, ties=bool(t)) for t in (0, 1)]
    return {name: np.max([f[name] for f in found]) for name in found[0]}


def _broken(config, task):
    """The task with a share of its entries broken, others in every seed."""
    parts = []
    for seed in range(len(task["targets"])):
        if "probs" in task:
            parts.append(entries.break_probs(config, seed, task["probs"][seed]))
        else:
            own = [task[k][seed] for k in ("points", "lower", "upper", "targets")]
            parts.append(entries.break_points(config, seed, *own))
    names = ("probs",) if "probs" in task else ("points", "lower", "upper")
    whole = zip((*names, "is_broken"), zip(*parts, strict=True), strict=True)
    return dict(task, **{name: np.stack(values) for name, values in whole})


def _by_seed(config, forecast, num_seeds=None):
    num_seeds = config.num_seeds if num_seeds is None else num_seeds
    parts = [forecast(config, seed) for seed in range(num_seeds)]
    names = parts[0]["names"]
    found = {
        key: np.stack([part[key] for part in parts])
        for key in parts[0]
        if key != "names"
    }
    return found | {"names": names}


def _load_tadpole(config):
    paths = config.tadpole
    found = tadpole.load_forecasts(paths.submissions, paths.d4, paths.min_months)
    whole = ("names", "left_out", "people")
    return {k: v if k in whole else v[None] for k, v in found.items()}


def _bootstrap(config, study):
    """Tests of the simulated study's entries against the constant one, by outcome.

    Every seed draws people anew; all entries of a seed see the same draws.
    """
    constant = next(
        place
        for place, (name, _) in enumerate(entries.STUDY_ENTRIES)
        if name == "constant"
    )
    num_seeds, num_people = study["targets"].shape
    draw = jax.vmap(functools.partial(bootstrap_counts, num_examples=num_people))
    found = []
    for seed in range(num_seeds):
        key = member_key(config.seed, "bootstrap", seed)
        counts = draw(jax.random.split(key, config.num_resamples))
        errors = [
            np.abs(study[f"{name}_points"][seed] - study[f"{name}_targets"][seed])
            for name in ("ventricles", "score")
        ]
        draws = measures.bootstrap_study(
            counts, np.log(study["probs"][seed]), study["targets"][seed], *errors
        )
        wins, p_values = measures.beats_constant(draws, constant, config.level)
        tails = np.quantile(np.asarray(draws), (0.025, 0.975), axis=0)
        found.append({"wins": wins, "p_values": p_values, "ends": tails})
    return jax.tree.map(lambda *x: np.stack(x), *found)
