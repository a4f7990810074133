"""Networks trained apart and then aligned: what lies between them in weight space?

Pairs of MLPs of several widths (the path between two), and sets of MLPs and of residual
networks that are aligned jointly (their soup, and the path between every two).
`rebasin_training.py` trains, `_measures.py` aligns and evaluates, `_claims.py` judges,
`_figures.py` draws.
"""

import dataclasses

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "rebasin_training")
measures = load_beside(__file__, "rebasin_measures")
verdicts = load_beside(__file__, "rebasin_claims")
figures = load_beside(__file__, "rebasin_figures")


def validate(config):
    """Raises `ConfigError` for what would fail later, but for files (see `run`)."""
    training.check_config(config)


def training_job(config):
    """The largest part, the residual networks, for `ensjax plan`."""
    job = training.resnet_job(config, training.shapes_of(config.resnet.data))
    return dataclasses.replace(job, stage="resnets")


def run(config, run_dir):
    """Trains, aligns, measures, judges; the same command resumes by stages."""
    for part in ("mlp", "resnet"):
        training.load(config, part)
    stages = {
        f"width-{width}": _width_stage(config, run_dir, width)
        for width in config.mlp.widths
    }
    stages["resnets"] = _resnet_stage(config, run_dir)
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


def _width_stage(config, run_dir, width):
    """Pairs of one width; of the last also pairs without momentum, and the sets."""

    def compute(done):
        del done
        dataset = training.load(config, "mlp")
        job = training.mlp_job(config, width, training.rows_of(dataset))
        ensemble, frozen = training.train(config, run_dir, f"width-{width}", job)
        pairs = np.arange(2 * config.mlp.num_pairs)
        with_momentum, plain = training.num_mlps(config, width)
        found = measures.measure_pairs(config, ensemble.select(pairs), dataset)
        if plain:
            own = ensemble.select(with_momentum + pairs)
            others = measures.measure_pairs(config, own, dataset)
            found |= {f"plain_{name}": value for name, value in others.items()}
            others = measures.measure_sets(
                config,
                ensemble,
                dataset,
                config.mlp.num_members,
                has_statistics=False,
            )
            found |= {f"joint_{name}": value for name, value in others.items()}
        return found | {"frozen_steps": frozen}

    return compute


def _resnet_stage(config, run_dir):
    def compute(done):
        del done
        dataset = training.load(config, "resnet")
        job = training.resnet_job(config, training.rows_of(dataset))
        ensemble, frozen = training.train(config, run_dir, "resnets", job)
        found = measures.measure_sets(
            config,
            ensemble,
            dataset,
            config.resnet.num_members,
            has_statistics=config.resnet.norm == "batch",
        )
        found = {f"joint_{name}": value for name, value in found.items()}
        return found | {"frozen_steps": frozen}

    return compute
