"""Does a diffusion model continue a global ensemble from two of its members?

    ensjax run configs/seeds_sphere.py
    ensjax run configs/seeds_sphere.py:claims
    ensjax plan configs/seeds_sphere.py:paper   # 113.8 M parameters a lead: shapes only

The simulator is a dry atmosphere, Held-Suarez forcing at T21 with 5 levels on 64 x 32
points (package dinosaur, extra `weather`); the fields are the temperature of its lowest
layer and its surface pressure. Members and truth start two days after noise was put on
one analysis, and are ten days old. All seeds share one archive, which is kept in the
user's cache; a seed has a network of its own, and other members are given to it.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset == "paper":
        return _paper()
    if preset not in ("smoke", "small", "claims"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="seeds_sphere"))
    config.title = "SEEDS on the sphere: a Held-Suarez ensemble from two members"
    config.scale = "toy"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    # Parts are kept one by one: `claims` goes on from what `small` has simulated.
    config.archive = ml_collections.ConfigDict(
        dict(
            source="held_suarez",
            num_train_parts=8 if claims else 1,
            # In smoke both archives have the same shapes: they are one program.
            num_train_cases=4 if smoke else 24,  # of a part
            num_train_runs=1 if smoke else 2,  # of a part, which its cases are dealt to
            num_train_members=5,
            num_test_parts=5 if claims else 1,
            num_test_cases=4,  # of a part
            num_test_runs=1,
            num_test_members=5 if smoke else 31,
            num_levels=2 if smoke else 5,
            step_minutes=120 if smoke else 60,
            spin_up_days=4 if smoke else 150,
            gap_days=1 if smoke else 10,
            settle_days=0 if smoke else 2,
            lead_days=(0, 1) if smoke else (0, 1, 3, 5, 7, 10),
            noise=0.2,  # of the waves of temperature
        )
    )
    config.model = ml_collections.ConfigDict(dict(name="unet"))
    config.model.options = ml_collections.ConfigDict(
        dict(
            num_channels=2,
            num_condition_channels=3 * 2 + 2,  # of the seeds, and of the climate
            widths=(8,) if smoke else (16, 32, 64),  # of one grid: sooner compiled
            depth=1,
            kernel_size=(3, 3),
            padding="lat_lon",
            norm=None,
        )
    )
    config.diffusion = "edm"
    # ln sigma in training. Fields are smooth: waves up to the filter's degree drown in
    # noise of 1 to 3 at every place. There and above the seeds decide, but of the usual
    # levels (-1.2 and 1.2, for images) 6 % are above 2. After 400 steps of a network of
    # half the width those miss the mean of the other members by 0.61, these by 0.44; a
    # share of the seeds' mean misses it by 0.41.
    config.noise = ml_collections.ConfigDict(dict(mean=0.3, sd=1.4))
    total_steps = 10 if smoke else 3_000 if claims else 1_000
    config.training = ml_collections.ConfigDict(
        dict(
            total_steps=total_steps,
            batch_size=4 if smoke else 8,
            learning_rate=3e-3,
            ema_decay=0.9 if smoke else 0.998 if claims else 0.995,
            sampling="independent",  # every network has its own order of cases
            steps_per_call=total_steps // 10,
            save_every_steps=total_steps if smoke else total_steps // 5,
            block="auto",
        )
    )
    config.sampler = ml_collections.ConfigDict(
        dict(
            num_levels=3 if smoke else 12,
            few_levels=3 if smoke else 6,  # those of smoke are one program
            low=0.01,
            high=40.0,
            rho=7.0,
            cases_per_call=1,
        )
    )
    # In smoke and small as many as the simulator's others: one program scores both.
    config.num_samples = 3 if smoke else 48 if claims else 29
    config.event_sds = 2.0  # tails: so many deviations off the climate's mean
    # Beyond it the simulator's filter leaves little: spectra are compared in one band.
    config.last_degree = 17
    # All cores for one network: it does not gain from a second one beside it.
    config.mesh = ml_collections.ConfigDict(dict(member=1, data=1, model=1))
    return config


def _paper():
    """Six leads of GEFS reforecasts on the cubed sphere, as in `seeds.py:paper`."""
    config = ml_collections.ConfigDict(dict(experiment="seeds_sphere", scale="full"))
    config.title = "SEEDS at full size: GEFS reforecasts continued from two members"
    config.seed = 0
    config.num_seeds = 1
    config.archive = ml_collections.ConfigDict(
        dict(
            source="gefs",
            num_train_cases=7_305,  # 00 UTC of every day from 2000 to 2019
            num_train_members=5,
            num_test_cases=349,  # to 2022-12-15
            num_test_members=31,
            lead_days=(1, 4, 7, 10, 13, 16),
            fields=("mslp", "t2m", "u850", "v850", "z500", "t850", "tcwv", "q500"),
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
    config.sampler = ml_collections.ConfigDict(dict(num_steps=600, last_time=1e-3))
    config.num_samples = 512
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
