"""SEEDS on the sphere: a Held-Suarez ensemble continued from two of its members.

`_training.py` simulates, trains and samples, `_scores.py` measures ensembles,
`_claims.py` judges and `_figures.py` draws. At full size it is `seeds.py:paper`.
"""

import importlib.util

import numpy as np

from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "seeds_sphere_training")
scores = load_beside(__file__, "seeds_sphere_scores")
verdicts = load_beside(__file__, "seeds_sphere_claims")
figures = load_beside(__file__, "seeds_sphere_figures")
kept = load_beside(__file__, "seeds_emulators")

K = training.K
training_job = training.training_job
sample_job = load_beside(__file__, "seeds_sphere_job").sample_job  # of `ensjax sample`


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    archive = config.archive
    sources = dict.fromkeys(("held_suarez", "gefs"))
    choose("archive.source", archive.source, sources)
    check_numbers(config, ("num_seeds",), at_least=1)
    check_numbers(config, ("archive.num_train_members",), at_least=K + 1)
    check_numbers(
        config, ("training.total_steps", "training.steps_per_call"), at_least=1
    )
    if archive.source == "gefs":
        return
    choose("model.name", config.model.name, training.NETWORKS)
    choose("diffusion", config.diffusion, {"edm": None})
    # Seeds are given different members, and two others are left.
    least = max(K * config.num_seeds, K + 2)
    check_numbers(config, ("archive.num_test_members",), at_least=least)
    check_numbers(config, ("num_samples",), at_least=archive.num_test_members - K)
    counts = ("num_train_parts", "num_train_cases", "num_train_runs", "num_test_parts",
              "num_test_cases", "num_test_runs", "gap_days")  # fmt: skip
    check_numbers(config, [f"archive.{name}" for name in counts], at_least=1)
    days = ("archive.spin_up_days", "archive.settle_days", "archive.lead_days")
    check_numbers(config, days, at_least=0)
    positive = ("archive.noise", "event_sds", "noise.sd", "sampler.low")
    check_numbers(config, positive, above=0)
    levels = ("sampler.num_levels", "sampler.few_levels")
    check_numbers(config, levels, at_least=2)
    check_numbers(config, ("sampler.high",), above=config.sampler.low)
    check_numbers(config, ("sampler.cases_per_call",), at_least=1)
    check_numbers(config, ("last_degree",), at_least=1, at_most=30)
    leads = tuple(archive.lead_days)
    if any(a >= b for a, b in zip(leads, leads[1:])):
        raise ConfigError(f"config.archive.lead_days must rise; got {leads}.")
    try:
        training.system_of(config)
    except ValueError as error:
        raise ConfigError(f"config.archive: {error}") from error
    if importlib.util.find_spec("dinosaur") is None:
        raise ConfigError(
            "config.archive: the Held-Suarez simulator needs package dinosaur: pip"
            " install 'ensjax[weather]'"
        )


def run(config, run_dir):
    """Simulates, trains, samples, scores and judges; resumes by stages."""
    training.check_at_hand(config)
    stages = {
        "simulate": lambda done: training.simulate(config),
        "emulate": lambda done: emulate(config, run_dir, done["simulate"]),
        "scores": lambda done: measure(config, done),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done, ensembles_of(config, done, 0))
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def emulate(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains, and samples from the two members of every test case that a seed is given.

    Returns:
        `generated` and `few` (fewer noise levels), standardised `[seed, sample, case,
        variable, lat, lon]`; the seconds of one sample with each, and of one member in
        the simulator; and `frozen_steps` `[seed]`.
    """
    emulators, frozen = training.train(config, run_dir, archives)
    kept.keep(run_dir, "generated", emulators)
    sampler = config.sampler
    generated, seconds = training.draw(config, emulators, archives, sampler.num_levels)
    # Timed between the samplers, so that all have the machine in the same state.
    simulated = training.simulator_seconds(config)
    few, seconds_few = training.draw(config, emulators, archives, sampler.few_levels)
    return {
        "generated": generated,
        "few": few,
        "seconds_generated": np.array(seconds),
        "seconds_few": np.array(seconds_few),
        "seconds_simulated": np.array(simulated),
        "frozen_steps": frozen,
    }


def ensembles_of(config, done, seed):
    """Standardised ensembles of a seed by name, `[member, case, variable, lat, lon]`.

    "full" are the members that the seed was not given.
    """
    archives, drawn = done["simulate"], done["emulate"]
    test = training.standardised(archives, archives["test"])
    members = np.moveaxis(test, 1, 0)
    pair = training.given(config)[seed]
    seeds = members[pair]
    return {
        "seeds": seeds,
        "gaussian": scores.gaussian(seeds, config.num_samples, config.seed + seed),
        "generated": drawn["generated"][seed],
        "few": drawn["few"][seed],
        "full": np.delete(members, pair, axis=0),
    }


def measure(config, done) -> dict[str, np.ndarray]:
    """Scores `[seed, ...]` of all ensembles."""
    archives = done["simulate"]
    truth = training.standardised(archives, archives["truth"])
    sd = training.climate(archives).sd[0]
    rows = [
        scores.measure(
            ensembles_of(config, done, seed), truth, sd, event_sds=config.event_sds
        )
        for seed in range(config.num_seeds)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
