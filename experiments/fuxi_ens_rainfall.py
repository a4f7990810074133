"""Real rain for `fuxi_ens.py`: 11 members' summaries, perturbed where they are encoded.

The same emulator and loss as of the Lorenz-96 states. A state is what is known of a
forecast: moments and ends of the 11 members' roots, and the time of the year, as the
channels of one place. Its perturbation is learned, the forecaster says in the first
channel how much it rains, and the other channels have no truth.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax import verification
from ensjax.emulate.variational import (
    GaussianPerturbation,
    VariationalForecaster,
    step_noise,
)
from ensjax.emulate.variational_training import (
    VariationalLoss,
    VariationalPair,
    emulators_of,
)
from ensjax.experiment.fields import load_beside
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import fetch

data = load_beside(__file__, "seeds_rainfall_data")
training = load_beside(__file__, "fuxi_ens_training")

NUM_FEATURES = 8


def load(config):
    """Training and test cases, which share no day of rain, and the scale of roots."""
    train, test = data.load(config.rain)
    return train, test, data.fit_scale(train)


def features(part, scale) -> np.ndarray:
    """What is known of every case, `[case, feature]`, float32.

    Mean, deviation, least, median and largest of the members' standardised roots, the
    share of members without rain, and sine and cosine of the time of the year.
    """
    roots = scale.standardise(np.sqrt(part.members))
    year = part.date.astype("datetime64[Y]")
    day = (part.date - year.astype("datetime64[D]")).astype(float)
    angle = 2 * np.pi * day / 365.25
    columns = (
        roots.mean(axis=1),
        roots.std(axis=1, ddof=1),
        roots.min(axis=1),
        np.median(roots, axis=1),
        roots.max(axis=1),
        np.mean(part.members < 0.1, axis=1),
        np.sin(angle),
        np.cos(angle),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def windows(config, part, scale) -> np.ndarray:
    """`[case, time 2, place 1, feature]`: what is known, then rain in the first one.

    The others have no truth and are zeros.
    """
    rng = np.random.default_rng(config.seed)
    root = np.sqrt(part.observed)
    depth = -config.rain.dry_depth * rng.uniform(size=root.shape)
    truth = np.zeros((len(root), NUM_FEATURES), np.float32)
    truth[:, 0] = scale.standardise(np.where(root == 0, depth, root))
    return np.stack([features(part, scale), truth], axis=1)[:, :, None]


def make_pair(config, rngs) -> VariationalPair:
    """The networks of one place, from `nnx.Rngs`."""
    rain, model = config.rain, config.model
    options = dict(width=rain.width, depth=rain.depth, kernel_size=(1,), rngs=rngs)
    forecaster = ensjax.nn.ResidualForecaster(NUM_FEATURES, **options)

    def gaussian(num_in):
        return GaussianPerturbation(
            ensjax.nn.GridNet(num_in, 2 * NUM_FEATURES, **options),
            NUM_FEATURES,
            offset=model.log_variance_offset,
            limits=model.log_variance_range,
        )

    emulator = VariationalForecaster(
        gaussian(NUM_FEATURES), forecaster, num_channels=NUM_FEATURES, num_states=1
    )
    return VariationalPair(emulator, gaussian(2 * NUM_FEATURES))


def run(config, run_dir) -> dict[str, np.ndarray]:
    """Trains a network for each seed and scores its rain on the test years.

    Returns:
        CRPS in mm `[seed]` as "crps", and spread over error as "ssr"; of the raw
        members, climatology and EMOS of all members "raw", "climatology", "emos"; and
        "not_finite", networks that were frozen.
    """
    rain, own = config.rain, config.training
    train, test, scale = load(config)
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    ensemble = ensjax.Ensemble.init(
        functools.partial(make_pair, config),
        num_members=config.num_seeds,
        seed=config.seed,
        mesh=mesh,
    )
    trained, log = ensjax.fit(
        ensemble,
        windows(config, train, scale),
        loss=VariationalLoss(
            own.num_members,
            num_scored=1,
            kl_weight=rain.kl_weight,
            estimator=own.estimator,
        ),
        make_tx=training.WarmAdamW(
            rain.total_steps, own.warmup_steps, rain.weight_decay, tuple(own.betas)
        ),
        hyper={"learning_rate": np.full(config.num_seeds, rain.learning_rate)},
        steps=rain.total_steps,
        batch_size=64,
        seed=config.seed,
        mesh=mesh,
        progress=False,
        logger=run_dir.logger("rain"),
    )
    emulators = emulators_of(trained)
    draw = map_members(
        _Rain(emulators.graph, rain.num_members),
        kinds=("member", "shared", "shared"),
        mesh=mesh,
    )
    states = jnp.asarray(features(test, scale))
    drawn = scale.restore(fetch(draw(emulators.state, states, jnp.int32(config.seed))))
    truth = jnp.asarray(test.observed)
    crps, ratio = verification.crps("standard"), verification.spread_skill()
    score = jax.jit(lambda rain: (crps(rain, truth), ratio(rain, truth).ratio))
    scores = np.array([[float(x) for x in score(jnp.asarray(one))] for one in drawn])
    usual = np.repeat(data.climatology(train)[:, None], len(test.observed), axis=1)
    members = train.members.shape[1]
    emos = data.emos_members(data.fit_emos_of_some(train, members), test.members)
    references = {"raw": test.members.T, "climatology": usual, "emos": emos}
    return {
        "crps": scores[:, 0],
        "ssr": scores[:, 1],
        "not_finite": np.sum(np.asarray(log.frozen_steps) >= 0),
        **{
            name: np.array(float(crps(jnp.asarray(x, jnp.float32), truth)))
            for name, x in references.items()
        },
    }


@dataclasses.dataclass(frozen=True)
class _Rain:
    """Standardised roots of one network, `[member, case]`."""

    graph: Any
    num_members: int

    def __call__(self, state, states, seed):
        emulator = self.graph.merge(state, train=False)
        key = member_key(seed, "sample", 0)

        def of_case(case, state):
            own = jax.random.fold_in(key, case)

            def of_member(member_id):
                noise = step_noise(
                    jax.random.fold_in(own, member_id), 0, (1, NUM_FEATURES)
                )
                return emulator(noise, state[None])[0, 0]

            return jax.vmap(of_member)(jnp.arange(self.num_members))

        return jax.vmap(of_case)(jnp.arange(len(states)), states).T
