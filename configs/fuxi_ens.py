"""Does a learned perturbation of the state make an ensemble, and is it the CRPS or the
KL that keeps its members apart?

    ensjax run configs/fuxi_ens.py
    ensjax run configs/fuxi_ens.py:claims
    ensjax plan configs/fuxi_ens.py:paper        # shapes only, without running

FuXi-ENS on two-scale Lorenz-96, of which the slow variables are seen: a network gives
mean and deviation of a perturbation of the two states that a step starts from, another
advances them. Networks that differ by loss (CRPS + KL or L1 + KL) and by the weight of
the KL are trained as one stack, from the same weights and in the same order of data; a
second stack has a Gaussian of equal variance that does not depend on the state, a third
one a learned mean with that variance everywhere. They are compared with a stochastic
simulator that is imperfect; it is told one exact state and starts its red noise at
random, where emulators see two. Real rain beside it.

claims took two hours of two CPU cores that other jobs shared: spread over error .97
after one step (L1 + KL .10), fair CRPS after 40 steps .378 (.549), with a Gaussian that
does not depend on the state .399, the simulator .386; better than the simulator in 51 %
of the cells. Weights of the KL up to .01 change the CRPS by .3 %. Deviation and error
correlate by .18. Rain 4.59 mm (EMOS of all members 4.69, raw 7.08).
experiments/RESULTS.md has the rest. small takes 3 minutes of two quiet cores.

`paper` has the published sizes: 78 channels at 0.25 degrees, eight members on eight
devices, rollouts of 1, 2 and 3 steps. ERA5 is not at hand, so that it is planned, not
run: 2.12 billion parameters (1.18 of the forecaster, 0.47 each of prior and posterior),
33.9 GB with gradients and Adam's moments, 1.24 x 10^15 operations a training step of
one case and eight members, 5.35 x 10^13 a step of a member's forecast
(`fuxi_ens_networks.costs`, which counts loops in full), and by the plan a peak of 93
GiB on each of eight devices, of which 53 GiB are temporaries as XLA's compiler for CPU
lays them out. Score and KL are means over the area, with all channels alike: weights
of channels are not published. Not published and assumed: width and heads of the
transformers, warm-up; static fields and the time of the year are left out.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset == "paper":
        return _paper()
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="fuxi_ens"))
    config.title = "FuXi-ENS on two-scale Lorenz-96: learned perturbations of the state"
    config.scale = "toy"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    config.archive = ml_collections.ConfigDict(
        dict(
            source="lorenz96",
            num_sites=36,
            num_fast=10,
            forcing=10.0,
            steps_per_output=20,  # an output each 0.1 time units
            spin_up_steps=200 if smoke else 2_000,
            num_train_runs=8 if smoke else 64,
            num_train_outputs=20 if smoke else 300,
            num_starts=8 if smoke else 64 if claims else 32,
            num_before=1,
            num_leads=12 if smoke else 50,
        )
    )
    # What networks of a seed differ by; the first is the model of the paper.
    config.variants = ml_collections.ConfigDict(
        dict(
            reconstructions=("crps", "l1") if smoke else ("crps",) * 4 + ("l1",),
            kl_weights=(1e-4, 1e-4) if smoke else (1e-4, 0.0, 1e-2, 1.0, 1e-4),
        )
    )
    config.model = ml_collections.ConfigDict(
        dict(
            name="residual",
            width=8 if smoke else 32 if claims else 16,
            depth=0 if smoke else 3 if claims else 2,
            kernel_size=3 if smoke else 5,
            log_variance_offset=-4.0,
            log_variance_range=(-12.0, 2.0),
        )
    )
    config.training = ml_collections.ConfigDict(
        dict(
            num_members=4 if smoke else 8,
            estimator="fair",
            kl_direction="prior_posterior",
            draw_from="prior",
            # A curriculum: steps of the rollout, and of the optimizer for each.
            rollout_steps=(1,),
            total_steps=(20,) if smoke else (800,) if claims else (500,),
            batch_size=16 if smoke else 64 if claims else 32,
            learning_rate=2e-3,
            warmup_steps=5 if smoke else 100,
            weight_decay=0.01,
            betas=(0.9, 0.95),
            max_norm=1.0,
            steps_per_call=5 if smoke else 100,
            block=1,
        )
    )
    config.num_members = 6 if smoke else 24  # of an ensemble that is scored
    config.short_leads = (1, 4, 10) if smoke else (1, 10, 40)  # in outputs
    config.block_sites = 6
    config.bootstrap = ml_collections.ConfigDict(
        # Starts are of runs of their own: a block of one.
        dict(num_resamples=200 if smoke else 1_000, block_length=1)
    )
    config.rain = ml_collections.ConfigDict(
        dict(
            split_date="2009-01-01",
            gap_days=3,
            num_test=100 if smoke else 0,  # cases that are tested on; 0: all
            num_members=20 if smoke else 100,
            width=8 if smoke else 32,
            depth=0 if smoke else 2,
            total_steps=20 if smoke else 1_000 if claims else 600,
            learning_rate=1e-3,
            weight_decay=0.1,
            kl_weight=1e-4,
            dry_depth=0.5,
        )
    )
    # All cores for one network, or a core for each of several.
    mesh = dict(member=1 if smoke else -1, data=1, model=1)
    config.mesh = ml_collections.ConfigDict(mesh)
    return config


def _paper():
    """ERA5 at 0.25 degrees on eight devices; nobody has run it."""
    config = ml_collections.ConfigDict(dict(experiment="fuxi_ens", scale="full"))
    config.title = "FuXi-ENS at full size: 78 channels at 0.25 degrees"
    config.seed = 0
    config.num_seeds = 1
    config.archive = ml_collections.ConfigDict(
        dict(
            source="era5",
            first_year=2002,
            last_year=2016,
            hours_per_output=6,
            upper_fields=("z", "t", "u", "v", "q"),
            num_levels=13,
            surface_fields=(
                "t2m", "d2m", "sst", "u10", "v10", "u100", "v100", "msl", "snsr",
                "ssrd", "fdir", "ttr", "tp",
            ),
            space=(720, 1440),
            latitudes=(90.0, -89.75),  # without the row at the south pole
        )
    )  # fmt: skip
    config.variants = ml_collections.ConfigDict(
        dict(reconstructions=("crps",), kl_weights=(1e-4,))
    )
    config.model = ml_collections.ConfigDict(
        dict(
            name="windows",
            patch_size=(8, 8),
            window=(18, 18),
            width=1_536,
            num_heads=16,
            perturbation_depth=14,
            forecaster_depth=40,
            log_variance_offset=-4.0,
            log_variance_range=(-12.0, 2.0),
            dtype="bfloat16",
            remat=True,
        )
    )
    config.training = ml_collections.ConfigDict(
        dict(
            num_members=8,
            estimator="fair",
            kl_direction="prior_posterior",
            draw_from="prior",
            rollout_steps=(1, 2, 3),
            total_steps=(3_000, 3_000, 3_000),
            batch_size=1,
            learning_rate=2.5e-4,
            warmup_steps=100,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            max_norm=1.0,
            steps_per_call=100,
            block=1,
        )
    )
    config.num_members = 48
    config.mesh = ml_collections.ConfigDict(dict(member=1, data=1, model=-1))
    return config
