"""Ensembles of the Held-Suarez atmosphere, made in parts that report their progress."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.archive import Archive
from ensjax.emulate.held_suarez import HeldSuarez
from ensjax.emulate.kept import kept_archive
from ensjax.emulate.trajectories import check_twins, climate_states, forecast_twins
from ensjax.mesh import fetch
from ensjax.train.progress import Pace, duration

# Cases of one run have numbers from run * _RUN_STRIDE on.
_RUN_STRIDE = 10_000


def held_suarez_archive(
    *,
    num_cases: int = 120,
    num_members: int = 5,
    first_run: int = 0,
    num_runs: int = 8,
    system: HeldSuarez | None = None,
    lead_days: Sequence[int] = (5,),
    spin_up_days: int = 150,
    gap_days: int = 10,
    settle_days: int = 2,
    noise: float = 0.2,
    seed: int = 0,
    cases_per_call: int = 4,
    is_kept: bool = True,
    say: Callable[[str], None] | None = print,
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
) -> Archive:
    """Forecasts of the Held-Suarez atmosphere by perturbed members, and the truth.

    Some long runs spin up from rest; each gives starts that lie `gap_days` apart. Noise
    on the waves of temperature makes an analysis of a start and members of the analysis
    (`HeldSuarez.perturb`), so that the truth is as far from it as they are. Forecasts
    begin `settle_days` later, when gravity waves of the noise have left.

    An archive to test on has other runs: `first_run=8` after the default's 0 to 7.

    Args:
        num_cases: starts, dealt to the runs in turn.
        num_members: of each case.
        first_run, num_runs: numbers of the runs; those of two archives of one seed must
            differ for them to be independent.
        system: by default T21 with 5 levels and steps of an hour.
        lead_days: rising, from the forecast's start.
        spin_up_days: from rest; about 150 until the climate is stationary.
        gap_days: between starts of a run.
        settle_days: from the noise to the forecast's start.
        noise: of the waves, as a share. At 0.2 the spread of the lowest temperature
            is about 0.6 K at the start and 1.4 K after 5 days, that of the climate 2.7.
        seed: of all draws.
        cases_per_call: cases whose members run as one program, between two reports.
        is_kept: whether the archive is kept in the user's cache and read from there.
        say: is told the progress; None: nobody.
        mesh, block: as in `map_members`.

    Returns:
        Values `[case, member, lead, variable 2, lat, lon]` and truth; cases are
        numbers, leads timedelta64.

    Raises:
        ImportError: if dinosaur is not installed.
        ValueError: if a number is not positive, or leads do not rise.
    """
    system = HeldSuarez() if system is None else system
    numbers = dict(
        num_cases=num_cases,
        num_members=num_members,
        num_runs=num_runs,
        gap_days=gap_days,
        cases_per_call=cases_per_call,
    )
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    for name, number in (("spin_up", spin_up_days), ("settle", settle_days)):
        if number < 0:
            raise ValueError(f"{name}_days must not be negative; got {number}.")
    check_twins(lead_days, noise, noise)
    settings = dict(
        system=dataclasses.asdict(system),
        num_cases=num_cases,
        num_members=num_members,
        first_run=first_run,
        num_runs=num_runs,
        lead_days=list(lead_days),
        spin_up_days=spin_up_days,
        gap_days=gap_days,
        settle_days=settle_days,
        noise=noise,
        seed=seed,
    )

    def make():
        return _make(
            system, settings, cases_per_call=cases_per_call, say=say,
            mesh=mesh, block=block,
        )  # fmt: skip

    if not is_kept:
        return make()
    version = importlib.metadata.version("dinosaur")
    named = settings | {"dinosaur": version}
    return kept_archive(f"held-suarez-t{system.truncation}", named, make, say=say)


def _make(system, settings, *, cases_per_call, say, mesh, block):
    """The archive of settings that are all right."""
    runs = settings["num_runs"]
    per_run = -(-settings["num_cases"] // runs)
    on_devices = dict(seed=settings["seed"], mesh=mesh, block=block)
    members = settings["num_members"] + 1  # and the truth
    days = settings["settle_days"] + settings["lead_days"][-1]
    spin_up = runs * (settings["spin_up_days"] + per_run * settings["gap_days"])
    report = _Report(system.name, spin_up + settings["num_cases"] * members * days, say)
    states = jax.block_until_ready(
        climate_states(
            system,
            settings["first_run"] + np.arange(runs),
            spin_up_steps=settings["spin_up_days"] * system.steps_per_day,
            num_states=per_run,
            gap_steps=settings["gap_days"] * system.steps_per_day,
            **on_devices,
        )
    )
    report.done(spin_up)
    # [case, ...], the first start of every run before the second of any. On the host,
    # where calls of the next program take them from.
    states = jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[: settings["num_cases"]],
        fetch(states),
    )
    cases = np.arange(per_run)[:, None] + _RUN_STRIDE * (
        settings["first_run"] + np.arange(runs)
    )
    cases = cases.reshape(-1)[: settings["num_cases"]]
    values, truth = [], []
    for first in range(0, len(cases), cases_per_call):
        rows = first + np.arange(min(cases_per_call, len(cases) - first))
        # The last call is filled up, for a program of other shapes compiles again.
        filled = np.resize(rows, cases_per_call)
        some, own = forecast_twins(
            system,
            jax.tree.map(lambda x: x[filled], states),  # noqa: B023
            cases[filled],
            num_members=settings["num_members"],
            lead_steps=[system.steps_per_day * d for d in settings["lead_days"]],
            analysis_noise=settings["noise"],
            member_noise=settings["noise"],
            settle_steps=system.steps_per_day * settings["settle_days"],
            **on_devices,
        )
        values.append(some[: len(rows)])
        truth.append(own[: len(rows)])
        report.done(len(rows) * members * days)
    return Archive(
        np.concatenate(values),
        case=cases,
        lead=np.asarray(settings["lead_days"], "timedelta64[D]"),
        variable=system.variable,
        space=system.space,
        truth=np.concatenate(truth),
        rows=cases,
        units=system.units,
        source=f"{system.name}, seed {settings['seed']}",
    )


class _Report:
    """One line after each part: how much is done, how fast, and how long it takes."""

    def __init__(self, name, member_days, say):
        self.name, self.total, self.say, self.made = name, member_days, say, 0
        self.pace = Pace(total_steps=member_days, first_step=0)

    def done(self, member_days):
        self.made += member_days
        if self.say is None:
            return
        left = duration(self.pace.seconds_left(self.made))
        self.say(
            f"{self.name}: {self.made:,} of {self.total:,} member-days,"
            f" {self.pace.steps_per_second(self.made):.3g} a second, {left} left"
        )
