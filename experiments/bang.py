"""BANG on coloured digits: does calibrated fine-tuning make a better weight average?

Two parts: pairs of equal models whose outputs are added out of balance, and the two
stages of `wise_ft_training.py` with four recipes of fine-tuning. `multicolor_tasks.py`
paints and trains, `_claims.py` judges, `_figures.py` draws.
"""

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

tasks = load_beside(__file__, "multicolor_tasks")
training = load_beside(__file__, "wise_ft_training")
verdicts = load_beside(__file__, "bang_claims")
figures = load_beside(__file__, "bang_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    training.check_config(config)
    tasks.check_training(config, ("pairs.total_steps",))
    check_numbers(config, ("pairs.p",), above=0, at_most=1)
    check_numbers(config, ("pairs.learning_rate",), above=0)
    check_numbers(config, ("pairs.num_members",), at_least=2, at_most=tasks.SEED_STRIDE)
    if config.pairs.num_members % 2:
        raise ConfigError(
            "config.pairs.num_members must be even, since pairs are formed; got"
            f" {config.pairs.num_members}."
        )
    if "plain" not in config.recipes or len(config.recipes) < 2:
        raise ConfigError(
            "config.recipes must hold 'plain', which the others are compared with, and"
            f" one more; got {config.recipes}."
        )
    check_numbers(config, ("lambdas",), above=0)
    lambdas = list(config.lambdas)
    if lambdas != sorted(set(lambdas)) or not {1.0, 100.0} <= set(lambdas):
        raise ConfigError(
            f"config.lambdas must rise and hold 1 and 100; got {config.lambdas}."
        )


def training_job(config):
    """The fine-tuned models of all seeds and recipes, the largest stack of the run."""
    return training.tuning_job(config)


def run(config, run_dir):
    """Trains pairs, then tunes by every recipe, measures, judges; resumes by stages."""

    def tune(done):
        del done
        trained, tuned, tables, frozen = training.train(config, run_dir)
        measured = training.measure(config, trained, tuned, tables)
        measured |= training.measure_ends(config, trained, tuned, tables)
        return measured | {"frozen_steps": frozen}

    stages = {"pairs": lambda done: measure_pairs(config, run_dir), "tune": tune}
    done = run_stages(run_dir, config, stages)
    figures.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def pairs_job(config, centers, tables):
    """Training of the pairs of all seeds, as one stack."""
    count = config.pairs.num_members
    seeds = np.repeat(np.arange(config.num_seeds), count)
    ids = tasks.SEED_STRIDE * seeds + np.tile(np.arange(count), config.num_seeds)
    return tasks.job_of(
        config,
        centers,
        ids,
        tasks.train_colors(config, centers.y_train, tables, 1.0),
        {"learning_rate": config.pairs.learning_rate, "variant": seeds},
        loss=tasks.SQUARED_ERROR,
        make_tx=tasks.adam,
        steps=config.pairs.total_steps,
        stage="pairs",
    )


def measure_pairs(config, run_dir) -> dict[str, np.ndarray]:
    """Pairs of models of one recipe, their outputs added with weights 1 and lambda.

    Returns:
        `balance` `[seed, pair, lambda]`, `single` `[seed, pair]` the accuracy of the
        model that lambda multiplies; both orders of each two models are pairs.
    """
    centers = tasks.load_centers(config, "digits")
    tables = [tasks.permutations(config, seed) for seed in range(config.num_seeds)]
    job, pairs = pairs_job(config, centers, tables), config.pairs
    ensemble, log = tasks.train(job, run_dir)
    seeds = job.hyper["variant"]
    found = {"balance": [], "single": []}
    for seed, table in enumerate(tables):
        images, labels = tasks.test_images(
            config, centers, table, 1 - pairs.p, seed=seed, draws=config.draws
        )
        outputs = tasks.outputs_of(config, ensemble.select(seeds == seed), images)
        swapped = outputs.reshape(-1, 2, *outputs.shape[1:])[:, ::-1]
        swapped = swapped.reshape(outputs.shape)
        found["balance"].append(
            training.balance(outputs, swapped, labels, config.lambdas)
        )
        found["single"].append(tasks.is_right(swapped, labels).mean(axis=-1))
    frozen = np.asarray(log.frozen_steps)
    return {name: np.stack(v) for name, v in found.items()} | {"frozen_steps": frozen}
