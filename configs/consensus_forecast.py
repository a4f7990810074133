"""Consensus of many forecasters: how good, and how robust, are the mean and the median?

    ensjax run configs/consensus_forecast.py

After the TADPOLE challenge (92 forecasts of the course of Alzheimer's disease): 20
forecasters of disease progression (diabetes), 16 of three wines from 45 rows, and 15 of
three outcomes of a simulated disease, all of scikit-learn; clean, and with a fifth of
them broken.

On 2 CPU cores (AMD EPYC), shared with others: 48 s of CPU time for small, 97 s for
claims, 24 s for smoke with its start-up. Of claims: the median has the mean rank 4.2 of
20 (diabetes, MAE 44.7; best in hindsight 44.0) and 2.8 of 16 (wine). With a fifth
broken its MAE is 45.0, that of the mean 102.6. The claim that a consensus is near the
top (first tenth) on most tasks fails: 10 % of them. Preset `paper` is unrun.

The rates of the simulated disease are our choice: the constant forecast of the
ventricles errs by about 1.2, the best entries by 0.36.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    config = ml_collections.ConfigDict(dict(experiment="consensus_forecast", seed=0))
    config.title = "TADPOLE: consensus of many forecasts"
    # "studies": the three data sets below; "tadpole": the challenge's own files.
    config.data = "tadpole" if preset == "paper" else "studies"

    # A repetition draws its own split of rows (or its own people) and its own models.
    config.num_seeds = dict(smoke=2, small=5, claims=20, paper=1)[preset]
    config.num_trees = 10 if preset == "smoke" else 100  # of every forest and boosting
    config.diabetes = ml_collections.ConfigDict(dict(train_share=0.6))
    config.wine = ml_collections.ConfigDict(dict(num_train=45))

    config.simulation = ml_collections.ConfigDict(dict())
    config.simulation.num_seeds = dict(smoke=2, small=5, claims=10, paper=1)[preset]
    config.simulation.num_train, config.simulation.num_test = 300, 219
    config.simulation.visit_years = (0.0, 0.5, 1.0, 1.5)
    config.simulation.forecast_years = 3.0  # after the last visit
    # Stage z = t0 + rate t; rate is log-normal, in stages a year.
    config.simulation.onset_sd = 1.2
    config.simulation.rate_median, config.simulation.rate_log_sd = 0.37, 0.5
    config.simulation.class_edges = (0.9, 2.6)  # CN | MCI | AD
    # ventricles = base_weight base + stage_weight z + noise, base ~ N(0, 1)
    config.simulation.ventricles = ml_collections.ConfigDict(
        dict(base_weight=0.6, stage_weight=0.9, noise_sd=0.15)
    )
    # The score is noisier where it is forecast than at the visits.
    config.simulation.score = ml_collections.ConfigDict(
        dict(stage_weight=0.35, noise_sd=1.0, forecast_noise_sd=1.9)
    )
    config.simulation.marker = ml_collections.ConfigDict(
        dict(onset_weight=-1.2, noise_sd=0.8)
    )

    # Broken entries: times ten, all zero, a constant, noise; of classes: shifted by
    # one, always the first, chance. Sizes in standard deviations of the targets.
    config.broken = ml_collections.ConfigDict(
        dict(share=0.2, constant_sd=13.0, noise_sd=6.5)
    )
    config.trim_share = 0.2  # of the trimmed and the winsorised mean
    config.min_width_sd = 0.01  # narrower intervals count as this in the WES
    config.num_resamples = 400 if preset == "smoke" else 2000  # of people
    config.level = 0.05  # of Holm's tests against the constant forecast

    # data="tadpole": a folder of the challenge's submissions (CSV) and its file D4,
    # which need an agreement with ADNI (adni.loni.usc.edu).
    config.tadpole = ml_collections.ConfigDict(dict(submissions="", d4=""))
    config.tadpole.min_months = 60
    config.mesh = ml_collections.ConfigDict(dict(member=-1, data=1, model=1))
    return config
