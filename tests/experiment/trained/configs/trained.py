"""Small MLPs on random rows, each with its own resample."""

import ml_collections


def get_config(preset="small"):
    config = ml_collections.ConfigDict(dict(experiment="trained", seed=0))
    config.num_members, config.members = 4, ()
    config.total_steps, config.block = dict(smoke=20, small=20)[preset], "2"
    config.joint = False
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
