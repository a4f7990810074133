"""The job of `ensjax sample` for runs of `seeds.py`."""

import numpy as np

from ensjax.emulate.sample_job import SampleJob
from ensjax.experiment.fields import load_beside

stored = load_beside(__file__, "seeds_emulators")
training = load_beside(__file__, "seeds_training")
from_files = load_beside(__file__, "seeds_files_run")


def sample_job(config, run_dir, model):
    """The test cases of one seed (or of files), given their first two members.

    Raises:
        ConfigError: as `kept`, or if the run's archive is damaged.
    """
    if config.archive.source == "files":
        return from_files.sample_job(config, run_dir, model)
    emulators, kind, number = stored.kept(run_dir, ("generated", "few"), model)
    archives = stored.simulated(run_dir, config)
    archive = config.archive
    train, test = archives["train"][number], archives["test"][number]
    mean, sd = (f(train, axis=(0, 1, 2)) for f in (np.mean, np.std))
    seeds = (test[:, : emulators.draw.num_seeds, :, None] - mean) / sd
    system = training.system_of(config)
    sampler = training.few_sampler if kind == "few" else training.sampler_of
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=stored.conditions_of(emulators, seeds),
        shape=(archive.num_sites, 1),
        restore=lambda samples, row: np.moveaxis(samples, -1, 2) * sd + mean,
        case=archive.num_train_cases + np.arange(len(test)),
        lead=np.asarray([archive.lead_steps * system.step_length]),
        variable=system.variable,
        space=system.space,
        source=f"{system.name}, seed {config.seed + number}",
        seed=config.seed,
        truth=lambda row: archives["truth"][number][row][None, None],
        sampler=sampler(config),
    )
