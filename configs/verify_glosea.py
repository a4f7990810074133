"""A real global ensemble: mean, spread, spectra and area means against known values.

    ensjax run configs/verify_glosea.py

13 members of the seasonal forecast GloSea4, monthly surface temperature from August
2011 to January 2012 on 145 x 192 points, from package iris-sample-data. There is no
truth: each member takes its place in turn, for which some scores are known exactly.

On 2 CPU cores (AMD EPYC) that other jobs shared: small 45 s, claims 17 s alone.
All known values are met to their last digit; with each member in turn as the truth the
spread-skill ratio is 1.000000 and ranks are flat to 2 in 10,000. All presets but smoke,
which has two months, read all that there is.
"""

import ml_collections


def get_config(preset="small"):  # smoke | small | claims | paper
    if preset not in ("smoke", "small", "claims", "paper"):
        raise ValueError(f"presets are smoke, small, claims and paper; got {preset!r}.")
    smoke = preset == "smoke"
    config = ml_collections.ConfigDict(dict(experiment="verify_glosea"))
    config.title = "Spread and spectra of a real global ensemble, GloSea4"
    config.num_months = 2 if smoke else 6
    # Months of which maps are drawn, by number.
    config.map_months = (0, 1) if smoke else (0, 5)
    config.band = (30.0, 60.0)  # latitudes of the zonal spectra
    # Where the Pacific says El Nino or La Nina: latitudes and longitudes in degrees.
    config.nino_lat, config.nino_lon = (-5.0, 5.0), (190.0, 240.0)
    config.seed = 0
    return config
