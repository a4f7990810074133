"""Emulators that experiments keep in their runs, and their jobs for `ensjax sample`.

A run keeps them in `emulators/<kind>`, each a stack of networks. By name a network is
`<number>`, of the first kind, or `<kind>-<number>`.
"""

import dataclasses

import jax
import numpy as np

from ensjax.emulate.packaged_rain import innsbruck_rain
from ensjax.emulate.sample_job import SampleJob, SamplerSettings
from ensjax.emulate.stored_emulators import load_emulators, save_emulators
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import load_beside
from ensjax.experiment.overrides import join_names
from ensjax.experiment.processes import on_first_process
from ensjax.experiment.stages import read_stage
from ensjax.mesh import make_mesh


def keep(run_dir, kind, emulators) -> None:
    """Keeps a stack of emulators in the run; those of a stage that broke are replaced.

    Every process of a job calls it.
    """
    place = run_dir.path / "emulators" / kind

    def remove():
        if place.exists():
            place.rmtree()

    on_first_process(remove)
    save_emulators(place, emulators)


def load(config, run_dir, kind):
    """The stack that `keep` has kept, on the mesh of the config."""
    mesh = make_mesh(**config.mesh.to_dict())
    return load_emulators(run_dir.path / "emulators" / kind, mesh=mesh)


def kept(run_dir, kinds, model):
    """One network as emulators of a single task, its kind, and its number.

    Args:
        run_dir: the run.
        kinds: that the experiment keeps.
        model: `<number>`, `<kind>-<number>`, or None for the first.

    Raises:
        ConfigError: if the run keeps none, or none of that name; says which there are.
    """
    folder = run_dir.path / "emulators"
    stacks = {k: load_emulators(folder / k) for k in kinds if (folder / k).exists()}
    if not stacks:
        raise ConfigError(
            f"{run_dir.path} keeps no emulator (it has no folder emulators: an earlier"
            " version made it). Run its config again, with another --workdir."
        )
    first = next(iter(stacks))
    names = {
        f"{'' if kind == first else f'{kind}-'}{i}": (kind, i)
        for kind, stack in stacks.items()
        for i in range(stack.ensemble.num_members)
    }
    name = next(iter(names)) if model is None else model.removeprefix(f"{first}-")
    if name not in names:
        raise ConfigError(f"--model is one of {join_names(list(names))}; got {model}.")
    kind, number = names[name]
    stack = stacks[kind]
    one = dataclasses.replace(
        stack,
        ensemble=stack.ensemble.select([number]),
        tasks=np.asarray(stack.tasks)[[number]],
    )
    return one, kind, number


def conditions_of(emulators, seeds, base=None):
    """`condition` of a `SampleJob` from seeds `[case, seed, *space, channel]`.

    Args:
        emulators: of a single task.
        seeds: of every case.
        base: the same for all cases, `[*space, more]`; None where training had none.
    """
    base = None if base is None else base[None, None]

    def condition(row):
        found = emulators.conditions(seeds[None, row : row + 1], base)
        return jax.tree.map(lambda x: x[:, 0], found)

    return condition


def simulated(run_dir, config):
    """What the run's simulator made.

    Raises:
        ConfigError: if it is damaged.
    """
    archives = read_stage(run_dir, config, "simulate")
    if archives is None:
        raise ConfigError(
            f"{run_dir.path}/stages/simulate.npz is not whole: the starts are lost."
        )
    return archives


def lorenz96_job(config, run_dir, model):
    """Of `seeds.py`: the test cases of one seed, given their first two members.

    Raises:
        ConfigError: as `kept`, or if the run's archive is damaged.
    """
    emulators, kind, number = kept(run_dir, ("generated", "few"), model)
    archives = simulated(run_dir, config)
    archive = config.archive
    train, test = archives["train"][number], archives["test"][number]
    mean, sd = (f(train, axis=(0, 1, 2)) for f in (np.mean, np.std))
    seeds = (test[:, : emulators.draw.num_seeds, :, None] - mean) / sd
    training = load_beside(__file__, "seeds_training")
    system = training.system_of(config)
    sampler = training.few_sampler if kind == "few" else training.sampler_of
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=conditions_of(emulators, seeds),
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


def sphere_job(config, run_dir, model):
    """Of `seeds_sphere.py`: the test cases, given the two members of one seed.

    Its members are those that the run made, and more: cases and ids say their noise.

    Raises:
        ConfigError: as `kept`, or if the run's archive is damaged.
    """
    emulators, _, number = kept(run_dir, ("generated",), model)
    archives = simulated(run_dir, config)
    training = load_beside(__file__, "seeds_sphere_training")
    climate, system = training.climate(archives), training.system_of(config)
    test = training.to_channels(training.standardised(archives, archives["test"]))
    seeds, base = test[:, training.given(config)[number]], training.base_of(archives)
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=conditions_of(emulators, seeds, base),
        shape=seeds.shape[2:],
        restore=lambda samples, row: climate.restore(training.from_channels(samples)),
        case=archives["case"],
        lead=archives["lead_days"][-1:].astype("timedelta64[D]"),
        variable=system.variable,
        space={"lat": archives["lat"], "lon": archives["lon"]},
        units=system.units,
        source=f"{system.name}, seed {config.seed + number}",
        truth=lambda row: archives["truth"][row][None],
        seed=config.seed,
        sampler=training.sampler_of(config, config.sampler.num_levels),
    )


def rain_job(config, run_dir, model):
    """Of `seeds_rainfall.py`: the test cases, given their first members.

    Raises:
        ConfigError: as `kept`.
        ImportError: if the package with the data is not installed.
    """
    emulators, _, _ = kept(run_dir, list(config.member_shares), model)
    data = load_beside(__file__, "seeds_rainfall_data")
    train, test = data.load(config)
    scale, archive = data.fit_scale(train), innsbruck_rain()
    return SampleJob(
        denoisers=emulators.denoisers,
        condition=conditions_of(emulators, data.given(config, test, scale)),
        shape=(1,),
        restore=lambda samples, row: scale.restore(samples),
        case=archive.case[test.rows],
        lead=archive.lead,
        variable=archive.variable,
        units=archive.units,
        source=archive.source,
        truth=lambda row: test.observed[row][None, None],
        case_ids=test.rows,
        seed=config.seed,
        sampler=rain_sampler(config),
    )


def rain_sampler(config) -> SamplerSettings:
    """Of `seeds_rainfall.py`."""
    return SamplerSettings("heun", config.num_levels, high=config.sigma_high)
