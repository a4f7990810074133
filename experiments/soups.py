"""Model soups on MNIST-5k, and averages along one training run.

Two parts. A sweep of hyperparameters fine-tunes one model of each seed 72 times; the
fine-tunes are averaged in every way, in weights and in outputs, and judged in and out
of distribution. `soups_training.py` trains, `soups_ways.py` chooses on validation rows
and evaluates. `soups_trajectory.py` has the averages along a run; `_claims.py` judges
and `_figures.py` draws.
"""

import numpy as np

from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "soups_training")
ways = load_beside(__file__, "soups_ways")
trajectory = load_beside(__file__, "soups_trajectory")
verdicts = load_beside(__file__, "soups_claims")
figures = load_beside(__file__, "soups_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    training.check_config(config)
    ways.check_config(config)
    trajectory.check_config(config)
    check_numbers(config, ("learned.batch_size",), at_most=config.num_validation)


def training_job(config):
    """The fine-tunes of all seeds, the largest stack of the run."""
    return training.tuning_job(config, training.load_digits(config))[0]


def run(config, run_dir):
    """Trains, averages, judges both parts; the same command resumes by stages."""

    def soups(done):
        del done
        digits = training.load_digits(config)
        base, tuned, search, frozen = training.train(config, digits, run_dir)
        found = measure(config, digits, base, tuned)
        return found | search | {"frozen_steps": frozen}

    def along(done):
        del done
        return trajectory.measure(config, run_dir)

    done = run_stages(run_dir, config, {"soups": soups, "trajectory": along})
    figures.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def measure(config, digits, base, tuned) -> dict[str, np.ndarray]:
    """What `soups_ways.evaluate` gives, with a seed axis in front of each array."""
    kept = digits.split.provenance("validation", trained_on=("pretraining", "train"))
    found = []
    for seed in range(config.num_seeds):
        sets = training.held_out(config, digits, seed)
        members = np.arange(seed * config.num_members, (seed + 1) * config.num_members)
        own = tuned.select(members)
        chosen = ways.choose(config, own, sets["validation"], kept)
        base_of_seed = base.select([seed])
        found.append(ways.evaluate(config, base_of_seed, own, chosen, sets))
    return {name: np.stack([own[name] for own in found]) for name in found[0]}
