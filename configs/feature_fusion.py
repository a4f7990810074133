"""Learned fusion of three members' features against votes, stacking and one member.

    ensjax run configs/feature_fusion.py

Views of digits (each missing with probability 0.3), n-grams of Python sources, and
descriptors of simulated molecules. The ridge, the form and the step of every fusion
are chosen on rows of their own. On corrupted views of digits nothing learned on
features has the accuracy of the plain soft vote.

On two CPU cores (AMD EPYC) `small` (three seeds) takes 4 min 15 s and smoke 37 s. The
preset `paper` needs features of three backbones: see `path`.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="feature_fusion", scale="toy"))
    config.title = "Fusion of features: gates, attention and votes"
    config.seed = 0
    config.num_seeds = dict(smoke=2, small=3, claims=10, paper=5)[preset]

    # digit_views, byte_text, molecules; or features, from `path`. The first one is also
    # run without corruption, and trained by every schedule.
    config.tasks = ("digit_views", "byte_text", "molecules")
    config.path = ""
    config.corruption = 0.3  # probability that a view of a digit is noise
    # Rows that members train on, that fusions train on, and test rows.
    config.num_member, config.num_fusion, config.num_test = 350, 350, 1090
    # Of the fusions' rows, those that choose settings and the step instead.
    config.num_choice = 70
    config.bytes_per_row = 100  # of byte_text

    config.hidden, config.features = 32, 24  # of each member
    config.member_learning_rate = 5e-3  # of Adam
    config.member_steps = 600

    # Of features; "experts" is a gate over the members' probabilities.
    config.fusions = ("concat", "static", "gated", "attention", "experts")
    config.gate_forms = ("joint", "shared")  # of gates; both are trained
    config.dim = 64  # that adapters bring features to
    config.num_heads = 4
    config.learning_rate = 5e-3
    config.fusion_steps = 600
    config.evaluate_every_steps = 50
    config.l2 = 1e-3  # of members: times the sum of squares of the parameters
    config.search_l2 = (1e-3, 1e-2)  # of fusions; all are trained
    config.beta = 1.0  # of the members' own losses, when all trains jointly
    # Beside frozen members, all at equal gradient steps; (): none.
    config.schedules = ("joint", "alternating")
    config.balance = 0.0  # of the load imbalance of the gate

    config.batch_size = 64
    config.steps_per_call = 50
    config.log_every_steps = 200
    config.save_every_steps = 600
    config.block = "auto"  # or "all", or how many members run at once
    config.sharpness = 2.0  # of the entropy-weighted vote
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))

    if preset == "smoke":
        config.tasks, config.fusions = ("digit_views",), ("concat", "static", "gated")
        config.schedules = ()
        config.num_member = config.num_fusion = config.num_test = 60
        config.num_choice, config.evaluate_every_steps = 20, 20
        config.gate_forms, config.search_l2 = ("joint",), (1e-3,)
        config.hidden, config.features, config.dim = 16, 8, 8
        config.member_steps = config.fusion_steps = 20
        config.steps_per_call = config.log_every_steps = config.save_every_steps = 20
    if preset == "paper":
        config.title = "Fusion of three backbones' features on CIFAR-10"
        config.scale = "full"
        # An .npz with the frozen features of three backbones on CIFAR-10: features_0,
        # features_1, features_2 [row, width], labels [row], and part [row]: 0 rows for
        # members, 1 for fusions, 2 test.
        config.tasks, config.corruption = ("features",), 0.0
        config.num_member, config.num_fusion, config.num_test = 25_000, 25_000, 10_000
        config.hidden, config.features, config.dim = 512, 128, 128
        config.num_choice, config.evaluate_every_steps = 5000, 250
        config.member_steps = config.fusion_steps = 5000
        config.save_every_steps = 5000
    return config
