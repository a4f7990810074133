"""Networks of `crps_forecast.py`: their jobs, their curriculum, and what they forecast.

Networks with noise are one stack, seeds x losses, which differ in the weight of the
fair estimator; those with one squared error are another, one for each seed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import nn
from ensjax.emulate.windows import windows
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.ops.sphere import SphericalGrid
from ensjax.train import (
    NoiseCrps,
    PointError,
    RolloutLoss,
    Stage,
    StageAdam,
    TrainingJob,
    WhiteNoise,
    area_channel_weights,
    train_curriculum,
)
from ensjax.verification import cell_weights

lorenz = load_beside(__file__, "lorenz96_forecasts")

# Of the losses with noise: how much of the fair estimator is in each.
LOSSES = ("standard", "almost_fair", "fair")
NOISES = {
    "white": WhiteNoise,
    "projected": nn.ProjectedNoise,
    "global": nn.GlobalNoise,
}
SOURCES = ("lorenz96", "era5")


def make_model(config, has_noise, step_scale, rngs):
    """One network, from `nnx.Rngs`; at full size of the last states."""
    model, archive = config.model, config.archive
    options = dict(
        num_noise_channels=model.num_noise_channels if has_noise else 0,
        width=model.width,
        depth=model.depth,
        step_scale=step_scale,
        rngs=rngs,
    )
    if archive.source != "era5":
        return nn.NoiseForecaster(1, kernel_size=(model.kernel_size,), **options)
    fields, num_states = archive.num_fields, model.num_states
    rows, columns = archive.space
    grid = SphericalGrid(
        rows, columns, "cells", truncation=model.reference_degree, northward=False
    )
    network = nn.NoiseForecaster(
        fields,
        num_extra_channels=(num_states - 1) * fields,
        kernel_size=(model.kernel_size,) * 2,
        padding=model.padding,
        reference=nn.HarmonicTruncation(grid),
        flags_first_step=True,
        remat=model.remat,
        dtype=model.dtype,
        **options,
    )
    return nn.LastStates(network, num_channels=fields, num_states=num_states)


def num_states_of(config) -> int:
    """That a step starts from."""
    return config.model.get("num_states", 1)


def noise_of(config):
    """How the noise of a step is drawn."""
    noise = choose("model.noise", config.model.noise, NOISES)
    return noise(config.model.num_noise_channels)


def losses_of(config) -> list[RolloutLoss]:
    """The loss of every stage of the networks with noise."""
    stages, training = config.stages, config.training
    weights = element_weights_of(config)
    axis = "model" if training.split_members else None
    return [
        RolloutLoss(
            int(rollout),
            NoiseCrps(
                int(members), noise=noise_of(config), axis=axis, centred=bool(centred)
            ),
            element_weights=weights,
            fair_hyper="fair",
            task_hyper="task",
            num_states=num_states_of(config),
        )
        for rollout, members, centred in zip(
            stages.rollout_steps, stages.num_members, stages.is_centred, strict=True
        )
    ]


def element_weights_of(config):
    """At full size areas of rows times weights of fields; sites of a ring are alike."""
    archive = config.archive
    if archive.source != "era5":
        return None
    rows = np.linspace(*archive.latitudes, archive.space[0])
    return area_channel_weights(cell_weights(rows), archive.field_weights)


def stages_of(config, losses) -> list[Stage]:
    """The curriculum, with the losses of its stages."""
    stages = config.stages
    return [
        Stage(int(steps), float(rate), loss, decay=decay, warmup_steps=int(warmup))
        for steps, rate, loss, decay, warmup in zip(
            stages.total_steps,
            stages.learning_rate,
            losses,
            stages.decay,
            stages.warmup_steps,
            strict=True,
        )
    ]


def stack_of(config) -> dict[str, np.ndarray]:
    """Of every network with noise: its task (seed) and its weight of the fair form."""
    weights = dict(zip(LOSSES, (0.0, config.training.alpha, 1.0), strict=True))
    fair = np.array([weights[x] for x in config.get("losses", LOSSES)], np.float32)
    return {
        "task": np.repeat(np.arange(config.num_seeds, dtype=np.int32), len(fair)),
        "fair": np.tile(fair, config.num_seeds),
    }


def adam_of(config) -> StageAdam:
    """The optimizer of all stages."""
    training = config.training
    return StageAdam(weight_decay=training.weight_decay, max_norm=training.max_norm)


def training_job(config, archives=None, *, shapes_only=False) -> TrainingJob:
    """The first stage of the networks with noise, as one call of `fit`.

    Args:
        config: of the run.
        archives: by seed, or None: they are simulated.
        shapes_only: leave the data as their shapes, so that nothing is simulated.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    stage = stages_of(config, losses_of(config))[0]
    if shapes_only:
        data, step_scale = window_shapes(config), 1.0
    else:
        archives = simulate(config) if archives is None else archives
        data, step_scale = all_windows(config, archives), scale_of(archives)
    stack = stack_of(config)
    count = len(stack["task"])
    hyper = {
        name: np.broadcast_to(np.asarray(value), (count,))
        for name, value in {**stack, **stage.hyper()}.items()
    }
    training = config.training
    return TrainingJob(
        make_model=functools.partial(make_model, config, True, step_scale),
        member_ids=tuple(range(count)),
        init_seed=config.seed,
        data=data,
        hyper=hyper,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=stage.loss,
            make_tx=adam_of(config),
            steps=stage.steps,
            batch_size=training.batch_size,
            seed=config.seed,
            steps_per_call=training.steps_per_call,
            log_every_steps=training.steps_per_call,
            save_every_steps=training.save_every_steps,
        ),
        stage="noise/stage-0",
        is_stream=config.archive.source == "era5",
    )


def window_shapes(config) -> jax.ShapeDtypeStruct:
    """Of the windows, `[window, seed, time, *space, channel]`.

    At full size those of one batch of the first stage: the reanalyses stream, and each
    stage reads windows as long as its rollout.
    """
    archive = config.archive
    times = 1 + max(config.stages.rollout_steps)
    if archive.source == "era5":
        one = (*archive.space, archive.num_fields)
        count = config.training.batch_size
        times = num_states_of(config) + config.stages.rollout_steps[0]
    else:
        one = (archive.num_sites, 1)
        count = archive.num_train_runs * (archive.num_train_outputs - times + 1)
    return jax.ShapeDtypeStruct((count, config.num_seeds, times, *one), np.float32)


def check_at_hand(config) -> None:
    """Raises `ConfigError` for a source that cannot be read here."""
    if config.archive.source == "era5":
        raise ConfigError(
            "the reanalyses are not at hand, so that this preset is planned: ensjax"
            " plan configs/crps_forecast.py:paper"
        )


def simulate(config) -> dict[str, np.ndarray]:
    """Everything that `lorenz96_forecasts.simulate` gives, with seeds in front."""
    check_at_hand(config)
    seeds = config.seed + np.arange(config.num_seeds)
    rows = [lorenz.simulate(config, int(seed)) for seed in seeds]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def of_seed(archives, seed: int) -> dict[str, np.ndarray]:
    """The archive of one seed."""
    return {name: values[seed] for name, values in archives.items()}


def all_windows(config, archives) -> np.ndarray:
    """Standardised windows of the training runs, `[window, seed, time, site, 1]`."""
    times = 1 + max(config.stages.rollout_steps)
    own = [
        windows(((train - mean) / sd).astype(np.float32), times)
        for train, mean, sd in zip(
            archives["train"], archives["mean"], archives["sd"], strict=True
        )
    ]
    return np.stack(own, axis=1)[..., None]


def scale_of(archives) -> float:
    """Deviation of one step's change, rounded: it is part of the network's program."""
    return round(float(np.mean(archives["step_sd"])), 3)


def train(config, run_dir, archives) -> dict[str, Any]:
    """Trained networks, "noise" `[seed x loss]` and "error" `[seed]`; it resumes.

    Returns:
        The two ensembles, and `frozen_steps` of all networks.
    """
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    data, scale = all_windows(config, archives), scale_of(archives)
    losses = losses_of(config)
    plain = [
        RolloutLoss(loss.num_steps, PointError(), task_hyper="task") for loss in losses
    ]
    stack = stack_of(config)
    kinds = {
        "noise": (losses, stack),
        "error": (plain, {"task": np.arange(config.num_seeds, dtype=np.int32)}),
    }
    found: dict[str, Any] = {"frozen_steps": []}
    for kind, (own, hyper) in kinds.items():
        ensemble = ensjax.Ensemble.init(
            functools.partial(make_model, config, kind == "noise", scale),
            num_members=len(hyper["task"]),
            seed=config.seed,
            mesh=mesh,
        )
        found[kind], logs = train_curriculum(
            ensemble,
            data,
            stages_of(config, own),
            make_tx=adam_of(config),
            hyper=hyper,
            batch_size=config.training.batch_size,
            seed=config.seed,
            steps_per_call=config.training.steps_per_call,
            log_every_steps=config.training.steps_per_call,
            save_every_steps=config.training.save_every_steps,
            checkpoint_dir=run_dir.checkpoints / kind,
            logger=run_dir.logger(kind),
            mesh=mesh,
        )
        found["frozen_steps"] += [np.asarray(log.frozen_steps) for log in logs]
    found["frozen_steps"] = np.concatenate(found["frozen_steps"])
    return found


def forecast(
    config, ensemble, starts, num_members, *, first_case=0, num_leads=None
) -> np.ndarray:
    """Forecasts of every network of a stack.

    Args:
        config: of the run.
        ensemble: of networks; those without noise make one member.
        starts: `[case, site]`, in deviations.
        num_members: of each case.
        first_case: number of the first case; a case's noise follows its number.
        num_leads: how many of the first; None for all.

    Returns:
        `[network, member, case, lead, site]`, NumPy.
    """
    has_noise = ensemble[0].num_noise_channels > 0
    noise = noise_of(config) if has_noise else None
    run = map_members(
        _Forecast(ensemble.graph, noise, num_leads or config.archive.num_leads),
        kinds=("member", "shared", "shared", "shared", "shared"),
        mesh=ensemble.mesh,
        block=1,
    )
    cases = first_case + jnp.arange(len(starts))
    members = jnp.arange(num_members)
    found = run(
        ensemble.state, jnp.asarray(starts), members, cases, jnp.asarray(config.seed)
    )
    return ensjax.mesh.fetch(found)


@dataclasses.dataclass(frozen=True)
class _Forecast:
    """All members of all cases by one network; a member's noise is its number's."""

    graph: Any
    noise: Any
    num_leads: int

    def __call__(self, state, starts, members, cases, seed):
        network = self.graph.merge(state, train=False)

        def one(member, case, start):
            key = jax.random.fold_in(member_key(seed, "sample", member), case)

            def step(x, number):
                own = jax.random.fold_in(key, number)
                noise = None if self.noise is None else self.noise(own, x.shape)
                x = network(noise, x)
                return x, x[:, 0]

            leads = jnp.arange(self.num_leads)
            return jax.lax.scan(step, start[:, None], leads)[1]

        of_member = jax.vmap(one, in_axes=(None, 0, 0))
        return jax.vmap(of_member, in_axes=(0, None, None))(members, cases, starts)
