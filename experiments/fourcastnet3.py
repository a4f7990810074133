"""FourCastNet 3 at level 1: a small network on the sphere, its calibration and spectra.

Data, training and scores are those of `spherical_noise.py`; `_size.py` splits a step by
latitude and traces one at full size, `_claims.py` judges and `_figures.py` draws.
"""

import numpy as np

from ensjax.experiment.fields import load_beside
from ensjax.experiment.stages import run_stages

base = load_beside(__file__, "spherical_noise")
size = load_beside(__file__, "fourcastnet3_size")
verdicts = load_beside(__file__, "fourcastnet3_claims")
figures = load_beside(__file__, "fourcastnet3_figures")

training = base.training
training_job, validate = training.training_job, base.validate


def run(config, run_dir):
    """Simulates, trains, forecasts, counts and judges; resumes by stages."""
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: base.simulate(config),
        "size": lambda done: count(config, done["simulate"]),
        "emulate": lambda done: base.emulate(config, run_dir, done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def count(config, archive) -> dict[str, np.ndarray]:
    """A step on several devices (`split_*`), and one at full size (`full_*`)."""
    split = size.split_steps(config, archive)
    full = size.full_size_step()
    return {f"split_{name}": value for name, value in split.items()} | {
        f"full_{name}": value for name, value in full.items()
    }
