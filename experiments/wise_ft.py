"""WiSE-FT on two-stage digits: the path from a pre-trained to a fine-tuned model.

`wise_ft_training.py` trains both stages and evaluates every mixture in one program a
seed; `_claims.py` judges and `_figures.py` draws.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import scores
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "wise_ft_training")
verdicts = load_beside(__file__, "wise_ft_claims")
figures = load_beside(__file__, "wise_ft_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    training.check_config(config)
    check_numbers(config, ("num_resamples",), at_least=10)
    if "mixup" not in config.recipes:
        raise ConfigError(
            "config.recipes must hold 'mixup', the recipe that is judged; got"
            f" {config.recipes}."
        )


def training_job(config):
    """The fine-tuned models of all seeds and recipes, the largest stack of the run."""
    return training.tuning_job(config)


def run(config, run_dir):
    """Trains, tunes, sweeps all mixtures, judges; the same command resumes."""

    def train(done):
        del done
        trained, tuned, tables, frozen = training.train(config, run_dir)
        measured = training.measure(config, trained, tuned, tables)
        return measured | {"frozen_steps": frozen}

    def bootstrap(done):
        return {"share": share_intervals(config, done["train"]["right"])}

    done = run_stages(run_dir, config, {"train": train, "bootstrap": bootstrap})
    results, intervals = done["train"], done["bootstrap"]["share"]
    scalars = verdicts.summarise(config, results, intervals)
    figures.add_tables(run_dir, config, results, intervals)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results, intervals),
        scalars=scalars,
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def share_intervals(config, right) -> np.ndarray:
    """What share of the gain at alpha .5 False-False-True minus True-True-False is.

    Args:
        right: `[3, seed, model, recipe, row]`.

    Returns:
        Estimate and 95 % bootstrap interval over digits, `[recipe, 3]`. All draws of a
        digit's colours are drawn together; seeds are taken as they are.
    """
    digits = right.shape[-1] // config.draws
    groups = jnp.tile(jnp.arange(digits), config.draws)

    def interval(own, key):
        def share(weight):
            table = scores.agreement_table(*own, sample_weight=weight)
            parts = scores.gain_parts(jnp.mean(table, axis=0))
            return (parts.false_false_true - parts.true_true_false) / parts.gain

        found = scores.paired_bootstrap(
            key,
            share,
            right.shape[-1],
            groups=groups,
            num_groups=digits,
            num_resamples=config.num_resamples,
        )
        return jnp.stack([found.estimate, found.low, found.high])

    recipes = np.moveaxis(right, 3, 0)  # [recipe, 3, seed, model, row]
    recipes = recipes.reshape(*recipes.shape[:2], -1, recipes.shape[-1])
    key = jax.random.key(config.seed)
    return np.stack([np.asarray(interval(jnp.asarray(own), key)) for own in recipes])
