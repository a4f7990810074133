"""Emulators that experiments keep in their runs, found by name again.

A run keeps them in `emulators/<kind>`, each a stack of networks. By name a network is
`<number>`, of the first kind, or `<kind>-<number>`.
"""

import dataclasses

import jax
import numpy as np

from ensjax.emulate.stored_emulators import load_emulators, save_emulators
from ensjax.experiment import ConfigError
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
    return stage(run_dir, config, "simulate")


def stage(run_dir, config, name):
    """What a stage of the run gave.

    Raises:
        ConfigError: if it is damaged.
    """
    found = read_stage(run_dir, config, name)
    if found is None:
        raise ConfigError(
            f"{run_dir.path}/stages/{name}.npz is not whole: the starts are lost."
        )
    return found
