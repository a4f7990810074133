"""A diffusion model of the trunk of `fourcastnet3.py`, and its speed beside the net's.

The denoiser is trained on the change of a day, in units of its deviation, and is given
the day before. Both kinds make members of the first day by one and the same program
around them (`sample_each`): the network in one call, a sampler in 2 levels - 1.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.emulate import diffusion
from ensjax.emulate.sample_job import SamplerSettings
from ensjax.emulate.windows import windows
from ensjax.experiment.fields import load_beside
from ensjax.mesh import fetch
from ensjax.ops.sphere import from_real_harmonics, to_real_harmonics
from ensjax.train import Stage, StageAdam, fit
from ensjax.verification import gauss_weights
from ensjax.weight_space import EMA, averaged

base = load_beside(__file__, "spherical_noise_scores")
training = base.training

EDM = diffusion.EDM()
NET = "net"
HALF = "half"  # denoisers trained over half of the steps


def names_of(config) -> list[str]:
    """The network, and the samplers by their levels, as arrays are named."""
    return [NET, *sampler_names(config)]


def sampler_names(config) -> list[str]:
    return [f"levels_{count}" for count in config.sampler.num_levels]


# The denoiser


@dataclasses.dataclass(frozen=True)
class ChangeLoss:
    """A denoising loss of the change from one day to the next, given the former.

    Attributes:
        loss: of `(change, day before)`.
        change_sd: deviation of the change by variable.
    """

    loss: diffusion.DenoisingLoss
    change_sd: tuple[float, ...]

    def __call__(self, model, pairs, key, weight=None):
        """The mean loss of windows `[batch, 2, lat, lon, variable]`."""
        sd = jnp.asarray(self.change_sd, jnp.float32)
        change = (pairs[:, 1] - pairs[:, 0]) / sd.reshape((1,) * 3 + (-1,))
        return self.loss(model, (change, pairs[:, 0]), key, weight)


def change_sd(config, archive) -> tuple[float, ...]:
    """Deviation of a day's change by variable, of the training runs."""
    area = training.grid_of(config).quadrature()[:, None, None] / 2
    squares = np.square(np.diff(archive["train"], axis=1)).mean(axis=(0, 1))
    return tuple(np.sqrt((squares * area).sum(axis=0).mean(axis=0)).tolist())


def make_denoiser(config, rngs):
    """A denoiser with the trunk of the config's network, from `nnx.Rngs`."""
    options = config.model.options.to_dict()
    # A denoiser has to take away the noise beyond the grid's degree, too.
    for name in ("is_truncated", "state_share"):
        options.pop(name, None)
    num_variables = len(training.data.VARIABLES)
    return ensjax.nn.SphericalDenoiser(
        training.grid_of(config),
        num_variables,
        num_condition_channels=num_variables,
        num_level_channels=config.sampler.num_level_channels,
        knows_latitude=True,
        **options,
        rngs=rngs,
    )


def passes(config) -> dict[str, int]:
    """States that a network and a denoiser made in training, of each number of steps.

    A member of the noise and a step of a rollout count as one each.
    """
    rows = [training.stage_row(config, stage) for stage in config.stages]
    sampler = config.sampler
    return {
        NET: sum(
            r.steps * r.batch_size * r.num_members * r.rollout_steps for r in rows
        ),
        "half": sampler.steps // 2 * sampler.batch_size,
        "whole": sampler.steps * sampler.batch_size,
    }


def train_denoisers(config, run_dir, archive, steps, name):
    """Denoisers of all seeds in one stack, averaged; seconds of one; frozen steps.

    The rate falls to 0 over `steps`; `name` is that of the stage.
    """
    sampler = config.sampler
    pairs = windows(archive["train"], 2)
    area = tuple(gauss_weights(pairs.shape[2]).tolist())
    loss = diffusion.DenoisingLoss(EDM, diffusion.LogNormalNoise(), area)
    stage = Stage(
        steps,
        sampler.learning_rate,
        ChangeLoss(loss, change_sd(config, archive)),
        decay="cosine",
        warmup_steps=min(20, steps - 1),
    )
    ensemble = ensjax.Ensemble.init(
        functools.partial(make_denoiser, config),
        num_members=config.num_seeds,
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh.to_dict()),
    )
    ema = EMA(sampler.ema_decay)
    trained, log = fit(
        ensemble,
        pairs,
        loss=stage.loss,
        make_tx=StageAdam(max_norm=config.max_norm),
        hyper=stage.hyper(),
        steps=stage.steps,
        batch_size=sampler.batch_size,
        averages={"ema": ema},
        seed=config.seed,
        augment=training.data.turned,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        checkpoint_dir=run_dir.checkpoints / name,
        logger=run_dir.logger(name),
        block=config.block,
    )
    seconds = log.times.device_seconds / ensemble.mesh.size / config.num_seeds
    return averaged(trained, ema, log.averages["ema"]), seconds, log.frozen_steps


# Members of the first day


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneCall:
    """Networks with noise inside, called as denoisers are: `(noise, _, start)`."""

    state: Any
    graph: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, noise, sigma, start):
        return self.graph.merge(self.state, train=False)(noise, start)


@dataclasses.dataclass(frozen=True)
class DrawOnce:
    """In the place of a sampler: the next state of one draw of the noise."""

    noise: Any
    num_calls: int = 1

    def __call__(self, call, key, shape):
        return call(self.noise(key, shape), jnp.float32(1))


def measure(config, run_dir, archive) -> dict[str, np.ndarray]:
    """Trains the denoisers, and scores and times both kinds on the first day.

    Others are trained over half of the steps and sampled with the most levels, which
    shows whether more steps would have helped.

    Returns:
        For each of `names_of`: `fair_` and `ssr_` `[seed]`, means of variables;
        `fair_by_run_` `[seed, run]`; `power_` of members over the truth's `[seed,
        variable, l]`; `rate_` `[seed]`, members of a case and day made in a second by
        each network alone, the best of the timings, without compilation; `calls_` of
        a network for a member. All but the last two also of `HALF`. And
        `training_seconds` of a denoiser with its part of the compilation, and its
        `frozen_steps` `[seed]`, the latest of both.
    """
    networks, _ = training.train(config, run_dir, archive)
    networks = networks.select(list(range(config.num_seeds)))  # diffusion, with waves
    steps = config.sampler.steps
    early, _, frozen_early = train_denoisers(
        config, run_dir, archive, steps // 2, "denoise_half"
    )
    denoisers, seconds, frozen = train_denoisers(
        config, run_dir, archive, steps, "denoise"
    )
    starts, truth = training.data.test_starts(config, archive)
    sd = np.asarray(change_sd(config, archive), np.float32)
    ways = {NET: (OneCall, networks, DrawOnce(training.noise_of(config)))}
    for name, count in zip(
        sampler_names(config), config.sampler.num_levels, strict=True
    ):
        ends = {key: config.sampler[key] for key in ("low", "high", "rho")}
        ways[name] = _denoiser, denoisers, SamplerSettings("heun", count, **ends).make()
    most = f"levels_{max(config.sampler.num_levels)}"
    ways[HALF] = _denoiser, early, ways[most][2]
    found = {
        "training_seconds": np.float64(seconds),
        "frozen_steps": np.maximum(frozen, frozen_early),
    }
    for name, (make, ensemble, sampler) in ways.items():
        if name == HALF:
            made = _draw(config, make, ensemble, sampler, starts)
        else:
            made, rates = _draw_timed(config, make, ensemble, sampler, starts)
            found[f"rate_{name}"] = rates
            found[f"calls_{name}"] = np.int64(sampler.num_calls)
        if name != NET:
            made = _whole(starts + sd * made, training.grid_of(config))
        found |= {
            f"{key}_{name}": value
            for key, value in _scores(config, np.asarray(made), truth).items()
        }
    return found


def _denoiser(state, graph):
    return diffusion.NetworkDenoiser(state, graph, EDM)


def _draw(config, make, ensemble, sampler, starts):
    """`[seed, member, case, lat, lon, variable]`, what the sampler ends with."""
    given = np.broadcast_to(starts, (ensemble.num_members, *starts.shape))
    drawn = diffusion.sample_each(
        make(ensemble.state, ensemble.graph),
        np.arange(config.sampler.num_members),
        given,
        shape=starts.shape[1:],
        sampler=sampler,
        seed=config.seed,
        block=1,
        member_block=1,
        mesh=ensemble.mesh,
    )
    return fetch(jax.block_until_ready(drawn))


def _draw_timed(config, make, ensemble, sampler, starts):
    """What `_draw` gives, one network after the other, and members a second of each."""
    drawn, rates = [], []
    for seed in range(config.num_seeds):
        one = ensemble.select([seed])
        if seed == 0:  # compiles
            _draw(config, make, one, sampler, starts)
        times = []
        for _ in range(config.sampler.num_timings):
            start = time.perf_counter()
            made = _draw(config, make, one, sampler, starts)
            times.append(time.perf_counter() - start)
        drawn.append(made)
        rates.append(made[..., 0, 0, 0].size / min(times))
    return np.concatenate(drawn), np.array(rates)


@functools.partial(jax.jit, static_argnums=1)
def _whole(states, grid):
    """Without what states of the simulator cannot have, beyond the grid's degree."""
    waves = to_real_harmonics(jnp.moveaxis(states, -1, -3), grid)
    return jnp.moveaxis(from_real_harmonics(waves, grid), -3, -1)


def _scores(config, made, truth):
    """Of members `[seed, member, case, lat, lon, variable]` on the first lead."""
    truth = np.moveaxis(truth[:, :1], -1, 2)  # [case, lead 1, variable, lat, lon]
    found = {"fair": [], "fair_by_run": [], "ssr": [], "power": []}
    for members in np.moveaxis(made, -1, -3)[:, :, :, None]:
        scores = base.score_members(config, members, truth)
        found["fair"].append(scores["crps"].mean())
        found["fair_by_run"].append(scores["crps_by_run"].mean(axis=(1, 2)))
        found["ssr"].append(scores["ssr"].mean())
        found["power"].append(power_ratio(scores)[0])
    return {name: np.stack(values) for name, values in found.items()}


def power_ratio(scores) -> np.ndarray:
    """Power of members over the truth's `[lead, variable, l]`, 1 where it has none."""
    truth = scores["truth_power"]
    is_there = truth > 0
    return np.where(is_there, scores["power"] / np.where(is_there, truth, 1), 1)
