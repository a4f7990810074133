"""Networks of `forecast_assessment.py`: what is trained, and forecasts of all systems.

Every seed has an archive, and networks of its own; those of all seeds are one stack.
Values are in deviations of the climate.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.emulate.closure import closure_forecasts
from ensjax.emulate.rollout import NetworkStep, Rollout
from ensjax.emulate.windows import OwnTask
from ensjax.experiment.fields import load_beside
from ensjax.mapping import map_members
from ensjax.mesh import fetch, make_mesh
from ensjax.train import (
    NoiseCrps,
    PointError,
    RolloutLoss,
    Stage,
    StageAdam,
    TrainingJob,
    WhiteNoise,
    fit,
)

weather = load_beside(__file__, "lorenz96_forecasts")
published = load_beside(__file__, "huge_ensembles_training")

ROWS_AT_ONCE = 256  # forecasts of one network
NETWORKS = ("emulator", "multistep", "crps")


def simulate(config) -> dict[str, np.ndarray]:
    """Archives of every seed, `[seed, ...]`, as `lorenz96_forecasts.simulate`."""
    mesh = make_mesh(**config.mesh.to_dict())
    rows = [
        weather.simulate(config, config.seed + seed, mesh)
        for seed in range(config.num_seeds)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def of_seed(archives, seed) -> dict[str, np.ndarray]:
    """The archive of one seed."""
    return {name: values[seed] for name, values in archives.items()}


def training_job(config, archives=None, *, name="emulator", shapes_only=False):
    """The training of one kind of network for all seeds, as a `TrainingJob`.

    Args:
        config: of the run.
        archives: what `simulate` gives, or None: they are simulated.
        name: one of `NETWORKS`.
        shapes_only: leave the data as their shapes.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    if config.source != "lorenz96":  # several steps, of a network of published size
        return published.training_job(config, shapes_only=shapes_only)
    training, archive = config.training, config.archive
    length = training.num_rollout_steps + 1
    if shapes_only:
        count = archive.num_train_runs * (archive.num_train_outputs - length + 1)
        shape = (count, config.num_seeds, length, archive.num_sites, 1)
        data, step_scale = jax.ShapeDtypeStruct(shape, np.float32), 0.3
    else:
        archives = simulate(config) if archives is None else archives
        data = training_windows(config, archives)
        # One graph for all seeds: their steps differ by a percent.
        step_scale = float(np.round(archives["step_sd"].mean(), 3))
    stage = stage_of(config, name)
    number = config.num_seeds
    hyper = {**stage.hyper(), "task": np.arange(number, dtype=np.int32)}
    return TrainingJob(
        make_model=functools.partial(make_model, config, name, step_scale),
        member_ids=tuple(range(number)),
        init_seed=config.seed + NETWORKS.index(name) * (name == "crps"),
        data=data,
        hyper={k: np.broadcast_to(np.asarray(v), (number,)) for k, v in hyper.items()},
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=OwnTask(stage.loss),
            make_tx=StageAdam(max_norm=1.0),
            steps=stage.steps,
            batch_size=training.batch_size,
            seed=config.seed + NETWORKS.index(name),
            steps_per_call=training.steps_per_call,
            log_every_steps=training.steps_per_call,
            save_every_steps=stage.steps,
            block=training.block,
        ),
        stage=name,
    )


def stage_of(config, name) -> Stage:
    """Loss, rate and number of steps of a kind of network."""
    training = config.training
    several = name == "multistep"
    if name == "crps":
        score = NoiseCrps(
            training.crps_members,
            noise=WhiteNoise(training.num_noise_channels),
            alpha=training.alpha,
        )
    else:
        score = PointError("squared")
    steps = {"emulator": "one_step", "multistep": "several", "crps": "crps"}[name]
    rate = training.several_learning_rate if several else training.learning_rate
    return Stage(
        training[steps],
        rate,
        RolloutLoss(training.num_rollout_steps if several else 1, score),
        decay="cosine",
        warmup_steps=training.warmup_steps if not several else 0,
    )


def training_windows(config, archives) -> np.ndarray:
    """Windows of all seeds, `[window, seed, time, site, 1]`, float32."""
    length = config.training.num_rollout_steps + 1
    rows = [
        weather.training_windows(of_seed(archives, seed), length)
        for seed in range(config.num_seeds)
    ]
    return np.stack(rows, axis=1)


def make_model(config, name, step_scale, rngs):
    """One network, from `nnx.Rngs`."""
    model = config.model
    return ensjax.nn.ResidualForecaster(
        1,
        num_noise_channels=config.training.num_noise_channels if name == "crps" else 0,
        width=model.width,
        depth=model.depth,
        kernel_size=(model.kernel_size,),
        step_scale=step_scale,
        rngs=rngs,
    )


def train(config, run_dir, archives) -> tuple[dict[str, Any], np.ndarray]:
    """Ensembles of all seeds by kind, and how many networks are not finite."""
    found, frozen = {}, 0
    for name in NETWORKS:
        start = found["emulator"] if name == "multistep" else None
        found[name], log = trained(config, run_dir, archives, name, start)
        frozen += int((np.asarray(log.frozen_steps) >= 0).sum())
    return found, np.array(frozen)


def trained(config, run_dir, archives, name, start=None):
    """The networks of one kind, and their log; from `start` on, where it is given.

    Where the training is finished, its checkpoint is read.
    """
    job = training_job(config, archives, name=name)
    place = dict(checkpoint_dir=run_dir.checkpoints / name, logger=run_dir.logger(name))
    if start is None:
        return job.fit(**place)
    return fit(start, job.data, hyper=job.hyper, **job.options, **place)


def noise_of(config, name):
    """How a kind of network draws its noise; None where it has none."""
    return WhiteNoise(config.training.num_noise_channels) if name == "crps" else None


def at_sites(state: jax.Array) -> jax.Array:
    """A state `[site, 1]` as `[site]`."""
    return state[:, 0]


@dataclasses.dataclass(frozen=True)
class NetworkForecast:
    """Forecasts of one network from many states, `[row, step, site]`.

    Attributes:
        rollout: of one forecast.
        num_steps: of each forecast.
    """

    rollout: Rollout
    num_steps: int

    def __call__(self, model, starts, key):
        """`starts [row, site]`; the noise of a row follows its number."""
        leads = 1 + jnp.arange(self.num_steps)

        def of_row(row):
            number, start = row
            own = jax.random.fold_in(key, number)
            return self.rollout(model, own, start[:, None], leads)

        rows = jnp.arange(len(starts)), starts
        return jax.lax.map(of_row, rows, batch_size=min(ROWS_AT_ONCE, len(starts)))


def network_forecasts(config, ensemble, name, starts) -> np.ndarray:
    """Of every seed's network from `starts [seed, row, site]`: `[seed, row, lead,
    site]` at all leads."""
    rollout = Rollout(NetworkStep(ensemble.graph, noise_of(config, name)), at_sites)
    run = map_members(
        NetworkForecast(rollout, config.archive.num_leads),
        kinds=("member", "member", "shared"),
        mesh=ensemble.mesh,
        block=1,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), NETWORKS.index(name))
    return fetch(run(ensemble.state, jnp.asarray(starts, jnp.float32), key))


def forecast(config, run_dir, archives) -> dict[str, np.ndarray]:
    """Trains, and runs every system from the same analyses of the same starts.

    Returns:
        `emulator`, `multistep` and `simulator` `[seed, start, lead, site]`, one
        forecast each from the analysis; `crps` and `physical` `[seed, member, start,
        lead, site]` from the analysis with equal perturbations; at `config.leads`.
        `crps_window` and `physical_window` `[seed, member, start, site]`, means over
        the window of the extreme forecast index. `not_finite`: networks.
    """
    emulators, frozen = train(config, run_dir, archives)
    before = config.archive.num_before
    at = np.asarray(config.leads) - 1
    window = slice(config.efi.first_lead - 1, config.efi.last_lead)
    noise = config.analysis_noise
    starts, members, found = [], [], {"simulator": [], "physical": []}
    windows = {"crps": [], "physical": []}
    mesh = make_mesh(**config.mesh.to_dict())
    for seed in range(config.num_seeds):
        archive = of_seed(archives, seed)
        analysis = weather.analyses(archive, config, seed, noise=noise)[:, before]
        starts.append(analysis)
        members.append(
            weather.perturbed(analysis, config, seed, config.num_members, noise=noise)
        )
        found["simulator"].append(simulated(config, archive, analysis, mesh)[:, at])
        physical = weather.closure_ensemble(config, archive, members[-1], seed, mesh)
        windows["physical"].append(physical[:, :, window].mean(axis=2))
        found["physical"].append(physical[:, :, at])
    found = {name: np.stack(rows) for name, rows in found.items()}
    starts, members = np.stack(starts), np.stack(members)
    for name in ("emulator", "multistep"):
        found[name] = network_forecasts(config, emulators[name], name, starts)[:, :, at]
    rows = members.reshape(len(members), -1, members.shape[-1])
    drawn = network_forecasts(config, emulators["crps"], "crps", rows)
    drawn = drawn.reshape(*members.shape[:3], *drawn.shape[2:])
    drawn = np.moveaxis(drawn, 2, 1)  # [seed, member, start, lead, site]
    found["crps"] = drawn[:, :, :, at]
    found["crps_window"] = drawn[:, :, :, window].mean(axis=3)
    found["physical_window"] = np.stack(windows["physical"])
    return {k: v.astype(np.float32) for k, v in found.items()} | {"not_finite": frozen}


def simulated(config, archive, analysis, mesh) -> np.ndarray:
    """The simulator without noise from `analysis [start, site]`, `[start, lead, site]`
    at all leads."""
    found = closure_forecasts(
        deterministic(config, archive),
        analysis * archive["sd"] + archive["mean"],
        lead_steps=2 * (1 + np.arange(config.archive.num_leads)),
        seed=0,
        mesh=mesh,
    )
    return (found - archive["mean"]) / archive["sd"]


def deterministic(config, archive):
    """The imperfect simulator without its noise."""
    return dataclasses.replace(weather.closure_of(config, archive), noise_sd=0.0)
