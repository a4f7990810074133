"""The line between a pre-trained and a fine-tuned model, on two-stage coloured digits.

ensjax run configs/wise_ft.py
ensjax run configs/wise_ft.py:claims

On two CPU cores (AMD EPYC): claims, 8 seeds of two models; result: out of distribution
the mixture at alpha .5 of a mixup fine-tune and its start is 11.7 points above the
better of them, and 8.1 more points are rows that both get wrong and it right than rows
that both get right and it wrong. The best alpha is 14.1 points above the better end.
A plain fine-tune gains 1.1 points at its best alpha, and loses 1.8 at .5.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    if preset == "paper":
        return _paper()
    smoke = preset == "smoke"
    config = ml_collections.ConfigDict(dict(experiment="wise_ft", scale="toy"))
    config.title = "WiSE-FT: rows that both ends get wrong and their mixture right"
    config.seed = 0
    # A seed draws permutations, colours, initial weights and orders.
    config.num_seeds = dict(smoke=2, small=5, claims=8)[preset]
    config.num_models = dict(smoke=1, small=1, claims=2)[preset]  # of a seed
    # Of every model, fine-tuned: plain, smoothing, mixup, both.
    config.recipes = ("plain", "mixup")
    config.label_smoothing = 0.1
    config.mixup = 0.5  # a of Beta(a, a)
    # 0, .1, ... 1; the first and last are the models themselves.
    config.alphas = (0.0, 0.5, 1.0)
    if not smoke:
        config.alphas = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    config.ood_agreement = 0.2
    config.draws = 1 if smoke else 5  # of the test digits' colours
    config.hidden = (16,) if smoke else (64, 64)
    config.learning_rate, config.weight_decay = 3e-3, 1e-4  # AdamW
    config.batch_size = 64
    config.total_steps = config.tuning_steps = 60 if smoke else 2_000
    config.steps_per_call = 30 if smoke else 250
    config.save_every_steps = 60 if smoke else 1_000
    config.predict_batch_size = 500
    config.num_resamples = 20 if smoke else 1_000  # of the bootstrap
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config


def _paper():
    """CLIP-style ViT-B/16 on ImageNet and five shifted sets, four recipes at once."""
    config = ml_collections.ConfigDict(dict(experiment="wise_ft_full", scale="full"))
    config.title = "WiSE-FT and BANG: CLIP-style ViT-B/16 on ImageNet"
    config.seed = 0
    # Holds zero_shot/ (a checkpoint of CLIP ViT-B/16, or from Ensemble.save), and
    # prompts.npy with the former; train/ and the tests, as .npy files.
    config.folder = ""
    config.tests = ("imagenet", "v2", "r", "a", "sketch", "objectnet")
    config.recipes = ("plain", "smoothing", "mixup", "both")
    config.label_smoothing, config.mixup = 0.1, 0.5  # assumed: the paper's are unknown
    config.alphas = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    config.model = ml_collections.ConfigDict(
        dict(
            image_size=224,
            patch_size=16,
            width=768,
            depth=12,
            num_heads=12,
            num_features=512,
            num_classes=1_000,
            dtype="bfloat16",
            remat=True,
        )
    )
    # Of WiSE-FT: ten epochs of 1,281,167 images; AdamW, clipping at norm 1.
    config.learning_rate, config.weight_decay, config.clip_norm = 3e-5, 0.1, 1.0
    config.batch_size = 512
    config.total_steps, config.warmup_steps = 25_020, 500
    config.steps_per_call = 4
    config.save_every_steps = 1_000
    config.predict_batch_size = 256
    config.block = 1
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
