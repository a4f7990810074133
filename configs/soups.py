"""Model soups: 72 fine-tunes of one model, averaged; and averages along one run.

ensjax run configs/soups.py
ensjax run configs/soups.py:claims

On two CPU cores (AMD EPYC), claims, means of 10 seeds: the best single fine-tune has
accuracy 78.6 % in distribution and 46.5 % out of it, the uniform soup 79.0 and 47.0,
the greedy soup 79.3 and 47.6, the learned soup 80.0 and 47.8, the ensemble of outputs
79.4 and 46.9. Against the best single model the greedy soup gains .77 points [.22,
1.33] in distribution and 1.11 [.50, 1.72] out of it; the uniform soup's .45 [-.03, .93]
and .57 [-.24, 1.38] are undecided. small, 5 seeds, is within .5 points of these means.
paper has not been run.
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
    config.num_seeds = dict(smoke=2, small=5, claims=10)[preset]
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


def _paper():
    """CLIP ViT-B/32 on ImageNet and five shifted sets, 72 fine-tunes at once."""
    config = ml_collections.ConfigDict(dict(experiment="soups_full", scale="full"))
    config.title = "Model soups: 72 fine-tunes of CLIP ViT-B/32 on ImageNet"
    config.seed = 0
    # Holds zero_shot/ (from Ensemble.save), train/, validation/ and the tests, as .npy.
    config.folder = ""
    config.tests = ("imagenet", "v2", "r", "sketch", "objectnet", "a")
    config.num_members = 72
    # The ranges are the paper's; strengths of Mixup and label smoothing are assumed,
    # and RandAugment is left out. Rates and decays are log-uniform.
    config.search = ml_collections.ConfigDict(
        dict(
            learning_rate=(1e-6, 8e-5),
            weight_decay=(8e-5, 0.5),
            epochs=(4, 16),
            label_smoothing=(0.0, 0.1),
            mixup=(0.0, 0.5),
        )
    )
    config.model = ml_collections.ConfigDict(
        dict(
            image_size=224,
            patch_size=32,
            width=768,
            depth=12,
            num_heads=12,
            num_features=512,
            num_classes=1_000,
            dtype="bfloat16",
            remat=True,
        )
    )
    # Steps of an epoch of ImageNet without the 2 % that are validation/.
    config.batch_size, config.steps_per_epoch = 512, 2_452
    config.warmup_steps, config.clip_norm = 500, 1.0
    config.learned = ml_collections.ConfigDict(
        dict(learning_rate=0.05, num_epochs=5, batch_size=256)  # AdamW
    )
    config.selection_rounds = 50
    config.steps_per_call = 4
    config.save_every_steps = 1_000
    config.predict_batch_size = 256
    config.block = 1
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
