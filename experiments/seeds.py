"""SEEDS on Lorenz-96: an ensemble continued from two of its members.

`_scores.py` measures ensembles, `_claims.py` judges.
"""

import time

import numpy as np

import ensjax
from ensjax.emulate import diffusion
from ensjax.emulate.lorenz96 import Lorenz96, lorenz96_archive
from ensjax.emulate.seeds import distil_seeds, train_seeds
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.stages import run_stages

scores = load_beside(__file__, "seeds_scores")
verdicts = load_beside(__file__, "seeds_claims")
kept = load_beside(__file__, "seeds_emulators")
sample_job = kept.lorenz96_job  # of `ensjax sample`

K = 2  # seeds of a case


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    check_numbers(config, ("num_seeds", "num_samples"), at_least=1)
    check_numbers(config, ("archive.num_train_members",), at_least=K + 1)
    check_numbers(config, ("archive.num_test_members",), at_least=K + 2)
    check_numbers(config, ("num_samples",), at_least=config.archive.num_test_members)
    check_numbers(
        config, ("training.total_steps", "few.total_steps", "few.num_levels"), above=0
    )


def run(config, run_dir):
    """Simulates, trains, samples, scores and judges; resumes by stages."""
    stages = {
        "simulate": lambda done: simulate(config),
        "emulate": lambda done: emulate(config, run_dir, done["simulate"]),
        "scores": lambda done: measure(config, done["simulate"], done["emulate"]),
    }
    done = run_stages(run_dir, config, stages)
    verdicts.add_tables(run_dir, config, done)
    run_dir.finish(
        title=config.title,
        summary=verdicts.describe(config, done),
        scalars=verdicts.summarise(config, done),
        claims=verdicts.make_claims(config, done),
        checks=verdicts.make_checks(config, done),
    )


def simulate(config) -> dict[str, np.ndarray]:
    """Archives of every seed, `[seed, case, member, site]`; `truth` has no members."""
    archive = config.archive
    system = Lorenz96(num_sites=archive.num_sites, forcing=archive.forcing)
    options = dict(
        system=system,
        lead_steps=(archive.lead_steps,),
        spin_up_steps=archive.spin_up_steps,
        analysis_noise=archive.analysis_noise,
        member_noise=archive.member_noise,
    )
    found = {"train": [], "test": [], "truth": []}
    for seed in range(config.num_seeds):
        train = lorenz96_archive(
            num_cases=archive.num_train_cases,
            num_members=archive.num_train_members,
            seed=config.seed + seed,
            **options,
        )
        test = lorenz96_archive(
            num_cases=archive.num_test_cases,
            num_members=archive.num_test_members,
            first_case=archive.num_train_cases,
            seed=config.seed + seed,
            **options,
        )
        found["train"].append(train.values[:, :, 0, 0])
        found["test"].append(test.values[:, :, 0, 0])
        found["truth"].append(test.truth[:, 0, 0])
    return {name: np.stack(values) for name, values in found.items()}


def emulate(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Samples from the first two members of every test case, `[seed, sample, case, x]`.

    Returns:
        `generated` by Heun steps, `few` by the distilled denoiser, and seconds that one
        sample of one case takes with each.
    """
    mean, sd = climate(archives["train"])
    standard = (archives["train"] - mean[:, None, None, None]) / sd[:, None, None, None]
    cases = {"members": standard.swapaxes(0, 1)[..., None]}
    mesh = ensjax.make_mesh(**config.mesh)
    training, few = config.training, config.few

    def make_model(rngs):
        return ensjax.nn.ResidualDenoiser(
            1,
            num_condition_channels=3,
            width=config.model.width,
            depth=config.model.depth,
            kernel_size=(config.model.kernel_size,),
            rngs=rngs,
        )

    def options(phase):
        folder = run_dir.checkpoints / phase
        return dict(checkpoint_dir=folder, logger=run_dir.logger(phase))

    emulators, log = train_seeds(
        make_model,
        cases,
        steps=training.total_steps,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        ema_decay=training.ema_decay,
        seed=config.seed,
        mesh=mesh,
        fit_options=options("train"),
    )
    sampler = config.sampler
    levels = diffusion.rho_levels(
        few.num_levels, low=few.low, high=sampler.high, rho=sampler.rho
    )
    students, _ = distil_seeds(
        emulators,
        cases,
        levels=levels,
        steps=few.total_steps,
        num_substeps=few.num_substeps,
        low=few.lowest,
        learning_rate=few.learning_rate,
        batch_size=training.batch_size,
        ema_decay=few.ema_decay,
        seed=config.seed,
        fit_options=options("few"),
    )
    kept.keep(run_dir, "generated", emulators)
    kept.keep(run_dir, "few", students)
    heun = diffusion.Heun(
        diffusion.rho_levels(
            sampler.num_levels, low=sampler.low, high=sampler.high, rho=sampler.rho
        )
    )
    test = (archives["test"] - mean[:, None, None, None]) / sd[:, None, None, None]
    found = {"frozen_steps": np.asarray(log.frozen_steps)}
    for name, models, how in (
        ("generated", emulators, heun),
        ("few", students, diffusion.Euler(levels)),
    ):

        def draw(models=models, how=how):
            drawn = models.sample(
                test[:, :, :K, :, None], np.arange(config.num_samples), sampler=how
            )
            return np.asarray(drawn)[..., 0]

        drawn = draw()
        start = time.perf_counter()
        draw()
        seconds = (time.perf_counter() - start) / drawn[..., 0].size
        found[name] = drawn * sd[:, None, None, None] + mean[:, None, None, None]
        found[f"seconds_{name}"] = np.array(seconds)
    found["seconds_simulated"] = np.array(simulator_seconds(config))
    return found


def climate(train) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over cases, members and sites of every seed."""
    return train.mean(axis=(1, 2, 3)), train.std(axis=(1, 2, 3))


def simulator_seconds(config) -> float:
    """Of one member from its start to the lead, among many in one program."""
    archive = config.archive
    system = Lorenz96(num_sites=archive.num_sites, forcing=archive.forcing)

    def simulate(num_members):
        lorenz96_archive(
            system=system,
            num_cases=archive.num_test_cases,
            num_members=num_members,
            lead_steps=(archive.lead_steps,),
            spin_up_steps=1,
            block=None,
        )

    times = []
    for num_members in (1, archive.num_test_members):
        simulate(num_members)
        start = time.perf_counter()
        simulate(num_members)
        times.append(time.perf_counter() - start)
    added = archive.num_test_cases * (archive.num_test_members - 1)
    return max(times[1] - times[0], 0.0) / added


def measure(config, archives, drawn) -> dict[str, np.ndarray]:
    """Scores `[seed]` of the seeds, a Gaussian, what was generated, and the others."""
    rows = []
    for seed in range(config.num_seeds):
        members = np.moveaxis(archives["test"][seed], 1, 0)  # [member, case, site]
        ensembles = {
            "seeds": members[:K],
            "gaussian": scores.gaussian(members[:K], config.num_samples, seed),
            "generated": drawn["generated"][seed],
            "few": drawn["few"][seed],
            "full": members[K:],
        }
        mean, sd = (float(x[seed]) for x in climate(archives["train"]))
        event = mean + config.event_sds * sd
        rows.append(scores.measure(ensembles, archives["truth"][seed], event))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
