"""Four models of one base, each fine-tuned on one domain, merged into one model.

`merge_domains_training.py` has the digits, domains and training,
`merge_domains_methods.py` the merges and their grids; `_scores.py` reads accuracies,
`_claims.py` judges, `_figures.py` draws.
"""

import functools

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "merge_domains_training")
methods = load_beside(__file__, "merge_domains_methods")
verdicts = load_beside(__file__, "merge_domains_claims")
figures = load_beside(__file__, "merge_domains_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    training.check_config(config)
    methods.check_grids(config)
    check_numbers(config, ("statistic_rows",), at_least=0)
    check_numbers(config, ("conflict_density",), above=0, at_most=1)
    if "mean" not in config.grids or len(config.grids) < 2:
        raise ConfigError(
            "config.grids must hold 'mean', which the others are compared with, and one"
            f" more; got {', '.join(config.grids)}."
        )


def training_job(config):
    """The members of all seeds and domains, the largest stack of the run."""
    return training.tuning_job(config, training.load_rows(config))


def run(config, run_dir):
    """Trains all seeds, merges by every method, judges; resumes by stages."""
    rows = training.load_rows(config)

    @functools.cache
    def trained():
        return training.train(config, run_dir, rows)

    def train(done):
        del done
        base, members, frozen = trained()
        taus = training.task_vectors(base, members)
        conflicts = [
            training.sign_conflicts(taus, density)
            for density in (1.0, config.conflict_density)
        ]
        return training.measure_references(config, rows, base, members) | {
            "cosines": training.cosines(taus),
            "conflicts": np.stack(conflicts),
            "leaves": np.asarray(list(taus)),
            "frozen_steps": frozen,
        }

    @functools.cache
    def statistics(kind):
        _, members, _ = trained()
        return methods.statistics_of(kind, members, training.own_rows(config, rows))

    @functools.cache
    def scored():
        parts = [rows.parts[part] for part in training.PARTS]
        return tuple(
            (np.stack([training.views_of(x) for x in images]), labels)
            for images, labels in parts
        )

    def merge(name, done):
        del done
        base, members, _ = trained()
        own = statistics(methods.METHODS[name].statistics)
        found = methods.measure(config, name, base, members, own, scored())
        return {"accuracy": found}

    stages = {"train": train}
    for name in config.grids:
        stages[f"merge-{name}"] = functools.partial(merge, name)
    done = run_stages(run_dir, config, stages)
    merged = {name: done[f"merge-{name}"]["accuracy"] for name in config.grids}
    done = {"train": done["train"], "merge": merged}
    figures.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )
