"""Huge ensembles II on Lorenz-96: what thousands of members of a start are good for.

The checkpoints are trained as in `huge_ensembles.py`; `_members.py` runs and streams
members, `_draws.py` streams a known field, `_scores.py` has what depends on their
number, `_cost.py` counts bytes, times and simulates, `_claims.py` judges, `_tables.py`
and `_figures.py` show.
"""

import jax
import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import (
    check_multiples,
    check_numbers,
    check_rising,
    choose,
    load_beside,
)
from ensjax.experiment.stages import run_stages

fields = load_beside(__file__, "forecast_fields")
weather = load_beside(__file__, "lorenz96_forecasts")
training = load_beside(__file__, "huge_ensembles_training")
ensembles = load_beside(__file__, "huge_ensembles_members")
cost = load_beside(__file__, "huge_ensembles_7424_cost")
draws = load_beside(__file__, "huge_ensembles_7424_draws")
huge = load_beside(__file__, "huge_ensembles_7424_members")
planned = load_beside(__file__, "huge_ensembles_7424_plan")
scores = load_beside(__file__, "huge_ensembles_7424_scores")
verdicts = load_beside(__file__, "huge_ensembles_7424_claims")
tables = load_beside(__file__, "huge_ensembles_7424_tables")
figures = load_beside(__file__, "huge_ensembles_7424_figures")

training_job, forecast_job = training.training_job, planned.forecast_job


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    choose("archive.source", config.archive.source, dict.fromkeys(("lorenz96", "era5")))
    name = "residual" if config.archive.source == "lorenz96" else "sfno"
    choose("model.name", config.model.name, {name: training.NETWORKS[name]})
    if config.archive.source == "era5":
        fields.check_full_size(config, "archive")
    fields.check_checkpoints(config)
    if config.archive.source == "lorenz96":
        _validate_toy(config)


def _validate_toy(config):
    fields.check_bred(config)
    whole = dict(are_whole=True)
    check_numbers(config, ("extreme_quantile", "high_quantile"), above=0, below=1)
    names = ("block", "cost.num_timings", "num_score_resamples", "drawn_shape")
    check_numbers(config, names, at_least=1, **whole)
    check_numbers(config, ("num_resamples", "num_drawn"), at_least=2, **whole)
    check_multiples(config, ("num_drawn",), of=2)  # they come in pairs
    if config.drawn_shape[0] < 2:
        raise ConfigError(
            "config.drawn_shape must begin with two or more places, of which half are"
            f" of each kind; got {config.drawn_shape}."
        )
    check_rising(config, ("leads",), at_least=1)
    check_rising(config, ("sizes",), at_least=2)
    leads, sizes = tuple(config.leads), tuple(config.sizes)
    if config.judged_lead not in leads or leads[-1] > config.archive.num_leads:
        raise ConfigError(
            f"config.leads must hold judged_lead and end by archive.num_leads; got"
            f" {leads}, {config.judged_lead} and {config.archive.num_leads}."
        )
    members = 2 * config.num_checkpoints * config.perturbations.num_pairs
    if len(sizes) < 2 or sizes[-1] != members:
        raise ConfigError(
            f"config.sizes must rise from 2 or more to all {members} members; got"
            f" {sizes}."
        )
    # Few members are compared with all of them.
    check_numbers(config, ("crps_size",), at_least=2, at_most=members - 1, **whole)
    if config.archive.num_before < config.perturbations.num_cycles:
        raise ConfigError(
            "config.archive.num_before must reach back over perturbations.num_cycles ="
            f" {config.perturbations.num_cycles}; got {config.archive.num_before}."
        )


def run(config, run_dir):
    """Simulates, trains, runs all members, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    training.check_at_hand(config)
    kept: list = []

    def trained(done):
        if not kept:
            kept.append(training.train(config, run_dir, done["simulate"]))
        return kept[0]

    def of_seed(seed):
        return lambda done: members_of(config, trained(done)[0], done["simulate"], seed)

    names = [f"members-{seed}" for seed in range(config.num_seeds)]
    stages = {
        "simulate": lambda done: training.simulate(config),
        "train": lambda done: {
            "frozen_steps": np.asarray(trained(done)[1].frozen_steps)
        },
        **{name: of_seed(seed) for seed, name in enumerate(names)},
        "memory": lambda done: cost.memory(config, trained(done)[0], done["simulate"]),
        # The last: on a quiet machine it can be deleted and timed again alone.
        "cost": lambda done: cost.measure(config, trained(done)[0], done["simulate"]),
    }
    done = run_stages(run_dir, config, stages)
    parts = [done[name] for name in names]
    found = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    example = {name: found[name][0] for name in ("example", "example_truth")}
    done["members"] = found | example | done["train"]
    tables.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=tables.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def members_of(config, trained, archives, seed) -> dict[str, np.ndarray]:
    """Runs all members of all starts of a seed, and measures them.

    Returns:
        Of each kind of perturbation what `by_size` gives, `<kind>_<name>`;
        `stream_<name>` of the first start, bred; `drawn_<name>` of a known field;
        `system_fair` and `closure_fair`, the fair CRPS of the simulators; and `example`
        `[member, site]` with its `example_truth`.
    """
    own = ensembles.checkpoints_of(config, trained, seed)
    archive = training.of_seed(archives, seed)
    noise = config.analysis_noise
    fields = weather.analyses(archive, config, seed, noise=noise)
    starts = ensembles.starts_of(config, fields)
    amplitude = ensembles.amplitude_of(config, own, archive)
    climate = (archive["train"] - archive["mean"]) / archive["sd"]
    extreme = float(np.quantile(climate, config.extreme_quantile))
    high = float(np.quantile(climate, config.high_quantile))
    rows = [config.archive.num_before + lead for lead in config.leads]
    truth = archive["truth"][:, rows].astype(np.float32)
    at = list(config.leads).index(config.judged_lead)
    settings = dict(
        sizes=tuple(config.sizes),
        num_resamples=config.num_resamples,
        num_score_resamples=config.num_score_resamples,
        crps_size=config.crps_size,
        extreme=extreme,
        high=high,
    )
    job = huge.Job(config, own, "bred", amplitude, starts, config.leads)
    members = huge.all_members(config, 0)
    values = job.kept(members)
    told = huge.stream(job, members, values, truth[0], (high, extreme))
    found = {f"stream_{k}": np.float64(v) for k, v in told.items()}
    found |= {"example": values[:, at], "example_truth": truth[0, at]}
    for kind in huge.KINDS:
        job = huge.Job(config, own, kind, amplitude, starts, (config.judged_lead,))
        kept = []
        for start in range(len(fields)):
            members = huge.all_members(config, start)
            kept.append(job.kept(members)[:, 0])
        kept = np.stack(kept, axis=1)  # [member, start, site]
        key = jax.random.key(config.seed + seed)
        sizes = scores.by_size(key, kept, truth[:, at], members.checkpoint, settings)
        found |= {f"{kind}_{name}": value for name, value in sizes.items()}
    drawn = draws.statistics_of_draws(
        config.num_drawn, tuple(config.drawn_shape), config.seed + seed
    )
    found |= {f"drawn_{name}": np.float64(value) for name, value in drawn.items()}
    simulated = _simulators(config, archive, fields, seed, float(amplitude[0]))
    return found | {
        f"{kind}_fair": np.float64(fair(values[:, :, at], truth[:, at]))
        for kind, values in simulated.items()
    }


def fair(members, truth):
    """The fair CRPS of members `[start, member, site]`."""
    return scores.verification.crps("fair")(np.moveaxis(members, 1, 0), truth)


def _simulators(config, archive, fields, seed, amplitude):
    """`crps_size` members of each simulator from the same perturbed analyses."""
    given = (config, archive, fields, seed, config.crps_size, amplitude)
    starts = cost.perturbed_starts(*given)
    return {
        kind: cost.simulated(config, archive, starts, seed, kind)
        for kind in cost.SIMULATORS
    }
