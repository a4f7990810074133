"""What do thousands of members show that fifty do not?

    ensjax run configs/huge_ensembles_7424.py
    ensjax run configs/huge_ensembles_7424.py:claims
    ensjax plan configs/huge_ensembles_7424.py:paper   # from shapes alone

The checkpoints of `huge_ensembles.py`, with 619 centred pairs each: 7,428 members of
every start of two-scale Lorenz-96, bred and random. All members of a start are one
program that holds a block of them at a time. Apart from the ids of members, and from
the summary of their order that the CRPS keeps (which grows to a bound that its error
asks for), its memory does not depend on their number; the run counts both. Of one start
of each seed what is streamed is compared with what is kept, and the most extreme member
is made again alone. Both simulators, the two-scale one that made the truth and an
imperfect one, are scored and timed beside them, with the same members of a start to the
same leads.

claims took 51 minutes of two CPU cores that other jobs shared (training 6, each seed's
members 8 to 10) and, for costs alone, 4 minutes of quiet ones: of 50 and of 7,428
members the truth is outside in 18 and 6.8 % of cells, at a spread over error of .81;
the interval of an extreme's probability falls with n to the power -.49 over members and
-.03 over checkpoints. experiments/RESULTS.md has the rest. small takes 5 minutes of two
quiet cores.

Costs are the last stage: delete `stages/cost.npz` and `results.json` of a finished run,
and the same command times them again, alone, such as on a quiet machine.

`paper` is planned, not run: the training of 29 checkpoints as in
`huge_ensembles.py:paper`, and the forecasts of the 7,424 members of one of 92 starts,
on 29 devices with a checkpoint each. A device runs 256 members, one after the other: 60
steps and 6 for its bred vector. They are 2.3e17 operations, 80 minutes at the 3.5 steps
a second of an H200 (experiments/benchmarks/emulate-gpu-h200.json). Moments of nine
channels, extremes with their members, exceedances and outliers of one are kept at 13
leads. The plan has a peak of 39 GiB a device, as XLA's compiler for CPU lays
temporaries out.
"""

import ml_collections

_LEVELS_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1_000)


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset == "paper":
        return _paper()
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="huge_ensembles_7424"))
    config.title = "Huge ensembles II on Lorenz-96: 7,428 members of every start"
    config.scale = "toy"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    config.archive = ml_collections.ConfigDict(
        dict(
            source="lorenz96",
            num_sites=12 if smoke else 36,
            num_fast=4 if smoke else 10,
            forcing=10.0,
            steps_per_output=20,  # of 0.005: an output every 0.1 time units
            spin_up_steps=400 if smoke else 2_000,
            num_train_runs=8 if smoke else 64,
            num_train_outputs=40 if smoke else 300,
            num_starts=2 if smoke else 12 if claims else 2,
            num_before=4,
            num_leads=5 if smoke else 30,
        )
    )
    config.analysis_noise = 0.03  # in deviations of the climate
    config.num_checkpoints = 2 if smoke else 6
    config.model = ml_collections.ConfigDict(
        dict(
            name="residual",
            width=8 if smoke else 32,
            depth=1 if smoke else 3,
            kernel_size=5,
            step_scale=0.4,
        )
    )
    total_steps = 20 if smoke else 2_000 if claims else 1_000
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=total_steps,
            batch_size=64,
            learning_rate=2e-3,
            steps_per_call=total_steps // 10,
            save_every_steps=total_steps,
            block="auto",
        )
    )
    config.perturbations = ml_collections.ConfigDict(
        dict(
            share=0.35,
            error_leads=4,
            num_cycles=3,
            num_pairs=16 if smoke else 619,  # of each checkpoint
        )
    )
    config.leads = (2, 4, 5) if smoke else (10, 20, 30)  # in outputs
    config.judged_lead = 4 if smoke else 20
    config.sizes = (8, 64) if smoke else (50, 100, 500, 1_000, 5_000, 7_428)
    config.crps_size = 8 if smoke else 58
    config.num_resamples = 6 if smoke else 100
    config.num_score_resamples = 2 if smoke else 20  # of the owCRPS, which sorts
    config.extreme_quantile = 0.99
    config.high_quantile = 0.95
    config.num_drawn = 256 if smoke else 7_424  # members of a known field
    config.drawn_shape = (8, 4) if smoke else (64, 32)
    config.cost = ml_collections.ConfigDict(dict(num_timings=1))
    config.block = 8 if smoke else 128
    config.mesh = ml_collections.ConfigDict(
        dict(member=1 if smoke else -1, data=1, model=1)
    )
    return config


def _paper():
    """SFNO at 0.25 degrees, and 7,424 members of a start; nobody has run it.

    Batch, rate and weights of channels are assumed, as in `huge_ensembles.py`.
    """
    config = ml_collections.ConfigDict(
        dict(experiment="huge_ensembles_7424", scale="full")
    )
    config.title = "Huge ensembles II at full size: 29 checkpoints, 7,424 members"
    config.seed = 0
    config.num_seeds = 1
    config.num_checkpoints = 29
    config.archive = ml_collections.ConfigDict(
        dict(
            source="era5",  # 6-hourly, 1979 to 2015, read as a stream
            space=(721, 1440),
            num_channels=74,
        )
    )
    config.model = ml_collections.ConfigDict(
        dict(name="sfno", dtype="bfloat16", remat=True)
    )
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=60_000,  # about 70 epochs
            batch_size=64,
            learning_rate=1e-3,
            steps_per_call=1,
            save_every_steps=1_000,
            block=1,
            # Of u10 v10 u100 v100 t2m sp msl tcwv d2m, then of u v z t q on each level.
            channel_weights=(0.1, 0.1, 0.1, 0.1, 1.0, 0.1, 0.1, 0.1, 0.1)
            + tuple(hpa / 1_000 for hpa in _LEVELS_HPA for _ in range(5)),
        )
    )
    # All members of one of 92 starts; another start is another such job.
    of_day = tuple(range(1, 5))  # 6-hourly, the last one a whole day later
    config.forecasts = ml_collections.ConfigDict(
        dict(
            num_pairs=128,  # of each checkpoint: 256 members
            num_cycles=3,
            noise_km=500.0,
            seed_channel=46,  # the height of 500 hPa
            # t2m d2m tcwv t850 z500 z300 msl t500 sp, as kept of the published run.
            kept_channels=(4, 8, 7, 62, 46, 36, 6, 47, 5),
            extreme_channel=4,  # t2m
            # Days 4, 7 and 10, which were scored, and the last step of 15 days.
            lead_steps=tuple(4 * day + n for day in (3, 6, 9) for n in of_day) + (60,),
            block=1,
            mesh=dict(member=29, data=1, model=1),  # a checkpoint on each device
        )
    )
    # Of every checkpoint a sample on four devices that split its latitudes: 256 of them
    # for a checkpoint, as published.
    config.mesh = ml_collections.ConfigDict(dict(member=29, data=64, model=4))
    return config
