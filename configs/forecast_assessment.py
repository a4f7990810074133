"""Is a learned forecast as good as a simulated one, and at what price in smoothness?

    ensjax run configs/forecast_assessment.py
    ensjax run configs/forecast_assessment.py:claims

Two-scale Lorenz-96 is the weather, a one-scale simulator with a fitted closure the
numerical model. Networks learn one step by mean squared error, eight steps by mean
squared error, and members by the CRPS. All start from the same analyses, and a report
such as a forecasting centre writes says what each is worth: error, correlation and
activity by lead, the error at equal activity, spectra, extremes against analyses and
against simulated stations, drift, alarms, cost, and a scorecard. Beside it, real rain.
Leads are in time units of the system, of which one is five days; toy scale.

claims took 37 minutes of two CPU cores that other jobs shared (training and forecasts
34): RMSE of the emulator and of the simulator 0.242 and 0.242 at lead 1, 0.843 and
0.852 at lead 3. Activity at lead 3 is 0.995 of the analyses' for one step, 0.994 for
several, 0.996 for CRPS members and 0.78 for their mean, at which the smoothing alarm
rings. A planted drift is found in every resample, none where there is none. SEDI
differs by 0.03 on average. A forecast day of the simulator takes 0.7 % of the
emulator's operations. Rain: CRPS 7.08 mm raw, 4.69 after EMOS; SEEPS of the medians,
0.74 and 0.78. experiments/RESULTS.md has the rest. `small` takes 2.5 minutes
of two quiet cores.

`paper` is planned, not run: what was verified, PanguWeather, is no network of ensjax.
In its place stands the spherical Fourier neural operator of Huge Ensembles at 0.25
degrees, fine-tuned on the squared error of eight steps, the training whose smoothness
is asked about. Its forecasts and those of the IFS would be scored by `ensjax verify`.
"""

import ml_collections

_LEVELS_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1_000)


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    if preset == "paper":
        return _paper()
    smoke, claims = preset == "smoke", preset == "claims"
    config = ml_collections.ConfigDict(dict(experiment="forecast_assessment"))
    config.title = "Learned against simulated forecasts: a report as of a centre"
    config.scale = "toy"
    config.source = "lorenz96"
    config.seed = 0
    config.num_seeds = 1 if smoke else 5 if claims else 2
    config.archive = ml_collections.ConfigDict(
        dict(
            num_sites=36,
            num_fast=10,
            forcing=10.0,
            steps_per_output=20,  # of 0.005 time units: an output each 0.1
            spin_up_steps=400 if smoke else 2_000,
            num_train_runs=8 if smoke else 64,
            num_train_outputs=30 if smoke else 300,
            num_starts=16 if smoke else 200 if claims else 100,
            num_before=1,
            num_leads=10 if smoke else 50,
        )
    )
    # In outputs; the first is one step, and the others are read in time units.
    config.leads = (1, 5, 10) if smoke else (1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    config.analysis_noise = 0.05  # deviations of the climate
    config.num_members = 4 if smoke else 20 if claims else 10
    config.model = ml_collections.ConfigDict(
        dict(width=8 if smoke else 32, depth=1 if smoke else 3, kernel_size=5)
    )
    config.training = ml_collections.ConfigDict(
        dict(
            batch_size=64,
            learning_rate=2e-3,
            warmup_steps=2 if smoke else 100,
            one_step=20 if smoke else 1_500 if claims else 400,  # optimizer steps
            crps=20 if smoke else 1_500 if claims else 300,
            # Of several steps, from the weights of one step on.
            several=20 if smoke else 1_000 if claims else 100,
            several_learning_rate=5e-4,
            num_rollout_steps=3 if smoke else 8,
            crps_members=4,
            num_noise_channels=4,
            alpha=0.95,
            steps_per_call=10 if smoke else 100,
            block="auto",
        )
    )
    config.extremes = ml_collections.ConfigDict(
        dict(
            percents=(2.0, 5.0, 95.0, 98.0),
            leads=(5, 10, 20) if not smoke else (5, 10),  # outputs
            num_stations=60,
            station_noise=0.1,  # of an observation, deviations of the climate
            member_counts=(2, 4) if smoke else (2, 5, 10, 20) if claims else (2, 5, 10),
        )
    )
    # A drift that is planted into forecasts: size (1 - exp(-lead / time)).
    config.drift = ml_collections.ConfigDict(
        dict(size=0.5, time=2.0, num_resamples=20)  # deviations, time units
    )
    config.num_sectors = 6  # of the ring, in the place of zones
    # Of the means of these outputs the extreme forecast index is taken.
    config.efi = ml_collections.ConfigDict(
        dict(first_lead=6, last_lead=10) if smoke else dict(first_lead=11, last_lead=20)
    )
    # Starts are independent of each other; blocks cost nothing.
    config.bootstrap = ml_collections.ConfigDict(
        dict(num_resamples=100 if smoke else 1_000, block_length=4)
    )
    config.rain = ml_collections.ConfigDict(
        dict(
            split_date="2009-01-01",
            gap_days=3,  # sums are of 3 days
            threshold=10.0,  # mm
            num_quantiles=11 if smoke else 50,
            block_days=30,
            num_test=200 if smoke else 0,  # 0: all
        )
    )
    config.cost_repeats = 1 if smoke else 3
    mesh = dict(member=1 if smoke else -1, data=1, model=1)
    config.mesh = ml_collections.ConfigDict(mesh)
    return config


def _paper():
    """A network of Huge Ensembles in the place of PanguWeather; nobody has run it."""
    config = ml_collections.ConfigDict(
        dict(experiment="forecast_assessment", scale="full", source="era5")
    )
    config.title = "A deterministic emulator at 0.25 degrees, trained on eight steps"
    config.seed = 0
    config.num_seeds, config.num_checkpoints = 1, 1
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
            total_steps=10_000,
            batch_size=32,
            learning_rate=1e-5,
            num_rollout_steps=8,  # of 6 hours
            steps_per_call=1,
            save_every_steps=1_000,
            block=1,
            # Of u10 v10 u100 v100 t2m sp msl tcwv d2m, then of u v z t q on each level.
            channel_weights=(0.1, 0.1, 0.1, 0.1, 1.0, 0.1, 0.1, 0.1, 0.1)
            + tuple(hpa / 1_000 for hpa in _LEVELS_HPA for _ in range(5)),
        )
    )
    config.mesh = ml_collections.ConfigDict(dict(member=1, data=32, model=4))
    return config
