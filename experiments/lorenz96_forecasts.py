"""Two-scale Lorenz-96 as weather: what experiments with emulators of it share.

The truth is the two-scale system, of which only the slow variables are seen. Emulators
learn its free runs; the physical ensemble is a simulator that is imperfect, in which a
line and red noise stand for the fast scale. Values are in deviations of the climate
unless said otherwise, and leads in outputs.
"""

import dataclasses

import jax
import numpy as np

from ensjax.emulate.closure import ClosureLorenz96, closure_forecasts, fit_closure
from ensjax.emulate.lorenz96 import TwoScaleLorenz96
from ensjax.emulate.trajectories import (
    climate_states,
    forecast,
    forecast_twins,
    run_climate,
    run_trajectories,
)
from ensjax.emulate.windows import windows
from ensjax.experiment.fields import check_numbers
from ensjax.mesh import fetch

# Added to the seed, one for each thing that is drawn.
_TRAIN, _STARTS, _CLOSURE, _ANALYSIS, _MEMBERS = range(5)


def validate(config):
    """Raises `ConfigError` for an archive that cannot be made, in one line.

    `config.archive` holds num_sites, num_fast, forcing, steps_per_output, spin_up_steps
    (of the system), num_train_runs, num_train_outputs, num_starts, num_before (outputs
    of the truth before a start) and num_leads.
    """
    names = [f"archive.{name}" for name in _COUNTS]
    check_numbers(config, names, at_least=1)
    check_numbers(config, ("archive.num_before",), at_least=0)
    check_numbers(config, ("archive.num_sites",), at_least=4)
    check_numbers(config, ("archive.num_train_outputs",), at_least=2)


_COUNTS = (
    "num_fast",
    "steps_per_output",
    "spin_up_steps",
    "num_train_runs",
    "num_starts",
    "num_leads",
)


def system_of(config) -> TwoScaleLorenz96:
    """The truth."""
    archive = config.archive
    return TwoScaleLorenz96(
        num_sites=archive.num_sites, num_fast=archive.num_fast, forcing=archive.forcing
    )


def simulate(config, seed: int, mesh=None) -> dict[str, np.ndarray]:
    """Everything of one seed that no emulator is needed for.

    Returns:
        `train` `[run, output, site]` in units of x; `mean`, `sd` of it and `step_sd`,
        the deviation of one output's change in deviations; `truth` `[start, output,
        site]` from `num_before` outputs before the start to `num_leads` after it, in
        deviations; `start_x` `[start, site]` and `start_y` `[start, site * fast]`, the
        system's states at the start; `closure` `[4]`, the imperfect simulator's line
        (offset, slope) and noise (deviation, memory).
    """
    archive, system = config.archive, system_of(config)
    draw = _SEEDS_APART * seed
    runs = run_climate(
        system,
        num_trajectories=archive.num_train_runs,
        num_outputs=archive.num_train_outputs,
        steps_per_output=archive.steps_per_output,
        spin_up_steps=archive.spin_up_steps,
        seed=draw + _TRAIN,
        mesh=mesh,
    )[:, :, 0]
    mean, sd = runs.mean(), runs.std()
    before = archive.num_before * archive.steps_per_output
    states = climate_states(
        system,
        np.arange(archive.num_starts),
        spin_up_steps=archive.spin_up_steps,
        seed=draw + _STARTS,
        num_states=2,
        gap_steps=before,
        mesh=mesh,
    )
    first, start = (jax.tree.map(lambda x, i=i: x[:, i], states) for i in range(2))
    outputs = archive.num_before + archive.num_leads + 1
    leads = tuple(int(i) * archive.steps_per_output for i in range(outputs))
    truth = run_trajectories(
        _Forecast(system, leads),
        np.arange(archive.num_starts),
        seed=draw,
        stacked=(first,),
        mesh=mesh,
    )
    closure = fit_closure(
        system,
        step_length=_closure_step(config),
        num_trajectories=archive.num_train_runs,
        spin_up_steps=archive.spin_up_steps,
        seed=draw + _CLOSURE,
        mesh=mesh,
    )
    start_x, start_y = fetch(start)
    return {
        "train": runs,
        "mean": np.float32(mean),
        "sd": np.float32(sd),
        "step_sd": np.float32(np.diff(runs, axis=1).std() / sd),
        "truth": (fetch(truth)[:, :, 0] - mean) / sd,
        "start_x": start_x,
        "start_y": start_y,
        "closure": np.array(
            [closure.offset, closure.slope, closure.noise_sd, closure.memory]
        ),
    }


_SEEDS_APART = 1_000


@dataclasses.dataclass(frozen=True)
class _Forecast:
    system: TwoScaleLorenz96
    lead_steps: tuple[int, ...]

    def __call__(self, key, state):
        del key
        return forecast(self.system, state, self.lead_steps)


def _closure_step(config) -> float:
    """Half an output, which the slow scale can still be integrated with."""
    return config.archive.steps_per_output * system_of(config).step_length / 2


def training_windows(archive: dict[str, np.ndarray], length: int) -> np.ndarray:
    """Standardised windows of the training runs, `[window, time, site, 1]`, float32."""
    values = (archive["train"] - archive["mean"]) / archive["sd"]
    return windows(values.astype(np.float32), length)[..., None]


def closure_of(config, archive: dict[str, np.ndarray]) -> ClosureLorenz96:
    """The imperfect simulator of a seed's archive."""
    offset, slope, noise_sd, memory = (float(x) for x in archive["closure"])
    return ClosureLorenz96(
        num_sites=config.archive.num_sites,
        forcing=config.archive.forcing,
        offset=offset,
        slope=slope,
        noise_sd=noise_sd,
        memory=memory,
        step_length=_closure_step(config),
    )


def analyses(archive, config, seed: int, *, noise: float) -> np.ndarray:
    """The truth with analysis error, `[start, output, site]`, in deviations.

    Args:
        archive: of a seed.
        config: of the run.
        seed: its number.
        noise: deviation of the error, in deviations of the climate.
    """
    truth = archive["truth"]
    rng = np.random.default_rng([config.seed, seed, _ANALYSIS])
    return (truth + noise * rng.standard_normal(truth.shape)).astype(np.float32)


def perturbed(fields, config, seed: int, num_members: int, *, noise: float):
    """Members about fields `[start, site]` with independent noise, `[start, member,
    site]`, float32."""
    rng = np.random.default_rng([config.seed, seed, _MEMBERS])
    shape = (len(fields), num_members, *fields.shape[1:])
    return (fields[:, None] + noise * rng.standard_normal(shape)).astype(np.float32)


def closure_ensemble(config, archive, members, seed: int, mesh=None) -> np.ndarray:
    """What the imperfect simulator forecasts from members `[start, member, site]`.

    Returns:
        `[member, start, lead, site]` at leads 1 to `num_leads`, all in deviations.
    """
    starts, count, sites = members.shape
    steps = 2 * (1 + np.arange(config.archive.num_leads))
    found = closure_forecasts(
        closure_of(config, archive),
        members.reshape(-1, sites) * archive["sd"] + archive["mean"],
        lead_steps=steps,
        seed=_SEEDS_APART * seed + _MEMBERS,
        mesh=mesh,
    )
    found = (found - archive["mean"]) / archive["sd"]
    return np.moveaxis(found.reshape(starts, count, *found.shape[1:]), 1, 0)


def system_ensemble(
    config, archive, seed: int, num_members: int, *, noise: float, mesh=None
) -> np.ndarray:
    """What the two-scale system itself forecasts from perturbed states of its own.

    Args:
        noise: deviation of the slow variables' perturbation, in deviations of the
            climate; that of the fast ones is smaller by the ratio of amplitudes.

    Returns:
        `[member, start, lead, site]` at leads 1 to `num_leads`, in deviations.
    """
    leads = config.archive.steps_per_output * (1 + np.arange(config.archive.num_leads))
    members, _ = forecast_twins(
        system_of(config),
        (archive["start_x"], archive["start_y"]),
        np.arange(len(archive["start_x"])),
        num_members=num_members,
        lead_steps=leads.tolist(),
        analysis_noise=0.0,
        member_noise=noise * float(archive["sd"]),
        seed=_SEEDS_APART * seed + _MEMBERS,
        mesh=mesh,
    )
    members = (members[:, :, :, 0] - archive["mean"]) / archive["sd"]
    return np.moveaxis(members, 1, 0)
