"""A coin for each member: is the mean of the members above one half?"""

import ml_collections


def get_config(preset="small"):
    config = ml_collections.ConfigDict(dict(experiment="toy", seed=0, num_members=4))
    config.total_steps = dict(smoke=20, small=40, claims=40, paper=1000)[preset]
    config.save_every_steps, config.seconds_per_step = 10, 0.0
    config.name, config.is_fast = "coins", True
    config.widths, config.rates = (8, 8), (0.1, 0.2)
    config.limit = float("inf")
    config.note = ml_collections.config_dict.placeholder(str)
    config.fault = ""
    config.optimizer = ml_collections.ConfigDict(dict(learning_rate=0.1))
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
