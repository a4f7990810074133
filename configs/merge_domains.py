"""Four fine-tuned models merged into one that knows all four domains of digits.

ensjax run configs/merge_domains.py
ensjax run configs/merge_domains.py:claims

On two CPU cores (AMD EPYC): claims, 10 seeds; result: mean accuracy over the four
domains is 58.6 % for the base, 56.8 for the ensemble of outputs, 62.9 for the mean of
weights, 64.2 for task arithmetic, 61.6 for TIES, 64.8 for breadcrumbs, 68.5 for Fisher
merging and 93.2 for RegMean; each fine-tuned model has 97.5 on its own domain. TIES and
SCE are below task arithmetic here, and TIES without tuning 29.6 points below the mean.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    if preset == "paper":
        return _paper()
    smoke = preset == "smoke"
    config = ml_collections.ConfigDict(dict(experiment="merge_domains", scale="toy"))
    config.title = "Four domains of digits: one model from four fine-tuned ones"
    config.seed = 0
    # A seed draws the split, the base's few rows, initial weights, orders and masks.
    config.num_seeds = dict(smoke=2, small=5, claims=10)[preset]
    config.num_validation, config.num_test = 400, 400  # of 1,797 digits
    config.few_per_domain = 25  # images of each domain that the base has seen
    config.hidden = (32, 32) if smoke else (256, 256)
    config.learning_rate, config.weight_decay = 1e-3, 1e-4  # AdamW
    config.batch_size = 64
    config.base_steps = 100 if smoke else 1_000
    config.tuning_steps = 50 if smoke else 300
    config.steps_per_call = 50
    config.save_every_steps = 50 if smoke else 100
    config.statistic_rows = 64 if smoke else 0  # of Fisher and Gram matrices; 0: all
    config.num_draws = 2 if smoke else 4  # of what is dropped at random
    config.conflict_density = 0.2  # at which sign conflicts are counted
    config.candidates_at_once = 8
    config.predict_batch_size = 500
    config.grids = ml_collections.ConfigDict(_smoke_grids() if smoke else _grids())
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config


def _smoke_grids():
    """The methods of the catalogue's acceptance, with small grids."""
    return dict(
        mean=dict(),
        task_arithmetic=dict(lam=(0.25, 0.4)),
        ties=dict(density=(0.2,), lam=(0.5, 1.0)),
        dare=dict(drop=(0.0, 0.9), lam=(0.25, 0.4)),
        fisher=dict(floor=(1e-8,)),
        regmean=dict(alpha=(0.9, 1.0)),
        regmean_bias=dict(alpha=(0.9, 1.0)),
    )


def _grids():
    """Knobs of every method; all are chosen on validation rows."""
    lam = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
    few = (0.15, 0.25, 0.35, 0.5)
    # An elected mean is longer than a quarter of the sum.
    elected = (0.3, 0.5, 0.7, 1.0, 1.4)
    density = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    kept = (0.1, 0.3, 0.5, 0.8)
    alpha = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
    drop = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
    return dict(
        mean=dict(),
        multislerp=dict(),
        multislerp_tasks=dict(),
        karcher=dict(),
        karcher_tasks=dict(),
        model_stock=dict(),
        model_stock_output=dict(),
        task_arithmetic=dict(lam=lam),
        ties=dict(density=density, lam=elected),
        dare=dict(drop=drop, lam=few),
        dare_ties=dict(drop=drop, lam=elected),
        della_linear=dict(density=kept, lam=few),
        della=dict(density=kept, lam=elected),
        breadcrumbs=dict(density=density, lam=few),
        breadcrumbs_ties=dict(density=density, lam=elected),
        sce=dict(density=density, lam=elected),
        fisher=dict(floor=(1e-12, 1e-10, 1e-8, 1e-6, 1e-4)),
        fisher_normalized=dict(floor=(1e-12, 1e-10, 1e-8, 1e-6, 1e-4)),
        regmean=dict(alpha=alpha),
        regmean_bias=dict(alpha=alpha),
        dare_alone=dict(member=(0, 1, 2, 3), drop=drop),
    )


def _paper():
    """CLIP ViT-B/32 fine-tuned on the eight tasks of the task-arithmetic paper."""
    config = ml_collections.ConfigDict(
        dict(experiment="merge_domains_full", scale="full")
    )
    config.title = "Eight vision tasks: one CLIP ViT-B/32 from eight fine-tuned ones"
    config.seed = 0
    # Holds zero_shot/ (from Ensemble.save) and a folder of .npy files for every task.
    config.folder = ""
    config.tasks = (
        "cars",
        "dtd",
        "eurosat",
        "gtsrb",
        "mnist",
        "resisc45",
        "sun397",
        "svhn",
    )
    config.model = ml_collections.ConfigDict(
        dict(
            image_size=224,
            patch_size=32,
            width=768,
            depth=12,
            num_heads=12,
            num_features=512,
            num_classes=397,  # of the task that has most; the others fill up
            dtype="bfloat16",
            remat=True,
        )
    )
    # Of task arithmetic (recalled): 2,000 steps, AdamW, warm-up and cosine decay.
    config.learning_rate, config.weight_decay, config.clip_norm = 1e-5, 0.1, 1.0
    config.batch_size = 128
    config.total_steps, config.warmup_steps = 2_000, 200
    config.steps_per_call = 4
    config.save_every_steps = 500
    config.predict_batch_size = 256
    config.statistic_rows, config.fisher_draws = 256, 1
    config.num_draws = 1
    config.candidates_at_once = 1
    lam = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    config.grids = ml_collections.ConfigDict(
        dict(
            mean=dict(),
            model_stock=dict(),
            task_arithmetic=dict(lam=lam),
            ties=dict(density=(0.1, 0.2), lam=lam),
            dare=dict(drop=(0.5, 0.9), lam=lam),
            breadcrumbs=dict(density=(0.9,), lam=lam),
            fisher=dict(floor=(1e-8,)),
            regmean=dict(alpha=(0.9, 1.0)),
            regmean_bias=dict(alpha=(0.9, 1.0)),
        )
    )
    config.block = 1
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
