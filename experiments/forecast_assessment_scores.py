"""What `forecast_assessment.py` measures of the forecasts of one seed.

Deterministic forecasts are `[start, lead, site]`, ensembles `[member, start, lead,
site]`; errors are in deviations of the climate, leads those of the config. The truth is
the analysis at the valid time, or what stations observe.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from ensjax import verification as v
from ensjax.experiment.fields import load_beside
from ensjax.scores.ood import auroc

weather = load_beside(__file__, "lorenz96_forecasts")

SINGLE = ("emulator", "multistep", "simulator")
ENSEMBLES = ("crps", "physical")
TRUTHS = ("analysis", "stations")
NUM_BELOW = 2  # of the thresholds are of the lower tail
_STATIONS = 7  # of the draws of this experiment, beside those of the archive


class Truth(NamedTuple):
    """What forecasts are compared with.

    Attributes:
        values: `[start, lead, place]`.
        climatology: its mean by place, `[place]`.
        thresholds: percentiles of its climate by place, `[place, threshold]`.
    """

    values: np.ndarray
    climatology: np.ndarray
    thresholds: np.ndarray


class Case(NamedTuple):
    """All that one seed is verified with.

    Attributes:
        truths: by name of `TRUTHS`.
        stations: where they lie.
        exact: the truth itself, without errors, `[start, output, site]` from the start.
        train: the training runs, in deviations.
    """

    truths: dict[str, Truth]
    stations: v.Stations
    exact: np.ndarray
    train: np.ndarray


def case_of(config, archive, seed: int) -> Case:
    """Analyses, stations, observations and climates of a seed."""
    before, leads = config.archive.num_before, np.asarray(config.leads)
    extremes, sites = config.extremes, config.archive.num_sites
    rng = np.random.default_rng([config.seed, seed, _STATIONS])
    places = rng.uniform(0, sites, size=(extremes.num_stations, 1))
    stations = v.find_stations(
        [np.arange(sites)], places, periods=[float(sites)], method="linear"
    )
    exact = archive["truth"][:, before:]
    train = ((archive["train"] - archive["mean"]) / archive["sd"]).astype(np.float32)
    own = weather.analyses(archive, config, seed, noise=config.analysis_noise)

    def observed(field):
        found = np.asarray(v.at_stations(field.astype(np.float32), stations))
        return found + extremes.station_noise * rng.standard_normal(found.shape)

    fields = {
        "analysis": (own[:, before:][:, leads], train),
        "stations": (observed(exact[:, leads]), observed(train)),
    }
    truths = {}
    for name, (values, climate) in fields.items():
        climate = climate.reshape(-1, climate.shape[-1])
        truths[name] = Truth(
            values.astype(np.float32),
            climate.mean(axis=0).astype(np.float32),
            np.percentile(climate, extremes.percents, axis=0).T.astype(np.float32),
        )
    return Case(truths, stations, exact, train)


def at_truth(field, name: str, case: Case) -> np.ndarray:
    """A forecast where the truth of that name is."""
    if name == "analysis":
        return field
    return np.asarray(v.at_stations(field, case.stations))


def case_and_forecasts(config, archives, forecasts, seed):
    """What a seed is verified with, and its forecasts by name."""
    archive = {name: values[seed] for name, values in archives.items()}
    own = {
        name: values[seed] for name, values in forecasts.items() if name != "not_finite"
    }
    return case_of(config, archive, seed), own


def measure(config, archives, forecasts) -> dict[str, np.ndarray]:
    """Everything, `[seed, ...]`."""
    rows = []
    for seed in range(config.num_seeds):
        case, own = case_and_forecasts(config, archives, forecasts, seed)
        rows.append(
            skill(own, case)
            | spectra(own, case)
            | bias_of_systems(config, own, case)
            | extremes_of_systems(config, own, case)
            | planted_drift(config, own, case, seed)
            | extreme_index(config, own, case)
            | observation_errors(config, own, case)
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def fields_of(own) -> dict[str, Any]:
    """Single forecasts by name; of ensembles the mean, and all members as starts."""
    found = {name: own[name] for name in SINGLE}
    for name in ENSEMBLES:
        found[f"{name}_mean"] = own[name].mean(axis=0)
        found[f"{name}_members"] = own[name].reshape(-1, *own[name].shape[2:])
    return found


@functools.partial(jax.jit, static_argnames="metric")
def scored(metric, forecast, truth, reference):
    return metric(forecast, truth, reference=reference)


def skill(own, case) -> dict[str, np.ndarray]:
    """Error, correlation and activity of every system by lead, against analyses; the
    fair CRPS, and spread over error, of ensembles."""
    truth = case.truths["analysis"]
    found = {}
    for name, field in fields_of(own).items():
        times = len(field) // len(truth.values)
        got = scored(
            v.activity_errors().over(0, 2),
            field[None],
            np.tile(truth.values, (times, 1, 1)),
            {"climatology": truth.climatology},
        )
        found |= {f"{name}_{part}": x for part, x in got._asdict().items()}
    for name in ENSEMBLES:
        crps = scored(v.crps("fair").over(0, 2), own[name], truth.values, None)
        spread = scored(v.spread_skill().over(0, 2), own[name], truth.values, None)
        found |= {f"{name}_fair_crps": crps, f"{name}_ssr": spread.unbiased_ratio}
    for name in ("mean", "members"):
        alarm = v.smoothing_alarm(
            found[f"crps_{name}_rmse"],
            found[f"crps_{name}_activity_ratio"],
            reference_rmse=found["emulator_rmse"],
            reference_activity_ratio=found["emulator_activity_ratio"],
        )
        found[f"crps_{name}_smoothing"] = alarm.fires
    alarm = v.smoothing_alarm(
        found["multistep_rmse"],
        found["multistep_activity_ratio"],
        reference_rmse=found["emulator_rmse"],
        reference_activity_ratio=found["emulator_activity_ratio"],
    )
    found["multistep_smoothing"] = alarm.fires
    return numbers(found)


def spectra(own, case) -> dict[str, np.ndarray]:
    """Power over that of the analyses by lead and wavenumber, power of the upper half
    of the wavenumbers, and effective resolution."""
    truth = case.truths["analysis"].values
    found = {}
    for name in (*SINGLE, *ENSEMBLES):
        forecast = own[name][None] if name in SINGLE else own[name]
        got = scored(v.zonal_spectra().over(0), forecast, truth, None)
        parts = {name: got.members}
        if name in ENSEMBLES:
            parts = {f"{name}_members": got.members, f"{name}_mean": got.ensemble_mean}
        for part, power in parts.items():
            found[f"{part}_power"] = power / got.truth
            found[f"{part}_small"] = v.small_scale_power(power, got.truth)
            found[f"{part}_resolution"] = v.effective_resolution(power, got.truth)
    return numbers(found)


def bias_of_systems(config, own, case) -> dict[str, np.ndarray]:
    """Signed area mean, absolute biases and what is beyond sampling, by lead; slopes a
    time unit."""
    truth = case.truths["analysis"].values
    days = lead_times(config)
    found = {}
    for name in (*SINGLE, "crps_mean", "physical_mean"):
        field = own[name] if name in SINGLE else own[name.split("_")[0]].mean(axis=0)
        error = field - truth
        wide = error.reshape(*error.shape[:2], config.num_sectors, -1)
        of_place = wide.mean(axis=0)
        absolute = v.absolute_bias(of_place)
        slopes = v.bias_growth(of_place, days)
        of_case = {"area": error.mean(axis=-1)[..., None], "zonal": wide.mean(axis=-1)}
        found |= {
            f"{name}_bias": error.mean(axis=(0, 2)),
            f"{name}_map": error.mean(axis=0),
        }
        for part in ("area", "zonal", "local"):
            found[f"{name}_{part}_bias"] = getattr(absolute, part)
            found[f"{name}_{part}_slope"] = getattr(slopes, part)
        for part, values in of_case.items():
            # By halves: intervals over seeds are Student's, for which it must not skew.
            squared = v.squared_bias(values, by_halves=True).mean(axis=-1)
            found[f"{name}_{part}_squared"] = squared
            found[f"{name}_{part}_squared_slope"] = v.bias_drift(squared, days).slope
    return numbers(found)


def lead_times(config) -> np.ndarray:
    """Leads in time units of the system."""
    step = weather.system_of(config).step_length
    return np.asarray(config.leads) * config.archive.steps_per_output * step


def extreme_leads(config) -> list[int]:
    """Where the leads of the extremes are among all leads."""
    return [list(config.leads).index(lead) for lead in config.extremes.leads]


def extremes_of_systems(config, own, case) -> dict[str, np.ndarray]:
    """SEDI and frequency bias `[lead, threshold]` of single systems at the leads of the
    extremes, and the ROC area of ensembles by number of members `[count, lead,
    threshold]`, against both truths."""
    at = extreme_leads(config)
    found = {}
    for kind in TRUTHS:
        truth = case.truths[kind]
        levels = {"thresholds": truth.thresholds}
        for name in SINGLE:
            field = at_truth(own[name][:, at], kind, case)[None]
            table = scored(table_of(1).over(0, 2), field, truth.values[:, at], levels)
            found[f"{name}_sedi_{kind}"] = v.sedi(table)[..., 0]
            found[f"{name}_frequency_{kind}"] = v.frequency_bias(table)[..., 0]
        for name in ENSEMBLES:
            field = at_truth(own[name][:, :, at], kind, case)
            areas = [
                v.roc_area(
                    scored(
                        table_of(count).over(0, 2),
                        field[:count],
                        truth.values[:, at],
                        levels,
                    )
                )
                for count in config.extremes.member_counts
            ]
            found[f"{name}_roc_{kind}"] = np.stack(areas)
    return numbers(found)


def table_of(num_members):
    return v.event_table(num_members=num_members, num_below=NUM_BELOW)


def planted_drift(config, own, case, seed) -> dict[str, np.ndarray]:
    """The drift alarm of the emulator as it is and with a drift that is planted.

    `alarms` and `planted_alarms` are shares of resamples of starts; `planted_bias`
    `[lead]`, `planted_share` of the error at the last lead, with its sign.
    """
    drift = config.drift
    error = own["emulator"] - case.truths["analysis"].values
    planted = drift.size * (1 - np.exp(-lead_times(config) / drift.time))
    key = jax.random.fold_in(jax.random.key(config.seed + 1), seed)
    counts = np.asarray(
        v.draw_blocks(
            key,
            len(error),
            block_length=config.bootstrap.block_length,
            num_resamples=drift.num_resamples,
        )
    )
    found = {}
    for name, field in (("", error), ("planted_", error + planted[:, None])):
        bias, squared = field.mean(axis=-1), (field**2).mean(axis=-1)  # [start, lead]
        drawn = v.drift_alarm(
            (counts @ bias / len(bias)).T, np.sqrt(counts @ squared / len(bias)).T
        )
        whole = v.drift_alarm(bias.mean(axis=0), np.sqrt(squared.mean(axis=0)))
        found |= {
            f"{name}alarms": np.mean(drawn.fires),
            f"{name}alarm": whole.fires,
            f"{name}share": whole.share,
            f"{name}drift_slope": v.bias_drift(
                bias.mean(axis=0), lead_times(config)
            ).slope,
        }
    found["planted_bias"] = (error + planted[:, None]).mean(axis=(0, 2))
    return numbers(found)


def extreme_index(config, own, case) -> dict[str, np.ndarray]:
    """EFI of the second half of the starts, each against its own model's climate.

    The climate is of the forecasts of the first half, all members and sites. Returns
    `efi_correlation` of the two systems, `efi_roc_<system>`: how well positive indices
    tell means above the climate's 95 % (NaN where none is), and `efi_pairs` `[2, 500]`.
    """
    first, last = config.efi.first_lead, config.efi.last_lead
    truth = case.exact[:, first : last + 1].mean(axis=1)
    length = last - first + 1
    runs = case.train.cumsum(axis=1)
    means = (runs[:, length:] - runs[:, :-length]) / length
    half = len(truth) // 2
    event = truth[half:] > np.quantile(means, 0.95)
    levels = np.linspace(0, 1, 101)
    index = {}
    for name in ENSEMBLES:
        window = own[f"{name}_window"]  # [member, start, site]
        climate = np.quantile(window[:, :half], levels).astype(np.float32)
        shape = (len(levels), *window[:, half:].shape[1:])
        climate = np.broadcast_to(climate[:, None, None], shape)
        index[name] = np.asarray(
            v.extreme_forecast_index(window[:, half:], climate, levels)
        )
    flat = [x.ravel() for x in index.values()]
    shown = np.linspace(0, flat[0].size - 1, 500).astype(int)
    found = {
        "efi_correlation": np.corrcoef(*flat)[0, 1],
        "efi_difference": np.mean(flat[0] - flat[1]),
        "efi_pairs": np.stack(flat)[:, shown],
    }
    for name, values in index.items():
        area = auroc(np.maximum(values, 0).ravel(), event.ravel())
        found[f"efi_roc_{name}"] = area if event.any() else np.nan
    return numbers(found)


def observation_errors(config, own, case) -> dict[str, np.ndarray]:
    """Errors at stations of single systems by lead: `_station_rmse`, `_deflated` (less
    the error of observations), `_nearest` (of the nearest point, deflated), and against
    analyses at the stations, less their error, `_interpolated`."""
    truth, noise = case.truths["stations"], config.extremes.station_noise
    sites = config.archive.num_sites
    grid = case.stations
    # The corner that has most weight, alone.
    corner = grid.weight.argmax(axis=0)
    index = grid.index[corner, np.arange(len(corner))][None]
    nearest = v.Stations(index, np.ones(index.shape[:2], np.float32), (sites,))
    own_analysis = at_truth(case.truths["analysis"].values, "stations", case)
    plain = v.root_mean_square_error().over(0, 2)
    deflated = v.deflated_error().over(0, 2)
    sd = {"observation_sd": np.float32(noise)}
    # Interpolation takes a part of the analyses' error.
    less = np.sqrt((grid.weight**2).sum(axis=0)) * config.analysis_noise
    own_sd = {"observation_sd": less.astype(np.float32)}
    found = {}
    for name in SINGLE:
        field = at_truth(own[name], "stations", case)[None]
        near = v.at_stations(own[name], nearest)[None]
        found |= {
            f"{name}_station_rmse": scored(plain, field, truth.values, None),
            f"{name}_deflated": scored(deflated, field, truth.values, sd),
            f"{name}_nearest": scored(deflated, near, truth.values, sd),
            f"{name}_interpolated": scored(deflated, field, own_analysis, own_sd),
        }
    return numbers(found)


def numbers(found):
    return {name: np.asarray(value, np.float64) for name, value in found.items()}
