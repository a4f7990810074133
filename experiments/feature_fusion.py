"""Do learned weights of members' features beat votes, stacking and the best member?

For each task three members, one for each view of a row, train on some rows; fusions of
their features, meta-models and weights are fitted on other rows; all are tested on
third ones. Members of all seeds are one stack, fusions one stack for each kind. Beside
it, `feature_fusion_tasks.py` makes the rows, `_models.py` the modules, `_training.py`
trains, `_scores.py` measures, `_claims.py` judges, `_figures.py` draws, and
`_checks.py` finds mistakes first.
"""

import dataclasses
import functools

from ensjax.experiment.fields import load_beside
from ensjax.experiment.processes import everywhere
from ensjax.experiment.stages import run_stages

tasks = load_beside(__file__, "feature_fusion_tasks")
models = load_beside(__file__, "feature_fusion_models")
training = load_beside(__file__, "feature_fusion_training")
measures = load_beside(__file__, "feature_fusion_scores")
verdicts = load_beside(__file__, "feature_fusion_claims")
figures = load_beside(__file__, "feature_fusion_figures")
checks = load_beside(__file__, "feature_fusion_checks")

validate = checks.validate


def run(config, run_dir):
    """Trains members and fusions, scores and reports; the same command resumes."""
    loaded = everywhere(lambda: {n: tasks.load_task(config, n) for n in config.tasks})
    stages = {}
    for name, task in loaded.items():
        members, fusions = f"members_{name}", f"fusions_{name}"
        stages[members] = functools.partial(
            training.train_members, config, run_dir, members, task
        )
        stages[fusions] = functools.partial(
            training.train_fusions, config, run_dir, fusions, task, members
        )
    first = config.tasks[0]
    for schedule in config.schedules:
        stages[schedule] = functools.partial(
            training.train_schedule, config, run_dir, schedule, loaded[first]
        )
    outputs = run_stages(run_dir, config, stages)
    results = measures.measure(config, loaded, outputs)
    figures.add_tables(run_dir, config, results)
    figures.add_figures(run_dir, config, results)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, results),
        scalars=verdicts.summarise(config, results),
        claims=verdicts.make_claims(config, results),
        checks=verdicts.make_checks(config, results),
    )


def training_job(config):
    """The members of the first task; fusions and schedules are groups of stacks."""
    first = config.tasks[0]
    job = training.members_job(config, tasks.load_task(config, first))
    return dataclasses.replace(job, stage=f"members_{first}")
