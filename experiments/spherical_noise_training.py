"""Networks, training and forecasts of `spherical_noise.py` and `fourcastnet3.py`."""

import dataclasses
import functools
from typing import Any, NamedTuple

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
from ensjax.ops.sphere import SphericalGrid
from ensjax.train import (
    RolloutLoss,
    SphericalCrps,
    Stage,
    StageAdam,
    TrainingJob,
    WhiteNoise,
    change_weights,
    train_curriculum,
    variable_weights,
)

data = load_beside(__file__, "spherical_noise_data")

# Whether a network's noise is white, and whether its loss has the spectral term.
VARIANTS = {
    "diffusion": (False, True),
    "places": (False, False),
    "white": (True, True),
}


def noise_of(config) -> SphericalNoise:
    """The noise of one member by diffusion on the sphere."""
    return SphericalNoise.of_lengths(
        grid_of(config), tuple(config.noise.lengths_km), lambd=config.noise.lambd
    )


def grid_of(config) -> SphericalGrid:
    if config.data.source == "held_suarez":
        return data.grid_of(config)
    return SphericalGrid(*config.data.space, "poles", northward=False)


def make_model(config, rngs, axis=None):
    """One network, from `nnx.Rngs`; `axis` of the mesh splits its latitudes."""
    model = config.model
    if model.name == "fourcastnet3":
        return ensjax.nn.fourcastnet3(
            dtype=model.dtype,
            remat=model.remat,
            axis=axis or latitude_axis(config),
            rngs=rngs,
        )
    choose("model.name", model.name, {"small": None, "fourcastnet3": None})
    return SphericalForecaster(
        grid_of(config),
        len(data.VARIABLES),
        num_noise_channels=len(config.noise.lengths_km),
        knows_latitude=True,
        adds_to_state=True,
        axis=axis,
        **model.options.to_dict(),
        rngs=rngs,
    )


def latitude_axis(config) -> str | None:
    """The axis of the mesh over which latitudes of the published size are split."""
    is_full = config.model.name == "fourcastnet3"
    return "model" if is_full and config.mesh.model != 1 else None


@dataclasses.dataclass(frozen=True)
class WithKnown:
    """Noise, and zeros in the place of fields that are known, which a plan lacks."""

    noise: SphericalNoise
    num_known: int

    def __call__(self, key, shape):
        return self.of_steps(key, shape, 1)[0]

    def of_steps(self, key, shape, num_steps):
        """`[step, lat, lon, channel]`, as `RolloutLoss` asks for it."""
        made = self.noise.of_steps(key, shape, num_steps)
        known = jnp.zeros((*made.shape[:-1], self.num_known))
        return jnp.concatenate([made, known], axis=-1)


@dataclasses.dataclass(frozen=True)
class EitherNoise:
    """Diffusion noise, or white noise of as many channels; a member says which.

    Attributes:
        diffusion: the process.
        is_white: of the member, 0 or 1; may be traced.
    """

    diffusion: SphericalNoise
    is_white: Any

    def of_steps(self, key, shape, num_steps):
        """`[step, lat, lon, noise channel]`, as `RolloutLoss` asks for it."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_steps))
        white = jax.vmap(lambda key: self.white(key, shape))(keys)
        return jnp.where(
            self.is_white > 0, white, self.diffusion.of_steps(key, shape, num_steps)
        )

    def white(self, key, shape):
        return WhiteNoise(self.diffusion.num_channels)(key, shape)


@dataclasses.dataclass(frozen=True)
class LossOfVariant:
    """A `RolloutLoss` whose noise and spectral term are the hyperparameters'.

    All variants are then one stack, and one program.

    Attributes:
        rollout: with a `SphericalCrps` of diffusion noise.
    """

    rollout: RolloutLoss
    takes_hyper = True

    @property
    def axis(self) -> str | None:
        """Of the mesh, over which the rollout splits members or latitudes."""
        return self.rollout.axis

    @property
    def takes_missing(self) -> bool:
        """Whether NaN may stand for what is missing, which `fit` asks for."""
        return self.rollout.takes_missing

    @property
    def num_steps(self) -> int:
        """Of the rollout."""
        return self.rollout.num_steps

    def check(self, windows, ensemble=None) -> None:
        """As `RolloutLoss.check`, which a curriculum asks for before any work."""
        self.rollout.check(windows, ensemble)

    def __call__(self, model, windows, key, weight=None, *, hyper):
        score = dataclasses.replace(
            self.rollout.score,
            noise=EitherNoise(self.rollout.score.noise, hyper["is_white"]),
            spectral_weight=hyper["spectral_weight"],
        )
        rollout = dataclasses.replace(self.rollout, score=score)
        return rollout(model, windows, key, weight)


class StageRow(NamedTuple):
    """A stage as a config has it; what is left out is the config's own.

    Attributes:
        steps, rate, estimator: of the stage.
        rollout_steps: of a forecast.
        num_members: of a case, made in training.
        centred: whether they come in pairs of opposite noise.
        batch_size: cases of a step.
        halving_steps: after which the rate is halved; 0: it is constant, and in the
            last stage falls as a cosine.
    """

    steps: int
    rate: float
    estimator: str
    rollout_steps: int
    num_members: int
    centred: bool
    batch_size: int
    halving_steps: int


def stage_row(config, stage) -> StageRow:
    """Of a stage of the config, with 4 entries or more."""
    own = (config.num_members, config.centred, config.batch_size, 0)
    return StageRow(*stage, *own[len(stage) - 4 :])


def loss_of(config, stage, channel_weights=None) -> Any:
    """The loss of a stage, as the config has it."""
    is_full = config.model.name == "fourcastnet3"
    noise, row = noise_of(config), stage_row(config, stage)
    score = SphericalCrps(
        row.num_members,
        WithKnown(noise, 3) if is_full else noise,
        row.estimator,
        alpha=config.alpha,
        centred=row.centred,
        grid=grid_of(config),
        spectral_weight=config.spectral_weight,
        channel_weights=channel_weights,
        latitude_axis=latitude_axis(config),
    )
    rollout = RolloutLoss(row.rollout_steps, score)
    return rollout if is_full else LossOfVariant(rollout)


def channel_weights_of(config, archive=None) -> tuple[float, ...] | None:
    """Of the config's loss: by the changes in a day, or as published; None: all 1.

    Without an archive those of the variables alone, for a plan.
    """
    if not config.get("weighs_changes", False):
        return None
    levels = config.data.get("levels_hpa")
    weights = None if levels is None else variable_weights(levels)
    if archive is None:
        return weights
    area = grid_of(config).quadrature()
    return change_weights(archive["train"], area=area, weights=weights)


def stages_of(config, archive=None) -> list[Stage]:
    """The curriculum."""
    weights, last = channel_weights_of(config, archive), len(config.stages) - 1
    stages = []
    for number, stage in enumerate(config.stages):
        row = stage_row(config, stage)
        otherwise = "cosine" if number == last else "constant"
        stages.append(
            Stage(
                row.steps,
                row.rate,
                loss_of(config, stage, weights),
                decay="halving" if row.halving_steps else otherwise,
                halving_steps=row.halving_steps or None,
                warmup_steps=min(20, row.steps - 1) if number == 0 else 0,
                batch_size=row.batch_size,
            )
        )
    return stages


def hyper_of(config) -> dict[str, np.ndarray]:
    """What variants differ in, `[variant * seed]`, all seeds of one in a row."""
    if config.model.name == "fourcastnet3":
        return {}
    is_white, has_waves = np.array(list(VARIANTS.values())).T
    weight = np.where(has_waves, config.spectral_weight, 0.0).astype(np.float32)
    each = dict(is_white=is_white.astype(np.float32), spectral_weight=weight)
    return {name: np.repeat(x, config.num_seeds) for name, x in each.items()}


def num_networks(config) -> int:
    """Of the stack: one for each variant and seed."""
    variants = 1 if config.model.name == "fourcastnet3" else len(VARIANTS)
    return variants * config.num_seeds


def training_job(config, archive=None, *, shapes_only=False) -> TrainingJob:
    """The first stage of all networks, one for each variant and seed.

    Args:
        config: of the run.
        archive: what `data.simulate` gives, or None: it is simulated.
        shapes_only: leave the data as their shapes; those of ERA5 are a stream's.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    is_simulated = config.data.source == "held_suarez"
    if shapes_only:
        windows = data.window_shapes(config)
    else:
        archive = data.simulate(config) if archive is None else archive
        windows = data.training_windows(config, archive)
    stage, count = stages_of(config, archive)[0], num_networks(config)
    rates = {name: np.full(count, value) for name, value in stage.hyper().items()}
    return TrainingJob(
        make_model=functools.partial(make_model, config),
        member_ids=tuple(range(count)),
        init_seed=config.seed,
        data=windows,
        hyper=hyper_of(config) | rates,
        mesh_sizes=config.mesh.to_dict(),
        options=dict(
            loss=stage.loss,
            make_tx=StageAdam(max_norm=config.max_norm),
            steps=stage.steps,
            batch_size=stage.batch_size,
            seed=config.seed,
            # The Earth has continents: it is no other globe when it is turned.
            augment=data.turned if is_simulated else None,
            steps_per_call=config.steps_per_call,
            log_every_steps=config.steps_per_call,
            block=config.block,
        ),
        stage="train",
        is_stream=not is_simulated,
    )


def train(config, run_dir, archive):
    """The trained stack, `[variant * seed]`, and at which steps members were frozen."""
    mesh = ensjax.make_mesh(**config.mesh.to_dict())
    ensemble = ensjax.Ensemble.init(
        functools.partial(make_model, config),
        num_members=num_networks(config),
        seed=config.seed,
        mesh=mesh,
    )
    trained, logs = train_curriculum(
        ensemble,
        data.training_windows(config, archive),
        stages_of(config, archive),
        make_tx=StageAdam(max_norm=config.max_norm),
        hyper=hyper_of(config),
        batch_size=config.batch_size,
        seed=config.seed,
        steps_per_call=config.steps_per_call,
        log_every_steps=config.steps_per_call,
        checkpoint_dir=run_dir.checkpoints / "train",
        logger=run_dir.logger("train"),
        augment=data.turned,
        block=config.block,
    )
    return trained, np.max([np.asarray(log.frozen_steps) for log in logs], axis=0)


# Forecasts


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Forecasts of all cases by the members of one network.

    The noise of a member goes on from step to step and depends on the case and the
    member alone.

    Attributes:
        graph: of the ensemble.
        noise: by diffusion.
        leads: numbers of steps at which members are kept.
        num_members: M.
        num_long: of them, the first ones, go on from the last lead.
        long_steps: at which these are kept.
        seed: of the draws.
        cases_at_once: the members of as many cases are one batch.
    """

    graph: object
    noise: object
    leads: tuple[int, ...]
    num_members: int
    num_long: int
    long_steps: tuple[int, ...]
    seed: int
    cases_at_once: int = 1

    def __call__(self, state, is_white, starts):
        """Of one network: `[case, member, lead, lat, lon, variable]`, and the first
        members `[case, member, long step, lat, lon, variable]`."""
        network = self.graph.merge(state, train=False), is_white

        def of_member(case, start, member):
            key = jax.random.fold_in(member_key(self.seed, "sample", case), member)
            return self._of_one(network, key, start)

        def of_case(case_and_start):
            case, start = case_and_start
            members = jnp.arange(self.num_members)
            return jax.vmap(lambda m: of_member(case, start, m))(members)

        def further(members):
            return jax.vmap(lambda x: self._longer(network, *x))(members)

        cases, size = jnp.arange(starts.shape[0]), self.cases_at_once
        last, seen = jax.lax.map(of_case, (cases, starts), batch_size=size)
        few = jax.tree.map(lambda x: x[:, : self.num_long], last)
        return seen, jax.lax.map(further, few, batch_size=size)

    def _of_one(self, network, key, start):
        process = self.noise.init(jax.random.fold_in(key, 0))
        carry = (key, start, process, jnp.int32(0))
        return self._at_steps(network, carry, (0, *self.leads))

    def _longer(self, network, *carry):
        steps = (self.leads[-1], *self.long_steps)
        return self._at_steps(network, carry, steps)[1]

    def _at_steps(self, network, carry, steps):
        """What is carried at the end, and states at all steps but the first."""

        def to_next(carry, length):
            carry = jax.lax.fori_loop(
                0, length, lambda _, c: self._step(network, c), carry
            )
            return carry, carry[1]

        last, seen = jax.lax.scan(to_next, carry, jnp.asarray(np.diff(steps)))
        return last, seen

    def _step(self, network, carry):
        """One step; step i has the noise that `of_steps` gives as its i-th."""
        key, state, process, number = carry
        network, is_white = network
        own = jax.random.fold_in(key, number)
        process = jnp.where(number > 0, self.noise.step(process, own), process)
        white = EitherNoise(self.noise, is_white).white(own, state.shape)
        noise = jnp.where(is_white > 0, white, self.noise.to_grid(process))
        return key, network(noise, state), process, number + 1


def forecast(config, ensemble, starts, is_white, *, num_long):
    """Forecasts of every network of a stack, on the host.

    Args:
        config: of the run.
        ensemble: the networks.
        starts: `[case, lat, lon, variable]`.
        is_white: whether a network's noise is white, `[network]`.
        num_long: members that go on to the long steps.

    Returns:
        `[network, case, member, lead, lat, lon, variable]`, and `[network, case,
        num_long, long step, lat, lon, variable]`.
    """
    test = config.test
    run = map_members(
        Forecast(
            ensemble.graph,
            noise_of(config),
            tuple(test.lead_days),
            test.num_members,
            num_long,
            tuple(test.long_days),
            config.seed,
            test.cases_at_once,
        ),
        kinds=("member", "member", "shared"),
        out=("member", "member"),
        mesh=ensemble.mesh,
        block=config.block,
    )
    given = jnp.asarray(is_white, jnp.float32), jnp.asarray(starts)
    return jax.tree.map(np.asarray, run(ensemble.state, *given))


def check_at_hand(config) -> None:
    """Raises `ConfigError` for data that cannot be had here."""
    if config.data.source != "held_suarez":
        raise ConfigError(
            "ERA5 is not at hand, so that this preset is planned: ensjax plan"
            f" configs/{config.experiment}.py:paper"
        )
