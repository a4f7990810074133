"""Does a diffusion model continue an ensemble of Lorenz-96 from two members?

    ensjax run configs/seeds.py
    ensjax run configs/seeds.py:claims
    ensjax plan configs/seeds.py:paper        # shapes only, without running

Members and truth start from one analysis and are two time units old. A denoiser sees
two members of five and learns to sample another; then it makes 64 from two, beside
the 29 others that the simulator has. Every seed has an archive and a network of its
own, and all networks are trained as one stack. The paper's system is GEFS: toy scale.

claims has 5 seeds and took 82 minutes beside other work (networks with noise inside
most of it). In deviations of the climate the two seeds have a CRPS of 0.636, a
Gaussian at each site 0.591, 64 generated members 0.494, the 29 others 0.435; fair CRPS
0.486 against 0.420. All of (a) to (e) holds: 0.707 of the gap is closed, spread over
error is 1.04, power 0.96 to 1.08 of the simulator's, the pattern of spread correlates
0.14 more than the seeds'. A network that makes a member in one call (two noise
members, 4,500 steps) has the fair CRPS of 24 Heun levels and a spread over error of
0.905. Of the paper's claims three fail at this scale: at equal sizes CRPS is 1.157 of
the full ensemble's, the pattern of spread correlates 0.47 of what its halves do, and a
simulated member costs 0.01 generated ones.

`paper` has the published sizes: eight fields on a cubed sphere, two seeds, one network
for each of six leads. Its reforecasts are not at hand here, so that it is planned, not
run. Who has them, and analyses by valid time, as zarr or netCDF runs

    ensjax run configs/seeds.py:paper --config.archive.path=reforecasts.zarr \\
        --config.archive.truth=era5.zarr --config.archive.test_path=operational.zarr

Not published and assumed: heads, optimizer, learning rate, and b of the noise.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset == "paper":
        return _paper()
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="seeds"))
    config.title = "SEEDS on Lorenz-96: an ensemble continued from two members"
    config.scale = "toy"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    config.archive = ml_collections.ConfigDict(
        dict(
            source="lorenz96",
            # In smoke as many trajectories in both, of which one program is made: a
            # truth and 5 members of 88 cases, a truth and 10 members of 48.
            num_train_cases=88 if smoke else 10_000,
            num_train_members=5,
            num_test_cases=48 if smoke else 200,
            num_test_members=10 if smoke else 31,
            num_sites=40,
            forcing=8.0,
            lead_steps=40,
            spin_up_steps=400,
            analysis_noise=0.3,
            member_noise=0.3,
        )
    )
    config.model = ml_collections.ConfigDict(
        # In smoke a smaller one, which compiles sooner.
        dict(name="residual", width=32, depth=1 if smoke else 3, kernel_size=5)
    )
    config.diffusion = "edm"
    total_steps = 20 if smoke else 2_000
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=total_steps,
            batch_size=64,
            learning_rate=2e-3,
            ema_decay=0.9 if smoke else 0.999,
            sampling="independent",  # every network has its own order of cases
            steps_per_call=total_steps // 10,
            save_every_steps=total_steps if smoke else 1_000,
            block="auto",
        )
    )
    config.sampler = ml_collections.ConfigDict(
        dict(num_levels=6 if smoke else 24, low=0.002, high=80.0, rho=7.0)
    )
    config.num_samples = 8 if smoke else 64
    config.samples_at_once = 4 if smoke else 16  # of a case, in a call of the sampler
    # Distillation: the same denoiser in a few calls.
    total_steps = 10 if smoke else 400
    config.few = ml_collections.ConfigDict(
        dict(
            num_levels=4,
            low=0.2,
            total_steps=total_steps,
            num_substeps=2,
            lowest=0.01,
            learning_rate=5e-4,
            ema_decay=0.9 if smoke else 0.99,
            steps_per_call=total_steps // 10,
            save_every_steps=total_steps,
        )
    )
    config.event_sds = 2.0  # tails: beyond the climate's mean by so many deviations
    # Networks that make a member in one call, beside samplers of ever more levels.
    config.speed = ml_collections.ConfigDict(
        dict(
            num_seeds=1 if smoke else 3 if claims else 2,
            num_samples=4 if smoke else 48 if claims else 16,
            num_levels=(6,) if smoke else (4, 6, 12, 24),
            num_timings=3 if claims else 1,
            # A network each: its members in training, steps and rate.
            crps_members=(4, 2) if claims else (2,),
            crps_steps=(10,) if smoke else (1_500, 4_500) if claims else (1_500,),
            crps_learning_rates=(2e-3, 3e-3) if claims else (3e-3,),
            num_noise_channels=4,
            alpha=0.95,
            ema_decay=0.9 if smoke else 0.999,
        )
    )
    # All cores for one network, or a core for each of several.
    mesh = dict(member=1 if smoke else -1, data=1, model=1)
    config.mesh = ml_collections.ConfigDict(mesh)
    return config


def _paper():
    """Six leads of GEFS reforecasts; nobody has run it. Sampler: that of the demo.

    A run from files keeps 130 GB of standardised fields; in memory are a few batches of
    them (2 GB each) and, once, the truth of all valid times in double precision.
    """
    config = ml_collections.ConfigDict(dict(experiment="seeds", scale="full"))
    config.title = "SEEDS at full size: GEFS reforecasts continued from two members"
    config.seed = 0
    config.num_seeds = 1
    config.archive = ml_collections.ConfigDict(
        dict(
            source="files",
            path="",  # reforecasts with leads, to train on
            test_path="",  # to test on; "": the starts behind those of training
            truth="",  # by valid time
            mapping="",  # of names in the files, such as time=init,lead_units=hours
            truth_mapping="",
            variables=(),  # that are opened; (): all that both have
            grid="cube",  # that of `space`: cube | gaussian | file, as they are
            batches_per_call=1,  # that are on the device together
            window_days=15,  # around a day of the climate; 0: one for all days
            num_train_cases=7_305,  # 00 UTC of every day from 2000 to 2019
            num_train_members=5,
            num_test_cases=349,  # to 2022-12-15
            num_test_members=31,
            lead_days=(1, 4, 7, 10, 13, 16),
            # As opened: a variable, or one at a level.
            fields=("mslp", "t2m", "u_850", "v_850", "z_500", "t_850", "tcwv", "q_500"),
            space=(6, 48, 48),  # the cubed sphere, about 2 degrees
        )
    )
    config.model = ml_collections.ConfigDict(
        dict(
            name="axial",
            patch_size=(12, 12),
            levels=(0, 1, 2, 2, 3, 2, 4, 3),  # sea, 2 m, 850 hPa, 500 hPa, column
            width=768,
            depths=(6, 4, 6),
            num_heads=12,
            mlp_width=4 * 768,
            dtype="bfloat16",
            remat=True,
        )
    )
    config.diffusion = "ve"  # g(t) = 25^t
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=200_000,
            batch_size=128,
            learning_rate=1e-4,
            ema_decay=0.9999,
            sampling="shared",  # all leads of a start are read together
            steps_per_call=100,
            save_every_steps=10_000,
            block=1,
        )
    )
    config.sampler = ml_collections.ConfigDict(dict(num_steps=600))  # to time 1e-3
    config.num_samples = 512
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
