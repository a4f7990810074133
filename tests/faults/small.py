"""A small run to break: six MLPs with dropout, a bootstrap each, and Adam."""

import ml_collections


def get_config(preset="small"):
    config = ml_collections.ConfigDict(dict(experiment="small_experiment.py", seed=0))
    config.num_members, config.width = 6, 8
    config.total_steps = dict(smoke=40, small=120, claims=120, paper=1000)[preset]
    config.steps_per_call, config.log_every_steps, config.save_every_steps = 2, 4, 20
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
