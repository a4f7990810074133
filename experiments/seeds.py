"""SEEDS on Lorenz-96: an ensemble continued from two of its members.

`_training.py` simulates, trains and samples, `_scores.py` measures ensembles,
`_claims.py` judges and `_figures.py` draws. `_files_run.py` does the same with
reforecasts from files (`paper`), which `_files.py` reads.
"""

import numpy as np

from ensjax.experiment.fields import check_numbers, choose, load_beside
from ensjax.experiment.stages import run_stages

training = load_beside(__file__, "seeds_training")
scores = load_beside(__file__, "seeds_scores")
verdicts = load_beside(__file__, "seeds_claims")
speed = load_beside(__file__, "seeds_speed")
figures = load_beside(__file__, "seeds_figures")
kept = load_beside(__file__, "seeds_emulators")
from_files = load_beside(__file__, "seeds_files_run")

K = training.K
training_job = training.training_job
sample_job = load_beside(__file__, "seeds_job").sample_job  # of `ensjax sample`


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    archive = config.archive
    choose("archive.source", archive.source, dict.fromkeys(training.SOURCES))
    choose("model.name", config.model.name, training.NETWORKS)
    choose("diffusion", config.diffusion, training.DIFFUSIONS)
    check_numbers(config, ("num_seeds", "num_samples"), at_least=1)
    check_numbers(config, ("archive.num_train_members",), at_least=K + 1)
    check_numbers(config, ("archive.num_test_members",), at_least=K + 2)
    check_numbers(config, ("num_samples",), at_least=archive.num_test_members - K)
    check_numbers(
        config, ("training.total_steps", "training.steps_per_call"), at_least=1
    )
    if archive.source == "files":
        from_files.validate(config)
    else:
        check_numbers(config, ("few.total_steps", "few.num_levels"), above=0)
        speed.validate(config)


def run(config, run_dir):
    """Simulates, trains, samples, scores and judges; resumes by stages.

    Raises:
        ConfigError: for data that are not at hand, before anything is done.
    """
    if config.archive.source == "files":
        from_files.run(config, run_dir)
        return
    stages = {
        "simulate": lambda done: training.simulate(config),
        "emulate": lambda done: emulate(config, run_dir, done["simulate"]),
        "scores": lambda done: measure(config, done["simulate"], done["emulate"]),
        "speed": lambda done: measure_speed(config, run_dir, done),
    }
    done = run_stages(run_dir, config, stages)
    done["speed"] = in_deviations(done["speed"], done["simulate"])
    verdicts.add_tables(run_dir, config, done)
    figures.add_figures(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def emulate(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains, distils and samples from the first K members of every test case.

    Returns:
        `generated` by Heun steps and `few` by the distilled denoiser, `[seed, sample,
        case, site]`; seconds that one sample of one case takes with each, and one
        member with the simulator `[seed]`; `frozen_steps` `[seed]`; and the seconds
        that the training of one network took.
    """
    emulators, log = training.train(config, run_dir, archives)
    students = training.distil(config, run_dir, emulators, archives)
    kept.keep(run_dir, "generated", emulators)
    kept.keep(run_dir, "few", students)
    found = {
        "frozen_steps": np.asarray(log.frozen_steps),
        "training_seconds": np.array(speed.training_seconds(emulators, log)),
    }
    for name, models, sampler in (
        ("generated", emulators, training.sampler_of(config)),
        ("few", students, training.few_sampler(config)),
    ):
        samples, seconds = training.draw(config, models, archives, sampler.make())
        found |= {name: samples, f"seconds_{name}": np.array(seconds)}
    return found | {"seconds_simulated": training.simulator_seconds(config, archives)}


def measure(config, archives, drawn) -> dict[str, np.ndarray]:
    """Scores `[seed]` of the seeds, a Gaussian, what was generated, and the others.

    All in deviations of the climate, as `archives["train"]` of the seed has it.
    """
    rows = []
    for seed in range(config.num_seeds):
        mean, sd = (x[seed] for x in training.climate(archives["train"]))
        # [member, case, site]
        members = (np.moveaxis(archives["test"][seed], 1, 0) - mean) / sd
        ensembles = {
            "seeds": members[:K],
            "gaussian": scores.gaussian(members[:K], config.num_samples, seed),
            "generated": (drawn["generated"][seed] - mean) / sd,
            "few": (drawn["few"][seed] - mean) / sd,
            "full": members[K:],
        }
        rows.append(
            scores.measure(
                ensembles,
                (archives["truth"][seed] - mean) / sd,
                config.event_sds,
                sizes=scores.curve_sizes(len(members) - K, config.num_samples),
            )
        )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def measure_speed(config, run_dir, done) -> dict[str, np.ndarray]:
    """The table of `seeds_speed.py`, with the denoisers that the run has kept."""
    emulators = kept.load(config, run_dir, "generated")
    return speed.measure(config, run_dir, done["simulate"], emulators, done["emulate"])


def in_deviations(found, archives) -> dict[str, np.ndarray]:
    """What `speed.measure` found, CRPS in deviations of the climate."""
    _, sd = training.climate(archives["train"])
    return {
        name: value / sd[: len(value)] if name.startswith("fair_") else value
        for name, value in found.items()
    }
