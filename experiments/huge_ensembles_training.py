"""Checkpoints of `huge_ensembles.py`: deterministic emulators of one step, stacked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.emulate.seeds import CosineAdam
from ensjax.emulate.windows import OwnTask
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.ops.sphere import SphericalGrid
from ensjax.train import PointError, RolloutLoss, TrainingJob, area_channel_weights
from ensjax.train.losses import weighted_mean

weather = load_beside(__file__, "lorenz96_forecasts")


@dataclasses.dataclass(frozen=True)
class StepError:
    """The mean squared error of one step: windows `[batch, 2, *space, channel]`."""

    def __call__(self, model, batch, key, weight=None):
        del key
        found = jax.vmap(lambda state: model(None, state))(batch[:, 0])
        axes = tuple(range(1, found.ndim))
        return weighted_mean(jnp.mean((found - batch[:, 1]) ** 2, axis=axes), weight)


def _residual(config, rngs):
    model = config.model
    return ensjax.nn.ResidualForecaster(
        1,
        width=model.width,
        depth=model.depth,
        kernel_size=(model.kernel_size,),
        step_scale=model.step_scale,
        rngs=rngs,
    )


def _sfno(config, rngs):
    model = config.model
    return ensjax.nn.sfno(
        dtype=model.dtype, remat=model.remat, axis=latitude_axis(config), rngs=rngs
    )


NETWORKS = {"residual": _residual, "sfno": _sfno}


def latitude_axis(config) -> str | None:
    """The axis of the mesh over which latitudes of the published size are split."""
    is_full = config.model.name == "sfno"
    return "model" if is_full and config.mesh.model != 1 else None


def loss_of(config):
    """The squared error of one step; on the sphere by area and by channel.

    There it is of `training.num_rollout_steps`, if a config has them. A pole that is
    repeated counts once. The weights of channels are `training.channel_weights`; a
    config without them weighs channels alike.
    """
    if config.model.name == "sfno":
        grid = SphericalGrid(*config.archive.space, "poles", northward=False)
        weights = area_channel_weights(
            grid.quadrature(), config.training.get("channel_weights")
        )
        score = PointError(latitude_axis=latitude_axis(config))
        steps = config.training.get("num_rollout_steps", 1)
        return RolloutLoss(steps, score, element_weights=weights)
    return StepError()


def make_model(config, rngs):
    """One network, from `nnx.Rngs`."""
    return choose("model.name", config.model.name, NETWORKS)(config, rngs)


def training_job(config, archives=None, *, shapes_only=False) -> TrainingJob:
    """All checkpoints of all seeds as one call of `fit`.

    Args:
        config: of the run.
        archives: what `simulate` gives, or None: they are simulated.
        shapes_only: leave the data as their shapes, so that nothing is simulated.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    if shapes_only:
        data = window_shapes(config)
    else:
        data = windows_of(config, simulate(config) if archives is None else archives)
    ids = tuple(range(config.num_seeds * config.num_checkpoints))
    return job_of(config, ids, data)


def job_of(config, ids, data, **more) -> TrainingJob:
    """The checkpoints of some ids: seed times their number, and the number in it."""
    training = config.training
    steps = more.pop("steps", training.total_steps)
    options = dict(
        loss=OwnTask(loss_of(config)),
        make_tx=CosineAdam(training.total_steps),
        steps=steps,
        batch_size=training.batch_size,
        seed=config.seed,
        sampling="independent",  # every checkpoint has its own order of windows
        steps_per_call=min(training.steps_per_call, steps),
        log_every_steps=min(training.steps_per_call, steps),
        save_every_steps=min(training.save_every_steps, steps),
        block=training.block,
    )
    return TrainingJob(
        make_model=functools.partial(make_model, config),
        member_ids=tuple(ids),
        init_seed=config.seed,
        data=data,
        hyper={
            "learning_rate": np.full(len(ids), training.learning_rate, np.float32),
            "task": np.asarray(ids, np.int32) // config.num_checkpoints,
        },
        mesh_sizes=config.mesh.to_dict(),
        options=options | more,
        stage="train",
        is_stream=config.archive.source != "lorenz96",
    )


def window_shapes(config) -> jax.ShapeDtypeStruct:
    """Shapes of the windows, `[window, seed, time, *space, channel]`, of two times.

    At full size those of one batch: the steps of the archive stream.
    """
    archive, length = config.archive, 2
    if archive.source == "lorenz96":
        count = archive.num_train_runs * (archive.num_train_outputs - 1)
        one = (archive.num_sites, 1)
    else:
        count = config.training.batch_size
        one = (*archive.space, archive.num_channels)
        length = 1 + config.training.get("num_rollout_steps", 1)
    return jax.ShapeDtypeStruct((count, config.num_seeds, length, *one), np.float32)


def windows_of(config, archives) -> np.ndarray:
    """Standardised steps of every seed, `[window, seed, 2, site, 1]`."""
    return np.stack(
        [
            weather.training_windows(of_seed(archives, seed), 2)
            for seed in range(config.num_seeds)
        ],
        axis=1,
    )


def check_at_hand(config) -> None:
    """Raises `ConfigError` for a source that cannot be read here."""
    if config.archive.source != "lorenz96":
        raise ConfigError(
            f"{config.archive.source} is not at hand, so that this preset is planned:"
            f" ensjax plan configs/{config.experiment}.py:paper"
        )


def simulate(config) -> dict[str, np.ndarray]:
    """What `lorenz96_forecasts.simulate` gives of every seed, `[seed, ...]`.

    Raises:
        ConfigError: for a source that is not at hand.
    """
    check_at_hand(config)
    seeds = range(config.num_seeds)
    found = [weather.simulate(config, config.seed + seed) for seed in seeds]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def of_seed(archives, seed: int) -> dict[str, np.ndarray]:
    """The archive of one seed."""
    return {name: values[seed] for name, values in archives.items()}


def train(config, run_dir, archives):
    """The trained checkpoints of all seeds and the log; read where finished."""
    job = training_job(config, archives)
    return job.fit(
        checkpoint_dir=run_dir.checkpoints / job.stage, logger=run_dir.logger("train")
    )


def train_early(config, archives):
    """All checkpoints as they are after `training.early_steps`."""
    ids = range(config.num_seeds * config.num_checkpoints)
    few = dict(steps=config.training.early_steps, progress=False, save_every_steps=None)
    return job_of(config, ids, windows_of(config, archives), **few).fit()[0]


def alone_differences(config, archives, trained) -> dict[str, np.ndarray]:
    """How much checkpoints trained alone differ from those of a stack, at most.

    Args:
        config: of the run.
        archives: of all seeds.
        trained: all checkpoints, after all steps.

    Returns:
        `[]`: `alone_weights`, the largest difference of a weight, and
        `alone_forecasts`, of one step's forecasts in deviations, of `num_alone`
        checkpoints of the first seed after `alone_steps` steps; `whole_weights` and
        `whole_forecasts`, the same of the first checkpoint after all steps.
    """
    training = config.training
    data = windows_of(config, archives)
    states = jnp.asarray(data[:16, 0, 0])
    ids = range(min(training.num_alone, config.num_checkpoints))

    def alone(number, steps):
        few = dict(steps=steps, progress=False, save_every_steps=None)
        return job_of(config, (number,), data, **few).fit()[0]

    def differences(one, stack, number):
        pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(stack.params))
        gaps = [np.abs(a[0] - b[number]).max() for a, b in ensjax.mesh.fetch([*pairs])]
        apart = forecasts(one, states)[0] - forecasts(stack, states)[number]
        return float(max(gaps)), float(np.abs(apart).max())

    steps, is_whole = training.alone_steps, training.alone_steps == training.total_steps
    few, stack = dict(steps=steps, progress=False, save_every_steps=None), trained
    if not is_whole:
        stack, _ = job_of(config, range(config.num_checkpoints), data, **few).fit()
    found = [differences(alone(i, steps), stack, i) for i in ids]
    names = ("alone_weights", "alone_forecasts", "whole_weights", "whole_forecasts")
    whole = found[0]
    if not is_whole:
        whole = differences(alone(0, training.total_steps), trained, 0)
    values = (*np.max(found, axis=0), *whole)
    return dict(zip(names, (np.array(value) for value in values)))


@dataclasses.dataclass(frozen=True)
class _Next:
    graph: object

    def __call__(self, state, fields):
        network = self.graph.merge(state, train=False)
        return jax.vmap(lambda field: network(None, field))(fields)


def forecasts(ensemble, fields) -> np.ndarray:
    """One step of every network from all fields, `[checkpoint, field, site, 1]`."""
    step = ensjax.map_members(
        _Next(ensemble.graph), kinds=("member", "shared"), mesh=ensemble.mesh
    )
    return ensjax.mesh.fetch(step(ensemble.state, fields))
