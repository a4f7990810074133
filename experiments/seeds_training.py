"""Archives, networks, training and sampling of `seeds.py`, as its config has them."""

import functools
import time

import jax
import numpy as np

import ensjax
from ensjax.emulate import diffusion
from ensjax.emulate.lorenz96 import Lorenz96, lorenz96_archive
from ensjax.emulate.sample_job import SamplerSettings
from ensjax.emulate.seeds import (
    CosineAdam,
    DrawSeeds,
    SeedsEmulators,
    SeedsLoss,
    distil_seeds,
)
from ensjax.emulate.trajectories import forecast_twins
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.train import TrainingJob, TrainingLog
from ensjax.weight_space import EMA, averaged

files = load_beside(__file__, "seeds_files")

K = 2  # seeds of a case

# A parametrisation, and the noise of its training.
DIFFUSIONS = {
    "edm": (diffusion.EDM(), diffusion.LogNormalNoise()),
    "ve": (diffusion.VE(), diffusion.UniformTimeNoise()),
}
SOURCES = ("lorenz96", "files")


def training_job(config, archives=None, *, shapes_only=False) -> TrainingJob:
    """The networks of the run, one for each task, as one call of `fit`.

    A task is a seed's archive, or a lead of the archive at full size.

    Args:
        config: of the run.
        archives: what `simulate` gives, or None: they are simulated.
        shapes_only: leave the data as their shapes, so that nothing is simulated.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    if shapes_only:
        cases = case_shapes(config)
    else:
        cases = training_cases(simulate(config) if archives is None else archives)
    loss = SeedsLoss(draw_of(config), diffusion.DenoisingLoss(*parts_of(config)))
    tasks = range(cases["members"].shape[1])
    return job_of(config, functools.partial(make_model, config), cases, tasks, loss)


def job_of(config, make_model, cases, tasks, loss, **more) -> TrainingJob:
    """A network for each of `tasks`, trained as the config says; `more` is of `fit`."""
    training = config.training
    return TrainingJob(
        make_model=make_model,
        member_ids=tuple(range(len(tasks))),
        init_seed=config.seed,
        data=cases,
        hyper={
            "learning_rate": np.full(len(tasks), training.learning_rate, np.float32),
            "task": np.asarray(tasks, np.int32),
        },
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=loss,
            make_tx=CosineAdam(training.total_steps),
            steps=training.total_steps,
            batch_size=training.batch_size,
            averages={"ema": EMA(training.ema_decay)},
            seed=config.seed,
            sampling=training.sampling,
            steps_per_call=training.steps_per_call,
            log_every_steps=training.steps_per_call,
            save_every_steps=training.save_every_steps,
            block=training.block,
            **more,
        ),
        stage="train",
    )


def _residual(config, rngs):
    model = config.model
    return ensjax.nn.ResidualDenoiser(
        1,
        num_condition_channels=3,  # of two seeds' moments
        width=model.width,
        depth=model.depth,
        kernel_size=(model.kernel_size,),
        rngs=rngs,
    )


def _axial(config, rngs):
    model, archive = config.model, config.archive
    return ensjax.nn.AxialDenoiser(
        len(archive.fields),
        space=archive.space,
        patch_size=model.patch_size,
        levels=model.levels,
        width=model.width,
        depths=model.depths,
        num_heads=model.num_heads,
        mlp_width=model.mlp_width,
        dtype=model.dtype,
        remat=model.remat,
        rngs=rngs,
    )


# A network of a config, and how it is told the seeds.
NETWORKS = {"residual": (_residual, "moments"), "axial": (_axial, "sequence")}


def make_model(config, rngs):
    """One network, from `nnx.Rngs`."""
    build, _ = choose("model.name", config.model.name, NETWORKS)
    return build(config, rngs)


def draw_of(config) -> DrawSeeds:
    """How a step draws seeds and target from a case."""
    _, encoder = choose("model.name", config.model.name, NETWORKS)
    return DrawSeeds(num_seeds=K, encoder=encoder)


def parts_of(config):
    """The parametrisation and the noise of training."""
    return choose("diffusion", config.diffusion, DIFFUSIONS)


def case_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the training cases, `[case, task, member, *space, field]`."""
    archive = config.archive
    count, members = archive.num_train_cases, archive.num_train_members
    if archive.source == "lorenz96":
        shape = (count, config.num_seeds, members, archive.num_sites, 1)
        return {"members": jax.ShapeDtypeStruct(shape, np.float32)}
    tasks = config.num_seeds * len(archive.lead_days)
    one = (*archive.space, len(archive.fields))
    return {
        "members": jax.ShapeDtypeStruct((count, tasks, members, *one), np.float32),
        "base": jax.ShapeDtypeStruct((count, tasks, *one), np.float32),
    }


def training_cases(archives) -> dict[str, np.ndarray]:
    """Standardised members, `[case, seed, member, site, 1]`."""
    return {"members": standardised(archives, "train").swapaxes(0, 1)[..., None]}


def standardised(archives, part) -> np.ndarray:
    """Members of "train" or "test" in units of the training climate's deviation."""
    mean, sd = (x[:, None, None, None] for x in climate(archives["train"]))
    return (archives[part] - mean) / sd


def climate(train) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over cases, members and sites, `[seed]`."""
    return train.mean(axis=(1, 2, 3)), train.std(axis=(1, 2, 3))


def check_at_hand(config) -> None:
    """Raises `ConfigError` for a source that cannot be read here."""
    if config.archive.source == "files":
        files.check_named(config)
        raise ConfigError(
            "fields of files are read by a run, which prepares them:"
            " ensjax run configs/seeds.py:paper"
        )
    if config.archive.source == "gefs":
        raise ConfigError(
            "the reforecasts of GEFS are not at hand, so that this preset is planned:"
            " ensjax plan configs/seeds.py:paper"
        )


def simulate(config) -> dict[str, np.ndarray]:
    """Archives of every seed, `[seed, case, member, site]`; `truth` has no members.

    Raises:
        ConfigError: for a source that is not at hand.
    """
    check_at_hand(config)
    archive = config.archive
    options = dict(
        system=system_of(config),
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


def system_of(config) -> Lorenz96:
    """The simulator."""
    archive = config.archive
    return Lorenz96(num_sites=archive.num_sites, forcing=archive.forcing)


def train(config, run_dir, archives) -> tuple[SeedsEmulators, TrainingLog]:
    """Trained denoisers, one for each seed, and the log.

    Where the training is finished, its checkpoint is read.
    """
    return fitted(config, run_dir, training_job(config, archives))


def fitted(config, run_dir, job) -> tuple[SeedsEmulators, TrainingLog]:
    """What `train` returns, of a job."""
    trained, log = job.fit(
        checkpoint_dir=run_dir.checkpoints / job.stage, logger=run_dir.logger("train")
    )
    own = averaged(trained, job.options["averages"]["ema"], log.averages["ema"])
    parametrisation, _ = parts_of(config)
    tasks = np.asarray(job.hyper["task"])
    emulators = SeedsEmulators(own, tasks, draw_of(config), parametrisation)
    return emulators, log


def distil(config, run_dir, emulators, archives) -> SeedsEmulators:
    """Denoisers that sample in `few.num_levels` calls, by `few_sampler`."""
    few = config.few
    students, _ = distil_seeds(
        emulators,
        training_cases(archives),
        levels=few_sampler(config).make().levels,
        steps=few.total_steps,
        num_substeps=few.num_substeps,
        low=few.lowest,
        learning_rate=few.learning_rate,
        batch_size=config.training.batch_size,
        ema_decay=few.ema_decay,
        seed=config.seed,
        fit_options=dict(
            steps_per_call=few.steps_per_call,
            log_every_steps=few.steps_per_call,
            save_every_steps=few.save_every_steps,
            checkpoint_dir=run_dir.checkpoints / "few",
            logger=run_dir.logger("few"),
        ),
    )
    return students


def sampler_of(config, num_levels=None) -> SamplerSettings:
    """Heun's method with the levels of the config, or with another number of them."""
    levels = {} if num_levels is None else {"num_levels": num_levels}
    return SamplerSettings("heun", **config.sampler.to_dict() | levels)


def few_sampler(config) -> SamplerSettings:
    """Of the distilled denoisers, which are called once at each level."""
    few, sampler = config.few, config.sampler
    ends = dict(low=few.low, high=sampler.high, rho=sampler.rho)
    return SamplerSettings("euler", few.num_levels, **ends)


def draw(config, emulators, archives, sampler) -> tuple[np.ndarray, float]:
    """Samples from the first K members of every test case.

    Returns:
        `[seed, sample, case, site]` in units of the system, and seconds for a sample of
        a case without compilation, which are NaN if all came from one call.
    """
    given = standardised(archives, "test")[:, :, :K, :, None]
    parts, times = [], []
    for first in range(0, config.num_samples, config.samples_at_once):
        ids = np.arange(first, first + config.samples_at_once)
        start = time.perf_counter()
        drawn = emulators.sample(given, ids, sampler=sampler, seed=config.seed)
        parts.append(ensjax.mesh.fetch(drawn)[..., 0])
        times.append(time.perf_counter() - start)
    samples = np.concatenate(parts, axis=1)[:, : config.num_samples]
    mean, sd = (x[:, None, None, None] for x in climate(archives["train"]))
    # The first call is compiled.
    seconds = np.median(times[1:]) if len(times) > 1 else np.nan
    return samples * sd + mean, float(seconds / parts[0][..., 0].size)


def simulator_seconds(config, archives) -> np.ndarray:
    """Of a member from its start to the lead, among as many as the test has, `[seed]`.

    The program is that of the test's archive. The states are others of the climate.
    """
    archive = config.archive

    def simulate_once(states):
        start = time.perf_counter()
        forecast_twins(
            system_of(config),
            states,
            np.arange(archive.num_test_cases),
            num_members=archive.num_test_members,
            lead_steps=(archive.lead_steps,),
            analysis_noise=archive.analysis_noise,
            member_noise=archive.member_noise,
            seed=config.seed,
        )
        return time.perf_counter() - start

    simulate_once(archives["truth"][0])  # compiles, after a resume
    seconds = np.array([simulate_once(states) for states in archives["truth"]])
    return seconds / (archive.num_test_cases * (1 + archive.num_test_members))
