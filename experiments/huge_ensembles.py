"""Huge ensembles I on Lorenz-96: checkpoints x bred vectors of deterministic emulators.

`lorenz96_forecasts.py` simulates, `_training.py` trains, `_members.py` makes ensembles,
`_scores.py` measures them, `_cost.py` times, `_claims.py` judges, `_tables.py` and
`_figures.py` show.
"""

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_numbers,
    check_rising,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages

fields = load_beside(__file__, "forecast_fields")
training = load_beside(__file__, "huge_ensembles_training")
ensembles = load_beside(__file__, "huge_ensembles_members")
scores = load_beside(__file__, "huge_ensembles_scores")
cost = load_beside(__file__, "huge_ensembles_cost")
verdicts = load_beside(__file__, "huge_ensembles_claims")
tables = load_beside(__file__, "huge_ensembles_tables")
figures = load_beside(__file__, "huge_ensembles_figures")

training_job = training.training_job


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    choose("archive.source", config.archive.source, dict.fromkeys(("lorenz96", "era5")))
    name = "residual" if config.archive.source == "lorenz96" else "sfno"
    choose("model.name", config.model.name, {name: training.NETWORKS[name]})
    if config.archive.source == "era5":
        fields.check_full_size(config, "archive")
    fields.check_checkpoints(config)
    check_numbers(config, ("block",), at_least=1, are_whole=True)
    if config.archive.source == "lorenz96":
        _validate_toy(config)


def _validate_toy(config):
    fields.check_bred(config)
    whole, total = dict(are_whole=True), dict(at_most=config.training.total_steps)
    names = ("training.early_steps", "training.alone_steps")
    check_numbers(config, names, at_least=1, **total, **whole)
    check_numbers(config, ("training.num_alone",), at_least=1, **whole)
    check_numbers(config, ("event_quantile",), above=0, below=1)
    names = ("num_members", "num_leads", "num_timings", "block")
    check_numbers(config, [f"cost.{n}" for n in names], at_least=1, **whole)
    _validate_leads(config)
    _validate_efi(config)
    last = max(*config.leads, *config.efi.leads)
    if last > config.archive.num_leads:
        raise ConfigError(
            f"config.archive.num_leads must reach the last lead, {last}; got"
            f" {config.archive.num_leads}."
        )


def _validate_leads(config):
    least = max(config.perturbations.num_cycles, 2)
    if config.archive.num_before < least:
        raise ConfigError(
            f"config.archive.num_before must be at least {least}: bred vectors and"
            f" lagged starts are older; got {config.archive.num_before}."
        )
    leads = tuple(config.leads)
    check_rising(config, ("leads",), at_least=0)
    if leads[:2] != (0, 1):
        raise ConfigError(f"config.leads must rise from 0 and 1; got {leads}.")
    # Lagged forecasts reach as far back; at lead 0 there is no forecast.
    check_rising(config, ("judged_leads",), at_least=max(ensembles.LAGS))
    check_numbers(config, ("spectral_lead",), at_least=1, are_whole=True)
    wanted = {*config.judged_leads, config.spectral_lead}
    if not wanted <= set(leads):
        raise ConfigError(
            f"config.leads must hold judged_leads and spectral_lead, {sorted(wanted)};"
            f" got {leads}."
        )


def _validate_efi(config):
    efi, whole = config.efi, dict(are_whole=True)
    check_numbers(config, ("efi.num_free_starts",), at_least=1, **whole)
    check_numbers(config, ("efi.num_pairs",), at_least=2, **whole)  # there are halves
    check_numbers(config, ("efi.num_members",), at_least=4, **whole)
    check_numbers(config, ("efi.noise",), above=0)
    check_rising(config, ("efi.leads", "efi.judged_leads"), at_least=1)
    if not set(efi.judged_leads) <= set(efi.leads):
        raise ConfigError(
            f"config.efi.leads must hold efi.judged_leads, {efi.judged_leads}; got"
            f" {efi.leads}."
        )
    check_numbers(config, ("efi.free_leads",), at_least=1, **whole)
    if len(efi.free_leads) != 3 or efi.free_leads[0] > efi.free_leads[1]:
        raise ConfigError(
            "config.efi.free_leads are the first, one that is not before it, and the"
            f" gap; got {efi.free_leads}."
        )


def run(config, run_dir):
    """Simulates, trains, forecasts, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: training.simulate(config),
        "forecast": lambda done: forecast(config, run_dir, done["simulate"]),
        "scores": lambda done: measure(config, done["simulate"], done["forecast"]),
        # The last: on a quiet machine it can be deleted and timed again alone.
        "cost": lambda done: measure_cost(config, run_dir, done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    tables.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=tables.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def forecast(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains the checkpoints and makes all ensembles of all seeds.

    Returns:
        What `forecasts`, `early_forecasts` and `efi_members` of every seed give,
        `[seed, ...]`; `plume` of the first seed; `frozen_steps` `[network]`; and what
        `alone_differences` gives.
    """
    trained, log = training.train(config, run_dir, archives)
    early = training.train_early(config, archives)
    parts = []
    for seed in range(config.num_seeds):
        own = ensembles.checkpoints_of(config, trained, seed)
        archive = training.of_seed(archives, seed)
        parts.append(
            ensembles.forecasts(config, own, archive, seed)
            | ensembles.early_forecasts(
                config,
                ensembles.checkpoints_of(config, early, seed),
                archive,
                seed,
            )
            | {
                f"efi_{name}": values
                for name, values in ensembles.efi_members(
                    config, own, archive, seed
                ).items()
            }
        )
    found = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    own, archive = (
        ensembles.checkpoints_of(config, trained, 0),
        training.of_seed(archives, 0),
    )
    return found | {
        **ensembles.plume(config, own, archive, 0, found["both"][0]),
        "frozen_steps": np.asarray(log.frozen_steps),
        **training.alone_differences(config, archives, trained),
    }


def measure_cost(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Rates of `_cost.py` of the trained checkpoints, `[seed]`."""
    trained, _ = training.train(config, run_dir, archives)
    return cost.measure(config, trained, archives)


def measure(config, archives, found) -> dict[str, np.ndarray]:
    """All scores of every seed, `[seed, ...]`.

    Ensembles have one member for each checkpoint, and scores are means over disjoint
    draws; those of all members are named `<name>_all`.
    """
    parts = []
    for seed in range(config.num_seeds):
        archive = training.of_seed(archives, seed)
        climate = (archive["train"] - archive["mean"]) / archive["sd"]
        event = float(np.quantile(climate, config.event_quantile))

        def truth_at(leads, archive=archive):
            rows = [config.archive.num_before + lead for lead in leads]
            return archive["truth"][:, rows].astype(np.float32)

        truth, values = truth_at(config.leads), {}
        for name in verdicts.EQUAL:
            draws = ensembles.draws_of(found[name][seed], config.num_checkpoints)
            values |= scores.measure(name, draws, truth, event)
        for name in verdicts.WHOLE:
            whole = found[name.removesuffix("_all")][seed]
            at = truth_at(config.judged_leads) if name == "lagged" else truth
            values |= scores.measure(name, whole[None], at, event)
        for name in ("both", "random"):
            values[f"{name}_growth"] = ensembles.growth(found[name][seed]).mean()
        efi = {
            name: found[f"efi_{name}"][seed]
            for name in ("emulator", "emulator_random", "system", "free")
        }
        at_efi = truth_at(config.efi.leads)
        parts.append(values | scores.measure_efi(efi, archive, event, at_efi))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
