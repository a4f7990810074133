"""Kernels of convolutional nets while they train, and permutations by finite nets.

`ntk_empirical_training.py` trains convolutional nets and measures their kernels,
`ntk_empirical_permutations.py` trains the finite networks of the paper and draws the
oracle's, `_claims.py` judges, `_figures.py` draws.
"""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "ntk_empirical_training")
permutations = load_beside(__file__, "ntk_empirical_permutations")
verdicts = load_beside(__file__, "ntk_empirical_claims")
figures = load_beside(__file__, "ntk_empirical_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    training.check_config(config)
    permutations.check_config(config)


def training_job(config):
    """The largest networks of the permutations, for `ensjax plan`."""
    return permutations.largest_job(config)


def run(config, run_dir):
    """Trains, measures, judges; the same command resumes by stages."""
    stages = {
        case.name: lambda done, case=case: permutations.measure(config, case)
        for case in permutations.cases(config)
    }
    for width in config.cnn.widths:
        stages[f"cnn-{width}"] = _cnn_stage(config, run_dir, width)
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


def _cnn_stage(config, run_dir, width):
    def compute(done):
        del done
        dataset = training.load(config)
        snapshots, frozen = training.train(config, run_dir, width, dataset)
        found = training.measure(config, snapshots, dataset)
        return found | {"frozen_steps": np.asarray(frozen)}

    return compute
