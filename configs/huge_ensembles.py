"""Which sources of spread calibrate an ensemble of deterministic emulators?

    ensjax run configs/huge_ensembles.py
    ensjax run configs/huge_ensembles.py:claims
    ensjax plan configs/huge_ensembles.py:paper        # shapes only, without running

Two-scale Lorenz-96, of which networks see the slow variables alone and learn one step
of 0.1 time units. Ensembles of equal size are made of several checkpoints, of bred
vectors of one, of both, of checkpoints with random perturbations, and of an imperfect
simulator: as many members as there are checkpoints, scores averaged over disjoint draws
of one perturbed member of each. Beside them stand all members of the product, and a
lagged ensemble of one checkpoint. Every seed has an archive and checkpoints of its own;
all are trained as one stack.

On 2 CPU cores (AMD EPYC) claims gave a spread over error of .74 and .85 at times 1 and
2 with both sources, .63 and .77 with checkpoints, .36 and .49 with bred vectors of one,
.74 and .85 with random perturbations; fair CRPS .068 and .169 with both, .081 and .195
of the imperfect simulator. experiments/RESULTS.md has the rest. small takes 5 minutes
of two quiet cores.

Costs are the last stage: delete `stages/cost.npz` and `results.json` of a finished run,
and the same command times them again, alone, such as on a quiet machine.

`paper` has the published sizes: SFNO at 0.25 degrees, 29 checkpoints. ERA5 is not at
hand, so that it is planned, not run. A checkpoint is 2,227,291,174 real numbers (1.12
billion parameters where a complex one counts once), 24.9 GiB with Adam's moments. The
mesh is (29, 64, 4): every checkpoint has 256 devices, as published, and four of them
split the latitudes of a sample. By the plan a peak of 73 GiB on each of 7,424 devices,
of which 29 are temporaries as XLA's compiler for CPU lays them out. The squared error
is weighted by area, a pole counting once, and by channel; not by the deviation of a
channel's change, which takes the archive.
"""

import ml_collections

_LEVELS_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1_000)


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset == "paper":
        return _paper()
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="huge_ensembles"))
    config.title = "Huge ensembles I on Lorenz-96: checkpoints and bred vectors"
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
            num_starts=8 if smoke else 64 if claims else 32,
            num_before=4,
            num_leads=40,
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
            step_scale=0.4,  # about one output's change, in deviations
        )
    )
    total_steps = 20 if smoke else 2_000
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=total_steps,
            batch_size=64,
            learning_rate=2e-3,
            steps_per_call=total_steps // 10,
            save_every_steps=total_steps,
            block="auto",
            early_steps=6 if smoke else 240,  # of networks trained too little
            # Checkpoints of the first seed that are also trained alone, for some steps;
            # the first of them is for all steps, too.
            num_alone=1 if smoke else 6,
            alone_steps=20,
        )
    )
    config.perturbations = ml_collections.ConfigDict(
        dict(
            share=0.35,  # of the error at `error_leads` outputs
            error_leads=4,
            num_cycles=3,
            num_pairs=2,  # of each checkpoint; of one alone, as many members in all
        )
    )
    # In outputs, so that 10 is a time unit; the first two are for the growth.
    config.leads = (0, 1, 2, 3, 4) if smoke else (0, 1, 5, 10, 15, 20, 25, 30, 40)
    config.judged_leads = (2, 3) if smoke else (10, 20)
    config.spectral_lead = 3 if smoke else 30
    config.event_quantile = 0.95
    config.efi = ml_collections.ConfigDict(
        dict(
            num_pairs=2 if smoke else 4,  # of each checkpoint
            num_members=6 if smoke else 50,  # of the simulator
            noise=0.05,  # of members' starts, in deviations
            leads=(1, 2, 3, 4, 5) if smoke else (5, 10, 20, 40),
            judged_leads=(1, 2, 3) if smoke else (10, 20, 40),
            num_free_starts=4 if smoke else 10,  # of the emulators' own climate
            free_leads=(10, 30, 5) if smoke else (100, 400, 10),  # first, last, gap
        )
    )
    config.cost = ml_collections.ConfigDict(
        dict(
            num_members=64 if smoke else 1_536,
            num_leads=3 if smoke else 20,
            num_timings=3 if claims else 1,
            block=32 if smoke else 64,  # trajectories at once, of each that is timed
        )
    )
    config.block = 8 if smoke else 64  # members that run at once
    config.mesh = ml_collections.ConfigDict(
        dict(member=1 if smoke else -1, data=1, model=1)
    )
    return config


def _paper():
    """SFNO at 0.25 degrees; nobody has run it. Batch, rate and weights are assumed.

    Weights of channels are those of FourCastNet 3, by the same authors, with 0.1 for
    what that has not.
    """
    config = ml_collections.ConfigDict(dict(experiment="huge_ensembles", scale="full"))
    config.title = "Huge ensembles I at full size: 29 checkpoints x one centred pair"
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
    config.perturbations = ml_collections.ConfigDict(
        dict(share=0.35, error_leads=8, num_cycles=3, num_pairs=1)
    )
    config.num_starts, config.num_steps = 730, 60  # of 6 hours
    config.block = 1
    # Of every checkpoint a sample on four devices that split its latitudes: 256 of them
    # for a checkpoint, as published.
    config.mesh = ml_collections.ConfigDict(dict(member=29, data=64, model=4))
    return config
