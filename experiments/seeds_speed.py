"""Speed at equal skill: a diffusion sampler against a network with noise inside.

One table on the archive of `seeds.py`: the trained denoiser sampled with ever more Heun
levels, and networks of the same trunk that were trained on the almost fair CRPS of a
few members and make a member in one call. All columns belong together: a network that
is trained too little is fast and has too little spread. `_claims.py` judges.

How `seeds.py` hooks it in:

    speed = load_beside(__file__, "seeds_speed")
    verdicts_of_speed = load_beside(__file__, "seeds_speed_claims")

    speed.validate(config)                               # in validate
    "speed": lambda done: speed.measure(                 # a stage after "emulate"
        config, run_dir, done["simulate"], emulators, done["emulate"])
    verdicts_of_speed.add_table(run_dir, config, done["speed"])
    checks += verdicts_of_speed.make_checks(config, done["speed"])
    scalars |= verdicts_of_speed.summarise(config, done["speed"])  # no times in it
    summary += verdicts_of_speed.describe(config, done["speed"])

`emulators` are the trained denoisers of every seed. The config has

    config.speed = ml_collections.ConfigDict(
        dict(
            num_seeds=3,  # the first of config.num_seeds
            num_samples=48,
            num_levels=(4, 6, 12, 24),
            num_timings=3,
            crps_members=(4, 2),  # of one network each: in training
            crps_steps=(1_500, 4_500),
            crps_learning_rates=(2e-3, 3e-3),
            num_noise_channels=4,
            alpha=0.95,
            ema_decay=0.999,
        )
    )

Source of the question: the speed that Lang et al. 2024, arXiv:2412.15832, and Price et
al. 2023, arXiv:2312.15796, have per member; the bounds are our own.
"""

import dataclasses
import time

import jax
import numpy as np

import ensjax
from ensjax import verification
from ensjax.emulate.sample_job import SamplerSettings
from ensjax.emulate.seeds import train_seeds
from ensjax.experiment.exit_codes import ConfigError
from ensjax.experiment.fields import check_numbers, load_beside

scores = load_beside(__file__, "seeds_scores")

K = 2  # seeds of a case


def validate(config) -> None:
    """Raises `ConfigError` for what would fail later, in one line."""
    fields = ("num_levels", "crps_members", "crps_steps", "crps_learning_rates")
    check_numbers(
        config,
        ("speed.num_seeds", "speed.num_timings", "speed.num_noise_channels"),
        at_least=1,
    )
    check_numbers(config, ("speed.num_samples", "speed.crps_members"), at_least=2)
    check_numbers(config, ("speed.num_levels",), at_least=2)
    check_numbers(config, ("speed.alpha",), at_least=0, at_most=1)
    check_numbers(config, ("speed.crps_steps", "speed.crps_learning_rates"), above=0)
    lengths = {len(config.speed[name]) for name in fields[1:]}
    if len(lengths) != 1 or len(set(network_names(config))) not in lengths:
        raise ConfigError(
            "config.speed.crps_members, crps_steps and crps_learning_rates are of as"
            " many networks, which differ in members or steps."
        )
    if config.speed.num_seeds > config.num_seeds:
        raise ConfigError(
            f"config.speed.num_seeds is at most config.num_seeds = {config.num_seeds};"
            f" got {config.speed.num_seeds}."
        )


def sampler_names(config) -> list[str]:
    """Of the samplers, as the arrays of the stage are named."""
    return [f"levels_{count}" for count in config.speed.num_levels]


def network_names(config) -> list[str]:
    """Of the networks with noise inside."""
    speed = config.speed
    pairs = zip(speed.crps_members, speed.crps_steps, strict=False)
    return [f"crps_{members}_{steps}" for members, steps in pairs]


def measure(config, run_dir, archives, emulators, trained) -> dict[str, np.ndarray]:
    """Trains the networks; scores and times both kinds.

    Args:
        config: of the run.
        run_dir: for checkpoints of the networks.
        archives: "train" and "test" `[seed, case, member, site]`, "truth" `[seed, case,
            site]`.
        emulators: of every seed, trained denoisers.
        trained: of them `training_seconds` of one and `frozen_steps` `[seed]`.

    Returns:
        For each name `fair_`, `ssr_` `[seed]`, `power_` `[seed, wavenumber]` relative
        to the other members of the simulator, `rate_` (samples of a case per second,
        the best of the timings), `calls_` of a network for a sample, `training_`
        (seconds for each model, with its part of the compilation) and `frozen_` (how
        many models were not finite); `fair_others`.
    """
    speed = config.speed
    seeds = range(speed.num_seeds)
    train = archives["train"]
    mean, sd = train.mean(axis=(1, 2, 3)), train.std(axis=(1, 2, 3))
    wide = (slice(None), None, None, None)
    test = ((archives["test"] - mean[wide]) / sd[wide])[: len(seeds)]
    given = test[:, :, :K, :, None]
    found = {
        "fair_others": fair_of(archives["test"][: len(seeds)][:, :, K:], archives),
    }

    def add(name, models, sampler, calls, trained):
        drawn, rate = timed(models, given, sampler, config)
        drawn = drawn * sd[: len(seeds)][wide] + mean[: len(seeds)][wide]
        measured = measured_of(drawn, archives)
        measured |= {
            "rate": rate,
            "calls": calls,
            "training": trained["training_seconds"],
            "frozen": int((np.asarray(trained["frozen_steps"]) >= 0).sum()),
        }
        found.update({f"{key}_{name}": np.asarray(v) for key, v in measured.items()})

    denoisers = dataclasses.replace(
        emulators,
        ensemble=emulators.ensemble.select(list(seeds)),
        tasks=np.asarray(emulators.tasks)[: len(seeds)],
    )
    for name, count in zip(sampler_names(config), speed.num_levels, strict=True):
        settings = config.sampler.to_dict() | {"num_levels": count}
        sampler = SamplerSettings("heun", **settings).make()
        add(name, denoisers, sampler, sampler.num_calls, trained)
    for number, name in enumerate(network_names(config)):
        networks, log = train_network(config, run_dir, train, name, number)
        own = {
            "training_seconds": training_seconds(networks, log),
            "frozen_steps": log.frozen_steps,
        }
        add(name, networks, None, 1, own)
    return found


def training_seconds(emulators, log) -> float:
    """Of one network of a stack, with its part of the compilation, on one device."""
    seconds = log.times.device_seconds / emulators.ensemble.mesh.size
    return seconds / emulators.ensemble.num_members


def train_network(config, run_dir, train, name, number):
    """The networks of one row of the table, one for every seed, and their log."""
    speed = config.speed
    train = train[: speed.num_seeds]
    mean, sd = train.mean(axis=(1, 2, 3)), train.std(axis=(1, 2, 3))
    standard = (train - mean[:, None, None, None]) / sd[:, None, None, None]

    def make_model(rngs):
        return ensjax.nn.ResidualGenerator(
            1,
            num_condition_channels=3,
            num_noise_channels=speed.num_noise_channels,
            width=config.model.width,
            depth=config.model.depth,
            kernel_size=(config.model.kernel_size,),
            rngs=rngs,
        )

    loss = ensjax.train.NoiseCrps(
        speed.crps_members[number],
        noise=ensjax.train.WhiteNoise(speed.num_noise_channels),
        alpha=speed.alpha,
    )
    return train_seeds(
        make_model,
        {"members": standard.swapaxes(0, 1)[..., None]},
        steps=speed.crps_steps[number],
        loss=loss,
        learning_rate=speed.crps_learning_rates[number],
        batch_size=config.training.batch_size,
        ema_decay=speed.ema_decay,
        seed=config.seed,
        mesh=ensjax.make_mesh(**config.mesh),
        fit_options=dict(
            checkpoint_dir=run_dir.checkpoints / name, logger=run_dir.logger(name)
        ),
    )


def timed(models, given, sampler, config) -> tuple[np.ndarray, float]:
    """Samples `[seed, sample, case, site]` and how many of a case are made a second."""
    ids = np.arange(config.speed.num_samples)

    def draw():
        return jax.block_until_ready(models.sample(given, ids, sampler=sampler))

    drawn = draw()  # compiles
    times = []
    for _ in range(config.speed.num_timings):
        start = time.perf_counter()
        draw()
        times.append(time.perf_counter() - start)
    count = np.prod(drawn.shape[:3])
    return np.asarray(drawn)[..., 0], float(count / min(times))


def measured_of(drawn, archives) -> dict[str, np.ndarray]:
    """Scores of samples `[seed, sample, case, site]`."""
    found = {"fair": [], "ssr": [], "power": []}
    for seed, members in enumerate(drawn):
        others = np.moveaxis(archives["test"][seed][:, K:], 1, 0)
        fair, ratio = _fair_and_ratio(members, archives["truth"][seed])
        found["fair"].append(fair)
        found["ssr"].append(ratio)
        found["power"].append(scores.power(members) / scores.power(others))
    return {name: np.stack(values) for name, values in found.items()}


def fair_of(members, archives) -> np.ndarray:
    """The fair CRPS `[seed]` of members `[seed, case, member, site]`."""
    return np.stack(
        [
            _fair_and_ratio(np.moveaxis(x, 1, 0), archives["truth"][seed])[0]
            for seed, x in enumerate(members)
        ]
    )


@jax.jit
def _fair_and_ratio(members, truth):
    """As one program: the fair CRPS, and spread over skill."""
    fair = verification.crps("fair")(members, truth)
    return fair, verification.spread_skill()(members, truth).ratio
