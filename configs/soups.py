"""Model soups: 72 fine-tunes of one model, averaged; and averages along one run.

ensjax run configs/soups.py
ensjax run configs/soups.py:claims
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    if preset == "paper":
        return _paper()
    smoke = preset == "smoke"
    config = ml_collections.ConfigDict(dict(experiment="soups", scale="toy"))
    config.title = "Model soups: 72 fine-tunes of one model, averaged"
    config.seed = 0
    # A seed draws initial weights, hyperparameters, orders and all noise.
    config.num_seeds = dict(smoke=2, small=3, claims=10)[preset]
    config.num_members = 6 if smoke else 72  # fine-tunes of a seed
    # Rows of MNIST-5k (14 x 14 pixels); what is left of the 5,000 is the test set.
    config.num_pretraining, config.num_train = 250, 750
    config.num_validation = 200 if smoke else 1_000
    config.num_test = 300 if smoke else 3_000
    config.hidden = (16,) if smoke else (64, 64)
    # Sd of the noise in pre-training, in validation and in all test sets.
    config.noise = 0.35
    config.pretraining = ml_collections.ConfigDict(
        dict(
            total_steps=30 if smoke else 300,
            learning_rate=1e-3,  # AdamW
            weight_decay=1e-4,
        )
    )
    # Of every fine-tune: exponents of 10 uniform between two, one of the others.
    config.search = ml_collections.ConfigDict(
        dict(
            learning_rate_exponents=(-3.2, -2.3),
            weight_decay_exponents=(-4.0, -1.0),
            label_smoothing=(0.0, 0.1),
            mixup=(0.0, 0.5),  # a of Beta(a, a)
            noise=(0.2, 0.35, 0.5),
        )
    )
    config.total_steps = 30 if smoke else 300
    config.batch_size = 64
    # Severities of the shifted test sets; other handwriting is one more.
    config.shifts = ml_collections.ConfigDict(
        dict(rotation=30.0, blur=1.0, contrast=0.5)
    )
    config.learned = ml_collections.ConfigDict(
        dict(learning_rate=0.05, num_epochs=20, batch_size=100)  # AdamW
    )
    config.selection_rounds = 20 if smoke else 50  # of the ensemble's members
    config.trajectory = ml_collections.ConfigDict(
        dict(
            num_runs=2 if smoke else 6,
            num_train=500,
            num_test=797,
            noise=0.35,
            hidden=(16,) if smoke else (128, 128),
            learning_rate=0.1,  # SGD
            momentum=0.9,
            batch_size=64,
            total_steps=120 if smoke else 2_400,
            start_step=80 if smoke else 1_600,  # of SWA, SWAG and LAWA
            every_steps=4 if smoke else 20,
            ema_decay=0.99,
            num_columns=4 if smoke else 20,  # of SWAG
            num_samples=3 if smoke else 30,  # of SWAG
            num_checkpoints=5 if smoke else 20,  # of LAWA
        )
    )
    config.steps_per_call = 10 if smoke else 50
    config.save_every_steps = 30 if smoke else 300
    config.predict_batch_size = 500
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
