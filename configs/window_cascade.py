"""Window-based cascades: does a second member near the threshold beat a larger model?

    ensjax run configs/window_cascade.py

Pairs of MLPs of five widths on noisy 8x8 digits. `paper` trains nothing: it reads
cached logits, one npz file for each model size, with the arrays

    validation  [member, row, class]    validation_labels  [row]
    test        [member, row, class]    test_labels        [row]
    ood         [member, row, class]    rows that belong to no class

and the same classes throughout. Members 0 and 1, 2 and 3, ... are pairs; members of
one pair of models of each size are compared as a "seed".

    ensjax run configs/window_cascade.py:paper --config.cached.files="('b0.npz', ...)"

On 2 CPU cores (AMD EPYC) shared with other work, CPU seconds: smoke 43, small 76,
claims 110. Claims, 10 seeds, width 64: coverage at 5 % risk is 81.4 % for one member,
82.7 % for the window cascade at 1.20 times its MACs and 82.8 % for both members on all
rows. The window beats a single model of equal MACs but for width 8. At width 32 a
single model of the cascade's coverage takes 1.1 times its MACs (the paper: more than
3). That a second member improves OOD measures more often than the next width does is
undecided.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="window_cascade"))
    config.title = "Window-based early-exit cascades"
    config.scale = "full" if preset == "paper" else "reduced"
    config.seed = 0
    # Of cached logits there are as many seeds as the files hold pairs of members.
    config.num_seeds = dict(smoke=2, small=5, claims=10, paper=1)[preset]

    # Every seed has its own split of the 1,797 digits, stratified; the other rows
    # train. Rows of validation, test and OOD come in num_copies copies with noise of
    # their own; training draws new noise at every step.
    config.data = ml_collections.ConfigDict(
        dict(num_validation=300, num_test=600, num_copies=10, noise_sigma=0.35)
    )
    if preset == "smoke":
        config.data.num_copies, config.data.num_test = 1, 250
    config.widths = (8, 16, 32, 64, 128)  # of both hidden layers, rising
    if preset == "smoke":
        config.widths = (8, 32)
    config.optimizer = ml_collections.ConfigDict(
        dict(learning_rate=3e-3, weight_decay=1e-4)  # AdamW, to 0 by a cosine
    )
    config.batch_size = 128
    config.total_steps = 60 if preset == "smoke" else 1_200
    config.steps_per_call = 30 if preset == "smoke" else 100
    config.log_every_steps = config.steps_per_call
    config.save_every_steps = 30 if preset == "smoke" else 400
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))

    # Logits instead of training. Sizes are named in the figures.
    config.cached = ml_collections.ConfigDict(dict(files=(), names=(), macs=()))
    if preset == "paper":
        config.cached.files = ("",) * 5
        config.cached.names = tuple(f"EfficientNet-B{i}" for i in range(5))
        config.cached.macs = (0.4e9, 0.7e9, 1.0e9, 1.9e9, 4.5e9)

    config.confidence = "max_probability"  # or negative_entropy, max_logit, energy
    config.window_width = 0.1  # in quantiles to either side
    config.threshold_share = 0.2  # that the single threshold passes on
    config.risk = 0.05  # of cov@5
    config.coverage = 0.8  # of risk@80
    config.tpr = (0.8, 0.95)  # of FPR@80 and FPR@95
    config.scod_coverage = 0.5  # of the 1 : 1 mixture
    # Which size the first table and its checks are of, and batches with a capacity.
    config.shown_size = 1 if preset == "smoke" else 3
    config.compared_size = 0 if preset == "smoke" else 2  # whose MACs claim c is of
    config.capacity_batch_size = 125 if preset == "smoke" else 500
    return config
