"""Forecast verification: each score as statistics that merge, and a final function.

A `Metric` scores `forecast [member, case..., space...]` against `truth`: at once by
calling it, or in chunks of cases (`init`, `update`, `merge`, `finish`), over devices
(`sum_cases`), or with members that never exist together (`member_states`, folded by
`reduce.fold_members`, then `Metric.sums_of_reduced`). NaN is missing: members are
counted where they are, whichever way they come.

What each metric streams over; "exact" is but for rounding, in any chunks and order:

    metric                   cases  devices  members
    activity_errors          exact  exact    exact
    anomalies                exact  exact    exact
    best_member_error        exact  exact    exact
    bias                     exact  exact    exact
    binned_spread_skill      exact  exact    exact
    bracketed                exact  exact    exact
    brier_score              exact  exact    exact
    brier_skill_score        exact  exact    exact
    centred_acc              exact  exact    exact
    crps                     exact  exact    ordered
    crps_gaussian            exact  exact    none
    crps_parts               exact  exact    ordered
    deflated_error           exact  exact    exact
    energy_score             exact  exact    no
    event_table              exact  exact    exact
    log_score                exact  exact    exact
    mean_efi                 exact  exact    exact
    mean_gain                exact  exact    exact
    mean_square_error        exact  exact    exact
    member_activity          exact  exact    exact
    outcome_weighted_crps    exact  exact    ordered
    outliers                 exact  exact    exact
    pit_histogram            exact  exact    exact
    pooled_crps              exact  exact    ordered
    rank_histogram           exact  exact    exact
    root_mean_square_error   exact  exact    exact
    seeps                    exact  exact    exact
    spectral_crps            exact  exact    ordered
    spherical_spectra        exact  exact    exact
    spread_skill             exact  exact    exact
    threshold_weighted_crps  exact  exact    ordered
    variogram_score          exact  exact    exact
    zonal_spectra            exact  exact    exact

  Ranks and transforms whose ties are drawn: with `reference["case_ids"]` where chunks
  are merged (`sum_cases` gives them itself).
- ordered: it needs the members in order. Exact while all are held (`rank_error=0`, or
  few); else a summary of bounded size changes the number of members below any value by
  at most `rank_error` of all that were folded in, and the score by that times their
  range (`reduce.finish_crps`), in units of the members that are scored; where some are
  missing, thrice that. As a rule it is far less.
- no: distances of all pairs of vectors. Hold all members of a few cases.
- none: its forecast is two numbers, no ensemble.

A state takes memory that members do not change: `variogram_score` moments of all pairs
of places, those in order what `reduce.init_crps` says, others a few numbers an element.

Read from results: `roc`, `roc_area`, `sedi`, `frequency_bias`, `economic_value`,
`reliability_diagram` and `brier_decomposition` from an `event_table`; `bias_drift` and
`bias_growth` from `bias` by lead; `effective_resolution` and `small_scale_power` from
spectra; alarms and a `Scorecard` from the scores of two systems. What resamples members
(`of_size`, `gain_of_size`, `satisfactory`, `satisfactory_size`, `exceedance_interval`)
holds them all, and so do `crps_pwm` and `crps_integral`.
"""

from ensjax.ops.sphere import (
    SphericalGrid,
    find_grid,
    order_weights,
)
from ensjax.verification.alarms import (
    DriftAlarm,
    SmoothingAlarm,
    drift_alarm,
    smoothing_alarm,
)
from ensjax.verification.anomalies import (
    Anomalies,
    anomalies,
    centred_acc,
    member_activity,
)
from ensjax.verification.area import (
    cell_weights,
    colatitude_sine_weights,
    cosine_weights,
    gauss_latitudes,
    gauss_weights,
)
from ensjax.verification.bootstrap import (
    Comparison,
    bootstrap_comparison,
    bootstrap_score,
    draw_blocks,
)
from ensjax.verification.contingency import (
    EconomicValue,
    Roc,
    cost_loss_ratios,
    economic_value,
    frequency_bias,
    roc,
    roc_area,
    sedi,
)
from ensjax.verification.crps import (
    CrpsParts,
    crps,
    crps_gaussian,
    crps_integral,
    crps_parts,
    crps_pwm,
)
from ensjax.verification.dispersion import (
    BinnedSpreadSkill,
    SpreadSkill,
    binned_spread_skill,
    spread_quantiles,
    spread_skill,
)
from ensjax.verification.drift import (
    AbsoluteBias,
    absolute_bias,
    bias_growth,
    squared_bias,
)
from ensjax.verification.efi import (
    climate_probability,
    extreme_forecast_index,
    mean_efi,
    member_efi,
)
from ensjax.verification.equal_activity import (
    ActivityErrors,
    activity_errors,
    equal_activity_rmse,
)
from ensjax.verification.errors import (
    BiasDrift,
    bias,
    bias_drift,
    mean_square_error,
    root_mean_square_error,
)
from ensjax.verification.events import (
    EventTable,
    brier_score,
    brier_skill_score,
    event_table,
    log_score,
)
from ensjax.verification.folding import member_states, merge_member_states
from ensjax.verification.harmonics import (
    from_harmonics,
    to_harmonics,
)
from ensjax.verification.huge import (
    Probability,
    best_member_error,
    bracketed,
    exceedance_interval,
    expected_outliers,
    gain,
    gain_of_size,
    is_outside,
    log_log_slope,
    mean_gain,
    outliers,
    satisfactory,
    satisfactory_size,
)
from ensjax.verification.member_draws import draw_members, of_size, resampled_means
from ensjax.verification.member_state import NotFinite, init_not_finite
from ensjax.verification.metric import Metric
from ensjax.verification.multivariate import (
    energy_score,
    inverse_distance_weights,
    variogram_score,
)
from ensjax.verification.over_devices import sum_cases
from ensjax.verification.rank_histogram import (
    PitHistogram,
    RankHistogram,
    pit_histogram,
    rank_histogram,
)
from ensjax.verification.reliability import (
    BrierDecomposition,
    ReliabilityDiagram,
    brier_decomposition,
    reliability_diagram,
)
from ensjax.verification.resolution import effective_resolution, small_scale_power
from ensjax.verification.scales import pooled_crps, spectral_crps
from ensjax.verification.scorecard import CardScore, Scorecard, make_scorecard
from ensjax.verification.scorecard_tables import (
    scorecard_json,
    scorecard_markdown,
    scorecard_rows,
)
from ensjax.verification.seeps import seeps
from ensjax.verification.spectra import (
    Spectra,
    log_spectral_distance,
    spherical_power,
    spherical_spectra,
    zonal_power,
    zonal_spectra,
    zonal_spectrum,
    zonal_wavelength,
)
from ensjax.verification.stations import (
    Stations,
    at_stations,
    deflated_error,
    density_weights,
    find_stations,
    great_circle_km,
    to_station_height,
)
from ensjax.verification.sums import Sums, means_of, merge_sums, psum_sums, scored_share
from ensjax.verification.weighted_crps import (
    OutcomeWeighted,
    outcome_weighted_crps,
    threshold_weighted_crps,
)

__all__ = [
    "AbsoluteBias",
    "ActivityErrors",
    "Anomalies",
    "BiasDrift",
    "BinnedSpreadSkill",
    "BrierDecomposition",
    "CardScore",
    "Comparison",
    "CrpsParts",
    "DriftAlarm",
    "EconomicValue",
    "EventTable",
    "Metric",
    "NotFinite",
    "OutcomeWeighted",
    "PitHistogram",
    "Probability",
    "RankHistogram",
    "ReliabilityDiagram",
    "Roc",
    "Scorecard",
    "SmoothingAlarm",
    "Spectra",
    "SphericalGrid",
    "SpreadSkill",
    "Stations",
    "Sums",
    "absolute_bias",
    "activity_errors",
    "anomalies",
    "at_stations",
    "best_member_error",
    "bias",
    "bias_drift",
    "bias_growth",
    "binned_spread_skill",
    "bootstrap_comparison",
    "bootstrap_score",
    "bracketed",
    "brier_decomposition",
    "brier_score",
    "brier_skill_score",
    "cell_weights",
    "centred_acc",
    "climate_probability",
    "colatitude_sine_weights",
    "cosine_weights",
    "cost_loss_ratios",
    "crps",
    "crps_gaussian",
    "crps_integral",
    "crps_parts",
    "crps_pwm",
    "deflated_error",
    "density_weights",
    "draw_blocks",
    "draw_members",
    "drift_alarm",
    "economic_value",
    "effective_resolution",
    "energy_score",
    "equal_activity_rmse",
    "event_table",
    "exceedance_interval",
    "expected_outliers",
    "extreme_forecast_index",
    "find_grid",
    "find_stations",
    "frequency_bias",
    "from_harmonics",
    "gain",
    "gain_of_size",
    "gauss_latitudes",
    "gauss_weights",
    "great_circle_km",
    "init_not_finite",
    "inverse_distance_weights",
    "is_outside",
    "log_log_slope",
    "log_score",
    "log_spectral_distance",
    "make_scorecard",
    "mean_efi",
    "mean_gain",
    "mean_square_error",
    "means_of",
    "member_activity",
    "member_efi",
    "member_states",
    "merge_member_states",
    "merge_sums",
    "of_size",
    "order_weights",
    "outcome_weighted_crps",
    "outliers",
    "pit_histogram",
    "pooled_crps",
    "psum_sums",
    "rank_histogram",
    "reliability_diagram",
    "resampled_means",
    "roc",
    "roc_area",
    "root_mean_square_error",
    "satisfactory",
    "satisfactory_size",
    "scorecard_json",
    "scorecard_markdown",
    "scorecard_rows",
    "scored_share",
    "sedi",
    "seeps",
    "small_scale_power",
    "smoothing_alarm",
    "spectral_crps",
    "spherical_power",
    "spherical_spectra",
    "spread_quantiles",
    "spread_skill",
    "squared_bias",
    "sum_cases",
    "threshold_weighted_crps",
    "to_harmonics",
    "to_station_height",
    "variogram_score",
    "zonal_power",
    "zonal_spectra",
    "zonal_spectrum",
    "zonal_wavelength",
]
