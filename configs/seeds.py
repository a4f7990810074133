"""Does a diffusion model continue an ensemble of Lorenz-96 from two members?

    ensjax run configs/seeds.py
    ensjax run configs/seeds.py:claims

Members and truth start from one analysis and are two time units old. A denoiser sees
two members of five and learns to sample another; then it makes 64 from two, beside
the 29 others that the simulator has. Every seed has an archive and a network of its
own, and all networks are trained as one stack. The paper's system is GEFS: toy scale.

`smoke` has been run to its report: 164 s on a shared machine (stages 23, 121 and 12 s).
It trains too little to say anything. `small` and `claims` have not been run yet.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small and claims; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="seeds"))
    config.title = "SEEDS on Lorenz-96: an ensemble continued from two members"
    config.scale = "toy"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    config.archive = ml_collections.ConfigDict(
        dict(
            num_train_cases=200 if smoke else 10_000,
            num_train_members=5,
            num_test_cases=16 if smoke else 200,
            num_test_members=31,
            num_sites=40,
            forcing=8.0,
            lead_steps=40,
            spin_up_steps=400,
            analysis_noise=0.3,
            member_noise=0.3,
        )
    )
    config.model = ml_collections.ConfigDict(dict(width=32, depth=3, kernel_size=5))
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=20 if smoke else 2_000,
            batch_size=64,
            learning_rate=2e-3,
            ema_decay=0.9 if smoke else 0.999,
        )
    )
    config.sampler = ml_collections.ConfigDict(
        dict(num_levels=6 if smoke else 24, low=0.002, high=80.0, rho=7.0)
    )
    config.num_samples = 32 if smoke else 64
    # Distillation: the same denoiser in a few calls.
    config.few = ml_collections.ConfigDict(
        dict(
            num_levels=4,
            low=0.2,
            total_steps=10 if smoke else 1_000,
            num_substeps=4,
            lowest=0.01,
            learning_rate=5e-4,
            ema_decay=0.9 if smoke else 0.99,
        )
    )
    config.event_sds = 2.0  # tails: beyond the climate's mean by so many deviations
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
