"""Five quantile regressions and what mixes them, on scikit-learn's diabetes data.

    ensjax run configs/quantile_aggregation.py

On 2 CPU cores (AMD EPYC), shared with other work, claims takes 7.5 minutes of CPU time;
small has 3 of its 5 splits. Over the 5 splits the mean test pinball loss is
0.2171 for the best base model, 0.2152 for the plain average, 0.2149 for global medium,
0.2153 for global fine and 0.2161 for local fine weights: on these 272 rows no weights
beat the average clearly. Where each base model knows half of the inputs, local medium
weights reach 0.1345, global fine ones 0.1736, the average 0.1912, the oracle 0.1328.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="quantile_aggregation"))
    config.title = "Flexible aggregation of quantile regressions"
    config.scale = "full" if preset == "paper" else "reduced"
    config.seed = 0
    config.num_seeds = dict(smoke=2, small=3, claims=5, paper=5)[preset]  # splits
    # Levels k / (m + 1): 0.05 to 0.95, and 0.01 to 0.99 in the paper.
    config.num_levels = dict(smoke=5, small=19, claims=19, paper=99)[preset]

    # 442 rows: 110 of them test, 60 validate and 272 train. A float is a share.
    config.data = ml_collections.ConfigDict(
        dict(name="diabetes", files=(), test_size=110, validation_size=60)
    )
    if preset == "paper":
        config.data = ml_collections.ConfigDict(
            # Tables of numbers with the target last, by path.
            dict(name="csv", files=(), test_size=0.1, validation_size=0.2)
        )

    config.base = ml_collections.ConfigDict(
        dict(
            num_folds=5,
            num_trees=50,
            min_leaf=5,
            linear_l1=1e-3,
            ridge=1.0,
            boosting_depth=2,
            num_neighbours=25,
            net_hidden=(32,),
            net_learning_rate=3e-3,
            net_steps=400,
            net_batch_size=64,
        )
    )
    config.base_counts = (1, 2, 5, 10)  # base models that are mixed, see `NAMES`

    config.kinds = (
        "global_coarse",
        "global_medium",
        "global_fine",
        "local_coarse",
        "local_medium",
        "local_fine",
    )
    # Kinds that are trained once more without each fold, for the conformal steps.
    config.conformal_kinds = ("global_fine",)
    config.model = ml_collections.ConfigDict(
        dict(
            hidden=(64, 64),
            dropout=0.0,
            own_level=4.0,
            order="sort",
            order_in_loss=False,
            level_block=0,  # levels at a time; 0: all
        )
    )
    config.margin = "single"  # or adapt, vec
    # Every combination is trained; the validation rows choose.
    config.search = ml_collections.ConfigDict(
        dict(learning_rate=(5e-3,), penalty=(1.0,), margin=(1e-3,))
    )
    config.weight_decay = 0.0
    config.batch = "all"  # all rows in a step, or as many as in the paper
    config.total_steps = 1500
    # Often, since local fine weights overfit these rows within 50 steps.
    config.evaluate_every_steps, config.log_every_steps = 10, 300
    config.save_every_steps = 300
    config.patience = 0  # evaluations without improvement; 0: train to the end
    config.predict_batch_size = 512

    # New rows of the task where each base model knows half of the inputs; 0: without.
    config.two_regimes = ml_collections.ConfigDict(
        dict(
            num_train=2_400,
            num_validation=600,
            num_test=1_000,
            batch_size=256,
            kinds=(
                "global_medium",
                "global_fine",
                "local_coarse",
                "local_medium",
                "local_fine",
            ),
        )
    )
    if preset == "smoke":
        config.base.num_trees, config.base.net_steps = 5, 40
        config.kinds = ("global_medium", "global_fine")
        config.two_regimes.kinds = ("global_fine", "local_medium")
        config.two_regimes.num_train = 0
        config.base_counts = (1, 5)
        config.total_steps = config.log_every_steps = config.save_every_steps = 40
        config.evaluate_every_steps = 20
    if preset == "paper":
        config.search.learning_rate = (1e-3, 5e-4)
        config.search.penalty = (0.5, 1.0, 2.0, 5.0, 10.0)
        config.search.margin = (1e-3, 5e-3)
        config.weight_decay, config.batch = 1e-7, "paper"
        config.model.hidden, config.model.dropout = (128, 128), 0.05
        config.model.level_block = 11
        config.total_steps, config.evaluate_every_steps = 20_000, 100
        config.log_every_steps, config.save_every_steps = 1_000, 1_000
        config.patience = 5
        config.two_regimes.num_train = 0
    return config
