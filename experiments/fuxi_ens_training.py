"""Networks, training and forecasts of `fuxi_ens.py`, as its config has them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ensjax
from ensjax.emulate.variational import (
    ConstantPerturbation,
    ConstantSpread,
    GaussianPerturbation,
    VariationalForecaster,
    sample_forecast,
    side_by_side,
)
from ensjax.emulate.variational_training import (
    RECONSTRUCTIONS,
    VariationalLoss,
    VariationalPair,
    emulators_of,
)
from ensjax.emulate.windows import OwnTask
from ensjax.experiment import ConfigError
from ensjax.experiment.fields import choose, load_beside
from ensjax.graphs import NnxGraph
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import fetch
from ensjax.train import TrainingJob

weather = load_beside(__file__, "lorenz96_forecasts")
full_size = load_beside(__file__, "fuxi_ens_networks")

NUM_STATES = 2
SOURCES = ("lorenz96", "era5")
_MOMENT_WINDOWS = 2_000  # of which the prior's mean and variance are taken


@dataclasses.dataclass(frozen=True)
class WarmAdamW:
    """AdamW at a rate that rises linearly, then falls to 0 as a cosine.

    Attributes:
        total_steps, warmup_steps: of the rate.
        weight_decay, betas: of AdamW.
        max_norm: of a network's gradient.
    """

    total_steps: int
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 1.0

    def __call__(self, hyper: dict[str, Any]) -> optax.GradientTransformation:
        """The optimizer of one network, with its "learning_rate"."""
        part = optax.warmup_cosine_decay_schedule(
            0.0, 1.0, min(self.warmup_steps, self.total_steps - 1), self.total_steps
        )

        def rate(step):
            return hyper["learning_rate"] * part(step)

        return optax.chain(
            optax.clip_by_global_norm(self.max_norm),
            optax.adamw(rate, *self.betas, weight_decay=self.weight_decay),
        )


def variants(config) -> list[str]:
    """Names of what networks of a seed differ by, the model of the paper first."""
    pairs = zip(
        config.variants.reconstructions, config.variants.kl_weights, strict=True
    )
    return [f"{kind}_{weight:g}" for kind, weight in pairs]


def learned_name(config) -> str:
    """The model of the paper."""
    return variants(config)[0]


def l1_name(config) -> str:
    """Its twin that is trained on the absolute error."""
    own = config.variants.kl_weights[0]
    return f"l1_{own:g}"


def training_job(config, archives=None, *, shapes_only=False) -> TrainingJob:
    """The networks of the run, one for each seed and variant, as one call of `fit`.

    That of the first rollout of the curriculum.

    Args:
        config: of the run.
        archives: what `simulate` gives, or None: they are simulated.
        shapes_only: leave the data as their shapes, so that nothing is simulated.

    Raises:
        ConfigError: for data that are not at hand, unless `shapes_only`.
    """
    scale = 1.0
    if shapes_only:
        data = data_shapes(config)
    else:
        archives = simulate(config) if archives is None else archives
        data, scale = training_data(config, archives), step_scale(archives)
    return _job(config, functools.partial(make_pair, config, scale), data)


def _job(config, make_model, data, *, rollout=0, is_constant=False) -> TrainingJob:
    training, own = config.training, config.variants
    count = len(own.kl_weights)
    seeds = range(config.num_seeds)
    steps = training.total_steps[rollout]
    if is_constant:
        ids, numbers = [count * seed for seed in seeds], {}
        tasks = list(seeds)
    else:
        ids = range(config.num_seeds * count)
        tasks = [id_ // count for id_ in ids]
        kinds = [RECONSTRUCTIONS.index(kind) for kind in own.reconstructions]
        numbers = {
            "kl_weight": np.tile(np.float32(own.kl_weights), config.num_seeds),
            "reconstruction": np.tile(np.int32(kinds), config.num_seeds),
        }
    loss = VariationalLoss(
        training.num_members,
        num_steps=training.rollout_steps[rollout],
        estimator=training.estimator,
        kl_direction=training.kl_direction,
        draw_from="prior" if is_constant else training.draw_from,
        # On a mesh with several devices along it, members are split.
        axis="model" if config.mesh.model != 1 else None,
    )
    name = "constant" if is_constant else "train"
    why = "" if len(training.rollout_steps) == 1 and not is_constant else _WHY
    return TrainingJob(
        make_model=make_model,
        member_ids=tuple(ids),
        init_seed=config.seed,
        data=data,
        hyper={
            "learning_rate": np.full(len(tasks), training.learning_rate, np.float32),
            "task": np.asarray(tasks, np.int32),
            **numbers,
        },
        mesh_sizes=config.mesh.to_dict(),
        start=functools.partial(_same_start, config, make_model),
        options=dict(
            loss=OwnTask(loss),
            make_tx=WarmAdamW(
                steps,
                training.warmup_steps,
                training.weight_decay,
                tuple(training.betas),
                training.max_norm,
            ),
            steps=steps,
            batch_size=training.batch_size,
            seed=config.seed + rollout,
            sampling="shared",  # networks of a seed see the same windows in one order
            steps_per_call=min(training.steps_per_call, steps),
            log_every_steps=min(training.steps_per_call, steps),
            save_every_steps=steps,
            block=training.block,
        ),
        stage=name if rollout == 0 else f"{name}_{rollout}",
        why_no_replay=why,
    )


_WHY = "its weights start from those of another stage."


def _same_start(config, make_model, ensemble):
    """All networks of a seed with the weights of its first."""
    count = len(config.variants.kl_weights)
    ids = np.asarray(fetch(ensemble.member_ids))
    firsts = count * (ids // count)
    unique = np.unique(firsts)
    # On one device: a row that is chosen by number keeps its bits.
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    base = ensjax.Ensemble.init(
        make_model, member_ids=unique.tolist(), seed=config.seed, mesh=mesh
    )
    rows = np.searchsorted(unique, firsts)
    state = jax.tree.map(lambda x: np.asarray(x)[rows], fetch(base.state))
    placed = dataclasses.replace(ensemble, state=jax.tree.map(jnp.asarray, state))
    return placed.on_mesh(ensemble.mesh)


def make_pair(config, scale, rngs) -> VariationalPair:
    """Emulator and posterior, from `nnx.Rngs`; the forecaster's weights come first."""
    build = choose("model.name", config.model.name, NETWORKS)
    forecaster, prior, posterior, channels = build(config, scale, rngs)
    emulator = VariationalForecaster(
        _gaussian(config, prior, NUM_STATES * channels),
        forecaster,
        num_channels=channels,
        num_states=NUM_STATES,
        step_scale=scale,
    )
    return VariationalPair(
        emulator, _gaussian(config, posterior, NUM_STATES * channels)
    )


def _gaussian(config, network, channels):
    model = config.model
    return GaussianPerturbation(
        network,
        channels,
        offset=model.log_variance_offset,
        limits=model.log_variance_range,
    )


def _residual(config, scale, rngs):
    model = config.model
    options = dict(
        width=model.width,
        depth=model.depth,
        kernel_size=(model.kernel_size,),
        rngs=rngs,
    )
    forecaster = ensjax.nn.ResidualForecaster(
        1, num_extra_channels=NUM_STATES - 1, step_scale=scale, **options
    )
    # The posterior sees the newest state and the truth: two channels as well.
    prior, posterior = (
        ensjax.nn.GridNet(NUM_STATES, 2 * NUM_STATES, **options) for _ in range(2)
    )
    return forecaster, prior, posterior, 1


NETWORKS = {"residual": _residual, "windows": full_size.networks}


def make_constant(config, scale, rngs) -> VariationalPair:
    """A forecaster with a Gaussian that does not depend on the state."""
    forecaster, *_, channels = _residual(config, scale, rngs)
    emulator = VariationalForecaster(
        ConstantPerturbation(NUM_STATES * channels),
        forecaster,
        num_channels=channels,
        num_states=NUM_STATES,
        step_scale=scale,
    )
    return VariationalPair(emulator)


def data_shapes(config) -> jax.ShapeDtypeStruct:
    """Shapes of the training windows, `[window, seed, time, *space, channel]`.

    At full size those of one batch, which a loader brings: all are too many for a
    device.
    """
    archive, training = config.archive, config.training
    time = NUM_STATES + training.rollout_steps[0]
    if archive.source == "era5":
        shape = (training.batch_size, 1, time, *full_size.state_shape(config))
    else:
        count = archive.num_train_runs * (archive.num_train_outputs - time + 1)
        shape = (count, config.num_seeds, time, archive.num_sites, 1)
    return jax.ShapeDtypeStruct(shape, np.float32)


def check_at_hand(config) -> None:
    """Raises `ConfigError` for a source that cannot be read here."""
    if config.archive.source == "era5":
        raise ConfigError(
            "ERA5 is not at hand, so that this preset is planned: ensjax plan"
            " configs/fuxi_ens.py:paper"
        )


def simulate(config) -> dict[str, np.ndarray]:
    """The archives of all seeds, leaves `[seed, ...]`; see `lorenz96_forecasts`."""
    check_at_hand(config)
    found = [
        weather.simulate(config, config.seed + seed) for seed in range(config.num_seeds)
    ]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def archive_of(archives, seed) -> dict[str, np.ndarray]:
    """That of one seed."""
    return {name: values[seed] for name, values in archives.items()}


def training_data(config, archives, rollout=0) -> np.ndarray:
    """Standardised windows, `[window, seed, time, site, 1]`."""
    time = NUM_STATES + config.training.rollout_steps[rollout]
    own = [
        weather.training_windows(archive_of(archives, seed), time)
        for seed in range(config.num_seeds)
    ]
    return np.stack(own, axis=1)


def step_scale(archives) -> float:
    """The deviation of one step's change, in deviations; the mean over seeds.

    It is one number for a stack, whose networks are one graph.
    """
    return float(np.mean(archives["step_sd"]))


def train(config, run_dir, archives):
    """Emulators of all seeds and variants, those of constant Gaussians, and the logs.

    Returns:
        Ensembles "learned" `[seed x variant]`, "replaced" (the first variant with its
        mean variance in the place of the variance) and "constant" (trained with a
        Gaussian of its mean and variance everywhere), both `[seed]`; and logs by name.
    """
    scale = step_scale(archives)
    make = functools.partial(make_pair, config, scale)
    trained, log = _fit_curriculum(config, run_dir, archives, make)
    learned = emulators_of(trained)
    moments = prior_moments(config, learned, archives)
    make = functools.partial(make_constant, config, scale)
    same = functools.partial(_with_moments, moments)
    trained, constant_log = _fit_curriculum(config, run_dir, archives, make, same)
    constant = emulators_of(trained)
    first = learned.select(np.arange(config.num_seeds) * len(variants(config)))
    replaced = _with_one_spread(first, moments)
    ensembles = {"learned": learned, "replaced": replaced, "constant": constant}
    return ensembles, {"train": log, "constant": constant_log}


def _fit_curriculum(config, run_dir, archives, make_model, prepare=None):
    """Stages of ever longer rollouts; weights are handed over. The last stage's log."""
    trained = None
    for rollout in range(len(config.training.rollout_steps)):
        job = _job(
            config,
            make_model,
            training_data(config, archives, rollout),
            rollout=rollout,
            is_constant=prepare is not None,
        )
        if trained is not None:
            job = dataclasses.replace(job, start=lambda _, before=trained: before)
        elif prepare is not None:
            start = job.start
            job = dataclasses.replace(job, start=lambda x, s=start: prepare(s(x)))
        trained, log = job.fit(
            checkpoint_dir=run_dir.checkpoints / job.stage,
            logger=run_dir.logger(job.stage),
        )
    return trained, log


@dataclasses.dataclass(frozen=True)
class _Moments:
    graph: Any

    def __call__(self, state, states):
        emulator = self.graph.merge(state, train=False)
        field = jax.vmap(emulator.prior)(states)
        axes = tuple(range(states.ndim - 1))
        variance = jnp.mean(jnp.square(field.sigma), axis=axes)
        return field.mean.mean(axis=axes), jnp.log(variance)


def prior_moments(config, learned, archives):
    """Mean of the first variant's perturbations, and log of their mean variance.

    Both `[seed, channel]`, over training windows and places. What the mean itself does
    from state to state is no spread: the forecaster is told it without noise.
    """
    count = len(variants(config))
    first = learned.select(np.arange(config.num_seeds) * count)
    data = training_data(config, archives)
    step = max(1, len(data) // _MOMENT_WINDOWS)
    windows = np.moveaxis(data[::step, :, :NUM_STATES], 1, 0)
    states = jax.vmap(jax.vmap(side_by_side))(jnp.asarray(windows))
    run = map_members(
        _Moments(first.graph), kinds=("member", "member"), mesh=first.mesh, block=1
    )
    return fetch(run(first.state, states))


def _with_moments(moments, ensemble):
    """Constant Gaussians with a mean and log variance of each network's own."""
    values = dict(zip(("mean", "log_variance"), moments, strict=True))
    flat = [
        (path, variable.replace(jnp.asarray(values[path[-1]])))
        for path, variable in nnx.to_flat_state(ensemble.state["rest"])
    ]
    state = {**ensemble.state, "rest": nnx.from_flat_state(flat)}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def _with_one_spread(learned, moments):
    """The learned emulators with a variance that is everywhere its mean."""
    graph = learned.graph
    emulator = nnx.merge(graph.graphdef, learned.state["params"], learned.state["rest"])
    channels = emulator.prior.num_channels
    emulator.prior = ConstantSpread(emulator.prior, log_variance=jnp.zeros(channels))
    graphdef, params, rest = nnx.split(emulator, nnx.Param, ...)
    state = {"params": params, "rest": rest}
    changed = dataclasses.replace(learned, state=state, graph=NnxGraph(graphdef))
    return _with_moments(moments, changed)


@dataclasses.dataclass(frozen=True)
class _Forecasts:
    """All members of all starts of one network, `[member, start, lead, site]`."""

    graph: Any
    num_members: int
    num_leads: int

    def __call__(self, state, states, seed):
        emulator = self.graph.merge(state, train=False)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            member_key(seed, "sample", 0), jnp.arange(len(states))
        )

        def of_member(member_id):
            def of_start(key, states):
                return sample_forecast(
                    emulator, key, member_id, states, num_steps=self.num_leads
                )[..., 0]

            return jax.vmap(of_start)(keys, states)

        sigma = jax.vmap(emulator.prior)(states).sigma
        sigma = jnp.sqrt(jnp.mean(jnp.square(sigma), axis=-1))
        return jax.lax.map(of_member, jnp.arange(self.num_members)), sigma


def forecasts(config, ensemble, archives) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of every network from the truth at the starts of its seed.

    Returns:
        `[network, member, start, lead, site]` in deviations; and the deviation that the
        perturbation has at the start, in units of a step's change, `[network, start,
        site]`.
    """
    per_seed = ensemble.num_members // config.num_seeds
    last = config.archive.num_before + 1
    starts = archives["truth"][:, :, last - NUM_STATES : last]  # [seed, start, time]
    states = np.moveaxis(starts, 2, -1).astype(np.float32)
    run = map_members(
        _Forecasts(ensemble.graph, config.num_members, config.archive.num_leads),
        kinds=("member", "member", "shared"),
        out=("member", "member"),
        mesh=ensemble.mesh,
        block=1,
    )
    states = jnp.asarray(np.repeat(states, per_seed, axis=0))
    return fetch(run(ensemble.state, states, jnp.int32(config.seed)))
