"""Real rain of `crps_forecast.py`: noise, sorted ensembles and the season.

The rain at Innsbruck is that of `seeds_rainfall_data.py`, with its split: trained on
2000 to 2008, tested on 2009 to 2013.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ensjax
from ensjax import nn
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside
from ensjax.experiment.processes import everywhere
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.train import NoiseCrps, Stage, StageAdam, fit
from ensjax.verification import crps, spread_skill
from ensjax.weight_space import EMA, averaged

data = load_beside(__file__, "seeds_rainfall_data")


def validate(config):
    """Raises `ConfigError` for what would fail later, in one line."""
    names = ("width", "num_noise_channels", "total_steps", "batch_size", "num_seeds")
    check_numbers(config, [f"rain.{name}" for name in names], at_least=1)
    check_numbers(config, ("rain.num_members", "rain.num_samples"), at_least=2)
    check_numbers(config, ("rain.learning_rate", "rain.dry_depth"), above=0)
    check_numbers(config, ("rain.ema_decay",), at_least=0, below=1)
    try:
        data.load(config.rain)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"config.rain: {error}") from error


class RainNetwork(nnx.Module):
    """A rain sum of noise and condition: `network(noise [c], condition [k]) -> [1]`."""

    def __init__(self, num_inputs, num_noise_channels, width, *, rngs: nnx.Rngs):
        self.mlp = nn.NoiseMlp(num_noise_channels, width=width, rngs=rngs)
        z = self.mlp.num_outputs
        self.stem = nnx.Linear(num_inputs, width, rngs=rngs)
        self.norms = nnx.List(
            nn.NoiseConditionedNorm(width, z, rngs=rngs) for _ in range(3)
        )
        self.layers = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, noise, condition):
        z, h = self.mlp(noise), self.stem(condition)
        *inner, last = self.norms
        for norm, layer in zip(inner, self.layers, strict=True):
            h = h + layer(nnx.gelu(norm(h, z)))
        return self.head(nnx.gelu(last(h, z)))


def _make(num_inputs, channels, width, rngs):
    return RainNetwork(num_inputs, channels, width, rngs=rngs)


def conditions(part, scale) -> np.ndarray:
    """Sorted members and the season, `[case, 13]`."""
    members = np.sort(scale.standardise(np.sqrt(part.members)), axis=1)
    days = (part.date - part.date.astype("datetime64[Y]")).astype("timedelta64[D]")
    angle = 2 * np.pi * days.astype(np.float64) / 365.25
    season = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.concatenate([members, season], axis=1).astype(np.float32)


def targets(config, part, scale) -> np.ndarray:
    """Standardised roots `[case, 1]`; no rain is a number below 0."""
    rng = np.random.default_rng(config.seed)
    depth = -config.rain.dry_depth * rng.uniform(size=part.observed.shape)
    root = np.where(part.observed == 0, depth, np.sqrt(part.observed))
    return scale.standardise(root)[:, None]


def measure(config, run_dir) -> dict[str, np.ndarray]:
    """Trains a network for each seed and scores its rain, `[seed]`; and references.

    Returns:
        `crps` and `fair` in mm, and `ssr`, `[seed]`; `references` `[3]`, the CRPS of
        the raw ensemble, the climatology and EMOS of all members; `frozen_steps`.
    """
    rain = config.rain
    train, test = everywhere(lambda: data.load(rain))
    scale = data.fit_scale(train)
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    given = conditions(train, scale)
    ensemble = ensjax.Ensemble.init(
        functools.partial(_make, given.shape[1], rain.num_noise_channels, rain.width),
        num_members=rain.num_seeds,
        seed=config.seed,
        mesh=mesh,
    )
    noise = nn.GlobalNoise(rain.num_noise_channels)
    loss = NoiseCrps(rain.num_members, noise=noise, alpha=config.training.alpha)
    warmup = rain.total_steps // 20
    schedule = Stage(
        rain.total_steps, rain.learning_rate, loss, decay="cosine", warmup_steps=warmup
    )
    ema = EMA(rain.ema_decay)
    ensemble, log = fit(
        ensemble,
        (given, targets(config, train, scale)),
        loss=loss,
        make_tx=StageAdam(weight_decay=rain.weight_decay, max_norm=1.0),
        hyper=schedule.hyper(),
        steps=rain.total_steps,
        batch_size=rain.batch_size,
        seed=config.seed,
        averages={"ema": ema},
        mesh=mesh,
        steps_per_call=config.training.steps_per_call,
        log_every_steps=config.training.steps_per_call,
        save_every_steps=config.training.save_every_steps,
        checkpoint_dir=run_dir.checkpoints / "rain",
        logger=run_dir.logger("rain"),
    )
    ensemble = averaged(ensemble, ema, log.averages["ema"])
    drawn = draw(config, ensemble, noise, conditions(test, scale))
    made = scale.restore(drawn)  # [network, member, case]
    truth = jnp.asarray(test.observed)
    rows = [_scores(jnp.asarray(x, jnp.float32), truth) for x in made]
    usual = data.climatology(train)[:, None]
    every = train.members.shape[1]
    references = (
        test.members.T,
        np.repeat(usual, len(test.observed), axis=1),
        data.emos_members(data.fit_emos_of_some(train, every), test.members),
    )
    return {
        **{name: np.array([float(row[name]) for row in rows]) for name in rows[0]},
        "references": np.array(
            [float(crps()(jnp.asarray(x, jnp.float32), truth)) for x in references]
        ),
        "frozen_steps": np.asarray(log.frozen_steps),
    }


@jax.jit
def _scores(made, truth):
    return {
        "crps": crps()(made, truth),
        "fair": crps("fair")(made, truth),
        "ssr": spread_skill()(made, truth).ratio,
    }


def draw(config, ensemble, noise, given) -> np.ndarray:
    """Standardised roots of every network, `[network, member, case]`."""
    run = map_members(
        _Draw(ensemble.graph, noise),
        kinds=("member", "shared", "shared", "shared"),
        mesh=ensemble.mesh,
        block=1,
    )
    members = jnp.arange(config.rain.num_samples)
    seed = jnp.asarray(config.seed)
    return ensjax.mesh.fetch(run(ensemble.state, jnp.asarray(given), members, seed))


@dataclasses.dataclass(frozen=True)
class _Draw:
    graph: Any
    noise: Any

    def __call__(self, state, given, members, seed):
        network = self.graph.merge(state, train=False)

        def one(member, case, condition):
            key = jax.random.fold_in(member_key(seed, "sample", member), case)
            return network(self.noise(key, (1,)), condition)[0]

        of_member = jax.vmap(one, in_axes=(None, 0, 0))
        cases = jnp.arange(len(given))
        return jax.vmap(of_member, in_axes=(0, None, None))(members, cases, given)
