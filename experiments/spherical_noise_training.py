"""Networks, training and forecasts of `spherical_noise.py` and `fourcastnet3.py`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import ensjax
from ensjax.emulate import SphericalNoise
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.nn import SphericalForecaster
from ensjax.ops.sphere import SphericalGrid, to_real_harmonics, wave_power
from ensjax.train import (
    Rollout,
    SphericalCrps,
    StageAdam,
    TrainingJob,
    WhiteNoise,
    train_curriculum,
)

data = load_beside(__file__, "spherical_noise_data")

# What noise a network is given, and the weight of the spectral term.
VARIANTS = {
    "diffusion": ("diffusion", True),
    "places": ("diffusion", False),
    "white": ("white", True),
}


def noise_of(config, kind="diffusion"):
    """The noise of one member: diffusion on the sphere, or white on the grid."""
    lengths = config.noise.lengths_km
    if kind == "white":
        return WhiteNoise(len(lengths))
    return SphericalNoise.of_lengths(
        grid_of(config), tuple(lengths), lambd=config.noise.lambd
    )


def grid_of(config) -> SphericalGrid:
    if config.data.source == "held_suarez":
        return data.grid_of(config)
    return SphericalGrid(*config.data.space, "poles", northward=False)


def make_model(config, rngs):
    """One network, from `nnx.Rngs`."""
    model = config.model
    if model.name == "fourcastnet3":
        return ensjax.nn.fourcastnet3(dtype=model.dtype, remat=model.remat, rngs=rngs)
    choose("model.name", model.name, {"small": None, "fourcastnet3": None})
    return SphericalForecaster(
        grid_of(config),
        len(data.VARIABLES),
        num_noise_channels=len(config.noise.lengths_km),
        knows_latitude=True,
        adds_to_state=True,
        **model.options.to_dict(),
        rngs=rngs,
    )


@dataclasses.dataclass(frozen=True)
class WithKnown:
    """Noise, and zeros in the place of fields that are known, which a plan lacks."""

    noise: SphericalNoise
    num_known: int

    def __call__(self, key, shape):
        made = self.noise(key, shape)
        known = jnp.zeros((*made.shape[:-1], self.num_known))
        return jnp.concatenate([made, known], axis=-1)


def loss_of(config, variant, stage) -> Rollout:
    """The loss of a stage `(steps, rate, estimator, rollout steps)`."""
    kind, has_waves = VARIANTS[variant]
    noise = noise_of(config, kind)
    if config.model.name == "fourcastnet3":
        noise = WithKnown(noise, 3)
    score = SphericalCrps(
        config.num_members,
        noise,
        stage[2],
        alpha=config.alpha,
        centred=config.centred,
        grid=grid_of(config),
        spectral_weight=config.spectral_weight if has_waves else 0.0,
    )
    return Rollout(stage[3], score)


def stages_of(config, variant):
    """The curriculum of a variant."""
    from ensjax.train import Stage

    return [
        Stage(
            stage[0],
            stage[1],
            loss_of(config, variant, stage),
            decay="cosine" if number == len(config.stages) - 1 else "constant",
            warmup_steps=min(20, stage[0] - 1) if number == 0 else 0,
        )
        for number, stage in enumerate(config.stages)
    ]


def training_job(config, archive=None, *, shapes_only=False) -> TrainingJob:
    """The first stage of the networks with diffusion noise, one for each seed."""
    if shapes_only:
        windows = data.window_shapes(config)
    else:
        archive = data.simulate(config) if archive is None else archive
        windows = data.training_windows(config, archive)
    stage = stages_of(config, "diffusion")[0]
    hyper = {
        name: np.full(config.num_seeds, value) for name, value in stage.hyper().items()
    }
    return TrainingJob(
        make_model=functools.partial(make_model, config),
        member_ids=tuple(range(config.num_seeds)),
        init_seed=config.seed,
        data=windows,
        hyper=hyper,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=stage.loss,
            make_tx=StageAdam(max_norm=config.max_norm),
            steps=stage.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=data.turned,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            block=config.block,
        ),
        stage="train",
    )


def train(config, run_dir, archive, variant):
    """Trained networks of a variant, one for each seed, and steps frozen at `[seed]`.

    All variants begin with the same weights and see the same cases.
    """
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    ensemble = ensjax.Ensemble.init(
        functools.partial(make_model, config),
        num_members=config.num_seeds,
        seed=config.seed,
        mesh=mesh,
    )
    trained, logs = train_curriculum(
        ensemble,
        data.training_windows(config, archive),
        stages_of(config, variant),
        make_tx=StageAdam(max_norm=config.max_norm),
        batch_size=config.batch_size,
        seed=config.seed,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        checkpoint_dir=run_dir.checkpoints / variant,
        logger=run_dir.logger(f"train-{variant}"),
        augment=data.turned,
        block=config.block,
    )
    frozen = np.max([np.asarray(log.frozen_steps) for log in logs], axis=0)
    return trained, frozen


# Forecasts


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Forecasts of all cases by the members of one network.

    The noise of a member goes on from step to step and depends on the case and the
    member alone.

    Attributes:
        graph: of the ensemble.
        noise: of the networks.
        grid: of the states.
        leads: numbers of steps at which members are kept.
        num_members: M.
        long_steps: at which the power of the first two members is kept, from the last
            lead on.
        seed: of the draws.
    """

    graph: object
    noise: object
    grid: SphericalGrid
    leads: tuple[int, ...]
    num_members: int
    long_steps: tuple[int, ...]
    seed: int

    def __call__(self, state, starts):
        """Of one network: `[case, member, lead, lat, lon, variable]`, and power
        `[case, member 2, long step, variable, l]`."""
        network = self.graph.merge(state, train=False)

        def of_member(case, start, member):
            key = jax.random.fold_in(member_key(self.seed, "sample", case), member)
            return self._of_one(network, key, start)

        def of_case(case_and_start):
            case, start = case_and_start
            members = jnp.arange(self.num_members)
            return jax.vmap(lambda m: of_member(case, start, m))(members)

        cases = jnp.arange(starts.shape[0])
        seen, last = jax.lax.map(of_case, (cases, starts))
        few = jax.tree.map(lambda x: x[:, :2], last)
        return seen, jax.lax.map(
            lambda x: jax.vmap(lambda y: self._longer(network, *y))(x), few
        )

    def _of_one(self, network, key, start):
        carry = (key, start, self._first(key), jnp.int32(0))

        def to_next(carry, length):
            carry = jax.lax.fori_loop(
                0, length, lambda _, c: self._step(network, c), carry
            )
            return carry, carry[1]

        lengths = np.diff((0, *self.leads))
        last, seen = jax.lax.scan(to_next, carry, jnp.asarray(lengths))
        return seen, last

    def _longer(self, network, *carry):
        def to_next(carry, length):
            carry = jax.lax.fori_loop(
                0, length, lambda _, c: self._step(network, c), carry
            )
            return carry, power_of(carry[1], self.grid)

        lengths = np.diff((self.leads[-1], *self.long_steps))
        return jax.lax.scan(to_next, carry, jnp.asarray(lengths))[1]

    def _first(self, key):
        if isinstance(self.noise, SphericalNoise):
            return self.noise.init(jax.random.fold_in(key, 0))
        return jnp.zeros(())

    def _step(self, network, carry):
        """One step; step i has the noise that `of_steps` gives as its i-th."""
        key, state, process, number = carry
        own = jax.random.fold_in(key, number)
        if isinstance(self.noise, SphericalNoise):
            later = self.noise.step(process, own)
            process = jnp.where(number > 0, later, process)
            noise = self.noise.to_grid(process)
        else:
            noise = self.noise(own, state.shape)
        return key, network(noise, state), process, number + 1


def power_of(state, grid):
    """Power by degree of a state `[lat, lon, variable]`, `[variable, l]`."""
    return wave_power(to_real_harmonics(jnp.moveaxis(state, -1, 0), grid))


def forecast(config, ensemble, variant, starts):
    """Forecasts of every seed's network, on the host.

    Returns:
        `[seed, case, member, lead, lat, lon, variable]`, and power at the long steps
        `[seed, case, member 2, long step, variable, l]`.
    """
    test = config.test
    run = map_members(
        Forecast(
            ensemble.graph,
            noise_of(config, VARIANTS[variant][0]),
            grid_of(config),
            tuple(test.lead_days),
            test.num_members,
            tuple(test.long_days),
            config.seed,
        ),
        kinds=("member", "shared"),
        out=("member", "member"),
        mesh=ensemble.mesh,
        block=1,
    )
    return jax.tree.map(np.asarray, run(ensemble.state, jnp.asarray(starts)))


def check_at_hand(config) -> None:
    """Raises `ConfigError` for data that cannot be had here."""
    if config.data.source != "held_suarez":
        raise ConfigError(
            "ERA5 is not at hand, so that this preset is planned: ensjax plan"
            f" configs/{config.experiment}.py:paper"
        )
