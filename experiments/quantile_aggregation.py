"""Aggregates of quantile regressions against their base models.

On every data set: base models out of fold, aggregators of six kinds as one stack over
kinds, settings, splits and folds, order afterwards, conformal steps, fewer and more
base models, and noise in place of one. Then the task where weights must depend on the
input. Beside it, `quantile_aggregation_base.py` holds base models, `_rows.py` data and
splits, `_training.py` what is trained, `_regimes.py` the task, `_conformal.py` bands,
`_scores.py` measures, `_claims.py` judges and `_figures.py` draws.
"""

import functools
import re

import numpy as np

from ensjax.combine import adaptive_margin, proportional_margin
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages
from ensjax.train.schedule import Schedule

base = load_beside(__file__, "quantile_aggregation_base")
rows = load_beside(__file__, "quantile_aggregation_rows")
training = load_beside(__file__, "quantile_aggregation_training")
regimes = load_beside(__file__, "quantile_aggregation_regimes")
measures = load_beside(__file__, "quantile_aggregation_scores")
verdicts = load_beside(__file__, "quantile_aggregation_claims")
figures = load_beside(__file__, "quantile_aggregation_figures")

DATA = ("diabetes", "csv")
MARGINS = ("single", "adapt", "vec")
ORDERS = ("sort", "isotonic", "cummax")


def run(config, run_dir):
    """Trains base models and aggregators, scores and reports; a killed run resumes."""
    tables = rows.load_tables(config)
    seeds = range(config.num_seeds)
    splits = {
        name: [rows.split_rows(config, name, *table, seed) for seed in seeds]
        for name, table in tables.items()
    }
    stages = {}
    for name in tables:
        own = splits[name]
        for seed in seeds:
            stages[f"base-{name}-{seed}"] = functools.partial(
                _base_stage, config, own[seed], seed
            )
        stages[f"nets-{name}"] = functools.partial(
            _nets_stage, config, own, run_dir, name
        )
        stages[f"kinds-{name}"] = functools.partial(
            _kinds_stage, config, own, run_dir, name
        )
        stages[f"subsets-{name}"] = functools.partial(
            _subsets_stage, config, own, run_dir, name
        )
    if config.two_regimes.num_train:
        stages["regimes"] = functools.partial(_regimes_stage, config, run_dir)
    done = run_stages(run_dir, config, stages)

    results = {"sets": {}, "regimes": None}
    for name in tables:
        own, quantiles = splits[name], _quantiles(config, done, splits[name], name)
        stack = kinds_stack(config, own, quantiles)
        found = done[f"kinds-{name}"]
        results["sets"][name] = {
            "kinds": measures.measure_kinds(
                config, config.kinds, own, _main(quantiles), stack, found
            ),
            "conformal": measures.measure_conformal(config, own, stack, found),
            "subsets": measures.measure_subsets(
                config,
                own,
                quantiles,
                subsets_stack(config, own, quantiles),
                done[f"subsets-{name}"],
            ),
        }
    if config.two_regimes.num_train:
        results["regimes"] = _measure_regimes(config, done["regimes"])

    scalars = verdicts.summarise(config, results)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, splits, results, scalars),
        scalars=scalars,
        claims=verdicts.make_claims(config, results, rows.split_sizes(splits)),
        checks=verdicts.make_checks(config, results),
    )


def kinds_stack(config, splits, quantiles):
    """Every kind, setting, split and fold, on the five main base models."""
    main = _main(quantiles)
    margins = None
    levels = base.level_values(config)
    if config.margin == "adapt":
        margins = np.stack(
            [
                adaptive_margin(
                    main["train"][s], split.y["train"], levels=levels, scale=1
                )
                for s, split in enumerate(splits)
            ]
        )
    elif config.margin == "vec":
        margins = np.stack([proportional_margin(levels, 1.0)] * len(splits))
    return training.Stack(
        training.main_members(config),
        base.NAMES[: base.NUM_MAIN],
        training.make_rows(config, splits, main),
        margins,
    )


def subsets_stack(config, splits, quantiles):
    """Aggregators of some of all base models, and of noise."""
    return training.Stack(
        training.subset_members(config),
        (*base.NAMES, "noise"),
        training.make_rows(config, splits, quantiles),
    )


def _base_stage(config, split, seed, done):
    del done
    return rows.base_quantiles(config, split, seed)


def _nets_stage(config, splits, run_dir, name, done):
    del done
    return base.train_nets(config, splits, run_dir, name)


def _kinds_stage(config, splits, run_dir, name, done):
    quantiles = _quantiles(config, done, splits, name)
    return training.train_stack(
        config,
        kinds_stack(config, splits, quantiles),
        run_dir,
        f"kinds-{name}",
        batch_size=training.BATCHES[config.batch](len(splits[0].y["train"])),
    )


def _subsets_stage(config, splits, run_dir, name, done):
    quantiles = _quantiles(config, done, splits, name)
    return training.train_stack(
        config,
        subsets_stack(config, splits, quantiles),
        run_dir,
        f"subsets-{name}",
        batch_size=training.BATCHES[config.batch](len(splits[0].y["train"])),
    )


def _regimes_stack(config):
    made = [regimes.make_split(config, seed) for seed in range(config.num_seeds)]
    splits = [split for split, _, _ in made]
    quantiles = {
        part: np.stack([known[part] for _, known, _ in made]) for part in rows.PARTS
    }
    members = tuple(
        training.Member(kind, seed, setting)
        for kind in config.two_regimes.kinds
        for seed in range(config.num_seeds)
        for setting in range(len(training.settings_of(config)))
    )
    stack = training.Stack(
        members, regimes.NAMES, training.make_rows(config, splits, quantiles)
    )
    return splits, quantiles, stack, np.stack([truth for _, _, truth in made])


def _regimes_stage(config, run_dir, done):
    del done
    _, _, stack, _ = _regimes_stack(config)
    return training.train_stack(
        config, stack, run_dir, "regimes", batch_size=config.two_regimes.batch_size
    )


def _measure_regimes(config, found):
    splits, quantiles, stack, truth = _regimes_stack(config)
    measured = measures.measure_kinds(
        config, config.two_regimes.kinds, splits, quantiles, stack, found
    )
    levels = base.level_values(config)
    measured["pinball"][measures.ORACLE] = np.array(
        [
            measures.mean_pinball(truth[seed], split.y["test"], levels)
            for seed, split in enumerate(splits)
        ]
    )
    return measured


def _quantiles(config, done, splits, name):
    by_seed = [done[f"base-{name}-{seed}"] for seed in range(len(splits))]
    return rows.join_base(config, splits, by_seed, done[f"nets-{name}"])


def _main(quantiles):
    return {part: values[:, : base.NUM_MAIN] for part, values in quantiles.items()}


def training_job(config):
    """Raises `ConfigError`: what is trained reads what was trained before."""
    raise ConfigError(
        "quantile_aggregation trains its aggregators on quantiles of base models that"
        " the run fits before, so that there is no plan of it."
    )


def validate(config):
    """Raises `ConfigError` for names, numbers and files that cannot work."""
    choose("data.name", config.data.name, dict.fromkeys(DATA))
    choose("batch", config.batch, training.BATCHES)
    choose("margin", config.margin, dict.fromkeys(MARGINS))
    choose("model.order", config.model.order, dict.fromkeys(ORDERS))
    for field, kinds, needed in (
        ("kinds", config.kinds, ("global_medium", "global_fine")),
        ("conformal_kinds", config.conformal_kinds, ()),
        (
            "two_regimes.kinds",
            config.two_regimes.kinds,
            ("global_fine", "local_medium"),
        ),
    ):
        for kind in kinds:
            choose(field, kind, dict.fromkeys(training.KINDS))
        if len(set(kinds)) < len(kinds) or not set(needed) <= set(kinds):
            raise ConfigError(
                f"config.{field} must be different kinds, with {' and '.join(needed)};"
                f" got {tuple(kinds)}."
            )
    if not config.conformal_kinds or set(config.conformal_kinds) - set(config.kinds):
        raise ConfigError(
            "config.conformal_kinds must be some of config.kinds; got"
            f" {tuple(config.conformal_kinds)}."
        )
    check_numbers(
        config,
        (
            "num_seeds",
            "base.num_trees",
            "base.min_leaf",
            "base.boosting_depth",
            "base.num_neighbours",
            "base.net_hidden",
            "base.net_batch_size",
            "model.hidden",
            "predict_batch_size",
            "base_counts",
        ),
        at_least=1,
    )
    check_numbers(config, ("num_levels",), at_least=3)
    check_numbers(config, ("base.num_folds",), at_least=2)
    check_numbers(config, ("base.net_steps",), at_least=4)
    check_numbers(config, ("base_counts",), at_most=len(base.NAMES))
    check_numbers(
        config,
        (
            "seed",
            "patience",
            "weight_decay",
            "search.penalty",
            "search.margin",
            "base.linear_l1",
            "base.ridge",
            "two_regimes.num_train",
            "model.own_level",
            "model.level_block",
        ),
        at_least=0,
    )
    check_numbers(config, ("model.dropout",), at_least=0, below=1)
    check_numbers(config, ("search.learning_rate", "base.net_learning_rate"), above=0)
    check_numbers(config, ("data.test_size", "data.validation_size"), above=0)
    if base.NUM_MAIN not in config.base_counts:
        raise ConfigError(
            f"config.base_counts must hold {base.NUM_MAIN}, the main base models; got"
            f" {tuple(config.base_counts)}."
        )
    if config.base.net_steps % 4:
        raise ConfigError(
            f"config.base.net_steps must be a multiple of 4; got"
            f" {config.base.net_steps}."
        )
    try:
        Schedule.of(
            steps=config.total_steps,
            steps_per_call=config.evaluate_every_steps,
            log_every_steps=config.log_every_steps,
            evaluate_every_steps=config.evaluate_every_steps,
            save_every_steps=config.save_every_steps,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    if config.two_regimes.num_train:
        sizes = ("num_train", "num_validation", "num_test", "batch_size")
        check_numbers(config, [f"two_regimes.{size}" for size in sizes], at_least=1)
        if config.two_regimes.batch_size > config.two_regimes.num_train:
            raise ConfigError(
                "config.two_regimes.batch_size must be at most num_train; got"
                f" {config.two_regimes.batch_size}."
            )
    if config.data.name == "csv" and not config.data.files:
        raise ConfigError(
            "config.data.files names no file: get the regression data sets as CSV"
            " (numbers, one example a line, the target last, a header or none) and pass"
            " --config.data.files=\"('yacht.csv', ...)\". The paper has 8 of UCI"
            " (yacht, boston, energy, concrete, kin8nm, power, naval, protein) and 26"
            " of OpenML."
        )
    for name, (x, y) in rows.load_tables(config).items():
        if not re.fullmatch(r"\w[\w-]*", name):
            raise ConfigError(
                "config.data.files: a file's name becomes that of its stages: letters,"
                f" digits, _ and -; got {name!r}."
            )
        try:
            split = rows.split_rows(config, name, x, y, 0)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.data, {name}: {one_line(error)}") from error
        smallest = len(split.y["train"]) * (1 - 1 / config.base.num_folds)
        if smallest < 2 * config.base.min_leaf:
            raise ConfigError(
                f"config.data: {name} leaves {int(smallest)} rows to train a base model"
                " on, which are too few."
            )
