"""Networks, training and forecasts of `fuxi_ens.py`, as its config has them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ensjax
from ensjax.emulate.variational import (
    ConstantPerturbation,
    ConstantSpread,
    GaussianPerturbation,
    VariationalForecaster,
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
from ensjax.mesh import fetch
from ensjax.train import TrainingJob, area_channel_weights
from ensjax.verification import cell_weights

weather = load_beside(__file__, "lorenz96_forecasts")
full_size = load_beside(__file__, "fuxi_ens_networks")
emulators = load_beside(__file__, "fuxi_ens_emulators")

NUM_STATES = emulators.NUM_STATES
SOURCES = ("lorenz96", "era5")


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


def _job(config, make_model, data, *, rollout=0, twin=None) -> TrainingJob:
    """A stage of the learned networks, or of a twin of the first one of each seed."""
    training, own = config.training, config.variants
    count = len(own.kl_weights)
    seeds = range(config.num_seeds)
    steps = training.total_steps[rollout]
    if twin:
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
        draw_from="prior" if twin else training.draw_from,
        # On a mesh with several devices along it, members are split.
        axis="model" if config.mesh.model != 1 else None,
        element_weights=element_weights_of(config),
    )
    name = twin or "train"
    why = "" if len(training.rollout_steps) == 1 and not twin else _WHY
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


def element_weights_of(config):
    """At full size the areas of the rows; sites of a ring weigh the same."""
    archive = config.archive
    if archive.source != "era5":
        return None
    rows = np.linspace(*archive.latitudes, archive.space[0])
    return area_channel_weights(cell_weights(rows))


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


def make_one_spread(config, scale, rngs) -> VariationalPair:
    """All of the learned networks, but one spread for every state.

    Its mean is a second network of the state before the forecaster, as the learned one
    has: the two differ by nothing but where the noise is large.
    """
    learned = make_pair(config, scale, rngs).emulator
    channels = learned.prior.num_channels
    learned.prior = ConstantSpread(learned.prior, log_variance=jnp.zeros(channels))
    return VariationalPair(learned)


# Trained beside the learned ones, with Gaussians of their mean variance.
TWINS = {"constant": make_constant, "one_spread": make_one_spread}


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
    """Emulators of all seeds and variants, those of their twins, and the logs.

    Returns:
        Ensembles "learned" `[seed x variant]`, and `[seed]` each: "replaced" (the first
        variant with its mean variance in the place of the variance), "constant"
        (trained with a Gaussian of its mean and variance everywhere) and "one_spread"
        (trained with a learned mean and that variance); and logs by name.
    """
    scale = step_scale(archives)
    make = functools.partial(make_pair, config, scale)
    trained, log = _fit_curriculum(config, run_dir, archives, make)
    learned = emulators_of(trained)
    first = learned.select(np.arange(config.num_seeds) * len(variants(config)))
    moments = emulators.prior_moments(first, training_data(config, archives))
    replaced = emulators.with_one_spread(first, moments)
    ensembles, logs = {"learned": learned, "replaced": replaced}, {"train": log}
    for name, make_twin in TWINS.items():
        make = functools.partial(make_twin, config, scale)
        trained, logs[name] = _fit_curriculum(
            config, run_dir, archives, make, twin=name, moments=moments
        )
        ensembles[name] = emulators_of(trained)
    return ensembles, logs


def _fit_curriculum(config, run_dir, archives, make_model, *, twin=None, moments=None):
    """Stages of ever longer rollouts; weights are handed over. The last stage's log."""
    trained = None
    for rollout in range(len(config.training.rollout_steps)):
        job = _job(
            config,
            make_model,
            training_data(config, archives, rollout),
            rollout=rollout,
            twin=twin,
        )
        if trained is not None:
            job = dataclasses.replace(job, start=lambda _, before=trained: before)
        elif twin:
            start = job.start
            job = dataclasses.replace(
                job, start=lambda x, s=start: emulators.with_moments(moments, s(x))
            )
        trained, log = job.fit(
            checkpoint_dir=run_dir.checkpoints / job.stage,
            logger=run_dir.logger(job.stage),
        )
    return trained, log
