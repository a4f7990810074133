"""Emulators of physical ensembles: simulators, archives, forecasts, diffusion."""

from ensjax.emulate.archive import Archive
from ensjax.emulate.climatology import (
    Standardiser,
    day_of_leap_year,
    fit_archive_climate,
    fit_standardiser,
)
from ensjax.emulate.closure import (
    ClosureLorenz96,
    closure_forecasts,
    fit_closure,
)
from ensjax.emulate.forecast_plan import ForecastJob, ForecastPlan, plan_forecasts
from ensjax.emulate.held_suarez import HeldSuarez
from ensjax.emulate.held_suarez_archive import held_suarez_archive
from ensjax.emulate.kept import archive_folder, kept_archive
from ensjax.emulate.lorenz96 import (
    Lorenz96,
    TwoScaleLorenz96,
    lorenz96_archive,
    lorenz96_tendency,
    two_scale_tendency,
)
from ensjax.emulate.packaged_glosea import glosea4_temperature, read_pp
from ensjax.emulate.packaged_rain import innsbruck_rain, innsbruck_table
from ensjax.emulate.perturb import (
    BredVectors,
    GlobalNorm,
    HemisphericNorm,
    NoPerturbation,
    RandomPerturbation,
    Start,
    bred_amplitude,
    lagged_ensemble,
)
from ensjax.emulate.product import (
    MemberForecast,
    fold_product,
    fold_program,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.emulate.product_job import MemberId
from ensjax.emulate.rollout import FieldsStep, NetworkStep, Rollout, SystemStep
from ensjax.emulate.sample_job import (
    SampleJob,
    SamplerSettings,
    sample_blocks,
)
from ensjax.emulate.spherical_noise import (
    SphericalNoise,
)
from ensjax.emulate.trajectories import (
    System,
    climate_states,
    run_climate,
    run_trajectories,
    twin_archive,
)
from ensjax.emulate.variational import (
    ConstantPerturbation,
    ConstantSpread,
    GaussianField,
    GaussianPerturbation,
    VariationalForecaster,
    gaussian_kl,
)
from ensjax.emulate.variational_training import (
    VariationalLoss,
    VariationalPair,
    emulators_of,
)
from ensjax.emulate.windows import OwnTask, windows

__all__ = [
    "Archive",
    "BredVectors",
    "ClosureLorenz96",
    "ConstantPerturbation",
    "ConstantSpread",
    "FieldsStep",
    "ForecastJob",
    "ForecastPlan",
    "GaussianField",
    "GaussianPerturbation",
    "GlobalNorm",
    "HeldSuarez",
    "HemisphericNorm",
    "Lorenz96",
    "MemberForecast",
    "MemberId",
    "NetworkStep",
    "NoPerturbation",
    "OwnTask",
    "RandomPerturbation",
    "Rollout",
    "SampleJob",
    "SamplerSettings",
    "SphericalNoise",
    "Standardiser",
    "Start",
    "System",
    "SystemStep",
    "TwoScaleLorenz96",
    "VariationalForecaster",
    "VariationalLoss",
    "VariationalPair",
    "archive_folder",
    "bred_amplitude",
    "climate_states",
    "closure_forecasts",
    "day_of_leap_year",
    "emulators_of",
    "fit_archive_climate",
    "fit_closure",
    "fit_standardiser",
    "fold_product",
    "fold_program",
    "gaussian_kl",
    "glosea4_temperature",
    "held_suarez_archive",
    "innsbruck_rain",
    "innsbruck_table",
    "kept_archive",
    "lagged_ensemble",
    "lorenz96_archive",
    "lorenz96_tendency",
    "plan_forecasts",
    "product_ids",
    "read_pp",
    "run_climate",
    "run_product",
    "run_trajectories",
    "sample_blocks",
    "states_by_lead",
    "twin_archive",
    "two_scale_tendency",
    "windows",
]
