"""SEEDS: many members of a forecast ensemble from a few, by a generative network.

A case of an archive has M members. Some are drawn as *seeds*, one of the others is the
*target*: a network learns to sample the target given the seeds. Asked for more, it
continues the ensemble (generative ensemble emulation, GEE); with targets that are
sometimes drawn from another source, such as analyses, it corrects it as well
(generative post-processing, GPP).

`train_seeds` makes the network a denoiser, which a sampler calls many times, or, with
the loss `NoiseCrps`, one with noise inside, which is called once for a member. Either
way the result is `SeedsEmulators`.

Source: Li et al. 2024, Generative emulation of weather forecast ensembles with
diffusion models, Science Advances 10(13), eadk4489; arXiv:2306.14066.
"""

from ensjax.emulate.seeds.drawing import (
    ENCODERS,
    DrawSeeds,
    check_cases,
    draw_seeds,
    encode_seeds,
    stack_seeds,
)
from ensjax.emulate.seeds.sampling import OneCall, SeedsEmulators
from ensjax.emulate.seeds.training import (
    CosineAdam,
    SeedsLoss,
    distil_seeds,
    train_seeds,
)

__all__ = [
    "CosineAdam",
    "DrawSeeds",
    "ENCODERS",
    "OneCall",
    "SeedsEmulators",
    "SeedsLoss",
    "check_cases",
    "distil_seeds",
    "draw_seeds",
    "encode_seeds",
    "stack_seeds",
    "train_seeds",
]
